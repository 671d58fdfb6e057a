"""Runs a TensorRT or TensorRT-RTX engine."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import Backend, DeviceChoice, Layout, RuntimeOptions, Tensors, close_at_exit
from vae_edge.backends.cuda.adapters import open_cuda_memory
from vae_edge.backends.cuda.gpus import Gpu, find_gpus
from vae_edge.backends.cuda.memory import CudaMemory, Lane
from vae_edge.backends.tensorrt.engine import EnginePlace, check_tensors, load_engine
from vae_edge.backends.tensorrt.module import TensorRtModule, find_tensorrt, judge_plan
from vae_edge.errors import DeviceError, InputError
from vae_edge.manifest import TensorSpec

_log = logging.getLogger(__name__)


@dataclass
class _Seat:
    """What one thread runs with: an execution context, and a stream with buffers."""

    owner: threading.Thread
    context: Any
    lane: Lane


class TensorRtBackend(Backend):
    """An engine on one GPU.

    Every calling thread gets an execution context, a stream and buffers of its own, made at its first call and kept;
    a thread that has ended leaves them to the next new one. `close` waits for the calls under way and frees them all.
    `RuntimeOptions.threads` means nothing here: the GPU does the work.

    Args:
        model: the plan file.
        inputs: the input tensors that the engine must have.
        outputs: the output tensors that the engine must have.
        max_batch: largest batch that will come; None: the largest that the engine takes.
        options: `device` is `auto` (the first GPU), `cuda` (the same) or `cuda:N`.
        find_module: finds TensorRT by flavour.
        open_memory: opens a device by its number.
        find_gpus: lists the GPUs, by their numbers.

    Raises:
        InputError: `options.device` is not an NVIDIA device.
        DeviceError: there is no GPU; the engine does not fit this device or TensorRT, and another may not
            (`options.rebuild`) or cannot be built from the ONNX beside it; or it has other tensors.
        MissingDependencyError: TensorRT or the chosen package for CUDA is not installed.
    """

    def __init__(
        self,
        model: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        max_batch: int | None,
        options: RuntimeOptions,
        find_module: Callable[[str | None], TensorRtModule] = find_tensorrt,
        open_memory: Callable[[int], CudaMemory] = open_cuda_memory,
        find_gpus: Callable[[], list[Gpu]] = find_gpus,
    ) -> None:
        index = parse_device(options.device)
        self._module, misfit = judge_plan(model, find_module)
        self._seating = threading.RLock()
        self._seats: list[_Seat] = []
        self._own = threading.local()
        self._runtime: Any = None
        self._engine: Any = None
        self._memory = open_memory(index)
        reason = f"the first GPU ({options.device})" if ":" not in options.device else f"asked for {options.device}"
        device = DeviceChoice(f"cuda:{index}", f"{reason}, through {_described(self._memory)}")
        super().__init__(
            inputs,
            outputs,
            max_batch=max_batch,
            device=device,
            # Two: while one stream computes, the other copies.
            layout=Layout(options.requests or 2, None, None),
            version=str(self._module),
        )
        # After the adapter, so before any exit handler that it has registered.
        close_at_exit(self)
        try:
            place = EnginePlace(self._module, lambda: _gpu(find_gpus(), index), self._memory.activate)
            with self._memory.activate():
                loaded = load_engine(model, misfit, place, max_batch=max_batch, options=options)
                self._runtime, self._engine = loaded.runtime, loaded.engine
                check_tensors(self._module, self._engine, model, inputs, outputs)
        except BaseException:
            self.close()
            raise
        self.notes = () if loaded.note is None else (loaded.note,)
        self.rebuilt_sha256 = loaded.rebuilt_sha256
        self.max_batch = loaded.largest_batch if max_batch is None else max_batch
        self._sizes_bytes = {spec.name: _size_bytes(spec, self.max_batch) for spec in (*inputs, *outputs)}

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        # A signal handler that interrupts a call may make one: on a seat of its own.
        mine: list[_Seat] = self._own.__dict__.setdefault("seats", [])
        with self._memory.activate():
            seat = mine.pop() if mine else self._seat()
            try:
                return self._infer(seat, feeds)
            finally:
                mine.append(seat)

    def _seat(self) -> _Seat:
        """Return a seat for the calling thread: one of a thread that has ended, or a new one."""
        # One at a time: creating execution contexts is not documented as safe from several threads.
        with self._seating:
            mine = next((seat for seat in self._seats if not seat.owner.is_alive()), None)
            if mine is None:
                mark = self._module.errors.mark()
                context = self._engine.create_execution_context()
                if context is None:
                    reason = self._module.errors.since(mark)
                    raise DeviceError(f"{self._module} could not create an execution context: {reason}")
                mine = _Seat(threading.current_thread(), context, Lane(self._memory, self._sizes_bytes))
                self._seats.append(mine)
            mine.owner = threading.current_thread()
            return mine

    def _infer(self, seat: _Seat, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        context, lane = seat.context, seat.lane
        mark = self._module.errors.mark()
        batch = feeds[self.inputs[0].name].shape[0]
        try:
            for spec in self.inputs:
                feed = feeds[spec.name]
                lane.pinned[spec.name].array[: feed.nbytes] = feed.reshape(-1).view(np.uint8)
                lane.send(spec.name, feed.nbytes)
            for spec in self.inputs:
                accepted = context.set_input_shape(spec.name, feeds[spec.name].shape)
                self._check(accepted, f"the shape {feeds[spec.name].shape} of {spec.name!r}", mark)
            for name, buffer in lane.device.items():
                self._check(context.set_tensor_address(name, buffer.address), f"the address of {name!r}", mark)
            for spec in self.outputs:
                shape, expected = tuple(context.get_tensor_shape(spec.name)), (batch, *spec.shape[1:])
                self._check(shape == expected, f"the shape {expected} of {spec.name!r}, which it makes {shape}", mark)
            self._check(context.execute_async_v3(lane.stream.handle), "the work", mark)
            for spec in self.outputs:
                lane.fetch(spec.name, _size_bytes(spec, batch))
            lane.synchronize()
        except BaseException:
            # What is queued still reads and writes the buffers, which the thread's next call uses again.
            with suppress(DeviceError):
                lane.synchronize()
            raise
        return {spec.name: _owned(lane.pinned[spec.name].array, spec, batch) for spec in self.outputs}

    def _check(self, accepted: bool, what: str, mark: int) -> None:
        if not accepted:
            raise DeviceError(f"{self._module} refused {what}: {self._module.errors.since(mark)}")

    def _free(self) -> None:
        try:
            with self._memory.activate():
                self._free_on_device()
            self._memory.close()
        except DeviceError as error:
            # After a failed kernel every later CUDA call fails; what is left goes with the process.
            _log.warning("could not free %s: %s", self.device.name, error)
            self._engine = self._runtime = None

    def _free_on_device(self) -> None:
        for seat in self._seats:
            # The context first: it refers to the buffers. Then the engine, which the contexts refer to.
            seat.context = None
            seat.lane.free()
        self._seats.clear()
        self._own = threading.local()
        self._engine = None
        self._runtime = None


def parse_device(device: str) -> int:
    """Return the GPU's number in `auto` (0), `cuda` (0) or `cuda:N`.

    Raises:
        InputError: it is not one of them.
    """
    match = re.fullmatch(r"auto|cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise InputError(f"device {device!r} is not supported by TensorRT; expected auto, cuda or cuda:N")
    return int(match.group(1) or 0)


def _described(memory: CudaMemory) -> str:
    in_place = ", with host memory in place" if memory.maps_host_memory else ""
    return f"{memory.library}{in_place}" + (f" ({'; '.join(memory.refused)})" if memory.refused else "")


def _gpu(gpus: list[Gpu], index: int) -> Gpu:
    return next(gpu for gpu in gpus if gpu.index == index)


def _size_bytes(spec: TensorSpec, batch: int) -> int:
    return prod(batch if size is None else size for size in spec.shape) * np.dtype(spec.dtype).itemsize


def _owned(buffer: NDArray[np.uint8], spec: TensorSpec, batch: int) -> NDArray[Any]:
    """Return a copy of a pinned buffer's first bytes as the tensor they hold."""
    values = buffer[: _size_bytes(spec, batch)].view(spec.dtype)
    return values.reshape([batch if size is None else size for size in spec.shape]).copy()
