"""The study of instruction sets: with bundles that are shipped, whose outputs are the same, and on bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import make_bundle, write_image
from vae_edge.benchmarks.studies.instruction_sets import study
from vae_edge.errors import InputError
from vae_edge.selfcheck.shipped import unpack_bundles
from vae_edge.targets import Target


def test_every_bundle_has_a_row_for_each_instruction_set(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folders = [each for each in unpack_bundles(tmp_path / "shipped") if each.name == "tiles-openvino-int8"]
    rng = np.random.default_rng(0)
    for number in range(3):
        write_image(tmp_path / f"pictures/{number}.png", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    rows = list(study(folders, tmp_path / "pictures", ("AVX2", "AVX512_CORE")))
    assert [(row.bundle, row.level, row.n_images) for row in rows] == [
        ("tiles-openvino-int8", "AVX2", 3),
        ("tiles-openvino-int8", "AVX512_CORE", 3),
    ]
    assert all(row.n_other_verdicts == row.n_moved == 0 for row in rows)
    assert all(row.score < 1e-5 and row.block < 1e-5 for row in rows)


def test_a_bundle_for_another_target_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    write_image(tmp_path / "pictures/0.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="was given; expected bundles for target openvino"):
        list(study([bundle.folder], tmp_path / "pictures"))
    with pytest.raises(InputError, match="there is no image"):
        list(study([bundle.folder], tmp_path / "toy"))
