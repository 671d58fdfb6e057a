"""Which layers a TensorRT engine computes in which type: read while it is built, so that no GPU is needed.

An engine inspector needs the engine loaded, and that needs a GPU. TensorRT-RTX logs the same description, a line for
each layer with the types of its operands, at the end of every build with detailed profiling verbosity.

    python -m vae_edge.export.quantization.engine_layers MODEL.onnx...

prints a table of the convolutions and the other layers by operand type.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vae_edge.backends.tensorrt.build import EngineSettings, build_engine
from vae_edge.backends.tensorrt.module import TensorRtModule, find_tensorrt
from vae_edge.errors import DeviceError, VaeEdgeError
from vae_edge.platform.atomic import scratch_folder

CONVOLUTIONS = ("convolution", "transposed convolution")
"""The kinds of layers with weights; the kind of every other layer is `other`."""

_KINDS = {"correlation": "convolution", "deconv": "transposed convolution"}
_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), (?P<rest>.*)$", re.M)
_LIST = re.compile(r"(Inputs|Constants|Outputs): \[(.*?)\](?=, (?:Constants|Outputs|TacticName): |$)")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine, after TensorRT's fusions."""

    name: str
    kind: str
    """`convolution`, `transposed convolution` or `other`."""
    inputs: tuple[str, ...]
    """Types of the tensors it reads, in TensorRT's words: `Float`, `Half`, `Int8`, `UInt8`."""
    constants: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def operands(self) -> str:
        """The type that the layer computes in: of its first input, or of its first constant or output without one."""
        return (*self.inputs, *self.constants, *self.outputs, "none")[0]


def parse_layers(description: str) -> list[EngineLayer]:
    """Read the layers from what TensorRT logs at the end of a build, one line for each."""
    layers = []
    for match in _LAYER.finditer(description):
        types = {kind: tuple(re.findall(r"Datatype: (\w+)", text)) for kind, text in _LIST.findall(match["rest"])}
        layers.append(
            EngineLayer(
                match["name"],
                _kind(match["type"], match["name"]),
                types.get("Inputs", ()),
                types.get("Constants", ()),
                types.get("Outputs", ()),
            )
        )
    return layers


def read_layers(onnx_path: Path) -> list[EngineLayer]:
    """Build an engine with TensorRT-RTX, throw it away and return its layers.

    Raises:
        MissingDependencyError: TensorRT-RTX is not installed.
        DeviceError: the model cannot be built, or this version logs no layers.
    """
    module = find_tensorrt("tensorrt_rtx")

    def find() -> TensorRtModule:
        return module

    detailed = EngineSettings(describe_layers=True)
    with scratch_folder("layers") as folder, _listening() as messages:
        build_engine(onnx_path, Path(folder, "model.engine"), detailed, find_module=find)
    layers = parse_layers("\n".join(message for message in messages if message.startswith("Layers:")))
    if not layers:
        raise DeviceError(f"{module} logged no layers of {onnx_path}; versions other than 1.7 may not")
    return layers


def count_layers(layers: Sequence[EngineLayer]) -> dict[str, dict[str, int]]:
    """Count an engine's layers: by kind, then by the type they compute in.

    Example:
        >>> count_layers(parse_layers("Name: a, LayerType: deconv, Inputs: [ { Name: x, Datatype: Half }]"))
        {'transposed convolution': {'Half': 1}}
    """
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        counts.setdefault(layer.kind, Counter())[layer.operands] += 1
    return {kind: dict(sorted(counter.items())) for kind, counter in sorted(counts.items())}


def _kind(layer_type: str, name: str) -> str:
    # A convolution fused with what follows is a "runtime_fusion" named after its parts: Corr is the convolution.
    if layer_type == "runtime_fusion" and "Corr" in name:
        return "convolution"
    return _KINDS.get(layer_type, "other")


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect what TensorRT logs, at every level; a process has only one TensorRT logger, which cannot be replaced."""
    logger = logging.getLogger("vae_edge.backends.tensorrt.module")
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector, level, propagate = Collector(logging.DEBUG), logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.DEBUG)
    # A thousand lines of TensorRT's own are not for the handlers of the application.
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagate


def _table(rows: dict[str, list[EngineLayer]]) -> str:
    kinds = (*CONVOLUTIONS, "other")
    lines = [f"| model | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, layers in rows.items():
        counts = count_layers(layers)
        cells = [", ".join(f"{n} {kind}" for kind, n in counts.get(each, {}).items()) or "-" for each in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the table for the ONNX files named; return the exit code."""
    if not arguments:
        sys.stderr.write("usage: python -m vae_edge.export.quantization.engine_layers MODEL.onnx...\n")
        return 2
    try:
        sys.stdout.write(_table({path: read_layers(Path(path)) for path in arguments}) + "\n")
    except VaeEdgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
