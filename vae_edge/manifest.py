"""The manifest of a bundle: its identity, inputs and outputs, thresholds, and how far it can be trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from numbers import Real
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from vae_edge.detectability import Detectability
from vae_edge.gate import GateRecord
from vae_edge.ignored_region import IgnoredRegion
from vae_edge.image import Preparation
from vae_edge.records import FileName, FileRecord, JsonLimits, Record, Sha256
from vae_edge.reference_file import REFERENCES_FILE, ReferencesRecord
from vae_edge.targets import SUPPORTED, Precision, Target
from vae_edge.text_enum import TextEnum
from vae_edge.wording import count

SCHEMA_VERSION: Final = 3
"""Version of the manifest's layout. History: 1 (first), 2 (`digest`; vae-edge 0.2), 3 (`references`, `verified_by`;
vae-edge 0.3)."""

NEVER_VERIFIED = {
    1: "its manifest has schema 1, which has no digest: export it again with this version of vae-edge",
    2: "its manifest has schema 2, which has no references: export it again with this version of vae-edge",
}
"""Why a bundle of an older schema never counts as verified."""

FP32_TOLERANCE = 1e-3
"""Largest difference allowed between FP32 models in maps and scores, as a share of the reference's largest value.

A different order of rounding moves them by about 1e-5 of it; a hundred times that indicates a mistake."""

MANIFEST_FILE = "manifest.json"


MAX_CALIBRATION_SCORES = 250_000
"""Scores of normals in a manifest. An export holds the maps of as many images in memory: 65 GB at 256 x 256."""

MIN_RATE, MAX_RATE = 1e-6, 0.5
"""Smallest and largest rate that may be requested: one normal in a million, and every other one. Smaller rates need
more normals than a manifest holds, and larger ones call most normal parts anomalous. The rate of an F1-optimal
threshold is not requested and may have any value."""

MAX_FILES, MAX_FILE_BYTES = 16, 2**31
"""Files of a bundle, and the size of each: an ONNX file ends at 2 GiB. Together they have at most twice as much."""

MAX_OTHER_VALUES = 50_000
"""Values in a manifest besides the scores: a few hundred, and the names of images that get a different verdict."""

MANIFEST_LIMITS = JsonLimits(16_000_000, MAX_CALIBRATION_SCORES + MAX_OTHER_VALUES)
"""A score takes about 30 bytes of a manifest."""


def _plain_numbers(values: Any) -> Any:
    # Before the validation of each: an error for every one of millions of wrong values takes gigabytes.
    if isinstance(values, (list, tuple)):
        if len(values) > MAX_CALIBRATION_SCORES:
            raise ValueError(f"there are {len(values)}; expected at most {MAX_CALIBRATION_SCORES}")
        wrong = next((value for value in values if isinstance(value, bool) or not isinstance(value, Real)), None)
        if wrong is not None:
            raise ValueError(f"there is a {type(wrong).__name__} among them; expected numbers")
    return values


class TensorSpec(Record):
    """Name, element type and shape of one input or output; None stands for the batch size."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int | None, ...]


class ThresholdMethod(TextEnum):
    """How an image threshold was chosen, which decides what its false-alarm rate means."""

    SPLIT_CONFORMAL = "split-conformal"
    """On scores of normals that the model was not fitted on: the rate provably holds for new normals like them."""
    CROSS_CONFORMAL = "cross-conformal"
    """On scores that each normal got from a model trained without it: more normals, but no proof for the one model that
    is deployed. See `vae_edge.train.run.cross_conformal`."""
    F1_OPTIMAL = "f1-optimal"
    """The threshold with the largest F1 on labelled images: no rate is promised."""


class Thresholds(Record):
    """How a score becomes a verdict.

    An image is anomalous when its conformal p-value among `calibration_scores` is at most `false_alarm_rate`, which is
    the same as score > `image_threshold`, whatever the method. See `vae_edge.decision` for the formulas.
    """

    method: ThresholdMethod = ThresholdMethod.SPLIT_CONFORMAL
    false_alarm_rate_requested: float = Field(gt=0, lt=1)
    """For an F1-optimal threshold, for which no rate is requested, it is the rate in force."""
    false_alarm_rate: float = Field(gt=0, lt=1)
    """The rate in force: the one requested, or 1 / (n + 1) if n normals cannot support it. For an F1-optimal threshold,
    its rate among the calibration scores."""
    image_threshold: float
    pixel_threshold: float
    pixel_false_positive_rate: float = Field(gt=0, lt=1)
    """Largest share of the held-out normals' pixels above `pixel_threshold`."""
    n_normals: int = Field(ge=1)
    calibration_scores: Annotated[tuple[float, ...], BeforeValidator(_plain_numbers)]
    """Scores of the held-out normals, ascending. Cross-conformal: the scores of the models that had not seen them,
    moved by as much as this runtime moves the deployed model's scores."""
    scored_by: str
    """What computed the scores: the bundle itself, or the torch reference if the bundle could not run."""

    @model_validator(mode="after")
    def _check_scores(self) -> Thresholds:
        # p-values are looked up by bisection: scores out of order would give wrong ones without a word.
        scores = self.calibration_scores
        if len(scores) != self.n_normals:
            raise ValueError(f"{count(len(scores), 'calibration score')} for {count(self.n_normals, 'normal')}")
        if any(first > second for first, second in pairwise(scores)):
            raise ValueError("the calibration scores are not in ascending order")
        return self


class ParityRecord(Record):
    """How far the bundle's outputs are from the FP32 torch reference on real images."""

    reference: str
    images: str
    """What the images were, in words."""
    n_images: int = Field(ge=1)
    max_score_difference: float = Field(ge=0)
    max_map_difference: float = Field(ge=0)
    reference_score_scale: float = Field(ge=0)
    """Largest absolute reference score, to judge the score difference by."""
    reference_map_scale: float = Field(ge=0)
    """Largest absolute value of the reference anomaly maps, to judge the map difference by."""
    label_flips: int = Field(ge=0)
    flipped_images: tuple[str, ...] = ()
    tolerance: float | None = Field(default=None, gt=0)
    """Largest difference allowed, as a share of the reference's scale; None: the accuracy decides, not the drift."""


class AccuracyRecord(Record):
    """The accuracy lost to the number format, compared with the FP32 torch reference on labelled images."""

    reference: str = "torch fp32"
    images: str
    """What the images were, in words."""
    n_normal: int = Field(ge=1)
    n_anomalous: int = Field(ge=1)
    reference_image_auroc: float
    image_auroc: float
    reference_pixel_auroc: float | None
    pixel_auroc: float | None
    """None if it is not known where the defects are."""
    label_flips: int = Field(ge=0)
    """Images that one model calls anomalous and the other does not, each by its own threshold."""
    flipped_images: tuple[str, ...] = ()
    label_flips_at_reference_threshold: int = Field(ge=0)
    """The same, both by the reference's threshold: what would happen without fitting the threshold again."""
    flipped_images_at_reference_threshold: tuple[str, ...] = ()
    max_score_difference: float = Field(ge=0)
    max_map_difference: float = Field(ge=0)
    reference_score_scale: float = Field(ge=0)
    """Largest absolute reference score, to judge the score difference by."""
    reference_map_scale: float = Field(ge=0)
    """Largest absolute value of the reference anomaly maps, to judge the map difference by."""

    @property
    def n_images(self) -> int:
        """Images that the model was judged on."""
        return self.n_normal + self.n_anomalous

    @property
    def flip_rate(self) -> float:
        """Share of the images that get a different verdict, each model by its own threshold."""
        return self.label_flips / self.n_images

    @property
    def image_auroc_drop(self) -> float:
        """How much of the image AUROC is lost; negative if it increased."""
        return self.reference_image_auroc - self.image_auroc

    @property
    def pixel_auroc_drop(self) -> float | None:
        """How much of the pixel AUROC is lost; None if there is none."""
        if self.reference_pixel_auroc is None or self.pixel_auroc is None:
            return None
        return self.reference_pixel_auroc - self.pixel_auroc


class SaturationRecord(Record):
    """How many values of a quantized model's activations are outside the ranges that it was given.

    They are cut off at the range's end: what a defect changes there is lost.
    """

    layer: str
    """The layer whose input has the largest share of such values."""
    share: float = Field(ge=0, le=1)
    """That share, over all values that the layer reads."""
    n_images: int = Field(ge=1)
    """Normal and defective images, other than those of the calibration, that it was counted on."""


class QuantizationRecord(Record):
    """How an INT8 model was made."""

    estimator: str
    """How the activations' ranges were computed from the calibration set."""
    layers: tuple[str, ...]
    """All layers that could be in INT8, in the order of the graph."""
    given_back: tuple[str, ...] = ()
    """Layers that went back to float to keep the accuracy, the most harmful first."""
    n_passes: int = Field(ge=1)
    """Models that were run and judged to find these."""
    saturation: SaturationRecord | None = None
    """None: it was not counted."""


class CalibrationSetRecord(Record):
    """The images a quantized bundle was calibrated on."""

    sha256: Sha256
    n_images: int = Field(ge=1)
    n_with_defects: int = Field(default=0, ge=0)
    """How many of them are normals with defects pasted on."""


GPU_KIND = "gpu_kind"
"""In the details of a TensorRT engine's `RuntimeRecord`: the kind of GPU that it was built for, such as
`Orin (8.7, 16 SMs)`. Records of earlier versions have none."""


class RuntimeRecord(Record):
    """The runtime that made the model file."""

    flavour: str
    """`onnx`, `openvino`, `tensorrt`, `tensorrt_rtx` or `torch`."""
    version: str
    details: dict[str, str] = Field(default_factory=dict)
    """What else decides where the file runs: opset, compute capability, platform."""


class BackboneOrigin(Record):
    """Where a backbone's weights come from."""

    name: str
    """Of the network."""
    source: str
    """The package with its version, or the name of the file."""
    licence: str
    """An SPDX identifier, or other information if there is none."""
    sha256: Sha256
    """Of the file with the weights."""
    size_bytes: int = Field(ge=0)
    """Size of that file, which also holds the rest of the network."""


class Provenance(Record):
    """Where the bundle comes from."""

    created_utc: str
    vae_edge_version: str
    run: str
    """Name of the run folder."""
    run_fingerprint: Sha256
    """Hash over the run's weights and scoring constants."""
    data_fingerprint: Sha256
    """Hash over the training images."""
    backbone: BackboneOrigin | None = None
    """For a network on features: the pretrained weights in the model."""
    library_versions: dict[str, str]


class Manifest(Record):
    """Everything about a bundle except the model file itself."""

    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    digest: Sha256 | None = None
    """`manifest_digest` of the file; set when a new or changed manifest is written."""
    name: str
    target: Target
    precision: Precision
    model_file: FileName
    runtime: RuntimeRecord
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int | None = Field(default=None, ge=1)
    """Largest batch the model file accepts; None: any."""
    preparation: Preparation
    ignored: IgnoredRegion | None = None
    """The part of the picture that neither scores nor trained, at the model's size; None: all of it counts."""
    scoring: str
    """Tiles, light and scoring in words, for people."""
    thresholds: Thresholds
    calibration_set: CalibrationSetRecord | None = None
    quantization: QuantizationRecord | None = None
    accuracy: AccuracyRecord | None = None
    """How much accuracy FP16 or INT8 costs; None for FP32, which must give the trained model's verdicts."""
    parity: ParityRecord | None = None
    detectability: Detectability | None = None
    """The sizes of pasted defects that the trained model finds at the thresholds of its run; None if this was not
    measured, or the export changed scoring or rate. FP16 and INT8 bundles also have the trained model's values: what
    they change is in `accuracy`."""
    gate: GateRecord | None = None
    """The ranges in which a picture is inspectable; None: the bundle is older than these, or too few normals were there
    to learn them from. Such a bundle judges every picture."""
    references: ReferencesRecord | None = None
    """Pictures with the outputs that a device has to give for them; None in schema 1 and 2."""
    verified: bool
    """Whether this very bundle gave the outputs of its references, where it was exported or on the device that has it,
    and its thresholds are of its own outputs or were confirmed by the references."""
    verified_by: str | None = None
    """Runtime and device that gave them; None: it is not verified."""
    not_verified_because: str | None = None
    files: tuple[FileRecord, ...]
    provenance: Provenance

    @model_validator(mode="after")
    def _check_files(self) -> Manifest:
        # A file that is loaded and not listed would escape the check of its hash.
        expected = SUPPORTED[self.target].model_file
        if self.model_file != expected:
            raise ValueError(f"the model file of target {self.target} is {self.model_file!r}; expected {expected!r}")
        names = [file.name for file in self.files]
        missing = {self.model_file, *SUPPORTED[self.target].other_files}.difference(names)
        if missing:
            raise ValueError(f"size and SHA-256 of {', '.join(sorted(missing))} are missing")
        if len(names) > MAX_FILES:
            raise ValueError(f"{len(names)} files are listed; expected at most {MAX_FILES}")
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        for file in self.files:
            if file.size_bytes > MAX_FILE_BYTES:
                raise ValueError(f"{file.name} has {file.size_bytes} bytes; expected at most {MAX_FILE_BYTES}")
        total = sum(file.size_bytes for file in self.files)
        if total > 2 * MAX_FILE_BYTES:
            raise ValueError(f"the files have {total} bytes together; expected at most {2 * MAX_FILE_BYTES}")
        return self

    @model_validator(mode="after")
    def _check_ignored(self) -> Manifest:
        ignored, size = self.ignored, self.preparation
        if ignored is not None and (ignored.height, ignored.width) != (size.height, size.width):
            raise ValueError(
                f"the ignored region is of {ignored.height} x {ignored.width} pixels; expected {size.height} x "
                f"{size.width}"
            )
        return self

    @model_validator(mode="after")
    def _check_references(self) -> Manifest:
        names = {file.name for file in self.files}
        if self.schema_version < 3:
            if self.references is not None or self.verified_by is not None:
                raise ValueError(f"schema {self.schema_version} has no references")
            return self
        if self.references is None:
            raise ValueError("its references are missing")
        if self.references.file != REFERENCES_FILE or REFERENCES_FILE not in names:
            raise ValueError(f"size and SHA-256 of the references, {REFERENCES_FILE}, are missing")
        if self.precision is Precision.FP32 and not (
            self.references.score_tolerance <= FP32_TOLERANCE and self.references.map_tolerance <= FP32_TOLERANCE
        ):
            raise ValueError(f"the tolerance of its references exceeds that of FP32, {FP32_TOLERANCE}")
        return self

    @model_validator(mode="after")
    def _check_specs(self) -> Manifest:
        # Every graph has the same inputs and outputs, and the size is the one that pictures are prepared for.
        size = self.preparation.height, self.preparation.width
        for what, specs, expected in (
            ("inputs", self.inputs, graph_inputs(*size)),
            ("outputs", self.outputs, graph_outputs(*size)),
        ):
            if specs != expected:
                raise ValueError(f"the {what} are not {_describe(expected)}")
        return self


def _describe(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(
        f"{spec.name} {spec.dtype} [{', '.join('N' if size is None else str(size) for size in spec.shape)}]"
        for spec in specs
    )


def manifest_digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a manifest: the SHA-256, in hexadecimal, of its JSON without the key `digest`.

    The JSON is written with sorted keys, the separators `,` and `:`, in UTF-8, without unnecessary escapes. Numbers are
    written as Python writes them. So neither line ends nor the order of keys in the file matter.

    Args:
        content: the manifest as parsed from JSON.

    Raises:
        ValueError: a number is not finite, or a text is not Unicode.
    """
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def graph_inputs(height: int, width: int) -> tuple[TensorSpec, ...]:
    """Return the input of every graph: `image`, uint8 [N, H, W, 3] RGB."""
    return (TensorSpec(name="image", dtype="uint8", shape=(None, height, width, 3)),)


def graph_outputs(height: int, width: int) -> tuple[TensorSpec, ...]:
    """Return the outputs of every graph: `anomaly_map` float32 [N, H, W] and `score` float32 [N]."""
    return (
        TensorSpec(name="anomaly_map", dtype="float32", shape=(None, height, width)),
        TensorSpec(name="score", dtype="float32", shape=(None,)),
    )
