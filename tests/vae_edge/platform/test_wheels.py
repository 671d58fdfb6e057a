from __future__ import annotations

from dataclasses import replace

import pytest

from vae_edge.backends.base import missing_runtime
from vae_edge.platform import wheels
from vae_edge.platform.machine import Jetson, look_at_machine
from vae_edge.platform.wheels import Platform, install_command, this_platform
from vae_edge.targets import SUPPORTED, Target

PC = Platform("Linux", "x86_64", (3, 12), (2, 36))
ALPINE = Platform("Linux", "x86_64", (3, 12))
ARM = Platform("Linux", "arm64", (3, 12), (2, 35))
WINDOWS_ON_ARM = Platform("Windows", "arm64", (3, 12))
MAC = Platform("Darwin", "arm64", (3, 12))
INTEL_MAC = Platform("Darwin", "x86_64", (3, 12))

NO_JETSON = replace(look_at_machine(), jetson=None)

# What pip found on the index for each platform, asked in December 2026.
RUNTIMES = {
    PC: {"onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx"},
    ARM: {"onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx"},
    ALPINE: set(),
    WINDOWS_ON_ARM: {"onnxruntime"},
    MAC: {"onnxruntime", "openvino", "torch"},
    INTEL_MAC: {"onnxruntime", "openvino"},
}


@pytest.mark.parametrize("place", RUNTIMES, ids=str)
def test_a_runtime_is_advised_only_where_pip_can_install_it(place: Platform) -> None:
    extras = {record.extra for record in SUPPORTED.values()} | {"tensorrt-rtx"}
    found = {extra for extra in extras if install_command(extra, place, NO_JETSON) is not None}
    assert found == RUNTIMES[place]


def test_on_a_jetson_pip_is_not_advised_for_tensorrt() -> None:
    jetson = replace(look_at_machine(), jetson=Jetson("36.4.0"))
    assert install_command("onnxruntime", ARM, jetson) == 'pip install "vae-edge[onnxruntime]"'
    assert install_command("tensorrt", ARM, jetson) is None
    assert install_command("tensorrt-rtx", ARM, jetson) is None


def test_a_runtime_that_pip_has_not_for_this_machine_leads_to_another_target(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(missing_runtime(Target.OPENVINO, "openvino")).endswith('; run: pip install "vae-edge[openvino]"')
    for module in ("vae_edge.platform.wheels", "vae_edge.backends.base"):
        monkeypatch.setattr(f"{module}.this_platform", lambda: WINDOWS_ON_ARM)
    assert str(missing_runtime(Target.OPENVINO, "openvino")).endswith(
        "; pip finds no wheel of it for Windows on arm64 with Python 3.12: use a bundle for another target"
    )


def test_what_is_no_runtime_is_advised_everywhere() -> None:
    assert install_command("bench", WINDOWS_ON_ARM) == 'pip install "vae-edge[bench]"'


def test_this_machine_is_one_of_those() -> None:
    assert set(wheels._RUNTIMES) >= {record.extra for record in SUPPORTED.values()}
    assert this_platform().system in ("Linux", "Windows", "Darwin")
