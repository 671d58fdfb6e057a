"""INT8 on an x86 processor that adds 8-bit products up in 16 bits: emulated, by the user-mode emulation of QEMU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.selfcheck.bundle_check import reference_images
from vae_edge.selfcheck.shipped import unpack_bundles

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")

RUN = """
import sys
import numpy as np
import onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = 1
settings.add_session_config_entry("session.x64quantprecision", sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
for image in np.load(sys.argv[2]):
    print(float(session.run([session.get_outputs()[-1].name], {name: image[None]})[0].ravel()[0]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="needs QEMU's emulation of processors: apt-get install qemu-user-static"),
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="emulates an x86 by another"),
]


def emulated(model: Path, images: np.ndarray, entry: str, folder: Path) -> list[float]:
    """Return the first value of the last output for each image, on a processor with AVX2 and without VNNI."""
    assert QEMU is not None
    np.save(folder / "images.npy", images)
    python = [QEMU, "-cpu", "Haswell", str(Path(sys.executable).resolve()), "-c", RUN]
    done = subprocess.run(
        [*python, str(model), str(folder / "images.npy"), entry],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [float(each) for each in done.stdout.split()]


def write_convolution_with_large_sums(path: Path) -> None:
    """Write a model in INT8 whose output is 64 * 127 for an image of ones."""
    weights = np.full((16, 64, 1, 1), 127, np.int8)
    constants = {
        "step": np.float32(1 / 255),
        "zero": np.uint8(0),
        "w": weights,
        "w_step": np.ones(16, np.float32),
        "w_zero": np.zeros(16, np.int8),
        "out_step": np.float32(64),
    }
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["image", "step", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["x"]),
        onnx.helper.make_node("DequantizeLinear", ["w", "w_step", "w_zero"], ["weight"], axis=0),
        onnx.helper.make_node("Conv", ["x", "weight"], ["y"]),
        onnx.helper.make_node("QuantizeLinear", ["y", "out_step", "zero"], ["yq"]),
        onnx.helper.make_node("DequantizeLinear", ["yq", "out_step", "zero"], ["score"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "large sums",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 64, 8, 8])],
        [onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, [1, 16, 8, 8])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def test_large_sums_are_exact_with_the_entry_and_saturate_without_it(tmp_path: Path) -> None:
    model, image = tmp_path / "model.onnx", np.ones((1, 64, 8, 8), np.float32)
    write_convolution_with_large_sums(model)
    exact = 64 * 127
    assert emulated(model, image, "1", tmp_path) == pytest.approx([exact], abs=32)
    assert emulated(model, image, "0", tmp_path)[0] < 0.8 * exact  # So the emulated processor is one in question.


def test_scores_are_those_of_a_processor_with_vnni(tmp_path: Path) -> None:
    folder = next(each for each in unpack_bundles(tmp_path) if "feature" in each.name and "onnx-int8" in each.name)
    bundle = Bundle.open(folder)
    images = reference_images(bundle)[:3]
    with Detector.open(bundle, device="cpu") as detector:
        expected = [detector.predict(image).score for image in images]
    assert emulated(folder / "model.onnx", np.stack(images), "1", tmp_path) == pytest.approx(expected, rel=1e-5)
