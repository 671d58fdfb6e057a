"""The options of `vae-export` in groups, and the kinds of sources that they apply to.

A new option is a field of a group; `SOURCE_KINDS` say which sources it applies to. Loads neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.cli.options import Condition, OptionGroup, SourceKind
from vae_edge.export.settings import Budget, Estimator, ExportLayout
from vae_edge.targets import SUPPORTED, Precision, Target
from vae_edge.train.model.input_settings import KnownRange


@dataclass(frozen=True)
class CommonOptions(OptionGroup):
    """What most exports need."""

    target: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"One or several of {', '.join(SUPPORTED)}, comma-separated, or all that are installed.",
        ),
    ] = "all"
    precision: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"One or several of {', '.join(Precision)}, comma-separated, or all. A bundle keeps its own.",
        ),
    ] = "fp32"
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that gets the bundles.")] = Path("bundles")
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="First part of the bundles' names; default: the run's name.")
    ] = None
    references: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|none",
            help="Pictures that travel with each bundle, for a device to prove itself by; none: drawn ones that show "
            "no part. Default: good parts that the run holds out, and defects pasted on them.",
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the run's images are now, if they have moved since training. For a checkpoint: the normal "
            "images that set its thresholds, in the layout of MVTec AD or of a folder. For a bundle with model-api: "
            "pictures to compare verdicts on.",
        ),
    ] = None


@dataclass(frozen=True)
class ScoreOptions(OptionGroup, panel="Thresholds and scores, for a run or a checkpoint"):
    """How a score is computed and becomes a verdict."""

    false_alarm_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Share of normal images that may be called anomalous; default: the run's."),
    ] = None
    scoring: Annotated[
        str | None,
        typer.Option(
            metavar="mse|normalized|default|MAPS",
            help="How a residual becomes a score, as in vae-train --help; default: the run's.",
        ),
    ] = None
    input_range: Annotated[
        KnownRange | None,
        typer.Option(help="Range of the network's input values, if the checkpoint does not record it."),
    ] = None


@dataclass(frozen=True)
class LowPrecisionOptions(OptionGroup, panel="FP16 and INT8, for a run or a checkpoint"):
    """How low-precision models are made, and how much accuracy they may lose."""

    calibration_data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="INT8: normal images to calibrate on; default: the training images."),
    ] = None
    calibration_images: Annotated[int, typer.Option(metavar="N", help="INT8: how many of them, 32 or more.")] = 300
    estimator: Annotated[Estimator, typer.Option(help="INT8: how a range follows from the values seen.")] = (
        Estimator.MIN_MAX
    )
    max_auroc_drop: Annotated[
        float | None, typer.Option(metavar="DROP", help="FP16, INT8: largest allowed drop of the image AUROC.")
    ] = Budget.max_auroc_drop
    max_flip_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="FP16, INT8: largest allowed share of changed verdicts.")
    ] = Budget.max_flip_rate


@dataclass(frozen=True)
class EngineOptions(OptionGroup, panel="TensorRT, for a run, a checkpoint or a bundle"):
    """How an engine is built."""

    max_batch: Annotated[int, typer.Option(metavar="N", help="The largest batch the engine takes.")] = 8
    workspace_mib: Annotated[int, typer.Option(metavar="MIB", help="Largest scratch memory of a layer, in MiB.")] = 512
    optimization_level: Annotated[
        int | None,
        typer.Option(metavar="LEVEL", help="0 (quick to build) to 5 (thorough); default: TensorRT's own."),
    ] = None
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the timings of earlier builds, read and written; default: the cache's."
        ),
    ] = None
    weak_typing: Annotated[
        bool,
        typer.Option(
            "--weak-typing",
            help="TensorRT 10: let it choose each layer's type, where it cannot build FP16 or INT8 as they are.",
        ),
    ] = False


@dataclass(frozen=True)
class LayoutOptions(OptionGroup, panel="For other libraries and servers"):
    """The form of the export."""

    layout: Annotated[
        ExportLayout,
        typer.Option(
            help="plain: bundles; model-api: also a folder that OpenVINO Model API opens, target openvino only; "
            "triton: a model in the Triton model repository --out, from a bundle."
        ),
    ] = ExportLayout.PLAIN


_INT8 = frozenset({"calibration_data", "calibration_images", "estimator"})
_BUDGET = LowPrecisionOptions.names() - _INT8
_ONLY_CHECKPOINT = frozenset({"input_range"})
_EVERY = frozenset({"target", "out", "name"}) | LayoutOptions.names()
_TRAINED = frozenset[str]().union(
    *(group.names() for group in (CommonOptions, ScoreOptions, LowPrecisionOptions, EngineOptions, LayoutOptions))
)

RUN = SourceKind("a run folder", "run folders", _TRAINED - _ONLY_CHECKPOINT)
CHECKPOINT = SourceKind("a checkpoint", "checkpoints", _TRAINED)
BUNDLE_TO_ENGINE = SourceKind(
    "a bundle that becomes an engine", "bundles that become an engine", _EVERY | EngineOptions.names()
)
BUNDLE_TO_MODEL_API = SourceKind(
    "a bundle that becomes a Model API folder", "bundles that become a Model API folder", _EVERY | {"data"}
)
BUNDLE_TO_TRITON = SourceKind(
    "a bundle that becomes a model of Triton",
    "bundles that become a model of Triton",
    (_EVERY - {"target"}) | {"max_batch"},
)
SOURCE_KINDS = (RUN, CHECKPOINT, BUNDLE_TO_ENGINE, BUNDLE_TO_MODEL_API, BUNDLE_TO_TRITON)


def needs_of_options(made: Iterable[tuple[Target, Precision]]) -> Iterator[Condition]:
    """Yield which targets and precisions an option needs: not every export of a run can use every option."""
    pairs = list(made)
    makes_engine = any(target is Target.TENSORRT for target, _ in pairs)
    precisions = {precision for _, precision in pairs}
    for options, wanted, is_made in (
        (EngineOptions.names(), "--target tensorrt", makes_engine),
        (_INT8, "--precision int8", Precision.INT8 in precisions),
        (_BUDGET, "--precision fp16 or int8", precisions != {Precision.FP32}),
    ):
        yield Condition(options, is_made, f"for {wanted}, which was not requested")
