"""The packages of `train`: their imports point one way, and what need not load torch does not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).resolve().parents[2] / "train"
LAYERS = ("sample", "data", "model", "loop", "choice", "run", "anomalib", "api", "command", "__init__")
"""From the lowest; each may import those before it."""
WITHOUT_TORCH = ["choice.candidates", "choice.image_size", "command", "loop.settings", "loop.watcher"]
WITHOUT_TORCH += ["model.input_settings", "model.presets", "model.scoring", "run.folder", "run.metrics", "run.records"]


def modules(layer: str) -> list[Path]:
    return sorted((TRAIN / layer).rglob("*.py")) or [TRAIN / f"{layer}.py"]


def test_every_module_is_in_a_layer() -> None:
    assert {path for layer in LAYERS for path in modules(layer)} == set(TRAIN.rglob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down(layer: str) -> None:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    for module in modules(layer):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            name = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            assert not name.startswith(tuple(f"vae_edge.train.{each}" for each in above)), (module, name)


def test_what_serves_help_and_reading_loads_no_torch() -> None:
    low = [f"{path.parent.name}.{path.stem}" for layer in ("sample", "data") for path in modules(layer)]
    names = ", ".join(f"vae_edge.train.{name}" for name in (*low, *WITHOUT_TORCH))
    code = f"import sys, {names}; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
