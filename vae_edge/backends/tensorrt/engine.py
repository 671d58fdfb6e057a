"""Which engine runs: the bundle's own, else one that was built on this device before, else a new one.

An engine fits one TensorRT and one kind of GPU, and a bundle may have been made elsewhere or before an update. The ONNX
that lies beside it fits all of them. What is built from it goes into the cache of compiled models and never into the
bundle, whose files are recorded with their hashes.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.gpus import Gpu
from vae_edge.backends.tensorrt.build import EngineSettings, build_plan
from vae_edge.backends.tensorrt.module import REBUILD, MisfitError, TensorRtModule
from vae_edge.backends.tensorrt.progress import Activate
from vae_edge.cache import compiled
from vae_edge.cache.compiled import CompiledKey
from vae_edge.errors import DeviceError, InputError
from vae_edge.manifest import TensorSpec
from vae_edge.targets import SUPPORTED, Target

_log = logging.getLogger(__name__)

_Accepted = TypeVar("_Accepted")


@dataclass(frozen=True)
class Rebuild:
    """An engine that can be built here for one GPU, once: into the cache of compiled models, under a lock.

    Args:
        onnx_path: the model.
        module: the TensorRT to build with.
        gpu: the GPU to build for, the one that `activate` makes current.
        max_batch: the largest batch that has to go in; None: that of `EngineSettings`.
        activate: makes the GPU current on a thread.
    """

    onnx_path: Path
    module: TensorRtModule
    gpu: Gpu
    max_batch: int | None
    activate: Activate

    @property
    def settings(self) -> EngineSettings:
        """How it is built: as export builds, for the batch that has to go in."""
        settings = EngineSettings() if self.max_batch is None else EngineSettings(max_batch=self.max_batch)
        # TensorRT-RTX leaves GPUs before Ampere out unless they are named.
        is_old = tuple(map(int, self.gpu.compute_capability.split("."))) < (8, 0)
        if self.module.flavour.module == "tensorrt_rtx" and is_old:
            return replace(settings, compute_capabilities=(self.gpu.compute_capability,))
        return settings

    def key(self, model_sha256: str) -> CompiledKey:
        """Return what the engine is kept under."""
        settings = self.settings
        return CompiledKey(
            "tensorrt",
            model_sha256,
            str(self.module),
            self.gpu.kind,
            (
                ("platform", f"{platform.system()} {platform.machine()}"),
                ("max_batch", str(settings.max_batch)),
                ("opt_batch", str(settings.opt_batch)),
                ("workspace_bytes", str(settings.workspace_bytes)),
                ("optimization_level", str(settings.optimization_level)),
                ("compute_capabilities", ",".join(settings.compute_capabilities)),
                ("describe_layers", str(settings.describe_layers)),
            ),
        )

    def find_or_build(
        self, accept: Callable[[bytes], _Accepted], options: RuntimeOptions
    ) -> tuple[_Accepted, float | None] | None:
        """Return the engine that was built before, or build and keep it; a second process waits for the first.

        Args:
            accept: makes of an engine's bytes what is wanted, or raises MisfitError.
            options: `rebuild` tells whether it may be built; `model_sha256` is what it is kept under, None: it is not
                kept; `progress` is called with the steps.

        Returns:
            What `accept` made, and the seconds of the build, or None where it was there. None for both: it is not there
            and may not be built.

        Raises:
            InputError: the ONNX file does not fit the settings.
            DeviceError: TensorRT cannot read or build the model.
            MisfitError: the new engine was not accepted. Nothing is kept.
        """
        key = None if options.model_sha256 is None else self.key(options.model_sha256)
        found = None if key is None else _from_cache(key, accept)
        if found is not None:
            return found, None
        if not options.rebuild:
            return None
        if key is None:
            return self._build(accept, None, options)
        tell = options.progress or _tell_nobody
        waiting = "waiting for another process that builds this engine"
        waited = False

        def on_wait() -> None:
            nonlocal waited
            waited = True
            _log.info("%s", waiting)
            tell(waiting, 0, 1)

        with compiled.building(key, on_wait):
            if waited:
                tell(waiting, 1, 1)
            # Another process may have built it between the first check and the lock.
            found = _from_cache(key, accept)
            return self._build(accept, key, options) if found is None else (found, None)

    def _build(
        self, accept: Callable[[bytes], _Accepted], key: CompiledKey | None, options: RuntimeOptions
    ) -> tuple[_Accepted, float]:
        tell = options.progress or _tell_nobody
        _log.info("building an engine from %s for %s with %s", self.onnx_path, self.gpu, self.module)
        started = time.perf_counter()
        content = build_plan(
            self.onnx_path,
            self.settings,
            self.module,
            self.gpu,
            lambda phase, done, total: tell(f"building the engine: {phase}", done, total),
            activate=self.activate,
        ).content
        seconds = time.perf_counter() - started
        # Before it is kept: one that does not load here is of no use to the next start either.
        accepted = accept(content)
        if key is not None:
            compiled.keep(key, lambda path: path.write_bytes(content))
        return accepted, seconds


def _from_cache(key: CompiledKey, accept: Callable[[bytes], _Accepted]) -> _Accepted | None:
    path = compiled.find(key)
    if path is None:
        return None
    try:
        return accept(path.read_bytes())
    except OSError as error:  # The cache was cleared in this moment.
        _log.debug("%s is gone: %s", path, error)
    except MisfitError as error:
        _log.warning("the engine that was built here before %s; rebuilding it", error)
    return None


def _tell_nobody(what: str, done: int, total: int) -> None:
    """Stand in for progress that nobody wants."""


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
    rebuilt_sha256: str | None = None
    """Of an engine that was built here; None: it is the bundle's own."""


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
        options: `rebuild`, `model_sha256`, `built_for` and `progress` count.

    Raises:
        DeviceError: the engine does not fit and no other may or can be built.
    """
    if misfit is None:
        misfit = _other_kind(place, options.built_for)
    if misfit is None:
        try:
            return deserialize(place.module, plan.read_bytes(), max_batch)
        except MisfitError as error:
            misfit = str(error)
    gpu = place.gpu()
    onnx_path = plan.with_name(_ONNX_FILE)
    if not onnx_path.is_file():
        raise DeviceError(
            f"the engine {plan} {misfit}; this GPU is {gpu}, and {_ONNX_FILE}, from which to build one that fits, is "
            "missing: copy or export the bundle again"
        )
    rebuild = Rebuild(onnx_path, place.module, gpu, max_batch, place.activate)
    try:
        result = rebuild.find_or_build(lambda content: _deserialize_rebuilt(place.module, content, max_batch), options)
    except (DeviceError, InputError, MisfitError) as error:
        what = f"the one built from {_ONNX_FILE} {error}" if isinstance(error, MisfitError) else str(error)
        raise DeviceError(f"the engine {plan} {misfit}; building one for {gpu} failed: {what}") from error
    if result is None:
        raise DeviceError(
            f"the engine {plan} {misfit}; this GPU is {gpu}, and rebuilding is disabled: vae-run builds one that "
            "fits when it first opens the bundle; to make a bundle with it, run: "
            f"vae-export {plan.parent} --target tensorrt --out DIR"
        )
    loaded, seconds = result
    if seconds is None:
        loaded.note = f"the engine of this bundle {misfit}: using the one that was built here from {_ONNX_FILE}"
        _log.info("%s", loaded.note)
    else:
        loaded.note = (
            f"the engine of this bundle {misfit}: rebuilt from {_ONNX_FILE} in {seconds:.0f} s; "
            "the bundle's references are run on it now, unless it is too old to have any"
        )
        _log.warning("%s", loaded.note)
    return loaded


def _other_kind(place: EnginePlace, built_for: str | None) -> str | None:
    """Return why an engine is for another kind of GPU, to be read after `the engine`; None: it is not, or is unknown.

    TensorRT loads an engine for another GPU of the same compute capability with only a warning. Its kernels were chosen
    for the other's number of multiprocessors, so it runs slower than it could, or fails.
    """
    if built_for is None or place.module.flavour.module != "tensorrt":
        return None
    kind = place.gpu().kind
    return None if kind == built_for else f"is for {built_for}, but this GPU is {kind}"


def deserialize(module: TensorRtModule, content: bytes, max_batch: int | None) -> LoadedEngine:
    """Put an engine on the current GPU.

    Raises:
        MisfitError: TensorRT does not take it, or it takes smaller batches only.
        DeviceError: the driver or the GPU's memory is in the way, which no other engine would fix.
    """
    mark = module.errors.mark()
    runtime = module.api.Runtime(module.logger)
    _check_validity(module, runtime, content)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise MisfitError(f"does not load with {module}: {module.errors.since(mark)}")
    largest = largest_batch(module, engine)
    if max_batch is not None and largest < max_batch:
        raise MisfitError(f"supports batches up to {largest}, but {max_batch} is required")
    return LoadedEngine(runtime, engine, largest)


def _deserialize_rebuilt(module: TensorRtModule, content: bytes, max_batch: int | None) -> LoadedEngine:
    loaded = deserialize(module, content, max_batch)
    loaded.rebuilt_sha256 = hashlib.sha256(content).hexdigest()
    return loaded


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
    said = f"is not valid here according to {module}: {', '.join(reasons) or 'no reason was given'}"
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
        DeviceError: a name, type or shape differs.
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
            raise DeviceError(f"{plan}: tensor {spec.name!r} is {mode.name}; expected the opposite; {REBUILD}")
        dtype, shape = engine.get_tensor_dtype(spec.name), tuple(engine.get_tensor_shape(spec.name))
        fits = len(shape) == len(spec.shape) and all(
            size in (-1, expected) or expected is None for size, expected in zip(shape, spec.shape, strict=True)
        )
        if dtype != dtypes[spec.dtype] or not fits:
            raise DeviceError(
                f"{plan}: tensor {spec.name!r} is {dtype.name} {list(shape)}; "
                f"expected {spec.dtype} {list(spec.shape)}; {REBUILD}"
            )
