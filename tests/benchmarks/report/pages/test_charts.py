"""The drawings of report.html: axes, labels that do not overlap, the Pareto front, colours."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from tests.benchmarks.example_report import example_report
from tests.benchmarks.parsed_page import parse
from vae_edge.benchmarks.measure.statistics import Interval
from vae_edge.benchmarks.report.figures import FIGURES, Number
from vae_edge.benchmarks.report.pages.charts import (
    curve_points,
    decimal,
    linear_axis,
    log_axis,
    looks,
    shortened,
    violin,
)
from vae_edge.benchmarks.report.pages.html import to_html
from vae_edge.benchmarks.report.pages.tradeoff import Box, Tradeoff, TradeoffPoint, pareto_front, place_labels
from vae_edge.benchmarks.report.records.accuracy import CurveRecord
from vae_edge.benchmarks.report.records.speed import Histogram


def point(name: str, cost: float, quality: float, *, is_chosen: bool = False) -> TradeoffPoint:
    return TradeoffPoint(name, Number(cost), Number(quality), is_chosen)


def test_lengths_keep_a_hundredth_of_a_pixel() -> None:
    assert [decimal(value) for value in (12.0, 12.5, 12.256, -0.001)] == ["12", "12.5", "12.26", "0"]


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-6, 3e-6], [-2.0, 7.5], [120.0, 98000.0], []])
def test_a_linear_axis_holds_its_values_and_has_some_ticks(values: list[float]) -> None:
    axis = linear_axis(values)
    assert all(axis.low <= value <= axis.high for value in values)
    assert 2 <= len(axis.ticks) <= 12
    assert len(set(axis.labels())) == len(axis.ticks)


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.2], [0.4, 900.0], [9.0, 11.0, 25.0], [1e-3, 1e4]])
def test_a_log_axis_holds_its_values_and_has_some_ticks(values: list[float]) -> None:
    axis = log_axis(values)
    assert all(axis.low <= value <= axis.high for value in values)
    assert all(0 <= axis.share(tick) <= 1 for tick in axis.ticks)
    assert 2 <= len(axis.ticks) <= 12
    assert len(set(axis.labels())) == len(axis.ticks)


def test_an_axis_of_shares_does_not_go_beyond_1() -> None:
    axis = linear_axis([0.97, 0.999], at_most=1.0)
    assert axis.high == pytest.approx(1.0)
    assert axis.low <= 0.97


def test_an_axis_of_counts_has_whole_numbers() -> None:
    for most in (1.0, 2.0, 7.0, 23.0):
        assert all(tick == round(tick) for tick in linear_axis([0.0, most], n_ticks=3, whole=True).ticks)


def test_the_pareto_front_is_what_no_other_bundle_beats_in_both() -> None:
    points = [point("a", 1, 0.8), point("b", 2, 0.9), point("c", 3, 0.85), point("d", 2, 0.9), point("e", 9, 0.9)]
    assert [item.name for item in pareto_front(points)] == ["a", "b", "d"]
    assert pareto_front([]) == ()


def test_names_of_nine_bundles_overlap_neither_each_other_nor_a_marker() -> None:
    rng = np.random.default_rng(1)
    places = [(float(x), float(y)) for x, y in zip(rng.uniform(80, 700, 9), rng.uniform(60, 180, 9), strict=True)]
    widths = [130.0] * 9
    bounds = Box(60, 30, 840, 400)
    markers = [Box(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    labels = place_labels(places, widths, bounds, markers)
    assert all(bounds.contains(label.box) for label in labels)
    assert all(a.box.overlap(b.box) < 1 for a, b in combinations(labels, 2))
    assert all(label.box.overlap(box) < 1 for label in labels for box in markers)


def test_names_of_bundles_on_one_spot_are_told_apart_by_leaders() -> None:
    labels = place_labels([(400.0, 200.0)] * 5, [120.0] * 5, Box(0, 0, 800, 400))
    assert all(a.box.overlap(b.box) < 1 for a, b in combinations(labels, 2))


def test_a_name_too_wide_for_any_place_beside_its_point_still_begins_inside() -> None:
    bounds = Box(50, 20, 300, 200)
    (label,) = place_labels([(280.0, 100.0)], [240.0], bounds)
    assert bounds.contains(label.box)


def test_a_drawing_of_the_tradeoff_holds_every_point_its_intervals_and_the_front() -> None:
    wide = TradeoffPoint("wide", Number(30.0, interval=Interval(low=20.0, high=45.0)), Number(0.95))
    found = Tradeoff(FIGURES["p50_ms"], FIGURES["image_auroc"], [point("fast", 3.0, 0.9, is_chosen=True), wide])
    assert found.title == "image AUROC against p50 ms"
    assert [each.name for each in found.front] == ["fast", "wide"]
    assert found.plot.x.low < 3.0 < 45.0 < found.plot.x.high
    assert found.plot.y.high <= 1.0
    assert found.front_line[:3] == [(3.0, 0.9), (30.0, 0.9), (30.0, 0.95)]
    assert not found.labels[0].box.overlap(found.labels[1].box)


def test_the_page_draws_every_bundle_with_its_intervals_and_says_what_is_on_the_front() -> None:
    chart = parse(to_html(example_report())).by_id("tradeoff").all("svg")[0]
    assert "On the Pareto front" in chart.all("desc")[0].text
    assert "Recommended: tile-openvino-int8." in chart.all("desc")[0].text
    assert len([line for line in chart.all("line") if "error" in line.classes]) == 5 * 6
    assert len([circle for circle in chart.all("circle") if "ring" in circle.classes]) == 1
    assert len({node.text for node in chart.all("text") if "label" in node.classes}) == 5


def test_a_shortened_name_keeps_both_ends() -> None:
    assert shortened("short", 10) == "short"
    long = shortened("a-product-with-a-long-name-openvino-int8", 24)
    assert len(long) == 24
    assert long.startswith("a-produ")
    assert long.endswith("openvino-int8")


def test_a_curve_ends_where_the_chart_does() -> None:
    curve = CurveRecord(false_positive_rate=(0.0, 0.2, 0.4, 1.0), hit_rate=(0.0, 0.5, 0.9, 1.0))
    assert curve_points(curve, 0.3) == [(0.0, 0.0), (0.2, 0.5), (0.3, pytest.approx(0.7))]
    assert len(curve_points(curve, 1.0)) == 4


def test_a_violin_is_widest_where_most_values_are() -> None:
    outline = violin(linear_axis([0.0, 10.0]), Histogram(edges=(0.0, 1.0, 2.0, 6.0), counts=(1, 8, 8)), 1000, 30)
    heights = [float(pair.split(",")[1]) for pair in outline.split()]
    assert min(heights[2:4]) == min(heights)
    assert heights[4] > heights[2]


def test_parts_of_a_stacked_bar_follow_one_another() -> None:
    row = parse(to_html(example_report())).by_id("stages").all("tbody")[0].all("tr")[0]
    places = [(float(rect.get("x")[:-1]), float(rect.get("width")[:-1])) for rect in row.all("rect")]
    assert len(places) == 5
    assert np.allclose(np.cumsum([0.0, *(width for _, width in places)])[:-1], [x for x, _ in places], atol=0.02)
    assert sum(width for _, width in places) == pytest.approx(100.0, abs=0.02)


def test_nine_bundles_and_many_more_all_look_different() -> None:
    assert len(set(looks(100))) == 100
    assert len({look.colour for look in looks(8)}) == 8


def themes() -> dict[str, dict[str, str]]:
    style = parse(to_html(example_report())).all("style")[0].text
    blocks = re.findall(r"(:root[^{]*)\{([^}]*)\}", style)
    found = {head.strip(): dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", body)) for head, body in blocks}
    return {head: colours for head, colours in found.items() if colours}


def contrast(first: str, second: str) -> float:
    """The contrast of WCAG 2.1, 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_light_and_dark_have_the_same_colours_and_dark_is_one_theme() -> None:
    light, by_system, by_button = themes().values()
    assert light.keys() == by_system.keys() == by_button.keys()
    assert by_system == by_button


@pytest.mark.parametrize("theme", range(2), ids=["light", "dark"])
def test_text_and_drawings_stand_out_from_the_ground(theme: int) -> None:
    colours = list(themes().values())[theme]
    for ground in ("ground", "panel", "flag", "chosen"):
        for text in ("text", "muted", "link", "good", "bad", "warn"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for name, colour in colours.items():
        if name.startswith("series-"):
            assert contrast(colour, colours["ground"]) >= 3, name
        if name.startswith("fill-"):
            assert contrast(colours["hatch"], colour) >= 3, name
