"""Validity: the machine, the conditions, how it was measured, how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vae_edge.benchmarks.estimates import CONFIDENCE
from vae_edge.benchmarks.formats import ABSENT, mebibytes, milliseconds, percent
from vae_edge.benchmarks.page.conditions import round_charts
from vae_edge.benchmarks.page.markup import Child, Markup, element, join
from vae_edge.benchmarks.page.plot import Look, named
from vae_edge.benchmarks.page.tables import bullets, data_table, facts, folded, part, section
from vae_edge.benchmarks.report import BundleResult, Report


def validity_section(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the section."""
    return section(
        "validity",
        "How far to believe this",
        _warnings(report),
        part("Machine", _machine(report)),
        part("What really ran", _bundles(report, looks)),
        _rounds(report, looks),
        part("How it was measured", bullets(_method(report))),
        part("How to measure it again", element("pre", element("code", report.reproduce), tabindex="0")),
        part("Raw samples", _samples(report)),
    )


def _warnings(report: Report) -> Markup:
    """Return the warnings: those of the whole first, then each bundle's under its name."""
    if not report.warnings:
        content: Child = element("p", "None: nothing was noticed that speaks against these numbers.")
    else:
        own = {
            bundle.name: [
                warning.removeprefix(f"{bundle.name}: ")
                for warning in report.warnings
                if warning.startswith(f"{bundle.name}: ")
            ]
            for bundle in report.bundles
        }
        of_all = [w for w in report.warnings if not any(w.startswith(f"{name}: ") for name in own)]
        content = bullets(
            [
                *of_all,
                *(
                    join(element("strong", name, class_="name"), ": ", bullets(found))
                    for name, found in own.items()
                    if found
                ),
            ],
            css="warnings",
        )
    return part(f"Warnings ({len(report.warnings)})", content, identifier="warnings")


def _machine(report: Report) -> Markup:
    machine = report.machine
    load = [f"{value:g}" for value in (machine.load_average_start, machine.load_average_end) if value is not None]
    cores = f"{machine.cores_usable} usable"
    cores += f", {machine.cores_physical} physical" if machine.cores_physical else ""
    virtual = None if machine.is_virtual is None else "yes" if machine.is_virtual else "no"
    unknown = "not available here"
    return facts(
        [
            ("Board", machine.board),
            ("Processor", machine.processor or machine.architecture),
            ("Cores", cores),
            ("Instruction sets", ", ".join(machine.processor_flags)),
            ("Memory", f"{mebibytes(machine.memory_bytes)} MiB" if machine.memory_bytes else unknown),
            ("GPU", "; ".join(machine.gpus) or "none found"),
            ("System", f"{machine.system}, {machine.architecture}"),
            ("Virtual machine", virtual or unknown),
            ("Power mode", machine.power_mode),
            ("Frequency governor", machine.frequency_governor or unknown),
            ("Clock before", _with_unit(machine.frequency_mhz, "MHz", unknown)),
            ("Highest clock", _with_unit(machine.largest_frequency_mhz, "MHz", unknown)),
            ("Temperature before", _with_unit(machine.temperature_c, "°C", unknown)),
            ("Load average, start and end", ", ".join(load) or unknown),
            ("Python", machine.python),
            ("vae-edge", machine.vae_edge),
            ("Packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())),
        ]
    )


def _with_unit(value: float | None, unit: str, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.0f} {unit}"


def _bundles(report: Report, looks: Mapping[str, Look]) -> Markup:
    rows: list[Sequence[Child]] = [
        [
            named(bundle.name, looks[bundle.name]),
            _device(bundle),
            bundle.runtime or ABSENT,
            bundle.layout or ABSENT,
            f"{bundle.height}x{bundle.width}" if bundle.height else ABSENT,
            bundle.run or ABSENT,
            bullets(bundle.notes) or ABSENT,
        ]
        for bundle in report.bundles
    ]
    headers = ("bundle", "device", "runtime", "requests, threads, batch", "input", "training run", "notes")
    return data_table("Device, runtime and layout in use", headers, rows, n_names=7)


def _device(bundle: BundleResult) -> str:
    if not bundle.has_run:
        return f"did not run: {bundle.not_run_because}"
    return f"{bundle.device or 'not known'}{f' ({bundle.device_reason})' if bundle.device_reason else ''}"


def _rounds(report: Report, looks: Mapping[str, Look]) -> Markup:
    measured = [bundle for bundle in report.bundles if bundle.rounds]
    if not measured:
        return part("Conditions in each round", element("p", "No round was recorded."))
    rows: list[Sequence[Child]] = [
        [
            bundle.name,
            str(item.number),
            milliseconds(item.begin_s),
            milliseconds(item.engine_p50_ms),
            f"{milliseconds(item.spin_before_ms)} / {milliseconds(item.spin_after_ms)}",
            ABSENT if item.frequency_mhz is None else f"{item.frequency_mhz:.0f}",
            ABSENT if item.temperature_c is None else f"{item.temperature_c:.0f}",
            ABSENT if item.n_throttled is None else str(item.n_throttled),
            ABSENT if item.foreign_cores is None else f"{item.foreign_cores:.2f}",
            percent(item.stolen_share),
        ]
        for bundle in measured
        for item in bundle.rounds
    ]
    headers = (
        "bundle", "round", "begin s", "engine p50 ms", "spin before / after ms", "clock MHz", "°C",
        "throttled", "foreign cores", "stolen",
    )  # fmt: skip
    legend = (
        "The bundles take turns, so what changes over the minutes meets all of them. The spin is a fixed piece of "
        "arithmetic on one core: where it takes longer, the clock is slower or somebody else is there."
    )
    return part(
        "Conditions in each round",
        element("p", legend),
        round_charts(measured, looks),
        folded("Rounds as a table", data_table("Conditions in each round", headers, rows, n_names=2)),
    )


def _method(report: Report) -> list[Child]:
    settings, rules, data = report.settings, report.settings.rules, report.data
    threads = "the runtime's own choice" if settings.threads is None else str(settings.threads)
    return [
        f"{settings.rounds} rounds; in each, every bundle in fresh processes of its own, one after the other. Device "
        f"{settings.device}, threads: {threads}. The whole took {report.elapsed_s:.0f} s.",
        "Latency: one image at a time, synchronous, host array in to host result out, by time.perf_counter_ns, "
        f"{data.n_timing_images} real images ({', '.join(data.timing_image_sizes)}) in rotation. In each round a "
        f"warm-up of {rules.warmup_s:g} s and {rules.warmup_iterations} images, then {rules.round_s:g} s or "
        f"{rules.most_iterations} images, whichever ends first, with {rules.fewest_iterations} images at least.",
        "Percentiles by nearest rank, over the samples of all rounds. Intervals hold with a confidence of "
        f"{CONFIDENCE:.0%}; those of latencies, rates and ratios take the rounds, not the single samples, as "
        "independent.",
        f"Throughput: Detector.stream over image files, {settings.throughput_s:g} s in each round and configuration.",
        f"Start: from before a fresh Python process is created until its verdict on an image file is known; "
        f"{settings.cold_starts} of the starts with an empty cache of compiled models.",
        "Memory: largest resident memory of a process that opens the bundle and predicts "
        f"{min(settings.n_memory_images, data.n_timing_images)} image files; libraries included, a GPU's memory not.",
        f"Data: {data.source}.",
        *(f"Data: {note}" for note in data.notes),
    ]


def _samples(report: Report) -> Markup:
    rows: list[Sequence[Child]] = [
        [
            element("span", bundle.name, class_="name"),
            element("code", bundle.samples.name),
            element("code", bundle.samples.sha256, class_="hash"),
        ]
        for bundle in report.bundles
        if bundle.samples is not None
    ]
    if not rows:
        return element("p", "There are none: no bundle ran.")
    return data_table("Files beside report.json", ("bundle", "file", "SHA-256"), rows, n_names=3)
