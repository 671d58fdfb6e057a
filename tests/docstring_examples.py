"""The examples in the product's docstrings, run as tests of the package that they are in."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def modules_with_examples(folder: str) -> list[str]:
    """Return the names to import of the modules in a top-level folder whose docstrings have examples.

    Args:
        folder: `vae_edge`, `train`, `export` or `benchmarks`.
    """
    prefix = "" if folder == "vae_edge" else "vae_edge."
    return [
        prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ]


def run_examples(module: str) -> None:
    """Run the examples of a module; what they give instead of what they show is printed.

    Raises:
        AssertionError: an example gives something else, or none was found.
    """
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0
