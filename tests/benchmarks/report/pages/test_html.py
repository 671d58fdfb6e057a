"""report.html: whole, readable by everybody, with the report's own numbers, and safe whatever a file is called."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.benchmarks.example_report import example_pictures, example_report, write_example_pictures
from tests.benchmarks.parsed_page import Node, parse
from vae_edge.benchmarks.report.figures import View, figures
from vae_edge.benchmarks.report.pages import html, tables
from vae_edge.benchmarks.report.pages.html import render_report, to_html
from vae_edge.benchmarks.report.pages.markdown import to_markdown
from vae_edge.benchmarks.report.records.files import read_report
from vae_edge.benchmarks.report.records.report import BundleResult, Report
from vae_edge.errors import InputError, MissingDependencyError

HOSTILE = """<script>alert("x")</script>'&"><img src=x onerror=alert(1)>"""


@cache
def example_page() -> str:
    return to_html(example_report(), example_pictures())


@pytest.fixture
def page() -> Node:
    return parse(example_page())


def changed(**changes: Any) -> Report:
    return Report.model_validate(example_report().model_dump() | changes)


def failed(report: Report) -> Report:
    """The same report with every bundle unable to run."""
    bundles = tuple(
        BundleResult(name=bundle.name, not_run_because="the runtime is not installed") for bundle in report.bundles
    )
    return report.model_copy(update={"bundles": bundles, "recommendation": None, "examples": (), "baseline": None})


def many(n: int, name: str = "part-of-a-product-with-a-long-name-{}-openvino-int8") -> Report:
    """n bundles, all with numbers."""
    ran = [bundle for bundle in example_report().bundles if bundle.has_run]
    bundles = tuple(ran[i % len(ran)].model_copy(update={"name": name.format(i)}) for i in range(n))
    return example_report().model_copy(update={"bundles": bundles, "recommendation": None, "examples": ()})


def without_accuracy() -> Report:
    report = example_report()
    bundles = tuple(bundle.model_copy(update={"accuracy": None, "comparison": None}) for bundle in report.bundles)
    data = report.data.model_copy(update={"no_accuracy_because": "no data was given"})
    return report.model_copy(update={"bundles": bundles, "data": data, "examples": ()})


def test_the_page_asks_nothing_of_any_network_and_names_no_other_file(page: Node) -> None:
    assert not [node.name for node in page.all() if node.name in ("link", "iframe", "object", "embed", "base", "form")]
    for node in page.all():
        for name, value in node.attributes.items():
            if name in ("src", "href", "srcset", "action", "poster", "data"):
                assert (value or "").startswith(("#", "data:image/")), (node.name, name, value)
            assert name != "style"
            assert not name.startswith("on")
    assert "http:" not in example_page()
    assert "https:" not in example_page()
    assert "@import" not in example_page()


def test_the_policy_lets_only_the_pages_own_style_and_script_act(page: Node) -> None:
    (policy,) = [node.get("content") for node in page.all("meta") if node.get("http-equiv")]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("style", "script"):
        (node,) = page.all(name)
        content = "".join(child for child in node.children if isinstance(child, str))
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_identifiers_are_unique_and_whatever_refers_to_one_finds_it(page: Node) -> None:
    identifiers = [node.get("id") for node in page.all() if node.get("id")]
    assert len(set(identifiers)) == len(identifiers)
    for node in page.all():
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(node.get(name).split()) <= set(identifiers), (node.name, name)
        if node.get("href"):
            assert node.get("href").removeprefix("#") in identifiers


def test_headings_go_down_one_level_at_a_time_and_there_is_one_title(page: Node) -> None:
    levels = [int(node.name[1]) for node in page.all() if re.fullmatch("h[1-6]", node.name)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.all("main")) == len(page.all("nav")) == 1
    assert page.all("html")[0].get("lang") == "en"


def test_every_table_has_a_caption_and_every_header_a_scope(page: Node) -> None:
    assert len(page.all("table")) > 10
    for table in page.all("table"):
        assert table.all("caption")[0].text
        assert all(header.get("scope") in ("col", "row", "colgroup") for header in table.all("th"))


def test_every_chart_says_what_it_shows_and_every_picture_what_is_on_it(page: Node) -> None:
    charts = [node for node in page.all("svg") if node.get("role") == "img"]
    assert len(charts) > 10
    for chart in charts:
        assert chart.all("title")[0].text
        assert chart.all("desc")[0].text
    assert all(node.get("aria-hidden") == "true" for node in page.all("svg") if node.get("role") != "img")
    assert page.all("img")
    assert all(node.get("alt") for node in page.all("img"))


def test_which_sizes_are_seen_is_drawn_and_told_once_for_each_training_run(page: Node) -> None:
    section = page.by_id("accuracy")
    assert "Which sizes are seen" in section.text
    assert "from 4 % (10 px) on at high contrast" in section.text
    chart = next(node for node in section.all("svg") if node.get("aria-labelledby") == "seen-0-title")
    assert len(chart.all("polyline")) == 3
    assert "medium contrast, 8 % (20 px): 9 of 12" in [node.text for node in chart.all("title")]
    runs = {bundle.run for bundle in example_report().bundles if bundle.detectability is not None}
    assert sum(each.get("aria-labelledby").startswith("seen-") for each in section.all("svg")) == len(runs)
    assert "42 % (5/12)" in section.text


def test_the_sections_come_in_the_order_of_the_decision(page: Node) -> None:
    assert [node.get("id") for node in page.all("section")] == [
        "verdict", "bundles", "tradeoff", "latency", "stages", "accuracy", "images", "parity", "validity",
    ]  # fmt: skip
    assert [link.get("href")[1:] for link in page.all("nav")[0].all("a")] == [
        node.get("id") for node in page.all("section")
    ]


def test_every_number_of_the_table_is_the_one_in_report_json_with_the_ends_of_its_interval(page: Node) -> None:
    report = Report.model_validate_json(example_report().to_json())
    rows = page.by_id("all-bundles").all("tbody")[0].all("tr")
    assert len(rows) == len(report.bundles)
    shown = {figure.name: figure for figure in figures(View.PAGE)}
    n_compared = n_intervals = 0
    for row, bundle in zip(rows, report.bundles, strict=True):
        for cell in row.all("td"):
            if not bundle.has_run:
                assert (bundle.not_run_because or "") in cell.text
                continue
            found = shown[cell.get("data-figure")].number(bundle)
            values = [float(node.get("value")) for node in cell.all("data")]
            assert values == ([found.value] if found.value is not None else [])
            assert found.text in cell.text
            assert found.ends in cell.text
            n_compared += len(values)
            n_intervals += bool(found.ends)
    assert n_compared >= 5 * 11
    assert n_intervals >= 5 * 7


def test_each_title_of_the_table_is_explained_in_its_tooltip_and_in_a_list_that_needs_no_pointer(page: Node) -> None:
    (listed,) = page.by_id("meanings").all("dl")
    meanings = {entry.all("dt")[0].text: entry.all("dd")[0].text for entry in listed.all("div")}
    titles = [button for button in page.by_id("all-bundles").all("button") if button.text != "bundle"]
    assert len(titles) == 13
    for title in titles:
        assert meanings[title.text] == title.get("title") != ""
    # The table of accuracy has more figures than the overview.
    assert meanings["image AUPR"] == "average precision of the images"


def test_markdown_lists_what_its_figures_mean_and_no_figure_that_it_does_not_show() -> None:
    found = to_markdown(example_report()).split("## What the figures mean")[1].split("## ")[0]
    listed = {line.split(":")[0].removeprefix("- ") for line in found.splitlines() if line}
    report = example_report()
    assert listed == {*tables.overview(report, View.TEXT).headers, *tables.accuracy(report).headers} - {"bundle"}
    assert "- engine p50 ms: half of the images take less, of the runtime alone" in found
    assert "## What the figures mean" not in to_markdown(failed(report))


def test_the_table_can_be_sorted_by_button_and_is_plain_text_without_the_script(page: Node) -> None:
    headers = [header for header in page.by_id("all-bundles").all("th") if header.get("data-sort")]
    assert len(headers) == 14
    for header in headers:
        (button,) = header.all("button")
        assert button.get("type") == "button"
        assert "disabled" in button.attributes
    script = page.all("script")[0].text
    assert "aria-sort" in script
    assert "disabled = false" in script


def test_the_verdict_names_the_bundle_its_reason_what_does_not_fit_and_how_sure_it_is(page: Node) -> None:
    text = page.by_id("verdict").text
    choice = example_report().recommendation
    assert choice is not None
    assert f"Ship {choice.chosen}" in text
    assert choice.why in text
    assert "tile-tensorrt-fp16: it did not run: tensorrt is not installed" in text
    assert "its interval goes down to 0.890" in text
    assert "image_auroc ≥ 0.9 measured: 0.940 0.890 to 0.980" in text
    assert "2 warnings limit" in text


def test_bundles_that_may_be_as_good_as_the_recommended_one_are_named() -> None:
    choice = example_report().recommendation
    assert choice is not None
    judgements = [item.model_copy(update={"caveats": ()}) for item in choice.judgements]
    caveat = f"not certainly worse than {choice.chosen}: the ratio is 1.2"
    judgements[0] = judgements[0].model_copy(
        update={"caveats": (caveat, "recall >= 0.8 is met, but not with certainty")}
    )
    close = choice.model_copy(update={"judgements": tuple(judgements)})
    text = parse(to_html(example_report().model_copy(update={"recommendation": close}))).by_id("verdict").text
    before_the_fold = text.partition("What fits")[0]
    assert f"tile-torch-fp32: {caveat}" in before_the_fold
    assert "recall >= 0.8" not in before_the_fold


def test_quick_and_interrupted_runs_are_flagged_before_the_verdict() -> None:
    settings = example_report().settings.model_copy(update={"quick": True})
    report = example_report().model_copy(update={"settings": settings, "interrupted_because": "Ctrl-C was pressed"})
    text = parse(to_html(report)).by_id("verdict").text
    assert text.index("Interrupted: Ctrl-C was pressed") < text.index("Provisionally: ")
    assert text.index("Quick run") < text.index("Provisionally: ")


def test_names_are_escaped_wherever_they_appear() -> None:
    content = example_report().to_json()
    for name in ("tile-onnx-int8", "scratch", "tile-openvino-fp32", "sample:tile"):
        content = content.replace(name, json.dumps(f"{name} {HOSTILE}")[1:-1])
    report = Report.model_validate_json(content)
    page = to_html(report, example_pictures())
    tree = parse(page)
    assert len(tree.all("script")) == 1
    assert HOSTILE not in page
    assert not [node for node in tree.all("img") if not node.get("src").startswith("data:")]
    assert " ".join(f"tile-onnx-int8 {HOSTILE}".split()) in tree.by_id("all-bundles").text
    assert f"test/scratch {HOSTILE}" in tree.by_id("parity").text


@pytest.mark.parametrize(
    "report", [failed(example_report()), without_accuracy(), many(1), many(9)], ids=["failed", "no data", "one", "nine"]
)
def test_a_report_with_little_or_much_in_it_is_a_whole_page(report: Report) -> None:
    tree = parse(to_html(report))
    assert len(tree.all("section")) == 9
    identifiers = [node.get("id") for node in tree.all() if node.get("id")]
    assert len(set(identifiers)) == len(identifiers)
    for bundle in report.bundles:
        assert bundle.name in tree.by_id("all-bundles").text


def test_where_nothing_ran_the_first_thing_said_is_why() -> None:
    tree = parse(to_html(failed(example_report())))
    assert "No bundle ran" in tree.by_id("verdict").text
    assert "the runtime is not installed" in tree.by_id("verdict").text


def test_without_accuracy_the_page_says_why() -> None:
    tree = parse(to_html(without_accuracy()))
    assert "no data was given" in tree.by_id("accuracy").text
    assert "no data was given" in tree.by_id("tradeoff").text


def test_pictures_are_in_the_page_with_their_names_scores_and_verdicts(page: Node) -> None:
    section = page.by_id("images")
    report = example_report()
    assert len(section.all("figure")) == len(report.examples)
    for example in report.examples:
        assert example.image in section.text
        assert f"score {example.score:.4g}, threshold {example.threshold:.4g}" in section.text
    sources = [node.get("src") for node in section.all("img")]
    data = {base64.b64encode(content).decode() for content in example_pictures().values()}
    assert {source.partition("base64,")[2] for source in sources} == data


def test_pictures_beyond_the_limit_are_left_out_and_counted() -> None:
    pictures = example_pictures()
    one = sum(len(pictures[name]) for name in ("001-input.jpg", "001-map.jpg", "001-mask.png", "001-truth.png"))
    section = parse(to_html(example_report(), pictures, most_bytes=one * 2)).by_id("images")
    assert 0 < len(section.all("figure")) < len(example_report().examples)
    assert "more in the report's folder images" in section.text


def test_flipped_images_and_warnings_are_listed_by_name(page: Node) -> None:
    report = example_report()
    for bundle in report.bundles:
        for name in bundle.comparison.flipped_images if bundle.comparison else ():
            assert name in page.by_id("parity").text
    for warning in report.warnings:
        assert warning in page.by_id("validity").text


def test_the_way_to_measure_again_and_the_hashes_of_the_samples_are_there(page: Node) -> None:
    text = page.by_id("validity").text
    assert " ".join(example_report().reproduce.split()) in text
    for bundle in example_report().bundles:
        if bundle.samples:
            assert bundle.samples.sha256 in text
            assert bundle.samples.name in text


def test_a_page_is_made_from_report_json_and_its_pictures_anywhere(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.json").write_text(example_report().to_json(), encoding="utf-8")
    write_example_pictures(tmp_path / "report")
    code, _, err = command("render", tmp_path / "report/report.json", "--out", tmp_path / "pages", program="bench")
    assert code == 0, err
    assert sorted(file.name for file in (tmp_path / "pages").iterdir()) == ["report.html", "report.md"]
    assert (tmp_path / "pages/report.html").read_text(encoding="utf-8") == example_page()
    assert command("render", tmp_path / "report", program="bench")[0] == 0
    assert (tmp_path / "report/report.html").read_text(encoding="utf-8") == example_page()


def test_a_report_of_version_0_1_still_opens_and_makes_a_page(tmp_path: Path) -> None:
    old = Path(__file__).with_name("report_0_1.json")
    report = read_report(old)
    assert Report.model_validate_json(report.to_json()) == report
    page = parse(render_report(old, tmp_path)[1].read_text(encoding="utf-8"))
    assert len(page.all("section")) == 9
    for bundle in report.bundles:
        assert bundle.name in page.by_id("all-bundles").text
    cells = [cell.text for cell in page.by_id("all-bundles").all("tbody")[0].all("tr")[0].all("td")]
    assert cells[0].startswith("0.292 ")


def test_files_that_are_not_pages_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(example_report().to_json(), encoding="utf-8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.html").write_text("my thesis")
    with pytest.raises(InputError, match="is not a benchmark report; choose another --out"):
        render_report(tmp_path / "report.json", tmp_path / "out")
    assert (tmp_path / "out/report.html").read_text() == "my thesis"
    assert not (tmp_path / "out/report.md").exists()
    with pytest.raises(InputError, match="cannot be read as a benchmark report"):
        render_report(tmp_path / "no.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: bundle["latency"]["file"]["histogram"]["counts"].pop(),
        lambda bundle: bundle["accuracy"]["roc"]["hit_rate"].pop(),
        lambda bundle: bundle["accuracy"]["scores"]["normal"].append(1),
        lambda bundle: bundle["latency"]["file"].update(min_ms=-1e308, p99_ms=1e308),
        lambda bundle: bundle["rounds"][0].update(begin_s=1e308),
        lambda bundle: bundle.update(name="another"),
    ],
)
def test_values_that_do_not_belong_together_are_told_in_a_sentence(
    change: Callable[[Any], object], command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    content = json.loads(example_report().to_json())
    change(content["bundles"][-2])
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    code, _, err = command("render", tmp_path, program="bench")
    assert code == 0 or (code == 1 and err.count("\n") == 1 and "has inconsistent values" in err), err


def test_without_the_template_engine_the_error_says_where_to_make_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text(example_report().to_json(), encoding="utf-8")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    html._engine.cache_clear()
    with pytest.raises(MissingDependencyError, match="vae-bench render"):
        render_report(tmp_path)
    html._engine.cache_clear()
    assert (tmp_path / "report.md").is_file()


def test_a_page_needs_neither_torch_nor_a_runtime_and_measuring_needs_no_page() -> None:
    hidden = ("torch", "lightning", "onnxruntime", "openvino", "onnx", "nncf")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        "from vae_edge.cli.main import invoke\n"
        f"old = {str(Path(__file__).with_name('report_0_1.json'))!r}\n"
        "assert invoke(['render', old, '--out', sys.argv[1]], command='bench') == 0"
    )
    with TemporaryDirectory() as out:
        subprocess.run([sys.executable, "-c", code, out], check=True, capture_output=True)
        assert (Path(out) / "report.html").stat().st_size > 50_000
    code = "import sys, vae_edge.benchmarks.suite, vae_edge.benchmarks.command; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
