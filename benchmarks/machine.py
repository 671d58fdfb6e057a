"""Facts about the machine a benchmark ran on, beyond those of `vae_edge.machine`. What is not known is absent."""

from __future__ import annotations

import shutil
import subprocess

from vae_edge import __version__
from vae_edge.benchmarks import conditions
from vae_edge.benchmarks.processor_load import load_average, physical_cores
from vae_edge.machine import installed_versions, look_at_machine
from vae_edge.records import Record

_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
)


class MachineFacts(Record):
    """The machine, as far as it decides how fast a model runs."""

    system: str
    architecture: str
    board: str | None = None
    """The board's own name, such as a Jetson's."""
    processor: str | None = None
    cores_usable: int
    """Logical processors that this process may use."""
    cores_physical: int | None = None
    processor_flags: tuple[str, ...] = ()
    frequency_governor: str | None = None
    frequency_mhz: float | None = None
    """Mean over the cores before the benchmark."""
    largest_frequency_mhz: float | None = None
    """What the processor is allowed to run at most."""
    temperature_c: float | None = None
    """The hottest thermal zone before the benchmark."""
    power_mode: str | None = None
    """A Jetson's, as nvpmodel calls it."""
    is_virtual: bool | None = None
    """Whether this is a virtual machine, whose clock and neighbours cannot be seen."""
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    """Name and driver of each NVIDIA GPU."""
    python: str
    vae_edge: str
    packages: dict[str, str]
    load_average_start: float | None = None
    """Processes that ran or waited to, averaged over the last minute before the benchmark."""
    load_average_end: float | None = None


def machine_facts() -> MachineFacts:
    """Look at this machine."""
    machine = look_at_machine()
    return MachineFacts(
        system=machine.system,
        architecture=machine.architecture,
        board=machine.board,
        processor=machine.processor,
        cores_usable=machine.n_cores,
        cores_physical=physical_cores(),
        processor_flags=machine.processor_flags,
        frequency_governor=conditions.governor(),
        frequency_mhz=conditions.frequency_mhz(),
        largest_frequency_mhz=conditions.largest_frequency_mhz(),
        temperature_c=conditions.temperature_c(),
        power_mode=conditions.power_mode(),
        is_virtual=conditions.is_virtual(),
        memory_bytes=machine.memory_bytes,
        gpus=_gpus(),
        python=machine.python,
        vae_edge=__version__,
        packages=installed_versions(_PACKAGES),
        load_average_start=load_average(),
    )


def _gpus() -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        listing = subprocess.run(
            [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        # The tool without its driver, as in a container: there is no GPU to speak of.
        return ()
    return tuple(line.strip().replace(", ", ", driver ") for line in listing.stdout.splitlines() if line.strip())
