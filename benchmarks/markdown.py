"""The report for a pull request: the verdict first, then tables with intervals, then why to believe them."""

from __future__ import annotations

from vae_edge.benchmarks.formats import ABSENT, mebibytes, milliseconds, percent, rate, seconds, share, with_interval
from vae_edge.benchmarks.markdown_accuracy import accuracy_section, parity_section
from vae_edge.benchmarks.markdown_method import machine_section, method_section
from vae_edge.benchmarks.markdown_tables import bullets, cell, table
from vae_edge.benchmarks.report import BundleResult, Report
from vae_edge.outside import plain_markdown
from vae_edge.records import with_texts


def to_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown. Every number in it is one of the report's."""
    report = with_texts(report, plain_markdown)  # Names come from bundles and file names.
    parts = [
        "# vae-edge benchmark",
        _verdict(report),
        _warnings(report),
        "## Bundles",
        _bundle_table(report),
        _unable(report),
        "## Latency",
        _latency_table(report),
        _stage_table(report),
        _throughput_table(report),
        _load_table(report),
        _start_table(report),
        "## Accuracy",
        accuracy_section(report),
        "## Against the reference",
        parity_section(report),
        "## Machine",
        machine_section(report),
        "## How it was measured",
        method_section(report),
        "## How to reproduce",
        f"```\n{report.reproduce}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(report: Report) -> str:
    ran = sum(bundle.has_run for bundle in report.bundles)
    machine, found = report.machine, report.recommendation
    place = machine.board or machine.processor or machine.architecture
    facts = (
        f"{ran} of {len(report.bundles)} bundles ran on {place} ({machine.cores_usable} cores), {report.created_utc}, "
        f"vae-edge {machine.vae_edge}{', quick run' if report.settings.quick else ''}. Data: {report.data.source}."
    )
    lines = [facts]
    if report.interrupted_because is not None:
        lines.insert(0, f"**Not complete**: {report.interrupted_because}. What is here comes from complete rounds.")
    if found is None:
        return "\n\n".join(lines)
    verdict = "**No bundle fits.**" if found.chosen is None else f"**Put `{found.chosen}` on this device.**"
    lines.insert(0, f"{verdict} {cell(found.why)} The rule: {cell(found.rule)}.")
    others = []
    for judgement in found.judgements:
        said = "; ".join((*judgement.reasons, *judgement.caveats))
        if said:
            mark = "" if judgement.fits else "does not fit: "
            others.append(f"{judgement.bundle}: {mark}{said}")
    return "\n\n".join([*lines, *([bullets(others)] if others else [])])


def _warnings(report: Report) -> str:
    return "\n".join(f"> - {cell(warning)}" for warning in report.warnings)


def _bundle_table(report: Report) -> str:
    header = [
        "bundle", "file to verdict p50 ms", "p99 ms", "ratio", "images/s", "first verdict s", "memory MiB", "disk MiB",
        "image AUROC", "flips",
    ]  # fmt: skip
    rows = []
    for bundle in report.bundles:
        if not bundle.has_run:
            rows.append([bundle.name, "did not run", *[ABSENT] * 5, mebibytes(bundle.size_bytes), *[ABSENT] * 2])
            continue
        stream = bundle.throughput.default if bundle.throughput else None
        start = bundle.start.warm if bundle.start else None
        metrics = bundle.accuracy.metrics if bundle.accuracy else None
        rows.append(
            [
                bundle.name,
                _latency(bundle, "p50_ms") + ("" if bundle.latency and bundle.latency.file.is_stable else " ~"),
                _latency(bundle, "p99_ms"),
                _ratio(bundle),
                with_interval(stream.images_per_s, stream.interval, rate) if stream else ABSENT,
                with_interval(start.first_result_s, start.interval, seconds) if start else ABSENT,
                mebibytes(bundle.memory.peak_resident_bytes if bundle.memory else None),
                mebibytes(bundle.size_bytes),
                with_interval(metrics.image_auroc, bundle.accuracy.intervals.get("image_auroc"), share)
                if metrics and bundle.accuracy
                else ABSENT,
                flips(bundle),
            ]
        )
    legend = (
        "In brackets 95 % confidence intervals; percentiles with fewer than 10 samples beyond them have none. "
        "`~`: not stable, see the warnings."
    )
    if report.baseline is not None:
        legend += f" The ratio is of the p50 to that of {report.baseline}, paired by round."
    return f"{table(header, rows)}\n\n{legend}"


def flips(bundle: BundleResult) -> str:
    """Return how many verdicts differ from the reference's, and how many of these without being near the threshold."""
    if bundle.is_reference:
        return "ref"
    found = bundle.comparison
    if found is None:
        return ABSENT
    unexplained = f", {found.unexplained_flips} unexplained" if found.label_flips else ""
    return f"{found.label_flips}/{found.n_images}{unexplained}"


def _latency(bundle: BundleResult, figure: str) -> str:
    if bundle.latency is None:
        return ABSENT
    file = bundle.latency.file
    return with_interval(getattr(file, figure), file.intervals.get(figure), milliseconds)


def _ratio(bundle: BundleResult) -> str:
    if bundle.is_baseline:
        return "1"
    ratio = bundle.ratios.get("p50_ms")
    return ABSENT if ratio is None else with_interval(ratio.value, ratio.interval, lambda value: f"{value:.2f}")


def _unable(report: Report) -> str:
    lines = [f"{bundle.name}: {bundle.not_run_because}" for bundle in report.bundles if not bundle.has_run]
    return "Did not run:\n\n" + bullets(lines) if lines else ""


def _latency_table(report: Report) -> str:
    rows = []
    for bundle in report.bundles:
        if bundle.latency is None:
            continue
        for what in ("engine", "predict", "file"):
            found = getattr(bundle.latency, what)
            middle = [
                with_interval(getattr(found, figure), found.intervals.get(figure), milliseconds)
                for figure in ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms")
            ]
            ends = [milliseconds(found.max_ms), milliseconds(found.std_ms), "yes" if found.is_stable else "no"]
            rows.append([bundle.name, what, str(found.n), milliseconds(found.min_ms), *middle, *ends])
    header = ["bundle", "what", "n", "min ms", "mean", "p50", "p90", "p95", "p99", "max", "std", "stable"]
    return table(header, rows) if rows else "No bundle ran."


def _stage_table(report: Report) -> str:
    found = [(bundle.name, bundle.stages) for bundle in report.bundles if bundle.stages is not None]
    if not found:
        return ""
    names = list(dict.fromkeys(stage.name for _, record in found for stage in record.stages))
    rows = []
    for name, record in found:
        by_name = {stage.name: stage.p50_ms for stage in record.stages}
        rows.append(
            [
                name,
                *(milliseconds(by_name.get(stage)) for stage in names),
                milliseconds(record.sum_ms),
                milliseconds(record.end_to_end_ms),
            ]
        )
    notes = "; ".join(dict.fromkeys(record.note for _, record in found))
    header = ["bundle", *names, "sum", "end to end"]
    return f"Where the time goes, medians in ms of each step alone:\n\n{table(header, rows)}\n\n{cell(notes)}."


def _throughput_table(report: Report) -> str:
    rows = [
        [
            bundle.name,
            "default" if record.requests is None else str(record.requests),
            str(record.batch_size),
            record.layout,
            with_interval(record.images_per_s, record.interval, rate),
        ]
        for bundle in report.bundles
        if bundle.throughput is not None and bundle.throughput.sweep
        for record in (bundle.throughput.default, *bundle.throughput.sweep)
    ]
    return "Throughput:\n\n" + table(["bundle", "requests", "batch", "layout", "images/s"], rows) if rows else ""


def _load_table(report: Report) -> str:
    rows = [
        [
            bundle.name,
            f"{record.fps:g}",
            milliseconds(record.deadline_ms),
            with_interval(record.missed_share, record.missed_interval, percent),
            with_interval(record.latency.p50_ms, record.latency.intervals.get("p50_ms"), milliseconds),
            with_interval(record.latency.p99_ms, record.latency.intervals.get("p99_ms"), milliseconds),
            "yes" if record.keeps_up else "no",
        ]
        for bundle in report.bundles
        for record in bundle.load
    ]
    header = ["bundle", "images/s", "deadline ms", "missed", "p50 ms", "p99 ms", "keeps up"]
    return "Under load, from when an image was due to its verdict:\n\n" + table(header, rows) if rows else ""


def _start_table(report: Report) -> str:
    rows = []
    for bundle in report.bundles:
        if bundle.start is None:
            continue
        for kind, found in (("warm", bundle.start.warm), ("cold", bundle.start.cold)):
            if found is None:
                continue
            parts = (found.process_s, found.import_s, found.runtime_import_s, found.open_s, found.first_predict_s)
            total = with_interval(found.first_result_s, found.interval, seconds)
            rows.append([bundle.name, kind, str(found.n_starts), total, *map(seconds, parts)])
    header = [
        "bundle", "start", "n", "first verdict s", "process", "import", "import runtime", "load", "first image",
    ]  # fmt: skip
    return "Time to the first verdict, medians:\n\n" + table(header, rows) if rows else ""
