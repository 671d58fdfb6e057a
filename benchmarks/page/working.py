"""Working: throughput by configuration, latency under load, time to the first result, energy."""

from __future__ import annotations

from collections.abc import Mapping

from vae_edge.benchmarks.estimates import Interval
from vae_edge.benchmarks.formats import milliseconds, percent, rate, seconds
from vae_edge.benchmarks.measured import StartFigures, StreamRecord
from vae_edge.benchmarks.page.axes import linear_axis, percent_axis
from vae_edge.benchmarks.page.markup import Markup, element, join
from vae_edge.benchmarks.page.plot import Look, named
from vae_edge.benchmarks.page.strips import Segment, StripRow, bar, segment_key, stack, strip_table
from vae_edge.benchmarks.page.tables import data_table, exact, figure, folded, part, with_interval
from vae_edge.benchmarks.report import BundleResult, Report

START_STEPS = {
    "process_s": "process and Python",
    "import_s": "import vae_edge",
    "runtime_import_s": "import the runtime",
    "open_s": "check files, load, compile",
    "first_predict_s": "first verdict",
}


def _start_css(step: str) -> str:
    """Return the class of a start step's fill."""
    return f"fill-{list(START_STEPS).index(step)}"


def throughput_part(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return verdicts in a second, as opened by default and in the fastest configuration."""
    measured = [(bundle, bundle.throughput) for bundle in report.bundles if bundle.throughput]
    if not measured:
        return part("Throughput", element("p", "The throughput was not measured."))
    has_sweep = any(record.sweep for _, record in measured)
    fastest = [(bundle, record, record.best) for bundle, record in measured]
    axis = linear_axis(
        [_high(stream) for _, record, best in fastest for stream in (record.default, best)], from_zero=True
    )
    rows = [
        StripRow(
            named(bundle.name, looks[bundle.name]),
            bar(
                axis,
                looks[bundle.name],
                record.default.images_per_s,
                record.default.interval,
                best.images_per_s if record.sweep else None,
            ),
            (
                with_interval(record.default.images_per_s, record.default.interval, rate),
                *([_fastest(best) if record.sweep else exact(None, rate)] if has_sweep else []),
            ),
        )
        for bundle, record, best in fastest
    ]
    streams = [
        [bundle.name, _configuration(stream), stream.layout, with_interval(stream.images_per_s, stream.interval, rate)]
        for bundle, record in measured
        for stream in (record.default, *record.sweep)
    ]
    table = data_table(
        "Verdicts in a second by batch size and requests",
        ("bundle", "asked for", "what the runtime made of it", "images/s"),
        streams,
        n_names=3,
    )
    legend = "Verdicts in a second of a stream of files; bar: as opened by default, with its 95 % interval" + (
        "; line: the fastest of the configurations that were tried." if has_sweep else "."
    )
    chart = strip_table(
        "Throughput", axis, "images/s", ("by default", "fastest") if has_sweep else ("by default",), rows
    )
    return part("Throughput", figure(legend, chart), folded("Throughput of every configuration", table))


def _fastest(best: StreamRecord) -> Markup:
    configuration = element("span", _configuration(best), class_="interval wraps")
    return join(exact(best.images_per_s, rate), " ", configuration)


def _high(stream: StreamRecord) -> float:
    return stream.interval.high if stream.interval else stream.images_per_s


def _configuration(stream: StreamRecord) -> str:
    if stream.requests is None and stream.batch_size == 1:
        return "default"
    requests = "default requests" if stream.requests is None else f"{stream.requests} request"
    plural = "s" if stream.requests is not None and stream.requests != 1 else ""
    return f"{requests}{plural}, batch {stream.batch_size}"


def load_part(report: Report, looks: Mapping[str, Look]) -> Markup | None:
    """Return how images at a fixed rate were kept up with, where that was measured."""
    loaded = [(bundle, load) for bundle in report.bundles for load in bundle.load]
    if not loaded:
        return None
    loaded.sort(key=lambda pair: pair[1].fps)
    axis = percent_axis()
    rows = [
        StripRow(
            join(
                named(bundle.name, looks[bundle.name]),
                element("span", f"{load.fps:g} images/s", class_="interval"),
            ),
            bar(axis, looks[bundle.name], load.missed_share, load.missed_interval),
            (
                with_interval(load.missed_share, load.missed_interval, percent),
                join(exact(load.latency.p50_ms, milliseconds), " / ", exact(load.latency.p99_ms, milliseconds)),
                "yes" if load.keeps_up else element("strong", "no"),
            ),
        )
        for bundle, load in loaded
    ]
    deadlines = ", ".join(
        dict.fromkeys(f"{milliseconds(load.deadline_ms)} ms at {load.fps:g} images/s" for _, load in loaded)
    )
    legend = (
        "Images come at a fixed rate; latency counts from when an image was due, so waiting is in it. "
        f"Deadlines: {deadlines}."
    )
    headers = ("missed", "p50 / p99 ms", "keeps up")
    return part(
        "Under load", figure(legend, strip_table("Deadlines missed", axis, "share of deadlines missed", headers, rows))
    )


def start_part(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the time to the first result, warm and cold, step by step."""
    starts: list[tuple[BundleResult, str, StartFigures]] = []
    for bundle in report.bundles:
        if bundle.start:
            starts.append((bundle, "warm", bundle.start.warm))
            if bundle.start.cold:
                starts.append((bundle, "cold", bundle.start.cold))
    if not starts:
        return part("Start", element("p", "The start was not measured."))
    axis = linear_axis([_start_total(figures) for _, _, figures in starts], from_zero=True)
    rows = [
        StripRow(
            join(named(bundle.name, looks[bundle.name]), " ", element("span", kind, class_="badge")),
            stack(
                axis,
                [
                    Segment(_start_css(step), getattr(figures, step), f"{label}: {seconds(getattr(figures, step))} s")
                    for step, label in START_STEPS.items()
                ],
            ),
            (with_interval(figures.first_result_s, figures.interval, seconds),),
        )
        for bundle, kind, figures in starts
    ]
    table_rows = [
        [
            bundle.name,
            kind,
            str(figures.n_starts),
            *(exact(getattr(figures, step), seconds) for step in (*START_STEPS, "first_result_s")),
        ]
        for bundle, kind, figures in starts
    ]
    headers = ["bundle", "start", "starts", *START_STEPS.values(), "first result"]
    legend = (
        "From starting a fresh Python process to its first verdict on a file. Warm: with what an earlier start "
        "compiled; cold: with an empty cache of compiled models. The files are in the system's cache both times."
    )
    return part(
        "Time to the first result",
        figure(
            legend,
            segment_key([(_start_css(step), label) for step, label in START_STEPS.items()]),
            strip_table("Start", axis, "seconds", ("first result s",), rows),
        ),
        folded("Starts as a table", data_table("Medians of each step, s", headers, table_rows, n_names=2)),
    )


def _start_total(figures: StartFigures) -> float:
    parts = sum(float(getattr(figures, step)) for step in START_STEPS)
    return max(parts, figures.interval.high if figures.interval else figures.first_result_s)


def energy_part(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the energy of an image, or why it is not known."""
    known = [
        (bundle, bundle.energy, bundle.energy.joules_per_image)
        for bundle in report.bundles
        if bundle.energy and bundle.energy.joules_per_image is not None
    ]
    reasons = dict.fromkeys(
        bundle.energy.not_available_because
        for bundle in report.bundles
        if bundle.energy and bundle.energy.not_available_because
    )
    missing = [element("p", "Not available here: ", reason, ".") for reason in reasons]
    if not known:
        return part("Energy", missing or element("p", "Energy was not measured: not available here."))
    axis = linear_axis([_top(joules, energy.interval) for _, energy, joules in known], from_zero=True)
    rows = [
        StripRow(
            named(bundle.name, looks[bundle.name]),
            bar(axis, looks[bundle.name], joules, energy.interval),
            (with_interval(joules, energy.interval, seconds), exact(energy.mean_watts, seconds)),
        )
        for bundle, energy, joules in known
    ]
    sources = ", ".join(dict.fromkeys(energy.source for _, energy, _ in known if energy.source))
    legend = f"Of the whole chip or board, not of this program alone. Source: {sources or 'not known'}."
    chart = strip_table("Energy", axis, "joules for an image", ("J/image", "mean W"), rows)
    return part("Energy", figure(legend, chart), missing)


def _top(value: float, interval: Interval | None) -> float:
    return interval.high if interval else value
