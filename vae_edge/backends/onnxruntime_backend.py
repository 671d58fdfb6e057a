"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from vae_edge.backends.base import Backend, DeviceChoice, Layout, RuntimeOptions, Tensors
from vae_edge.errors import DeviceError
from vae_edge.manifest import TensorSpec

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    # TF32 has 10 bits of mantissa and is on by default: it would move the scores away from the trained model's.
    "cuda": {"use_tf32": "0"},
}


class OnnxRuntimeBackend(Backend):
    """Runs `model.onnx` on the CPU, or on an NVIDIA GPU where onnxruntime-gpu is installed.

    `device`: `auto` and `cpu` take the CPU, `cuda` or `cuda:N` the GPU. Outputs are new arrays at every call.
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
        kind, _, index = device.name.partition(":")
        provider = _PROVIDERS[kind]
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        # A spinning thread pool takes the second core from the decoder: 7.4 ms against 3.4 ms on a busy 2-core machine.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(model),
                settings,
                providers=[(provider, {**_PROVIDER_OPTIONS[kind], **({"device_id": index} if index else {})})],
            )
        except Exception as error:
            raise DeviceError(f"ONNX Runtime {onnxruntime.__version__} cannot load {model}: {error}") from error
        # A provider that fails to start is replaced by the CPU with a mere warning.
        if provider not in self._session.get_providers():
            raise DeviceError(f"ONNX Runtime could not start {provider}; check the driver, or open with device='cpu'")
        self._names = [spec.name for spec in outputs]
        super().__init__(
            inputs,
            outputs,
            max_batch=max_batch,
            device=device,
            layout=Layout(1, options.threads, None),
            version=f"ONNX Runtime {onnxruntime.__version__}",
        )

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as error:
            raise DeviceError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self._names, values, strict=True))

    def _free(self) -> None:
        self._session = None


def _choose_device(asked: str) -> DeviceChoice:
    name = asked.strip().lower()
    available = onnxruntime.get_available_providers()
    if name == "auto":
        return DeviceChoice("cpu", "ONNX Runtime's CPU provider is always there; ask for cuda to use an NVIDIA GPU")
    kind, colon, index = name.partition(":")
    if kind not in _PROVIDERS or (colon and not index.isdecimal()) or (kind == "cpu" and colon):
        raise DeviceError(f"ONNX Runtime has no device {asked!r} here; expected auto, cpu, cuda or cuda:N")
    if _PROVIDERS[kind] not in available:
        raise DeviceError(
            f"this ONNX Runtime {onnxruntime.__version__} has no {_PROVIDERS[kind]} (it has {', '.join(available)}); "
            "install onnxruntime-gpu in its place, or open with device='cpu'"
        )
    return DeviceChoice(name, "asked for")
