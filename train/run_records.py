"""What a run folder's files say, as records. Loads no torch, so that reading a run costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, DEFAULT_PIXEL_FALSE_POSITIVE_RATE
from vae_edge.image import Preparation
from vae_edge.manifest import MAX_RATE, MIN_RATE, ThresholdMethod, Thresholds
from vae_edge.outside import user_path
from vae_edge.progress import Progress
from vae_edge.records import FileRecord, Record, Sha256
from vae_edge.train.calibration import Calibration
from vae_edge.train.data_report import DataReport
from vae_edge.train.data_traits import DataTraits
from vae_edge.train.input_range import SYMMETRIC, InputRange
from vae_edge.train.inspection_set import ImageFile, InspectionSet, open_inspection_set, resolve_data
from vae_edge.train.listed_files import ListedFiles
from vae_edge.train.photometric import Photometric
from vae_edge.train.presets import Architecture
from vae_edge.train.recipe import Recipe
from vae_edge.train.scoring import NORMALIZED_SCORING, ScoringSettings
from vae_edge.train.split import SplitSettings
from vae_edge.train.tiling import DEFAULT_OVERLAP, Tiling

if TYPE_CHECKING:
    from vae_edge.train.anomaly_graph import Frame

SCHEMA_VERSION = 2
"""Version of the layout of a run folder. History: 1 (first), 2 (tiles, evened light, compositions, recipe)."""

Role = Literal["fit", "statistics", "threshold", "choice", "test"]
"""What an image was used for: see `vae_edge.train.split.Split`; `test` images have labels and decide nothing, `choice`
images have labels and chose the scoring. In a run with cross-conformal calibration no image has the role `threshold`;
see `CalibrationRecord`."""

TrainerValue = bool | int | float | str
"""What a record can hold of an argument of Lightning's Trainer."""

ROLES: tuple[Role, ...] = ("fit", "statistics", "threshold", "choice", "test")


class DataSource(Record):
    """Where the images are: a folder (or `sample`, `sample:PRODUCT`), folders by name, or a list of files."""

    root: str | None = None
    normal: str | None = None
    normal_test: str | None = None
    abnormal: str | None = None
    masks: str | None = None
    listed: ListedFiles | None = None
    """Each file by name; given instead of all the others."""

    def absolute(self) -> DataSource:
        """Return the same source with absolute paths, so that a run can go on from another working folder."""
        if self.listed is not None:
            return DataSource(listed=self.listed.at(Path(self.listed.root).absolute()))
        folders = ("root", "normal", "normal_test", "abnormal", "masks")
        return self.model_copy(update={name: _absolute(getattr(self, name)) for name in folders})

    def moved_to(self, root: str | Path) -> DataSource:
        """Return the source of the same images where they were moved to `root`.

        A list stays one where its first file is found below `root`; elsewhere the folder is searched.
        """
        if self.listed is not None and (listed := self.listed.at(root)).is_there:
            return DataSource(listed=listed)
        return DataSource(root=str(root))

    def open(self, progress: Progress | None = None) -> InspectionSet:
        """List and hash the images; see `open_inspection_set`, `resolve_data` and `ListedFiles.open`.

        Raises:
            InputError: see there.
        """
        if self.listed is not None:
            return self.listed.open(progress)
        return open_inspection_set(
            None if self.root is None else resolve_data(self.root),
            normal=self.normal,
            normal_test=self.normal_test,
            abnormal=self.abnormal,
            masks=self.masks,
            progress=progress,
        )


class SizeRequest(Record):
    """What is asked of the sizes of image and tiles."""

    image: tuple[int, int] | None = None
    """Height and width; None: chosen by the data's resolution and aspect."""
    tiles: Literal["auto", "none"] | int = "auto"
    """Side of the square tiles in pixels; `auto`: chosen; `none`: images are not cut."""
    overlap: float = Field(default=DEFAULT_OVERLAP, ge=0, le=0.75)
    """Least share of a tile that its neighbour sees as well."""


class TrainSettings(Record):
    """Everything that a training is asked to do; `training.json`."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    source: DataSource
    architecture: Architecture
    """Its height and width are those of a tile; with `size` they are replaced by what is chosen."""
    size: SizeRequest | None = None
    """What is asked of the sizes of image and tiles; None: whole images of the architecture's size."""
    tiling: Tiling | None = None
    """The sizes in force; None: not decided yet, or whole images of the architecture's size."""
    traits: DataTraits | None = None
    """What was seen of the images before anything was decided."""
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
    """None: chosen by the number of images; see `vae_edge.train.batches.default_epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Largest number of images in a step; for small sets see `vae_edge.train.batches.even_batch_size`."""
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
    """With a `split.threshold_share`, `auto` means `split`: who gives a share wants one."""
    folds: int = Field(default=5, ge=2)
    """Of cross-conformal calibration, which trains so many networks and one more."""
    accelerator: str = "auto"
    devices: str | int = "auto"
    num_nodes: int = Field(default=1, ge=1)
    precision: str = "32-true"
    trainer: dict[str, TrainerValue] = Field(default_factory=dict)
    """Further arguments of Lightning's Trainer by name; see `vae_edge.train.trainer_arguments`."""
    attached: dict[str, str] = Field(default_factory=dict)
    """What was given to the Trainer that no record can hold: the argument's name, and the names of the classes."""

    @property
    def preparation(self) -> Preparation:
        """How an image becomes the network's input."""
        tiling = self.tiling_in_force
        return Preparation(height=tiling.image_height, width=tiling.image_width, white_level=self.white_level)

    @property
    def tiling_in_force(self) -> Tiling:
        """The sizes of image and tiles."""
        return self.tiling or Tiling.whole(self.architecture.height, self.architecture.width)

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
    """The score of one normal, from a network that was trained without it."""

    name: str
    sha256: Sha256
    score: float
    fold: int | None = Field(default=None, ge=1)
    """Cross-conformal: the fold whose network gave the score."""
    final_score: float | None = None
    """Cross-conformal: the score by the network that is deployed, which was trained on this image. An exported model's
    drift is measured against it."""


class CalibrationRecord(Record):
    """Scores of the held-out normals and the thresholds fitted on them; `calibration.json`."""

    scores: tuple[CalibrationScore, ...]
    thresholds: Thresholds
    final_pixel_threshold: float | None = None
    """Cross-conformal: the pixel threshold that the deployed network's own maps of the same images would give. The one
    in `thresholds` is from the maps of the folds' networks."""

    @model_validator(mode="after")
    def _check_final_scores(self) -> CalibrationRecord:
        if self.thresholds.method is ThresholdMethod.CROSS_CONFORMAL and (
            self.final_pixel_threshold is None or any(score.final_score is None for score in self.scores)
        ):
            raise ValueError("a cross-conformal calibration lacks scores of the deployed network")
        return self


class TrainingOutcome(Record):
    """What happened in the training."""

    epochs_run: int = Field(ge=1)
    epochs_planned: int = Field(ge=1)
    ended_by: Literal["epochs", "patience", "time", "callback"]
    """`callback`: a callback that the user gave stopped it."""
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


class Ranked(Record):
    """One candidate of a choice and what it reached."""

    name: str
    auroc: float
    """Image AUROC, averaged over the strata of defects."""
    behind: float
    """How far behind the first one, AUROC."""
    standard_error: float
    """Of that difference, over defects and normals: below about three times this it may be chance."""


class ChoiceRecord(Record):
    """How light and scoring were chosen, and what the others reached."""

    judged_on: str
    """What the images were, in words."""
    photometric: tuple[Ranked, ...] = ()
    """The kinds of evening out light, best first; empty: it was given."""
    scoring: tuple[Ranked, ...] = ()
    """The compositions, best first; empty: it was given."""
    n_compositions: int = 0
    """Compositions that were compared; the record holds the first ones."""
    because: tuple[str, ...] = ()
    """Why the chosen ones are not the first ones, or why nothing was compared."""


class RunRecord(Record):
    """Everything about a run; `model.json`, the last file to be written, marks a run as complete."""

    schema_version: Literal[2] = 2
    name: str
    created_utc: str
    architecture: Architecture
    preparation: Preparation
    tiling: Tiling
    photometric: Photometric
    input_range: InputRange = SYMMETRIC
    """What a pixel's value is where it enters the network."""
    scoring: ScoringSettings
    choice: ChoiceRecord | None = None
    """How light and scoring were chosen; None: both were given."""
    settings: TrainSettings
    training: TrainingOutcome
    taken_from: str | None = None
    """Where the network comes from; None: it was trained by `vae-train`."""
    data: DataReport
    counts: dict[Role, int]
    library_versions: dict[str, str]
    files: tuple[FileRecord, ...]
    fingerprint: Sha256
    """Hash over the weights and the scoring constants."""

    @property
    def frame(self) -> Frame:
        """What stands around the network. Loads torch."""
        from vae_edge.train.anomaly_graph import Frame

        return Frame(self.tiling, self.photometric, self.input_range)


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
    return str(user_path(text).absolute())
