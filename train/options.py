"""The options of `vae-train` in groups, and the kinds of sources that they apply to.

A new option is a field of a group. It applies to every new training, unless `FOLDER`, `SAMPLE` or `BY_NAME` leaves it
out, or `needs_of_options` says what it needs. Does not load torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vae_edge.cli.options import Condition, OptionGroup, SourceKind
from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE
from vae_edge.manifest import ThresholdMethod
from vae_edge.train.choice.image_size import is_never_cut
from vae_edge.train.loop.settings import Calibration
from vae_edge.train.model.input_settings import DEFAULT_OVERLAP, parse_photometric
from vae_edge.train.model.presets import DEFAULT_PRESET, PRESETS, Augmentation, Network, Schedule, preset_named
from vae_edge.train.model.scoring import AUTO, parse_scoring

if TYPE_CHECKING:
    from vae_edge.train.loop.settings import SizeRequest
    from vae_edge.train.run.folder import RunFolder


@dataclass(frozen=True)
class CommonOptions(OptionGroup):
    """What most trainings need."""

    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder of good parts; or sorted: OK and NG, MVTec AD and others. Or a drawn set: sample, "
            "sample:PRODUCT.",
        ),
    ] = None
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run folder to make.")] = None
    normal: Annotated[Path | None, typer.Option(metavar="DIR", help="Instead of --data: good parts.")] = None
    abnormal: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --normal: defective parts."),
    ] = None
    false_alarm_rate: Annotated[float, typer.Option(metavar="RATE", help="Share of good parts called anomalous.")] = (
        DEFAULT_FALSE_ALARM_RATE
    )
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="; ".join(f"{name}: {preset.purpose}" for name, preset in PRESETS.items()) + "."
        ),
    ] = DEFAULT_PRESET
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Pictures are resized to this: a side such as 256, height x width such as 256x320, or auto: by the "
            "data's resolution and aspect.",
            show_default="auto; reference: 256",
        ),
    ] = None
    max_time: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Stop each training with the first epoch after this many minutes."),
    ] = None
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue an interrupted run (exit code 130), with its own settings; --data says where its pictures "
            "are, if they were moved.",
        ),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run once this one is complete.")
    ] = False


@dataclass(frozen=True)
class DataOptions(OptionGroup, panel="Data"):
    """More about the pictures."""

    normal_test: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="With --normal: good parts to test on, in addition to the defective ones of --abnormal."
        ),
    ] = None
    more_normals: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of vae-run --keep-dir: those labelled as normal train the network, too, and set no threshold.",
        ),
    ] = None
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --abnormal: folder of masks, arranged like it.")
    ] = None
    group_by: Annotated[
        str,
        typer.Option(
            metavar="auto|none|REGEX",
            help="Keep pictures of the same part together: auto finds them by content; an expression such as "
            "'part(\\d+)_' names the part by its first group in the file name; none keeps nothing together.",
        ),
    ] = "auto"
    ignore: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK.png",
            help="Ignore what this mask of the pictures' size or aspect marks (not 0), in training, thresholds and on "
            "the device.",
        ),
    ] = None
    ignore_polygon: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'X,Y X,Y X,Y...'",
            help="Ignore a polygon, too; corners as shares of width and height, 0 to 1. May be given several times.",
        ),
    ] = None
    white_level: Annotated[
        int, typer.Option(metavar="VALUE", help="16-bit value that means white; 4095 for a 12-bit camera.")
    ] = 65535
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data with any problem.")] = False


@dataclass(frozen=True)
class ThresholdOptions(OptionGroup, panel="Threshold"):
    """What sets the threshold."""

    calibration: Annotated[
        Calibration,
        typer.Option(
            help="split: good parts held out from the one training. cross: all good parts, each scored by a network "
            "trained without it; for few good parts, at the cost of --folds more trainings. auto: split if enough can "
            "be held out for the false-alarm rate, or if --held-out is given; else cross."
        ),
    ] = Calibration.AUTO
    held_out: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="With split: share of the good parts held out.", show_default="20-30 %"),
    ] = None
    folds: Annotated[
        int, typer.Option(metavar="N", help="With cross: number of groups that the good parts are divided into.")
    ] = 5


@dataclass(frozen=True)
class ScoringOptions(OptionGroup, panel="Light and scoring"):
    """How a picture gets its score."""

    photometric: Annotated[
        str,
        typer.Option(
            metavar="auto|none|image|local",
            help="How light and contrast are evened out, in the model itself; auto: chosen like the scoring.",
        ),
    ] = AUTO
    scoring: Annotated[
        str,
        typer.Option(
            metavar="auto|mse|normalized|default|MAPS",
            help="How a residual becomes a score; auto: chosen by synthetic defects on held-out good parts. A "
            "composition of your own: l2/0.016/image+pixel/top0.5%,gradient/0.008/local+pixel/max "
            "(residual/smoothing/normalization/pooling).",
        ),
    ] = AUTO
    choose_on_labels: Annotated[
        bool,
        typer.Option(
            "--choose-on-labels",
            help="Choose light and scoring by half of the labelled test images; testing then uses only the other half.",
        ),
    ] = False


@dataclass(frozen=True)
class NetworkOptions(OptionGroup, panel="Network"):
    """Sizes of the network on pixels, instead of the preset's, and the backbone of the one on features."""

    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights of EfficientNet-Lite0 for a network on features: safetensors or a state dict, also in timm's "
            "naming.",
            show_default="of vae-edge[features]",
        ),
    ] = None
    tile_size: Annotated[
        str | None,
        typer.Option(
            metavar="auto|none|SIDE",
            help="Side of the square tiles that an image is cut into, in the model itself; none: it is not cut.",
            show_default="auto; reference: none",
        ),
    ] = None
    tile_overlap: Annotated[
        float, typer.Option(metavar="SHARE", help="Smallest share of a tile that overlaps its neighbour.")
    ] = DEFAULT_OVERLAP
    n_features: Annotated[
        int | None,
        typer.Option(metavar="N", help="Channels after the first convolution.", show_default="the preset's"),
    ] = None
    max_features: Annotated[
        int | None,
        typer.Option(metavar="N", help="Channels at which the doubling stops.", show_default="the preset's"),
    ] = None
    latent_vec_size: Annotated[
        int | None, typer.Option(metavar="N", help="Number of latents.", show_default="the preset's")
    ] = None
    kl_weight: Annotated[
        float | None,
        typer.Option(metavar="WEIGHT", help="Weight of the Kullback-Leibler term.", show_default="0.00025"),
    ] = None


@dataclass(frozen=True)
class TrainingOptions(OptionGroup, panel="Training"):
    """Length and steps of the training."""

    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Times that each image is seen.", show_default="for about 2000 steps"),
    ] = None
    batch_size: Annotated[int, typer.Option(metavar="N", help="Largest number of images in a step.")] = 32
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Adam's learning rate.", show_default="0.001; reference: 0.0002"),
    ] = None
    schedule: Annotated[
        Schedule | None,
        typer.Option(help="How the learning rate changes.", show_default="one-cycle; reference: constant"),
    ] = None
    kl_warmup: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the training over which the KL term grows from nothing.")
    ] = 0.0
    averaging: Annotated[
        float, typer.Option(metavar="DECAY", help="Keep a running average of the weights, such as 0.999; 0: do not.")
    ] = 0.0
    augment: Annotated[
        list[Augmentation] | None,
        typer.Option(help="Change images at random in training; may be given twice.", show_default="none"),
    ] = None
    patience: Annotated[
        int,
        typer.Option(metavar="EPOCHS", help="Stop after this many epochs without a better held-out loss; 0: do not."),
    ] = 0
    seed: Annotated[
        int, typer.Option(metavar="N", help="The same seed gives the same weights on the same machine.")
    ] = 0


@dataclass(frozen=True)
class LightningOptions(OptionGroup, panel="Device (Lightning)"):
    """Where the training runs, and on how many devices and processes."""

    accelerator: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, gpu, mps.")] = "auto"
    devices: Annotated[
        str,
        typer.Option(
            metavar="N|LIST",
            help="Devices of this machine that train together, a process each: a number, or a list as in 0,1. auto: "
            "one, or one for each process that torchrun or SLURM started.",
        ),
    ] = "auto"
    num_nodes: Annotated[
        int, typer.Option(metavar="N", help="Machines on which torchrun or SLURM started this; need not be given.")
    ] = 1
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Networks that train at the same time, with the same result: those of folds (--calibration cross), a "
            "process each, or those on features.",
            show_default="1; on features: all cores",
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Such as 32-true or bf16-mixed; auto: bf16-mixed if the device has it.",
            show_default="auto; reference: 32-true",
        ),
    ] = None


_NOT_CUT = "for pictures that are cut into tiles, but these are not"

GROUPS: tuple[type[OptionGroup], ...] = (
    CommonOptions,
    DataOptions,
    ThresholdOptions,
    ScoringOptions,
    NetworkOptions,
    TrainingOptions,
    LightningOptions,
)

_EVERY = frozenset[str]().union(*(group.names() for group in GROUPS))

NEW = SourceKind("a new training", "new trainings", _EVERY - {"resume"})
RESUMED = SourceKind(
    "an interrupted run, which continues with its own settings",
    "interrupted runs",
    frozenset({"resume", "data", "jobs"}),
)

ON_PIXELS = frozenset[str]().union(
    {"max_time", "scoring", "choose_on_labels"},
    NetworkOptions.names() - {"backbone_weights"},
    TrainingOptions.names() - {"seed"},
    LightningOptions.names() - {"precision", "jobs"},
)
"""Options that only networks on pixels have. With `--preset auto`, using one chooses such a network."""

_ONLY_BY_NAME = frozenset({"normal", "normal_test", "abnormal", "masks"})
FOLDER = SourceKind("a folder (--data)", "folders (--data)", NEW.options - _ONLY_BY_NAME)
SAMPLE = SourceKind(
    "the drawn set, which has 8 bits", "the drawn set (--data sample)", FOLDER.options - {"white_level"}
)
BY_NAME = SourceKind("a folder of good parts (--normal)", "folders by name (--normal)", NEW.options - {"data"})
SOURCE_KINDS = (FOLDER, SAMPLE, BY_NAME)


def kind_of(common: CommonOptions) -> SourceKind:
    """Return what a new training takes its pictures from; one of `--data` and `--normal` was given."""
    if common.data is None:
        return BY_NAME
    return SAMPLE if common.data.partition(":")[0] == "sample" else FOLDER


def needs_of_options(
    common: CommonOptions,
    data: DataOptions,
    threshold: ThresholdOptions,
    scoring: ScoringOptions,
    network: NetworkOptions,
    size: SizeRequest,
) -> Iterator[Condition]:
    """Yield which options need others to have an effect."""
    calibration, by_name = threshold.calibration, common.normal is not None
    splits = "--calibration split" if calibration is Calibration.SPLIT else "--held-out"
    has_labels = not by_name or (common.abnormal is not None and data.normal_test is not None)
    kind = preset_named(common.preset).network
    yield Condition(
        ON_PIXELS,
        kind in (Network.PIXEL, None),
        f"for networks that reconstruct whole pictures, and --preset {common.preset} trains none: leave it out, or "
        "use --preset nano",
    )
    yield Condition(
        {"backbone_weights"},
        kind is not Network.PIXEL,
        f"for a network on features, but --preset {common.preset} has none: leave it out, or use --preset feature",
    )
    yield Condition(
        {"masks"}, not by_name or common.abnormal is not None, "for the pictures of --abnormal: add that option"
    )
    yield Condition(
        {"held_out"},
        calibration is not Calibration.CROSS,
        f"{threshold.held_out}, but --calibration cross holds no good parts out: leave out one of them",
    )
    yield Condition(
        {"folds"},
        calibration is not Calibration.SPLIT and (calibration is Calibration.CROSS or threshold.held_out is None),
        f"for --calibration cross, but {splits} was given: leave out one of them",
    )
    yield Condition(
        {"jobs"},
        kind is not Network.PIXEL
        or calibration is Calibration.CROSS
        or (calibration is Calibration.AUTO and threshold.held_out is None),
        f"for the folds of --calibration cross, but {splits} was given, which trains one network: leave it out",
    )
    yield Condition({"tile_overlap"}, not is_never_cut(size), _NOT_CUT)
    yield Condition(
        {"kl_warmup"},
        network.kl_weight != 0,
        "for the Kullback-Leibler term, but --kl-weight is 0: leave out one of them",
    )
    yield Condition(
        {"choose_on_labels"},
        None in (parse_photometric(scoring.photometric), parse_scoring(scoring.scoring)),
        "for choosing light or scoring, but both were given: leave out one of the three",
    )
    yield Condition(
        {"choose_on_labels"}, has_labels, "for labelled test images, which are --normal-test and --abnormal: add both"
    )


def needs_of_data(run: RunFolder) -> Iterator[Condition]:
    """Yield what options need from the data to have an effect; known when the run is complete."""
    is_split = run.thresholds.method is ThresholdMethod.SPLIT_CONFORMAL
    enough = "for cross-conformal calibration, but enough good parts could be held out"
    yield Condition({"folds"}, not is_split, enough)
    yield Condition({"jobs"}, not is_split or run.record.network is not Network.PIXEL, enough)
    yield Condition({"tile_overlap"}, run.record.tiling.n_tiles > 1, _NOT_CUT)
