"""Which packages pip can install where, so that no sentence advises one that it cannot."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from vae_edge.platform.machine import Machine, look_at_machine

_Version = tuple[int, int]

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Platform:
    """What decides whether pip finds a wheel."""

    system: str
    """`Linux`, `Windows` or `Darwin`."""
    architecture: str
    """`x86_64` or `arm64`, or the system's own name of another one."""
    python: _Version
    glibc: _Version | None = None
    """None: the system has no glibc, or it is not known."""

    def __str__(self) -> str:
        return f"{self.system} on {self.architecture} with Python {_dotted(self.python)}"


def this_platform() -> Platform:
    """Return the platform of this process."""
    machine = platform.machine().lower()
    library, version = platform.libc_ver()
    parts = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    return Platform(
        platform.system(),
        _ARCHITECTURES.get(machine, machine),
        (sys.version_info.major, sys.version_info.minor),
        (parts[0], parts[1]) if library == "glibc" and len(parts) == 2 else None,
    )


@dataclass(frozen=True)
class Wheel:
    """A package on the Python Package Index, and where pip can install it."""

    package: str
    platforms: frozenset[tuple[str, str]]
    """System and architecture of each."""
    since: _Version = (3, 10)
    until: _Version | None = None
    """The last Python that has a wheel; None: the newest."""
    glibc: _Version | None = None
    """The lowest glibc of a wheel for Linux; None: as low as that of ONNX Runtime's own."""
    stands_alone: bool = True
    """Whether it is another build of `onnxruntime`, whose files it overwrites; otherwise it is a plug-in for it."""

    def fits(self, place: Platform) -> bool:
        """Return whether pip finds a wheel of it there."""
        if (place.system, place.architecture) not in self.platforms or place.python < self.since:
            return False
        if self.until is not None and place.python > self.until:
            return False
        return place.system != "Linux" or self.glibc is None or (place.glibc is not None and place.glibc >= self.glibc)

    @property
    def how_to_install(self) -> str:
        """The commands; two builds of ONNX Runtime in one environment overwrite each other."""
        if self.stands_alone:
            return f"run: pip uninstall onnxruntime, then: pip install {self.package}"
        return f"run: pip install {self.package}"


def on(*places: str) -> frozenset[tuple[str, str]]:
    """Return systems and architectures that are written as `Linux/x86_64`."""
    return frozenset((system, architecture) for system, _, architecture in (place.partition("/") for place in places))


_GLIBC = (2, 17)
"""Of the oldest wheels that pip still takes. None of these packages has one for another libc, as of Alpine Linux."""

_PC = ("Linux/x86_64", "Windows/x86_64")

# Asked of the index through pip in November and December 2026, in the versions that pyproject.toml allows.
_RUNTIMES = {
    "onnxruntime": Wheel(
        "onnxruntime", on(*_PC, "Linux/arm64", "Windows/arm64", "Darwin/arm64", "Darwin/x86_64"), glibc=_GLIBC
    ),
    "openvino": Wheel("openvino", on(*_PC, "Linux/arm64", "Darwin/arm64", "Darwin/x86_64"), glibc=_GLIBC),
    "torch": Wheel("torch", on(*_PC, "Linux/arm64", "Darwin/arm64"), glibc=_GLIBC),
    "tensorrt": Wheel("tensorrt", on(*_PC, "Linux/arm64"), glibc=_GLIBC),
    "tensorrt-rtx": Wheel("tensorrt-rtx", on(*_PC, "Linux/arm64"), glibc=_GLIBC),
}
"""The runtimes by the extra that installs each."""

_OF_JETPACK = frozenset({"tensorrt", "tensorrt-rtx"})
"""What pip refuses on a Jetson (`tensorrt`), or installs for other GPUs: there TensorRT is a part of the system."""


def install_command(extra: str, place: Platform | None = None, machine: Machine | None = None) -> str | None:
    """Return pip's command for an extra of this package; None: it cannot install that here.

    Args:
        extra: such as `openvino`. Of one that is not for a runtime nothing is known, and it is taken to be installable.
        place: the platform; None: this one.
        machine: None: this one.
    """
    wheel = _RUNTIMES.get(extra)
    if wheel is not None and not wheel.fits(place or this_platform()):
        return None
    if extra in _OF_JETPACK and (machine or look_at_machine()).jetson is not None:
        return None
    return f'pip install "vae-edge[{extra}]"'


def tensorrt_from_jetpack(machine: Machine) -> str | None:
    """Return how to get the TensorRT of JetPack on a Jetson; None: this is not one."""
    jetson = machine.jetson
    if jetson is None:
        return None
    if jetson.is_too_old:
        return f"this is JetPack {jetson.jetpack} with TensorRT 8, which vae-edge does not support: flash JetPack 6.1+"
    if not machine.sees_system_packages:
        return "create the environment again with access to JetPack's TensorRT: python3 -m venv --system-site-packages"
    return "sudo apt-get install python3-libnvinfer"


def _dotted(version: _Version) -> str:
    return ".".join(map(str, version))
