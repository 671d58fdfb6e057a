"""What the gate measures of a picture: its light, its sharpness and its place.

The measures see what the network sees, the picture at the model's size: blur that this size hides changes no verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

THUMBNAIL_SIDE = 128
"""Side, in pixels, of the grey picture that is measured, whatever the model's size."""

PLACE_SIDE = 64
"""Side, in pixels, of the grey picture that is compared with the mean of good parts."""

MEASURES_VERSION = 2
"""Version of what the measures are. Ranges that were learnt by another one say nothing about these values."""

_REGIONS = 4
"""Regions of a picture in each direction."""
_GAIN = 64
"""What the grain is multiplied by before it is averaged, so that it counts up to 4 grey values: the edge of what
covers a region would otherwise weigh more than all of its noise."""
_BLACK, _WHITE = 3, 252
"""Grey values up to which, and from which, a pixel counts as clipped."""

_Grey = NDArray[Any]
"""uint8; what OpenCV's annotations call by wider names."""


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
    Measure("sharpness", "", "sharpness", "blurred", "too sharp or noisy", 0.01, 0.2, is_log=True),
    Measure("detail", " of 255", "detail", "without detail", "too much detail or noise", 0.05, 0.7, is_log=True),
    Measure("darkest", "", "darkest region over the mean", "partly covered or unlit", None, 0.02, 0.25),
    Measure("brightest", "", "brightest region over the mean", None, "partly overlit or covered", 0.02, 0.25),
    Measure("plainest", " of 255", "detail of the plainest region", "partly covered", None, 0.05, 0.7, is_log=True),
    Measure("noisiest", "", "noise of the noisiest region", None, "partly covered", 0.1, 0.25, is_log=True),
    Measure("displacement", "%", "shift from the mean of good parts", None, "displaced", 0.01, 0.06),
    Measure("likeness", "", "correlation with the mean of good parts", "unlike good parts", None, 0.02, 0.15),
)
"""All measures, in the order of `Look.values`. `displacement` and `likeness` are for parts that lie at the same place.

Two pictures of a thumbnail's grain are behind the others: the fine one is what a mean of 3x3 pixels takes away, a
Laplacian in all but name; the coarse one is the slope of what it leaves, across two pixels of a diagonal.

- brightness, contrast: mean and standard deviation of the grey values. black, white: shares of clipped pixels.
- sharpness: root mean square of the fine grain over that of the differences of neighbours, across and down, which
  neither exposure nor contrast changes. detail: root mean square of the fine grain (as the variance of the Laplacian:
  Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000).
- darkest, brightest: the extreme of 16 regions' mean brightness, over the mean brightness. plainest: the smallest of 16
  regions' mean fine grain, at most 4. noisiest: the largest of 16 regions' mean fine grain over mean coarse grain: what
  shows nothing still has the sensor's noise, which is rougher than what is in focus.
- displacement: shift against the mean of good parts by phase correlation (Kuglin and Hines, 1975), as a share of the
  side; 0 where a picture is more like the mean than one in ten good parts. likeness: correlation coefficient with it.
"""


class Look(NamedTuple):
    """What the gate sees of one picture."""

    values: tuple[float, ...]
    """Of the first measures, those that need no mean picture."""
    place: NDArray[np.uint8]
    """uint8 [64, 64], grey."""


def measure_picture(image: NDArray[np.uint8]) -> Look:
    """Measure a picture.

    It takes 0.03 ms for a picture of 128x128, and three times as long right after an inference, which leaves nothing of
    all this in the processor's caches: so few different functions count more than few pixels.

    Args:
        image: uint8 [H, W, 3] RGB, prepared: at the model's size.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if grey.shape != (THUMBNAIL_SIDE, THUMBNAIL_SIDE):
        shrinks = min(grey.shape) >= THUMBNAIL_SIDE
        size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    place = _halved(grey)
    mean, deviation = _mean_and_deviation(place)
    least = max(mean, 1.0)
    light = _regions(place, 1)
    smooth = cv2.blur(grey, (3, 3))
    # One above the other, so that one call does for both; the coarse one has a border of zeros.
    grain = np.zeros((2 * THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.uint8)
    fine = cv2.absdiff(grey, smooth, grain[:THUMBNAIL_SIDE])
    cv2.absdiff(smooth[2:, 2:], smooth[:-2, :-2], grain[THUMBNAIL_SIDE + 1 : -1, 1:-1])
    fine_norm = cv2.norm(fine)
    slope_norm = math.hypot(cv2.norm(grey[:, 1:], grey[:, :-1]), cv2.norm(grey[1:], grey[:-1]))
    grain = _halved(grain)
    by_region = _regions(cv2.convertScaleAbs(grain, grain, _GAIN), 2)
    fines, coarses = by_region[: len(light)], by_region[len(light) :]
    lowest, highest, *_ = cv2.minMaxLoc(grey)
    values = (
        mean,
        deviation,
        1 - _share_from(grey, _BLACK + 1) if lowest <= _BLACK else 0.0,
        _share_from(grey, _WHITE) if highest >= _WHITE else 0.0,
        fine_norm / max(slope_norm, 1.0),
        fine_norm / THUMBNAIL_SIDE,
        min(light) / least,
        max(light) / least,
        min(fines) / _GAIN,
        max([a / (b + 1) for a, b in zip(fines, coarses, strict=True)]),
    )
    return Look(values, place)


def _halved(picture: _Grey) -> NDArray[np.uint8]:
    size = (picture.shape[1] // 2, picture.shape[0] // 2)
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _mean_and_deviation(grey: _Grey) -> tuple[float, float]:
    mean, deviation = cv2.meanStdDev(grey)
    return mean.item(), deviation.item()


def _regions(picture: _Grey, n_stacked: int) -> list[float]:
    """Return the means of the regions, 0 to 255, of n pictures that are stacked, those of each together."""
    size = (_REGIONS, n_stacked * _REGIONS)
    means: list[float] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).ravel().tolist()
    return means


def _share_from(grey: _Grey, least: int) -> float:
    """Return the share of pixels that have at least a value."""
    return cv2.countNonZero(cv2.threshold(grey, least - 1, 255, cv2.THRESH_BINARY)[1]) / grey.size


class MeanPicture:
    """The mean of good parts that lie at the same place, to which a picture is compared.

    Args:
        mean: uint8 [64, 64], grey.
        displaced_below: likeness from which on no displacement is looked for, which takes longer than all the rest.
    """

    def __init__(self, mean: NDArray[np.uint8], displaced_below: float = math.inf) -> None:
        self._picture = mean
        self._displaced_below = displaced_below
        self._mean, self._deviation = _mean_and_deviation(mean)
        self._window = np.asarray(cv2.createHanningWindow((PLACE_SIDE, PLACE_SIDE), cv2.CV_32F), dtype=np.float32)
        self._windowed = self._in_window(mean, self._mean)

    def _in_window(self, place: NDArray[np.uint8], mean: float) -> NDArray[np.float32]:
        values = place.astype(np.float32)
        values -= np.float32(mean)
        values *= self._window
        return values

    def compare(self, place: NDArray[np.uint8], light: tuple[float, float] | None = None) -> tuple[float, float]:
        """Return displacement, as a share of the side, and likeness, -1 to 1, of a picture.

        Args:
            place: uint8 [64, 64], grey.
            light: its mean and standard deviation; None: not known yet.
        """
        likeness = self.likeness(place, light)
        if likeness >= self._displaced_below:
            return 0.0, likeness
        mean, _ = _mean_and_deviation(place)
        # OpenCV would multiply its own arguments by a window that it is given, in place.
        (x, y), _ = cv2.phaseCorrelate(self._windowed, self._in_window(place, mean))
        return math.hypot(x, y) / PLACE_SIDE, likeness

    def likeness(self, place: NDArray[np.uint8], light: tuple[float, float] | None = None) -> float:
        """Return the correlation coefficient of a picture with the mean, -1 to 1; for the arguments see `compare`."""
        mean, deviation = _mean_and_deviation(place) if light is None else light
        difference = cv2.norm(place, self._picture, cv2.NORM_L2SQR) / place.size
        # The mean of (a - b)^2 is var(a) + var(b) - 2 cov(a, b) + (mean(a) - mean(b))^2.
        doubled = deviation**2 + self._deviation**2 + (mean - self._mean) ** 2 - difference
        return doubled / max(2 * deviation * self._deviation, 1e-3)
