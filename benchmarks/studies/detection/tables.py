"""From the results of all cases to tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from vae_edge.benchmarks.studies.detection.cases import RATES, AtRate, CaseResult
from vae_edge.benchmarks.studies.detection.peers import PeerResult
from vae_edge.benchmarks.studies.detection.timing import TIMED, TimingResult, timed_name
from vae_edge.targets import Precision, Target
from vae_edge.train.run.metrics import Metrics

Figure = Callable[[Metrics], "float | None"]

_FIGURES: tuple[tuple[str, Figure], ...] = (
    ("image AUROC", lambda metrics: metrics.image_auroc),
    ("pixel AUROC", lambda metrics: metrics.pixel_auroc),
    ("AUPRO", lambda metrics: metrics.aupro),
)


def write_tables(results: Sequence[CaseResult]) -> str:
    """Return all tables for the results of one preset or of several."""
    parts = []
    for preset in dict.fromkeys(result.preset for result in results):
        of_preset = [result for result in results if result.preset == preset]
        for data in dict.fromkeys(result.data for result in of_preset):
            parts.append(_set_tables(preset, data, [result for result in of_preset if result.data == data]))
        if with_hindsight := [result for result in of_preset if result.hindsight]:
            parts.append(_hindsight_table(preset, with_hindsight))
    parts.append(_preset_table(results))
    return "\n".join(parts)


def spread(values: Sequence[float | None]) -> str:
    """Return the mean and the standard deviation over seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{mean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


def _set_tables(preset: str, data: str, results: Sequence[CaseResult]) -> str:
    seeds = ", ".join(str(result.seed) for result in results)
    lights = ", ".join(result.photometric for result in results)
    lines = [
        f"### {data}, `{preset}`, seeds {seeds}\n",
        f"{results[0].model}; chosen light: {lights}; chosen scorings:\n",
        *(f"* seed {result.seed}: `{result.scoring}`" for result in results),
        "",
        _row("", *(name for name, _ in _FIGURES)),
        _row("---", *("---:" for _ in _FIGURES)),
    ]
    names = list(dict.fromkeys(row.name for result in results for row in result.rows))
    for name in names:
        found = [row.metrics for result in results for row in result.rows if row.name == name]
        count = "" if len(found) == len(results) else f" ({len(found)} of {len(results)} seeds)"
        lines.append(_row(name + count, *(spread([figure(each) for each in found]) for _, figure in _FIGURES)))
    return "\n".join([*lines, "", _class_table(results), ""])


def _class_table(results: Sequence[CaseResult]) -> str:
    """Image and pixel AUROC of each class of defects, of the chosen scoring and of the plain one."""
    wanted = ("auto", "mse (the plain scoring)", "training plain, mse", "template baseline")
    names = [name for name in wanted if any(row.name == name for result in results for row in result.rows)]
    classes = sorted({kind for result in results for row in result.rows for kind in row.metrics.per_defect})
    lines = [_row("image / pixel AUROC", *names), _row("---", *("---:" for _ in names))]
    for kind in classes:
        cells = []
        for name in names:
            found = [
                row.metrics.per_defect[kind]
                for result in results
                for row in result.rows
                if row.name == name and kind in row.metrics.per_defect
            ]
            pixel = spread([each.pixel_auroc for each in found])
            cells.append(spread([each.image_auroc for each in found]) + (f" / {pixel}" if pixel else ""))
        lines.append(_row(kind, *cells))
    return "\n".join(lines)


def _hindsight_table(preset: str, results: Sequence[CaseResult]) -> str:
    """The automatic choice next to the best composition in hindsight: of each set, and the best one for all sets."""
    sets = list(dict.fromkeys(result.data for result in results))
    compositions = list(results[0].hindsight)

    def of(composition: str, data: str) -> float:
        return mean(result.hindsight[composition] for result in results if result.data == data)

    fixed = max(compositions, key=lambda each: mean(of(each, data) for data in sets))
    lines = [
        f"### The choice and hindsight, `{preset}`, image AUROC\n",
        _row("", "chosen without labels", "default", "best fixed one for all sets", "best of each set", "which"),
        _row("---", "---:", "---:", "---:", "---:", "---"),
    ]
    for data in sets:
        own = [result for result in results if result.data == data]
        chosen = spread([result.hindsight[result.scoring] for result in own])
        best = max(compositions, key=lambda each: of(each, data))
        lines.append(
            _row(
                data,
                chosen,
                spread([result.hindsight[compositions[0]] for result in own]),
                spread([result.hindsight[fixed] for result in own]),
                spread([result.hindsight[best] for result in own]),
                f"`{best}`",
            )
        )
    return "\n".join([*lines, "", f"The best fixed one, found with the labels of all sets: `{fixed}`\n"])


def _preset_table(results: Sequence[CaseResult]) -> str:
    sets = list(dict.fromkeys(result.data for result in results))
    presets = list(dict.fromkeys(result.preset for result in results))
    lines = [
        "### Presets\n",
        _row(
            "preset", "parameters", "GFLOP an image", "training, windows/s", *(f"{data}, image AUROC" for data in sets)
        ),
        _row("---", *("---:" for _ in range(3 + len(sets)))),
    ]
    for preset in presets:
        own = [result for result in results if result.preset == preset]
        flops = sorted({round(result.gflop, 2) for result in own})
        cells = [
            spread([row.metrics.image_auroc for result in own if result.data == data for row in result.rows[:1]])
            for data in sets
        ]
        lines.append(
            _row(
                f"`{preset}`",
                f"{own[0].n_parameters / 1e6:.2f} M",
                " to ".join(str(value) for value in dict.fromkeys((flops[0], flops[-1]))),
                f"{mean(result.images_per_s for result in own):.0f}",
                *cells,
            )
        )
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def networks_table(results: Sequence[CaseResult], peers: Mapping[str, Sequence[PeerResult]]) -> str:
    """Return one table of all networks and all other tools' models on all image sets.

    Args:
        results: of all presets, image sets and seeds; a row has the mean and the standard deviation over the seeds.
        peers: what was measured of the other tools, with one seed, by the name of the image set.
    """
    lines = [
        "### All networks\n",
        _row(
            "image set",
            "network",
            "seeds",
            *(name for name, _ in _FIGURES),
            *(f"recall at {rate:.0%}" for rate in RATES),
            f"false alarms on test normals, at {' / '.join(f'{rate:.0%}' for rate in RATES)}",
        ),
        _row("---", "---", *("---:" for _ in range(len(_FIGURES) + len(RATES) + 2))),
    ]
    for data in dict.fromkeys(result.data for result in results):
        own = [result for result in results if result.data == data]
        for preset in dict.fromkeys(result.preset for result in own):
            rows = [result.rows[0] for result in own if result.preset == preset]
            lines.append(_network_row(data, f"`{preset}`", [(row.metrics, row.at_rates) for row in rows]))
        for peer in peers.get(data, ()):
            name = f"anomalib, {peer.model}: {peer.settings}"
            lines.append(_network_row(data, name, [(peer.metrics, peer.at_rates)]))
    return "\n".join([*lines, ""])


def _network_row(data: str, name: str, found: Sequence[tuple[Metrics, Sequence[AtRate]]]) -> str:
    by_rate = {rate: [each for _, rates in found for each in rates if each.rate == rate] for rate in RATES}
    return _row(
        data,
        name,
        str(len(found)),
        *(spread([figure(metrics) for metrics, _ in found]) for _, figure in _FIGURES),
        *(spread([each.recall for each in by_rate[rate]]) for rate in RATES),
        " / ".join(spread([each.false_alarm_rate for each in by_rate[rate]]) for rate in RATES),
    )


def peers_table(
    data: str, own: Sequence[CaseResult], peers: Sequence[PeerResult], timing: TimingResult | None = None
) -> str:
    """Return this project's networks and other tools' models on one image set, with one seed and one split.

    Args:
        data: name of the image set.
        own: results with that seed, one for each preset.
        peers: what was measured of the other tools.
        timing: of the same models' exports; None: it was not measured.
    """
    height, width = peers[0].image_size
    lines = [
        f"### {data}: other tools on the same split, seed {peers[0].seed}\n",
        f"The others at {height}x{width}, with EfficientNet-Lite0 as backbone: "
        + "; ".join(f"{peer.model}: {peer.settings}" for peer in peers)
        + ".\n",
        _row(
            "",
            *(name for name, _ in _FIGURES),
            *(f"recall at {rate:.0%}" for rate in RATES),
            *(f"false alarms at {rate:.0%}" for rate in RATES),
            "training s",
            "p50 file ms",
            "p50 engine ms",
        ),
        _row("---", *("---:" for _ in range(len(_FIGURES) + 2 * len(RATES) + 3))),
    ]
    for result in own:
        row = result.rows[0]
        name = f"vae-edge, `{result.preset}`"
        timed = timed_name(result.preset, Target.OPENVINO, Precision.FP32)
        lines.append(_peer_row(name, row.metrics, row.at_rates, result.wall_s, timing, timed))
    for peer in peers:
        lines.append(
            _peer_row(f"anomalib, {peer.model}", peer.metrics, peer.at_rates, peer.train_s, timing, peer.model)
        )
    return "\n".join([*lines, "", *_in_force(own), ""])


def times_table(data: str, own: Sequence[CaseResult], peers: Sequence[PeerResult], timing: TimingResult) -> str:
    """Return how long one picture takes in each network and model, measured in turn.

    Args:
        data: name of the image set.
        own: results of the runs that were timed, one for each preset.
        peers: the other tools' models, timed as anomalib's inferencer runs them.
        timing: median milliseconds.
    """
    lines = [
        f"### {data}: p50 from file to verdict / of the engine alone, ms; seed {own[0].seed}\n",
        _row("", *(f"{target} {precision}" for target, precision in TIMED)),
        _row("---", *("---:" for _ in TIMED)),
    ]
    for result in own:
        names = (timed_name(result.preset, *kind) for kind in TIMED)
        lines.append(_row(f"`{result.preset}`, {result.model}", *(_times(timing, name) for name in names)))
    for peer in peers:
        kinds = (kind == (Target.OPENVINO, Precision.FP32) for kind in TIMED)
        lines.append(_row(f"anomalib, {peer.model}", *(_times(timing, peer.model) if is_it else "" for is_it in kinds)))
    missing = [f"{model} could not be exported: {reason}" for model, reason in timing.not_exported.items()]
    missing += [f"{model} could not be timed: {reason}" for model, reason in timing.failed.items()]
    return "\n".join([*lines, "", *missing, ""])


def _times(timing: TimingResult, name: str) -> str:
    found = timing.models.get(name)
    return "" if found is None else f"{found['file_p50_ms']:.1f} / {found['engine_p50_ms']:.1f}"


def _peer_row(
    name: str,
    metrics: Metrics,
    found: Sequence[AtRate],
    seconds: float | None,
    timing: TimingResult | None,
    timed: str,
) -> str:
    by_rate = {each.rate: each for each in found}
    times: Mapping[str, float] = {} if timing is None else timing.models.get(timed, {})
    return _row(
        name,
        *(spread([figure(metrics)]) for _, figure in _FIGURES),
        *(f"{by_rate[rate].recall:.3f}" if rate in by_rate else "" for rate in RATES),
        *(f"{by_rate[rate].false_alarm_rate:.3f}" if rate in by_rate else "" for rate in RATES),
        "" if seconds is None else f"{seconds:.0f}",
        *(f"{times[kind]:.1f}" if kind in times else "" for kind in ("file_p50_ms", "engine_p50_ms")),
    )


def _in_force(own: Sequence[CaseResult]) -> list[str]:
    """Return notes for rates for which there are too few held-out normals."""
    found = [each for result in own for each in result.rows[0].at_rates if each.in_force > each.rate]
    short = {each.rate: each.in_force for each in found}
    return [
        f"For {rate:.0%} the held-out normals support no rate below {in_force:.1%}." for rate, in_force in short.items()
    ]
