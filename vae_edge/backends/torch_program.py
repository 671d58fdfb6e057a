"""A torch program as plain data: the exported graph in JSON, its tensors in safetensors.

Why not `torch.export.save`: loading its archive can run code. `torch.export.load` (2.13) unpickles every tensor that
the archive marks as pickled, falls back from `weights_only=True` to `False` for the sample inputs, and hands the
archive's symbolic expressions to `sympy.sympify`, which evaluates them. A bundle may come from anywhere, so loading it
must not run code.

    program.json    {"format": 1, "inputs": ["image"], "outputs": ["sub_2", "mean_1"], "nodes": [
                        {"name": "weight", "tensor": "reconstruct.0.weight"},
                        {"name": "conv2d", "op": "aten.conv2d.default", "args": [{"node": "permute"}, ...]}, ...]}

A program is interpreted: its steps are called one after the other, and no Python source is generated. A step may only
name an operator of `OPERATORS`, and its arguments must be of the kinds listed there. What a step would allocate and
compute is calculated before it is called, the first time that a program runs with a batch of that size, and compared
with limits far above what an export needs. See `TorchProgram`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vae_edge.errors import BundleError, said_by
from vae_edge.model_files.checks import PROGRAM_LIMITS, read_safetensors_header
from vae_edge.records import open_regular, parse_json, read_bounded

PROGRAM_FORMAT = 1

MAX_NODES = 10_000
"""Largest number of nodes of a program, including its tensors; exports have 100 to 300, and a few more for each
tile."""
_MAX_SIZES = 8
"""Dimensions of a tensor, and so sizes in a list."""
_MAX_NAME = 200

_BASE_BYTES, _BYTES_PER_PIXEL, _MAX_BYTES = 256 << 20, 8192, 8 << 30
"""Memory that the tensors between the steps may take at a time: a constant, plus an amount for each pixel of the
images, up to a limit for each image. The reference network takes 330 bytes a pixel, and 16 times that in tiles that
overlap as far as they may."""
_BASE_ELEMENTS, _ELEMENTS_PER_PIXEL = 500_000_000, 60_000
"""Elements that all steps together may read and write; the reference network needs 2,000 a pixel, in overlapping tiles
up to 16 times that."""
_BASE_PRODUCTS, _PRODUCTS_PER_PIXEL = 5_000_000_000, 3_000_000
"""Multiplications in convolutions and matrix products; the reference network needs 90,000 a pixel, in overlapping tiles
up to 16 times that."""

_DTYPES = {"float32": torch.float32, "uint8": torch.uint8}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that a program gives to an element type.

    Raises:
        KeyError: no program uses that type.
    """
    return {value: name for name, value in _DTYPES.items()}[dtype]


class _RefusedError(Exception):
    """A program must not be run; the message is appended to its name."""


_Bound = Mapping[str, Any]
"""Arguments of a call by the operator's names for them."""


@dataclass(frozen=True)
class _Operator:
    """An operator that a program may use."""

    arguments: str
    """`name:kind` of every argument; `=` after the kind: it may be left out, `?` before that: it may be null."""
    cost: Callable[[_Bound], tuple[int, int]]
    """From the arguments, an upper bound of the elements that the call allocates, and its multiplications."""

    @property
    def kinds(self) -> dict[str, str]:
        """The arguments' kinds by their names."""
        return dict(argument.split(":") for argument in self.arguments.split())


def _numel(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _same(bound: _Bound) -> tuple[int, int]:
    """Cost of an operator whose output has no more elements than its inputs."""
    return sum(value.numel() for value in bound.values() if isinstance(value, Tensor)), 0


def _sorted(bound: _Bound) -> tuple[int, int]:
    numel = bound["self"].numel()
    # Positions have eight bytes. Sorting an element takes as long as a thousand multiplications.
    return 3 * numel, 64 * numel + 2048 * min(bound["k"], numel)


def _broadcast(bound: _Bound) -> tuple[int, int]:
    shapes = [value.shape[::-1] for value in bound.values() if isinstance(value, Tensor)]
    rank = max(map(len, shapes))
    return _numel([max(shape[i] if i < len(shape) else 1 for shape in shapes) for i in range(rank)]), 0


def _joined(bound: _Bound) -> tuple[int, int]:
    return sum(part.numel() for part in bound["tensors"]), 0


def _expanded(bound: _Bound) -> tuple[int, int]:
    sizes, shape = bound["size"], bound["self"].shape
    kept = [1] * (len(sizes) - len(shape)) + list(shape)
    return _numel([old if new == -1 else new for old, new in zip(kept[-len(sizes) :], sizes, strict=False)]), 0


def _padded(bound: _Bound) -> tuple[int, int]:
    shape = list(bound["self"].shape)
    pads = bound["pad"]
    for i in range(min(len(pads) // 2, len(shape))):
        shape[-1 - i] += pads[2 * i] + pads[2 * i + 1]
    return _numel([max(size, 0) for size in shape]), 0


def _matrix_product(bound: _Bound) -> tuple[int, int]:
    one, other = bound["self"].shape, bound["other"].shape
    one, other = (1, *one) if len(one) == 1 else one, (*other, 1) if len(other) == 1 else other
    rank = max(len(one), len(other)) - 2
    batches = [[1] * (rank + 2 - len(shape)) + list(shape[:-2]) for shape in (one, other)]
    n = _numel([max(sizes) for sizes in zip(*batches, strict=True)])
    rows, inner, columns = one[-2], one[-1], other[-1]
    # Each of them may be written out for every pair of matrices.
    return n * (rows * columns + rows * inner + inner * columns), n * rows * inner * columns


def _two(value: Any) -> tuple[int, int]:
    values = [value] * 2 if isinstance(value, int) else value
    if len(values) > 2:
        raise _RefusedError(f"gives {len(values)} sizes for the two sides of images")
    return values[0], values[-1]


def _convolution(bound: _Bound) -> tuple[int, int]:
    images, kernels = _images_and_kernels(bound)
    padding = bound.get("padding", 0)
    strides, dilations = _two(bound.get("stride", 1)), _two(bound.get("dilation", 1))
    taps = kernels[2] * kernels[3]
    sizes = []
    for i in range(2):
        span = dilations[i] * (kernels[2 + i] - 1)
        pad = {"same": span, "valid": 0}[padding] if isinstance(padding, str) else 2 * _two(padding)[i]
        sizes.append(max((images[2 + i] + pad - span - 1) // strides[i] + 1, 0))
    pixels = images[0] * _numel(sizes)
    # torch may write out each kernel's view of the image before it multiplies.
    return pixels * max(kernels[0], images[1] * taps), pixels * kernels[0] * kernels[1] * taps


def _transposed_convolution(bound: _Bound) -> tuple[int, int]:
    images, kernels = _images_and_kernels(bound)
    strides, dilations = _two(bound.get("stride", 1)), _two(bound.get("dilation", 1))
    more = _two(bound.get("output_padding", 0))
    taps = kernels[2] * kernels[3]
    sizes = [(images[2 + i] - 1) * strides[i] + dilations[i] * (kernels[2 + i] - 1) + 1 + more[i] for i in range(2)]
    channels = kernels[1] * bound.get("groups", 1)
    entered = images[0] * images[2] * images[3]
    return max(images[0] * channels * _numel(sizes), entered * channels * taps), entered * images[1] * kernels[1] * taps


def _pooled(bound: _Bound) -> tuple[int, int]:
    shape = tuple(bound["self"].shape)
    if len(shape) != 4:
        raise _RefusedError(f"takes means over places of {len(shape)} dimensions")
    kernel, padding = _two(bound["kernel_size"]), _two(bound.get("padding", 0))
    strides = _two(bound.get("stride") or bound["kernel_size"])
    # One more than without rounding up.
    sizes = [max(shape[2 + i] + 2 * padding[i] - kernel[i], 0) // strides[i] + 2 for i in range(2)]
    numel = shape[0] * shape[1] * _numel(sizes)
    return numel, numel * _numel(kernel)


def _images_and_kernels(bound: _Bound) -> tuple[tuple[int, ...], tuple[int, ...]]:
    images, kernels = tuple(bound["input"].shape), tuple(bound["weight"].shape)
    if len(images) != 4 or len(kernels) != 4:
        raise _RefusedError(f"convolves {len(images)} dimensions with {len(kernels)}")
    return images, kernels


_CONVOLUTION = "input:tensor weight:tensor bias:tensor?= stride:counts= padding:{}= dilation:counts= groups:count="

OPERATORS = {
    "aten.abs.default": _Operator("self:tensor", _same),
    "aten.add.Tensor": _Operator("self:tensor other:operand", _broadcast),
    "aten.amax.default": _Operator("self:tensor dim:ints= keepdim:flag=", _same),
    "aten.avg_pool2d.default": _Operator(
        "self:tensor kernel_size:counts stride:counts= padding:sizes= ceil_mode:flag= count_include_pad:flag= "
        "divisor_override:count?=",
        _pooled,
    ),
    "aten.cat.default": _Operator("tensors:tensors dim:int=", _joined),
    "aten.clamp.default": _Operator("self:tensor min:number?= max:number?=", _same),
    "aten.conv2d.default": _Operator(_CONVOLUTION.format("sizes"), _convolution),
    "aten.conv2d.padding": _Operator(_CONVOLUTION.format("padding"), _convolution),
    "aten.conv_transpose2d.input": _Operator(
        "input:tensor weight:tensor bias:tensor?= stride:counts= padding:sizes= output_padding:sizes= groups:count= "
        "dilation:counts=",
        _transposed_convolution,
    ),
    "aten.div.Tensor": _Operator("self:tensor other:operand", _broadcast),
    "aten.exp.default": _Operator("self:tensor", _same),
    "aten.expand.default": _Operator("self:tensor size:ints", _expanded),
    "aten.flatten.using_ints": _Operator("self:tensor start_dim:int= end_dim:int=", _same),
    "aten.leaky_relu.default": _Operator("self:tensor negative_slope:number=", _same),
    "aten.matmul.default": _Operator("self:tensor other:tensor", _matrix_product),
    "aten.maximum.default": _Operator("self:tensor other:tensor", _broadcast),
    "aten.mean.dim": _Operator("self:tensor dim:ints keepdim:flag=", _same),
    "aten.mul.Tensor": _Operator("self:tensor other:operand", _broadcast),
    "aten.narrow.default": _Operator("self:tensor dim:int start:int length:int", _same),
    "aten.pad.default": _Operator("self:tensor pad:ints mode:mode= value:number?=", _padded),
    "aten.permute.default": _Operator("self:tensor dims:ints", _same),
    "aten.pixel_shuffle.default": _Operator("self:tensor upscale_factor:count", _same),
    "aten.relu.default": _Operator("self:tensor", _same),
    "aten.relu6.default": _Operator("self:tensor", _same),
    "aten.reshape.default": _Operator("self:tensor shape:ints", _same),
    "aten.rsub.Scalar": _Operator("self:tensor other:number alpha:number=", _same),
    "aten.select.int": _Operator("self:tensor dim:int index:int", _same),
    "aten.slice.Tensor": _Operator("self:tensor dim:int= start:int?= end:int?= step:count=", _same),
    "aten.sqrt.default": _Operator("self:tensor", _same),
    "aten.square.default": _Operator("self:tensor", _same),
    "aten.sub.Tensor": _Operator("self:tensor other:operand", _broadcast),
    "aten.sum.dim_IntList": _Operator("self:tensor dim:ints keepdim:flag=", _same),
    "aten.tanh.default": _Operator("self:tensor", _same),
    "aten.to.dtype": _Operator("self:tensor dtype:dtype", _same),
    "aten.topk.default": _Operator("self:tensor k:count dim:int= largest:flag= sorted:flag=", _sorted),
    "aten.unsqueeze.default": _Operator("self:tensor dim:int", _same),
    "aten.view.default": _Operator("self:tensor size:ints", _same),
    "getitem": _Operator("pair:pair index:position", lambda bound: (0, 0)),
}
"""The operators in the graphs of this package. None of them reads a file or runs code."""

_PAIRS = "aten.topk.default"
"""The one operator that returns two tensors, values and positions, of which `getitem` takes one."""

_JOINS = "aten.cat.default"
"""The one operator that takes a list of tensors."""


@dataclass(frozen=True)
class _Step:
    """A prepared call: which values go in and which comes out, by their positions in the list of all values."""

    name: str
    operator: str
    function: Callable[..., Any]
    arguments: tuple[int, ...]
    named: dict[str, Any]
    result: int
    done: tuple[int, ...]
    """Values that no later step needs."""

    def bind(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the call's arguments by name."""
        given = [values[place] for place in self.arguments]
        if self.operator == _JOINS:
            return {"tensors": given}
        return {**dict(zip(OPERATORS[self.operator].kinds, given, strict=False)), **self.named}


class TorchProgram:
    """A loaded program; called with the inputs in the program's order it returns a tuple of its outputs.

    The first call with a batch of some size is checked step by step: a step that would exceed the limits of memory or
    work is not made, and a tensor without elements or with too many dimensions stops the run. Sizes depend only on the
    batch, so later calls, which are not checked, allocate the same.
    """

    def __init__(self, n_inputs: int, steps: Sequence[_Step], constants: Sequence[Any], outputs: Sequence[int]) -> None:
        self.n_inputs, self.n_outputs = n_inputs, len(outputs)
        self._steps = tuple(steps)
        self._calls = tuple((s.function, s.arguments, s.named, s.result, s.done) for s in steps)
        self._rest: list[Any] = [*[None] * len(steps), *constants]
        """All values after the inputs: the steps' results, then the constants."""
        self._outputs = tuple(outputs)
        self._checked: set[int] = set()

    def to(self, device: torch.device) -> TorchProgram:
        """Move the program's tensors to a device."""
        self._rest = [value.to(device) if isinstance(value, Tensor) else value for value in self._rest]
        return self

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the program.

        Raises:
            BundleError: it needs more memory or work than any export, or one of its steps fails; at the first call with
                a batch of this size.
            Exception: whatever torch raises.
        """
        if inputs[0].shape[0] not in self._checked:
            return self._run_checked(inputs)
        values: list[Any] = [*inputs, *self._rest]
        for function, arguments, named, result, done in self._calls:
            values[result] = function(*[values[place] for place in arguments], **named)
            for place in done:
                values[place] = None
        return tuple([values[place] for place in self._outputs])

    def _run_checked(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        meter = _Meter(inputs[0].shape[0], inputs[0].numel() // 3)
        values: list[Any] = [*inputs, *self._rest]
        for step in self._steps:
            try:
                meter.allow(OPERATORS[step.operator].cost, step.bind(values))
                values[step.result] = step.function(*[values[place] for place in step.arguments], **step.named)
                meter.take(step.result, values[step.result])
            except _RefusedError as refused:
                raise BundleError(f"the program's step {step.name!r} {refused}; do not run it") from None
            except Exception as error:
                if isinstance(error, MemoryError) or inputs[0].is_cuda:
                    raise
                raise BundleError(
                    f"the program's step {step.name!r} ({step.operator}) fails: {said_by(error)}; "
                    "export the bundle again"
                ) from error
            for place in step.done:
                values[place] = None
                meter.free(place)
        self._checked.add(inputs[0].shape[0])
        return tuple([values[place] for place in self._outputs])


class _Meter:
    """Counts what the steps of a run allocate and compute."""

    def __init__(self, n_images: int, n_pixels: int) -> None:
        self._max_bytes = min(_BASE_BYTES + _BYTES_PER_PIXEL * n_pixels, _MAX_BYTES * n_images)
        self._elements = _BASE_ELEMENTS + _ELEMENTS_PER_PIXEL * n_pixels
        self._products = _BASE_PRODUCTS + _PRODUCTS_PER_PIXEL * n_pixels
        self._held: dict[int, int] = {}

    def allow(self, cost: Callable[[_Bound], tuple[int, int]], bound: _Bound) -> None:
        """Refuse a call that would exceed a limit."""
        numel, products = cost(bound)
        self._elements -= numel + _same(bound)[0]
        self._products -= products
        if 4 * numel + sum(self._held.values()) > self._max_bytes:
            raise _RefusedError(
                f"needs more memory than the {self._max_bytes:,} bytes allowed for a model of this size"
            )
        if self._elements < 0 or self._products < 0:
            raise _RefusedError("computes more than is allowed for a model of this size")

    def take(self, place: int, result: Any) -> None:
        """Count a result while it is kept."""
        tensors = result if isinstance(result, tuple) else (result,)
        for tensor in tensors:
            if tensor.dim() > _MAX_SIZES or not tensor.numel():
                raise _RefusedError(f"gives a tensor of shape {list(tensor.shape)[:20]}, which no export does")
        self._held[place] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def free(self, place: int) -> None:
        """Stop counting a result."""
        self._held.pop(place, None)


def load_program(program: Path) -> TorchProgram:
    """Load `program.json` and the tensors next to it (`program.safetensors`).

    Steps that no output needs are left out, with their tensors.

    Raises:
        BundleError: the program is damaged, newer, larger than any export, or asks for an operator or an argument that
            is not allowed.
    """
    try:
        with open_regular(program) as file:
            content = parse_json(read_bounded(file, PROGRAM_LIMITS.size_bytes), PROGRAM_LIMITS)
        return _Reader(content).build(program.with_suffix(".safetensors"))
    except _RefusedError as refused:
        raise BundleError(f"{program} {refused}; do not run it, export the bundle again") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{program} cannot be read ({said_by(error)}); export the bundle again") from error


@dataclass(frozen=True)
class _Node:
    """A node as it was read: an input, a tensor of the file, or a call."""

    name: str
    tensor: str | None = None
    operator: str | None = None
    arguments: tuple[Any, ...] = ()
    """Constants, and `_Reference` to the nodes before it."""
    named: dict[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> list[_Reference]:
        """The nodes that it uses."""
        return [value for value in self.arguments if isinstance(value, _Reference)]


class _Reference(int):
    """The number of a node."""


class _Reader:
    """Turns a program's content into steps and checks all of it."""

    def __init__(self, content: Any) -> None:
        if not isinstance(content, dict):
            raise _RefusedError("is damaged: it contains no record")
        if type(content.get("format")) is not int or content["format"] != PROGRAM_FORMAT:
            raise _RefusedError(f"has format {_shown(content.get('format'))}; this vae-edge reads {PROGRAM_FORMAT}")
        self._nodes: list[_Node] = []
        self._numbers: dict[str, _Reference] = {}
        for name in _list(content, "inputs", _MAX_SIZES):
            self._add(_Node(_name(name)))
        self._n_inputs = len(self._nodes)
        for node in _list(content, "nodes", MAX_NODES):
            self._add(self._read(node))
        self._outputs = [self._reference(name) for name in _list(content, "outputs", _MAX_SIZES)]
        if len(set(self._outputs)) != len(self._outputs):
            raise _RefusedError("returns one value as two outputs")

    def _add(self, node: _Node) -> None:
        if node.name in self._numbers:
            raise _RefusedError(f"has two nodes called {_shown(node.name)}")
        self._numbers[node.name] = _Reference(len(self._nodes))
        self._nodes.append(node)

    def _reference(self, name: Any) -> _Reference:
        try:
            return self._numbers[_name(name)]
        except KeyError:
            raise _RefusedError(f"names {_shown(name)}, which no earlier node makes") from None

    def _read(self, node: Any) -> _Node:
        if not isinstance(node, dict):
            raise _RefusedError(f"has {_shown(node)} in the place of a node")
        name = _name(node.get("name"))
        if set(node) == {"name", "tensor"}:
            return _Node(name, tensor=_name(node["tensor"]))
        if not {"name", "op", "args"} <= set(node) <= {"name", "op", "args", "kwargs"}:
            raise _RefusedError(f"has the node {_shown(name)} with {_shown(sorted(node))}; expected name, op and args")
        called, args, kwargs = node["op"], node["args"], node.get("kwargs", {})
        if not isinstance(called, str) or called not in OPERATORS:
            raise _RefusedError(f"asks for the operator {_shown(called)}, which no vae-edge export uses")
        where = f"{called} in {_shown(name)}"
        kinds = OPERATORS[called].kinds
        if not isinstance(args, list) or not isinstance(kwargs, dict) or len(args) > len(kinds):
            raise _RefusedError(f"gives {where} arguments that it does not have")
        given = dict(zip(kinds, args, strict=False))
        for key in kwargs:
            if key not in kinds or key in given or kinds[key].startswith(_REFERENCES):
                raise _RefusedError(f"gives {where} an argument {_shown(key)}, which it does not have")
        for key, kind in kinds.items():
            if key not in given and key not in kwargs and not kind.endswith("="):
                raise _RefusedError(f"gives {where} no {key}")
        arguments = [self._argument(value, kinds[key], f"{key} of {where}") for key, value in given.items()]
        named = {key: self._argument(value, kinds[key], f"{key} of {where}") for key, value in kwargs.items()}
        if called == _JOINS:
            named |= dict(zip(list(kinds)[1:], arguments[1:], strict=False))
            arguments = arguments[0]
        return _Node(name, None, called, tuple(arguments), named)

    def _argument(self, value: Any, kind: str, what: str) -> Any:
        kind = kind.removesuffix("=")
        if value is None and kind.endswith("?"):
            return None
        kind = kind.removesuffix("?")
        if isinstance(value, dict) and set(value) == {"node"} and kind in (*_REFERENCES, "operand"):
            found = self._reference(value["node"])
            if (self._nodes[found].operator == _PAIRS) == (kind == "pair"):
                return found
        elif kind == "tensors" and isinstance(value, list) and 1 <= len(value) <= MAX_NODES:
            return [self._argument(item, "tensor", what) for item in value]
        elif kind == "dtype" and isinstance(value, dict) and set(value) == {"dtype"}:
            if isinstance(value["dtype"], str) and value["dtype"] in _DTYPES:
                return _DTYPES[value["dtype"]]
        elif kind in _LITERALS and _LITERALS[kind](value):
            return value
        raise _RefusedError(f"has {_shown(value)} as {what}, which no vae-edge export does")

    def build(self, tensors: Path) -> TorchProgram:
        """Make the program, with the tensors that it uses from their file."""
        needed = set(self._outputs)
        for number in reversed(range(len(self._nodes))):
            if number in needed:
                needed.update(self._nodes[number].references)
        from_image = set(range(self._n_inputs))
        for number, node in enumerate(self._nodes):
            if not from_image.isdisjoint(node.references):
                from_image.add(number)
        for output in self._outputs:
            is_tensor = output >= self._n_inputs and self._nodes[output].operator != _PAIRS
            if not is_tensor or output not in from_image:
                raise _RefusedError(
                    f"gives {_shown(self._nodes[output].name)}, which is not a tensor computed from the image"
                )
        calls = [number for number in sorted(needed) if self._nodes[number].operator is not None]
        stored = {node.tensor: node for number, node in enumerate(self._nodes) if number in needed and node.tensor}
        loaded = _read_tensors(tensors, list(stored))
        places = {number: number for number in range(self._n_inputs)}
        places |= {number: self._n_inputs + i for i, number in enumerate(calls)}
        constants: list[Any] = []

        def place(value: Any) -> int:
            """Return the position of a value; a constant gets a new one."""
            if isinstance(value, _Reference) and value in places:
                return places[value]
            tensor = self._nodes[value].tensor if isinstance(value, _Reference) else None
            constants.append(value if tensor is None else loaded[tensor])
            return self._n_inputs + len(calls) + len(constants) - 1

        steps = []
        kept = {places[number] for number in self._outputs}
        arguments = {number: tuple(map(place, self._nodes[number].arguments)) for number in calls}
        for number in reversed(calls):
            node = self._nodes[number]
            assert node.operator is not None  # That is what makes it a call.
            used = {i for i in arguments[number] if i < self._n_inputs + len(calls)}
            function = _function(node.operator)
            steps.append(
                _Step(
                    node.name, node.operator, function, arguments[number], node.named, places[number], (*(used - kept),)
                )
            )
            kept |= used
        return TorchProgram(self._n_inputs, steps[::-1], constants, [places[number] for number in self._outputs])


_REFERENCES = ("tensor", "pair")
"""Kinds of arguments, or their beginnings, that are the results of other nodes."""


def _is_int(value: Any, least: int = -(2**63), most: int = 2**63 - 1) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_list(value: Any, least: int = -(2**63), most: int = 2**63 - 1) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_SIZES and all(_is_int(item, least, most) for item in value)


_LITERALS: dict[str, Callable[[Any], bool]] = {
    "number": _is_number,
    "operand": _is_number,
    "int": _is_int,
    "count": lambda value: _is_int(value, 1, 2**31),
    "position": lambda value: _is_int(value, 0, 1),
    "ints": _is_list,
    "sizes": lambda value: _is_list(value, 0, 2**16) or _is_int(value, 0, 2**16),
    "counts": lambda value: _is_list(value, 1, 2**16) or _is_int(value, 1, 2**16),
    "flag": lambda value: isinstance(value, bool),
    "mode": lambda value: value in ("constant", "reflect", "replicate"),
    "padding": lambda value: value in ("same", "valid"),
}
"""Allowed values of an argument that is not the result of another node, by its kind."""


def _list(content: dict[str, Any], key: str, most: int) -> list[Any]:
    values = content.get(key)
    if not isinstance(values, list) or not 1 <= len(values) <= most:
        raise _RefusedError(f"has no list of 1 to {most:,} {key}")
    return values


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_NAME:
        raise _RefusedError(f"has {_shown(value)} in the place of a name")
    return value


def _shown(value: Any) -> str:
    """Return a value of the file as part of a message."""
    if isinstance(value, (dict, list)):
        return f"a {'record' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = ascii(value if isinstance(value, (bool, float)) or value is None else str(value)[:80])
    return text


def _function(name: str) -> Callable[..., Any]:
    if name == "getitem":
        return operator.getitem
    _, packet, overload = name.split(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return (lambda *tensors, dim=0: found(list(tensors), dim)) if name == _JOINS else found


def _read_tensors(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read tensors by their names, after checking the size of the file's header, which the library does not limit."""
    read_safetensors_header(path)
    with safe_open(path, framework="pt") as tensors:
        # Copied: they are mapped, and a file that is written over later would change them.
        loaded = {name: tensors.get_tensor(name).clone() for name in names}
    for name, tensor in loaded.items():
        if tensor.dtype is not torch.float32 or not tensor.numel() or tensor.dim() > _MAX_SIZES:
            raise _RefusedError(
                f"has the tensor {_shown(name)} as {tensor.dtype} {list(tensor.shape)[:20]}; expected float32 values"
            )
    return loaded
