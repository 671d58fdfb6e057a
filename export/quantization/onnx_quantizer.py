"""INT8 in an ONNX file: the ranges of the network's values on calibration images, and the model made with them.

One implementation serves every target that uses ranges. ONNX Runtime's own calibrators are not used: they print, keep
every tensor of every image of a call in memory, and its entropy calibrator starts with as many bins as there are
quantized levels, so that it can only choose the full range.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_edge.agreement import Outputs, run_backend, run_each
from vae_edge.backends.base import open_backend
from vae_edge.errors import InputError, MissingDependencyError
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.quantization.onnx_network import network_nodes, quantizable_layers
from vae_edge.export.settings import Estimator
from vae_edge.manifest import graph_inputs, graph_outputs
from vae_edge.platform.atomic import scratch_folder
from vae_edge.platform.telemetry import import_onnxruntime
from vae_edge.platform.work import Progress
from vae_edge.targets import Target

N_BINS = 2048
"""Bins of the histograms of absolute values, as TensorRT's entropy calibration has them."""
_N_LEVELS = 128
"""Magnitudes that a symmetric INT8 tensor can have."""
_CUT_STEP = 8
"""Bins between the cuts that entropy compares: 0.4 % of the range, half a quantization step."""
_BATCH = 4

PERCENTILE = 99.99
"""Share of the absolute values that `Estimator.PERCENTILE` keeps, in per cent."""


@dataclass(frozen=True)
class Ranges:
    """Smallest and largest value to represent, by the tensor's name. Zero is always inside."""

    estimator: Estimator
    n_images: int
    bounds: Mapping[str, tuple[float, float]]

    def of(self, tensor: str) -> tuple[float, float]:
        """Return a tensor's range.

        Raises:
            InputError: the tensor was not measured.
        """
        if tensor not in self.bounds:
            raise InputError(f"there is no range for {tensor!r}; measure the ranges on the model to quantize")
        return self.bounds[tensor]

    def largest(self, tensor: str) -> float:
        """Return the largest absolute value of a tensor's range.

        Raises:
            InputError: the tensor was not measured.
        """
        return max(map(abs, self.of(tensor)))


def activation_ranges(
    model: onnx.ModelProto,
    images: NDArray[np.uint8],
    estimator: Estimator,
    progress: Progress | None = None,
) -> Ranges:
    """Run the FP32 model over calibration images and estimate the range of every tensor that the network computes.

    A few images at a time: no tensor outlives its batch. `PERCENTILE` and `ENTROPY` take two passes, the first of
    which finds the histograms' limits, so that the result does not depend on the images' order.

    Args:
        model: the FP32 graph that will be quantized, after `rewrite_transposed_convolutions` where that is used.
        images: uint8 [n, H, W, 3], prepared, normal.
        estimator: how a range follows from the values.
        progress: receives the images done and their total, over both passes.

    Raises:
        InputError: there is no image, or they do not fit the model.
        MissingDependencyError: onnxruntime, which runs the model, is not installed.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise InputError(
            f"the calibration images are {images.dtype} {images.shape}; expected uint8 [n, H, W, 3], n > 0"
        )
    tensors = _tensors(model)
    run = _observe(model, tensors)
    n_passes = 1 if estimator is Estimator.MIN_MAX else 2
    lows, highs = np.zeros(len(tensors)), np.zeros(len(tensors))
    for done, values in _batches(run, images):
        for index, value in enumerate(values):
            lows[index] = min(lows[index], value.min())
            highs[index] = max(highs[index], value.max())
        if progress is not None:
            progress(done, n_passes * len(images))
    if estimator is not Estimator.MIN_MAX:
        limits = np.maximum(np.abs(lows), np.abs(highs))
        counts = np.zeros((len(tensors), N_BINS), np.int64)
        for done, values in _batches(run, images):
            for index, value in enumerate(values):
                counts[index] += _histogram(value, limits[index])
            if progress is not None:
                progress(len(images) + done, n_passes * len(images))
        choose = percentile_bins if estimator is Estimator.PERCENTILE else entropy_bins
        for index in range(len(tensors)):
            reach = limits[index] * choose(counts[index]) / N_BINS
            lows[index], highs[index] = max(lows[index], -reach), min(highs[index], reach)
    bounds = {name: (float(low), float(high)) for name, low, high in zip(tensors, lows, highs, strict=True)}
    return Ranges(estimator, len(images), bounds)


def percentile_bins(counts: NDArray[np.int64], percentile: float = PERCENTILE) -> int:
    """Return how many bins, from zero up, hold that percentage of the values."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, total[-1] * percentile / 100)) + 1


def entropy_bins(counts: NDArray[np.int64]) -> int:
    """Return the number of bins at which to cut the histogram so that 128 levels give the least divergence.

    For each cut, P is the histogram with everything beyond in its last bin, Q its 128 merged bins, each spread evenly
    over those of its bins that are not empty; the divergence is sum P log(P / Q) over P > 0. A bin where Q is 0 and P
    is not, which only the last can be, counts as Q of one value in a million, instead of infinity. The first bin counts
    as the second, as in NVIDIA's pytorch-quantization: a ReLU puts half of all values there, and zero is exact anyway.
    """
    counts = counts.copy()
    counts[0] = counts[1]
    best, least = N_BINS, np.inf
    beyond = counts.sum() - np.cumsum(counts)
    for cut in range(_N_LEVELS, len(counts) + 1, _CUT_STEP):
        inside = counts[:cut].astype(np.float64)
        starts = np.arange(_N_LEVELS) * cut // _N_LEVELS
        filled = inside > 0
        merged, n_filled = np.add.reduceat(inside, starts), np.add.reduceat(filled, starts, dtype=np.float64)
        even = np.divide(merged, n_filled, out=np.zeros(_N_LEVELS), where=n_filled > 0)
        q = np.where(filled, np.repeat(even, np.diff(np.append(starts, cut))), 0)
        p = inside
        p[-1] += beyond[cut - 1]
        if not p.sum() or not q.sum():
            continue
        p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-6)
        some = p > 0
        divergence = float((p[some] * np.log(p[some] / q[some])).sum())
        if divergence < least:
            best, least = cut, divergence
    return best


def _histogram(values: NDArray[np.float32], limit: float) -> NDArray[np.int64]:
    if not limit > 0:
        return np.bincount([0], minlength=N_BINS) * values.size
    # np.histogram does the same at a third of the speed.
    bins = (np.abs(values.ravel()) * np.float32(N_BINS / limit)).astype(np.int32)
    return np.bincount(np.minimum(bins, N_BINS - 1), minlength=N_BINS)


def _tensors(model: onnx.ModelProto) -> list[str]:
    """List the float tensors that the networks read and compute; constants are not among them."""
    constants = {"", *(tensor.name for tensor in model.graph.initializer)}
    names = dict.fromkeys(name for node in network_nodes(model) for name in (*node.input, *node.output))
    return [name for name in names if name not in constants]


def _observe(model: onnx.ModelProto, tensors: Sequence[str]) -> Callable[[NDArray[np.uint8]], list[Any]]:
    """Return a function that returns the tensors' values for a batch of images."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    there = {value.name for value in watched.graph.output}
    for name in tensors:
        if name not in there:
            watched.graph.output.add(name=name)
    session = _session(watched)
    (source,) = session.get_inputs()

    def run(images: NDArray[np.uint8]) -> list[Any]:
        if tuple(images.shape[1:]) != tuple(source.shape[1:]):
            raise InputError(
                f"the calibration images are {images.shape[1:]}; the model takes {tuple(source.shape[1:])}"
            )
        values: list[Any] = session.run(list(tensors), {source.name: np.ascontiguousarray(images)})
        return values

    return run


def _session(model: onnx.ModelProto) -> Any:
    """Open a model in ONNX Runtime, on the CPU, that computes every Q/DQ pair as it stands."""
    try:
        onnxruntime = import_onnxruntime()
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "calibration runs the model with the package 'onnxruntime', which is not installed; "
            'run: pip install "vae-edge[onnxruntime]"'
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _batches(
    run: Callable[[NDArray[np.uint8]], list[Any]], images: NDArray[np.uint8]
) -> Iterator[tuple[int, list[Any]]]:
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        yield start + len(batch), run(batch)


class OnnxQuantizer(ABC):
    """Measures the ranges of an FP32 model once, and makes variants of it in INT8 with some layers in float.

    The transposed convolutions are rewritten first, because neither ONNX Runtime nor TensorRT has them in integers. The
    target decides where the Q/DQ pairs go.

    Args:
        model: FP32, from `export_onnx`.
        images: uint8 [n, H, W, 3], the calibration images.
        estimator: how a range follows from the values seen.
        progress: called with images done and their total while the ranges are measured.

    Raises:
        MissingDependencyError: onnxruntime, which runs the model, is not installed.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        images: NDArray[np.uint8],
        estimator: Estimator,
        progress: Progress | None = None,
    ) -> None:
        self.float_model = rewrite_transposed_convolutions(model)
        self.ranges = activation_ranges(self.float_model, images, estimator, progress)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it quantizes, in the order of the graph."""
        return quantizable_layers(self.float_model)

    @abstractmethod
    def model(self, keep_float: frozenset[str] = frozenset()) -> onnx.ModelProto:
        """Return the model with these layers in float.

        Raises:
            InputError: a name that no layer has.
        """

    def outputs(
        self, images: NDArray[np.uint8], keep_float: frozenset[str] = frozenset(), progress: Progress | None = None
    ) -> Outputs:
        """Run a variant with ONNX Runtime on the CPU over prepared images, uint8 [n, H, W, 3]."""
        return run_onnx(self.model(keep_float), images, progress)

    def saturation(self, images: NDArray[np.uint8], keep_float: frozenset[str] = frozenset()) -> dict[str, float]:
        """Count the values that the float model's layers read outside the ranges; see `targets.base.Quantizer`."""
        reads = {node.name: node.input[0] for node in network_nodes(self.float_model)}
        layers = [layer for layer in self.layers if layer not in keep_float]
        tensors = list(dict.fromkeys(reads[layer] for layer in layers))
        run = _observe(self.float_model, tensors)
        shares = share_outside([self.ranges.of(name) for name in tensors], _batches(run, images))
        found = dict(zip(tensors, shares.tolist(), strict=True))
        return {layer: found[reads[layer]] for layer in layers}


def share_outside(bounds: Sequence[tuple[Any, ...]], batches: Iterator[tuple[int, list[Any]]]) -> NDArray[np.float64]:
    """Return the share of each tensor's values that is more than half a step outside its range.

    Args:
        bounds: for each tensor the lowest and the highest value, numbers or arrays that broadcast to the tensor; 255
            steps lie between them.
        batches: images done, and the tensors' values.
    """
    outside, seen = np.zeros(len(bounds)), np.zeros(len(bounds))
    for _, values in batches:
        for index, (value, (low, high)) in enumerate(zip(values, bounds, strict=True)):
            slack = (high - low) / 510
            outside[index] += np.count_nonzero((value < low - slack) | (value > high + slack))
            seen[index] += value.size
    return outside / np.maximum(seen, 1)


def run_onnx(model: onnx.ModelProto, images: NDArray[np.uint8], progress: Progress | None = None) -> Outputs:
    """Run a model with ONNX Runtime on the CPU over prepared images, uint8 [n, H, W, 3], one at a time.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    _, height, width, _ = images.shape
    with scratch_folder("onnx") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path))
        inputs, outputs = graph_inputs(height, width), graph_outputs(height, width)
        with open_backend(Target.ONNX, path, inputs, outputs) as backend:
            return run_backend(backend, images, progress=progress)


def simulate_onnx(model: onnx.ModelProto, images: NDArray[np.uint8], progress: Progress | None = None) -> Outputs:
    """Like `run_onnx`, but with every Q/DQ pair computed as it stands, as another runtime would.

    For its own integer kernels ONNX Runtime also rounds the biases, to steps of the product of both scales. Where the
    scales are FP16, that product underflows in layers of small weights, and what it then computes is not the graph.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    session = _session(model)
    return run_each(lambda image: session.run(["anomaly_map", "score"], {"image": image}), images, progress)
