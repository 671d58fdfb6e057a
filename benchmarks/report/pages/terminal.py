"""The report in the terminal: everything at 120 columns, the essentials at 80."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vae_edge.benchmarks.report.figures import ABSENT, FIGURES, NOT_STABLE, Number, View, figures, three_digits
from vae_edge.benchmarks.report.pages.tables import Cell, overview
from vae_edge.benchmarks.report.records.report import Report

_LONGEST_NAME = 28

WIDE = 116
"""Columns from which the whole table is shown."""


def result_table(report: Report, width: int) -> Table:
    """Return one row for each bundle, as many columns as `width` has room for.

    Bundles that did not run have their reason below the table, see `reasons`.
    """
    found = overview(report, View.TEXT if width >= WIDE else View.NARROW)
    first = figures(View.NARROW)[0].heading
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, header_style="bold", show_edge=False)
    # A name is worth more than the width of a number's column, up to a point.
    table.add_column(
        "bundle", overflow="fold", min_width=min(max(len(str(row[0])) for row in found.rows), _LONGEST_NAME)
    )
    for header in found.headers[1:]:
        table.add_column(_two_lines(header), justify="right", no_wrap=True)
        if header == first:
            table.add_column("±", justify="right", no_wrap=True)
    ran = {bundle.name for bundle in report.bundles if bundle.has_run}
    for name, *cells in found.rows:
        texts: list[str] = []
        for header, cell in zip(found.headers[1:], cells, strict=True):
            texts.append(_short(cell))
            if header == first:
                texts.append(_half_width(cell))
        table.add_row(Text(str(name), style="" if name in ran else "dim"), *texts)
    return table


def reasons(report: Report) -> list[str]:
    """Return a line for each bundle that did not run."""
    return [f"{bundle.name} did not run: {bundle.not_run_because}" for bundle in report.bundles if not bundle.has_run]


def verdict_lines(report: Report) -> list[str]:
    """Return the recommendation: what to ship, why, by which rule, and why not the others."""
    found = report.recommendation
    if found is None:
        return []
    lines = [f"{'No bundle fits.' if found.chosen is None else f'Put {found.chosen} on this device.'} {found.why}"]
    lines.append(f"Rule: {found.rule}.")
    for judgement in found.judgements:
        if not report.bundle(judgement.bundle).has_run:
            continue
        said = "; ".join((*judgement.reasons, *judgement.caveats))
        if said:
            lines.append(f"  {judgement.bundle}: {'' if judgement.fits else 'does not fit: '}{said}")
    return lines


def is_unstable(report: Report) -> bool:
    """Return whether a `~` in the table marks a latency whose samples show that it is unstable."""
    return any(FIGURES["p50_ms"].number(bundle).note == NOT_STABLE for bundle in report.bundles)


def _short(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return {"reference": "ref", "baseline": "base"}.get(cell.text, cell.text) + "~" * (cell.note == NOT_STABLE)


def _half_width(cell: Cell) -> str:
    """Return the larger distance from a value to an end of its interval."""
    if not isinstance(cell, Number) or cell.value is None or cell.interval is None:
        return ABSENT
    return three_digits(max(cell.interval.high - cell.value, cell.value - cell.interval.low))


def _two_lines(heading: str) -> str:
    """Break a heading so that its longer half is as short as possible."""
    words = heading.split()
    splits = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(len(words) + 1)]
    return "\n".join(min(splits, key=lambda split: max(map(len, split))))
