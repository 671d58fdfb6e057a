"""The report as one page: `report.html`, readable offline, on a phone, by keyboard, by a screen reader and on paper.

For the caller, `vae_edge.benchmarks.report_files.write_report`:

    to_html(report, images) -> str

`images` are the bytes of the pictures in the report's folder `images`, by the file names that `ImageExample` gives;
they go into the page, so that it can be sent to somebody as one file. The parts of the page are in
`vae_edge.benchmarks.page`.
"""

from __future__ import annotations

from collections.abc import Mapping

from vae_edge.benchmarks.page.accuracy_section import accuracy_section
from vae_edge.benchmarks.page.gallery import gallery_section
from vae_edge.benchmarks.page.overview import overview_table
from vae_edge.benchmarks.page.parity import parity_section
from vae_edge.benchmarks.page.plot import Look, looks
from vae_edge.benchmarks.page.shell import page
from vae_edge.benchmarks.page.speed import STAGES, distribution_section, stage_section
from vae_edge.benchmarks.page.strips import patterns
from vae_edge.benchmarks.page.tables import section
from vae_edge.benchmarks.page.tradeoff_section import tradeoff_section
from vae_edge.benchmarks.page.validity import validity_section
from vae_edge.benchmarks.page.verdict import verdict_section
from vae_edge.benchmarks.report import Report
from vae_edge.outside import printable
from vae_edge.records import with_texts


def to_html(report: Report, images: Mapping[str, bytes] | None = None) -> str:
    """Return the page. It names no other file to load and asks nothing of any network.

    Args:
        report: what was found; every number on the page is one of its.
        images: JPEG and PNG files by the names in the report's examples; an example whose file is missing is left out.
    """
    report = with_texts(report, printable)  # HTML is escaped where it is made; bidirectional text is not.
    by_name: dict[str, Look] = dict(
        zip((bundle.name for bundle in report.bundles), looks(len(report.bundles)), strict=True)
    )
    sections = [
        ("verdict", "Verdict", verdict_section(report)),
        ("bundles", "All bundles", section("bundles", "All bundles", overview_table(report, by_name))),
        ("tradeoff", "Latency and accuracy", tradeoff_section(report, by_name)),
        ("latency", "Distributions", distribution_section(report, by_name)),
        ("stages", "Stages and load", stage_section(report, by_name)),
        ("accuracy", "Accuracy", accuracy_section(report, by_name)),
        ("images", "Pictures", gallery_section(report, images or {})),
        ("parity", "Parity", parity_section(report, by_name)),
        ("validity", "Validity", validity_section(report, by_name)),
    ]
    return page("vae-edge benchmark", _summary(report), sections, patterns([f"fill-{i}" for i in range(len(STAGES))]))


def _summary(report: Report) -> str:
    ran = sum(bundle.has_run for bundle in report.bundles)
    machine = report.machine
    place = machine.board or machine.processor or machine.architecture
    return (
        f"{ran} of {len(report.bundles)} bundles ran on {place} ({machine.cores_usable} cores), {report.created_utc}, "
        f"vae-edge {machine.vae_edge}. Data: {report.data.source}."
    )
