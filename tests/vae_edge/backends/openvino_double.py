"""An OpenVINO core that seems to have GPUs and an NPU: it records what they are asked for, and the CPU computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class CoreDouble:
    """Stands in front of a real core.

    Args:
        core: the real one.
        available: the devices that it seems to find.
    """

    def __init__(self, core: Any, available: tuple[str, ...] = ("CPU", "GPU.0", "GPU.1", "NPU")) -> None:
        self._core = core
        self.available_devices = list(available)
        self.compiled: list[tuple[str, dict[str, Any]]] = []
        """Device and properties of each model."""

    def set_property(self, properties: dict[str, Any]) -> None:
        self._core.set_property(properties)

    def read_model(self, path: Any) -> Any:
        return self._core.read_model(path)

    def compile_model(self, network: Any, device: str, settings: dict[str, Any]) -> Any:
        self.compiled.append((device, settings))
        return self._core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def query_model(self, network: Any, device: str) -> dict[str, str]:
        """Let the first member take all layers but the largest values' sorting, as NPUs do."""
        first, *others = device.partition(":")[2].split(",")
        return {f"layer {i}": first for i in range(9)} | {"layer 9": others[-1]}

    def get_property(self, device: str, name: str) -> Any:
        if device not in (*self.available_devices, "GPU", "HETERO", "AUTO", "MULTI"):
            raise RuntimeError(f"{device} is no single device")
        if name == "OPTIMIZATION_CAPABILITIES":
            return [] if device in ("AUTO", "MULTI") else ["EXPORT_IMPORT"]
        if name == "FULL_DEVICE_NAME":
            return f"the {device} of a double"
        raise RuntimeError(f"{device} has no {name}")

    def get_versions(self, device: str) -> dict[str, Any]:
        return {device.partition(":")[0]: SimpleNamespace(build_number="1")}
