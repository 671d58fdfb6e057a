"""OpenVINO."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from vae_edge.backends.base import Backend, DeviceChoice, Layout, RuntimeOptions, Tensors
from vae_edge.errors import DeviceError
from vae_edge.manifest import TensorSpec

_DEVICES = ("cpu", "gpu", "npu")


class OpenVinoBackend(Backend):
    """Runs `model.xml` on an Intel CPU (other x86-64 and Arm CPUs too), GPU or NPU.

    `device`: `auto` and `cpu` take the CPU; `gpu`, `gpu.N` or `npu` another device. Outputs are copies.

    | bundle | on a CPU                                   | on a GPU                    | on an NPU |
    |--------|--------------------------------------------|-----------------------------|-----------|
    | FP32   | FP32                                       | FP32                        | FP16      |
    | FP16   | FP32, with weights that FP16 has rounded   | FP16                        | FP16      |
    | INT8   | convolutions in INT8, the rest in FP32     | the same                    | INT8, FP16 |

    The half precision that GPUs and bfloat16 CPUs take by default is turned off but for FP16 bundles on a GPU, so that
    the verdict stays the trained model's. bfloat16 is never used: it has three bits less than FP16.
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
        core = openvino.Core()
        device = _choose_device(core, options.device)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        # The NPU runs static shapes only, one image at a time.
        batch = 1 if device.name == "npu" else None
        try:
            network = core.read_model(model)
            if batch is not None:
                network.reshape({spec.name: (batch, *spec.shape[1:]) for spec in inputs})
            if device.name != "npu":
                settings["INFERENCE_PRECISION_HINT"] = _arithmetic(network, device.name)
            self._model: Any = core.compile_model(network, device.name.upper(), settings)
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO {_version()} cannot load {model} on {device.name}: {error}") from error
        self._names = [spec.name for spec in outputs]
        self._requests = threading.local()
        super().__init__(
            inputs,
            outputs,
            max_batch=batch if batch is not None else max_batch,
            device=device,
            layout=Layout(1, options.threads, batch),
            version=f"OpenVINO {_version()}",
        )

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        request = getattr(self._requests, "request", None)
        if request is None:
            # A request serves one inference at a time, so every thread has its own.
            request = self._requests.request = self._model.create_infer_request()
        try:
            request.infer(dict(feeds), share_inputs=True)
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO failed on {self.device.name}: {error}") from error
        return {name: np.array(request.get_tensor(name).data) for name in self._names}

    def _free(self) -> None:
        self._requests = threading.local()
        self._model = None


def _arithmetic(network: openvino.Model, device: str) -> str:
    """Return what floating-point layers are computed in: `f16` on a GPU where the model was exported for it."""
    key = ["vae_edge", "precision"]
    stored = str(network.get_rt_info(key).astype(str)) if network.has_rt_info(key) else "fp32"
    return "f16" if stored == "fp16" and device.startswith("gpu") else "f32"


def _choose_device(core: openvino.Core, asked: str) -> DeviceChoice:
    name = asked.strip().lower()
    available = core.available_devices
    if name == "auto":
        return DeviceChoice("cpu", "OpenVINO's CPU plugin is always there; ask for gpu or npu to use another device")
    kind = name.split(".")[0]
    if kind not in _DEVICES:
        raise DeviceError(f"OpenVINO has no device {asked!r}; expected auto, {', '.join(_DEVICES)}")
    if not any(found.lower() == name or found.lower().split(".")[0] == name for found in available):
        raise DeviceError(
            f"OpenVINO {_version()} finds no {asked} here (it finds {', '.join(available) or 'nothing'}); "
            "install the device's driver, or open with device='cpu'"
        )
    return DeviceChoice(name, "asked for")


def _version() -> str:
    return str(openvino.__version__).split("-")[0]
