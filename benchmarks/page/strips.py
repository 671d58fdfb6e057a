"""Charts with one row for each bundle, as a table: the numbers are read, the bars beside them are looked at.

The drawings have no width of their own. All that is horizontal is in percent, so a row fits a phone as well as a desk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vae_edge.benchmarks.estimates import Histogram, Interval
from vae_edge.benchmarks.page.axes import Axis
from vae_edge.benchmarks.page.markup import Child, Markup, element, join
from vae_edge.benchmarks.page.plot import Look
from vae_edge.benchmarks.page.tables import SHORT

_HEIGHT = 30.0
_FINE = 1000.0


@dataclass(frozen=True)
class StripRow:
    """One row: a name, a drawing, and numbers as text."""

    name: Child
    drawing: Markup
    cells: tuple[Child, ...]


@dataclass(frozen=True)
class Segment:
    """A part of a stacked bar."""

    css: str
    """Class that sets its fill, which is a pattern as well as a colour."""
    value: float
    title: str


def strip_table(
    caption: Child, axis: Axis, axis_title: str, headers: Sequence[str], rows: Sequence[StripRow], name: str = "bundle"
) -> Markup:
    """Return the table.

    Args:
        caption: what it shows.
        axis: that all drawings share.
        axis_title: what the axis is, with its unit.
        headers: of the numbers' columns.
        rows: one for each bundle, or more.
        name: header of the first column.
    """
    ticks = [
        element("text", label, x=_percent(axis, tick), y=11, text_anchor="middle", class_="tick")
        for tick, label in zip(axis.ticks, axis.labels(), strict=True)
    ]
    scale = element("svg", ticks, width="100%", height=14, class_="strip", aria_hidden="true")
    # On a phone the rows are laid out anew, and some browsers then forget that this is a table; the roles remind them.
    head = element(
        "tr",
        element("th", name, scope="col", role="columnheader"),
        element("th", element("span", axis_title), scale, scope="col", role="columnheader", class_="strip-cell"),
        [element("th", header, scope="col", role="columnheader", class_="number") for header in headers],
        role="row",
    )
    body = [
        element(
            "tr",
            element("th", row.name, scope="row", role="rowheader"),
            element("td", row.drawing, role="cell", class_="strip-cell"),
            [element("td", cell, role="cell", class_="number") for cell in row.cells],
            role="row",
        )
        for row in rows
    ]
    table = element(
        "table",
        element("caption", caption),
        element("thead", head, role="rowgroup"),
        element("tbody", body, role="rowgroup"),
        role="table",
    )
    return element("div", table, class_=f"strip-table columns-{len(headers)}{' short' if len(rows) <= SHORT else ''}")


def violin(axis: Axis, look: Look, histogram: Histogram, marks: Sequence[tuple[float, str]]) -> Markup:
    """Return a histogram mirrored at its own line, with marks such as the median's.

    Args:
        axis: of the values.
        look: of the bundle.
        histogram: the values.
        marks: value and class of a vertical line each.
    """
    density = [
        count / max(high - low, 1e-300) for count, low, high in zip(histogram.counts, *_sides(histogram), strict=True)
    ]
    # As wide as its highest bin, so bundles are compared by place and shape; on a log axis equal areas would mean
    # nothing to the eye either.
    most = max(density, default=0.0) or 1.0
    middle, reach = _HEIGHT / 2, _HEIGHT / 2 - 2
    upper: list[tuple[float, float]] = []
    for value, low, high in zip(density, *_sides(histogram), strict=True):
        thick = max(reach * value / most, 0.5 if value else 0.0)
        upper += [(_FINE * axis.share(low), thick), (_FINE * axis.share(high), thick)]
    outline = [(x, middle - thick) for x, thick in upper] + [(x, middle + thick) for x, thick in reversed(upper)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
    shape = element(
        "svg",
        element("polygon", points=points, class_=f"violin {look.css}"),
        viewBox=f"0 0 {_FINE:g} {_HEIGHT:g}",
        preserveAspectRatio="none",
        width="100%",
        height=_HEIGHT,
        aria_hidden="true",
    )
    lines = [_vertical(axis, value, css, 2, _HEIGHT - 2) for value, css in marks]
    return _strip(axis, shape, *lines)


def bar(axis: Axis, look: Look, value: float, interval: Interval | None = None, mark: float | None = None) -> Markup:
    """Return a bar from the axis' beginning, with its interval and a mark at another value where there is one."""
    rect = element("rect", x="0", y=7, width=_percent(axis, value), height=_HEIGHT - 14, class_=f"bar {look.css}")
    return _strip(
        axis,
        rect,
        _whisker(axis, interval) if interval else None,
        _vertical(axis, mark, "mark", 3, _HEIGHT - 3) if mark is not None else None,
    )


def dot(axis: Axis, look: Look, value: float, interval: Interval | None, mark: float | None = None) -> Markup:
    """Return a point with its interval, for axes that do not begin at zero."""
    circle = element("circle", cx=_percent(axis, value), cy=_HEIGHT / 2, r=5, class_=f"marker {look.css}")
    return _strip(
        axis,
        _vertical(axis, mark, "mark", 3, _HEIGHT - 3) if mark is not None else None,
        _whisker(axis, interval) if interval else None,
        circle,
    )


def stack(axis: Axis, segments: Sequence[Segment]) -> Markup:
    """Return a stacked bar."""
    parts, begin = [], 0.0
    for segment in segments:
        left, right = axis.share(begin), axis.share(begin + segment.value)
        begin += segment.value
        parts.append(
            element(
                "rect",
                element("title", segment.title),
                x=f"{100 * left:.3f}%",
                y=5,
                width=f"{100 * (right - left):.3f}%",
                height=_HEIGHT - 10,
                class_=f"segment {segment.css}",
            )
        )
    return _strip(axis, *parts)


def segment_key(entries: Sequence[tuple[str, str]]) -> Markup:
    """Return what the parts of stacked bars are: class and name of each."""
    items = [
        element(
            "li",
            element(
                "svg",
                element("rect", x=0, y=0, width=26, height=14, class_=f"segment {css}"),
                width=26,
                height=14,
                viewBox="0 0 26 14",
                aria_hidden="true",
            ),
            " ",
            label,
        )
        for css, label in entries
    ]
    return element("ul", items, class_="key")


def patterns(css_classes: Sequence[str]) -> Markup:
    """Return the fills of stacked bars, once for the page: colours that differ, hatched in ways that differ."""
    fills = [
        element(
            "pattern",
            element("rect", width=8, height=8, class_=f"{css}-back"),
            element("path", d=_HATCHES[i % len(_HATCHES)], class_="hatch") if _HATCHES[i % len(_HATCHES)] else None,
            id=css,
            width=8,
            height=8,
            patternUnits="userSpaceOnUse",
        )
        for i, css in enumerate(css_classes)
    ]
    return element(
        "svg", element("defs", fills), width=0, height=0, class_="patterns", aria_hidden="true", focusable="false"
    )


_HATCHES = (
    "",
    "M0 8L8 0M-2 2L2 -2M6 10L10 6",
    "M0 4H8",
    "M0 0L8 8M-2 6L2 10M6 -2L10 2",
    "M4 0V8",
    "M2 2h2v2h-2zM6 6h2v2h-2z",
    "M0 4H8M4 0V8",
)


def _sides(histogram: Histogram) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the lower and the upper edge of each bin."""
    return histogram.edges[:-1], histogram.edges[1:]


def _strip(axis: Axis, *parts: Child) -> Markup:
    grid = [
        element("line", x1=_percent(axis, tick), x2=_percent(axis, tick), y1=0, y2=_HEIGHT, class_="grid")
        for tick in axis.ticks
    ]
    return element("svg", join(grid), *parts, width="100%", height=_HEIGHT, class_="strip", aria_hidden="true")


def _whisker(axis: Axis, interval: Interval) -> Markup:
    low, high, middle = _percent(axis, interval.low), _percent(axis, interval.high), _HEIGHT / 2
    return join(
        element("line", x1=low, x2=high, y1=middle, y2=middle, class_="whisker"),
        element("line", x1=low, x2=low, y1=middle - 4, y2=middle + 4, class_="whisker"),
        element("line", x1=high, x2=high, y1=middle - 4, y2=middle + 4, class_="whisker"),
    )


def _vertical(axis: Axis, value: float, css: str, top: float, bottom: float) -> Markup:
    at = _percent(axis, value)
    return element("line", x1=at, x2=at, y1=top, y2=bottom, class_=css)


def _percent(axis: Axis, value: float) -> str:
    return f"{100 * axis.share(value):.2f}%"
