"""ROC and PRO curves of all bundles over one another, and the scores of each bundle's good and defective images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vae_edge.benchmarks.accuracy_records import ScoreHistogram
from vae_edge.benchmarks.estimates import CurveRecord
from vae_edge.benchmarks.page.axes import Axis, linear_axis, share_axis
from vae_edge.benchmarks.page.markup import Markup, element, join
from vae_edge.benchmarks.page.plot import Look, Plot, drawing, line, polyline, text

_WIDTH, _HEIGHT = 356.0, 356.0
_SCORES_WIDTH, _SCORES_HEIGHT = 356.0, 214.0


@dataclass(frozen=True)
class NamedCurve:
    """One bundle's curve."""

    name: str
    look: Look
    curve: CurveRecord
    area: float | None = None


def curve_chart(
    name: str, title: str, x_title: str, y_title: str, curves: Sequence[NamedCurve], *, up_to: float = 1.0
) -> Markup:
    """Return the chart.

    Args:
        name: an identifier that no other chart of the page has.
        title: what it shows.
        x_title: of the horizontal axis.
        y_title: of the vertical axis.
        curves: one or more.
        up_to: right end of the horizontal axis: 0.3 for PRO curves, beyond which nobody looks.
    """
    plot = Plot(linear_axis([0.0, up_to]), share_axis(), 40, 34, _WIDTH - 40 - 14, _HEIGHT - 34 - 46)
    lines = []
    for position, item in enumerate(curves):
        points = [
            (plot.px(x), plot.py(y))
            for x, y in _cut(list(zip(item.curve.false_positive_rate, item.curve.hit_rate, strict=True)), up_to)
        ]
        lines.append(
            element(
                "g",
                element("title", item.name),
                polyline(
                    points, class_=f"curve {item.look.css} width-{_width(position, len(curves))}", dash=item.look.dash
                ),
            )
        )
    chance = line(plot.px(0), plot.py(0), plot.px(up_to), plot.py(up_to), class_="chance")
    areas = ", ".join(f"{item.name} {item.area:.3f}" for item in curves if item.area is not None)
    return drawing(
        _WIDTH,
        _HEIGHT,
        plot.frame(x_title, y_title),
        chance,
        lines,
        name=name,
        title=title,
        description=f"One curve for each of {len(curves)} bundles; the nearer to the upper left, the better."
        + (f" Areas: {areas}." if areas else ""),
        css="chart square",
    )


def _width(position: int, n: int) -> int:
    """Return a width from 1 to 6, the widest first: bundles that agree lie within one another instead of hiding."""
    return min(n - position, 6)


def score_chart(name: str, bundle: str, scores: ScoreHistogram, threshold: float | None) -> Markup:
    """Return the scores of good images upwards and of defective ones downwards, with the threshold between them."""
    ends = [scores.edges[0], scores.edges[-1]] + ([threshold] if threshold is not None else [])
    x = linear_axis(ends, n_ticks=5)
    most = max((*scores.normal, *scores.anomalous, 1))
    count = linear_axis([0.0, float(most)], n_ticks=3, whole=True)
    y = Axis(-count.high, count.high, ())
    plot = Plot(x, y, 40, 34, _SCORES_WIDTH - 40 - 14, _SCORES_HEIGHT - 34 - 42)
    parts = [plot.frame("score", "images: good up, defective down")]
    for tick in (tick for end in count.ticks for tick in {end, -end}):
        parts += [
            line(plot.left, plot.py(tick), plot.right, plot.py(tick), class_="grid"),
            text(f"{abs(tick):g}", plot.left - 6, plot.py(tick) + 4, anchor="end", class_="tick"),
        ]
    for css, counts, sign in (("good", scores.normal, 1), ("bad", scores.anomalous, -1)):
        for low, high, n in zip(scores.edges[:-1], scores.edges[1:], counts, strict=True):
            if n:
                parts.append(_column(plot, low, high, sign * n, css))
    parts.append(line(plot.left, plot.py(0), plot.right, plot.py(0), class_="axis"))
    if threshold is not None:
        at = plot.px(threshold)
        to_left = at > plot.left + 0.7 * plot.width
        parts += [
            line(at, plot.top - 2, at, plot.bottom, class_="threshold"),
            text(
                f"threshold {threshold:.3g}",
                at + (-5 if to_left else 5),
                plot.top + 9,
                anchor="end" if to_left else None,
                class_="label",
            ),
        ]
    return drawing(
        _SCORES_WIDTH,
        _SCORES_HEIGHT,
        join(parts),
        name=name,
        title=f"Scores of {bundle}",
        description=_describe(scores, threshold),
        css="chart square",
    )


def _column(plot: Plot, low: float, high: float, n: int, css: str) -> Markup:
    left, right = plot.px(low), plot.px(high)
    top, bottom = sorted((plot.py(0), plot.py(n)))
    return element(
        "rect",
        element("title", f"{abs(n)} with a score from {low:.3g} to {high:.3g}"),
        x=left,
        y=top,
        width=max(right - left - 0.6, 0.6),
        height=bottom - top,
        class_=f"column {css}",
    )


def _describe(scores: ScoreHistogram, threshold: float | None) -> str:
    text = (
        f"{sum(scores.normal)} good and {sum(scores.anomalous)} defective images with scores from "
        f"{scores.edges[0]:.3g} to {scores.edges[-1]:.3g}."
    )
    return text if threshold is None else f"{text} What is above the threshold of {threshold:.3g} is called anomalous."


def _cut(points: list[tuple[float, float]], up_to: float) -> list[tuple[float, float]]:
    """Return the part of a curve from 0 to `up_to`, ending exactly there."""
    inside = [point for point in points if point[0] <= up_to]
    after = next((point for point in points if point[0] > up_to), None)
    if after is not None and inside:
        (x1, y1), (x2, y2) = inside[-1], after
        inside.append((up_to, y1 + (y2 - y1) * (up_to - x1) / (x2 - x1)))
    return inside
