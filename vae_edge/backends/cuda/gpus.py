"""Which NVIDIA GPUs there are, asked of the driver's own library.

The answer comes first in everything that needs a GPU: a machine without one gets a sentence about the GPU, not advice
to install packages that could not help it.
"""

from __future__ import annotations

from dataclasses import dataclass

from vae_edge.backends.cuda.driver import DeviceAttribute, Driver
from vae_edge.errors import DeviceError


@dataclass(frozen=True)
class Gpu:
    """One GPU that the driver shows to this process."""

    index: int
    name: str
    compute_capability: str
    """Such as `8.7`."""
    n_multiprocessors: int | None = None
    """Its streaming multiprocessors (SMs); None: unknown."""

    @property
    def kind(self) -> str:
        """What all GPUs of this kind share, such as `Orin (8.7, 16 SMs)`: what is built on one runs on the others.

        Every Jetson Orin, from the Nano to the AGX, names itself `Orin`; the number of SMs tells them apart.
        """
        sms = "" if self.n_multiprocessors is None else f", {self.n_multiprocessors} SMs"
        return f"{self.name} ({self.compute_capability}{sms})"

    def __str__(self) -> str:
        sms = "" if self.n_multiprocessors is None else f", {self.n_multiprocessors} SMs"
        return f"cuda:{self.index} ({self.name}, compute capability {self.compute_capability}{sms})"


def find_gpus() -> list[Gpu]:
    """List the GPUs in the driver's order, at least one.

    Raises:
        DeviceError: there is no driver or no GPU; the message gives the driver's reason, and so does its cause.
    """
    try:
        driver = Driver()
        gpus = [_describe(driver, index) for index in range(driver.device_count())]
    except DeviceError as error:
        raise no_gpu(str(error)) from error
    if not gpus:
        raise no_gpu("the driver reports no device")
    return gpus


def no_gpu(reason: str) -> DeviceError:
    """Return the one error for a machine without a usable GPU."""
    return DeviceError(
        f"TensorRT needs an NVIDIA GPU and its driver; none was found ({reason}): "
        "run this on the device itself, or use an onnx or openvino bundle here"
    )


def _describe(driver: Driver, index: int) -> Gpu:
    device = driver.device(index)
    major = driver.attribute(DeviceAttribute.COMPUTE_CAPABILITY_MAJOR, device)
    minor = driver.attribute(DeviceAttribute.COMPUTE_CAPABILITY_MINOR, device)
    n_multiprocessors = driver.attribute(DeviceAttribute.MULTIPROCESSOR_COUNT, device)
    return Gpu(index, driver.device_name(device), f"{major}.{minor}", n_multiprocessors)
