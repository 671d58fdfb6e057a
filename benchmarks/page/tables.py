"""Tables, figures and sections: the frames that everything on the page stands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vae_edge.benchmarks.estimates import Interval
from vae_edge.benchmarks.formats import ABSENT
from vae_edge.benchmarks.page.markup import Child, Markup, element, join

Formatter = Callable[[float], str]

SHORT = 12
"""Rows up to which a table is not divided between two sheets of paper."""


def section(identifier: str, title: str, *content: Child) -> Markup:
    """Return a section with its heading."""
    heading = element("h2", title, id=f"{identifier}-title")
    return element("section", heading, *content, id=identifier, aria_labelledby=f"{identifier}-title")


def part(title: str, *content: Child, identifier: str | None = None) -> Markup:
    """Return a part of a section with a heading of the third level."""
    return join(element("h3", title, id=identifier), *content)


def figure(caption: Child, *content: Child, css: str | None = None) -> Markup:
    """Return a figure; what is too wide for the screen can be scrolled, by keyboard too."""
    return element("figure", element("figcaption", caption), *content, class_=css)


def scrolled(label: str, content: Child) -> Markup:
    """Return content that may be wider than the screen, in a region that can be focussed and scrolled by arrow keys."""
    return element("div", content, class_="scroll", role="group", aria_label=label, tabindex="0")


def folded(summary: str, *content: Child) -> Markup:
    """Return content behind a line to click; printing opens it."""
    return element("details", element("summary", summary), *content)


def data_table(
    caption: Child, headers: Sequence[str], rows: Sequence[Sequence[Child]], *, n_names: int = 1, css: str | None = None
) -> Markup:
    """Return a plain table.

    Args:
        caption: what it shows.
        headers: of all columns.
        rows: cells; the first is the row's header.
        n_names: columns from the left that are text; those after it are numbers.
        css: its class.
    """
    head = element(
        "tr",
        [
            element("th", header, scope="col", class_="number" if position >= n_names else None)
            for position, header in enumerate(headers)
        ],
    )
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            [
                element("td", cell, class_="number" if position >= n_names else None)
                for position, cell in enumerate(row[1:], 1)
            ],
        )
        for row in rows
    ]
    table = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", body),
        class_=css or _length(rows),
    )
    return scrolled(_plain(caption), table)


def _length(rows: Sequence[object]) -> str | None:
    """Return the class of a table that should stay on one sheet of paper."""
    return "short" if len(rows) <= SHORT else None


def facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Return terms and what they are, without those that are not known."""
    items = [
        element("div", element("dt", term), element("dd", content))
        for term, content in pairs
        if content not in (None, "", ABSENT)
    ]
    return element("dl", items, class_="facts")


def bullets(items: Sequence[Child], css: str | None = None) -> Markup | None:
    """Return a list, or nothing where there is no item."""
    return element("ul", [element("li", item) for item in items], class_=css) if items else None


def exact(value: float | None, formatter: Formatter) -> Markup:
    """Return a number as people read it, with the report's own behind it: `<data value="8.9812">8.98</data>`."""
    if value is None:
        return element("span", ABSENT, class_="absent", title="not measured")
    return element("data", formatter(value), value=repr(value))


def with_interval(value: float | None, interval: Interval | None, formatter: Formatter, unit: str = "") -> Markup:
    """Return a number with its unit and, smaller, the ends of its 95 % interval."""
    if value is None:
        return exact(value, formatter)
    return join(exact(value, formatter), unit, [" ", interval_text(interval, formatter)] if interval else None)


def interval_text(interval: Interval, formatter: Formatter) -> Markup:
    """Return an interval's ends: `8.80 to 9.16`."""
    return element("span", f"{formatter(interval.low)} to {formatter(interval.high)}", class_="interval")


def _plain(content: Child) -> str:
    """Return the text of a caption, for an attribute: without its markup, and its entities as the characters."""
    from html import unescape
    from re import sub

    return unescape(sub(r"<[^>]*>", "", join(content)))
