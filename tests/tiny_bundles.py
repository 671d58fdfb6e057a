"""Makes real bundles of a few kilobytes: the graph's inputs and outputs with a toy in the place of the network.

The toy calls bright what is anomalous: its map is the picture's mean over the colours, smoothed by a 3x3 box and scaled
to 0-1; its score is the map's largest value. So a dark picture is normal, and a picture with a white spot is anomalous.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import vae_edge
from vae_edge.agreement import Outputs
from vae_edge.bundle import Bundle, new_bundle
from vae_edge.decision import fit_thresholds
from vae_edge.detectability import CONTRASTS, Detectability, FoundByKind, FoundBySize
from vae_edge.export.references import BundleReferences, Pictures, TrainedReferences
from vae_edge.gate import GateRecord
from vae_edge.gate_fitting import fit_gate
from vae_edge.gate_measures import measure_picture
from vae_edge.image import Preparation
from vae_edge.manifest import (
    MANIFEST_FILE,
    Manifest,
    Provenance,
    RuntimeRecord,
    Thresholds,
    graph_inputs,
    graph_outputs,
)
from vae_edge.manifest_file import manifest_text
from vae_edge.records import file_record
from vae_edge.reference_file import REFERENCES_FILE, ReferenceKind, Size
from vae_edge.targets import SUPPORTED, Precision, Target

SIZE = 32
TARGETS = (Target.ONNX, Target.OPENVINO, Target.TORCH)


def toy_outputs(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the toy's maps, float32 [N, 32, 32], and scores, float32 [N], with NumPy alone."""
    grey = images.astype(np.float64).mean(axis=3) / 255
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)))
    maps = np.mean([padded[:, y : y + SIZE, x : x + SIZE] for y in range(3) for x in range(3)], axis=0)
    return maps.astype(np.float32), maps.max(axis=(1, 2)).astype(np.float32)


def dark_image(seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    """Draw a normal picture, uint8 [size, size, 3]: dark noise."""
    return np.random.default_rng(seed).integers(0, 80, (size, size, 3), dtype=np.uint8)


def spotted_image(seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    """Draw an anomalous picture: dark noise with a white spot."""
    image = dark_image(seed, size)
    image[size // 4 : size // 2, size // 4 : size // 2] = 255
    return image


def write_image(path: Path, image: NDArray[Any]) -> Path:
    """Write an RGB or grey picture in the format of the path's ending."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, pixels)
    assert done
    path.write_bytes(data.tobytes())
    return path


def make_bundle(
    folder: Path,
    target: Target = Target.ONNX,
    *,
    n_normals: int = 99,
    verified: bool = True,
    max_batch: int | None = None,
    detectability: Detectability | None = None,
    gate: GateRecord | None = None,
) -> Bundle:
    """Write a tiny bundle for one target and open it."""
    with new_bundle(folder) as temporary:
        names = [SUPPORTED[target].model_file, *SUPPORTED[target].other_files]
        for name, content in zip(names, _model_files(target), strict=True):
            (temporary / name).write_bytes(content)
        toy_references(n_normals).file.write(temporary / REFERENCES_FILE)
        names.append(REFERENCES_FILE)
        manifest = make_manifest(
            target, [temporary / name for name in names], n_normals=n_normals, verified=verified, max_batch=max_batch
        ).model_copy(update={"detectability": detectability, "gate": gate})
        (temporary / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")
    return Bundle.open(folder)


@cache
def toy_gate(n_normals: int = 99) -> GateRecord:
    """Return the gate that is learnt from the toy's normals."""
    gate = fit_gate([measure_picture(dark_image(seed)) for seed in range(n_normals)], is_aligned=False)
    assert gate is not None
    return gate


def make_manifest(
    target: Target, files: Sequence[Path], *, n_normals: int = 99, verified: bool = True, max_batch: int | None = None
) -> Manifest:
    """Return a valid manifest for a toy whose files, `toy_references` among them, lie where `files` says."""
    return Manifest(
        name=f"toy-{target}-fp32",
        target=target,
        precision=Precision.FP32,
        model_file=SUPPORTED[target].model_file,
        runtime=RuntimeRecord(flavour=str(target), version="1.0", details={"opset": "17"}),
        inputs=graph_inputs(SIZE, SIZE),
        outputs=graph_outputs(SIZE, SIZE),
        max_batch=max_batch,
        preparation=Preparation(height=SIZE, width=SIZE),
        scoring="brightness, smoothed; the largest value",
        thresholds=_thresholds(n_normals),
        references=toy_references(n_normals).record,
        verified=verified,
        not_verified_because=None if verified else "there was no such device",
        files=tuple(file_record(path) for path in files),
        provenance=Provenance(
            created_utc="2026-01-01T00:00:00Z",
            vae_edge_version=vae_edge.__version__,
            run="toy",
            run_fingerprint="0" * 64,
            data_fingerprint="1" * 64,
            library_versions={"numpy": np.__version__},
        ),
    )


@cache
def _thresholds(n_normals: int) -> Thresholds:
    maps, scores = toy_outputs(np.stack([dark_image(seed) for seed in range(n_normals)]))
    return fit_thresholds(scores, maps, scored_by="NumPy")


@cache
def toy_references(n_normals: int = 99, precision: Precision = Precision.FP32) -> BundleReferences:
    """Return three dark and three spotted pictures with what the toy gives for them, on a processor of its own."""
    images = [draw(seed) for seed in range(2000, 2003) for draw in (dark_image, spotted_image)]
    pictures = Pictures.encode(images, ReferenceKind.DRAWN, "dark and spotted noise", Size(SIZE, SIZE))
    threshold = _thresholds(n_normals).image_threshold

    def run(images: NDArray[np.uint8]) -> Outputs:
        return Outputs(*toy_outputs(images))

    trained = TrainedReferences.measure(pictures, run, threshold=threshold, computed_by="NumPy")
    return trained.bundle_references(
        trained.outputs, image_threshold=threshold, precision=precision, ran=("NumPy", "cpu")
    )


def example_detectability(found_at_high: int | None = None) -> Detectability:
    """A table of pasted defects as a run finds them: all at 16 %, hardly any at 1 %; or so many at high contrast."""
    shares = {0.01: (0, 0, 1), 0.02: (0, 2, 5), 0.04: (1, 5, 10), 0.08: (4, 9, 12), 0.16: (9, 12, 12)}
    return Detectability(
        height=256,
        width=320,
        threshold=3.2,
        normals="good parts that set the threshold",
        n_normals=24,
        n_false_alarms=1,
        by_size=tuple(
            FoundBySize(size=size, contrast=contrast, n=12, n_found=n_found)
            for size, found in shares.items()
            for contrast, n_found in zip(CONTRASTS, (*found[:2], found_at_high or found[2]), strict=True)
        ),
        by_kind=tuple(
            FoundByKind(kind=kind, size=size, n=18, n_found=sum(found) // 2)
            for kind in ("blob", "break")
            for size, found in shares.items()
        ),
    )


def move_threshold(thresholds: Thresholds, image_threshold: float) -> Thresholds:
    """Return conformal thresholds with another image threshold and calibration scores that it follows from."""
    old = thresholds.image_threshold
    scores = [
        min(score - old, 0.0) + image_threshold if score <= old else max(score - old + image_threshold, image_threshold)
        for score in thresholds.calibration_scores
    ]
    return thresholds.model_copy(
        update={"image_threshold": image_threshold, "calibration_scores": tuple(sorted(scores))}
    )


@cache
def _model_files(target: Target) -> tuple[bytes, ...]:
    if target is Target.ONNX:
        return (toy_onnx(),)
    if target is Target.OPENVINO:
        return _toy_openvino()
    return _toy_torch()


def toy_onnx() -> bytes:
    """Return the toy as ONNX: uint8 NHWC, cast, transpose, one convolution, a maximum."""
    from onnx import TensorProto, checker, helper, numpy_helper

    kernel = np.full((1, 3, 3, 3), 1 / (27 * 255), dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["smooth"], pads=[1, 1, 1, 1]),
        helper.make_node("Squeeze", ["smooth", "one"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map"], ["score"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", SIZE, SIZE]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _toy_openvino() -> tuple[bytes, ...]:
    import openvino

    with TemporaryDirectory() as folder:
        source, xml = Path(folder, "toy.onnx"), Path(folder, "model.xml")
        source.write_bytes(_model_files(Target.ONNX)[0])
        openvino.save_model(openvino.Core().read_model(source), xml, compress_to_fp16=False)
        return xml.read_bytes(), xml.with_suffix(".bin").read_bytes()


def _toy_torch() -> tuple[bytes, ...]:
    from safetensors.numpy import save

    kernel = np.full((1, 3, 3, 3), 1 / (27 * 255), dtype=np.float32)
    return json.dumps(torch_program()).encode(), save({"kernel": kernel})


def torch_program() -> dict[str, Any]:
    """Return the toy as the content of `program.json`."""

    def node(name: str) -> dict[str, str]:
        return {"node": name}

    operators: list[tuple[str, str, list[Any]]] = [
        ("float", "aten.to.dtype", [node("image"), {"dtype": "float32"}]),
        ("planes", "aten.permute.default", [node("float"), [0, 3, 1, 2]]),
        ("smooth", "aten.conv2d.default", [node("planes"), node("kernel"), None, [1, 1], [1, 1]]),
        ("map", "aten.flatten.using_ints", [node("smooth"), 1, 2]),
        ("flat", "aten.flatten.using_ints", [node("map"), 1]),
        ("top", "aten.topk.default", [node("flat"), 1, 1]),
        ("values", "getitem", [node("top"), 0]),
        ("score", "aten.mean.dim", [node("values"), [1]]),
    ]
    nodes: list[dict[str, Any]] = [{"name": "kernel", "tensor": "kernel"}]
    nodes += [{"name": name, "op": operator, "args": args} for name, operator, args in operators]
    return {"format": 1, "inputs": ["image"], "outputs": ["map", "score"], "nodes": nodes}
