"""Which engine runs: the bundle's own, else one that was built on this device before, else a new one.

An engine fits one TensorRT and one kind of GPU, and a bundle may have been made elsewhere or before an update. The ONNX
that lies beside it fits all of them. What is built from it goes into the cache of compiled models and never into the
bundle, whose files are recorded with their hashes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.driver import Gpu
from vae_edge.backends.tensorrt_module import REBUILD, MisfitError, TensorRtModule
from vae_edge.backends.tensorrt_progress import Activate
from vae_edge.backends.tensorrt_rebuild import Rebuild
from vae_edge.errors import DeviceError, InputError
from vae_edge.manifest import TensorSpec
from vae_edge.targets import SUPPORTED, Target

_log = logging.getLogger(__name__)

_ONNX_FILE = SUPPORTED[Target.ONNX].model_file


@dataclass
class LoadedEngine:
    """An engine on the device."""

    runtime: Any
    """Has to live as long as the engine."""
    engine: Any
    largest_batch: int
    note: str | None = None
    """What the user should know: that it is not the bundle's own, and why."""


@dataclass(frozen=True)
class EnginePlace:
    """Where an engine is to run."""

    module: TensorRtModule
    gpu: Callable[[], Gpu]
    """Describes the GPU; asked only where it matters."""
    activate: Activate
    """Makes the GPU current on a thread."""


def load_engine(
    plan: Path, misfit: str | None, place: EnginePlace, *, max_batch: int | None, options: RuntimeOptions
) -> LoadedEngine:
    """Load the engine for a plan file; call it with the GPU current.

    Args:
        plan: the bundle's engine; `model.onnx` lies beside it.
        misfit: why its header says that it cannot fit, to be read after `the engine`; None: it may fit.
        place: where it is to run.
        max_batch: the largest batch that has to go in; None: whatever the engine takes.
        options: `rebuild`, `model_sha256` and `progress` count.

    Raises:
        DeviceError: the engine does not fit and no other may or can be built.
    """
    if misfit is None:
        try:
            return deserialize(place.module, plan.read_bytes(), max_batch)
        except MisfitError as error:
            misfit = str(error)
    gpu = place.gpu()
    onnx_path = plan.with_name(_ONNX_FILE)
    if not onnx_path.is_file():
        raise DeviceError(
            f"the engine {plan} {misfit}; this GPU is {gpu}, and there is no {_ONNX_FILE} beside the engine "
            "to build one that fits from: copy or export the bundle again"
        )
    rebuild = Rebuild(onnx_path, place.module, gpu, max_batch, place.activate)
    try:
        result = rebuild.find_or_build(lambda content: deserialize(place.module, content, max_batch), options)
    except (DeviceError, InputError, MisfitError) as error:
        what = f"the one built from {_ONNX_FILE} {error}" if isinstance(error, MisfitError) else str(error)
        raise DeviceError(f"the engine {plan} {misfit}; building one for {gpu} failed: {what}") from error
    if result is None:
        raise DeviceError(
            f"the engine {plan} {misfit}; this GPU is {gpu}, and building was ruled out: vae-run builds one that fits "
            "when it first opens the bundle; to make a bundle of it, run: "
            f"vae-export {plan.parent} --target tensorrt --out DIR"
        )
    loaded, seconds = result
    if seconds is None:
        loaded.note = f"the engine of this bundle {misfit}: runs with the one that was built here from {_ONNX_FILE}"
        _log.info("%s", loaded.note)
    else:
        loaded.note = (
            f"the engine of this bundle {misfit}: rebuilt from {_ONNX_FILE} in {seconds:.0f} s; "
            "run vae-edge verify to re-fit the thresholds"
        )
        _log.warning("%s", loaded.note)
    return loaded


def deserialize(module: TensorRtModule, content: bytes, max_batch: int | None) -> LoadedEngine:
    """Put an engine on the current GPU.

    Raises:
        MisfitError: TensorRT does not take it, or it takes smaller batches only.
        DeviceError: the driver or the GPU's memory is in the way, which no other engine would mend.
    """
    mark = module.errors.mark()
    runtime = module.api.Runtime(module.logger)
    _check_validity(module, runtime, content)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise MisfitError(f"does not load with {module}: {module.errors.since(mark)}")
    largest = largest_batch(module, engine)
    if max_batch is not None and largest < max_batch:
        raise MisfitError(f"takes batches up to {largest}, and {max_batch} were asked for")
    return LoadedEngine(runtime, engine, largest)


def _check_validity(module: TensorRtModule, runtime: Any, content: bytes) -> None:
    """Ask TensorRT-RTX, which can tell why an engine does not fit, before it fails."""
    api = module.api
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, found = runtime.get_engine_validity(content)
    if validity != api.EngineValidity.INVALID:
        return
    members = api.EngineInvalidityDiagnostics.__members__
    reasons = [name for name, member in members.items() if int(found) & int(member)]
    said = f"is not valid here, says {module}: {', '.join(reasons) or 'no reason was given'}"
    if set(reasons) & {"OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR"}:
        raise DeviceError(f"the engine {said}; update the GPU's driver or make room on the GPU, then try again")
    raise MisfitError(said)


def largest_batch(module: TensorRtModule, engine: Any) -> int:
    """Return the largest batch that an engine takes in all of its inputs."""
    largest = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == module.api.TensorIOMode.INPUT:
            batch, *_ = engine.get_tensor_shape(name)
            largest.append(engine.get_tensor_profile_shape(name, 0)[2][0] if batch == -1 else batch)
    return int(min(largest, default=0))


def check_tensors(
    module: TensorRtModule, engine: Any, plan: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Compare an engine's tensors with the specs.

    Raises:
        DeviceError: a name, type or shape is another one.
    """
    api = module.api
    dtypes = {"uint8": api.DataType.UINT8, "float32": api.DataType.FLOAT}
    there = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    wanted = {spec.name for spec in (*inputs, *outputs)}
    if there != wanted:
        raise DeviceError(f"{plan} has the tensors {sorted(there)}; expected {sorted(wanted)}; {REBUILD}")
    for spec in (*inputs, *outputs):
        mode = engine.get_tensor_mode(spec.name)
        if mode != (api.TensorIOMode.INPUT if spec in inputs else api.TensorIOMode.OUTPUT):
            raise DeviceError(f"{plan}: tensor {spec.name!r} is {mode.name}; expected the other way; {REBUILD}")
        dtype, shape = engine.get_tensor_dtype(spec.name), tuple(engine.get_tensor_shape(spec.name))
        fits = len(shape) == len(spec.shape) and all(
            size in (-1, expected) or expected is None for size, expected in zip(shape, spec.shape, strict=True)
        )
        if dtype != dtypes[spec.dtype] or not fits:
            raise DeviceError(
                f"{plan}: tensor {spec.name!r} is {dtype.name} {list(shape)}; "
                f"expected {spec.dtype} {list(spec.shape)}; {REBUILD}"
            )
