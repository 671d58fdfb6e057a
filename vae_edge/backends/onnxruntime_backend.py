"""ONNX Runtime."""

from __future__ import annotations

import io
import logging
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import numpy as np
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
from vae_edge.backends.onnxruntime_devices import (
    DEVICES,
    Asked,
    OnnxDevice,
    advice,
    has_provider,
    installed,
    parse,
)
from vae_edge.errors import DeviceError, said_by
from vae_edge.manifest import TensorSpec
from vae_edge.platform.machine import look_at_machine, usable_cores
from vae_edge.platform.telemetry import import_onnxruntime
from vae_edge.platform.wheels import this_platform

onnxruntime = import_onnxruntime()

_log = logging.getLogger(__name__)

BATCH_AXIS = "N"
"""The name of the batch's size in every exported graph."""

_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


class OnnxRuntimeBackend(Backend):
    """Runs `model.onnx` on the CPU, or on what another build of ONNX Runtime or a plug-in for it reaches.

    `device`: `auto` takes an NVIDIA GPU where this ONNX Runtime has CUDA's provider and it starts, else the CPU; the
    others, see `vae_edge.backends.onnxruntime_devices`, have to be asked for. A device that was asked for and takes no
    node of the model is an error. Outputs are new arrays at every call.

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
        asked, reason = _choose_device(options.device)
        layout = _layout(asked, options)
        try:
            self._session, taken = _open_session(model, asked, layout, options)
        except Exception as error:
            if asked.device.name == "cpu" or options.device.strip().lower() != "auto":
                raise
            asked, reason = Asked(DEVICES["cpu"]), f"the CPU, because: {said_by(error)}"
            _log.warning("%s; the CPU is used", said_by(error))
            layout = _layout(asked, options)
            self._session, taken = _open_session(model, asked, layout, options)
        found = _signature(self._session.get_inputs()), _signature(self._session.get_outputs())
        check_signature(model, found, inputs, outputs)
        self._names = [spec.name for spec in outputs]
        # The session's own `run` first asks for graphs that are captured and memory on devices, which the CPU does not
        # have; right after an inference that takes 0.01 ms.
        session = getattr(self._session, "_sess", self._session) if asked.device.name == "cpu" else self._session
        self._infer = session.run
        # Reentrant: a signal handler that interrupts an inference may run another one.
        self._one_at_a_time: AbstractContextManager[Any] = RLock() if asked.device.one_caller else nullcontext()
        self.reduced_to = asked.reduced_to if options.reduced else None
        super().__init__(
            inputs,
            outputs,
            max_batch=max_batch,
            device=DeviceChoice(asked.name, reason + taken),
            layout=layout,
            version=f"ONNX Runtime {onnxruntime.__version__}",
        )

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        with self._one_at_a_time:
            if self.layout.batch is None:
                outputs = self._infer(self._names, dict(feeds), None)
            else:
                n_images = next(iter(feeds.values())).shape[0]
                singly = [{name: feed[i : i + 1] for name, feed in feeds.items()} for i in range(n_images)]
                each = [self._infer(self._names, one, None) for one in singly]
                outputs = [np.concatenate(parts) for parts in zip(*each, strict=True)]
        return dict(zip(self._names, outputs, strict=True))

    def _free(self) -> None:
        self._session = self._infer = None


def _layout(asked: Asked, options: RuntimeOptions) -> Layout:
    batch = 1 if asked.one_image else None
    if not asked.runs_on_cpu:
        return Layout(1 if asked.device.one_caller else options.requests or 1, None, batch)
    threads = options.threads or usable_cores()
    requests = (options.requests or threads) if options.hint is Hint.THROUGHPUT else 1
    # The session's threads are one inference's, the caller's own among them.
    return Layout(requests, max(threads // requests, 1) * requests, batch)


def _open_session(model: Path, asked: Asked, layout: Layout, options: RuntimeOptions) -> tuple[Any, str]:
    """Open the model on a device; return the session, and a remark on what the provider took of it.

    Raises:
        DeviceError: the provider did not start, or took no node: the CPU would do all of it.
    """
    settings = onnxruntime.SessionOptions()
    # Its errors come as exceptions; printed as well, a name in a foreign file would reach the terminal as it is.
    settings.log_severity_level = 4
    # A spinning thread pool takes the second core from the decoder: 7.4 ms against 3.4 ms on a busy 2-core machine.
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    if look_at_machine().saturates_int8_sums:
        # Pairs of 8-bit products are added up in 16 bits, which saturate: 11 of 16 verdicts of an INT8 bundle changed.
        # With this entry weights become unsigned and the sums exact: scores are those with VNNI, to the last digit.
        # Where there is VNNI it changes nothing either, but takes a third more time.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if layout.threads is not None:
        # XNNPACK has threads of its own.
        in_session = asked.device.name == "cpu"
        settings.intra_op_num_threads = layout.threads // layout.requests if in_session else 1
    if layout.batch is not None:
        settings.add_free_dimension_override_by_name(BATCH_AXIS, layout.batch)
    if asked.device.one_caller:
        settings.enable_mem_pattern = False
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if asked.device.name == "cpu":
        return _session(model, settings, [("CPUExecutionProvider", {})]), ""
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, value in asked.device.environment.items():
        os.environ.setdefault(name, value)
    provider, values = asked.device.provider, _provider_options(asked, layout, reduced=options.reduced)
    if provider in onnxruntime.get_available_providers():
        if provider in _OF_CUDA:
            _preload_cuda()
        others = [DEVICES[name] for name in asked.device.more]
        indexed = [(other.provider, {**other.options, **_index(other, asked.index)}) for other in others]
        session = _session(model, settings, [(provider, values), *indexed])
    else:
        settings.add_provider_for_devices(_plugin_devices(asked), values)
        session = _session(model, settings, None)
    # A provider that fails to start is replaced by the CPU with a mere warning.
    if provider not in session.get_providers():
        raise DeviceError(
            f"ONNX Runtime could not start {provider} on {asked.name}; check the device and its driver, "
            "or open with device='cpu'"
        )
    return session, _taken(session, asked)


def _session(model: Path, settings: Any, providers: list[tuple[str, dict[str, str]]] | None) -> Any:
    # Without the fallback, an option that the provider refuses is an exception and not a line on stdout and the CPU.
    return onnxruntime.InferenceSession(str(model), settings, providers=providers, enable_fallback=0)


def _index(device: OnnxDevice, index: str | None) -> dict[str, str]:
    return {} if index is None or device.index_option is None else {device.index_option: index}


def _provider_options(asked: Asked, layout: Layout, *, reduced: bool) -> dict[str, str]:
    values = {**asked.device.options, **_index(asked.device, asked.index)}
    if reduced:
        values |= asked.device.reduced_options
    if asked.device.name == "xnnpack":
        values["intra_op_num_threads"] = str((layout.threads or 1) // layout.requests)
    if asked.device.name == "openvino":
        values["device_type"] = asked.place or "CPU"
        if asked.place != "NPU":  # Which knows FP16 only.
            # Without it HETERO and AUTO compute in bfloat16 on a CPU that has it: a score moved by 0.05.
            values["precision"] = "FP16" if reduced and asked.reduced_to == "FP16" else "ACCURACY"
        if asked.runs_on_cpu:
            values["num_of_threads"], values["num_streams"] = str(layout.threads), str(layout.requests)
    return values


def _preload_cuda() -> None:
    """Load the CUDA and cuDNN libraries that pip has installed, which the provider alone does not find."""
    if not hasattr(onnxruntime, "preload_dlls"):
        return  # Before 1.21.
    said = io.StringIO()
    with redirect_stdout(said):
        onnxruntime.preload_dlls()
    if said.getvalue():
        _log.info("preloading CUDA's libraries: %s", " ".join(said.getvalue().split()))


_OF_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_registered: set[str] = set()
_registering = Lock()


def _plugin_devices(asked: Asked) -> list[Any]:
    """Load a provider that is a package of its own, once in a process, and return the hardware that it can use here.

    Raises:
        DeviceError: it does not load, or finds nothing that it can use.
    """
    provider, plugin = asked.device.provider, asked.device.plugin
    assert plugin is not None  # `_choose_device` found the provider.
    with _registering:
        if provider not in _registered:
            try:
                library = import_module(plugin).get_library_path()
                onnxruntime.register_execution_provider_library(provider, library)
            except Exception as error:
                raise DeviceError(
                    f"the package {plugin.replace('_', '-')} does not load in ONNX Runtime {onnxruntime.__version__} "
                    f"({said_by(error)}); install the newest of both, or open with device='cpu'"
                ) from error
            _registered.add(provider)
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    kinds = [device.device.type.name for device in devices]
    chosen = [device for device, kind in zip(devices, kinds, strict=True) if kind == asked.device.plugin_hardware]
    if not chosen:
        raise DeviceError(
            f"{provider} finds no {asked.device.plugin_hardware} here that it can use (it finds "
            f"{', '.join(kinds) or 'nothing'}); "
            "check the device and its driver, or open with device='cpu'"
        )
    return chosen[:1]


def _taken(session: Any, asked: Asked) -> str:
    """Return how many nodes the provider took, where this ONNX Runtime tells (1.24 and newer).

    Raises:
        DeviceError: none. OpenVINO's provider starts on a device that does not exist, and takes no node.
    """
    try:
        groups = [(group.ep_name, len(group.get_nodes())) for group in session.get_provider_graph_assignment_info()]
    except Exception:  # noqa: BLE001 - an older version, or a provider that does not record it
        return ""
    counts = Counter[str]()
    for provider, n_nodes in groups:
        counts[provider] += n_nodes
    mine = counts.pop(asked.device.provider, 0)
    if not counts:
        return f"; it takes {'the only node' if mine == 1 else f'all {mine} nodes'}" if mine else ""
    rest = ", ".join(f"{provider.removesuffix('ExecutionProvider')} {n}" for provider, n in counts.items())
    if mine == 0:
        raise DeviceError(
            f"{asked.device.provider} started on {asked.name} but can run no node of this model (all go to: {rest}); "
            "check the device's name and its driver, or open with device='cpu'"
        )
    return f"; it takes {mine} of {mine + sum(counts.values())} nodes, the rest: {rest}"


def _signature(values: Any) -> Signature:
    """Return what a session says of its inputs or outputs; a size that is not fixed has a name there, or none."""
    return {
        value.name: (
            _TYPES.get(value.type, value.type),
            tuple(size if isinstance(size, int) else None for size in value.shape or ()),
        )
        for value in values
    }


def _choose_device(text: str) -> tuple[Asked, str]:
    """Return the device and the reason for it."""
    available = onnxruntime.get_available_providers()
    if text.strip().lower() == "auto":
        if DEVICES["cuda"].provider in available:
            return Asked(DEVICES["cuda"]), "this ONNX Runtime was built for NVIDIA GPUs and its provider starts"
        reason = f"this ONNX Runtime {onnxruntime.__version__} was built without NVIDIA GPUs"
        others = [name for name in installed(available) if name != "cpu"]
        more = f"; it has {', '.join(others)} too: measure with vae-bench --device" if others else ""
        return Asked(DEVICES["cpu"]), reason + more
    asked = parse(text, available)
    if not has_provider(asked.device, available):
        raise DeviceError(
            f"this ONNX Runtime {onnxruntime.__version__} has no {asked.device.provider} (it has "
            f"{', '.join(available)}); {advice(asked.device, this_platform())}, or open with device='cpu'"
        )
    return asked, "asked for"
