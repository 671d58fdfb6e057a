from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import SIZE, dark_image, make_bundle, write_image
from vae_edge.benchmarks import bare_runtime
from vae_edge.benchmarks.overhead import Ratio
from vae_edge.benchmarks.overhead_worker import TASKS
from vae_edge.benchmarks.peers.environments import size_of
from vae_edge.bundle import Bundle
from vae_edge.targets import Target


@pytest.fixture(params=[Target.ONNX, Target.OPENVINO], ids=str)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    pytest.importorskip({Target.ONNX: "onnxruntime"}.get(request.param, str(request.param)))
    return make_bundle(tmp_path / "toy", request.param)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return [str(write_image(tmp_path / f"{seed}.jpg", dark_image(seed, 48))) for seed in range(3)]


def test_a_ratio_is_taken_round_by_round() -> None:
    ratio = Ratio("a / b", "ms", [1.0, 4.0, 3.0], [1.0, 2.0, 4.0], "at most 1.05", "quiet")
    assert ratio.ratios == [1.0, 2.0, 0.75]
    assert ratio.row() == "| a / b | 3.000 | 2.000 | ms | **1.000** (0.750 to 2.000) | at most 1.05 | quiet |"


def test_both_sides_are_timed_in_every_round(bundle: Bundle, pictures: list[str]) -> None:
    medians = TASKS["overhead"](bundle=str(bundle.folder), images=pictures, rounds=2, calls=5)
    assert list(medians) == ["bare", "predict", "bare_file", "predict_file"]
    assert all(len(values) == 2 and min(values) > 0 for values in medians.values())


def test_the_bare_runtime_gives_what_the_bundle_gives(bundle: Bundle) -> None:
    from vae_edge.detector import Detector

    image = dark_image(7)
    model = str(bundle.model_path)
    if bundle.manifest.target is Target.OPENVINO:
        found = bare_runtime.open_openvino(model, SIZE, SIZE)(image[None])
        score = found["score"][0]  # type: ignore[index]
    else:
        score = bare_runtime.open_onnxruntime(model, 1)(image[None])[1][0]  # type: ignore[index]
    with Detector.open(bundle) as detector:
        np.testing.assert_allclose(score, detector.predict(image).score, atol=1e-6)


def test_a_stream_is_counted_and_its_memory_read(bundle: Bundle, pictures: list[str]) -> None:
    found = TASKS["stream"](bundle=str(bundle.folder), images=pictures, seconds=0.1)
    assert found["images_per_s"] > 0
    peaks = TASKS["memory"](bundle=str(bundle.folder), images=pictures, counts=[5, 50])["peak_bytes"]
    assert list(peaks) == ["5", "50"]
    assert peaks["50"] is None or peaks["50"] >= peaks["5"] > 0


def test_every_layout_of_onnxruntime_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = make_bundle(tmp_path / "toy").model_path
    rates = bare_runtime.onnxruntime_throughputs(str(model), [dark_image(1)], 2, 0.05)
    assert len(rates) == 4
    assert min(rates.values()) > 0


def test_the_shortest_program_gives_a_result_without_this_package(bundle: Bundle) -> None:
    runtime = "openvino" if bundle.manifest.target is Target.OPENVINO else "onnxruntime"
    arguments = [runtime, str(bundle.model_path), str(SIZE), str(SIZE), "1"]
    done = subprocess.run(
        [sys.executable, bare_runtime.__file__, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == bare_runtime.FIRST_RESULT


def test_a_first_verdict_is_split(bundle: Bundle, pictures: list[str]) -> None:
    job = json.dumps({"bundle": str(bundle.folder), "image": pictures[0], "cache": False})
    command = [sys.executable, "-m", "vae_edge.benchmarks.overhead_worker", "first", job]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == bare_runtime.FIRST_RESULT
    assert set(json.loads(lines[1])) == {"import_s", "open_s", "predict_s"}


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123")
    assert size_of(tmp_path) == 8
    assert size_of(tmp_path / "none") == 0
