"""What a run folder's files say, as records. Loads no torch, so that reading a run costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, DEFAULT_PIXEL_FALSE_POSITIVE_RATE
from vae_edge.image import Preparation
from vae_edge.manifest import Thresholds
from vae_edge.progress import Progress
from vae_edge.records import FileRecord, Record, Sha256
from vae_edge.train.data_report import DataReport
from vae_edge.train.inspection_set import ImageFile, InspectionSet, open_inspection_set, resolve_data
from vae_edge.train.presets import Architecture
from vae_edge.train.scoring import ScoringSettings
from vae_edge.train.split import SplitSettings

SCHEMA_VERSION = 1
"""Version of the layout of a run folder. History: 1 (first)."""

Role = Literal["fit", "statistics", "threshold", "test"]
"""What an image was used for: see `vae_edge.train.split.Split`; `test` images have labels and decide nothing."""

ROLES: tuple[Role, ...] = ("fit", "statistics", "threshold", "test")


class DataSource(Record):
    """Where the images are: a folder (or `sample`, `sample:PRODUCT`), or folders by name."""

    root: str | None = None
    normal: str | None = None
    normal_test: str | None = None
    abnormal: str | None = None
    masks: str | None = None

    def absolute(self) -> DataSource:
        """Return the same source with absolute paths, so that a run can go on from another working folder."""
        return DataSource(**{name: _absolute(value) for name, value in self.model_dump().items()})

    def open(self, progress: Progress | None = None) -> InspectionSet:
        """List and hash the images; see `open_inspection_set` and `resolve_data`.

        Raises:
            InputError: see there.
        """
        return open_inspection_set(
            None if self.root is None else resolve_data(self.root),
            normal=self.normal,
            normal_test=self.normal_test,
            abnormal=self.abnormal,
            masks=self.masks,
            progress=progress,
        )


class TrainSettings(Record):
    """Everything that a training is asked to do; `training.json`."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    source: DataSource
    architecture: Architecture
    white_level: int = Field(default=65535, ge=255, le=65535)
    scoring: ScoringSettings = ScoringSettings()
    split: SplitSettings = SplitSettings()
    strict: bool = False
    """Refuse a data set with anything wrong in it."""
    epochs: int | None = Field(default=None, ge=1)
    """None: chosen by the number of images; see `vae_edge.train.batches.default_epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Largest number of images in a step; for small sets see `vae_edge.train.batches.even_batch_size`."""
    learning_rate: float = Field(default=2e-4, gt=0)
    patience: int = Field(default=0, ge=0)
    """Epochs without a better held-out loss after which the training ends; 0: it does not."""
    max_time_minutes: float | None = Field(default=None, gt=0)
    """The training ends with the first epoch after this time; interruptions do not count."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    false_alarm_rate: float = Field(default=DEFAULT_FALSE_ALARM_RATE, gt=0, lt=1)
    pixel_false_positive_rate: float = Field(default=DEFAULT_PIXEL_FALSE_POSITIVE_RATE, gt=0, lt=1)
    accelerator: str = "auto"
    devices: str | int = "auto"
    num_nodes: int = Field(default=1, ge=1)
    precision: str = "32-true"

    @property
    def preparation(self) -> Preparation:
        """How an image becomes the network's input."""
        return Preparation(height=self.architecture.height, width=self.architecture.width, white_level=self.white_level)

    @model_validator(mode="before")
    @classmethod
    def _split_by_the_seed(cls, values: Any) -> Any:
        # One seed for everything, unless the split's own is given.
        if isinstance(values, dict) and "split" not in values:
            return values | {"split": SplitSettings(seed=values.get("seed", 0))}
        return values


class SplitImage(Record):
    """One image of the run."""

    name: str
    sha256: Sha256
    role: Role
    defect: str | None = None
    has_mask: bool = False
    """Whether a mask was used; a mask that could not be used does not count."""
    group: str | None = None
    """Equal for pictures of the same part, which calibration and studies keep together; None: it stands alone, or the
    run was made before groups were recorded."""

    @property
    def part(self) -> str:
        """The part that it shows: its group, or its own hash."""
        return self.group or self.sha256


class SplitRecord(Record):
    """Which image was used for what; `split.json`."""

    images: tuple[SplitImage, ...]

    def of(self, *roles: Role) -> tuple[SplitImage, ...]:
        """Return the images of some roles."""
        return tuple(image for image in self.images if image.role in roles)

    def counts(self) -> dict[Role, int]:
        """Return the number of images of each role."""
        return {role: len(self.of(role)) for role in ROLES}


class CalibrationScore(Record):
    """The score of one held-out normal."""

    name: str
    sha256: Sha256
    score: float


class CalibrationRecord(Record):
    """Scores of the held-out normals and the thresholds fitted on them; `calibration.json`."""

    scores: tuple[CalibrationScore, ...]
    thresholds: Thresholds


class TrainingOutcome(Record):
    """What happened in the training."""

    epochs_run: int = Field(ge=1)
    epochs_planned: int = Field(ge=1)
    ended_by: Literal["epochs", "patience", "time"]
    best_epoch: int = Field(ge=1)
    """The epoch whose weights were kept, counted from 1."""
    best_held_out_loss: float
    """Loss over the `statistics` normals, with z = mean; the `threshold` normals are never looked at in training."""
    fit_loss: float
    """Mean loss over the last epoch's training images, with random z."""
    batch_size: int = Field(ge=1)
    seconds: float = Field(ge=0)
    """Time spent in training, over all parts of an interrupted run."""
    images_per_s: float = Field(ge=0)
    """Training images for each second of it, validation included."""
    n_parameters: int = Field(ge=1)
    flops: int = Field(ge=1)
    """Operations for one image on a device: see `vae_edge.train.network.count_flops`."""


class RunRecord(Record):
    """Everything about a run; `model.json`, the last file to be written, marks a run as complete."""

    schema_version: Literal[1] = 1
    name: str
    created_utc: str
    architecture: Architecture
    preparation: Preparation
    scoring: ScoringSettings
    settings: TrainSettings
    training: TrainingOutcome
    data: DataReport
    counts: dict[Role, int]
    library_versions: dict[str, str]
    files: tuple[FileRecord, ...]
    fingerprint: Sha256
    """Hash over the weights and the scoring constants."""


def split_images(
    images: tuple[ImageFile, ...], role: Role, groups: Mapping[str, str] | None = None
) -> tuple[SplitImage, ...]:
    """Describe the images of one role; `groups` leads from a SHA-256 to a group, of those that have one."""
    return tuple(
        SplitImage(
            name=image.name,
            sha256=image.sha256,
            role=role,
            defect=image.defect,
            has_mask=image.mask is not None,
            group=None if groups is None else groups.get(image.sha256),
        )
        for image in images
    )


def _absolute(text: str | None) -> str | None:
    if text is None or text == "sample" or text.startswith("sample:"):
        return text
    return str(Path(text).expanduser().absolute())
