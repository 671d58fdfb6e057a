"""Visual anomaly detection on edge devices: one verdict on ONNX Runtime, OpenVINO, TensorRT and torch.

    from vae_edge import Detector

    with Detector.open("bundles/tile-openvino-fp32") as detector:
        prediction = detector.predict("part.png")

Importing this package loads neither torch nor a runtime; a runtime loads when a bundle for it is opened. It sets
`ORT_DISABLE_TELEMETRY=1` in the environment, unless that is 0: see `vae_edge.platform.telemetry`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vae_edge.platform.telemetry import disable_onnxruntime_telemetry

if TYPE_CHECKING:
    from vae_edge.bundle import Bundle as Bundle
    from vae_edge.detector import Detector as Detector
    from vae_edge.errors import BundleError as BundleError
    from vae_edge.errors import DeviceError as DeviceError
    from vae_edge.errors import InputError as InputError
    from vae_edge.errors import MissingDependencyError as MissingDependencyError
    from vae_edge.errors import ParityError as ParityError
    from vae_edge.errors import VaeEdgeError as VaeEdgeError
    from vae_edge.image import Preparation as Preparation
    from vae_edge.image import read_image as read_image
    from vae_edge.prediction import Prediction as Prediction
    from vae_edge.train.model.network import Vae as Vae

# Before anything imports ONNX Runtime, which reads it once; see the module.
disable_onnxruntime_telemetry()

__version__ = "0.3.0"

_HOME = {
    "Detector": "vae_edge.detector",
    "Prediction": "vae_edge.prediction",
    "Bundle": "vae_edge.bundle",
    "Preparation": "vae_edge.image",
    "Vae": "vae_edge.train.model.network",
    "read_image": "vae_edge.image",
    "VaeEdgeError": "vae_edge.errors",
    "InputError": "vae_edge.errors",
    "BundleError": "vae_edge.errors",
    "MissingDependencyError": "vae_edge.errors",
    "DeviceError": "vae_edge.errors",
    "ParityError": "vae_edge.errors",
}
"""The public names, as a reader looks for them: what is used first comes first."""

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for, so that importing the package stays quick."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'vae_edge' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
