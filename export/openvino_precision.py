"""INT8 for OpenVINO, by NNCF, with single layers put back to float on demand.

NNCF inserts FakeQuantize operations before the network's convolutions and stores their weights in INT8; OpenVINO then
runs them in integers, transposed convolutions included. What comes after the network stays in float32.

The preset is PERFORMANCE (symmetric). MIXED (asymmetric activations) leaves the last transposed convolution in float
where its input has negative values, and was measured no faster; see benchmarks/PRECISION.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.agreement import Outputs
from vae_edge.backends.openvino_module import openvino_core
from vae_edge.errors import InputError
from vae_edge.export.nncf_calls import QuantizationSettings, quantize_network
from vae_edge.export.openvino_export import (
    CONVOLUTIONS,
    name_plainly,
    network_operations,
    read_graph,
    sources,
)
from vae_edge.export.settings import Estimator
from vae_edge.progress import Progress

_RUNTIME_CONVOLUTIONS = ("Convolution", "Deconvolution")


def quantize_openvino(
    path: Path,
    images: NDArray[np.uint8],
    *,
    estimator: Estimator = Estimator.MIN_MAX,
    keep_float: frozenset[str] = frozenset(),
    settings: QuantizationSettings | None = None,
    progress: Progress | None = None,
) -> Any:
    """Quantize a model in one call; `OpenVinoQuantizer` is for several variants of one.

    Args:
        path: an ONNX file or an IR in FP32.
        images: uint8 [n, H, W, 3], the calibration images; all are used.
        estimator: how a range follows from the values seen.
        keep_float: names of layers to leave in float32, out of `quantizable_layers`.
        settings: the rest; its estimator is replaced by the one given.
        progress: called with images done and in all.

    Returns:
        The `openvino.Model`; write it with `vae_edge.export.openvino_export.save_ir`. Nothing in it is drawn at random:
        equal arguments give equal files.

    Raises:
        InputError: no images, images of another size or type, an unknown layer or an estimator NNCF lacks.
        MissingDependencyError: openvino or nncf is not installed.
        DeviceError: OpenVINO cannot read the file.
    """
    chosen = replace(settings or QuantizationSettings(), estimator=estimator)
    return OpenVinoQuantizer(path, images, chosen, progress=progress).model(keep_float)


class OpenVinoQuantizer:
    """Quantizes all layers once, and gives variants of the result with some of them back in float.

    The ranges are measured on the float network, each for itself, so that a layer in float changes no other's range: a
    variant needs no second pass over the calibration images. With the fast bias correction it is exactly what a new
    quantization without those layers would be; with the layer-by-layer one, later biases stay corrected for the
    rounding that is gone. Accuracy control measures the very variant either way.

    Args:
        path: an ONNX file or an IR in FP32.
        images: uint8 [n, H, W, 3], the calibration images; all are used.
        settings: how to quantize.
        progress: called with images done and in all while the ranges are measured.

    Raises:
        InputError: no images, images of another size or type, or an estimator that NNCF lacks.
        MissingDependencyError: openvino or nncf is not installed.
        DeviceError: OpenVINO cannot read the file.
    """

    def __init__(
        self,
        path: Path,
        images: NDArray[np.uint8],
        settings: QuantizationSettings | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        self._float = read_graph(path)
        _check_images(images, self._float)
        self.layers: tuple[str, ...] = quantizable_layers(self._float)
        self._quantized = quantize_network(self._float, images, settings or QuantizationSettings(), progress)

    def model(self, keep_float: frozenset[str] = frozenset()) -> Any:
        """Return an `openvino.Model` of its own, with those layers in float32.

        Raises:
            InputError: a name that is none of `layers`.
        """
        unknown = sorted(keep_float.difference(self.layers))
        if unknown:
            raise InputError(f"there is no layer {unknown[0]!r}; expected some of {', '.join(self.layers)}")
        model = self._quantized.clone()
        quantized, original = _layer_operations(model), _layer_operations(self._float)
        for name in keep_float:
            _restore(quantized[name], original[name])
        name_plainly(model)
        return model

    def outputs(
        self,
        images: NDArray[np.uint8],
        keep_float: frozenset[str] = frozenset(),
        progress: Progress | None = None,
    ) -> Outputs:
        """Run a variant on the CPU over prepared images, uint8 [n, H, W, 3], one at a time as a device does.

        Raises:
            InputError: a name that is none of `layers`.
        """
        request = _compiled(self.model(keep_float)).create_infer_request()
        maps = np.empty(images.shape[:3], dtype=np.float32)
        scores = np.empty(len(images), dtype=np.float32)
        for position in range(len(images)):
            request.infer({"image": images[position : position + 1]}, share_inputs=True)
            maps[position] = request.get_tensor("anomaly_map").data[0]
            scores[position] = request.get_tensor("score").data[0]
            if progress is not None:
                progress(position + 1, len(images))
        return Outputs(maps, scores)


def quantizable_layers(model: Any) -> tuple[str, ...]:
    """Return the names of the network's convolutions, transposed ones too, in the graph's order.

    The names are those of the ONNX nodes, the same that `vae_edge.export.network_graph.quantizable_layers` gives.

    Args:
        model: an `openvino.Model` from `read_graph`, quantized or not.
    """
    return tuple(_layer_operations(model))


def count_convolutions(model: Any) -> dict[str, int]:
    """Return how many convolutions the CPU runs in `int8` and how many in `float`, transposed ones included.

    Read from the compiled model, so it counts what runs and not what was asked for.

    Args:
        model: an `openvino.Model`, or the path of an IR or ONNX file.
    """
    counts = {"int8": 0, "float": 0}
    for op in _compiled(model).get_runtime_model().get_ops():
        info = op.get_rt_info()
        if str(info["layerType"].astype(str)) in _RUNTIME_CONVOLUTIONS:
            counts["int8" if info["runtimePrecision"].astype(str) in ("i8", "u8") else "float"] += 1
    return counts


def _layer_operations(model: Any) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for op in network_operations(model):
        if op.get_type_name() not in CONVOLUTIONS:
            continue
        bias = _bias_addition(op)
        # OpenVINO splits ONNX's convolution into one without a bias and an addition that keeps the node's name.
        name = (op if bias is None else bias).get_friendly_name().removesuffix("/WithoutBiases")
        if name in layers:
            raise AssertionError(f"two layers are called {name!r}")
        layers[name] = op
    return layers


def _bias_addition(convolution: Any) -> Any | None:
    readers = [reader.get_node() for reader in convolution.output(0).get_target_inputs()]
    if len(readers) != 1 or readers[0].get_type_name() != "Add":
        return None
    return readers[0] if sources(readers[0])[1].get_type_name() == "Constant" else None


def _restore(quantized: Any, original: Any) -> None:
    """Give a quantized layer its float input, weights and bias back."""
    from openvino import opset13

    rounding = sources(quantized)[0]
    if rounding.get_type_name() != "FakeQuantize":
        raise AssertionError(f"the input of {quantized.get_friendly_name()} is not quantized")
    quantized.input(0).replace_source_output(rounding.input(0).get_source_output())
    pairs = [(quantized, original)]
    biases = _bias_addition(quantized), _bias_addition(original)
    if biases[0] is not None and biases[1] is not None:
        pairs.append((biases[0], biases[1]))  # The quantized layer's bias was corrected for its rounding.
    for changed, kept in pairs:
        constant = sources(kept)[1]
        copy = opset13.constant(np.array(constant.data))
        copy.set_friendly_name(constant.get_friendly_name())
        changed.input(1).replace_source_output(copy.output(0))


def _compiled(model: Any) -> Any:
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return openvino_core().compile_model(model, "CPU", settings)


def _check_images(images: NDArray[np.uint8], model: Any) -> None:
    (image,) = model.inputs
    _, height, width, channels = image.get_partial_shape()
    expected = (height.get_length(), width.get_length(), channels.get_length())
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or len(images) < 1:
        raise InputError(
            f"the calibration images are {images.dtype} {list(images.shape)}; expected uint8 {['n', *expected]} with n "
            "of 1 or more"
        )
