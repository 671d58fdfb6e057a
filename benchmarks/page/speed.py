"""Speed: how latencies are distributed, and which stages they consist of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vae_edge.benchmarks.formats import milliseconds
from vae_edge.benchmarks.measured import LatencyStatistics, StageRecord
from vae_edge.benchmarks.page.axes import log_axis, percent_axis
from vae_edge.benchmarks.page.markup import Child, Markup, element, join
from vae_edge.benchmarks.page.plot import Look, named
from vae_edge.benchmarks.page.strips import Segment, StripRow, segment_key, stack, strip_table, violin
from vae_edge.benchmarks.page.tables import bullets, data_table, exact, figure, folded, part, section, with_interval
from vae_edge.benchmarks.page.working import energy_part, load_part, start_part, throughput_part
from vae_edge.benchmarks.report import BundleResult, Report

STAGES = {
    "decode": "decode",
    "resize": "resize",
    "copy_in": "copy in",
    "compute": "compute",
    "copy_out": "copy out",
    "engine": "engine (copies and compute together)",
    "decision": "decision",
}
LATENCIES = {"file": "file to verdict", "predict": "decoded image to verdict", "engine": "engine alone"}


def stage_css(stage: str) -> str:
    """Return the class of a stage's fill."""
    return f"fill-{list(STAGES).index(stage)}"


def distribution_section(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the section of latency distributions."""
    measured = [(bundle, bundle.latency) for bundle in report.bundles if bundle.latency]
    if not measured:
        return section("latency", "How latencies are distributed", element("p", "No bundle was timed."))
    files = [(bundle, latency.file) for bundle, latency in measured]
    axis = log_axis(
        [value for _, latency in files for value in (latency.min_ms, latency.histogram.edges[-1])], margin=1.1
    )
    rows = [
        StripRow(
            named(bundle.name, looks[bundle.name]),
            violin(
                axis,
                looks[bundle.name],
                latency.histogram,
                ((latency.p50_ms, "mark"), (latency.p90_ms, "mark thin"), (latency.p99_ms, "mark dotted")),
            ),
            (
                with_interval(latency.p50_ms, latency.intervals.get("p50_ms"), milliseconds),
                with_interval(latency.p99_ms, latency.intervals.get("p99_ms"), milliseconds),
            ),
        )
        for bundle, latency in files
    ]
    chart = strip_table("From the file to the verdict", axis, "ms, log scale", ("p50 ms", "p99 ms"), rows)
    legend = (
        "Each shape is as high as often the latency occurred. Lines: the median (thick), p90 (thin), p99 (dotted). "
        "What is slower than 99.5 % of the images is drawn at the right end of a shape."
    )
    unstable = [
        join(
            element("strong", f"{bundle.name}, {LATENCIES[what]}", class_="name"),
            ": ",
            "; ".join(item.unstable_because),
        )
        for bundle, latency in measured
        for what, item in _latencies(latency)
        if item.unstable_because
    ]
    n = len(LATENCIES) * len(measured)
    return section(
        "latency",
        "How latencies are distributed",
        figure(legend, chart),
        folded(f"Not stable: {len(unstable)} of {n} latencies", bullets(unstable)) if unstable else None,
        folded("All latencies as a table", _latency_table(measured)),
    )


def _latencies(latency: object) -> list[tuple[str, LatencyStatistics]]:
    return [(what, getattr(latency, what)) for what in LATENCIES]


def _latency_table(measured: Sequence[tuple[BundleResult, object]]) -> Markup:
    figures = ("min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "std_ms")
    rows: list[Sequence[Child]] = []
    for bundle, latency in measured:
        for what, item in _latencies(latency):
            cells = [with_interval(getattr(item, name), item.intervals.get(name), milliseconds) for name in figures]
            rows.append([bundle.name, LATENCIES[what], str(item.n), str(item.n_rounds), *cells])
    headers = ["bundle", "what", "n", "rounds", *(name.removesuffix("_ms") for name in figures)]
    return data_table("Latencies in ms with 95 % intervals", headers, rows, n_names=2)


def stage_section(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the section of where the time goes, throughput, load and start."""
    return section(
        "stages",
        "Where the time goes",
        _stages(report, looks),
        throughput_part(report, looks),
        load_part(report, looks),
        start_part(report, looks),
        energy_part(report, looks),
    )


def _stages(report: Report, looks: Mapping[str, Look]) -> Markup:
    split = [(bundle, bundle.stages) for bundle in report.bundles if bundle.stages]
    if not split:
        return part("From the file to the verdict", element("p", "The stages were not measured."))
    rows = []
    for bundle, record in split:
        total = max(record.sum_ms, record.end_to_end_ms)
        segments = [
            Segment(
                stage_css(stage.name), stage.p50_ms / total, f"{STAGES[stage.name]}: {milliseconds(stage.p50_ms)} ms"
            )
            for stage in record.stages
        ]
        if (rest := _rest_ms(record)) > 0:
            segments.append(Segment("fill-rest", rest / total, f"not seen by the split: {milliseconds(rest)} ms"))
        rows.append(
            StripRow(
                named(bundle.name, looks[bundle.name]),
                stack(percent_axis(), segments),
                (exact(record.end_to_end_ms, milliseconds),),
            )
        )
    present = [name for name in STAGES if any(name == stage.name for _, record in split for stage in record.stages)]
    key = [(stage_css(name), STAGES[name]) for name in present]
    if any(_rest_ms(record) > 0 for _, record in split):
        key.append(("fill-rest", "not seen by the split"))
    headers = ["bundle", *(STAGES[name] for name in present), "sum", "file to verdict"]
    table_rows = [[bundle.name, *_stage_cells(record, present)] for bundle, record in split]
    notes = {record.note: None for _, record in split}
    return part(
        "From the file to the verdict",
        figure(
            " ".join(("Each stage's share of the median from file to verdict.", *map(_sentence, notes))),
            segment_key(key),
            strip_table("Stages", percent_axis(), "share of the time", ("file to verdict p50 ms",), rows),
        ),
        folded("Stages as a table", data_table("Median of each stage alone, ms", headers, table_rows)),
    )


def _sentence(text: str) -> str:
    plain = text.replace("`", "").rstrip(".")
    return f"{plain[:1].upper()}{plain[1:]}."


def _rest_ms(record: StageRecord) -> float:
    return record.end_to_end_ms - record.sum_ms


def _stage_cells(record: StageRecord, present: Sequence[str]) -> list[Markup]:
    by_name = {stage.name: stage for stage in record.stages}
    cells = [
        with_interval(stage.p50_ms, stage.interval, milliseconds)
        if (stage := {str(key): value for key, value in by_name.items()}.get(name))
        else exact(None, milliseconds)
        for name in present
    ]
    return [*cells, exact(record.sum_ms, milliseconds), exact(record.end_to_end_ms, milliseconds)]
