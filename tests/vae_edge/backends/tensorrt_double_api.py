"""The classes of the TensorRT double: see `tensorrt_double`."""

from __future__ import annotations

import ctypes
import enum
import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from tests.vae_edge.backends.tensorrt_double import TensorRtDouble

_ONNX_TYPES = {"tensor(uint8)": ("UINT8", np.uint8), "tensor(float)": ("FLOAT", np.float32)}


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def log(self, severity: Any, msg: str) -> None:
        raise AssertionError("a logger must override this")


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    UINT8 = 7


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class BuilderFlag10(enum.IntEnum):
    """With the flags that TensorRT 11 has no more."""

    FP16 = 0
    INT8 = 1
    TF32 = 7
    PREFER_PRECISION_CONSTRAINTS = 11


class NetworkDefinitionCreationFlag(enum.IntEnum):
    # In TensorRT 10 the number is 1, after EXPLICIT_BATCH.
    STRONGLY_TYPED = 1


class EngineValidity(enum.IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4


def _session(onnx: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Every Q/DQ pair as it stands, as TensorRT computes it.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def make_classes(double: TensorRtDouble) -> dict[str, Any]:
    from tests.vae_edge.backends.tensorrt_double import must, run_onnx

    cuda = double.cuda
    has_weak_typing = double.flavour.module == "tensorrt" and double.major < 11
    flags: Any = BuilderFlag10 if has_weak_typing else BuilderFlag

    class IExecutionContext:
        _thread: threading.Thread

        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._thread = threading.current_thread()
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            double.contexts.add(self)
            double.n_contexts += 1

        def _used(self, call: str) -> None:
            cuda.note(call)
            here = threading.current_thread()
            must(self._thread is here or not self._thread.is_alive(), "two threads use one execution context")
            self._thread = here

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._used("set_input_shape")
            must(name in self._engine._inputs, f"{name} is no input")
            low, _, high = self._engine._batches[name]
            if double.fails("set_input_shape") or not low <= shape[0] <= high:
                return False
            self._shapes[name] = tuple(shape)
            self._addresses.clear()
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._engine._inputs:
                return self._shapes[name]
            return (self._shapes["image"][0], *self._engine.get_tensor_shape(name)[1:])

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._used("set_tensor_address")
            must(set(self._shapes) == set(self._engine._inputs), "an address was set before every shape")
            must(memory in cuda.device, "an address that is no device memory")
            self._addresses[name] = memory
            return not double.fails("set_tensor_address")

        def execute_async_v3(self, stream_handle: int) -> bool:
            self._used("execute_async_v3")
            must(set(self._addresses) == set(self._engine._tensors), "executed before every address was set")
            queued = [name for name, _ in cuda.streams.get(stream_handle, [])]
            n_copies = 0 if cuda.maps_host_memory else len(self._engine._inputs)
            must(queued == ["copy_in"] * n_copies, "the inputs are not queued on this stream")
            if double.fails("execute_async_v3"):
                return False
            shapes, addresses = dict(self._shapes), dict(self._addresses)

            def work() -> None:
                must(all(address in cuda.device for address in addresses.values()), "freed memory is computed with")
                feeds = {
                    name: np.frombuffer(
                        ctypes.string_at(addresses[name], int(np.prod(shape)) * self._engine._tensors[name].itemsize),
                        self._engine._tensors[name],
                    ).reshape(shape)
                    for name, shape in shapes.items()
                }
                for name, value in run_onnx(self._engine._session, feeds).items():
                    must(value.nbytes <= cuda.device[addresses[name]].size_bytes, "an output overflows its buffer")
                    ctypes.memmove(addresses[name], value.tobytes(), value.nbytes)

            cuda.queue(stream_handle, "execute", work)
            self._shapes.clear()
            return True

    class ICudaEngine:
        def __init__(self, onnx: bytes, batches: dict[str, list[int]]) -> None:
            self._session, self._batches = _session(onnx), batches
            self._inputs = [each.name for each in self._session.get_inputs()]
            self._values = {each.name: each for each in (*self._session.get_inputs(), *self._session.get_outputs())}
            self._tensors = {name: np.dtype(_ONNX_TYPES[each.type][1]) for name, each in self._values.items()}
            double.engines.add(self)

        @property
        def num_io_tensors(self) -> int:
            return len(self._values)

        def get_tensor_name(self, index: int) -> str:
            return str(list(self._values)[index])

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType[_ONNX_TYPES[self._values[name].type][0]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(size if isinstance(size, int) else -1 for size in self._values[name].shape)

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            must(profile_index == 0, "there is one profile")
            return [(batch, *self.get_tensor_shape(name)[1:]) for batch in self._batches[name]]

        def create_execution_context(self) -> IExecutionContext | None:
            cuda.note("create_execution_context")
            return None if double.fails("create_execution_context") else IExecutionContext(self)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            must(isinstance(logger, ILogger), "no logger")
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            cuda.note("deserialize_cuda_engine")
            refused = serialized_engine in double.refused
            if refused:
                double.faults.add("deserialize_cuda_engine")
            if double.fails("deserialize_cuda_engine"):
                double.faults -= {"deserialize_cuda_engine"} if refused else set()
                return None
            size = int.from_bytes(serialized_engine[32:36], "little")
            return ICudaEngine(serialized_engine[36 + size :], json.loads(serialized_engine[36 : 36 + size]))

    class RtxRuntime(Runtime):
        def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
            return EngineValidity(double.validity[0]), double.validity[1]

    class ITensor:
        def __init__(self, name: str, dtype: DataType, shape: Any) -> None:
            self.name, self.dtype = name, dtype
            self.shape = tuple(size if isinstance(size, int) else -1 for size in shape)

    def tensor_of(value: Any) -> ITensor:
        return ITensor(value.name, DataType[_ONNX_TYPES[value.type][0]], value.shape)

    def inner_tensors(model: bytes) -> list[ITensor]:
        """One tensor of each low precision that a model names."""
        names = {"HALF": b"half", "INT8": b"QuantizeLinear"}
        return [ITensor(name, DataType[name], ()) for name, mark in names.items() if mark in model]

    class ILayer:
        num_outputs = 1

        def __init__(self, output: ITensor) -> None:
            self._output = output
            self.name = f"layer_{output.name}"
            self.precision: DataType | None = None

        def get_output(self, index: int) -> ITensor:
            return self._output

        def set_output_type(self, index: int, dtype: DataType) -> None:
            must(index == 0, "the layer has one output")
            must(self.precision is dtype, "a layer computes in another type than it gives")

    class INetworkDefinition:
        def __init__(self) -> None:
            self._onnx, self._in, self._out = b"", [], []  # type: ignore[var-annotated]  # filled by the parser
            self._layers: list[ILayer] = []
            self._is_weak = False

        num_inputs = property(lambda self: len(self._in))
        num_outputs = property(lambda self: len(self._out))
        num_layers = property(lambda self: len(self._layers))

        def get_input(self, index: int) -> ITensor:
            return self._in[index]  # type: ignore[no-any-return]  # the lists hold ITensor only

        def get_layer(self, index: int) -> ILayer:
            return self._layers[index]

    class ParserError:
        def desc(self) -> str:
            return "an operator is not known"

        def node_name(self) -> str:
            return "node_7"

        def node_operator(self) -> str:
            return "Frobnicate"

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network = network
            self.num_errors = 0

        def parse(self, model: bytes) -> bool:
            if double.fails("parse"):
                self.num_errors = 2
                return False
            self._network._onnx = model
            session = _session(self._network._onnx)
            self._network._in = [tensor_of(value) for value in session.get_inputs()]
            self._network._out = [tensor_of(value) for value in session.get_outputs()]
            self._network._layers = [ILayer(value) for value in (*inner_tensors(model), *self._network._out)]
            return True

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._batches: dict[str, list[int]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self._batches[input] = [min[0], opt[0], max[0]]

    class IHostMemory(bytes):
        nbytes = property(len)

    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> IHostMemory:
            return IHostMemory(self._content)

    class IBuilderConfig:
        def __init__(self) -> None:
            self._profiles: list[IOptimizationProfile] = []
            self._limits: dict[MemoryPoolType, int] = {}
            # TF32 is on until it is taken back.
            self._flags = {flags.TF32}
            self._cache: ITimingCache | None = None
            self.given = b""
            self.builder_optimization_level = 3
            self.progress_monitor: IProgressMonitor | None = None
            self._network: INetworkDefinition | None = None

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag)

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag)

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            self._limits[pool] = pool_size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profiles.append(profile)
            return -1 if double.fails("add_optimization_profile") else 0

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
            return ITimingCache(serialized_timing_cache)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            if "set_timing_cache" in double.faults and cache._content:
                return False
            self._cache, self.given = cache, cache._content
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            if double.fails("Builder"):
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            strong = 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            must(flags == strong or (flags == 0 and has_weak_typing), "the network is not strongly typed")
            network = INetworkDefinition()
            network._is_weak = flags == 0
            return network

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            must(MemoryPoolType.WORKSPACE in config._limits, "the workspace has no limit")
            must(BuilderFlag.TF32 not in config._flags, "an FP32 network would be computed in TF32")
            must(network._is_weak or not config._flags, "precisions were allowed to a strongly typed network")
            double.built.append(config)
            config._network = network
            if double.fails("build_serialized_network"):
                return None
            monitor = config.progress_monitor
            if monitor is not None:
                monitor.phase_start("Building", None, 2)
                if not all(monitor.step_complete("Building", step) for step in range(2)):
                    return None
                monitor.phase_finish("Building")
            if config._cache is not None:
                config._cache._content = b"timings"
            batches = config._profiles[0]._batches if config._profiles else {}
            content = double.plan_bytes(network._onnx, batches)
            # A field that the double's own engines do not read.
            number = len(double.built) if double.built_differ else 0
            return IHostMemory(content[:28] + number.to_bytes(4, "little") + content[32:])

    classes = [IExecutionContext, ICudaEngine, Runtime, ITensor, ILayer, INetworkDefinition, ParserError, OnnxParser]
    classes += [IOptimizationProfile, IHostMemory, ITimingCache, IBuilderConfig, Builder, ILogger, IProgressMonitor]
    classes += [DataType, TensorIOMode, MemoryPoolType, NetworkDefinitionCreationFlag]
    found: dict[str, Any] = {each.__name__: each for each in classes} | {"BuilderFlag": flags}
    if double.flavour.module == "tensorrt_rtx":
        found |= {"Runtime": RtxRuntime, "EngineValidity": EngineValidity}
        found["EngineInvalidityDiagnostics"] = EngineInvalidityDiagnostics
    return found
