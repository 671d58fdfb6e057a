"""An ONNX model in INT8 with some layers in float, for accuracy control; and the same for TensorRT, simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_edge.agreement import Outputs, run_backend
from vae_edge.atomic import scratch_folder
from vae_edge.backends.base import open_backend
from vae_edge.export.activation_ranges import activation_ranges
from vae_edge.export.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.network_graph import quantizable_layers
from vae_edge.export.onnx_precision import quantize_for_onnxruntime
from vae_edge.export.settings import Estimator
from vae_edge.export.tensorrt_precision import quantize_for_tensorrt
from vae_edge.machine import look_at_machine
from vae_edge.manifest import graph_inputs, graph_outputs
from vae_edge.progress import Progress
from vae_edge.targets import Target


class OnnxQuantizer:
    """Measures the ranges of an FP32 model once, and gives variants of it with some layers in float.

    The transposed convolutions are rewritten first, because neither ONNX Runtime nor TensorRT has them in integers.

    Args:
        model: FP32, from `export_onnx`.
        target: `onnx` or `tensorrt`, which want the Q/DQ pairs in different places.
        images: uint8 [n, H, W, 3], the calibration images.
        estimator: how a range follows from the values seen.
        progress: called with images done and in all while the ranges are measured.

    Raises:
        MissingDependencyError: onnxruntime, which runs the model, is not installed.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        target: Target,
        images: NDArray[np.uint8],
        estimator: Estimator,
        progress: Progress | None = None,
    ) -> None:
        self._target = target
        self._image_size = (images.shape[1], images.shape[2])
        self._float = rewrite_transposed_convolutions(model)
        self._ranges = activation_ranges(self._float, images, estimator, progress)
        layers = quantizable_layers(self._float)
        # On ONNX Runtime the last convolution stays in float32 whatever is asked: see `quantize_for_onnxruntime`.
        self.layers: tuple[str, ...] = layers if target is Target.TENSORRT else layers[:-1]

    def model(self, keep_float: frozenset[str] = frozenset()) -> onnx.ModelProto:
        """Return the model with these layers in float.

        Raises:
            InputError: a name that is none of `layers`.
        """
        if self._target is Target.TENSORRT:
            return quantize_for_tensorrt(self._float, self._ranges, keep_float=keep_float)
        reduce_range = look_at_machine().saturates_int8_sums
        return quantize_for_onnxruntime(self._float, self._ranges, keep_float=keep_float, reduce_range=reduce_range)

    def outputs(
        self, images: NDArray[np.uint8], keep_float: frozenset[str] = frozenset(), progress: Progress | None = None
    ) -> Outputs:
        """Run a variant with ONNX Runtime on the CPU over prepared images, uint8 [n, H, W, 3].

        For TensorRT that is a simulation: the same graph, rounded in the same places, in another arithmetic.
        """
        return run_onnx(self.model(keep_float), images, progress)


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
