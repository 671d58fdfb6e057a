"""The check of a Model API folder compares verdicts, and refuses what does not belong together."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.tiny_bundles import dark_image, make_bundle, move_threshold, spotted_image, write_image
from vae_edge.benchmarks.studies.model_api_check import compare
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError, UsageError
from vae_edge.export.model_api.folder import export_model_api, images_below
from vae_edge.targets import Target


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    pytest.importorskip("openvino")
    return make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO)


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    export_model_api(bundle, tmp_path / "toy-openvino-model-api-fp32")
    return tmp_path / "toy-openvino-model-api-fp32"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for seed in range(6):
        draw = spotted_image if seed % 3 == 0 else dark_image
        write_image(tmp_path / "parts" / f"{seed}.png", draw(seed, 30 + 20 * seed))
    return tmp_path / "parts"


def test_equal_verdicts_are_counted(bundle: Bundle, folder: Path, parts: Path) -> None:
    found = compare(bundle.folder, folder, images_below(parts))
    assert (found.n_images, found.n_anomalous, found.equal_verdicts) == (6, 2, 6)
    assert found.max_score_difference < 1e-6
    assert found.order_inversions == 0
    assert found.detector_ms > 0
    assert found.model_api_ms > 0


def test_it_runs_from_the_command_line(bundle: Bundle, folder: Path, parts: Path, tmp_path: Path) -> None:
    arguments = [bundle.folder, folder, "--data", parts, "--out", tmp_path / "found.json"]
    command = [sys.executable, "-m", "vae_edge.benchmarks.studies.model_api_check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "6 of 6" in result.stdout
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["equal_verdicts"] == 6


def test_what_does_not_belong_together_is_refused(bundle: Bundle, folder: Path, parts: Path) -> None:
    images = images_below(parts)
    with pytest.raises(InputError, match="no picture to judge"):
        compare(bundle.folder, folder, [])
    changed = move_threshold(bundle.manifest.thresholds, 0.9)
    bundle.with_manifest(bundle.manifest.model_copy(update={"thresholds": changed}))
    with pytest.raises(UsageError, match="fitted again after"):
        compare(bundle.folder, folder, images)


def test_without_model_api_it_cannot_be_opened_as_created(bundle: Bundle, folder: Path, parts: Path) -> None:
    if find_spec("model_api") is not None:
        pytest.skip("openvino-model-api is installed")
    with pytest.raises(UsageError, match="pip install openvino-model-api"):
        compare(bundle.folder, folder, images_below(parts), as_created=True)
