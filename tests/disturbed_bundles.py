"""Disturbs the numbers in a bundle's model files, as a mistake or an attacker would, and corrects the hashes.

What is left to notice it is what the model computes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.hostile_bundles import change_manifest
from vae_edge.bundle import Bundle

_IR_CONSTANT = re.compile(
    r'type="Const"[^>]*>\s*<data element_type="(f32|f16|i8|u8)" shape="([^"]*)" offset="(\d+)" size="(\d+)"'
)
_IR_TYPES = {"f32": "<f4", "f16": "<f2", "i8": "i1", "u8": "u1"}


@dataclass(frozen=True)
class Numbers:
    """The numbers of a model that decide its outputs, as arrays that may be changed."""

    weights: list[NDArray[Any]]
    """Of convolutions, four-dimensional, in the order of the file; in INT8 the levels."""
    constants: list[NDArray[Any]]
    """What the scoring subtracts and divides by, [1, 1, H, W] or [H, W]."""


Disturbance = Callable[[Numbers], None]


def set_values(array: NDArray[Any], values: NDArray[Any]) -> None:
    """Put other values into an array, rounded and cut off where it holds integers."""
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    array[...] = values.astype(array.dtype)


def layer_scaled(numbers: Numbers) -> None:
    array = numbers.weights[-2]
    set_values(array, array.astype(np.float64) * 1.05)


def channel_zeroed(numbers: Numbers) -> None:
    array = numbers.weights[-2]
    array[_strongest(array)[0]] = 0


def channels_swapped(numbers: Numbers) -> None:
    array = numbers.weights[-2]
    first, second = _strongest(array)[:2]
    array[[first, second]] = array[[second, first]]


def noise_added(numbers: Numbers, share: float = 0.02) -> None:
    for number, array in enumerate(numbers.weights):
        values = array.astype(np.float64)
        noise = np.random.default_rng(number).normal(0, share * float(values.std()), values.shape)
        set_values(array, values + noise)


def constants_changed(numbers: Numbers) -> None:
    for array in numbers.constants:
        set_values(array, array.astype(np.float64) * 1.02)


DISTURBANCES: tuple[Disturbance, ...] = (
    layer_scaled,
    channel_zeroed,
    channels_swapped,
    noise_added,
    constants_changed,
)


def disturb(bundle: Bundle, out: Path, disturbance: Disturbance) -> Path:
    """Copy a bundle, disturb its model and correct sizes, hashes and digest; return the folder."""
    shutil.copytree(bundle.folder, out)
    if (out / "model.onnx").is_file():
        _disturb_onnx(out / "model.onnx", disturbance)
    elif (out / "model.xml").is_file():
        _disturb_openvino(out / "model.xml", disturbance)
    else:
        _disturb_torch(out / "program.safetensors", disturbance)
    change_manifest(out)
    return out


def _disturb_onnx(path: Path, disturbance: Disturbance) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    arrays = [(tensor, numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer]
    disturbance(_numbers([array for _, array in arrays]))
    for tensor, array in arrays:
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, str(path))


def _disturb_openvino(path: Path, disturbance: Disturbance) -> None:
    data = bytearray(path.with_suffix(".bin").read_bytes())
    arrays = []
    for kind, shape, offset, size in _IR_CONSTANT.findall(path.read_text(encoding="utf-8")):
        sizes = [int(each) for each in shape.split(",") if each.strip()]
        count = int(size) // np.dtype(_IR_TYPES[kind]).itemsize
        arrays.append(np.frombuffer(data, _IR_TYPES[kind], count, int(offset)).reshape(sizes))
    disturbance(_numbers(arrays))
    path.with_suffix(".bin").write_bytes(data)


def _disturb_torch(path: Path, disturbance: Disturbance) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = {name: array.copy() for name, array in load_file(path).items()}
    disturbance(_numbers(list(tensors.values())))
    save_file(tensors, path)


def _numbers(arrays: list[NDArray[Any]]) -> Numbers:
    def is_weight(array: NDArray[Any]) -> bool:
        return array.ndim == 4 and min(array.shape[2:]) >= 2 and max(array.shape[2:]) <= 8 and array.size >= 48

    def is_constant(array: NDArray[Any]) -> bool:
        return array.ndim == 4 and array.shape[:2] == (1, 1) and min(array.shape[2:]) >= 16

    found = Numbers([a for a in arrays if is_weight(a)], [a for a in arrays if is_constant(a)])
    assert len(found.weights) >= 2
    assert found.constants
    return found


def _strongest(array: NDArray[Any]) -> NDArray[np.intp]:
    """Return the first axis' positions, that of the largest values first."""
    strengths = np.abs(array.astype(np.float64)).reshape(len(array), -1).sum(axis=1)
    return np.argsort(-strengths, kind="stable")
