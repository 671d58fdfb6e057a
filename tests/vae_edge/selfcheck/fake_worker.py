"""The program of a step on a device that is not here: `-m tests.vae_edge.selfcheck.fake_worker WHICH JOB RESULT`.

The CUDA driver is the fake, TensorRT the double that computes with ONNX Runtime; WHICH says what is wrong with them.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.vae_edge.backends import tensorrt_double
from tests.vae_edge.backends.cuda.driver_fake import DriverFake
from tests.vae_edge.backends.tensorrt_double import CudaDouble, TensorRtDouble
from vae_edge.backends.cuda import driver
from vae_edge.backends.cuda.gpus import Gpu
from vae_edge.backends.onnxruntime_backend import OnnxRuntimeBackend
from vae_edge.backends.tensorrt import module
from vae_edge.backends.tensorrt_backend import TensorRtBackend
from vae_edge.selfcheck import worker


class CorruptingDriver(DriverFake):
    """Changes a byte of what is copied back, as a defective memory or a missing synchronization does."""

    def _cuStreamSynchronize(self, stream: int) -> int:
        copied = list(self.streams.get(stream, []))
        code = super()._cuStreamSynchronize(stream)
        for target, _, size in copied:
            if target in self.pinned and size > 1000:
                ctypes.c_uint8.from_address(target + 999).value ^= 1
        return code


def use_device(fake: DriverFake) -> None:
    """Put the driver and TensorRT in the place of the real ones."""
    driver.load_library = lambda: fake
    double = TensorRtDouble(CudaDouble())
    sys.modules["tensorrt_rtx"] = None  # type: ignore[assignment]  # as if it were not installed
    module._found["tensorrt"] = double.module
    defaults: Any = TensorRtBackend.__init__.__kwdefaults__
    defaults |= {"open_memory": double.open_memory, "find_gpus": lambda: [Gpu(0, "Orin", "8.7", 16)]}


def change_outputs(change: Callable[[Any], Any]) -> None:
    """Let every engine of a double that is made after this give something else."""
    run = tensorrt_double.run_onnx
    tensorrt_double.run_onnx = lambda *arguments: {name: change(value) for name, value in run(*arguments).items()}


def let_onnx_runtime_give(value: float, *, after: int) -> None:
    """Let ONNX Runtime give other scores from one of its calls on."""
    run = OnnxRuntimeBackend._run
    calls = iter(range(10**9))

    def changed(self: Any, feeds: Any) -> Any:
        outputs = run(self, feeds)
        if next(calls) >= after:
            outputs["score"] = np.full_like(outputs["score"], value)
        return outputs

    OnnxRuntimeBackend._run = changed  # type: ignore[method-assign]  # this process ends soon


def say_private_things() -> None:
    """Write what must not be sent where a crash leaves its messages, and fail with it."""
    texts = os.environ["PRIVATE"].split("|")
    sys.stderr.write("\n".join(texts) + "\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGABRT)


def use_broken_engines(change: Callable[[Any], Any]) -> None:
    """Put a device there whose engines give something else."""
    change_outputs(change)
    use_device(DriverFake())


def crash_at_exit() -> None:
    """Put a sound device there whose library aborts when Python ends."""
    use_device(DriverFake())
    atexit.register(os.abort)


SCENARIOS: dict[str, Callable[[], None]] = {
    "sound": lambda: use_device(DriverFake()),
    "corrupting": lambda: use_device(CorruptingDriver()),
    "wrong-engine": lambda: use_broken_engines(lambda value: value * 1.5),
    "nan-engine": lambda: use_broken_engines(lambda value: value * np.float32("nan")),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "crash-at-exit": crash_at_exit,
    "hang": lambda: time.sleep(600),
    "nan": lambda: let_onnx_runtime_give(float("nan"), after=0),
    "drift": lambda: let_onnx_runtime_give(1e3, after=100),
    "private": say_private_things,
}


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
    worker.main(*sys.argv[2:])
