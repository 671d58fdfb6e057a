"""Every example is run as a user would run it, on tiny bundles and pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle, spotted_image, write_image
from vae_edge import Detector
from vae_edge.bundle import Bundle
from vae_edge.targets import Target

EXAMPLES = Path(__file__).parent
ROOT = EXAMPLES.parents[1]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment, check=False, timeout=300
    )


def pictures_of_every_kind(folder: Path) -> list[Path]:
    """Normal and anomalous pictures that shrink, grow, do both, or keep their size; grey, and with 16 bits."""
    sizes = [(32, 32), (64, 64), (33, 97), (20, 20), (20, 200), (301, 17)]
    paths = []
    for seed, (height, width) in enumerate(sizes):
        for kind, draw in (("dark", dark_image), ("spotted", spotted_image)):
            image = draw(seed, 320)[:height, :width]
            paths.append(write_image(folder / f"{kind}-{seed}.png", image))
    paths.append(write_image(folder / "grey.png", dark_image(50, 80)[:, :, 0]))
    paths.append(write_image(folder / "deep.png", dark_image(51, 80).astype(np.uint16) * 257))
    paths.append(write_image(folder / "photo.jpg", spotted_image(52, 90)))
    return paths


@pytest.mark.slow
def test_training_from_a_program(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from vae_edge.train import RunFolder
    from vae_edge.train.sample import SampleSettings, write_sample_set

    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=2, n_test_per_defect=1)
    pictures = write_sample_set(tmp_path, ["dial"], sizes)[0]
    result = run(sys.executable, EXAMPLES / "train_from_program.py", pictures, tmp_path / "runs" / "dial", 2)
    assert result.returncode == 0, result.stderr
    assert "image AUROC" in result.stdout
    opened = RunFolder.open(tmp_path / "runs" / "dial")
    assert opened.record.settings.trainer == {"gradient_clip_val": 1.0}
    assert opened.record.training.ended_by == "epochs"


def test_a_camera_loop_finds_the_anomalous_frame(tmp_path: Path, onnx_bundle: Bundle) -> None:
    # OpenCV reads numbered pictures as a video.
    for number in range(6):
        write_image(tmp_path / "frames" / f"{number:03d}.png", (spotted_image if number == 4 else dark_image)(number))
    result = run(sys.executable, EXAMPLES / "camera_loop.py", onnx_bundle.folder, tmp_path / "frames" / "%03d.png")
    assert result.returncode == 0, result.stderr
    assert [line.split(",")[0] for line in result.stdout.splitlines()] == ["frame 4: anomalous", "1 anomalous frames"]


def test_a_pool_of_workers_gives_the_detectors_verdicts_in_order(tmp_path: Path, onnx_bundle: Bundle) -> None:
    pictures = pictures_of_every_kind(tmp_path / "pictures")
    result = run(sys.executable, EXAMPLES / "worker_pool.py", onnx_bundle.folder, *pictures)
    assert result.returncode == 0, result.stderr
    with Detector.open(onnx_bundle.folder, hint="latency") as detector:
        expected = [
            f"{path}\t{'anomalous' if prediction.is_anomalous else 'normal'}\t{prediction.score:.4f}"
            for path, prediction in ((path, detector.predict(path)) for path in pictures)
        ]
    assert result.stdout.splitlines() == expected
    assert len({line.split("\t")[1] for line in expected}) == 2


@pytest.fixture(scope="module")
def cpp_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = pytest.importorskip("openvino")
    needed = ["cmake", "c++"]
    headers = [Path("/usr/include/opencv4/opencv2/imgcodecs.hpp"), Path("/usr/include/nlohmann/json.hpp")]
    missing = [name for name in needed if shutil.which(name) is None] + [str(h) for h in headers if not h.exists()]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"{', '.join(missing)} not installed; tests/examples/cpp/CMakeLists.txt names Debian's packages")
    build = tmp_path_factory.mktemp("cpp")
    cmake_files = Path(openvino.__file__).parent / "cmake"
    configured = run("cmake", "-S", EXAMPLES / "cpp", "-B", build, f"-DOpenVINO_DIR={cmake_files}")
    assert configured.returncode == 0, configured.stderr
    built = run("cmake", "--build", build)
    assert built.returncode == 0, built.stdout + built.stderr
    return build / "verdict"


def test_the_cpp_program_gives_the_detectors_verdicts(tmp_path: Path, cpp_program: Path) -> None:
    bundle = make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO)
    pictures = pictures_of_every_kind(tmp_path / "pictures")
    result = run(cpp_program, bundle.folder, *pictures)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    with Detector.open(bundle.folder, hint="latency") as detector:
        expected = [detector.predict(path) for path in pictures]
    assert [line["is_anomalous"] for line in lines] == [prediction.is_anomalous for prediction in expected]
    assert {prediction.is_anomalous for prediction in expected} == {True, False}
    for line, path, prediction in zip(lines, pictures, expected, strict=True):
        assert line["source"] == str(path)
        # Two builds of OpenCV decode a JPEG to values that differ by 1 here and there; a PNG they decode alike.
        tolerance = 2 / 255 if path.suffix == ".jpg" else 1e-6
        assert line["score"] == pytest.approx(prediction.score, abs=tolerance), path
        assert line["threshold"] == prediction.threshold
        if path.suffix != ".jpg":
            assert line["p_value"] == pytest.approx(prediction.p_value)


def test_the_cpp_program_says_what_it_cannot_do(tmp_path: Path, cpp_program: Path) -> None:
    bundle = make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO)
    assert run(cpp_program).returncode == 2
    for other in (tmp_path / "nothing", make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX).folder):
        refused = run(cpp_program, other, "x.png")
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ")
    (tmp_path / "broken.png").write_text("no picture")
    good = write_image(tmp_path / "good.png", dark_image(0))
    result = run(cpp_program, bundle.folder, tmp_path / "broken.png", good)
    assert result.returncode == 1
    first, second = map(json.loads, result.stdout.splitlines())
    assert "cannot be read" in first["error"]
    assert second["is_anomalous"] is False
