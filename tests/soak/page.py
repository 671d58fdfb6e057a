"""The soak as one HTML page with plots of memory, descriptors and threads over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.soak.growth import LIMITS, Limit, Sample
from tests.soak.record import Soak, tables
from vae_edge.benchmarks.report.pages import charts
from vae_edge.benchmarks.report.pages.html import page_style, template_engine
from vae_edge.html_page import security_policy, whole_page

_WIDTH, _HEIGHT = 960.0, 260.0
_MOST_POINTS = 600


@dataclass(frozen=True)
class Drawing:
    """One plot: something of one subject over time."""

    name: str
    title: str
    description: str
    y_title: str
    plot: charts.Plot
    lines: list[str]
    """SVG's `points`, one for each process."""
    marks: list[tuple[float, str]]
    """Horizontal position and text of each fault."""
    judged_from: float
    """Horizontal position of the end of the warm-up."""


def drawing(soak: Soak, subject: str, samples: Sequence[Sample], limit: Limit) -> Drawing:
    """Return the plot of `limit.field`."""
    points = [(each.at_s / 60, limit.scale * getattr(each, limit.field), each.generation) for each in samples]
    x = charts.linear_axis([0.0, soak.minutes, *(at for at, _, _ in points)], from_zero=True, n_ticks=10)
    y = charts.linear_axis([value for _, value, _ in points], from_zero=True, whole=not limit.unit)
    plot = charts.Plot(x, y, left=64, top=28, right=_WIDTH - 12, bottom=_HEIGHT - 46)
    step = max(1, len(points) // _MOST_POINTS)
    generations = dict.fromkeys(generation for _, _, generation in points)
    lines = [
        plot.path([(at, value) for at, value, generation in points[::step] if generation == wanted])
        for wanted in generations
    ]
    unit = f", {limit.unit}" if limit.unit else ""
    growth = next((each for each in soak.growths if (each.subject, each.what) == (subject, limit.what)), None)
    described = (
        f"{len(points)} samples of {len(generations)} processes"
        + (
            f" from {min(v for _, v, _ in points):.4g} to {max(v for _, v, _ in points):.4g}{unit[1:]}"
            if points
            else ""
        )
        + ("" if growth is None else f"; the last gained {growth.gain:+.2f} of {growth.allowed:.1f} allowed")
        + ". Marks at the foot are faults; right of the dashed line growth is judged."
    )
    marks = [
        (plot.px(each.begin_s / 60), f"{each.name} ({each.subject}), minute {each.begin_s / 60:.1f}")
        for each in soak.injected
        if each.subject in (subject, "all")
    ]
    return Drawing(
        name=f"{subject}-{limit.what}",
        title=f"{subject}: {limit.what}",
        description=described,
        y_title=f"{limit.what}{unit}",
        plot=plot,
        lines=lines,
        marks=marks,
        judged_from=plot.px(soak.judged_from_s / 60),
    )


def html(soak: Soak) -> str:
    """Return the page; it loads nothing from elsewhere and has no script."""
    style = page_style()
    body: str = (
        template_engine(Path(__file__).parent)
        .get_template("soak.html")
        .render(
            soak=soak,
            tables=tables(soak),
            drawings=[
                drawing(soak, name, samples, limit) for name, samples in soak.samples.items() for limit in LIMITS
            ],
            width=_WIDTH,
            height=_HEIGHT,
        )
    )
    return whole_page("vae-edge soak", style, body, policy=security_policy(style))
