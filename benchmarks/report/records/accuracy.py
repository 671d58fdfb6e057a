"""How accurate a bundle is and how far it is from the reference, as written into the report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vae_edge.benchmarks.measure.statistics import Interval
from vae_edge.manifest import ThresholdMethod
from vae_edge.records import FileName, Record
from vae_edge.train.run.metrics import Metrics


class CurveRecord(Record):
    """The corners of a ROC or PRO curve, thinned for a drawing; straight between them."""

    false_positive_rate: tuple[float, ...]
    """Ascending from 0 to 1."""
    hit_rate: tuple[float, ...]
    """True-positive rate of a ROC curve, mean overlap with the defects' regions of a PRO curve."""


EXPLAINED_MOVE = 0.1
"""A flip is explained when the score moved by less than this share of the spread of good parts' scores."""


class ScoreHistogram(Record):
    """Scores of the test images by their label, between the same edges."""

    edges: tuple[float, ...]
    """One more than counts, ascending."""
    normal: tuple[int, ...]
    anomalous: tuple[int, ...]


class PromiseRecord(Record):
    """The false-alarm rate that the bundle promises, and its rate on the good test images."""

    promised_rate: float = Field(gt=0, lt=1)
    n_normal: int = Field(ge=1)
    n_false_alarms: int = Field(ge=0)
    interval: Interval
    """Of the true rate: Clopper and Pearson's, which is exact."""
    is_kept: bool
    """False only where the whole interval lies above the promise."""


class AccuracyRecord(Record):
    """Metrics of the exported bundle's own outputs on the labelled test images."""

    metrics: Metrics
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """By the metric's name: bootstrap over images for image_auroc, image_aupr, image_f1, pixel_auroc and aupro; exact
    binomial for recall and false_alarm_rate."""
    promise: PromiseRecord | None = None
    """Absent without good test images, and for an F1-optimal threshold, which promises no rate."""
    threshold_method: ThresholdMethod = ThresholdMethod.SPLIT_CONFORMAL
    roc: CurveRecord | None = None
    """Of the images."""
    pixel_roc: CurveRecord | None = None
    pro: CurveRecord | None = None
    scores: ScoreHistogram


class Flip(Record):
    """An image that the reference and the bundle judge differently, each by its own threshold."""

    image: str
    defect: str | None = None
    """Its defect class; None for a good part, or if labels are not known."""
    is_anomalous: bool
    """What the bundle calls it; the reference says the opposite."""
    reference_margin: float
    """(score - threshold) / standard deviation of the scores of the held-out good parts."""
    margin: float
    is_explained: bool
    """Whether the margin moved by less than `EXPLAINED_MOVE`: the image is that close to the threshold."""


class Comparison(Record):
    """How far a bundle's outputs are from the reference's on the same images."""

    reference: str
    """Name of the reference bundle."""
    same_run: bool
    """Whether both come from one training run: differences between two runs are not caused by the export."""
    n_images: int = Field(ge=1)
    label_flips: int = Field(ge=0)
    """Images that one calls anomalous and the other does not, each by its own threshold."""
    flips: tuple[Flip, ...] = ()
    max_score_difference: float = Field(ge=0)
    mean_score_difference: float
    """Signed: positive where the bundle's scores are larger. A drift moves every verdict the same way."""
    reference_score_scale: float = Field(ge=0)
    """Largest absolute score of the reference, to judge the differences by."""
    max_map_difference: float | None = Field(default=None, ge=0)
    """Absent where the two models have different sizes."""
    mean_map_difference: float | None = Field(default=None, ge=0)
    """Mean absolute difference of all pixels."""
    reference_map_scale: float | None = Field(default=None, ge=0)
    score_rank_correlation: float | None = None
    """Spearman's; absent if either gives all images the same score."""

    @property
    def flipped_images(self) -> tuple[str, ...]:
        """Names of the flipped images."""
        return tuple(flip.image for flip in self.flips)

    @property
    def unexplained_flips(self) -> int:
        """Flips whose score moved too far to be explained by an image at the threshold."""
        return sum(not flip.is_explained for flip in self.flips)


class SimpleMethodRecord(Record):
    """A method without a network on the same images."""

    name: str
    description: str
    n_train: int
    height: int
    width: int
    metrics: Metrics


ExampleKind = Literal["hit", "miss", "false_alarm", "pass", "flip"]


class ImageExample(Record):
    """One test image as one bundle sees it, for a grid of images. Files lie in the report's folder `images`."""

    bundle: str
    image: str
    """Name in the data."""
    kind: ExampleKind
    """`flip` if the reference judges differently, whatever the label."""
    defect: str | None = None
    score: float
    threshold: float
    p_value: float
    is_anomalous: bool
    """The bundle's verdict."""
    input_file: FileName
    """JPEG or PNG of at most 192 pixels a side, as all of these."""
    map_file: FileName
    """The anomaly map in colours: black up to half the pixel threshold, brightest from twice the threshold."""
    mask_file: FileName
    """White where the map is above the bundle's pixel threshold."""
    truth_file: FileName | None = None
    """White where the defect is; absent if that is not known, or for a good part."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """Names of its files."""
        files = (self.input_file, self.map_file, self.mask_file, self.truth_file)
        return tuple(file for file in files if file is not None)
