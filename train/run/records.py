"""What a run folder's files say, as records. Loads no torch, so that reading a run costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from vae_edge.gate import GateRecord
from vae_edge.ignored_region import IgnoredRegion
from vae_edge.image import Preparation
from vae_edge.manifest import BackboneOrigin, ThresholdMethod, Thresholds
from vae_edge.records import FileRecord, Record, Sha256
from vae_edge.reference_file import PicturesRecord
from vae_edge.train.choice.candidates import ChoiceRecord
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.report import DataReport
from vae_edge.train.features.settings import FeatureSettings
from vae_edge.train.loop.settings import TrainingOutcome, TrainSettings
from vae_edge.train.model.input_settings import SYMMETRIC, InputRange, InputSettings, Photometric, Tiling
from vae_edge.train.model.presets import Architecture, Network
from vae_edge.train.model.scoring import ScoringSettings

Role = Literal["fit", "statistics", "threshold", "choice", "test"]
"""What an image was used for: see `vae_edge.train.data.split.Split`; `test` images have labels and decide nothing,
`choice` images have labels and chose the scoring. In a run with cross-conformal calibration no image has the role
`threshold`; see `CalibrationRecord`."""

ROLES: tuple[Role, ...] = ("fit", "statistics", "threshold", "choice", "test")


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
            raise ValueError("a cross-conformal calibration lacks the scores of the deployed network")
        return self


class FeatureRecord(Record):
    """A network on features, as it is deployed."""

    height: int = Field(ge=32, le=4096)
    """Of the picture that the backbone sees, in pixels."""
    width: int = Field(ge=32, le=4096)
    settings: FeatureSettings
    photometric: Photometric
    backbone: BackboneOrigin
    """Whose weights are in the run."""

    def describe(self) -> str:
        """Return the model in words."""
        pixels = "" if self.settings.pixels is None else " and patches of pixels"
        places = "" if self.settings.places is None else ", compared with good parts by place"
        return (
            f"images of {self.height}x{self.width}; {self.photometric.describe()}; features of {self.backbone.name}"
            f"{pixels}{places}"
        )


class RunRecord(Record):
    """Everything about a run; `model.json`, the last file to be written, marks a run as complete."""

    schema_version: Literal[2, 3, 4] = 4
    name: str
    created_utc: str
    network: Network = Network.PIXEL
    """What is reconstructed."""
    feature: FeatureRecord | None = None
    """Of a network on features."""
    architecture: Architecture
    preparation: Preparation
    tiling: Tiling
    photometric: Photometric
    ignored: IgnoredRegion | None = None
    """The part of the picture that neither trained nor scores, at the model's size."""
    input_range: InputRange = SYMMETRIC
    """What a pixel's value is where it enters the network."""
    scoring: ScoringSettings
    """Of a network on pixels; where there is none, it is not used."""
    choice: ChoiceRecord | None = None
    """How light and scoring were chosen; None: both were given."""
    settings: TrainSettings
    training: TrainingOutcome
    taken_from: str | None = None
    """Where the network comes from; None: it was trained by `vae-train`."""
    data: DataReport
    counts: dict[Role, int]
    library_versions: dict[str, str]
    gate: GateRecord | None = None
    """The ranges in which a picture is inspectable; None: the run is older than these, or has too few good parts."""
    references: PicturesRecord | None = None
    """Pictures that travel with every bundle; None: the run is older than these."""
    files: tuple[FileRecord, ...]
    fingerprint: Sha256
    """Hash over the weights and the scoring constants."""

    @model_validator(mode="after")
    def _check_feature(self) -> RunRecord:
        if (self.feature is None) != (self.network is Network.PIXEL):
            raise ValueError(f"the network is {self.network} and the record of one on features does not fit it")
        return self

    @property
    def input_settings(self) -> InputSettings:
        """How an image becomes what the network on pixels sees."""
        return InputSettings(self.tiling, self.photometric, self.input_range, self.ignored)


def split_images(
    images: Sequence[ImageFile], role: Role, groups: Mapping[str, str] | None = None
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
