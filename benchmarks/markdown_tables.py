"""Tables and cells of GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from vae_edge.benchmarks.formats import ABSENT

_MOST_NAMES = 10


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: names to the left, numbers to the right."""
    lines = ["| " + " | ".join(map(cell, header)) + " |"]
    numeric = [
        all(row[i][:1].isdigit() or row[i] == ABSENT for row in rows) and any(row[i] != ABSENT for row in rows)
        for i in range(len(header))
    ]
    lines.append("|" + "|".join("---:" if is_number else "---" for is_number in numeric) + "|")
    lines += ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Keep a text in its cell: a line break or a bar would end it."""
    return " ".join(text.split()).replace("|", "\\|")


def names(found: Sequence[str]) -> str:
    """Return names as code, a few of them where there are many."""
    more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
    return ", ".join(f"`{name}`" for name in found[:_MOST_NAMES]) + more


def bullets(lines: Sequence[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {cell(line)}" for line in lines)
