"""What the export knows of a runtime: how its model files are written, quantized and, if it cannot run here, simulated.

Each target has a module here, `NAME_target.py`, whose class `Exporter` is a `TargetExporter`. No other code in the
export depends on the target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from vae_edge.agreement import Outputs
from vae_edge.backends.tensorrt.build import EngineSettings
from vae_edge.export.quantization.accuracy_control import LayerQuantizer
from vae_edge.export.settings import Estimator
from vae_edge.manifest import RuntimeRecord
from vae_edge.platform.work import Progress, StepProgress
from vae_edge.targets import SUPPORTED, Precision, Target

if TYPE_CHECKING:
    import torch

ONNX_FILE = SUPPORTED[Target.ONNX].model_file


@dataclass(frozen=True)
class Source:
    """What every bundle of one run is written from."""

    program: torch.export.ExportedProgram
    """The graph as torch traced it, with a dynamic batch."""
    onnx_path: Path
    """The same graph as an ONNX file, in FP32."""
    metadata: Mapping[str, str]
    """The metadata of a single model file; a bundle's own thresholds are in its manifest, fitted afterwards."""
    engine: EngineSettings
    report: StepProgress
    """Receives the progress of long steps."""


@dataclass(frozen=True)
class Written:
    """A model file that was written."""

    runtime: RuntimeRecord
    """What made the file."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user."""


class Quantizer(LayerQuantizer, Protocol):
    """A network in INT8 that can be run and written with some of its layers in float."""

    def model(self, keep_float: frozenset[str] = frozenset()) -> Any:
        """Return the model with these layers in float, as `TargetExporter.write` of the same target takes it."""

    def saturation(self, images: NDArray[np.uint8], keep_float: frozenset[str] = frozenset()) -> Mapping[str, float]:
        """Count the values that the quantized layers read outside their ranges.

        A value counts if it is more than half a step beyond an end of its range, so that rounding would not bring it to
        that end.

        Args:
            images: uint8 [n, H, W, 3], prepared, n of 1 or more.
            keep_float: layers that are in float, and are not counted.

        Returns:
            The share of such values, 0 to 1, by the layers' names, in the order of the graph.
        """


class TargetExporter(ABC):
    """Writes the model files of one target.

    A runtime's library is imported inside methods only, and its absence is a `MissingDependencyError`.
    """

    target: ClassVar[Target]
    opens_with_own_reader: ClassVar[bool] = False
    """Whether this package itself reads the model file: a file that it refuses here cannot be opened on any device."""
    simulated_by: ClassVar[str | None] = None
    """What `simulate` runs, for the record; None: a bundle that cannot run here is not simulated."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    def max_batch(self) -> int | None:
        """The largest batch that the model takes; None: any."""
        return None

    @abstractmethod
    def write(self, folder: Path, precision: Precision, quantized: Any = None) -> Written:
        """Write the files that the table of targets lists.

        Args:
            folder: an empty folder.
            precision: one that the table has for the target.
            quantized: in INT8 the model of a `Quantizer`; else None.

        Raises:
            InputError: the files cannot be written.
            MissingDependencyError: a package that this needs is not installed.
            DeviceError: the runtime cannot convert the graph.
        """

    def quantize(self, images: NDArray[np.uint8], estimator: Estimator, progress: Progress | None = None) -> Quantizer:
        """Quantize the network to INT8.

        Args:
            images: uint8 [n, H, W, 3], the calibration images.
            estimator: how a range follows from the values seen.
            progress: receives images done and their total.

        Raises:
            MissingDependencyError: a package that this needs is not installed.
        """
        raise NotImplementedError(f"the table of targets has no int8 for {self.target}")

    def simulate(self, folder: Path, images: NDArray[np.uint8], progress: Progress | None = None) -> Outputs:
        """Run written files in FP16 or INT8 that this machine's runtime cannot open, by another runtime's arithmetic.

        Args:
            folder: with what `write` left.
            images: uint8 [n, H, W, 3], prepared.
            progress: receives images done and in all.
        """
        raise NotImplementedError(f"nothing simulates {self.target}")


def open_exporter(target: Target, source: Source) -> TargetExporter:
    """Load a target's module and make its exporter."""
    exporter: type[TargetExporter] = import_module(f"vae_edge.export.targets.{target}_target").Exporter
    return exporter(source)
