"""The rooms of the benchmarks: what there is only one of; `lint-imports` holds who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def imported_by(module: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        found |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
        found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
    return found


def test_one_module_starts_processes_and_one_makes_pages() -> None:
    users = {name: set[str]() for name in ("subprocess", "jinja2")}
    for module in BENCHMARKS.rglob("*.py"):
        for name in users.keys() & imported_by(module):
            users[name].add(module.relative_to(BENCHMARKS).as_posix())
    assert users == {"subprocess": {"measure/process.py"}, "jinja2": {"report/pages/html.py"}}
