"""What ONNX Runtime can run on: the devices, their execution providers, and the packages that contain those.

`DEVICES` is the one table. The options keep a provider's arithmetic in FP32 where it would take less by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from vae_edge.errors import DeviceError
from vae_edge.platform.wheels import Platform, Wheel, on

# Asked of the index through pip in November 2026 for every platform and Python 3.10 to 3.14: gpu 1.31.1 (1.23.2 for
# 3.10), directml 1.24.4 (1.23.0), openvino 1.24.1 (1.23.0), qnn 2.7.0. The Windows wheel of qnn for
# x86-64 compiles for other machines only. CoreML is linked into the macOS wheel of onnxruntime itself.
_GPU = Wheel("onnxruntime-gpu", on("Linux/x86_64", "Windows/x86_64"))
_DIRECTML = Wheel("onnxruntime-directml", on("Windows/x86_64"))
_OPENVINO = Wheel("onnxruntime-openvino", on("Linux/x86_64", "Windows/x86_64"), until=(3, 13))
_QNN = Wheel("onnxruntime-qnn", on("Windows/arm64", "Linux/arm64"), since=(3, 11), glibc=(2, 34), stands_alone=False)
_MACOS = Wheel("onnxruntime", on("Darwin/arm64"), stands_alone=False)


@dataclass(frozen=True)
class OnnxDevice:
    """One row of the table: a device of ONNX Runtime."""

    name: str
    provider: str
    """The execution provider's name in ONNX Runtime."""
    hardware: str
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the provider."""
    reduced_options: Mapping[str, str] = field(default_factory=dict)
    """Options that let it compute in less than FP32; empty: there are none."""
    reduced_to: str | None = None
    """What that is."""
    index_option: str | None = None
    """The option that takes the N of `NAME:N`; None: there is one such device."""
    takes_place: bool = False
    """Whether `NAME:PLACE` names a device of the provider's own, as in `openvino:gpu`."""
    wheels: tuple[Wheel, ...] = ()
    """Packages with the provider; empty: no package has it."""
    plugin: str | None = None
    """The module of the package that has the provider as a plug-in."""
    plugin_hardware: str = "NPU"
    """The kind of hardware that such a provider is used on, as ONNX Runtime calls it."""
    target: str | None = None
    """The target of `vae-export` that reaches the same hardware without ONNX Runtime."""
    one_image: bool = False
    """Whether the model is opened for one image at a time, because the hardware needs shapes that are fixed."""
    one_caller: bool = False
    """Whether two threads must not run one session at the same time."""
    more: tuple[str, ...] = ()
    """Devices whose providers take the nodes that this one leaves, before the CPU does."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set before the provider is loaded, unless the user has set them."""

    @property
    def spellings(self) -> str:
        """How the device is written: `cuda or cuda:N`."""
        if self.index_option is not None:
            return f"{self.name} or {self.name}:N"
        return f"{self.name} or {self.name}:DEVICE" if self.takes_place else self.name


DEVICES: dict[str, OnnxDevice] = {
    device.name: device
    for device in (
        OnnxDevice("cpu", "CPUExecutionProvider", "any CPU"),
        OnnxDevice(
            "cuda",
            "CUDAExecutionProvider",
            "NVIDIA GPUs",
            # TF32 has 10 bits of mantissa and is on by default: it would move the scores away from the trained model's.
            options={"use_tf32": "0"},
            reduced_options={"use_tf32": "1"},
            reduced_to="TF32",
            index_option="device_id",
            wheels=(_GPU,),
            target="tensorrt",
        ),
        OnnxDevice(
            "tensorrt",
            "TensorrtExecutionProvider",
            "NVIDIA GPUs, with TensorRT",
            index_option="device_id",
            wheels=(_GPU,),
            target="tensorrt",
            more=("cuda",),
            # The provider has no option for TF32, which TensorRT takes by default; the variable is read once in a
            # process (microsoft/onnxruntime issue 26029).
            environment={"NVIDIA_TF32_OVERRIDE": "0"},
        ),
        OnnxDevice(
            "openvino",
            "OpenVINOExecutionProvider",
            "Intel CPUs, GPUs and NPUs",
            takes_place=True,
            wheels=(_OPENVINO,),
            target="openvino",
        ),
        OnnxDevice(
            "dml",
            "DmlExecutionProvider",
            "GPUs of any make on Windows, with DirectML",
            index_option="device_id",
            wheels=(_DIRECTML,),
            one_image=True,
            one_caller=True,  # Documented; it also needs sequential execution without memory patterns.
        ),
        OnnxDevice(
            "coreml",
            "CoreMLExecutionProvider",
            "Macs, with Core ML",
            # An ML program computes in the types of its tensors; the older kind, a neural network, in FP16 on a GPU.
            options={"ModelFormat": "MLProgram", "AllowLowPrecisionAccumulationOnGPU": "0"},
            reduced_options={"AllowLowPrecisionAccumulationOnGPU": "1"},
            reduced_to="FP32 with sums in FP16",
            wheels=(_MACOS,),
            one_image=True,
        ),
        OnnxDevice(
            "qnn",
            "QNNExecutionProvider",
            "Qualcomm NPUs, which compute FP32 models in FP16",
            options={"backend_type": "htp"},
            wheels=(_QNN,),
            plugin="onnxruntime_qnn",
            one_image=True,
        ),
        OnnxDevice("xnnpack", "XnnpackExecutionProvider", "Arm and x86 CPUs, in a build of your own with XNNPACK"),
    )
}
"""The devices, by name."""


@dataclass(frozen=True)
class Asked:
    """A device as the user named it."""

    device: OnnxDevice
    index: str | None = None
    """The N of `cuda:N`."""
    place: str | None = None
    """The DEVICE of `openvino:DEVICE`, in capitals as OpenVINO writes it."""

    @property
    def name(self) -> str:
        """The name in lower case."""
        suffix = self.index if self.index is not None else self.place
        return self.device.name if suffix is None else f"{self.device.name}:{suffix.lower()}"

    @property
    def one_image(self) -> bool:
        """Whether the model is opened for one image at a time."""
        return self.device.one_image or "NPU" in (self.place or "")

    @property
    def reduced_to(self) -> str | None:
        """What it computes in where less than FP32 is allowed; None: in FP32 still, or not in FP32 anyway."""
        if self.device.name == "openvino" and (self.place or "").startswith("GPU"):
            return "FP16"
        return self.device.reduced_to

    @property
    def runs_on_cpu(self) -> bool:
        """Whether it is the processor that computes."""
        return self.device.name in ("cpu", "xnnpack") or (
            self.device.name == "openvino" and self.place in (None, "CPU")
        )


def parse(text: str, available: Sequence[str]) -> Asked:
    """Read the name of a device, such as `cuda:1`, in any case.

    Args:
        text: the name.
        available: the providers of this ONNX Runtime, for the message.

    Raises:
        DeviceError: there is no such device; the message lists all and which of them are installed.
    """
    kind, colon, suffix = text.strip().lower().partition(":")
    device = DEVICES.get(kind)
    if device is not None and not colon:
        return Asked(device)
    if device is not None and device.index_option is not None and suffix.isdecimal() and suffix.isascii():
        return Asked(device, index=suffix)
    if device is not None and device.takes_place and suffix:
        return Asked(device, place=suffix.upper())
    names = ", ".join(each.spellings for each in DEVICES.values())
    raise DeviceError(
        f"ONNX Runtime does not know the device {text!r}; expected auto, {names}. "
        f"This installation has {', '.join(installed(available))}"
    )


def has_provider(device: OnnxDevice, available: Sequence[str]) -> bool:
    """Return whether a device's provider is built in, or installed as a plug-in."""
    return device.provider in available or (device.plugin is not None and find_spec(device.plugin) is not None)


def installed(available: Sequence[str]) -> list[str]:
    """Return the names of the devices whose providers are here; whether the hardware is, only opening shows.

    Args:
        available: the providers of this ONNX Runtime.
    """
    return [device.name for device in DEVICES.values() if has_provider(device, available)]


def advice(device: OnnxDevice, place: Platform) -> str:
    """Return what to do where a device's provider is missing; names a package only if pip can install it there."""
    if wheel := next((wheel for wheel in device.wheels if wheel.fits(place)), None):
        return wheel.how_to_install
    nothing = f"there is no package with it for {place}" if device.wheels else "no package of ONNX Runtime has it"
    if device.target is not None:
        return f"{nothing}; export the bundle with --target {device.target}"
    return f"{nothing}; only a build of your own has it"
