"""ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vae_edge.backends.base import (
    Backend,
    DeviceChoice,
    Hint,
    Layout,
    RuntimeOptions,
    Signature,
    Tensors,
    check_signature,
)
from vae_edge.errors import DeviceError, said_by
from vae_edge.manifest import TensorSpec
from vae_edge.platform.machine import usable_cores
from vae_edge.platform.telemetry import import_onnxruntime

onnxruntime = import_onnxruntime()

_log = logging.getLogger(__name__)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    # TF32 has 10 bits of mantissa and is on by default: it would move the scores away from the trained model's.
    "cuda": {"use_tf32": "0"},
}

_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


class OnnxRuntimeBackend(Backend):
    """Runs `model.onnx` on the CPU, or on an NVIDIA GPU where onnxruntime-gpu is installed.

    `device`: `auto` takes the GPU where this ONNX Runtime has the provider and it starts, else the CPU; `cpu`, `cuda`
    or `cuda:N` ask for one. Outputs are new arrays at every call.

    For throughput every core runs an inference of its own: the session works on the caller's thread, and as many
    callers as cores gave 1.4 (FP32) to 2 times (INT8) the images/s of one inference on two cores.
    """

    separate_throughput = True

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
        layout = _layout(device.name, options)
        try:
            self._session: Any = _open_session(model, device.name, layout, options)
        except Exception as error:
            if device.name == "cpu" or options.device.strip().lower() != "auto":
                raise
            device = DeviceChoice("cpu", f"the CPU, because: {said_by(error)}")
            _log.warning("%s; the CPU is used", said_by(error))
            layout = _layout("cpu", options)
            self._session = _open_session(model, "cpu", layout, options)
        found = _signature(self._session.get_inputs()), _signature(self._session.get_outputs())
        check_signature(model, found, inputs, outputs)
        self._names = [spec.name for spec in outputs]
        super().__init__(
            inputs,
            outputs,
            max_batch=max_batch,
            device=device,
            layout=layout,
            version=f"ONNX Runtime {onnxruntime.__version__}",
        )

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        return dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))

    def _free(self) -> None:
        self._session = None


def _layout(device: str, options: RuntimeOptions) -> Layout:
    if device != "cpu":
        return Layout(options.requests or 1, None, None)
    threads = options.threads or usable_cores()
    requests = (options.requests or threads) if options.hint is Hint.THROUGHPUT else 1
    # The session's threads are one inference's, the caller's own among them.
    return Layout(requests, max(threads // requests, 1) * requests, None)


def _open_session(model: Path, device: str, layout: Layout, options: RuntimeOptions) -> Any:
    kind, _, index = device.partition(":")
    provider = _PROVIDERS[kind]
    settings = onnxruntime.SessionOptions()
    # Its errors come as exceptions; printed as well, a name in a foreign file would reach the terminal as it is.
    settings.log_severity_level = 4
    # A spinning thread pool takes the second core from the decoder: 7.4 ms against 3.4 ms on a busy 2-core machine.
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    if layout.threads is not None:
        settings.intra_op_num_threads = layout.threads // layout.requests
    session = onnxruntime.InferenceSession(
        str(model),
        settings,
        providers=[(provider, {**_PROVIDER_OPTIONS[kind], **({"device_id": index} if index else {})})],
    )
    # A provider that fails to start is replaced by the CPU with a mere warning.
    if provider not in session.get_providers():
        raise DeviceError(f"ONNX Runtime could not start {provider}; check the driver, or open with device='cpu'")
    return session


def _signature(values: Any) -> Signature:
    """Return what a session says of its inputs or outputs; a size that is not fixed has a name there, or none."""
    return {
        value.name: (
            _TYPES.get(value.type, value.type),
            tuple(size if isinstance(size, int) else None for size in value.shape or ()),
        )
        for value in values
    }


def _choose_device(asked: str) -> DeviceChoice:
    name = asked.strip().lower()
    available = onnxruntime.get_available_providers()
    if name == "auto":
        if _PROVIDERS["cuda"] in available:
            return DeviceChoice("cuda", "this ONNX Runtime was built for NVIDIA GPUs and its provider starts")
        return DeviceChoice("cpu", f"this ONNX Runtime {onnxruntime.__version__} was built without NVIDIA GPUs")
    kind, colon, index = name.partition(":")
    if kind not in _PROVIDERS or (colon and not index.isdecimal()) or (kind == "cpu" and colon):
        raise DeviceError(f"ONNX Runtime does not know the device {asked!r}; expected auto, cpu, cuda or cuda:N")
    if _PROVIDERS[kind] not in available:
        raise DeviceError(
            f"this ONNX Runtime {onnxruntime.__version__} has no {_PROVIDERS[kind]} (it has {', '.join(available)}); "
            "install onnxruntime-gpu instead, or open with device='cpu'"
        )
    return DeviceChoice(name, "asked for")
