"""The rooms of the benchmarks: who may name whom, and what there is only one of."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def imported_by(module: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        found |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
        found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
    return found


@pytest.mark.parametrize(
    ("room", "above"),
    [("measure", ("report", "studies", "suite", "command")), ("report", ("studies", "suite", "command"))],
)
def test_a_room_knows_nothing_of_those_above_it(room: str, above: tuple[str, ...]) -> None:
    modules = list((BENCHMARKS / room).rglob("*.py"))
    assert len(modules) > 5
    for module in modules:
        names = imported_by(module)
        assert not [name for name in names if name.startswith(tuple(f"vae_edge.benchmarks.{each}" for each in above))]


def test_one_module_starts_processes_and_one_makes_pages() -> None:
    users = {name: set[str]() for name in ("subprocess", "jinja2")}
    for module in BENCHMARKS.rglob("*.py"):
        for name in users.keys() & imported_by(module):
            users[name].add(module.relative_to(BENCHMARKS).as_posix())
    assert users == {"subprocess": {"measure/process.py"}, "jinja2": {"report/html.py"}}
