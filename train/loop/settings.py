"""What a training is asked to do, as records that a run folder keeps. Loads no torch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, DEFAULT_PIXEL_FALSE_POSITIVE_RATE
from vae_edge.ignored_region import IgnoredRegion, Polygon
from vae_edge.image import Preparation
from vae_edge.manifest import MAX_RATE, MIN_RATE
from vae_edge.records import Record
from vae_edge.text_enum import TextEnum
from vae_edge.train.data.report import DataTraits
from vae_edge.train.data.sources import DataSource
from vae_edge.train.data.split import SplitSettings
from vae_edge.train.features.settings import FeatureSettings
from vae_edge.train.model.input_settings import DEFAULT_OVERLAP, Photometric, Tiling
from vae_edge.train.model.presets import Architecture, Network, Recipe
from vae_edge.train.model.scoring import NORMALIZED_SCORING, ScoringSettings


class Calibration(TextEnum):
    """Where the scores come from that set the threshold."""

    AUTO = "auto"
    """`split` where enough good parts can be held out for the false-alarm rate asked for, else `cross`."""
    SPLIT = "split"
    """From good parts that are held out from the training: one training, and a proven rate."""
    CROSS = "cross"
    """From all good parts, each scored by a network trained without it: see `vae_edge.train.run.cross_conformal`."""


SCHEMA_VERSION = 4
"""Version of the layout of a run folder. History: 1 (first), 2 (tiles, evened light, compositions, recipe), 3 (networks
on features), 4 (pictures for references)."""

OLDEST_SCHEMA = 2
"""Runs from this version on are read."""

TrainerValue = bool | int | float | str
"""What a record can hold of an argument of Lightning's Trainer."""


class SizeRequest(Record):
    """What is asked of the sizes of image and tiles."""

    image: tuple[int, int] | None = None
    """Height and width; None: chosen by the data's resolution and aspect."""
    tiles: Literal["auto", "none"] | int = "auto"
    """Side of the square tiles in pixels; `auto`: chosen; `none`: images are not cut."""
    overlap: float = Field(default=DEFAULT_OVERLAP, ge=0, le=0.75)
    """Minimum overlap of neighbouring tiles, as a share of a tile."""


class TrainSettings(Record):
    """Everything that a training is asked to do; `training.json`."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=OLDEST_SCHEMA, le=SCHEMA_VERSION)
    source: DataSource
    network: Network | None = Network.PIXEL
    """What is reconstructed; None: the data choose."""
    feature: FeatureSettings = FeatureSettings()
    """Of the network on features, where there is one."""
    backbone_weights: str | None = None
    """File with the backbone's weights; None: those of the extra `features`."""
    picture_size: tuple[int, int] | None = None
    """Height and width of the picture that a network on features sees, in force; None: not decided yet, or none."""
    architecture: Architecture
    """Its height and width are those of a tile; with `size` they are replaced by what is chosen."""
    size: SizeRequest | None = None
    """What is asked of the sizes of image and tiles; None: full images of the architecture's size."""
    tiling: Tiling | None = None
    """The sizes in force; None: not decided yet, or full images of the architecture's size."""
    traits: DataTraits | None = None
    """What was seen of the images before anything was decided."""
    ignore_mask: str | None = None
    """File with a mask of what is ignored, where it is not 0; its size or aspect is that of the pictures."""
    ignore_polygons: tuple[Polygon, ...] = ()
    """What is ignored besides."""
    ignored: IgnoredRegion | None = None
    """The ignored part at the model's size, in force; None: not decided yet, or none."""
    white_level: int = Field(default=65535, ge=255, le=65535)
    photometric: Photometric | None = Photometric.NONE
    """How light and contrast are evened out; None: the data choose."""
    scoring: ScoringSettings | None = NORMALIZED_SCORING
    """How a residual becomes a score; None: the data choose."""
    choose_on_labels: bool = False
    """Choose by labelled images, half of the test images, which then are not tested on."""
    split: SplitSettings = SplitSettings()
    strict: bool = False
    """Refuse a data set with anything wrong in it."""
    epochs: int | None = Field(default=None, ge=1)
    """None: chosen by the number of images; see `vae_edge.train.loop.batches.default_epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Largest number of images in a step, of all processes; for small sets see
    `vae_edge.train.loop.batches.even_batch_size`."""
    recipe: Recipe = Recipe()
    patience: int = Field(default=0, ge=0)
    """Epochs without a better held-out loss after which the training ends; 0: it does not."""
    max_time_minutes: float | None = Field(default=None, gt=0)
    """The training ends with the first epoch after this time, each training where there are several; interruptions do
    not count."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    false_alarm_rate: float = Field(default=DEFAULT_FALSE_ALARM_RATE, ge=MIN_RATE, le=MAX_RATE)
    pixel_false_positive_rate: float = Field(default=DEFAULT_PIXEL_FALSE_POSITIVE_RATE, ge=MIN_RATE, le=MAX_RATE)
    calibration: Calibration = Calibration.AUTO
    """With a `split.threshold_share`, `auto` means `split`: giving a share asks for a split."""
    folds: int = Field(default=5, ge=2)
    """Of cross-conformal calibration, which trains so many networks and one more."""
    accelerator: str = "auto"
    devices: str | int = "auto"
    """A number, or a list such as `0,1`, of this machine; `auto`: one, or one for each process that torchrun or SLURM
    started."""
    num_nodes: int = Field(default=1, ge=1)
    precision: str = "32-true"
    """One of Lightning's, or `auto` until the run begins; networks on features know float32 and `bf16-mixed`."""
    trainer: dict[str, TrainerValue] = Field(default_factory=dict)
    """Further arguments of Lightning's Trainer by name; see `vae_edge.train.loop.trainer_arguments`."""
    attached: dict[str, str] = Field(default_factory=dict)
    """What was given to the Trainer that no record can hold: the argument's name, and the names of the classes."""

    @property
    def preparation(self) -> Preparation:
        """How an image becomes the network's input."""
        tiling = self.tiling_in_force
        height, width = self.picture_size or (tiling.image_height, tiling.image_width)
        return Preparation(height=height, width=width, white_level=self.white_level)

    @property
    def kept(self) -> NDArray[np.bool_] | None:
        """The pixels that count, bool [H, W] at the model's size; None: all."""
        return None if self.ignored is None else self.ignored.kept

    @property
    def tiling_in_force(self) -> Tiling:
        """The sizes of image and tiles."""
        return self.tiling or Tiling.whole(self.architecture.height, self.architecture.width)

    def decide(self, photometric: Photometric, scoring: ScoringSettings) -> DecidedSettings:
        """Return the settings with what was chosen."""
        asked = {name: getattr(self, name) for name in TrainSettings.model_fields}
        chosen = {"tiling": self.tiling_in_force, "photometric": photometric, "scoring": scoring}
        return DecidedSettings.model_construct(**{**asked, **chosen})

    @model_validator(mode="before")
    @classmethod
    def _split_by_the_seed(cls, values: Any) -> Any:
        # One seed for everything, unless the split's own is given.
        if isinstance(values, dict) and "split" not in values:
            return values | {"split": SplitSettings(seed=values.get("seed", 0))}
        return values


class DecidedSettings(TrainSettings):
    """The same, in which nothing is left to be chosen: what a network was, or is, trained and scored with."""

    tiling: Tiling
    photometric: Photometric = Photometric.NONE
    scoring: ScoringSettings = NORMALIZED_SCORING


class TrainingOutcome(Record):
    """What happened in the training."""

    epochs_run: int = Field(ge=1)
    epochs_planned: int = Field(ge=1)
    ended_by: Literal["epochs", "patience", "time", "callback"]
    """`callback`: a callback that the user gave stopped it."""
    best_epoch: int = Field(ge=1)
    """The epoch whose weights were kept, counted from 1."""
    best_held_out_loss: float
    """Loss over the `statistics` normals, with z = mean; the `threshold` normals are never examined in training."""
    fit_loss: float
    """Mean loss over the last epoch's training images, with random z."""
    batch_size: int = Field(ge=1)
    """Images in a step, of all processes."""
    n_processes: int = Field(default=1, ge=1)
    """That shared each step."""
    seconds: float = Field(ge=0)
    """Time spent in training, over all parts of an interrupted run."""
    images_per_s: float = Field(ge=0)
    """Training images for each second of it, validation included."""
    n_parameters: int = Field(ge=1)
    flops: int = Field(ge=1)
    """Operations for one image on a device: see `vae_edge.train.model.network.count_flops`."""
