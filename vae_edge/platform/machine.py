"""What kind of machine this is: processor, memory, Python and its packages, and whether it is a Jetson."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from vae_edge.platform import windows

_TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Instruction sets that decide how fast FP32, FP16 and INT8 are, as /proc/cpuinfo calls them."""


@dataclass(frozen=True)
class Jetson:
    """An NVIDIA Jetson, by the version of its Linux (L4T)."""

    l4t: str
    """Such as `36.4.0`; `unknown` where the system does not tell."""

    @property
    def jetpack(self) -> str:
        """The JetPack that brings this Linux, as NVIDIA's release notes pair them."""
        major, minor = [*map(int, re.findall(r"\d+", self.l4t)), 0, 0][:2]
        if major == 36:
            return "6.0" if minor < 4 else "6.1 or newer"
        return {32: "4", 34: "5", 35: "5", 38: "7", 39: "7"}.get(major, "unknown")

    @property
    def is_too_old(self) -> bool:
        """Whether its TensorRT is version 8, below the floor of vae-edge."""
        return self.jetpack in ("4", "5", "6.0")


_WIDE_INT8_SUMS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""x86 instruction sets that multiply 8-bit integers and add the products up in 32 bits."""


@dataclass(frozen=True)
class Machine:
    """Facts about this machine; what is not known is None or empty."""

    system: str
    architecture: str
    board: str | None
    """The board's own name, such as a Jetson's."""
    processor: str | None
    """Its name; where it has none, the board's."""
    n_cores: int
    """Logical processors that this process may use."""
    processor_flags: tuple[str, ...]
    memory_bytes: int | None
    python: str
    executable: str
    in_virtual_environment: bool
    sees_system_packages: bool
    """Whether Python here finds the system's packages, as JetPack's TensorRT is one."""
    jetson: Jetson | None

    @property
    def saturates_int8_sums(self) -> bool:
        """Whether pairs of 8-bit products are added up in 16 bits, where they saturate.

        x86 without VNNI or AMX does (`vpmaddubsw`); Arm has no such instruction in this place. Where the flags are not
        known, the safe answer is given.
        """
        return self._is_x86 and not _WIDE_INT8_SUMS.intersection(self.processor_flags)

    @property
    def _is_x86(self) -> bool:
        return self.architecture.lower() in ("x86_64", "amd64", "i386", "i686", "x86")

    @property
    def int8_rounding(self) -> str:
        """On which processors the INT8 bundles that are exported now give equal results: those with an equal value.

        `x86` for all with AVX2, whatever else they have. Below, OpenVINO computes rounded values in float32.
        """
        return "x86" if self._is_x86 and "avx2" in self.processor_flags else self.int8_arithmetic

    @property
    def int8_arithmetic(self) -> str:
        """The instructions that runtimes compute INT8 with; bundles of all versions give equal results with equal ones.

        Runtimes choose others for x86 processors with AMX, VNNI or neither; elsewhere it is the architecture.
        """
        if "amx_int8" in self.processor_flags:
            return "AMX"
        if self.saturates_int8_sums:
            return "sums in 16 bits"
        return "VNNI" if _WIDE_INT8_SUMS.intersection(self.processor_flags) else self.architecture.lower()


def look_at_machine() -> Machine:
    """Gather the facts; never fails."""
    cpu = _first_processor(read_system_file(Path("/proc/cpuinfo")))
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    virtual = sys.prefix != sys.base_prefix
    settings = read_system_file(Path(sys.prefix, "pyvenv.cfg")) if virtual else ""
    board = read_system_file(Path("/proc/device-tree/model")) or None
    windows_name = windows.processor_name() if sys.platform == "win32" else None
    return Machine(
        system=_system_name(),
        architecture=platform.machine(),
        board=board,
        processor=cpu.get("model name") or board or windows_name or platform.processor() or None,
        n_cores=len(usable_processors()),
        processor_flags=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        memory_bytes=_memory_bytes(),
        python=platform.python_version(),
        executable=sys.executable,
        in_virtual_environment=virtual,
        sees_system_packages=not virtual or bool(re.search(r"include-system-site-packages\s*=\s*true", settings, re.I)),
        jetson=find_jetson(read_system_file(Path("/etc/nv_tegra_release")), platform.release()),
    )


def processor_features() -> str:
    """Return all instruction sets of this processor as one word, which another processor does not have.

    Two machines with processors of one name can differ in them: a virtual machine hides some. Empty: not known.
    """
    if sys.platform == "win32":
        return _as_one_word(windows.processor_features())
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            cpu = _first_processor(file.read(1 << 14))  # Of hundreds of processors only the first is of use.
    except OSError:
        return ""
    return _as_one_word((cpu.get("flags") or cpu.get("Features") or "").split())


def _as_one_word(flags: list[str]) -> str:
    return hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:16] if flags else ""


def usable_processors() -> list[int]:
    """Return the numbers of the logical processors that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Return how many processor cores this process may use: logical ones that share a core count once."""
    topology = Path("/sys/devices/system/cpu")
    cores = {
        read_system_file(topology / f"cpu{n}/topology/thread_siblings_list") or str(n) for n in usable_processors()
    }
    return max(len(cores), 1)


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed package, by the name that pip knows; None: it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = ((name, installed_version(name)) for name in distributions)
    return {name: version for name, version in found if version is not None}


def find_jetson(release_file: str, kernel: str) -> Jetson | None:
    """Recognize a Jetson.

    Args:
        release_file: content of /etc/nv_tegra_release, such as `# R36 (release), REVISION: 4.0, ...`; empty without.
        kernel: the kernel's release, which ends in `-tegra` there (seen from inside a container as well).
    """
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release_file)
    if match:
        return Jetson(f"{match[1]}.{match[2]}")
    return Jetson("unknown") if "tegra" in kernel else None


def _first_processor(cpuinfo: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in cpuinfo.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _system_name() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:  # macOS, Windows and bare systems have no such file.
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release()}"


def _memory_bytes() -> int | None:
    if sys.platform == "win32":
        return windows.memory_bytes()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def read_system_file(path: Path) -> str:
    """Return the text of a file that the system describes itself in; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return ""
