"""How OpenVINO's devices are named, and what each of them computes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vae_edge.errors import DeviceError

_KINDS = ("cpu", "gpu", "npu")
_VIRTUAL = ("hetero", "auto", "multi")
"""OpenVINO's devices made of others: they share out layers, take over from each other, and share out requests."""

EXPECTED = "auto, cpu, gpu, gpu.N, npu, hetero:LIST, auto:LIST or multi:LIST"
"""The names, for messages; LIST is names of devices with commas between them."""


@dataclass(frozen=True)
class Place:
    """A device of OpenVINO, or several that share a model."""

    name: str
    """As the user named it, in lower case, such as `npu`."""
    plugin: str
    """As OpenVINO names it, such as `HETERO:NPU,CPU`."""
    members: tuple[str, ...]
    """The devices that compute, the preferred one first, as OpenVINO names them."""

    @property
    def is_virtual(self) -> bool:
        """Whether the device is made of others."""
        return ":" in self.plugin

    @property
    def splits_layers(self) -> bool:
        """Whether each layer of the model has a device of its own."""
        return self.plugin.startswith("HETERO:")

    @property
    def uses_cpu(self) -> bool:
        """Whether the processor computes all of it or a part."""
        return "CPU" in self.members


def parse(text: str, available: Sequence[str], version: str) -> Place:
    """Read a device's name, in any case.

    Args:
        text: such as `gpu.1` or `hetero:npu,cpu`. `auto` alone is not OpenVINO's AUTO, but the choice of this package.
        available: what OpenVINO finds, such as `["CPU", "GPU.0", "GPU.1"]`.
        version: OpenVINO's, for the message.

    Raises:
        DeviceError: it is not a name of a device, or one that is not there; the message lists those that are.
    """
    name = text.strip().lower()
    kind, colon, rest = name.partition(":")
    names = [part.strip() for part in rest.split(",")] if colon and kind in _VIRTUAL else [name]
    found = ", ".join(available) or "nothing"
    for part in names:
        if part.partition(".")[0] not in _KINDS:
            raise DeviceError(
                f"OpenVINO does not know the device {text!r}; expected {EXPECTED}. OpenVINO finds {found} here"
            )
        if not any(each.lower() == part or each.lower().partition(".")[0] == part for each in available):
            raise DeviceError(
                f"OpenVINO {version} finds no {part} here (it finds {found}); install the device's driver, "
                "or open with device='cpu'"
            )
    members = tuple(dict.fromkeys(part.upper() for part in names))
    if name == "npu":
        # The NPU's compiler refuses some graphs as a whole (TopK over thousands of values: openvino issue 29297). What
        # it cannot run goes to the CPU.
        return Place(name, "HETERO:NPU,CPU", ("NPU", "CPU"))
    if kind in _VIRTUAL and colon:
        listed = ",".join(members)
        return Place(f"{kind}:{listed.lower()}", f"{kind.upper()}:{listed}", members)
    return Place(name, members[0], members)


def arithmetic(member: str, *, reduced: bool) -> dict[str, Any]:
    """Return the properties that decide what a device computes floating-point layers in.

    FP32 is set on CPUs and GPUs. By default a CPU with bfloat16 computes in that, and then a score moves by 0.004 and a
    map by 0.09 (a network on 64x64 pixels, AMD EPYC), and a GPU in FP16. The GPU's FP16 would take in the residual, the
    normalization and the pooled score around the networks too, where small differences of large numbers are the
    result; OpenVINO has no public way to exempt them. An NPU knows no other type than FP16.

    Args:
        member: the device, such as `GPU.1`.
        reduced: leave the choice to OpenVINO: bfloat16 on a CPU that has it, FP16 on a GPU.
    """
    if reduced or member.partition(".")[0] == "NPU":
        return {}
    return {"INFERENCE_PRECISION_HINT": "f32"}
