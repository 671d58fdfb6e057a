"""What `vae-train` prints at its end: results, what was chosen and how well each kind of defect is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from vae_edge.cli.console import plain_table, print_warning, results_console
from vae_edge.decision import describe_promise, describe_support, promised_rate, too_few_normals
from vae_edge.detectability import CONTRASTS, Detectability, found_text
from vae_edge.train.model.presets import Network, network_name
from vae_edge.wording import count

if TYPE_CHECKING:
    from vae_edge.manifest import Thresholds
    from vae_edge.train.run.folder import RunFolder
    from vae_edge.train.run.metrics import Metrics
    from vae_edge.train.run.records import RunRecord

_RANKED = 5
"""Scorings that are printed; the run's record holds more."""


def print_result(run: RunFolder) -> None:
    """Print the results of a run."""
    record, metrics, thresholds = run.record, run.metrics, run.thresholds
    if metrics.detectability is not None and (blindness := metrics.detectability.blindness()):
        print_warning(f"{blindness}; try {what_to_try(record, metrics.detectability)}")
    console = results_console()
    table = plain_table(title=f"run {run.folder}", headers=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    outcome = record.training
    ended = {
        "epochs": "as planned",
        "patience": "no improvement for a while",
        "time": "out of time",
        "callback": "stopped by a callback",
    }[outcome.ended_by]
    table.add_row(
        "training",
        f"{outcome.epochs_run} epochs ({ended}) in {outcome.seconds:.0f} s, {outcome.images_per_s:.1f} images/s; kept "
        f"the weights of epoch {outcome.best_epoch}, held-out loss {outcome.best_held_out_loss:.5f}",
    )
    if record.feature is not None:
        table.add_row("model", record.feature.describe())
        table.add_row("scoring", record.feature.settings.describe())
    else:
        table.add_row("model", f"{record.tiling.describe()}; {record.photometric.describe()}")
        table.add_row("scoring", record.scoring.describe())
    if record.choice is not None:
        detail = "reason" if record.choice.judged_on == "nothing" else "ranking"
        table.add_row("chosen on", f"{record.choice.judged_on}; the {detail} is in model.json")
    n_pictures = len(run.split.of(*run.calibration_roles))
    shown = f", one of each part in {n_pictures}" if thresholds.n_normals < n_pictures else ""
    table.add_row(
        "threshold",
        f"score > {thresholds.image_threshold:.6g}, {thresholds.method} "
        f"from {count(thresholds.n_normals, 'normal')}{shown}",
    )
    table.add_row("false alarms", describe_promise(thresholds))
    table.add_row("smallest rate", describe_support(thresholds))
    rows = (
        ("image AUROC", metrics.image_auroc),
        (_recall_title(thresholds), metrics.recall),
        ("image AUPR", metrics.image_aupr),
        ("F1 at the threshold", metrics.image_f1),
        ("F1 at best", metrics.image_f1_best),
        (f"false alarms on {metrics.n_normal} test normals", metrics.false_alarm_rate),
        ("pixel AUROC", metrics.pixel_auroc),
        ("AUPRO", metrics.aupro),
    )
    for name, value in rows:
        if value is not None:
            table.add_row(name, f"{value:.3f}")
    console.print(table)
    _print_ranking(console, run)
    _print_defects(console, run)
    if metrics.detectability is not None:
        _print_detectability(console, metrics.detectability)
    few = too_few_normals(thresholds)
    if few:
        costs = (few, cost_of_rate(metrics, thresholds), what_one_normal_decides(run))
        print_warning("; ".join(filter(None, costs)))
    console.print(f"Next: vae-export {run.folder} --target all --out bundles")


def _recall_title(thresholds: Thresholds) -> str:
    rate = promised_rate(thresholds)
    return "recall at the threshold" if rate is None else f"recall at the promised rate of {rate:.3g}"


def cost_of_rate(metrics: Metrics, thresholds: Thresholds) -> str | None:
    """Return what the requested false-alarm rate would cost in recall if there are too few normals to support it.

    It is the recall on the labelled defective images, or on pasted defects if there are none. None if it cannot be
    estimated.
    """
    now, then, what = metrics.recall, metrics.recall_at_requested_rate, "defective test images"
    pasted = metrics.detectability
    if then is None and pasted is not None and pasted.n_found_at_requested_rate is not None:
        now, then, what = pasted.n_found / pasted.n, pasted.n_found_at_requested_rate / pasted.n, "pasted defects"
    if now is None or then is None:
        return None
    return (
        f"{now:.0%} of the {what} are found at {thresholds.false_alarm_rate:.3g}, about {then:.0%} would be at "
        f"{thresholds.false_alarm_rate_requested:.3g} (its threshold estimated from the tail of the normals' scores)"
    )


def what_one_normal_decides(run: RunFolder) -> str | None:
    """Name the picture whose score is the threshold, and what a larger false-alarm rate would find.

    None where the normals support the requested rate, or no rate is promised.
    """
    seen = run.metrics.detectability
    if seen is None or seen.at_larger_rate is None:
        return None
    larger, scores = seen.at_larger_rate, sorted(run.calibration.scores, key=lambda each: -each.score)
    behind = f" (the next is {scores[1].score:.3g})" if len(scores) > 1 else ""
    return (
        f"the threshold is the score of {scores[0].name}, {scores[0].score:.3g}{behind}: look whether it shows a good "
        f"part; {seen.n_found / seen.n:.0%} of the pasted defects are found, {larger.n_found / seen.n:.0%} would be at "
        f"--false-alarm-rate {larger.false_alarm_rate:.3g}"
    )


def what_to_try(record: RunRecord, seen: Detectability) -> str:
    """Name changes that may let a model see more, with the run's current settings, the most promising first."""
    height, width = record.preparation.height, record.preparation.width
    large = record.data.typical_size
    advice = []
    if large[0] * large[1] > height * width:
        advice.append(f"a larger --image-size (now {height}x{width}; the pictures are typically {large[0]}x{large[1]})")
    else:
        advice.append("a camera that is closer or resolves more (the model already sees every pixel)")
    on_pixels = record.network is Network.PIXEL
    preset = record.architecture.preset if on_pixels else str(record.network)
    advice.append(f"another --preset{f' (now {preset})' if preset else ''}")
    traits = record.settings.traits
    light = record.photometric if record.feature is None else record.feature.photometric
    if traits is not None and not traits.has_steady_light:
        advice.append(f"steadier light or --photometric (now {light})")
    advice.append(f"more good parts (now {record.counts['fit'] + record.counts['statistics']} train)")
    rate = record.settings.false_alarm_rate
    higher = f"a higher --false-alarm-rate (now {rate:.3g})"
    # Twice as many without a change of anything else: one outlier among the good parts hides them.
    is_first = seen.at_larger_rate is not None and seen.at_larger_rate.n_found >= max(2 * seen.n_found, 0.1 * seen.n)
    advice.insert(0 if is_first else len(advice), higher)
    return f"{', '.join(advice[:-1])}, or {advice[-1]}"


def _print_detectability(console: Console, found: Detectability) -> None:
    table = plain_table()
    table.add_column("pasted defects found", style="cyan")
    for contrast in CONTRASTS:
        table.add_column(f"{contrast} contrast", justify="right")
    for size in found.sizes:
        table.add_row(found.size_text(size), *(found_text(found.at(size, contrast)) for contrast in CONTRASTS))
    console.print()
    console.print(table)
    kinds = plain_table()
    kinds.add_column("by kind", style="cyan")
    for size in found.sizes:
        kinds.add_column(f"{100 * size:g} %", justify="right")
    for kind in found.kinds:
        cells = (found.of_kind(kind, size) for size in found.sizes)
        kinds.add_row(kind, *("-" if cell is None else f"{cell.n_found}/{cell.n}" for cell in cells))
    console.print()
    console.print(kinds)
    console.print(f"{found.headline()}; {found.n_false_alarms} of {found.n_normals} called anomalous without a defect")


def _network_name(record: RunRecord) -> str:
    return network_name(record.network, record.feature is not None and record.feature.settings.places is not None)


def _print_ranking(console: Console, run: RunFolder) -> None:
    """Print what was compared and its results on the images used for choosing."""
    choice = run.record.choice
    if choice is None or not (choice.network or choice.photometric or choice.scoring):
        return
    table = plain_table()
    table.add_column("compared", style="cyan", overflow="fold")
    table.add_column("AUROC", justify="right")
    table.add_column("behind the first", justify="right")
    table.add_column("chosen")
    scorings = choice.scoring[:_RANKED]
    chosen = str(run.record.scoring)
    scorings += tuple(each for each in choice.scoring[_RANKED:] if each.name == chosen)
    for kind, ranked, name in (
        ("network", choice.network, _network_name(run.record)),
        ("light", choice.photometric, str(run.record.photometric)),
        ("scoring", scorings, chosen),
    ):
        for each in ranked:
            table.add_row(
                f"{kind} {each.name}",
                f"{each.auroc:.3f}",
                f"{each.behind:.3f} ± {each.standard_error:.3f}",
                "yes" if each.name == name else "",
            )
    console.print()
    console.print(table)


def _print_defects(console: Console, run: RunFolder) -> None:
    if not run.metrics.per_defect:
        return
    table = plain_table()
    table.add_column("defect", style="cyan")
    for heading in ("images", "image AUROC", "recall", "pixel AUROC"):
        table.add_column(heading, justify="right")
    for name, defect in run.metrics.per_defect.items():
        values = (defect.image_auroc, defect.recall, defect.pixel_auroc)
        table.add_row(name, str(defect.n), *("" if value is None else f"{value:.3f}" for value in values))
    console.print()
    console.print(table)
