"""The report for a pull request: the recommendation first, then tables with intervals, then how they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vae_edge.benchmarks.report.figures import View
from vae_edge.benchmarks.report.pages import tables
from vae_edge.benchmarks.report.pages.tables import Table
from vae_edge.benchmarks.report.records.report import Report
from vae_edge.platform.outside import plain_markdown
from vae_edge.records import with_texts


def to_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown. Every number in it comes from the report."""
    report = with_texts(report, plain_markdown)  # Names come from bundles and file names.
    has_sweep = any(bundle.throughput and bundle.throughput.sweep for bundle in report.bundles)
    ran = [bundle for bundle in report.bundles if bundle.has_run]
    notes = dict.fromkeys(bundle.stages.note for bundle in ran if bundle.stages is not None)
    parts = [
        "# vae-edge benchmark",
        *_verdict(report),
        _quoted(report.warnings),
        "## Bundles",
        _table(tables.overview(report, View.TEXT)),
        _legend(report),
        _bullets(f"{b.name} did not run: {b.not_run_because}" for b in report.bundles if not b.has_run),
        "## Latency",
        _titled(tables.latencies(report)) if ran else "No bundle ran.",
        _titled(tables.stages(report)),
        _bullets(notes),
        _titled(tables.throughput(report)) if has_sweep else "",
        _titled(tables.loads(report)),
        _titled(tables.starts(report)),
        "## Accuracy",
        tables.judged_on(report),
        _titled(tables.accuracy(report)),
        _titled(tables.defects(report)),
        _titled(tables.detectability(report)),
        _bullets(tables.seen_from(report)),
        "## Against the reference",
        _bullets(report.reference_notes),
        tables.compared_on(report) if tables.drift(report).rows else "",
        _titled(tables.drift(report)),
        _titled(tables.flips(report)),
        "## Machine",
        _table(Table("", ["fact", "value"], list(tables.machine(report).items()), n_names=2)),
        _titled(tables.running(report)),
        _titled(tables.references(report)),
        "## What the figures mean" if ran else "",
        _bullets(f"{heading}: {meaning}" for heading, meaning in tables.meanings(report, View.TEXT).items()),
        "## How it was measured",
        _bullets(tables.method(report)),
        "## How to reproduce",
        f"```\n{report.reproduce}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(report: Report) -> Iterable[str]:
    found = report.recommendation
    if found is not None:
        verdict = "No bundle fits." if found.chosen is None else f"Put `{found.chosen}` on this device."
        yield f"**{verdict}** {_line(found.why)} The rule: {_line(found.rule)}."
    if report.interrupted_because is not None:
        yield f"**Not complete**: {report.interrupted_because}. All figures come from complete rounds."
    yield tables.summary(report)
    if found is not None:
        said = {each: "; ".join((*each.reasons, *each.caveats)) for each in found.judgements}
        yield _bullets(
            f"{each.bundle}: {'' if each.fits else 'does not fit: '}{words}" for each, words in said.items() if words
        )


def _legend(report: Report) -> str:
    legend = "In brackets: 95 % confidence intervals; percentiles with fewer than 10 samples beyond them have none."
    if report.baseline is not None:
        legend += f" The ratio is the p50 divided by that of {report.baseline}, paired by round."
    return legend


def _titled(table: Table) -> str:
    return f"{table.caption}:\n\n{_table(table)}" if table.rows else ""


def _table(table: Table) -> str:
    sides = ["---" if position < table.n_names else "---:" for position in range(len(table.headers))]
    lines = [[*map(_cell, table.headers)], sides, *([_cell(str(cell)) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Escape the bars in a text: they would end its cell."""
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_line(line)}" for line in lines)


def _quoted(lines: Sequence[str]) -> str:
    return "\n".join(f"> - {_line(line)}" for line in lines)
