"""A torch program as plain data: the exported graph in JSON, its tensors in safetensors.

Why not `torch.export.save`: loading its archive can run code. `torch.export.load` (2.13) unpickles every tensor that
the archive marks as pickled, falls back from `weights_only=True` to `False` for the sample inputs, and hands the
archive's symbolic expressions to `sympy.sympify`, which evaluates them. A bundle comes from elsewhere, so it must not
be able to. Here a node may only name an operator of `ALLOWED_OPERATORS`, and its arguments are numbers, names, flags
and lists.

    program.json    {"format": 1, "inputs": ["image"], "outputs": ["sub_2", "mean_1"], "nodes": [
                        {"name": "weight", "tensor": "reconstruct.0.weight"},
                        {"name": "conv2d", "op": "aten.conv2d.default", "args": [{"node": "permute"}, ...]}, ...]}
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vae_edge.errors import BundleError

PROGRAM_FORMAT = 1

ALLOWED_OPERATORS = frozenset(
    f"aten.{name}"
    for name in (
        "abs.default",
        "add.Tensor",
        "amax.default",
        "cat.default",
        "clamp.default",
        "conv2d.default",
        "conv2d.padding",
        "conv_transpose2d.input",
        "div.Tensor",
        "exp.default",
        "expand.default",
        "flatten.using_ints",
        "leaky_relu.default",
        "matmul.default",
        "maximum.default",
        "mean.dim",
        "mul.Tensor",
        "narrow.default",
        "pad.default",
        "permute.default",
        "relu.default",
        "reshape.default",
        "rsub.Scalar",
        "select.int",
        "slice.Tensor",
        "sqrt.default",
        "square.default",
        "sub.Tensor",
        "sum.dim_IntList",
        "tanh.default",
        "to.dtype",
        "topk.default",
        "unsqueeze.default",
        "view.default",
    )
) | {"getitem"}
"""What the graphs of this package are made of. None of them reads a file or runs code."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that a program gives to an element type.

    Raises:
        KeyError: no program uses that type.
    """
    return {value: name for name, value in _DTYPES.items()}[dtype]


def load_program(program: Path) -> torch.fx.GraphModule:
    """Load `program.json` and the tensors beside it (`program.safetensors`) as a torch module.

    Returns:
        A module whose `forward` takes the inputs in the program's order and returns a tuple of its outputs.

    Raises:
        BundleError: the program is damaged, newer, or asks for an operator that is not allowed.
    """
    try:
        content = json.loads(program.read_text(encoding="utf-8"))
        tensors = load_file(program.with_suffix(".safetensors"))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise BundleError(f"{program} cannot be read ({error}); export the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{program} is damaged (it holds no record); export the bundle again")
    if content.get("format") != PROGRAM_FORMAT:
        raise BundleError(f"{program} has format {content.get('format')}; this vae-edge reads {PROGRAM_FORMAT}")
    try:
        return _build(content, tensors)
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{program} is damaged ({error!r}); export the bundle again") from error


def _build(content: dict[str, Any], tensors: dict[str, torch.Tensor]) -> torch.fx.GraphModule:
    root = torch.nn.Module()
    graph = torch.fx.Graph()
    nodes: dict[str, torch.fx.Node] = {}
    for position, name in enumerate(content["inputs"]):
        # Names come from a file: the generated code gets names of our own making.
        nodes[name] = graph.placeholder(f"input_{position}")
    for position, node in enumerate(content["nodes"]):
        if "tensor" in node:
            attribute = f"tensor_{position}"
            root.register_buffer(attribute, tensors[node["tensor"]])
            nodes[node["name"]] = graph.get_attr(attribute)
        else:
            arguments = tuple(_argument(value, nodes) for value in node["args"])
            named = {str(key): _argument(value, nodes) for key, value in node.get("kwargs", {}).items()}
            nodes[node["name"]] = graph.call_function(_operator(node["op"]), arguments, named)
    graph.output(tuple(nodes[name] for name in content["outputs"]))
    graph.lint()
    return torch.fx.GraphModule(root, graph).eval()


def _operator(name: str) -> Callable[..., Any]:
    if name not in ALLOWED_OPERATORS:
        raise BundleError(f"the program asks for the operator {name!r}, which no vae-edge export uses; do not run it")
    if name == "getitem":
        return operator.getitem
    _, packet, overload = name.split(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return found


def _argument(value: Any, nodes: dict[str, torch.fx.Node]) -> Any:
    if isinstance(value, dict):
        return nodes[value["node"]] if "node" in value else _DTYPES[value["dtype"]]
    if isinstance(value, list):
        return [_argument(item, nodes) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if value in ("replicate", "constant", "reflect", "same", "valid"):
        return value
    raise BundleError(f"the program has the argument {value!r}, which no vae-edge export uses; do not run it")
