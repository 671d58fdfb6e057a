"""ONNX: the checked file that all targets but torch are made from, and its FP16 and INT8 for ONNX Runtime on a CPU.

INT8 is Q/DQ, written by ONNX Runtime's own quantizer, with the ranges measured by `activation_ranges`. The measurements
are in benchmarks/PRECISION.md: with the decoder's transposed convolutions rewritten, all of the network runs on the
integer kernels except the last convolution. It stays in float32, which costs no time and avoids rounding the
reconstruction to 256 steps.

FP16 halves the file. ONNX Runtime's CPU provider has few FP16 kernels and puts casts around the other nodes, so it is
rarely faster: `slower_in_half` measures it.
"""

from __future__ import annotations

import ast
import logging
import shutil
import statistics
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vae_edge.errors import MissingDependencyError
from vae_edge.export.quantization.onnx_network import (
    LAYERS,
    check_layer_names,
    network_nodes,
    quantizable_layers,
    reconstructing_layer,
    replace_nodes,
    to_half,
)
from vae_edge.export.quantization.onnx_quantizer import OnnxQuantizer, Ranges
from vae_edge.export.settings import BACKBONE, Estimator
from vae_edge.export.targets.base import ONNX_FILE, TargetExporter, Written
from vae_edge.manifest import RuntimeRecord
from vae_edge.platform.machine import look_at_machine
from vae_edge.platform.telemetry import import_onnxruntime
from vae_edge.platform.work import Progress
from vae_edge.targets import Precision, Target
from vae_edge.train.model.anomaly_graph import DeployedGraph

OPSET = 18
"""ONNX Runtime, OpenVINO and TensorRT 10.3 all read it, and torch's exporter writes it without a conversion."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which torch's exporter records the modules that a node comes from."""
_BACKBONE_MODULE = BACKBONE.rstrip(".")

_PAIRS = 15
_SLOWER = 1.02
"""Ratio of the medians from which FP16 counts as slower; below it is noise."""


class Exporter(TargetExporter):
    """Writes `model.onnx`."""

    target = Target.ONNX

    def write(self, folder: Path, precision: Precision, quantized: Any = None) -> Written:
        """Write the graph; warn if FP16, whose purpose is a smaller file, is slower."""
        path = folder / ONNX_FILE
        if precision is Precision.FP32:
            shutil.copyfile(self.source.onnx_path, path)
            return Written(_runtime_of(onnx.load(str(path))))
        if quantized is not None:
            onnx.save(quantized, str(path))
            return Written(_runtime_of(quantized))
        single = onnx.load(str(self.source.onnx_path))
        half = to_half(single)
        onnx.save(half, str(path))
        slower = slower_in_half(single, half)
        return Written(_runtime_of(half), () if slower is None else (slower,))

    def quantize(
        self, images: NDArray[np.uint8], estimator: Estimator, progress: Progress | None = None
    ) -> OnnxRuntimeQuantizer:
        """Rewrite the decoder and measure the ranges for Q/DQ pairs."""
        return OnnxRuntimeQuantizer(onnx.load(str(self.source.onnx_path)), images, estimator, progress)


class OnnxRuntimeQuantizer(OnnxQuantizer):
    """Places Q/DQ pairs by ONNX Runtime's own quantizer."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, without the one that reconstructs pixels, which always stays in float32."""
        last = reconstructing_layer(self.float_model)
        return tuple(name for name in super().layers if name != last)

    def model(self, keep_float: frozenset[str] = frozenset()) -> onnx.ModelProto:
        """Return the model with these layers in float32.

        Raises:
            InputError: a name that no layer has.
        """
        return quantize_for_onnxruntime(self.float_model, self.ranges, keep_float=keep_float)


def export_program(graph: DeployedGraph, example: torch.Tensor | None = None) -> torch.export.ExportedProgram:
    """Trace the graph with a dynamic batch; the program's input is `image`.

    Args:
        graph: to trace.
        example: two images, for a batch of one would be taken for a constant; None: they are uint8 [2, H, W, 3].
    """
    if example is None:
        example = torch.zeros(2, *graph.image_size, 3, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(
            graph, (example,), dynamic_shapes={"image": {0: torch.export.Dim("N", min=1, max=4096)}}, strict=False
        )


def export_onnx(program: torch.export.ExportedProgram, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write and check `model.onnx`.

    Args:
        program: from `export_program`.
        path: the file to write; the weights are inside it.
        metadata: goes into the file's `metadata_props`, so that the file alone says what it is.

    Raises:
        onnx.checker.ValidationError: the exporter wrote a model that does not follow the ONNX specification.
    """
    with _quiet_exporter():
        result = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["anomaly_map", "score"],
            optimize=True,
            verbose=False,
        )
    if result is None:
        raise AssertionError("torch's exporter returned no ONNX program")
    model: onnx.ModelProto = result.model_proto
    _tidy(model)
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _runtime_of(model: onnx.ModelProto) -> RuntimeRecord:
    opset = max(entry.version for entry in model.opset_import if entry.domain == "")
    return RuntimeRecord(flavour="onnx", version=onnx.__version__, details={"opset": str(opset)})


def _tidy(model: onnx.ModelProto) -> None:
    """Drop the exporter's records of its own work: stack traces hold paths of the exporting machine.

    The module that a node comes from is written into its name if it is part of a backbone: see `_name_in_backbone`.
    """
    model.producer_name, model.producer_version = "vae-edge", ""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name = "vae_edge"
    del graph.metadata_props[:]
    for node in graph.node:
        node.name = _name_in_backbone(node) or node.name
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def _name_in_backbone(node: onnx.NodeProto) -> str | None:
    """Return `backbone.blocks.3.depthwise.node_conv2d_10` for a node of that module; None outside a backbone."""
    scopes = next((each.value for each in node.metadata_props if each.key == _SCOPES), "[]")
    # From the outermost module to the innermost, and then the name of the node itself.
    *modules, _ = ast.literal_eval(scopes) or [""]
    path = modules[-1].split(".") if modules else []
    if _BACKBONE_MODULE not in path:
        return None
    return ".".join([*path[path.index(_BACKBONE_MODULE) :], node.name])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter writes to its loggers and warns about its own internals; errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def quantize_for_onnxruntime(
    model: onnx.ModelProto, ranges: Ranges, *, keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy of a model with the network's convolutions in INT8 and everything else in float32.

    Weights are symmetric with a scale for each output channel, activations unsigned with a zero-point (a ReLU's output
    has no sign to spend a bit on; measured a little faster than signed ones on x86). The last convolution stays in
    float32.

    Args:
        model: FP32, after `rewrite_transposed_convolutions`; a transposed convolution stays in float32.
        ranges: of this model.
        keep_float: names of layers (see `quantizable_layers`) that stay in float32.

    Raises:
        InputError: a name that no layer has, or a range is missing.
        MissingDependencyError: onnxruntime, whose quantizer this is, is not installed.
    """
    check_layer_names(model, keep_float)
    _import_onnxruntime()
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    result = onnx.ModelProto()
    result.CopyFrom(model)
    if not _quantized_nodes(result, keep_float):
        return result
    _set_bias_apart(result, keep_float)
    chosen = _quantized_nodes(result, keep_float)
    wanted = [name for node in chosen for name in (node.input[0], node.output[0])]
    data = TensorsData(
        CalibrationMethod.MinMax,
        {name: tuple(np.float32(bound) for bound in ranges.of(name)) for name in dict.fromkeys(wanted)},
    )
    quantizer = QDQQuantizer(
        result,
        True,
        False,  # All 8 bits: a backbone loses too much with 7, and sums are exact on every processor.
        QuantType.QInt8,
        QuantType.QUInt8,
        data,
        [node.name for node in chosen],
        [],
        sorted({node.op_type for node in chosen}),
        {"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    quantizer.quantize_model()
    _read_unrounded(quantizer.model.model, {n.output[0] for n in network_nodes(model) if n.op_type == "Add"})
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(quantized)
    return quantized


def slower_in_half(single: onnx.ModelProto, half: onnx.ModelProto, *, threads: int | None = None) -> str | None:
    """Time an FP32 and an FP16 model in turns on this machine's CPU; describe the difference if FP16 is slower.

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
        f"{fp32 * 1e3:.2f} ms; its only benefit is half the file size"
    )


def _quantized_nodes(model: onnx.ModelProto, keep_float: Collection[str]) -> list[onnx.NodeProto]:
    """Return the convolutions to quantize and what follows each of them up to the next: activation, rearrangement.

    The additions of a backbone's residual blocks are not included; some of them are its features: see
    `_read_unrounded`.
    """
    nodes = network_nodes(model)
    transposed = {node.name for node in nodes if node.op_type == "ConvTranspose"}
    layers = set(quantizable_layers(model)) - transposed - {*keep_float, reconstructing_layer(model)}
    owner: dict[str, str] = {}
    chosen = []
    for node in nodes:
        if node.op_type == "Add":
            continue
        layer = node.name if node.op_type in LAYERS else next(owner[name] for name in node.input if name in owner)
        owner.update(dict.fromkeys(node.output, layer))
        if layer in layers:
            chosen.append(node)
    return chosen


def _set_bias_apart(model: onnx.ModelProto, layers: Collection[str]) -> None:
    """Let a separate node subtract the bias of convolutions that stay in float32.

    Between two quantized layers ONNX Runtime 1.32 quantizes a convolution in float32 by itself, with one scale for all
    of its weights ("WeightBiasQuantization"): with a backbone's depthwise convolutions "kept" in float in this way, the
    AUROC on the sample set's `dial` was 0.46 instead of 1. It does so if a convolution's result is quantized directly.
    It would move an addition back into the convolution.

    Args:
        model: FP32; it is changed.
        layers: names of convolutions.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "Conv" or node.name not in layers:
            continue
        n_out = weights[node.input[1]].dims[0]
        has_bias = len(node.input) > 2 and node.input[2] in weights
        bias = numpy_helper.to_array(weights[node.input[2]]) if has_bias else np.zeros(n_out, np.float32)
        del node.input[2:]
        apart = numpy_helper.from_array(-bias.reshape(1, n_out, 1, 1), f"{node.name}.negative_bias")
        model.graph.initializer.append(apart)
        result = node.output[0]
        node.output[0] = f"{node.name}.without_bias"
        nodes.append(helper.make_node("Sub", [node.output[0], apart.name], [result], f"{node.name}.bias"))
    replace_nodes(model.graph, nodes)
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _read_unrounded(model: onnx.ModelProto, additions: Collection[str]) -> None:
    """Let float32 operations read the sums of residual blocks as they are, not rounded for the next convolution.

    The quantizer makes all readers of a tensor read the rounded one.

    Args:
        model: quantized; it is changed.
        additions: the sums' names.
    """
    rounded = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in additions:
            rounded[node.output[0]] = node.input[0]
    exact = {n.output[0]: rounded[n.input[0]] for n in model.graph.node if n.input and n.input[0] in rounded}
    for node in model.graph.node:
        if node.op_type not in LAYERS:
            for index, name in enumerate(node.input):
                node.input[index] = exact.get(name, name)


def _session(runtime: Any, model: onnx.ModelProto, threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if look_at_machine().saturates_int8_sums:
        options.add_session_config_entry("session.x64quantprecision", "1")  # As on the device.
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
            'run: pip install "vae-edge[onnxruntime]"'
        ) from error
