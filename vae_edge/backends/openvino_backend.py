"""OpenVINO."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
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
from vae_edge.backends.openvino_devices import Place, arithmetic, parse
from vae_edge.backends.openvino_module import (
    check_can_load,
    model_is_freed,
    model_is_there,
    openvino_core,
    version_of,
)
from vae_edge.cache import compiled
from vae_edge.errors import BundleError
from vae_edge.manifest import TensorSpec
from vae_edge.platform.machine import processor_features, usable_cores
from vae_edge.platform.telemetry import import_openvino

openvino = import_openvino()

_log = logging.getLogger(__name__)

_BASE_BYTES, _BYTES_PER_VALUE = 256 << 20, 2048
"""What one tensor of a model may take: so much, and for each value of an image; the reference network, in tiles that
overlap as far as they may, takes less than half of the second."""

_BASE_BYTES_OF_ALL, _BYTES_PER_VALUE_OF_ALL = 8 * _BASE_BYTES, 32 * _BYTES_PER_VALUE
"""What all of them may take together; the same network, 43,000 bytes for each value of an image."""

_NOT_FROM_THE_IMAGE = {
    **dict.fromkeys(("If", "Loop", "TensorIterator"), "a loop or a branch"),
    **dict.fromkeys(("ReadValue", "Assign"), "state, which makes a verdict depend on earlier images"),
    **dict.fromkeys(("RandomUniform", "Multinomial"), "a random operator, which changes the verdict every time"),
}
"""What no export holds, by the layer's type."""


class OpenVinoBackend(Backend):
    """Runs `model.xml` on an Intel CPU (other x86-64 and Arm CPUs too), GPU or NPU.

    `device`: `auto` and `cpu` take the CPU; `gpu`, `gpu.N` and `npu` another device; `hetero:npu,cpu`, `auto:gpu,cpu`
    and `multi:gpu,cpu` several, see `vae_edge.backends.openvino_devices`. Outputs are copies.

    | bundle | on a CPU                                 | on a GPU | on an NPU, with the CPU for what it cannot run |
    |--------|------------------------------------------|----------|------------------------------------------------|
    | FP32   | FP32                                     | the same | FP16                                           |
    | FP16   | FP32, with weights that FP16 has rounded | the same | FP16                                           |
    | INT8   | convolutions in INT8, the rest in FP32   | the same | INT8, FP16                                     |

    The half precision that GPUs and bfloat16 CPUs take by default is turned off, so that the verdict stays the trained
    model's; `RuntimeOptions.reduced` allows it.

    The model is compiled for one image at a time: static shapes are faster (6.6 against 8.5 ms, 15.8 against 19.7 ms on
    two CPU cores), and the NPU knows no others. A larger batch is spread over the requests.
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
        check_can_load()
        core = openvino_core()
        place, reason = _choose_device(core, options.device)
        self._loaded: _Loaded | None = _load(core, model, inputs, place, options)
        compiled_model = self._loaded.model
        found = _signature(compiled_model.inputs, inputs), _signature(compiled_model.outputs, outputs)
        check_signature(model, found, inputs, outputs)
        layout = Layout(
            requests=_requests(options) or compiled_model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"),
            threads=compiled_model.get_property("INFERENCE_NUM_THREADS") if place.plugin == "CPU" else None,
            batch=1,
        )
        # A request serves one inference at a time. The one used last comes first: its memory is still in the cache.
        self._idle: list[_Request] = []
        super().__init__(
            inputs,
            outputs,
            max_batch=max_batch,
            device=DeviceChoice(place.name, reason + _shares(place, compiled_model, self._loaded.shares)),
            layout=layout,
            version=f"OpenVINO {version_of(openvino)}",
        )
        if options.reduced:
            self.reduced_to = _reduced_to(place, compiled_model)
        model_is_there(self)

    @property
    def is_from_cache(self) -> bool:
        """Whether the model was compiled by an earlier process."""
        return self._loaded is not None and self._loaded.blob is not None

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        n_images = feeds[self.inputs[0].name].shape[0]
        if n_images == 1:
            request = self._take()
            request.start(feeds)
            return self._give_back(request)
        return self._run_each(feeds, n_images)

    def _run_each(self, feeds: Mapping[str, NDArray[Any]], n_images: int) -> Tensors:
        """Run the images of a batch, as many at the same time as there are requests."""
        outputs: Tensors = {}
        for spec in self.outputs:
            outputs[spec.name] = np.empty([n_images if size is None else size for size in spec.shape], spec.dtype)
        running: deque[tuple[int, _Request]] = deque()

        def finish_one() -> None:
            position, request = running.popleft()
            for name, value in self._give_back(request).items():
                outputs[name][position] = value[0]

        try:
            for position in range(n_images):
                if len(running) == self.layout.requests:
                    finish_one()
                request = self._take()
                request.start({name: feed[position : position + 1] for name, feed in feeds.items()})
                running.append((position, request))
            while running:
                finish_one()
        finally:
            for _, request in running:  # After a failure: what still runs reads the caller's memory.
                with suppress(RuntimeError):
                    request.wait()
        return outputs

    def _take(self) -> _Request:
        with suppress(IndexError):
            return self._idle.pop()
        assert self._loaded is not None  # Only `_free` takes it away, and nothing runs then.
        return _Request(self._loaded, self.outputs)

    def _give_back(self, request: _Request) -> Tensors:
        """Wait for a request, copy its outputs and let others have it; one that has failed is left to be freed."""
        outputs = request.wait()
        self._idle.append(request)
        return outputs

    def _free(self) -> None:
        # The requests first: they refer to the model.
        self._idle.clear()
        self._loaded = None
        model_is_freed(self)


class _Loaded:
    """A compiled model, with the mapped file of the cache that its weights may be read from as long as it lives."""

    def __init__(
        self, model: Any, blob: NDArray[np.uint8] | None = None, shares: Mapping[str, int] | None = None
    ) -> None:
        self.model = model
        self.shares = shares or {}
        """How many layers each of several devices runs; empty: not known, or there is one device."""
        self.blob = blob  # After the model: Python releases attributes in the order they were set.


class _Request:
    """One inference at a time, on memory that is shared with the caller on the way in and copied on the way out.

    `start_async` and `wait` on tensors that are set cost less than `infer` with its dictionaries.
    """

    def __init__(self, loaded: _Loaded, outputs: tuple[TensorSpec, ...]) -> None:
        self._request = loaded.model.create_infer_request()
        self._loaded = loaded
        self._outputs = {spec.name: self._request.get_tensor(spec.name).data for spec in outputs}
        self._feeds: list[NDArray[Any]] = []

    def start(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        # OpenVINO shares no read-only memory.
        arrays = {name: feed if feed.flags.writeable else feed.copy() for name, feed in feeds.items()}
        for name, array in arrays.items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._feeds = list(arrays.values())
        self._request.start_async()

    def wait(self) -> Tensors:
        self._request.wait()
        return {name: view.copy() for name, view in self._outputs.items()}


def _load(core: Any, model: Path, inputs: tuple[TensorSpec, ...], place: Place, options: RuntimeOptions) -> _Loaded:
    """Take the compiled model from the cache, or compile it and keep it there."""
    settings = _settings(place, options)
    key = None
    if options.model_sha256 is not None and _can_be_kept(core, place):
        names = [f"{member} {core.get_property(member, 'FULL_DEVICE_NAME')}" for member in place.members]
        key = compiled.CompiledKey(
            kind="openvino",
            model_sha256=options.model_sha256,
            runtime=f"OpenVINO {openvino.__version__}",
            device=", ".join([place.plugin, *names] if place.is_virtual else names),
            settings=_key_settings(core, place, inputs, settings),
        )
        kept = compiled.find(key)
        if kept is not None:
            try:
                return _import(core, kept, place.plugin, settings)
            except (RuntimeError, OSError, ValueError) as error:
                _log.warning("the cached compiled model could not be used and is compiled again: %s", error)
    # Not mapped: a file that is written over later would change the verdicts, or end the process where it is cut short.
    core.set_property({"ENABLE_MMAP": False})
    network = core.read_model(model)
    network.reshape({spec.name: (1, *spec.shape[1:]) for spec in inputs})
    _check_sizes(model, network, prod(size or 1 for spec in inputs for size in spec.shape))
    compiled_model = core.compile_model(network, place.plugin, settings)
    if key is not None:
        try:
            exported = compiled_model.export_model()
        except RuntimeError as error:
            _log.warning("the compiled model cannot be cached: %s", error)
        else:
            # OpenVINO 2024 gives bytes, later ones a stream.
            blob = exported if isinstance(exported, bytes) else exported.getbuffer()
            compiled.keep(key, lambda path: path.write_bytes(blob))
    # Not for one member: there is nothing to count.
    split = core.query_model(network, place.plugin) if place.splits_layers and len(place.members) > 1 else {}
    return _Loaded(compiled_model, shares=Counter(split.values()))


def _can_be_kept(core: Any, place: Place) -> bool:
    """Return whether a compiled model can be exported: AUTO and MULTI, which change devices, cannot."""
    devices = (*place.members, *((place.plugin.partition(":")[0],) if place.is_virtual else ()))
    return all("EXPORT_IMPORT" in core.get_property(device, "OPTIMIZATION_CAPABILITIES") for device in devices)


def _shares(place: Place, compiled_model: Any, shares: Mapping[str, int]) -> str:
    """Return, of a device made of others, which of them compute and how many layers of the model each runs."""
    if not place.is_virtual:
        return ""
    if shares:
        return "; layers: " + ", ".join(f"{member} {shares.get(member, 0)}" for member in place.members)
    with suppress(RuntimeError):
        return f"; runs on {', '.join(compiled_model.get_property('EXECUTION_DEVICES'))}"
    return ""


def _check_sizes(model: Path, network: Any, n_values: int) -> None:
    """Refuse a model with loops, states or random operators, or with tensors larger than any export's.

    It is done before memory is taken for them.

    Raises:
        BundleError: with the layer.
    """
    most_bytes = _BASE_BYTES + _BYTES_PER_VALUE * n_values
    most_bytes_of_all = _BASE_BYTES_OF_ALL + _BYTES_PER_VALUE_OF_ALL * n_values
    n_bytes = 0
    for layer in network.get_ops():
        if found := _NOT_FROM_THE_IMAGE.get(layer.get_type_name()):
            raise BundleError(f"{model} contains {found}, which no export does; export the bundle again")
        for port in layer.outputs() if layer.get_type_name() != "Constant" else ():  # Those are in the file.
            shape = port.get_partial_shape()
            name = f"{layer.get_friendly_name()[:80]!a}"
            if not shape.is_static:
                raise BundleError(
                    f"{model} has the layer {name}, whose result's size does not follow from the image's, which "
                    "no export does; export the bundle again"
                )
            size = prod(each.get_length() for each in shape) * 4
            n_bytes += size
            if size > most_bytes or n_bytes > most_bytes_of_all:
                raise BundleError(
                    f"{model} has the layer {name}, which creates a tensor of {_sizes(shape)} values; a model of this "
                    f"size needs at most {most_bytes:,} bytes for one, and {most_bytes_of_all:,} for all: "
                    "do not run it, export the bundle again"
                )


def _sizes(shape: Any) -> str:
    return "x".join(str(size.get_length()) for size in shape)


def _signature(ports: Any, specs: tuple[TensorSpec, ...]) -> Signature:
    """Return what a compiled model says of its inputs or outputs; of several names the expected one counts."""
    found: dict[str, tuple[str, tuple[int | None, ...]]] = {}
    for port in ports:
        names = port.get_names()
        name = next((spec.name for spec in specs if spec.name in names), min(names, default=""))
        shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
        found[name] = str(port.get_element_type().to_dtype()), shape
    return found


_DEVICE_FACTS = (
    "DEVICE_ARCHITECTURE",
    "OPTIMIZATION_CAPABILITIES",
    "NPU_DRIVER_VERSION",
    "NPU_COMPILER_VERSION",
    "GPU_UARCH_VERSION",
    "GPU_EXECUTION_UNITS_COUNT",
)
"""Properties of devices that decide what a model is compiled to; each device has some of them."""

_TUNING_VARIABLES = ("DNNL_", "ONEDNN_", "OV_")
"""How the names of variables begin that change how OpenVINO compiles, such as ONEDNN_MAX_CPU_ISA."""


def _key_settings(
    core: Any, place: Place, inputs: tuple[TensorSpec, ...], settings: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """Return, for the key of the cache, what decides what comes out of compiling beside model, runtime and device."""
    facts = {spec.name: f"{spec.dtype} {[1, *spec.shape[1:]]}" for spec in inputs}
    facts |= {name: str(value) for name, value in settings.items()}
    facts |= {name: str(version.build_number) for name, version in core.get_versions(place.plugin).items()}
    for member in place.members:
        for name in _DEVICE_FACTS:
            with suppress(RuntimeError):
                facts[f"{member} {name}" if place.is_virtual else name] = str(core.get_property(member, name))
    if place.uses_cpu:
        facts["cores"], facts["processor"] = str(usable_cores()), processor_features()
    facts |= {name: value for name, value in os.environ.items() if name.startswith(_TUNING_VARIABLES)}
    return tuple(sorted(facts.items()))


def _import(core: Any, kept: Path, plugin: str, settings: dict[str, Any]) -> _Loaded:
    # Mapped, so that the weights are read once; copy-on-write, as OpenVINO shares no read-only memory.
    blob = np.memmap(kept, dtype=np.uint8, mode="c")
    content = openvino.Tensor(np.asarray(blob), shared_memory=True)
    try:
        return _Loaded(core.import_model(content, plugin, settings), blob)
    except TypeError:  # Before 2025.4 it takes bytes only, and copies them.
        return _Loaded(core.import_model(blob.tobytes(), plugin, settings), blob)


def _reduced_to(place: Place, compiled_model: Any) -> str | None:
    """Return what a model computes in that was compiled without FP32; None: FP32, or an NPU's FP16 in any case."""
    if any(member.partition(".")[0] == "NPU" for member in place.members):
        return None
    if place.is_virtual:
        return "its devices' own precision"  # They do not tell it.
    name = compiled_model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return {"f32": None, "bf16": "bfloat16", "f16": "FP16"}.get(name, name)


def _requests(options: RuntimeOptions) -> int | None:
    return options.requests if options.hint is Hint.THROUGHPUT else None


def _settings(place: Place, options: RuntimeOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": options.hint.value.upper()}
    requests = _requests(options)
    if requests is not None and place.plugin != "CPU":
        settings["PERFORMANCE_HINT_NUM_REQUESTS"] = requests
    of_members: dict[str, dict[str, Any]] = {}
    for member in place.members:
        of_members[member] = arithmetic(member, reduced=options.reduced)
        if options.threads is not None and member == "CPU":
            of_members[member]["INFERENCE_NUM_THREADS"] = options.threads
        if requests is not None and place.plugin == "CPU":
            of_members[member]["NUM_STREAMS"] = requests
    if not place.is_virtual:
        return settings | of_members[place.members[0]]
    # One value for all of them would reach the NPU, which refuses a precision other than its own.
    return settings | {"DEVICE_PROPERTIES": {member: own for member, own in of_members.items() if own}}


def _choose_device(core: Any, asked: str) -> tuple[Place, str]:
    """Return the device and the reason for it."""
    available = core.available_devices
    if asked.strip().lower() == "auto":
        others = [found.lower() for found in available if found != "CPU"]
        more = f"; {', '.join(others)} found too: measure with vae-bench --device" if others else ", the only one found"
        return Place("cpu", "CPU", ("CPU",)), f"OpenVINO's CPU plugin computes as in training{more}"
    return parse(asked, available, version_of(openvino)), "asked for"
