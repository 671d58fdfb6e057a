"""Names in a report are somebody else's: they are shown, and do nothing, in Markdown and on the page."""

from __future__ import annotations

import re

from tests.benchmarks.example_report import example_report
from vae_edge.benchmarks.report.pages.html import to_html
from vae_edge.benchmarks.report.pages.markdown import to_markdown
from vae_edge.benchmarks.report.records.report import Report
from vae_edge.records import with_texts

HOSTILE = "x`<script>alert(1)</script><!-- [l](javascript:x) | \x1b[2J\u202egnp \udcff ```"


def hostile_report() -> Report:
    """Put the hostile text behind every text of more than a few letters, which leaves out units and words of ours."""
    return with_texts(example_report(), lambda text: text + HOSTILE if len(text) > 8 else text)


def test_every_text_of_a_record_is_changed_and_nothing_else() -> None:
    report = example_report()
    assert with_texts(report, lambda text: text) == report
    assert with_texts(report, str.upper).bundles[0].name == report.bundles[0].name.upper()
    assert hostile_report().bundles[0].target is report.bundles[0].target


def test_markdown_shows_names_and_holds_nothing_of_theirs() -> None:
    text = to_markdown(hostile_report())
    assert "&lt;script>" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)
    assert not re.search("<[a-zA-Z/!?]", text)
    assert not re.search(r"(?<!\\)\[l\]", text)
    assert text.count("```") == to_markdown(example_report()).count("```")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    usual = [line for line in to_markdown(example_report()).splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [len(re.findall(r"(?<!\\)\|", row)) for row in usual]


def test_the_page_shows_names_and_holds_nothing_of_theirs() -> None:
    page = to_html(hostile_report())
    assert "&lt;script&gt;alert(1)" in page or "&lt;script>alert(1)" in page
    assert "<script>alert" not in page
    assert "<!-- [l]" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", page)


def test_an_ordinary_report_is_as_it_was() -> None:
    assert "p99_ms" in to_markdown(example_report())
    assert "&lt;" not in to_markdown(example_report())
