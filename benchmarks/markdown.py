"""The report for a pull request: tables first, then the machine and how it was measured."""

from __future__ import annotations

from collections.abc import Sequence

from vae_edge.benchmarks.formats import ABSENT, mebibytes, milliseconds, percent, rate, relative, seconds, share
from vae_edge.benchmarks.latency import WIDE_DRIFT, WIDE_SPREAD, LatencyStatistics
from vae_edge.benchmarks.report import BundleResult, DataRecord, Report
from vae_edge.train.metrics import Metrics

_MOST_NAMES = 10


def to_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown. Every number in it is one of the report's."""
    parts = [
        "# vae-edge benchmark",
        _summary(report),
        _warnings(report),
        "## Speed and size",
        _speed_table(report),
        _unable(report),
        "## Latency in detail",
        _latency_table(report),
        "## Accuracy",
        _accuracy_table(report),
        _per_defect_table(report),
        "## Against the reference",
        _comparison_table(report),
        "## Machine",
        _machine(report),
        "## How it was measured",
        _method(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(report: Report) -> str:
    ran = sum(bundle.has_run for bundle in report.bundles)
    machine = report.machine
    quick = ", quick run" if report.settings.quick else ""
    return (
        f"{ran} of {len(report.bundles)} bundles ran on {machine.processor or machine.architecture} "
        f"({machine.cores_usable} cores), {report.created_utc}, vae-edge {machine.vae_edge}{quick}. "
        f"Data: {report.data.source}."
    )


def _warnings(report: Report) -> str:
    return "\n".join(f"> - {_cell(warning)}" for warning in report.warnings)


def _speed_table(report: Report) -> str:
    header = [
        "bundle", "device", "engine p50 ms", "p90", "p99", "predict p50 ms", "file to verdict p50 ms", "images/s",
        "first verdict s", "peak memory MiB", "on disk MiB",
    ]  # fmt: skip
    rows = []
    for bundle in report.bundles:
        if not bundle.has_run:
            rows.append([bundle.name, "did not run", *[ABSENT] * 8, mebibytes(bundle.size_bytes)])
            continue
        latency = bundle.latency
        rows.append(
            [
                bundle.name,
                bundle.device or ABSENT,
                *(_with_mark(latency.engine, value) if latency else ABSENT for value in ("p50_ms", "p90_ms", "p99_ms")),
                _with_mark(latency.predict, "p50_ms") if latency else ABSENT,
                _with_mark(latency.file, "p50_ms") if latency else ABSENT,
                rate(bundle.throughput.images_per_s if bundle.throughput else None),
                seconds(bundle.start.first_result_s if bundle.start else None),
                mebibytes(bundle.memory.peak_resident_bytes if bundle.memory else None),
                mebibytes(bundle.size_bytes),
            ]
        )
    return _table(header, rows) + "\n\n`~`: not stable, see the warnings."


def _unable(report: Report) -> str:
    lines = [
        f"- {bundle.name}: {_cell(bundle.not_run_because or '')}" for bundle in report.bundles if not bundle.has_run
    ]
    return "Did not run:\n\n" + "\n".join(lines) if lines else ""


def _latency_table(report: Report) -> str:
    rows = []
    for bundle in report.bundles:
        if bundle.latency is None:
            continue
        for what in ("engine", "predict", "file", "decode", "resize"):
            statistics: LatencyStatistics = getattr(bundle.latency, what)
            values = [
                statistics.min_ms, statistics.mean_ms, statistics.p50_ms, statistics.p90_ms, statistics.p95_ms,
                statistics.p99_ms, statistics.max_ms, statistics.std_ms,
            ]  # fmt: skip
            stable = "yes" if statistics.is_stable else "no"
            rows.append([bundle.name, what, str(statistics.n), *(milliseconds(value) for value in values), stable])
    header = ["bundle", "what", "n", "min ms", "mean", "p50", "p90", "p95", "p99", "max", "std", "stable"]
    return _table(header, rows) if rows else "No bundle ran."


def _accuracy_table(report: Report) -> str:
    judged = _judged(report)
    if not judged:
        return f"Not measured: {report.data.no_accuracy_because or 'no bundle ran'}."
    header = [
        "bundle", "image AUROC", "image AUPR", "F1", "recall", "false alarms", "pixel AUROC", "AUPRO",
    ]  # fmt: skip
    rows = [
        [
            name,
            share(metrics.image_auroc),
            share(metrics.image_aupr),
            share(metrics.image_f1),
            percent(metrics.recall),
            percent(metrics.false_alarm_rate),
            share(metrics.pixel_auroc),
            share(metrics.aupro),
        ]
        for name, metrics in judged
    ]
    return f"{_test_set(report.data)}\n\n{_table(header, rows)}"


def _test_set(data: DataRecord) -> str:
    return (
        f"{data.n_test_normal} good and {data.n_test_anomalous} defective test images, {data.n_with_mask} with masks. "
        "F1, recall and false alarms are at each bundle's own threshold, which was fitted on other images."
    )


def _per_defect_table(report: Report) -> str:
    judged = _judged(report)
    defects = sorted({defect for _, metrics in judged for defect in metrics.per_defect})
    if not defects:
        return ""
    rows = []
    for defect in defects:
        counts = [metrics.per_defect[defect].n for _, metrics in judged if defect in metrics.per_defect]
        cells = []
        for _, metrics in judged:
            found = metrics.per_defect.get(defect)
            cells.append(f"{share(found.image_auroc)} / {share(found.pixel_auroc)}" if found else ABSENT)
        rows.append([defect, str(counts[0]), *cells])
    title = "AUROC of each defect class, image / pixel, against all good test images:"
    return f"{title}\n\n{_table(['defect', 'images', *(name for name, _ in judged)], rows)}"


def _judged(report: Report) -> list[tuple[str, Metrics]]:
    judged = [(bundle.name, bundle.accuracy) for bundle in report.bundles if bundle.accuracy is not None]
    same_size = len({(record.height, record.width) for record in report.baselines}) == 1
    for record in report.baselines:
        name = f"baseline: {record.name}"
        judged.append((name if same_size else f"{name} {record.height}x{record.width}", record.metrics))
    return judged


def _comparison_table(report: Report) -> str:
    notes = "\n".join(f"- {note}" for note in report.reference_notes)
    compared = [bundle for bundle in report.bundles if bundle.comparison is not None]
    if not compared:
        return notes
    header = ["bundle", "reference", "images", "label flips", "largest score difference", "largest map difference",
              "rank correlation"]  # fmt: skip
    table = _table(header, [_comparison_row(bundle) for bundle in compared])
    flipped = [
        f"- {bundle.name}: {_names(bundle.comparison.flipped_images)}"
        for bundle in compared
        if bundle.comparison is not None and bundle.comparison.flipped_images
    ]
    legend = (
        f"On {report.data.n_judged} {report.data.judged}. A flip is an image that one calls anomalous and the other "
        "does not, each by its own threshold; in brackets the difference as a share of the reference's largest value."
    )
    return "\n\n".join([notes, legend, table, *(["Flipped:\n\n" + "\n".join(flipped)] if flipped else [])])


def _comparison_row(bundle: BundleResult) -> list[str]:
    found = bundle.comparison
    assert found is not None
    return [
        bundle.name,
        found.reference if found.same_run else f"{found.reference} (another training run)",
        str(found.n_images),
        str(found.label_flips),
        relative(found.max_score_difference, found.reference_score_scale),
        relative(found.max_map_difference, found.reference_map_scale),
        ABSENT if found.score_rank_correlation is None else f"{found.score_rank_correlation:.6f}",
    ]


def _machine(report: Report) -> str:
    machine = report.machine
    load = [value for value in (machine.load_average_start, machine.load_average_end) if value is not None]
    runtimes = sorted({bundle.runtime for bundle in report.bundles if bundle.runtime})
    cores = f"{machine.cores_usable} usable" + (
        f", {machine.cores_physical} physical" if machine.cores_physical else ""
    )
    facts = {
        "board": machine.board,
        "processor": machine.processor,
        "cores": cores,
        "instruction sets": ", ".join(machine.processor_flags),
        "frequency governor": machine.frequency_governor,
        "memory": f"{mebibytes(machine.memory_bytes)} MiB" if machine.memory_bytes else None,
        "GPU": "; ".join(machine.gpus),
        "system": f"{machine.system}, {machine.architecture}",
        "Python": machine.python,
        "runtimes": ", ".join(runtimes),
        "packages": ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
        "load average, start and end": ", ".join(map(str, load)),
    }
    return _table(["fact", "value"], [[name, value] for name, value in facts.items() if value])


def _method(report: Report) -> str:
    settings, rules, data = report.settings, report.settings.rules, report.data
    threads = "the runtime's own choice" if settings.threads is None else str(settings.threads)
    lines = [
        f"Each bundle in processes of its own; device `{settings.device}`, threads: {threads}.",
        "Latency: one image at a time, synchronous, host array in to host result out, `time.perf_counter_ns`, "
        f"{data.n_timing_images} real images ({', '.join(data.timing_image_sizes)}) in rotation. Warm-up of "
        f"{rules.warmup_s:g} s and {rules.warmup_iterations} iterations; then {rules.iterations} iterations that take "
        f"at least {rules.min_time_s:g} s, or {rules.max_time_s:g} s, whichever comes first.",
        "engine: `Backend.run` of a prepared image. predict: `Detector.predict` of a decoded image. file: "
        "`Detector.predict` of an image file. decode and resize: that step alone.",
        "Percentiles by nearest rank. Stable: standard deviation below "
        f"{WIDE_SPREAD:.0%} of the mean, medians of the two halves within {WIDE_DRIFT:.0%}.",
        f"images/s: `Detector.stream` over image files for {settings.throughput_s:g} s, in a run of its own.",
        f"First verdict: from before a fresh Python process is created until its verdict on an image file is known; "
        f"median of {settings.n_starts}. The files are in the system's cache after the first.",
        "Peak memory: largest resident memory of these processes, which open the bundle and predict "
        f"{min(settings.n_memory_images, data.n_timing_images)} image files one by one; libraries included, a GPU's "
        "memory not.",
    ]
    lines += [f"Data: {note}." for note in data.notes]
    return "\n".join(f"- {line}" for line in lines)


def _with_mark(statistics: LatencyStatistics, value: str) -> str:
    return milliseconds(getattr(statistics, value)) + ("" if statistics.is_stable else " ~")


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(f"`{name}`" for name in names[:_MOST_NAMES]) + more


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: names to the left, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |"]
    numeric = [
        all(row[i][:1].isdigit() or row[i] == ABSENT for row in rows) and any(row[i] != ABSENT for row in rows)
        for i in range(len(header))
    ]
    lines.append("|" + "|".join("---:" if is_number else "---" for is_number in numeric) + "|")
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Keep a text in its cell: a line break or a bar would end it."""
    return " ".join(text.split()).replace("|", "\\|")
