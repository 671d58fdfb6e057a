"""INT8 for OpenVINO, by NNCF; single layers can be put back to float.

NNCF inserts FakeQuantize operations before the network's convolutions and stores their weights in INT8; OpenVINO then
runs them in integers, transposed convolutions included but the one that reads the latent values: see
`compute_alike_everywhere`. What comes after the network stays in float32.

The preset is PERFORMANCE (symmetric). MIXED (asymmetric activations) leaves the last transposed convolution in float
where its input has negative values, and was measured no faster; see benchmarks/PRECISION.md.

This is the only module that calls NNCF; it stops NNCF from printing, logging and reporting its use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.agreement import Outputs, run_each
from vae_edge.backends.openvino_module import check_can_load, openvino_core
from vae_edge.errors import InputError, MissingDependencyError
from vae_edge.export.openvino_ir import (
    CONVOLUTIONS,
    name_plainly,
    network_operations,
    read_graph,
    sources,
)
from vae_edge.export.quantization.onnx_quantizer import PERCENTILE, share_outside
from vae_edge.export.settings import BACKBONE_IN_FLOAT, Estimator
from vae_edge.platform.telemetry import openvino_telemetry_hidden
from vae_edge.platform.work import Progress


@dataclass(frozen=True)
class QuantizationSettings:
    """How the INT8 model is made."""

    estimator: Estimator = Estimator.MIN_MAX
    """NNCF has no entropy estimator: `entropy` uses its nearest one, the range with the least quantization error over a
    histogram."""
    fast_bias_correction: bool = False
    """False: NNCF corrects the biases layer by layer, each with the earlier layers quantized, on a fifth of the images.
    On a trained network of 96 x 96 the mean score drift was 0.6 of that with the fast correction (table in
    `quantize_network`); it takes up to twice the time."""
    halve_weight_range: bool = True
    """Use 7 of the weights' 8 bits, so that sums of products cannot saturate on x86 processors that add them up in
    16 bits. With 8 bits a bundle gives other verdicts on them than on those with VNNI."""


class OpenVinoQuantizer:
    """Quantizes all layers once, and gives variants of the result with some of them back in float.

    The ranges are measured independently on the float network, so a layer in float does not change the range of another
    layer: a variant does not need a second pass over the calibration images. With the fast bias correction a variant is
    exactly what a new quantization without those layers would give; with the layer-by-layer correction, later biases
    stay corrected for rounding that no longer happens. Accuracy control measures the actual variant either way.

    Args:
        path: an ONNX file or an IR in FP32.
        images: uint8 [n, H, W, 3], the calibration images; all are used.
        settings: how to quantize.
        progress: called with images done and their total while the ranges are measured.

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
        """Return a separate `openvino.Model` with those layers in float32.

        Raises:
            InputError: a name that is not one of `layers`.
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
        """Run a variant on the CPU over prepared images, uint8 [n, H, W, 3], one at a time as on a device.

        Raises:
            InputError: a name that is not one of `layers`.
        """
        request = _compiled(self.model(keep_float)).create_infer_request()

        def run(image: NDArray[np.uint8]) -> tuple[Any, Any]:
            request.infer({"image": image}, share_inputs=True)
            return request.get_tensor("anomaly_map").data, request.get_tensor("score").data

        return run_each(run, images, progress)

    def saturation(self, images: NDArray[np.uint8], keep_float: frozenset[str] = frozenset()) -> dict[str, float]:
        """Count the values that the quantized layers read outside their ranges; see `targets.base.Quantizer`."""
        model = self._quantized.clone()
        layers = {name: op for name, op in _layer_operations(model).items() if name not in keep_float}
        roundings = {name: rounding for name, op in layers.items() if (rounding := _rounding(op)) is not None}
        # Several layers may read one rounding.
        by_name = {rounding.get_friendly_name(): rounding for rounding in roundings.values()}
        n_outputs = len(model.outputs)
        model.add_outputs([rounding.input(0).get_source_output() for rounding in by_name.values()])
        bounds = [tuple(np.array(sources(each)[i].data, np.float32) for i in (1, 2)) for each in by_name.values()]
        request = _compiled(model).create_infer_request()

        def batches() -> Iterator[tuple[int, list[Any]]]:
            for position in range(len(images)):
                request.infer({"image": images[position : position + 1]}, share_inputs=True)
                yield position + 1, [request.get_output_tensor(n_outputs + i).data for i in range(len(by_name))]

        found = dict(zip(by_name, share_outside(bounds, batches()).tolist(), strict=True))
        return {name: found[roundings[name].get_friendly_name()] if name in roundings else 0.0 for name in layers}


def quantizable_layers(model: Any) -> tuple[str, ...]:
    """Return the names of the network's convolutions, transposed ones too, in the graph's order.

    The names are those of the ONNX nodes, the same that `onnx_network.quantizable_layers` gives.

    Args:
        model: an `openvino.Model` from `read_graph`, quantized or not.
    """
    return tuple(_layer_operations(model))


def _layer_operations(model: Any) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for op in network_operations(model):
        if op.get_type_name() not in CONVOLUTIONS:
            continue
        bias = _bias_addition(op)
        # OpenVINO splits ONNX's convolution into one without a bias and an addition that keeps the node's name.
        name = (op if bias is None else bias).get_friendly_name().removesuffix("/WithoutBiases")
        if name.startswith(BACKBONE_IN_FLOAT):
            continue
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
    """Restore the float input, weights and bias of a quantized layer."""
    from openvino import opset13

    _read_unrounded(quantized)
    pairs = [(quantized, original)]
    biases = _bias_addition(quantized), _bias_addition(original)
    if biases[0] is not None and biases[1] is not None:
        pairs.append((biases[0], biases[1]))  # The quantized layer's bias was corrected for its rounding.
    for changed, kept in pairs:
        constant = sources(kept)[1]
        copy = opset13.constant(np.array(constant.data))
        copy.set_friendly_name(constant.get_friendly_name())
        changed.input(1).replace_source_output(copy.output(0))


def _rounding(layer: Any) -> Any | None:
    """Return the operation that rounds what a layer reads; None: it reads float32."""
    source = sources(layer)[0]
    return source if source.get_type_name() == "FakeQuantize" else None


def _read_unrounded(layer: Any) -> None:
    rounding = _rounding(layer)
    if rounding is not None:
        layer.input(0).replace_source_output(rounding.input(0).get_source_output())


def compute_alike_everywhere(model: Any) -> None:
    """Change a model that NNCF quantized so that OpenVINO gives equal outputs with all instructions of x86 processors.

    NNCF gives signed values -128 to 127 steps. OpenVINO computes a convolution of such values in int8 with AMX and in
    uint8 around 128 without, which rounds one value in a million to another level. A transposed convolution of them is
    in int8 everywhere, and with AVX-512 without VNNI oneDNN halves its weights, so that sums cannot saturate: a bit of
    each is lost, and verdicts change.

    Here signed values have -127 to 128 steps, so that uint8 is what everybody takes; the largest values that NNCF saw
    are still inside. Of these OpenVINO has no transposed convolution in integers, so that one, the first of a decoder,
    reads the latent values in float32; its weights stay in INT8. Measured in benchmarks/PRECISION.md.

    Args:
        model: an `openvino.Model`; it is changed.
    """
    from openvino import opset13

    signed = {}
    for layer in _layer_operations(model).values():
        rounding = _rounding(layer)
        if rounding is None or not _is_signed(rounding):
            continue
        if layer.get_type_name() == "ConvolutionBackpropData":
            _read_unrounded(layer)
        else:
            signed[rounding.get_friendly_name()] = rounding  # Several layers may read one rounding.
    for rounding in signed.values():
        _, low, high, *_ = sources(rounding)
        bounds = [(constant.get_friendly_name(), -np.array(constant.data)) for constant in (high, low)]
        for first in (1, 3):  # What goes in, and what comes out.
            for index, (name, values) in enumerate(bounds, first):
                constant = opset13.constant(values)
                constant.set_friendly_name(f"{name}/{index}")
                rounding.input(index).replace_source_output(constant.output(0))


def _is_signed(rounding: Any) -> bool:
    return bool((sources(rounding)[1].data < 0).any())


def _compiled(model: Any) -> Any:
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    check_can_load()
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


def quantize_network(
    model: Any, images: NDArray[np.uint8], settings: QuantizationSettings, progress: Progress | None
) -> Any:
    """Return a copy of an `openvino.Model` with the network's layers quantized and the scoring left in float32.

    Drift from the float model on a trained `nano` network of 96 x 96, calibrated on 100 normal images and measured on
    100 others, as a share of the largest score (or map value):

    | estimator  | bias correction | score, max | score, mean | map, max |
    |------------|-----------------|-----------:|------------:|---------:|
    | min-max    | fast            |      0.017 |      0.0030 |    0.038 |
    | min-max    | layer by layer  |      0.012 |      0.0017 |    0.021 |
    | percentile | fast            |      0.223 |      0.0239 |    0.577 |
    | entropy    | fast            |      0.014 |      0.0026 |    0.073 |

    Args:
        model: from `vae_edge.export.openvino_ir.read_graph`.
        images: uint8 [n, H, W, 3].
        settings: how to quantize.
        progress: called with images done and in all while the ranges are measured.

    Raises:
        InputError: an estimator that NNCF lacks.
        MissingDependencyError: nncf is not installed.
    """
    nncf = _import_nncf()
    # All layers and not only the first, as NNCF would by default: with AVX2 alone the scores of a trained network of
    # 96 x 96 drifted by up to 0.138 of the largest without the fix, by 0.055 with the first layer's and by 0.017 with
    # all, the same as with VNNI, where the halving itself costs nothing measurable.
    halve = settings.halve_weight_range

    n_seen = 0

    def feed(position: int) -> dict[str, NDArray[np.uint8]]:
        nonlocal n_seen
        # The bias correction asks for some images again.
        if progress is not None and position >= n_seen:
            n_seen = position + 1
            progress(n_seen, len(images))
        return {"image": images[position : position + 1]}

    inside = (op.get_friendly_name() for op in network_operations(model))
    network = {name for name in inside if not name.startswith(BACKBONE_IN_FLOAT)}
    operations = (op for op in model.get_ordered_ops() if op.get_type_name() != "Constant")
    rest = [op.get_friendly_name() for op in operations if op.get_friendly_name() not in network]
    ranges = _range_estimator(nncf, settings.estimator)
    check_can_load()
    with _quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(range(len(images)), feed),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
            fast_bias_correction=settings.fast_bias_correction,
            # Not validated: NNCF's graph leaves operations out that compute nothing from the image.
            ignored_scope=nncf.IgnoredScope(names=rest, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if halve else nncf.OverflowFix.DISABLE,
                activations_range_estimator_params=ranges,
            ),
        )
    compute_alike_everywhere(quantized)
    for key, value in (
        ("estimator", str(settings.estimator)),
        ("n_calibration_images", str(len(images))),
        ("halved_weight_range", str(halve).lower()),
    ):
        quantized.set_rt_info(value, ["vae_edge", key])
    return quantized


def _range_estimator(nncf: Any, estimator: Estimator) -> Any:
    from nncf.quantization import range_estimator as ranges

    if estimator is Estimator.MIN_MAX:
        return ranges.RangeEstimatorParametersSet.MINMAX
    if estimator is Estimator.PERCENTILE:

        def bound(kind: Any) -> Any:
            return ranges.StatisticsCollectorParameters(
                statistics_type=kind,
                aggregator_type=ranges.AggregatorType.MEAN,
                quantile_outlier_prob=1 - PERCENTILE / 100,
            )

        quantile = ranges.StatisticsType.QUANTILE
        return ranges.RangeEstimatorParameters(min=bound(quantile), max=bound(quantile))
    histogram = getattr(ranges.RangeEstimatorParametersSet, "HISTOGRAM", None)
    if histogram is None:
        raise InputError(
            f"nncf {nncf.__version__} has no estimator for {estimator}; "
            "run: pip install --upgrade nncf, or choose min-max or percentile"
        )
    return histogram


def _import_nncf() -> Any:
    """Import nncf and undo what its import does to the process.

    Raises:
        MissingDependencyError: it is not installed.
    """
    kind = logging.getLoggerClass()
    try:
        with openvino_telemetry_hidden():
            import nncf
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "int8 for target openvino needs the package 'nncf', which is not installed; "
            'run: pip install "vae-edge[export]"'
        ) from error
    finally:
        logging.setLoggerClass(kind)
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's log and its progress bars, which go to rich's global console, off stdout."""
    import rich

    console, logger = rich.get_console(), logging.getLogger("nncf")
    was_quiet, level = console.quiet, logger.level
    console.quiet = True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        console.quiet = was_quiet
        logger.setLevel(level)
