"""torch: the exported program on the CPU or on a CUDA GPU, without the network's class."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.backends.base import Backend, DeviceChoice, Layout, RuntimeOptions, Tensors, check_outputs
from vae_edge.backends.torch_program import TorchProgram, load_program
from vae_edge.errors import BundleError, DeviceError, InputError, said_by
from vae_edge.manifest import TensorSpec
from vae_edge.platform.after_fork import was_loaded_before_fork

_log = logging.getLogger(__name__)


class TorchBackend(Backend):
    """Runs `program.json` in FP32.

    `device`: `auto` takes CUDA where it is available and the CPU otherwise; `cpu`, `cuda` or `cuda:N` ask for one.
    `threads` sets torch's number of threads for the process: torch has no other. Outputs are new arrays. On the
    CPU one call runs after the other: each has all the threads. Opening runs the program once, on a black image: that
    is how it is known to have the outputs that it should.
    """

    def __init__(
        self,
        model: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        max_batch: int | None,
        options: RuntimeOptions,
    ) -> None:
        device = _choose_device(options.device)
        if was_loaded_before_fork("torch"):
            # Its threads stayed with the parent, and with more than one it would wait for them.
            torch.set_num_threads(1)
            _log.warning("torch was loaded before this process was forked, so it uses one thread")
        elif options.threads is not None:
            torch.set_num_threads(options.threads)
        self._device = torch.device(device.name)
        # A signal handler that interrupts a call may make one.
        self._one_at_a_time = threading.RLock() if self._device.type == "cpu" else nullcontext()
        if self._device.type == "cuda":
            # TF32 would move the scores away from the trained model's.
            torch.backends.cudnn.allow_tf32 = False
        program = load_program(model)
        if (program.n_inputs, program.n_outputs) != (len(inputs), len(outputs)):
            raise BundleError(
                f"{model} has {program.n_inputs} inputs and {program.n_outputs} outputs; expected {len(inputs)} and "
                f"{len(outputs)}: it is not a vae-edge model; export the bundle again"
            )
        self._program: TorchProgram | None = program.to(self._device)
        super().__init__(
            inputs,
            outputs,
            max_batch=max_batch,
            device=device,
            layout=Layout(1, torch.get_num_threads() if self._device.type == "cpu" else None, None),
            version=f"torch {torch.__version__}",
        )
        self._try(model)

    def _try(self, model: Path) -> None:
        black = {spec.name: np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in self.inputs}
        try:
            check_outputs(self._run(black), self.outputs, 1)
        except (BundleError, DeviceError) as error:
            raise BundleError(f"{model} cannot be used: {error}") from error
        except Exception as error:
            raise DeviceError(f"{model} cannot be run on {self.device.name}: {said_by(error)}") from error

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        program = self._program
        assert program is not None  # Only `_free` takes it away, and nothing runs then.
        with self._one_at_a_time, torch.inference_mode():
            values = program(*[_tensor(feeds[spec.name]).to(self._device) for spec in self.inputs])
            return {spec.name: value.cpu().numpy() for spec, value in zip(self.outputs, values, strict=True)}

    def _free(self) -> None:
        self._program = None


def _tensor(feed: NDArray[Any]) -> torch.Tensor:
    # torch knows no read-only memory and warns of it at every call.
    feed = feed if feed.flags.writeable else feed.copy()
    # An axis of length 1 may have any stride, and torch chooses by it between convolutions that round differently: one
    # image must get the same score alone (`image[None]`) and as a part of an array.
    return torch.from_numpy(np.ndarray(feed.shape, feed.dtype, feed.data))


def _choose_device(asked: str) -> DeviceChoice:
    name = asked.strip().lower()
    if name == "auto":
        if torch.cuda.is_available():
            return DeviceChoice("cuda", f"torch finds {torch.cuda.get_device_name()}")
        return DeviceChoice("cpu", "torch finds no CUDA GPU")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not index.isdecimal()) or (kind == "cpu" and colon):
        raise InputError(f"torch does not know the device {asked!r}; expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise DeviceError(f"torch {torch.__version__} finds no {asked} here; open with device='cpu'")
    return DeviceChoice(name, "asked for")
