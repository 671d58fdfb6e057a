"""Steps on TensorRT's operators: one small graph for each that has made trouble on some device, with stored answers.

The graphs and answers are made by `tests/vae_edge/selfcheck/make_constructs.py`. Each is built the way a bundle's model
is, and run by the backend that runs bundles.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.gpus import Gpu, find_gpus
from vae_edge.backends.tensorrt.build import BuiltPlan, EngineSettings, build_plan
from vae_edge.backends.tensorrt.module import find_tensorrt
from vae_edge.backends.tensorrt_backend import TensorRtBackend
from vae_edge.errors import BundleError, DeviceError
from vae_edge.manifest import TensorSpec
from vae_edge.platform.atomic import scratch_folder
from vae_edge.selfcheck.record import StepResult, Verdict
from vae_edge.selfcheck.shipped import CONSTRUCTS_FILE, INDEX_NAME

_SETTINGS = EngineSettings(max_batch=2, workspace_bytes=64 << 20)


@dataclass(frozen=True)
class Construct:
    """One graph: uint8 `image` [N, H, W, 3] in, float32 `y` [N, ...] out."""

    name: str
    title: str
    tolerance: float
    """Largest difference from the answers, as a share of their largest absolute value."""
    onnx: bytes
    images: NDArray[np.uint8]
    answers: NDArray[np.float32]
    """Computed by ONNX Runtime in the same types."""


def construct_titles(file: Path = CONSTRUCTS_FILE) -> dict[str, str]:
    """Return the names of the constructs, each with what it is.

    Raises:
        BundleError: the file is missing or damaged.
    """
    return {name: each["title"] for name, each in _read(file, _index).items()}


def read_construct(name: str, file: Path = CONSTRUCTS_FILE) -> Construct:
    """Read one construct.

    Raises:
        BundleError: the file is missing or damaged.
    """

    def read(archive: zipfile.ZipFile) -> Construct:
        described = _index(archive)[name]
        images, answers = (
            np.load(io.BytesIO(archive.read(f"{name}.{part}.npy")), allow_pickle=False)
            for part in ("images", "answers")
        )
        tolerance = float(described["tolerance"])
        return Construct(name, described["title"], tolerance, archive.read(f"{name}.onnx"), images, answers)

    construct: Construct = _read(file, read)
    return construct


def check_construct(arguments: dict[str, Any]) -> StepResult:
    """Build one construct, run it where there is a GPU, and compare.

    Args:
        arguments: `name`.

    Raises:
        DeviceError: TensorRT cannot read, build or run it.
        MissingDependencyError: TensorRT is not installed.
    """
    construct = read_construct(str(arguments["name"]))
    with scratch_folder("selfcheck") as folder:
        onnx = Path(folder, "model.onnx")
        onnx.write_bytes(construct.onnx)
        built, seconds, gpu = build(onnx, _SETTINGS)
        facts: dict[str, Any] = {"build_s": seconds, **built.record.details}
        line = f"built in {seconds:.1f} s by {built.record.flavour} {built.record.version}"
        if gpu is None:
            return StepResult(verdict=Verdict.SKIPPED, reason=f"{line}; there is no GPU to run it on", facts=facts)
        outputs = _run(Path(folder, "model.engine"), built.content, construct)
    return _compared(construct, outputs, line, facts)


def build(onnx: Path, settings: EngineSettings) -> tuple[BuiltPlan, float, Gpu | None]:
    """Build an engine; without a GPU where TensorRT needs none for that.

    Returns:
        The engine, the seconds that it took, and the first GPU, or None.

    Raises:
        DeviceError: it cannot be built, or not without a GPU.
        MissingDependencyError: TensorRT is not installed.
    """
    module = find_tensorrt()
    try:
        gpu = find_gpus()[0]
    except DeviceError:
        if module.flavour.module != "tensorrt_rtx":
            raise
        gpu = None
    started = time.perf_counter()
    built = build_plan(onnx, settings, module, gpu)
    return built, time.perf_counter() - started, gpu


def _run(engine: Path, content: bytes, construct: Construct) -> NDArray[np.float32]:
    engine.write_bytes(content)
    image = TensorSpec(name="image", dtype="uint8", shape=(None, *construct.images.shape[1:]))
    answer = TensorSpec(name="y", dtype="float32", shape=(None, *construct.answers.shape[1:]))
    options = RuntimeOptions(rebuild=False)
    with TensorRtBackend(engine, (image,), (answer,), max_batch=_SETTINGS.max_batch, options=options) as backend:
        outputs = [backend.run({"image": construct.images[i : i + 1]})["y"] for i in range(len(construct.images))]
    return np.concatenate(outputs)


def _compared(construct: Construct, outputs: NDArray[np.float32], line: str, facts: dict[str, Any]) -> StepResult:
    scale = float(np.abs(construct.answers).max())
    with np.errstate(invalid="ignore"):
        share = float(np.abs(outputs.astype(np.float64) - construct.answers).max()) / scale
    facts |= {"largest_difference": share if np.isfinite(share) else None, "tolerance": construct.tolerance}
    found = f"largest difference {share:.2e} of the largest value (at most {construct.tolerance:.0e})"
    if np.isfinite(outputs).all() and share <= construct.tolerance:
        return StepResult(verdict=Verdict.OK, lines=(line, found), facts=facts)
    if not np.isfinite(outputs).all():
        found = f"{np.count_nonzero(~np.isfinite(outputs))} of {outputs.size} values are not finite numbers"
    return StepResult(verdict=Verdict.DIFFERS, reason=found, lines=(line,), facts=facts)


def _index(archive: zipfile.ZipFile) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(archive.read(INDEX_NAME))
    return index


def _read(file: Path, read: Callable[[zipfile.ZipFile], Any]) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            return read(archive)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"the graphs in {file} cannot be read ({error}); install vae-edge again") from error
