"""Whether a picture is fit to be judged: its light, its sharpness and its place, compared with those of good parts.

A network says how unlike good parts a picture is, not whether it shows a part at all: a covered lens gives an even
picture, which may well score as normal. So a few measures are taken of each prepared picture, at one small size, and
their ranges are learnt from good parts (`vae_edge.gate_fitting`). A picture outside a range is not inspectable.

The measures see what the network sees, the picture at the model's size: blur that this size hides changes no verdict.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from vae_edge.records import Record

THUMBNAIL_SIDE = 128
"""Side, in pixels, of the grey picture that is measured, whatever the model's size."""

PLACE_SIDE = 64
"""Side, in pixels, of the grey picture that is compared with the mean of good parts."""

_REGIONS = 4
"""Regions of a picture in each direction."""
_BLACK, _WHITE = 3, 252
"""Grey values up to which, and from which, a pixel counts as clipped."""

_PLACE_BYTES = PLACE_SIDE * PLACE_SIDE


@dataclass(frozen=True)
class Measure:
    """One property of a picture, and how it is named in words."""

    name: str
    unit: str
    """What follows the number in a sentence; `%`: the number is a share, 0 to 1."""
    what: str
    """What is measured, in words."""
    low: str | None
    """What a picture is that has too little of it; None: there is no such thing."""
    high: str | None
    resolution: float
    """Smallest deviation that counts, on the measure's own scale."""
    reach: float
    """How far a range may be extended beyond what a proof asks for: further, a covered lens would be inspectable where
    good parts are few."""
    offset: float = 1e-3
    """What is added before a logarithm is taken, as a value may be 0."""
    is_log: bool = False
    """Whether deviations are compared as logarithms."""

    def scaled(self, value: float) -> float:
        """Return a value on the scale on which deviations are compared."""
        return math.log(value + self.offset) if self.is_log else float(value)

    def value(self, scaled: float) -> float:
        """Return the value for a point of that scale."""
        return math.exp(scaled) - self.offset if self.is_log else scaled

    def limits(self) -> tuple[float, float]:
        """Return the smallest and the largest value that a picture can have."""
        return (-1.0 if self.name == "likeness" else 0.0), {"%": 1.0, " of 255": 255.0}.get(self.unit, math.inf)

    def format(self, value: float) -> str:
        """Return a value as text, with three significant digits."""
        return f"{100 * value:.3g} %" if self.unit == "%" else f"{value:.3g}{self.unit}"


MEASURES = (
    Measure("brightness", " of 255", "mean brightness", "too dark", "too bright", 2.0, 25.0),
    Measure("contrast", " of 255", "contrast", "too little contrast", "too much contrast", 0.05, 0.7, is_log=True),
    Measure("black", "%", "share of black", None, "underexposed or covered", 0.7, 1.1, 0.03, is_log=True),
    Measure("white", "%", "share of white", None, "overexposed", 0.7, 1.1, 0.03, is_log=True),
    Measure("sharpness", "", "sharpness", "blurred", "too sharp or noisy", 0.02, 0.4, is_log=True),
    Measure("detail", " of 255", "detail", "without detail", "too much detail or noise", 0.05, 0.7, is_log=True),
    Measure("darkest", "", "darkest region over the mean", "partly covered or unlit", None, 0.02, 0.25),
    Measure("brightest", "", "brightest region over the mean", None, "partly overlit or covered", 0.02, 0.25),
    Measure("plainest", " of 255", "detail of the plainest region", "partly covered", None, 0.05, 0.7, is_log=True),
    Measure("noisiest", "", "noise of the noisiest region", None, "partly covered", 0.05, 0.25, is_log=True),
    Measure("displacement", "%", "shift from the mean of good parts", None, "displaced", 0.01, 0.06),
    Measure("likeness", "", "correlation with the mean of good parts", "unlike good parts", None, 0.02, 0.15),
)
"""All measures, in the order of `Look.values`. `displacement` and `likeness` are for parts that lie at the same place.

- brightness, contrast: mean and standard deviation of the grey values. black, white: shares of clipped pixels.
- sharpness: root mean square of the Laplacian over that of the gradient (Sobel), which neither exposure nor contrast
  changes. detail: root mean square of the Laplacian (as the variance of the Laplacian: Pech-Pacheco et al., "Diatom
  autofocusing in brightfield microscopy", ICPR 2000).
- darkest, brightest: the extreme of 16 regions' mean brightness, over the mean brightness. plainest: the smallest of 16
  regions' mean absolute Laplacian. noisiest: the largest of 16 regions' mean absolute Laplacian over that of both
  derivatives: a region that shows nothing still has the sensor's noise, which is rougher than what is in focus.
- displacement: shift against the mean of good parts by phase correlation (Kuglin and Hines, 1975), as a share of the
  side. likeness: correlation coefficient with that mean.
"""

_BY_NAME = {measure.name: measure for measure in MEASURES}
_N_ANYWHERE = len(MEASURES) - 2
"""Measures that need no mean picture."""


class Look(NamedTuple):
    """What the gate sees of one picture."""

    values: tuple[float, ...]
    """Of the first measures, those that need no mean picture."""
    place: NDArray[np.uint8]
    """uint8 [64, 64], grey."""


def measure_picture(image: NDArray[np.uint8]) -> Look:
    """Measure a picture; takes about 0.1 ms for a picture of 256x256.

    Args:
        image: uint8 [H, W, 3] RGB, prepared: at the model's size.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if grey.shape != (THUMBNAIL_SIDE, THUMBNAIL_SIDE):
        shrinks = min(grey.shape) >= THUMBNAIL_SIDE
        size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    (mean,), (deviation,) = (values.ravel() for values in cv2.meanStdDev(grey))
    n_pixels = grey.size
    across, down = cv2.spatialGradient(grey)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    gradient = math.hypot(cv2.norm(across), cv2.norm(down))
    detail = cv2.norm(laplacian) / math.sqrt(n_pixels)
    regions = (_REGIONS, _REGIONS)
    light = cv2.resize(grey, regions, interpolation=cv2.INTER_AREA)
    details, *slopes = (
        cv2.resize(cv2.convertScaleAbs(each, alpha=8), regions, interpolation=cv2.INTER_AREA).astype(np.float32)
        for each in (laplacian, across, down)
    )
    least = max(float(mean), 1.0)
    values = (
        float(mean),
        float(deviation),
        cv2.countNonZero(cv2.inRange(grey, 0, _BLACK)) / n_pixels,
        cv2.countNonZero(cv2.inRange(grey, _WHITE, 255)) / n_pixels,
        detail * math.sqrt(n_pixels) / max(gradient, 1.0),
        detail,
        int(light.min()) / least,
        int(light.max()) / least,
        float(details.min()) / 8,
        float((details / (slopes[0] + slopes[1] + 1)).max()),
    )
    return Look(values, np.asarray(cv2.resize(grey, (PLACE_SIDE, PLACE_SIDE), interpolation=cv2.INTER_AREA)))


class MeanPicture:
    """The mean of good parts that lie at the same place, to which a picture is compared.

    Args:
        mean: uint8 [64, 64], grey.
    """

    def __init__(self, mean: NDArray[np.uint8]) -> None:
        self._window = np.asarray(cv2.createHanningWindow((PLACE_SIDE, PLACE_SIDE), cv2.CV_32F), dtype=np.float32)
        self._mean = self._without_mean(mean)
        self._norm = max(float(cv2.norm(self._mean)), 1e-6)
        self._windowed = self._mean * self._window

    @staticmethod
    def _without_mean(place: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = place.astype(np.float32)
        values -= values.mean()
        return values

    def compare(self, place: NDArray[np.uint8]) -> tuple[float, float]:
        """Return displacement, as a share of the side, and likeness, -1 to 1, of a picture, uint8 [64, 64]."""
        values = self._without_mean(place)
        likeness = float((values * self._mean).sum()) / (max(float(cv2.norm(values)), 1e-6) * self._norm)
        # OpenCV would multiply its own arguments by a window that it is given, in place.
        (x, y), _ = cv2.phaseCorrelate(self._windowed, values * self._window)
        return math.hypot(x, y) / PLACE_SIDE, likeness


class MeasureRange(Record):
    """The range of one measure within which a picture is inspectable."""

    measure: str
    """A name of `MEASURES`."""
    low: float | None = None
    """Smallest value; None: any."""
    high: float | None = None
    """Largest value; None: any."""

    @model_validator(mode="after")
    def _check(self) -> MeasureRange:
        if self.measure not in _BY_NAME:
            raise ValueError(f"there is no measure {self.measure!r}; expected {', '.join(_BY_NAME)}")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"the range of {self.measure} is {self.low} to {self.high}; expected the smaller first")
        return self

    def expected(self) -> str:
        """Return the range in words: `0.8 to 1.3`, `at most 3 %`."""
        measure = _BY_NAME[self.measure]
        if self.low is None:
            return "anything" if self.high is None else f"at most {measure.format(self.high)}"
        if self.high is None:
            return f"at least {measure.format(self.low)}"
        return f"{measure.format(self.low).removesuffix(measure.unit).rstrip()} to {measure.format(self.high)}"

    def problem(self, value: float) -> str | None:
        """Return a sentence where a value is outside the range."""
        measure = _BY_NAME[self.measure]
        if self.low is not None and not value >= self.low:
            what = measure.low
        elif self.high is not None and not value <= self.high:
            what = measure.high
        else:
            return None
        return f"{what}: {measure.what} {measure.format(value)}, expected {self.expected()}"


class GateRecord(Record):
    """The ranges that were learnt, and how often a good picture is outside of one of them.

    `rejection_rate` is proven for new pictures that are like the n held-out ones (conformal prediction: see
    `vae_edge.decision`), for all measures together: 1 / (n + 1) if n cannot support the requested one. The ranges are
    then extended to where the requested rate is reached if the largest deviations continue as an exponential tail,
    which is an estimate and no proof.
    """

    rejection_rate_requested: float = Field(gt=0, lt=1)
    rejection_rate: float = Field(gt=0, lt=1)
    n_normals: int = Field(ge=1)
    """Good parts that were held out for the rate."""
    n_fitted: int = Field(ge=1)
    """Other good parts, from which the measures' usual ranges come."""
    ranges: tuple[MeasureRange, ...]
    mean_picture: str | None = Field(default=None, max_length=8192)
    """The mean of good parts, 64x64 grey values in Base64; None: the parts do not lie at the same place."""

    @field_validator("mean_picture")
    @classmethod
    def _check_picture(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                n_bytes = len(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"the mean picture is not Base64 ({error})") from None
            if n_bytes != _PLACE_BYTES:
                raise ValueError(f"the mean picture has {n_bytes} values; expected {_PLACE_BYTES}")
        return text

    @model_validator(mode="after")
    def _check_ranges(self) -> GateRecord:
        names = [each.measure for each in self.ranges]
        expected = [m.name for m in (MEASURES[:_N_ANYWHERE] if self.mean_picture is None else MEASURES)]
        if names != expected:
            raise ValueError(f"the ranges are those of {', '.join(names) or 'nothing'}; expected {', '.join(expected)}")
        return self

    @property
    def promise(self) -> str:
        """The rate in words."""
        proven = f"at most {self.rejection_rate:.3g} of good pictures, from {self.n_normals} normals"
        if self.rejection_rate <= self.rejection_rate_requested:
            return proven
        return f"{proven}; about {self.rejection_rate_requested:.3g} if deviations go on as they do, without a proof"

    @cached_property
    def _compared_with(self) -> MeanPicture | None:
        if self.mean_picture is None:
            return None
        mean = np.frombuffer(base64.b64decode(self.mean_picture), dtype=np.uint8)
        return MeanPicture(mean.reshape(PLACE_SIDE, PLACE_SIDE))

    def problems(self, look: Look) -> tuple[str, ...]:
        """Return a sentence for each measure of a picture that is outside its range; none: it is inspectable."""
        return tuple(
            sentence
            for each, value in zip(self.ranges, values_of(look, self._compared_with), strict=True)
            if (sentence := each.problem(value)) is not None
        )


def describe_gate(gate: GateRecord | None) -> str:
    """Return in words how often a good picture is not inspectable, or that there is no gate."""
    if gate is None:
        return "never: there is no gate (the bundle is of an earlier version, or there were too few good parts)"
    return gate.promise


def values_of(look: Look, mean: MeanPicture | None) -> Sequence[float]:
    """Return the values of all measures, those of the place only where there is a mean picture."""
    return look.values if mean is None else (*look.values, *mean.compare(look.place))


def encode_mean_picture(mean: NDArray[np.uint8]) -> str:
    """Return a mean picture, uint8 [64, 64], as the record holds it."""
    return base64.b64encode(np.ascontiguousarray(mean).tobytes()).decode()
