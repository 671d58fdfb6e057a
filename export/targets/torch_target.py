"""torch: the graph as a program of plain data; `vae_edge.backends.torch_program` says what that is and loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.export.graph_signature import InputKind

from vae_edge.backends.torch_program import OPERATORS, PROGRAM_FORMAT, dtype_name
from vae_edge.errors import InputError
from vae_edge.export.targets.base import TargetExporter, Written
from vae_edge.manifest import RuntimeRecord
from vae_edge.targets import SUPPORTED, Precision, Target

_IGNORED = ("aten._assert_tensor_metadata.default",)
"""Checks that the exporter adds; they compute nothing."""


class Exporter(TargetExporter):
    """Writes `program.json` and `program.safetensors`."""

    target = Target.TORCH
    opens_with_own_reader = True

    def write(self, folder: Path, precision: Precision, quantized: Any = None) -> Written:
        """Write the traced graph, in FP32."""
        save_program(self.source.program, folder / SUPPORTED[self.target].model_file)
        return Written(RuntimeRecord(flavour="torch", version=torch.__version__))


def save_program(exported: torch.export.ExportedProgram, program: Path) -> list[Path]:
    """Write `program.json` and `program.safetensors`; return both paths.

    Args:
        exported: a program whose batch dimension is dynamic.
        program: where the JSON goes; the tensors go beside it.

    Raises:
        InputError: the disk is full.
        AssertionError: the graph uses an operator or an argument that the loader would refuse. That is a bug in this
            package: the operator belongs in `OPERATORS`.
    """
    tensor_of = {
        spec.arg.name: spec.target
        for spec in exported.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    }
    stored = {**exported.state_dict, **exported.constants}
    nodes: list[dict[str, Any]] = []
    inputs: list[str] = []
    outputs: list[str] = []
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in tensor_of:
            nodes.append({"name": node.name, "tensor": tensor_of[node.name]})
        elif node.op == "placeholder":
            inputs.append(node.name)
        elif node.op == "output":
            outputs = [result.name for result in node.args[0]]
        elif operator_name(node.target) not in _IGNORED:
            nodes.append(_node_record(node))
    used = {node["tensor"] for node in nodes if "tensor" in node}
    tensors = {name: stored[name].detach().contiguous().clone() for name in sorted(used)}
    try:
        save_file(tensors, program.with_suffix(".safetensors"))
    except SafetensorError as error:
        # What a full disk is to its writer, which is not Python's.
        raise InputError(
            f"{program.parent} could not be written ({error}); free some space or choose another folder"
        ) from error
    content = {"format": PROGRAM_FORMAT, "inputs": inputs, "outputs": outputs, "nodes": nodes}
    program.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [program, program.with_suffix(".safetensors")]


def operator_name(target: Any) -> str:
    """Return `aten.conv2d.default` for that operator, and `getitem` for Python's own."""
    return str(target) if isinstance(target, torch._ops.OpOverload) else str(target.__name__)


def _node_record(node: torch.fx.Node) -> dict[str, Any]:
    name = operator_name(node.target)
    if name not in OPERATORS:
        raise AssertionError(f"the graph uses {name}, which the loader does not allow")
    record: dict[str, Any] = {"name": node.name, "op": name, "args": [_argument(value) for value in node.args]}
    if node.kwargs:
        record["kwargs"] = {key: _argument(value) for key, value in node.kwargs.items()}
    return record


def _argument(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, (list, tuple)):
        return [_argument(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise AssertionError(f"the graph has an argument of type {type(value).__name__}, which a program cannot hold")
