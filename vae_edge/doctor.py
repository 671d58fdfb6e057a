"""What of vae-edge works on this machine, and how to mend what does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from vae_edge import __version__
from vae_edge.atomic import scratch_folder
from vae_edge.machine import Jetson, Machine, look_at_machine
from vae_edge.probes import GPU_FIX, PACKAGES, RUNTIME_PROBES, Probe, Purpose, probe_package, read_probe
from vae_edge.progress import Progress

_TIMEOUT_S = 180.0
"""The first import of torch from a slow memory card takes more than a minute."""

_AT_ONCE = 2
"""Runtimes tried at the same time: each takes a few hundred megabytes while it is."""

_CHILD = "import sys; from vae_edge.probes import write_probe; write_probe(sys.argv[1], sys.argv[2])"


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `vae-edge doctor` shows."""

    vae_edge: str
    machine: Machine
    probes: tuple[Probe, ...]

    @property
    def can_run_bundles(self) -> bool:
        """Whether at least one runtime ran its trial."""
        return any(probe.purpose == "runs bundles" and probe.status == "works" for probe in self.probes)

    @property
    def fixes(self) -> tuple[str, ...]:
        """The steps that mend what is missing or broken, without repetition."""
        return tuple(dict.fromkeys(probe.fix for probe in self.probes if probe.fix))


def examine(*, progress: Progress | None = None) -> Diagnosis:
    """Look at the machine and try every runtime out, each in a process of its own.

    Args:
        progress: called from this thread with the number of runtimes tried and of all.
    """
    machine = look_at_machine()
    found: dict[str, Probe] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = {pool.submit(_probe_apart, key): key for key in RUNTIME_PROBES}
        for done, future in enumerate(as_completed(futures), start=1):
            found[futures[future]] = future.result()
            if progress is not None:
                progress(done, len(futures))
    probes = [_advise(key, found[key], machine) for key in RUNTIME_PROBES]
    probes += [probe_package(*package) for package in PACKAGES]
    return Diagnosis(__version__, machine, tuple(probes))


def tensorrt_advice(machine: Machine, probe: Probe) -> Probe:
    """Give the fix that fits the machine: on a Jetson TensorRT is a part of JetPack, and pip has none."""
    jetson = machine.jetson
    if jetson is None or probe.status == "works":
        return probe
    return replace(probe, fix=_jetson_fix(jetson, machine), notes=probe.notes)


def _jetson_fix(jetson: Jetson, machine: Machine) -> str:
    if jetson.is_too_old:
        return f"this is JetPack {jetson.jetpack} with TensorRT 8, which vae-edge does not support: flash JetPack 6.1+"
    if not machine.sees_system_packages:
        return "make the environment again so that it sees JetPack's TensorRT: python3 -m venv --system-site-packages"
    return "sudo apt-get install python3-libnvinfer && pip install pycuda"


def _advise(key: str, probe: Probe, machine: Machine) -> Probe:
    if key in ("tensorrt", "cuda"):
        advised = tensorrt_advice(machine, probe)
        if advised is probe and probe.status == "missing" and machine.jetson is None:
            # Without an NVIDIA GPU there is nothing to mend; with one, RTX is the flavour that pip can install whole.
            return replace(probe, fix=GPU_FIX)
        return advised
    return probe


def _probe_apart(key: str, *, command: str = _CHILD) -> Probe:
    """Run one probe in a process of its own, so that a crash is a line of the report and not its end."""
    title, extra, _ = RUNTIME_PROBES[key]
    purpose: Purpose = "reaches the GPU" if key == "cuda" else "runs bundles"
    fix = f"pip install --force-reinstall 'vae-edge[{extra}]'"
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
    return Probe(title, purpose, "broken", notes=f"loading it ended the process ({_ending(done.returncode)})", fix=fix)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
