"""One small, real trial of each runtime: a layer is loaded and run on numbers whose result is known.

A probe belongs into a process of its own: a wheel built for another processor ends its process without a word. See
`vae_edge.doctor`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vae_edge.atomic import scratch_folder
from vae_edge.backends.base import RuntimeOptions
from vae_edge.errors import DeviceError, MissingDependencyError
from vae_edge.machine import installed_version
from vae_edge.manifest import TensorSpec
from vae_edge.telemetry import import_onnxruntime, import_openvino

Purpose = Literal["runs bundles", "reaches the GPU", "trains and exports"]
Status = Literal["works", "partly", "broken", "missing"]

_RELU_ONNX = (
    b'\x08\x08\x12\x00:;\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01'
    b"\n\x02\x08\x04b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x04B\x04\n\x00\x10\r"
)
"""An ONNX file: `y = Relu(x)`, float32 [1, 4], opset 13. As bytes, for a device has no package to write ONNX with."""

_NO_GPU = "there is no NVIDIA GPU here, or no driver for it"
GPU_FIX = "only for an NVIDIA GPU: install its driver, then pip install 'vae-edge[tensorrt-rtx]'"

_X = np.array([[-1.0, 2.0, -3.0, 4.0]], dtype=np.float32)
_Y = np.maximum(_X, 0)


@dataclass(frozen=True)
class Probe:
    """What was found out about one runtime or package."""

    name: str
    purpose: Purpose
    status: Status
    version: str | None = None
    devices: tuple[str, ...] = ()
    notes: str = ""
    fix: str | None = None
    """The command or the step that mends it; None: nothing to mend."""


def probe_onnxruntime() -> Probe:
    """Run one layer with ONNX Runtime on the CPU."""
    onnxruntime = import_onnxruntime()
    providers = tuple(onnxruntime.get_available_providers())
    session = onnxruntime.InferenceSession(_RELU_ONNX, providers=["CPUExecutionProvider"])
    _compare(session.run(None, {"x": _X})[0])
    devices = ("cpu", *(("cuda",) if "CUDAExecutionProvider" in providers else ()))
    notes = "ran a layer on the CPU; providers: " + ", ".join(
        name.replace("ExecutionProvider", "") for name in providers
    )
    return Probe("ONNX Runtime", "runs bundles", "works", onnxruntime.__version__, devices, notes)


def probe_openvino() -> Probe:
    """Compile and run one layer with OpenVINO on the CPU."""
    from vae_edge.backends.openvino_module import check_can_load, openvino_core, version_of

    check_can_load()
    openvino, core = import_openvino(), openvino_core()
    devices = tuple(device.lower() for device in core.available_devices)
    network = core.read_model(_RELU_ONNX)
    _compare(core.compile_model(network, "CPU")({"x": _X})[0])
    return Probe("OpenVINO", "runs bundles", "works", version_of(openvino), devices, "ran a layer on the CPU")


def probe_torch() -> Probe:
    """Run one layer with torch, on the GPU where it finds one."""
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    place = "cuda" if len(devices) > 1 else "cpu"
    _compare(torch.relu(torch.from_numpy(_X).to(place)).cpu().numpy())
    if util.find_spec("safetensors") is None:
        raise ModuleNotFoundError("No module named 'safetensors'", name="safetensors")
    return Probe("torch", "runs bundles", "works", torch.__version__, tuple(devices), f"ran a layer on {place}")


def probe_tensorrt() -> Probe:
    """Build one layer with TensorRT or TensorRT-RTX, and run it where there is a GPU."""
    from vae_edge.backends.tensorrt_module import find_tensorrt

    module = find_tensorrt()
    title = module.flavour.title
    gpus = _gpus()
    if not gpus and module.flavour.module == "tensorrt":
        return Probe(title, "runs bundles", "broken", module.version, (), _NO_GPU, GPU_FIX)
    plan = _build_relu(module.api, module.logger)
    if plan is None:
        reason = f"cannot build a layer: {module.errors.since(0)}"
        return Probe(title, "runs bundles", "broken", module.version, gpus, reason, _reinstall(module.flavour.extra))
    if not gpus:
        notes = "built a layer; no GPU to run it on"
        return Probe(title, "runs bundles", "partly", module.version, (), notes, GPU_FIX)
    _run_plan(plan)
    return Probe(title, "runs bundles", "works", module.version, gpus, "built a layer and ran it on the GPU")


def probe_cuda() -> Probe:
    """Reach the GPU's memory through pycuda or cuda-bindings."""
    from vae_edge.backends.cuda.adapters import open_cuda_memory

    versions = {name: installed_version(name) for name in ("pycuda", "cuda-bindings")}
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    gpus = _gpus()
    if not gpus:
        status: Status = "partly" if found else "missing"
        return Probe("CUDA from Python", "reaches the GPU", status, found or None, (), _NO_GPU, GPU_FIX)
    open_cuda_memory(0, "tensorrt").close()
    return Probe("CUDA from Python", "reaches the GPU", "works", found, gpus, "opened the first GPU")


def probe_package(name: str, module: str, extra: str) -> Probe:
    """Look a package up without importing it: some of them take seconds."""
    version = installed_version(name)
    if version is None or util.find_spec(module) is None:
        return Probe(name, "trains and exports", "missing", fix=f"pip install 'vae-edge[{extra}]'")
    return Probe(name, "trains and exports", "works", version)


RUNTIME_PROBES: dict[str, tuple[str, str, Callable[[], Probe]]] = {
    "onnxruntime": ("ONNX Runtime", "onnxruntime", probe_onnxruntime),
    "openvino": ("OpenVINO", "openvino", probe_openvino),
    "tensorrt": ("TensorRT", "tensorrt", probe_tensorrt),
    "torch": ("torch", "torch", probe_torch),
    "cuda": ("CUDA from Python", "tensorrt", probe_cuda),
}
"""Key: title, extra of this package, probe."""

PACKAGES = (
    ("lightning", "lightning", "train"),
    ("safetensors", "safetensors", "train"),
    ("onnx", "onnx", "export"),
    ("onnxscript", "onnxscript", "export"),
)
"""Packages of training and export: distribution, module, extra."""


def probe(key: str) -> Probe:
    """Try one runtime out; whatever goes wrong is in the result."""
    title, extra, function = RUNTIME_PROBES[key]
    purpose: Purpose = "reaches the GPU" if key == "cuda" else "runs bundles"
    try:
        return function()
    except ModuleNotFoundError as error:
        return Probe(
            title, purpose, "missing", notes=f"no package {error.name}", fix=f"pip install 'vae-edge[{extra}]'"
        )
    except MissingDependencyError as error:
        return Probe(title, purpose, "missing", notes=str(error), fix=f"pip install 'vae-edge[{extra}]'")
    except DeviceError as error:
        return Probe(title, purpose, "broken", installed_version(key), notes=str(error))
    except Exception as error:  # noqa: BLE001 - a damaged installation raises anything, and a report is wanted
        notes = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Probe(title, purpose, "broken", installed_version(key), notes=notes, fix=_reinstall(extra))


def write_probe(key: str, path: str) -> None:
    """Write a probe's result as JSON: what the process that runs it leaves for its parent."""
    Path(path).write_text(json.dumps(asdict(probe(key))), encoding="utf-8")


def read_probe(path: Path) -> Probe:
    """Read what `write_probe` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Probe(**{**content, "devices": tuple(content["devices"])})


def _gpus() -> tuple[str, ...]:
    from vae_edge.backends.cuda.driver import find_gpus

    try:
        return tuple(map(str, find_gpus()))
    except DeviceError:
        return ()


def _build_relu(api: Any, logger: Any) -> Any:
    builder = api.Builder(logger)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    layer = network.add_activation(network.add_input("x", api.float32, (1, 4)), api.ActivationType.RELU)
    layer.get_output(0).name = "y"
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, 1 << 20)
    return builder.build_serialized_network(network, config)


def _run_plan(plan: Any) -> None:
    from vae_edge.backends.tensorrt_backend import TensorRtBackend

    specs = [(TensorSpec(name=name, dtype="float32", shape=(1, 4)),) for name in ("x", "y")]
    with (
        _file(bytes(memoryview(plan))) as path,
        TensorRtBackend(path, *specs, max_batch=1, options=RuntimeOptions(rebuild=False)) as backend,
    ):
        _compare(backend.run({"x": _X})["y"])


@contextmanager
def _file(content: bytes) -> Iterator[Path]:
    with scratch_folder("probe") as folder:
        path = Path(folder, "model.engine")
        path.write_bytes(content)
        yield path


def _compare(result: Any) -> None:
    if not np.array_equal(np.asarray(result), _Y):
        raise DeviceError(f"a layer gave {np.asarray(result).tolist()}; expected {_Y.tolist()}")


def _reinstall(extra: str) -> str:
    return f"pip install --force-reinstall 'vae-edge[{extra}]'"
