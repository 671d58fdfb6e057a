"""The first step: what machine this is. No serial numbers, no names, no addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from vae_edge import __version__
from vae_edge.errors import DeviceError, VaeEdgeError
from vae_edge.platform import conditions
from vae_edge.platform.machine import installed_versions, look_at_machine, read_system_file
from vae_edge.platform.opencv import look_at_opencv
from vae_edge.selfcheck.record import StepResult, Verdict
from vae_edge.wording import count

_PACKAGES = (
    "vae-edge",
    "numpy",
    "pydantic",
    "typer",
    "rich",
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "openvino-telemetry",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "cuda-bindings",
    "cuda-python",
    "pycuda",
    "torch",
    "safetensors",
    "onnx",
    "nncf",
    "lightning",
)

_DMI = ("sys_vendor", "product_name", "product_version", "board_vendor", "board_name", "bios_version", "bios_date")

_OF_OPENCVS_BUILD = re.compile(
    r"^\s*(Host|CPU/HW features|Baseline|Dispatched code generation|C\+\+ Compiler|Parallel framework|Video I/O|FFMPEG|"
    r"GStreamer|v4l/v4l2|NVIDIA CUDA|cuDNN|NVIDIA GPU arch|OpenCL|PNG|JPEG|TIFF)\s*:(.*)$",
    re.MULTILINE,
)

_SMI_FIELDS = ("temperature.gpu", "clocks.sm", "clocks.mem", "power.draw", "memory.used", "pstate")
_SMI_S = 15.0


def look(arguments: dict[str, Any]) -> StepResult:
    """Gather the facts."""
    machine = look_at_machine()
    root = Path("/")
    facts: dict[str, Any] = {
        "board": machine.board,
        "dmi": {name: text for name in _DMI if (text := read_system_file(root / "sys/class/dmi/id" / name))},
        "system": machine.system,
        "architecture": machine.architecture,
        "l4t": None if machine.jetson is None else machine.jetson.l4t,
        "jetpack": None if machine.jetson is None else machine.jetson.jetpack,
        "processor": machine.processor,
        "cores": machine.n_cores,
        "processor_flags": list(machine.processor_flags),
        "saturates_int8_sums": machine.saturates_int8_sums,
        "memory_bytes": machine.memory_bytes,
        "is_virtual": conditions.is_virtual(),
        "is_container": any((root / name).exists() for name in (".dockerenv", "run/.containerenv")),
        "power_mode": conditions.power_mode(),
        "governor": conditions.governor(),
        "largest_frequency_mhz": conditions.largest_frequency_mhz(),
        "state": state(),
        "python": machine.python,
        "in_virtual_environment": machine.in_virtual_environment,
        "sees_system_packages": machine.sees_system_packages,
        "vae_edge": __version__,
        "packages": installed_versions(_PACKAGES),
        "gpus": _gpus(),
        "nvidia_driver": _nvidia_driver(),
        "opencv": _opencv(),
    }
    return StepResult(verdict=Verdict.OK, lines=tuple(_lines(facts)), facts=facts)


def state() -> dict[str, Any]:
    """Return what changes while the device works: clocks, heat, throttling; what is not known is left out."""
    found: dict[str, Any] = {
        "temperature_c": conditions.temperature_c(),
        "temperatures_c": conditions.temperatures_c(),
        "frequency_mhz": conditions.frequency_mhz(),
        "gpu_frequency_mhz": conditions.gpu_frequency_mhz(),
        "n_throttled": conditions.throttle_count(),
        "nvidia_smi": _nvidia_smi(_SMI_FIELDS),
    }
    return {name: value for name, value in found.items() if value not in (None, {}, [])}


def in_words(found: dict[str, Any]) -> str:
    """Return a state in a few words, such as `58 °C, 1728 MHz`."""
    parts = [
        f"{found[name]:.0f} {unit}"
        for name, unit in (("temperature_c", "°C"), ("frequency_mhz", "MHz"), ("gpu_frequency_mhz", "MHz GPU"))
        if name in found
    ]
    parts += [f"GPU {gpu['temperature.gpu']} °C at {gpu['clocks.sm']}" for gpu in found.get("nvidia_smi", [])[:1]]
    return ", ".join(parts) or "clocks and heat are not known"


def _gpus() -> list[str] | str:
    from vae_edge.backends.cuda.gpus import find_gpus

    try:
        return [str(gpu) for gpu in find_gpus()]
    except DeviceError as error:
        return f"none: {error.__cause__ or error}"


def _nvidia_driver() -> str | None:
    """Return the driver's own version, and the newest CUDA that it supports."""
    from vae_edge.backends.cuda.driver import Driver

    text = read_system_file(Path("/proc/driver/nvidia/version"))
    own = re.search(r"(?:Kernel Module|for \S+)\s+([\d.]+)", text)
    try:
        cuda = f"CUDA {Driver().version}"
    except VaeEdgeError:
        return None
    return f"{own[1]}, {cuda}" if own else cuda


def _nvidia_smi(fields: tuple[str, ...]) -> list[dict[str, str]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SMI_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def _opencv() -> dict[str, Any]:
    """Return which OpenCV is imported, from which package, and what it was built with."""
    try:
        import cv2

        found = look_at_opencv()
    except ImportError as error:
        return {"error": str(error)}
    return {
        "version": found.version,
        "wheel": found.wheel,
        "has_gstreamer": found.has_gstreamer,
        "hides_another": found.hidden is not None,
        "built_with": {
            name: " ".join(text.split()) for name, text in _OF_OPENCVS_BUILD.findall(cv2.getBuildInformation())
        },
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    dmi = facts["dmi"]
    board = facts["board"] or " ".join(filter(None, (dmi.get("sys_vendor"), dmi.get("product_name")))) or "unknown"
    jetson = f", L4T {facts['l4t']} (JetPack {facts['jetpack']})" if facts["l4t"] else ""
    memory = "" if facts["memory_bytes"] is None else f", {facts['memory_bytes'] / 2**30:.1f} GiB"
    gpus = facts["gpus"] if isinstance(facts["gpus"], str) else ", ".join(facts["gpus"])
    opencv = facts["opencv"]
    built = opencv.get("built_with", {})
    return [
        f"board: {board}{jetson}",
        f"system: {facts['system']}, {facts['architecture']}{' (virtual)' if facts['is_virtual'] else ''}",
        f"processor: {facts['processor'] or 'unknown'}, {count(facts['cores'], 'core')}{memory}",
        f"instructions: {' '.join(facts['processor_flags']) or 'unknown'}",
        f"GPU: {gpus}; driver {facts['nvidia_driver'] or 'none'}",
        f"power mode: {facts['power_mode'] or 'unknown'}; governor: {facts['governor'] or 'unknown'}",
        f"now: {in_words(facts['state'])}",
        f"Python: {facts['python']}; OpenCV {opencv.get('version', 'missing')}, {opencv.get('wheel') or 'not from pip'}"
        + "".join(f", {name} {built[name]}" for name in ("GStreamer", "FFMPEG") if name in built),
        "packages: " + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
    ]
