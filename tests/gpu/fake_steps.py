"""The program of a step on a GPU that is not here: `-m tests.gpu.fake_steps WHICH STEP RESULT OUT`.

The CUDA driver is the fake and TensorRT the double that computes with ONNX Runtime, sound or not; see
`tests/vae_edge/selfcheck/fake_worker.py`. CUDA in torch is the CPU under its name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests.gpu import steps
from tests.vae_edge.selfcheck.fake_worker import SCENARIOS


def use_few_bundles() -> None:
    """Check the bundles of one of the three networks."""
    unpacked = steps._unpacked
    steps._unpacked = lambda part, folder: [each for each in unpacked(part, folder) if each.name.startswith("tiles")]


def without_packages() -> None:
    """Hide the other ways to the GPU, which know no fake."""
    for name in ("cuda", "cuda.bindings", "pycuda"):
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed


def use_torch_with_cuda() -> None:
    """Let torch find a GPU, which is the CPU."""
    import torch

    from vae_edge.backends import torch_backend
    from vae_edge.backends.base import DeviceChoice

    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda device=None: "a double"
    torch_backend._choose_device = lambda asked: DeviceChoice("cpu", f"in place of {asked}")


def let_torch_differ() -> None:
    """Let torch give other scores where CUDA was asked for."""
    from vae_edge.backends import torch_backend

    use_torch_with_cuda()
    init, run = torch_backend.TorchBackend.__init__, torch_backend.TorchBackend._run

    def opened(self: torch_backend.TorchBackend, *arguments: object, **options: object) -> None:
        self.factor = 1.001 if options["options"].device == "cuda" else 1.0  # type: ignore[attr-defined]
        init(self, *arguments, **options)  # type: ignore[arg-type]

    def changed(self: torch_backend.TorchBackend, feeds: object) -> object:
        outputs = run(self, feeds)  # type: ignore[arg-type]
        return {**outputs, "score": outputs["score"] * self.factor}  # type: ignore[attr-defined]

    torch_backend.TorchBackend.__init__ = opened  # type: ignore[method-assign]
    torch_backend.TorchBackend._run = changed  # type: ignore[assignment,method-assign]


def start_a_child_and_hang() -> None:
    """Leave a process behind, unless whoever ends this one ends it too."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    sys.stdout.write(f"child {child.pid}\n")
    sys.stdout.flush()
    time.sleep(600)


ENDINGS: dict[str, Callable[[], None]] = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": start_a_child_and_hang,
    "torch": use_torch_with_cuda,
    "torch-differs": let_torch_differ,
}
"""What becomes of every step but the first, beyond what a self-check can meet."""

if __name__ == "__main__":
    which, name = sys.argv[1], sys.argv[2]
    without_packages()
    use_few_bundles()
    if which in ENDINGS:
        SCENARIOS["sound"]()
        if name != "machine":
            ENDINGS[which]()
    else:
        SCENARIOS[which]()
        steps.WORKER = (sys.executable, "-m", "tests.vae_edge.selfcheck.fake_worker", which)
    steps.main(*sys.argv[2:])
