from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vae_edge.backends.tensorrt.build import EngineSettings
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.base import Source, TargetExporter, open_exporter
from vae_edge.targets import SUPPORTED, Precision, Target

EXPORT = Path(__file__).resolve().parents[3] / "export"
IMAGES = np.zeros((1, 32, 32, 3), np.uint8)


def source(program: Any = None) -> Source:
    return Source(program, Path("nothing.onnx"), {}, EngineSettings(max_batch=5), lambda what, done, total: None)


@pytest.mark.parametrize("target", Target)
def test_every_row_of_the_table_has_its_module(target: Target) -> None:
    exporter = open_exporter(target, source())
    assert exporter.target is target
    assert type(exporter).__module__ == f"vae_edge.export.targets.{target}_target"
    assert exporter.max_batch == (5 if SUPPORTED[target].backend.startswith("vae_edge.backends.tensorrt") else None)


@pytest.mark.parametrize("target", Target)
def test_a_target_quantizes_where_the_table_has_int8(target: Target) -> None:
    exporter = type(open_exporter(target, source()))
    assert (exporter.quantize is not TargetExporter.quantize) == (Precision.INT8 in SUPPORTED[target].precisions)
    assert (exporter.simulate is not TargetExporter.simulate) == (exporter.simulated_by is not None)


def test_what_a_target_does_not_do_says_so() -> None:
    exporter = open_exporter(Target.TORCH, source())
    with pytest.raises(NotImplementedError, match="no int8 for torch"):
        exporter.quantize(IMAGES, Estimator.MIN_MAX)
    with pytest.raises(NotImplementedError, match="nothing simulates torch"):
        exporter.simulate(Path(), IMAGES)


@pytest.mark.parametrize("module", ["pipeline.py", "low_precision.py", "trained_model.py", "parity.py"])
def test_nothing_between_a_run_and_its_bundles_asks_which_target_it_has(module: str) -> None:
    tree = ast.parse((EXPORT / module).read_text(encoding="utf-8"))
    named = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Target"
    ]
    assert named == []
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    # onnx_target also holds the tracing and the ONNX file that all others are made from.
    allowed = {"vae_edge.export.targets.base", "vae_edge.export.targets.onnx_target"}
    assert {name for name in imported if name.startswith("vae_edge.export.targets")} <= allowed


ORDER = ("command", "pipeline", "low_precision", "targets", "quantization", "calibration", "trained_model", "settings")
"""What may import what stands behind it, and nothing before it."""


def test_imports_between_the_parts_of_the_export_point_one_way() -> None:
    for path in sorted(EXPORT.rglob("*.py")):
        part = path.relative_to(EXPORT).with_suffix("").parts[0]
        if part not in ORDER:
            continue
        above = tuple(f"vae_edge.export.{name}" for name in ORDER[: ORDER.index(part)])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith(above), (path, node.module)
