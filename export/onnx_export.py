"""From the torch graph to a checked ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from vae_edge.train.model.anomaly_graph import AnomalyGraph

OPSET = 18
"""ONNX Runtime, OpenVINO and TensorRT 10.3 all read it, and torch's exporter writes it without a conversion."""


def export_program(graph: AnomalyGraph) -> torch.export.ExportedProgram:
    """Trace the graph with a dynamic batch; the program's input is `image`, uint8 [N, H, W, 3]."""
    height, width = graph.image_size
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(
            graph, (example,), dynamic_shapes={"image": {0: torch.export.Dim("N", min=1, max=4096)}}, strict=False
        )


def export_onnx(program: torch.export.ExportedProgram, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write and check `model.onnx`.

    Args:
        program: from `export_program`.
        path: the file to write; the weights are inside it.
        metadata: goes into the file's `metadata_props`, so that a lone file can say what it is.

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


def _tidy(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about its own work: stack traces hold the paths of the machine that exported."""
    model.producer_name, model.producer_version = "vae-edge", ""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name = "vae_edge"
    del graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


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
