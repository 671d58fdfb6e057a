"""FP16 and INT8 for ONNX Runtime on a processor.

INT8 is Q/DQ, written by ONNX Runtime's own quantizer, with the ranges measured by `activation_ranges`. What was found
here is in benchmarks/PRECISION.md: with the decoder's transposed convolutions rewritten, all of the network runs on the
integer kernels; the last convolution stays in float32, which costs no time and keeps the reconstruction from being
rounded to 256 steps.

FP16 halves the file. ONNX Runtime's CPU provider has few FP16 kernels and puts casts around the other nodes, so it is
rarely faster: `slower_in_half` measures and says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_edge.errors import MissingDependencyError
from vae_edge.export.activation_ranges import Ranges
from vae_edge.export.network_graph import LAYERS, check_layer_names, network_nodes
from vae_edge.telemetry import import_onnxruntime

_PAIRS = 15
_SLOWER = 1.02
"""Ratio of the medians from which FP16 counts as slower; below it is noise."""


def quantize_for_onnxruntime(
    model: onnx.ModelProto, ranges: Ranges, *, keep_float: Collection[str] = (), reduce_range: bool = False
) -> onnx.ModelProto:
    """Return a copy of a model with the network's convolutions in INT8 and everything else in float32.

    Weights are symmetric with a scale for each output channel, activations unsigned with a zero-point (a ReLU's output
    has no sign to spend a bit on; measured a little faster than signed ones on x86). The last convolution stays in
    float32.

    Args:
        model: FP32, after `rewrite_transposed_convolutions`; a transposed convolution stays in float32.
        ranges: of this very model.
        keep_float: names of layers (see `quantizable_layers`) that stay in float32.
        reduce_range: keep the weights to 7 bits, for processors of `Machine.saturates_int8_sums`.

    Raises:
        InputError: a name is no layer, or a range is missing.
        MissingDependencyError: onnxruntime, whose quantizer this is, is not installed.
    """
    check_layer_names(model, keep_float)
    _import_onnxruntime()
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    result = onnx.ModelProto()
    result.CopyFrom(model)
    chosen = _quantized_nodes(result, keep_float)
    if not chosen:
        return result
    wanted = [name for node in chosen for name in (node.input[0], node.output[0])]
    data = TensorsData(
        CalibrationMethod.MinMax,
        {name: tuple(np.float32(bound) for bound in ranges.of(name)) for name in dict.fromkeys(wanted)},
    )
    quantizer = QDQQuantizer(
        result,
        True,
        reduce_range,
        QuantType.QInt8,
        QuantType.QUInt8,
        data,
        [node.name for node in chosen],
        [],
        sorted({node.op_type for node in chosen}),
        {"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(quantized)
    return quantized


def slower_in_half(single: onnx.ModelProto, half: onnx.ModelProto, *, threads: int | None = None) -> str | None:
    """Time an FP32 and an FP16 model in turns on this machine's CPU and say so if FP16 is slower.

    Takes about 15 inferences of each. Batch 1, after 3 warm-ups; the medians are compared.

    Returns:
        A sentence with both medians in milliseconds; None: FP16 is not slower.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    runtime = _import_onnxruntime()
    sessions = [_session(runtime, model, threads) for model in (single, half)]
    source = sessions[0].get_inputs()[0]
    image = np.random.default_rng(0).integers(0, 256, (1, *source.shape[1:]), dtype=np.uint8)
    times: list[list[float]] = [[], []]
    for turn in range(_PAIRS + 3):
        for session, kept in zip(sessions, times, strict=True):
            taken = _time_s(session, source.name, image)
            if turn >= 3:
                kept.append(taken)
    fp32, fp16 = (statistics.median(each) for each in times)
    if fp16 <= _SLOWER * fp32:
        return None
    return (
        f"FP16 is slower than FP32 on ONNX Runtime's CPU provider here: {fp16 * 1e3:.2f} ms an image against "
        f"{fp32 * 1e3:.2f} ms; it halves the file and nothing else"
    )


def _quantized_nodes(model: onnx.ModelProto, keep_float: Collection[str]) -> list[onnx.NodeProto]:
    """Return the convolutions to quantize and what follows each of them up to the next: activation, rearrangement."""
    nodes = network_nodes(model)
    layers = [node.name for node in nodes if node.op_type in LAYERS]
    floats = {*keep_float, layers[-1], *(node.name for node in nodes if node.op_type == "ConvTranspose")}
    owner: dict[str, str] = {}
    chosen = []
    for node in nodes:
        layer = node.name if node.op_type in LAYERS else next(owner[name] for name in node.input if name in owner)
        owner.update(dict.fromkeys(node.output, layer))
        if layer not in floats:
            chosen.append(node)
    return chosen


def _session(runtime: Any, model: onnx.ModelProto, threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _time_s(session: Any, name: str, image: NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    session.run(None, {name: image})
    return time.perf_counter() - start


def _import_onnxruntime() -> Any:
    try:
        return import_onnxruntime()
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "INT8 and FP16 for ONNX Runtime need the package 'onnxruntime', which is not installed; "
            "run: pip install 'vae-edge[onnxruntime]'"
        ) from error
