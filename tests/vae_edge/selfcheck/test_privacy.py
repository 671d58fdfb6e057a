from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from vae_edge.selfcheck.privacy import Redactor
from vae_edge.selfcheck.record import Verdict
from vae_edge.selfcheck.runner import Runner
from vae_edge.selfcheck.steps import Step

USER, HOST, SERIAL, MAC, GPU = (
    "mustermann",
    "press-line-7",
    "1423721034567",
    "48:b0:2d:3c:4d:5e",
    "GPU-8f6d1c2a-1111-2222-3333-abcdefabcdef",
)


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device with an owner; returns what must not be sent."""
    home = tmp_path / "homes" / USER
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setenv("HOSTNAME", f"{HOST}.plant.example")
    monkeypatch.setattr("platform.node", lambda: HOST)
    for file, text in {
        "proc/device-tree/serial-number": f"{SERIAL}\0",
        "sys/class/net/eth0/address": MAC,
        "sys/class/dmi/id/board_serial": "BOARD-0815",
    }.items():
        path = tmp_path / "root" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [
        f"{home}/parts/gearbox.png",
        f"/home/{USER}/x.png and /home/colleague/secret-product/1.png",
        f"C:\\Users\\{USER.upper()}\\secret-product",
        f"host {HOST}, {HOST}.plant.example",
        f"serial {SERIAL}, BOARD-0815",
        f"cards {MAC} and 48-B0-2D-3C-4D-5F",
        GPU,
        f"{USER}@plant.example",
    ]


FORBIDDEN = (
    USER,
    HOST,
    SERIAL,
    MAC,
    "4D-5F",
    GPU,
    "gearbox",
    "colleague",
    "secret-product",
    "BOARD-0815",
    "plant.example",
)


def none_is_in(content: str) -> None:
    assert [text for text in FORBIDDEN if text.lower() in content.lower()] == []


def test_private_texts_are_replaced(private: list[str], tmp_path: Path) -> None:
    redactor = Redactor(root=tmp_path / "root")
    for text in private:
        none_is_in(redactor.text(text))
    none_is_in(str(redactor.value({"a": [private[0]], private[1]: {"b": private[2], "c": 3.5, "d": None}})))


def test_what_is_of_use_stays(private: list[str], tmp_path: Path) -> None:
    redactor = Redactor({"/data/customer/line": "given-1"}, tmp_path / "root")
    for text in (
        "NVIDIA Jetson Orin Nano Developer Kit",
        "TensorRT 10.3.0.30 on cuda:0 (Orin, compute capability 8.7, 8 SMs)",
        "INT8 convolutions: 0.12% (at most 4.0%)",
        "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py",
        "2026-11-30T20:41:09+00:00",
        "5.15.148-tegra",
    ):
        assert redactor.text(text) == text
    assert redactor.text("/data/customer/line/model.onnx is damaged") == "given-1/model.onnx is damaged"


def test_a_name_that_many_devices_have_is_no_reason_to_spoil_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("USER", "nvidia")
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr("platform.node", lambda: "ubuntu")
    assert Redactor(root=tmp_path).text("nvidia-l4t-core on Ubuntu 22.04") == "nvidia-l4t-core on Ubuntu 22.04"


@pytest.mark.skipif(os.name != "posix", reason="ends a process by a signal")
def test_nothing_private_is_in_the_file_whatever_a_crashing_process_writes(private: list[str], tmp_path: Path) -> None:
    worker = (sys.executable, "-m", "tests.vae_edge.selfcheck.fake_worker", "private")
    redactor = Redactor({str(tmp_path): "<scratch>"}, tmp_path / "root")
    runner = Runner(tmp_path / "sent.zip", redactor, on_step=lambda step: None, worker=worker)
    (tmp_path / "scratch").mkdir()
    step = Step("machine", f"the machine of {USER}", "machine", variables={"PRIVATE": "|".join(private)})
    (found,) = runner.run_steps([step], tmp_path / "scratch").steps
    assert found.verdict is Verdict.FAILED
    assert "serial" in (found.messages or "")
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        for name in archive.namelist():
            none_is_in(archive.read(name).decode())
