from __future__ import annotations

import re
from pathlib import Path

import pytest

from vae_edge.backends.onnxruntime_devices import DEVICES, advice, installed, parse
from vae_edge.errors import DeviceError
from vae_edge.platform.wheels import Platform, this_platform

PC = Platform("Linux", "x86_64", (3, 12), (2, 36))
WINDOWS = Platform("Windows", "x86_64", (3, 12))
WINDOWS_ON_ARM = Platform("Windows", "arm64", (3, 12))
ARM = Platform("Linux", "arm64", (3, 12), (2, 35))
OLD_ARM = Platform("Linux", "arm64", (3, 12), (2, 31))
JETSON = Platform("Linux", "arm64", (3, 10), (2, 35))
MAC = Platform("Darwin", "arm64", (3, 12))
INTEL_MAC = Platform("Darwin", "x86_64", (3, 12))

REPLACED = "run: pip uninstall onnxruntime, then: pip install onnxruntime-"

# What pip found on the index for each platform, asked in November 2026.
WHEELS: dict[str, dict[Platform, str | None]] = {
    "cuda": {PC: "gpu", WINDOWS: "gpu", ARM: None, JETSON: None, WINDOWS_ON_ARM: None, MAC: None},
    "tensorrt": {PC: "gpu", WINDOWS: "gpu", ARM: None, JETSON: None, WINDOWS_ON_ARM: None, MAC: None},
    "openvino": {PC: "openvino", WINDOWS: "openvino", ARM: None, WINDOWS_ON_ARM: None, MAC: None},
    "dml": {PC: None, WINDOWS: "directml", ARM: None, WINDOWS_ON_ARM: None, MAC: None},
    "coreml": {PC: None, WINDOWS: None, ARM: None, INTEL_MAC: None},
    "qnn": {PC: None, WINDOWS: None, OLD_ARM: None, JETSON: None, MAC: None},
    "xnnpack": {PC: None, WINDOWS: None, ARM: None, WINDOWS_ON_ARM: None, MAC: None},
}


@pytest.mark.parametrize(
    ("name", "place", "package"), [(name, *pair) for name, places in WHEELS.items() for pair in places.items()], ids=str
)
def test_a_package_is_advised_only_where_pip_can_install_it(name: str, place: Platform, package: str | None) -> None:
    sentence = advice(DEVICES[name], place)
    if package is None:
        assert "pip" not in sentence
        assert re.match(r"there is no package with it for \w+ on \w+ with Python 3\.\d+; |no package of ONNX", sentence)
    else:
        assert sentence == REPLACED + package


def test_a_plug_in_is_installed_beside_onnx_runtime() -> None:
    for place in (ARM, WINDOWS_ON_ARM):
        assert advice(DEVICES["qnn"], place) == "run: pip install onnxruntime-qnn"


def test_core_ml_is_in_the_macs_own_wheel() -> None:
    assert advice(DEVICES["coreml"], MAC) == "run: pip install onnxruntime"


def test_the_newest_pythons_have_no_openvino_wheel() -> None:
    newest = Platform("Linux", "x86_64", (3, 14), (2, 36))
    assert advice(DEVICES["openvino"], newest) == (
        "there is no package with it for Linux on x86_64 with Python 3.14; export the bundle with --target openvino"
    )


def test_on_a_jetson_the_advice_is_a_tensorrt_bundle() -> None:
    assert advice(DEVICES["cuda"], JETSON).endswith("; export the bundle with --target tensorrt")


def test_this_platform_is_known_in_the_tables_words() -> None:
    place = this_platform()
    assert place.system in ("Linux", "Windows", "Darwin")
    assert place.architecture in ("x86_64", "arm64")
    assert place.python >= (3, 10)
    assert (place.glibc is not None) == (place.system == "Linux")


@pytest.mark.parametrize("text", [*DEVICES, "cuda:0", "tensorrt:12", "dml:1", "openvino:gpu.1"])
def test_names_are_read_in_any_case(text: str) -> None:
    for spelled in (text, text.upper(), f" {text} "):
        assert parse(spelled, []).name == text


@pytest.mark.parametrize(
    "text", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:\u0663", "cpu:0", "coreml:0", "openvino:", ""]
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match=r"expected auto, cpu, cuda or cuda:N, .* This installation has cpu$"):
        parse(text, ["CPUExecutionProvider"])


def test_what_is_installed_follows_from_the_providers() -> None:
    assert installed(["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]) == [
        "cpu",
        "cuda",
        "tensorrt",
    ]


def test_the_page_for_devices_names_every_one_of_them() -> None:
    page = Path(__file__).parents[3].joinpath("vae_edge", "ON_THE_DEVICE.md").read_text(encoding="utf-8")
    for device in DEVICES.values():
        names = " or ".join(f"`{name}`" for name in device.spellings.split(" or "))
        assert f"| {names} |" in page
        for wheel in device.wheels:
            assert f"`{wheel.package}`" in page
