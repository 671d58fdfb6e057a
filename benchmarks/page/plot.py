"""A drawing with two axes, as SVG that takes its colours from the page: light, dark and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from vae_edge.benchmarks.page.axes import Axis
from vae_edge.benchmarks.page.markup import Child, Markup, decimal, element, join

FONT_PX = 12.0
_COLOURS = 8
_MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross")
_DASHES = (None, "7 3", "2 2.5", "9 3 2 3", "12 4")


@dataclass(frozen=True)
class Look:
    """How one bundle is drawn wherever it appears: colour, marker and dash together, never the colour alone."""

    colour: int
    marker: str
    dash: str | None

    @property
    def css(self) -> str:
        """The class that sets `currentColor`."""
        return f"series-{self.colour}"


def looks(n: int) -> tuple[Look, ...]:
    """Return n looks that all differ: the three lists have lengths without a common divisor, so 280 of them do."""
    colours, markers, dashes = cycle(range(_COLOURS)), cycle(_MARKERS), cycle(_DASHES)
    return tuple(Look(next(colours), next(markers), next(dashes)) for _ in range(n))


@dataclass(frozen=True)
class Plot:
    """The area inside the axes, in the drawing's pixels."""

    x: Axis
    y: Axis
    left: float
    top: float
    width: float
    height: float

    def px(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return self.left + self.width * self.x.share(value)

    def py(self, value: float) -> float:
        """Return the vertical place of a value, which grows downwards."""
        return self.top + self.height * (1.0 - self.y.share(value))

    @property
    def right(self) -> float:
        """The right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.top + self.height

    def frame(self, x_title: str, y_title: str) -> Markup:
        """Return grid, ticks and titles of both axes."""
        parts: list[Markup | None] = []
        for tick, label in zip(self.x.ticks, self.x.labels(), strict=True):
            at = self.px(tick)
            parts += [
                line(at, self.top, at, self.bottom, class_="grid"),
                text(label, at, self.bottom + 16, anchor="middle", class_="tick"),
            ]
        for tick, label in zip(self.y.ticks, self.y.labels(), strict=True):
            at = self.py(tick)
            parts += [
                line(self.left, at, self.right, at, class_="grid"),
                text(label, self.left - 7, at + 4, anchor="end", class_="tick"),
            ]
        parts += [
            line(self.left, self.bottom, self.right, self.bottom, class_="axis"),
            line(self.left, self.top, self.left, self.bottom, class_="axis"),
            text(x_title, self.left + self.width / 2, self.bottom + 34, anchor="middle", class_="axis-title"),
            # Above the axis and level: nobody has to tilt the head, and long titles have room.
            text(y_title, 2, self.top - 10, class_="axis-title") if y_title else None,
        ]
        return join(parts)


def drawing(
    width: float, height: float, *children: Child, name: str, title: str, description: str, css: str = "chart"
) -> Markup:
    """Return the SVG of one chart.

    Args:
        width: of its own coordinates, in pixels; the page scales it.
        height: the same.
        children: what is drawn.
        name: an identifier that no other chart of the page has.
        title: what it shows, short.
        description: what there is to see, for those who cannot see it.
        css: its classes.
    """
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *children,
        viewBox=f"0 0 {decimal(width)} {decimal(height)}",
        width=width,
        height=height,
        class_=css,
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )


def line(x1: float, y1: float, x2: float, y2: float, *, class_: str, dash: str | None = None) -> Markup:
    """Return a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, stroke_dasharray=dash)


def text(content: str, x: float, y: float, *, anchor: str | None = None, class_: str | None = None) -> Markup:
    """Return a text whose baseline is at y."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def polyline(points: Sequence[tuple[float, float]], *, class_: str, dash: str | None = None) -> Markup:
    """Return a line through the points, in the drawing's pixels."""
    path = " ".join(f"{decimal(x)},{decimal(y)}" for x, y in points)
    return element("polyline", points=path, class_=class_, stroke_dasharray=dash)


def marker(look: Look, x: float, y: float, size: float = 5.0, *, title: str | None = None) -> Markup:
    """Return a bundle's marker around a point."""
    tooltip = element("title", title) if title else None
    css = f"marker {look.css}"
    if look.marker == "circle":
        return element("circle", tooltip, cx=x, cy=y, r=size, class_=css)
    if look.marker in _CROSSES:
        path = "".join(f"M{_pair(x, y, size, a)}L{_pair(x, y, size, b)}" for a, b in _CROSSES[look.marker])
        return element("path", tooltip, d=path, class_=f"{css} stroked")
    corners = [_pair(x, y, size, corner) for corner in _POLYGONS[look.marker]]
    return element("polygon", tooltip, points=" ".join(corners), class_=css)


_POLYGONS = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    "down": ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
}
_CROSSES = {
    "plus": (((-1.2, 0), (1.2, 0)), ((0, -1.2), (0, 1.2))),
    "cross": (((-1, -1), (1, 1)), ((-1, 1), (1, -1))),
}


def _pair(x: float, y: float, size: float, corner: tuple[float, float]) -> str:
    return f"{decimal(x + size * corner[0])},{decimal(y + size * corner[1])}"


def key(names: Sequence[str], of: Sequence[Look]) -> Markup:
    """Return the list that says which look is whose: a dash, a marker, a name."""
    items = []
    for name, look in zip(names, of, strict=True):
        sample = element(
            "svg",
            line(0, 7, 30, 7, class_=f"curve {look.css}", dash=look.dash),
            marker(look, 15, 7, 4),
            width=30,
            height=14,
            viewBox="0 0 30 14",
            aria_hidden="true",
        )
        items.append(element("li", sample, " ", element("span", name, class_="name")))
    return element("ul", items, class_="key")


def named(bundle: str, look: Look) -> Markup:
    """Return a bundle's name with its marker before it."""
    sign = element("svg", marker(look, 8, 8, 5), width=16, height=16, viewBox="0 0 16 16", aria_hidden="true")
    return join(sign, " ", element("span", bundle, class_="name"))


def text_width(content: str, font_px: float = FONT_PX) -> float:
    """Return about how wide a text is, rather too wide: the reader's font is not known here."""
    return font_px * sum(_NARROW.get(letter, 0.6) for letter in content)


_NARROW = {
    **dict.fromkeys("iljtfr.,:;|'!()[] ", 0.4),
    **dict.fromkeys("mwMW@%", 0.95),
    **dict.fromkeys("ABCDEFGH", 0.7),
}


def shortened(name: str, most: int) -> str:
    """Return a name that fits, with its middle left out: the ends are what tells bundles apart."""
    if len(name) <= most:
        return name
    tail = most * 3 // 5
    return f"{name[: most - tail - 1]}…{name[-tail:]}"
