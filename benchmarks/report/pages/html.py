"""The report as one page, `report.html`: readable offline, on a phone, by keyboard, by a screen reader and on paper.

Its content comes from `figures` and `tables`, positions from `charts` and `tradeoff`, and markup from `templates`.
Measuring does not import this module: a page is made from report.json, on any machine (`render_report`).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from vae_edge.benchmarks.report.figures import FIGURES, Number, View, figures, percent, three_digits
from vae_edge.benchmarks.report.pages import tables, tradeoff
from vae_edge.benchmarks.report.pages.charts import (
    COLOURS,
    PERCENT_AXIS,
    Axis,
    Look,
    Plot,
    curve_points,
    decimal,
    linear_axis,
    log_axis,
    looks,
    violin,
)
from vae_edge.benchmarks.report.pages.markdown import to_markdown
from vae_edge.benchmarks.report.records.accuracy import ExampleKind, ImageExample, ScoreHistogram
from vae_edge.benchmarks.report.records.files import read_report
from vae_edge.benchmarks.report.records.report import HTML_FILE, IMAGES_FOLDER, MARKDOWN_FILE, BundleResult, Report
from vae_edge.benchmarks.report.records.speed import LoadRecord, StageRecord, StartFigures
from vae_edge.detectability import CONTRASTS, Detectability, FoundBySize
from vae_edge.errors import InputError, MissingDependencyError, VaeEdgeError
from vae_edge.html_page import security_policy, style_sheet, whole_page
from vae_edge.platform.atomic import check_place, write_text
from vae_edge.platform.outside import printable
from vae_edge.records import with_texts
from vae_edge.wording import count

_TEMPLATES = Path(__file__).with_name("templates")

KINDS: dict[ExampleKind, str] = {
    "flip": "Flip: the reference judges differently",
    "miss": "Miss",
    "false_alarm": "False alarm",
    "hit": "Hit",
    "pass": "Rightly passed",
}
"""In the order in which an engineer looks for them."""

MOST_BYTES = 4 * 1024 * 1024
"""Pictures beyond this size are left out of the page: it is sent by mail and opened on phones."""

_PRO_LIMIT = 0.3
"""False-positive rate up to which the area under the PRO curve is taken."""

_STAGE_FILLS = {name: f"fill-{position}" for position, name in enumerate(tables.STAGES)}
_START_FILLS = {name: f"fill-{position}" for position, name in enumerate(tables.START_STEPS)}
_REST = ("fill-rest", "not seen by the split")

Segment = tuple[str, float, str]
"""A part of a stacked bar: class of its fill, value, title."""


def render_report(path: Path, out: Path | None = None) -> tuple[Path, ...]:
    """Write report.md and report.html from a report.json and the pictures beside it.

    Args:
        path: the `report.json`, or its folder.
        out: where to write; None: next to it.

    Returns:
        The files that were written.

    Raises:
        InputError: there is no report, it is damaged, or a page's name is taken by a file that is not a report.
        MissingDependencyError: Jinja2 is not installed; report.md was written.
    """
    report = read_report(path)
    folder = path if path.is_dir() else path.parent
    out = folder if out is None else out
    markdown, html = out / MARKDOWN_FILE, out / HTML_FILE
    for file, beginning in ((markdown, "# vae-edge benchmark"), (html, "<!DOCTYPE html>")):
        _check_replaceable(file, beginning)
    check_place(out)
    try:
        write_text(markdown, to_markdown(report))
        write_text(html, to_html(report, _pictures(folder / IMAGES_FOLDER, report)))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, VaeEdgeError):
            raise
        # Each value by itself is possible, else the file would have been refused; together they are not.
        raise InputError(f"{path} has inconsistent values ({error}); run vae-bench again") from error
    return markdown, html


def to_html(report: Report, images: Mapping[str, bytes] | None = None, most_bytes: int = MOST_BYTES) -> str:
    """Return the page. It loads no other files and makes no network requests.

    Args:
        report: the results; every number on the page comes from it.
        images: JPEG and PNG files by the names in the report's examples; an example whose file is missing is left out.
        most_bytes: limit for all pictures; the rest are counted and left out.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    environment = _engine()
    report = with_texts(report, printable)  # HTML is escaped where it is made; bidirectional text is not.
    style, script = page_style(), _TEMPLATES.joinpath("report.js").read_text(encoding="utf-8")
    columns = [each for each in figures(View.PAGE) if any(each.find(bundle) for bundle in report.bundles)]
    gallery, n_left_out = _gallery(report, images or {}, most_bytes)
    body: str = environment.get_template("report.html").render(
        report=report,
        looks=dict(zip((bundle.name for bundle in report.bundles), looks(len(report.bundles)), strict=True)),
        columns=columns,
        groups=[(group, len(list(members))) for group, members in groupby(columns, key=lambda each: each.group)],
        meanings=tables.meanings(report, View.PAGE),
        doubts=_doubts(report),
        warnings=_warnings(report),
        unstable=_unstable(report),
        tradeoffs=tradeoff.tradeoffs(report),
        stage_key=_stage_key(report),
        curves=_curves(report),
        conditions=_conditions(report),
        gallery=gallery,
        n_left_out=n_left_out,
    )
    policy = security_policy(style, script, "img-src data:; ")
    return whole_page("vae-edge benchmark", style, body, policy=policy, script=script)


def page_style() -> str:
    """Return the style of pages with drawings."""
    return style_sheet(_TEMPLATES.joinpath("report.css").read_text(encoding="utf-8"), COLOURS)


def template_engine(*more: Path) -> Any:
    """Return a `jinja2.Environment` that escapes everything that is not markup.

    Args:
        more: folders of templates, beside those of the report.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "the page needs the package 'jinja2', which is not installed; run: pip install \"vae-edge[bench]\", or "
            "make the page on another machine: vae-bench render report.json"
        ) from error
    environment = Environment(
        loader=FileSystemLoader([*more, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["d"] = decimal
    return environment


@cache
def _engine() -> Any:
    """Return the engine with what the report's templates use."""
    environment = template_engine()
    environment.globals.update(
        tables=tables,
        tiles=figures(View.TILE),
        number=Number,
        percent=percent,
        loads=_loads,
        starts=_starts,
        latency_axis=_latency_axis,
        axis_from_zero=_axis_from_zero,
        violin=violin,
        stage_segments=_stage_segments,
        start_segments=_start_segments,
        start_key=[(_START_FILLS[step], label) for step, label in tables.START_STEPS.items()],
        curve_plot=_curve_plot,
        score_plot=_score_plot,
        seen_plot=_seen_plot,
        seen_lines=_seen_lines,
        score_columns=_score_columns,
        round_plot=_round_plot,
        FIGURES=FIGURES,
        KINDS=KINDS,
        PERCENT_AXIS=PERCENT_AXIS,
    )
    return environment


def _check_replaceable(file: Path, beginning: str) -> None:
    if not (file.exists() or file.is_symlink()):
        return
    if file.is_file():
        with file.open("rb") as opened:
            if opened.read(len(beginning)) == beginning.encode():
                return
    raise InputError(f"{file} already exists and is not a benchmark report; choose another --out or move it away")


def _pictures(folder: Path, report: Report) -> dict[str, bytes]:
    """Return those of the report's pictures that exist and are not larger than a page may be."""
    files = {name: folder / name for example in report.examples for name in example.pictures}
    return {
        name: file.read_bytes() for name, file in files.items() if file.is_file() and file.stat().st_size <= MOST_BYTES
    }


def _doubts(report: Report) -> list[str]:
    """Return what remains uncertain about the chosen bundle."""
    choice = report.recommendation
    if choice is None or choice.chosen is None:
        return []
    chosen = choice.chosen
    found = [caveat for item in choice.judgements if item.bundle == chosen for caveat in item.caveats]
    # Of the others only what is said of them beside the chosen one; the rest stands below with their reasons.
    return found + [
        f"{item.bundle}: {caveat}"
        for item in choice.judgements
        if item.fits and item.bundle != chosen
        for caveat in item.caveats
        if chosen in caveat
    ]


def _warnings(report: Report) -> dict[str | None, list[str]]:
    """Return the warnings by bundle; warnings about the whole benchmark are under None."""
    found: dict[str | None, list[str]] = {None: [], **{bundle.name: [] for bundle in report.bundles}}
    for warning in report.warnings:
        whose = next((name for name in found if name is not None and warning.startswith(f"{name}: ")), None)
        found[whose].append(warning if whose is None else warning.removeprefix(f"{whose}: "))
    return found


def _unstable(report: Report) -> list[str]:
    return [
        f"{bundle.name}, {title}: {'; '.join(reasons)}"
        for bundle in report.bundles
        if bundle.latency is not None
        for what, title in tables.LATENCIES.items()
        if (reasons := getattr(bundle.latency, what).unstable_because)
    ]


def _latency_axis(bundles: Iterable[BundleResult]) -> Axis:
    files = [bundle.latency.file for bundle in bundles if bundle.latency is not None]
    return log_axis([value for file in files for value in (file.min_ms, file.histogram.edges[-1])], margin=1.1)


def _axis_from_zero(records: Iterable[Any], name: str) -> Axis:
    """Return an axis for bars over a field of records and the ends of its intervals."""
    ends = [record.interval.high if record.interval else getattr(record, name) for record in records]
    return linear_axis(ends, from_zero=True)


def _stage_segments(record: StageRecord) -> list[Segment]:
    total = max(record.sum_ms, record.end_to_end_ms) or 1.0
    parts = [(_STAGE_FILLS[stage.name], stage.p50_ms, tables.STAGES[stage.name]) for stage in record.stages]
    if record.end_to_end_ms > record.sum_ms:
        parts.append((_REST[0], record.end_to_end_ms - record.sum_ms, _REST[1]))
    return [(fill, ms / total, f"{title}: {three_digits(ms)} ms") for fill, ms, title in parts]


def _stage_key(report: Report) -> list[tuple[str, str]]:
    records = [bundle.stages for bundle in report.bundles if bundle.stages is not None]
    present = {stage.name for record in records for stage in record.stages}
    key = [(_STAGE_FILLS[name], title) for name, title in tables.STAGES.items() if name in present]
    return key + [_REST] * any(record.end_to_end_ms > record.sum_ms for record in records)


def _loads(report: Report) -> list[tuple[BundleResult, LoadRecord]]:
    return sorted(((bundle, load) for bundle in report.bundles for load in bundle.load), key=lambda pair: pair[1].fps)


def _starts(report: Report) -> list[tuple[BundleResult, str, StartFigures]]:
    return [
        (bundle, kind, found)
        for bundle in report.bundles
        if bundle.start is not None
        for kind, found in (("warm", bundle.start.warm), ("cold", bundle.start.cold))
        if found is not None
    ]


def _start_segments(found: StartFigures) -> list[Segment]:
    steps = [(step, label, float(getattr(found, step))) for step, label in tables.START_STEPS.items()]
    return [(_START_FILLS[step], value, f"{label}: {three_digits(value)} s") for step, label, value in steps]


@dataclass(frozen=True)
class _CurveChart:
    title: str
    x_title: str
    y_title: str
    up_to: float
    curves: Sequence[_Curve]


@dataclass(frozen=True)
class _Curve:
    bundle: str
    points: Sequence[tuple[float, float]]
    area: float | None

    @property
    def words(self) -> str:
        return f"{self.bundle} {self.area:.3f}"


def _curves(report: Report) -> list[_CurveChart]:
    """Return the charts of curves that any bundle has."""
    charts = []
    for field, area, title, x_title, y_title, up_to in (
        ("roc", "image_auroc", "ROC of images", "false alarms", "defective images found", 1.0),
        ("pixel_roc", "pixel_auroc", "ROC of pixels", "good pixels flagged", "defective pixels found", 1.0),
        ("pro", "aupro", "PRO", "good pixels flagged", "overlap with the defects' regions", _PRO_LIMIT),
    ):
        found = [
            _Curve(name, curve_points(curve, up_to), getattr(accuracy.metrics, area))
            for name, accuracy in tables.judged(report)
            if (curve := getattr(accuracy, field)) is not None
        ]
        charts += [_CurveChart(title, x_title, y_title, up_to, found)] if found else []
    return charts


def _seen_plot(found: Detectability) -> Plot:
    """Return the plot of the shares of pasted defects found over their sizes."""
    sizes = found.sizes
    ticks = tuple(100 * size for size in sizes)
    axis = Axis(ticks[0] / 1.15, ticks[-1] * 1.15, ticks, is_log=True)
    return Plot(axis, PERCENT_AXIS, 46, 34, 342, 200)


def _seen_lines(found: Detectability) -> list[tuple[str, Look, list[FoundBySize]]]:
    """Return the cells of each contrast, high first, with how its line is drawn."""
    return [
        (contrast, look, [cell for size in found.sizes if (cell := found.at(size, contrast)) is not None])
        for contrast, look in zip(reversed(CONTRASTS), looks(len(CONTRASTS)), strict=True)
    ]


def _curve_plot(up_to: float) -> Plot:
    return Plot(linear_axis([0.0, up_to]), linear_axis([0.0, 1.0]), 40, 34, 342, 310)


def _score_plot(scores: ScoreHistogram, threshold: float | None) -> tuple[Plot, list[float]]:
    """Return the plot of a histogram of scores, and its ticks of counts; those of defective images lie below 0."""
    x = linear_axis([scores.edges[0], scores.edges[-1], *([] if threshold is None else [threshold])])
    count = linear_axis([0.0, float(max((*scores.normal, *scores.anomalous, 1)))], n_ticks=3, whole=True)
    return Plot(x, Axis(-count.high, count.high, ()), 40, 34, 342, 172), sorted(
        {*count.ticks, *(-t for t in count.ticks)}
    )


def _score_columns(plot: Plot, scores: ScoreHistogram) -> list[dict[str, Any]]:
    columns = []
    for css, counts, sign in (("good", scores.normal, 1), ("bad", scores.anomalous, -1)):
        for n, low, high in zip(counts, scores.edges[:-1], scores.edges[1:], strict=True):
            if n:
                top, bottom = sorted((plot.py(0), plot.py(sign * n)))
                width = max(plot.px(high) - plot.px(low) - 0.6, 0.6)
                title = f"{n} with a score from {low:.3g} to {high:.3g}"
                columns.append(
                    {"css": css, "x": plot.px(low), "y": top, "width": width, "height": bottom - top, "title": title}
                )
    return columns


Series = dict[str, list[tuple[float, float]]]
"""Seconds since the benchmark began and a value, by bundle."""


def _conditions(report: Report) -> list[tuple[str, Series]]:
    """Return the conditions that were recorded in each round, with their titles."""
    measured = [bundle for bundle in report.bundles if bundle.rounds]
    latency: Series = {}
    for bundle in measured:
        middle = sorted(item.engine_p50_ms for item in bundle.rounds)[len(bundle.rounds) // 2] or 1.0
        latency[bundle.name] = [(item.begin_s, item.engine_p50_ms / middle) for item in bundle.rounds]
    found = [("Engine p50, share of the bundle's middle round", latency)] if measured else []
    for title, field in (
        ("Spin after, ms", "spin_after_ms"),
        ("Clock, MHz", "frequency_mhz"),
        ("Hottest zone, °C", "temperature_c"),
        ("Cores busy with other programs", "foreign_cores"),
    ):
        series = {
            bundle.name: [(r.begin_s, value) for r in bundle.rounds if (value := getattr(r, field)) is not None]
            for bundle in measured
        }
        found += [(title, series)] if any(series.values()) else []
    return found


def _round_plot(series: Series) -> tuple[Plot, str]:
    points = [point for values in series.values() for point in values]
    heights = [value for _, value in points]
    x, y = linear_axis([0.0, *(at for at, _ in points)], n_ticks=4), linear_axis(heights, n_ticks=4)
    words = (
        f"{min(heights):.4g} to {max(heights):.4g} in {count(len(points), 'round')} of {count(len(series), 'bundle')}."
    )
    return Plot(x, y, 48, 30, 344, 188), words


Pictures = list[tuple[str, str, str]]
"""Title, data URI and description of each."""


def _gallery(
    report: Report, images: Mapping[str, bytes], most_bytes: int
) -> tuple[dict[str, list[tuple[ImageExample, Pictures]]], int]:
    """Return the examples with their pictures by bundle, the recommended one's first, and how many are left out."""
    examples = [example for example in report.examples if example.input_file in images]
    chosen = report.recommendation.chosen if report.recommendation else None
    order = sorted(dict.fromkeys(example.bundle for example in examples), key=lambda name: name != chosen)
    ranked = sorted(examples, key=lambda each: (order.index(each.bundle), list(KINDS).index(each.kind)))
    gallery: dict[str, list[tuple[ImageExample, Pictures]]] = {}
    total = n_kept = 0
    for example in ranked:
        total += sum(len(images.get(name, b"")) * 4 // 3 for name in example.pictures)
        if total > most_bytes:
            break
        n_kept += 1
        label = f"defect: {example.defect}" if example.defect is not None else "good part"
        pictures = [
            ("input", example.input_file, f"picture {example.image}, {label}"),
            ("map", example.map_file, f"anomaly map of {example.image} by {example.bundle}"),
            ("mask", example.mask_file, f"pixels of {example.image} above the pixel threshold"),
            ("truth", example.truth_file, f"where the defect {example.defect} is in {example.image}"),
        ]
        shown = [
            (title, _data_uri(images[name]), alt)
            for title, name, alt in pictures
            if name is not None and name in images
        ]
        gallery.setdefault(example.bundle, []).append((example, shown))
    return gallery, len(ranked) - n_kept


def _data_uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"
