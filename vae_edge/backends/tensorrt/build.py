"""ONNX to a TensorRT engine, on the device itself. Needs neither torch nor anything of training.

There is one path for TensorRT 10.3 and newer, 11, and TensorRT-RTX: a strongly typed network, in which every layer
computes in the types that the ONNX graph names. So precision is decided where the ONNX is written, and nothing here
changes it but `EngineSettings.weak_typing`. Options that would run code from the plan file (`engine_host_code_allowed`)
are never set.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.backends.cuda.gpus import Gpu, find_gpus
from vae_edge.backends.tensorrt.module import TensorRtModule, find_tensorrt
from vae_edge.backends.tensorrt.network import read_onnx, strong_network, tensor_types, way_out, weak_network
from vae_edge.backends.tensorrt.progress import Activate, BuildMonitor, build_apart
from vae_edge.cache import compiled
from vae_edge.cache.compiled import CompiledKey
from vae_edge.errors import DeviceError, InputError, UsageError
from vae_edge.manifest import GPU_KIND, RuntimeRecord
from vae_edge.platform.atomic import write_bytes
from vae_edge.platform.work import StepProgress

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timings:
    """The kernel timings of earlier builds with one TensorRT version on one kind of GPU.

    With them full TensorRT builds the next engine in a part of the time.
    """

    file: Path | None
    """Where they are; None: in the cache of compiled models."""
    runtime: str
    gpu: Gpu

    def load(self, config: Any) -> None:
        """Give a build the timings that there are."""
        path = self.file or compiled.find(self._key)
        try:
            stored = path.read_bytes() if path is not None and path.is_file() else b""
        except OSError as error:
            _log.warning("the timings in %s cannot be read (%s) and are measured again", path, error)
            stored = b""
        cache = config.create_timing_cache(stored)
        if cache is None or not config.set_timing_cache(cache, False):
            _log.warning("%s does not fit this device or TensorRT version; its timings are measured again", path)
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: Any) -> None:
        """Keep the timings of a build, with those it was given.

        Raises:
            InputError: the file that was named cannot be written.
        """
        content = memoryview(config.get_timing_cache().serialize())
        if self.file is not None:
            write_bytes(self.file, content)
        else:
            compiled.keep(self._key, lambda path: path.write_bytes(content))

    @property
    def _key(self) -> CompiledKey:
        return CompiledKey("tensorrt-timings", "", self.runtime, self.gpu.kind)


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built."""

    max_batch: int = 8
    """Largest batch that the engine takes; the smallest is 1."""
    opt_batch: int = 1
    """The batch it is fastest at."""
    workspace_bytes: int = 512 * 2**20
    """Most scratch memory a layer may use. TensorRT's own default is the entire GPU, which on a Jetson is the host's
    memory as well; 512 MiB is far more than the layers of these models ask for (8.6 MB for a small one)."""
    optimization_level: int | None = None
    """0 (quick to build) to 5 (thorough); None: TensorRT's own choice, 3."""
    timing_cache: Path | None = None
    """File with the kernel timings of earlier builds, read and written; full TensorRT only. None: one for each device
    and TensorRT version in the cache of compiled models."""
    compute_capabilities: tuple[str, ...] = ()
    """TensorRT-RTX only: the GPUs to build for, such as `("8.6", "8.9")`. Empty: every RTX GPU from Ampere on, which is
    what that library does by default and without a GPU here. Turing needs `("7.5",)`. Full TensorRT builds for the GPU
    it runs on."""
    describe_layers: bool = False
    """Keep the layers' names and types in the engine and log them; for `vae_edge.export.quantization.engine_layers`."""
    weak_typing: bool = False
    """TensorRT 10 only: let it choose each layer's type among those of the ONNX file, a way round where it cannot build
    the file as it is. The engine's record says so."""

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise UsageError(f"max_batch is {self.max_batch}; expected 1 or more")
        if not 1 <= self.opt_batch <= self.max_batch:
            raise UsageError(f"opt_batch is {self.opt_batch}; expected 1 to max_batch, which is {self.max_batch}")
        if self.workspace_bytes < 2**20:
            raise UsageError(f"workspace_bytes is {self.workspace_bytes}; expected {2**20} (1 MiB) or more")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization_level is {self.optimization_level}; expected 0 to 5")
        if len(set(self.compute_capabilities)) != len(self.compute_capabilities):
            raise InputError(f"compute_capabilities {self.compute_capabilities} name one of them twice")


@dataclass(frozen=True)
class BuiltPlan:
    """An engine that was built and not yet written."""

    content: bytes
    record: RuntimeRecord
    """The flavour and version that built it, and what else decides where it runs."""


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    settings: EngineSettings,
    progress: StepProgress | None = None,
    *,
    find_module: Callable[[], TensorRtModule] = find_tensorrt,
) -> RuntimeRecord:
    """Build an engine for the first GPU from an ONNX file and write it completely or not at all; see `build_plan`.

    Args:
        onnx_path: the model.
        engine_path: the file to write; an older one is replaced.
        settings: how.
        progress: called with every step.
        find_module: finds TensorRT.

    Raises:
        InputError: as `build_plan`, or the engine cannot be written.
        DeviceError: as `build_plan`, or there is no GPU where it needs one.
        MissingDependencyError: TensorRT is not installed.
    """
    if not onnx_path.is_file():
        raise InputError(f"the ONNX file {onnx_path} does not exist")
    module = find_module()
    gpu = None if module.flavour.module == "tensorrt_rtx" else find_gpus()[0]
    built = build_plan(onnx_path, settings, module, gpu, progress)
    write_bytes(engine_path, built.content)
    return built.record


def build_plan(
    onnx_path: Path,
    settings: EngineSettings,
    module: TensorRtModule,
    gpu: Gpu | None,
    progress: StepProgress | None = None,
    *,
    activate: Activate = nullcontext,
) -> BuiltPlan:
    """Build an engine from an ONNX file.

    Args:
        onnx_path: the model; the first axis of its inputs is the batch, and no other axis may be dynamic.
        settings: how.
        module: the TensorRT to build with.
        gpu: the GPU that `activate` makes current; TensorRT-RTX builds for kinds of GPUs and needs none.
        progress: called with every step, from another thread. What it raises ends the build and is raised again here,
            and so is Ctrl-C, at the build's next step.
        activate: makes the GPU current on the thread that builds; without it, the first one is.

    Raises:
        InputError: the ONNX file does not fit the settings.
        DeviceError: TensorRT cannot read or build the model.
    """
    monitor = BuildMonitor(progress)

    def build() -> BuiltPlan:
        return _build(onnx_path, settings, module, gpu, monitor)

    return build_apart(build, monitor, activate)


def _build(
    onnx_path: Path, settings: EngineSettings, module: TensorRtModule, gpu: Gpu | None, monitor: BuildMonitor
) -> BuiltPlan:
    api, mark = module.api, module.errors.mark()
    details = {"platform": f"{platform.system()} {platform.machine()}", "gpu": _target(module, settings, gpu)}
    if gpu is not None and module.flavour.module == "tensorrt":
        details[GPU_KIND] = gpu.kind
    builder = _created(lambda: api.Builder(module.logger), module, mark)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    # TF32 has 10 bits of mantissa and is on by default: an FP32 bundle is to give the trained model's scores.
    config.clear_flag(api.BuilderFlag.TF32)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.describe_layers:
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    onnx = read_onnx(onnx_path)
    if settings.weak_typing:
        network = weak_network(module, builder, config, onnx, onnx_path)
    else:
        network = strong_network(module, builder, onnx, onnx_path)
    _set_batch(module, builder, network, config, settings, onnx_path)
    _set_compute_capabilities(module, config, settings)
    # TensorRT-RTX measures nothing, and asks for a GPU when it is given timings.
    timings = None
    if gpu is not None and module.flavour.module != "tensorrt_rtx":
        timings = Timings(settings.timing_cache, str(module), gpu)
        timings.load(config)
    listener = monitor.attach(api, config)
    plan = builder.build_serialized_network(network, config)
    del listener
    monitor.raise_kept()
    if plan is None:
        advice = way_out(module, onnx, weakly_typed=settings.weak_typing)
        raise DeviceError(f"{module} could not build an engine from {onnx_path}: {module.errors.since(mark)}{advice}")
    if timings is not None:
        timings.keep(config)
    details["tensor_types"] = ", ".join(tensor_types(network))
    if settings.weak_typing:
        _log.warning("the engine is weakly typed: its scores can differ from those of %s in FP16 or INT8", onnx_path)
    details["typing"] = "weak: TensorRT chose the layers' types" if settings.weak_typing else "strong"
    details["max_batch"], details["opt_batch"] = str(settings.max_batch), str(settings.opt_batch)
    details["workspace_bytes"] = str(settings.workspace_bytes)
    record = RuntimeRecord(flavour=module.flavour.module, version=module.version, details=details)
    return BuiltPlan(bytes(memoryview(plan)), record)


def _target(module: TensorRtModule, settings: EngineSettings, gpu: Gpu | None) -> str:
    """Return which GPUs the engine will run on."""
    if module.flavour.module == "tensorrt_rtx":
        return ", ".join(settings.compute_capabilities) or "RTX GPUs of compute capability 8.0 and newer"
    if settings.compute_capabilities:
        raise InputError(f"{module} builds for the GPU it runs on; compute_capabilities is for TensorRT-RTX only")
    return str(gpu)


def _created(create: Callable[[], Any], module: TensorRtModule, mark: int) -> Any:
    try:
        return create()
    except TypeError as error:
        # The bindings raise TypeError where the C++ library returns nothing, as it does when CUDA does not start.
        raise DeviceError(f"{module} could not be started: {module.errors.since(mark)}") from error


def _set_batch(
    module: TensorRtModule, builder: Any, network: Any, config: Any, settings: EngineSettings, onnx_path: Path
) -> None:
    profile = builder.create_optimization_profile()
    dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *rest = tuple(tensor.shape)
        if -1 in rest:
            raise InputError(f"{onnx_path}: input {tensor.name!r} is {[batch, *rest]}; only the batch may be dynamic")
        if batch != -1:
            if batch != settings.max_batch:
                raise InputError(
                    f"{onnx_path}: input {tensor.name!r} has a fixed batch of {batch}, and max_batch is "
                    f"{settings.max_batch}; set both max_batch and opt_batch to {batch}"
                )
            continue
        # TensorRT takes a wrong order silently and fails later; EngineSettings has checked 1 <= opt <= max.
        profile.set_shape(tensor.name, (1, *rest), (settings.opt_batch, *rest), (settings.max_batch, *rest))
        dynamic = True
    mark = module.errors.mark()
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise DeviceError(f"{module} refused batches of 1 to {settings.max_batch}: {module.errors.since(mark)}")


def _set_compute_capabilities(module: TensorRtModule, config: Any, settings: EngineSettings) -> None:
    if not settings.compute_capabilities or not hasattr(config, "num_compute_capabilities"):
        return
    config.num_compute_capabilities = len(settings.compute_capabilities)
    known = module.api.ComputeCapability.__members__
    for index, capability in enumerate(settings.compute_capabilities):
        name = f"SM{capability.replace('.', '')}"
        if name not in known:
            choices = ", ".join(f"{each[2:-1]}.{each[-1]}" for each in known if each.startswith("SM"))
            raise InputError(f"{module} cannot build for compute capability {capability!r}; choose from {choices}")
        mark = module.errors.mark()
        if not config.set_compute_capability(known[name], index):
            raise DeviceError(f"{module} refused compute capability {capability}: {module.errors.since(mark)}")
