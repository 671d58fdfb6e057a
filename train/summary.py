"""What `vae-train` prints at its end: what a run came to, what was chosen and how each kind of defect is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from vae_edge.cli.console import plain_table, print_warning, results_console
from vae_edge.decision import describe_promise, describe_support, too_few_normals
from vae_edge.train.model.presets import Network

if TYPE_CHECKING:
    from vae_edge.train.run.folder import RunFolder

_RANKED = 5
"""Scorings that are printed; the run's record holds more."""


def print_result(run: RunFolder) -> None:
    """Print what a run came to."""
    record, metrics, thresholds = run.record, run.metrics, run.thresholds
    console = results_console()
    table = plain_table(title=f"run {run.folder}", headers=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    outcome = record.training
    ended = {
        "epochs": "as planned",
        "patience": "no better for a while",
        "time": "out of time",
        "callback": "stopped by a callback",
    }[outcome.ended_by]
    table.add_row(
        "training",
        f"{outcome.epochs_run} epochs ({ended}) in {outcome.seconds:.0f} s, {outcome.images_per_s:.1f} images/s; kept "
        f"the weights of epoch {outcome.best_epoch}, held-out loss {outcome.best_held_out_loss:.5f}",
    )
    if record.feature is not None:
        table.add_row("model" if record.network is Network.FEATURE else "on features", record.feature.describe())
        table.add_row("scoring", record.feature.settings.describe())
    if record.network is not Network.FEATURE:
        name = "model" if record.network is Network.PIXEL else "on pixels"
        table.add_row(name, f"{record.tiling.describe()}; {record.photometric.describe()}")
        table.add_row("scoring", record.scoring.describe())
    if record.choice is not None:
        table.add_row("chosen on", f"{record.choice.judged_on}; the ranking is in model.json")
    n_pictures = len(run.split.of(*run.calibration_roles))
    shown = f", one of each part in {n_pictures}" if thresholds.n_normals < n_pictures else ""
    table.add_row(
        "threshold",
        f"score > {thresholds.image_threshold:.6g}, {thresholds.method} from {thresholds.n_normals} normals{shown}",
    )
    table.add_row("false alarms", describe_promise(thresholds))
    table.add_row("smallest rate", describe_support(thresholds))
    rows = (
        ("image AUROC", metrics.image_auroc),
        ("image AUPR", metrics.image_aupr),
        ("F1 at the threshold", metrics.image_f1),
        ("F1 at best", metrics.image_f1_best),
        ("recall", metrics.recall),
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
    few = too_few_normals(thresholds)
    if few:
        print_warning(few)
    console.print(f"Next: vae-export {run.folder} --target all --out bundles")


def _print_ranking(console: Console, run: RunFolder) -> None:
    """Print what was compared and what it reached on the images to choose by."""
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
        ("network", choice.network, str(run.record.network)),
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
