"""The part of the picture that a model ignores, as a record of runs and bundles.

What lies there neither trains nor scores: a clamp that is never at the same place, a printed serial number, a conveyor.
The model itself leaves it out (`vae_edge.train.model.kept`); the record says to people which part it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vae_edge.errors import UsageError
from vae_edge.records import Record

Polygon = tuple[tuple[float, float], ...]
"""Corners as x and y, in shares of the picture's width and height, 0 to 1."""

MOST_RUNS = 20_000
"""Lengths in a record: a polygon has two for each row, and a mask of noise has as many as pixels."""

_FINER, _MOST_STEPS = 8, 8192
"""Steps a pixel in each direction, in which the covered share of a pixel is counted, and steps of a picture at most."""


class IgnoredRegion(Record):
    """A mask at the model's size, as lengths of runs.

    Examples:
        >>> IgnoredRegion.of_mask(np.array([[False, True, True], [True, False, False]])).runs
        (1, 3, 2)
    """

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    runs: tuple[int, ...] = Field(min_length=2, max_length=MOST_RUNS)
    """Row by row, how many pixels are kept, then ignored, then kept, and so on; the first may be 0."""

    @model_validator(mode="after")
    def _check_runs(self) -> IgnoredRegion:
        if self.runs[0] < 0 or any(run < 1 for run in self.runs[1:]) or sum(self.runs) != self.height * self.width:
            raise ValueError(f"the runs of the ignored region do not make {self.height} x {self.width} pixels")
        if self.runs[0] == 0 and len(self.runs) == 2:
            raise ValueError("the ignored region is the whole picture")
        return self

    @classmethod
    def of_mask(cls, ignored: NDArray[np.bool_]) -> IgnoredRegion:
        """Make the record of a mask, bool [H, W], true where the picture is ignored.

        Raises:
            UsageError: everything is ignored, or nothing, or the mask is too ragged to be recorded.
        """
        if not ignored.any():
            raise UsageError("nothing is ignored at the model's size; expected a larger region, or leave it out")
        if ignored.all():
            raise UsageError("the whole picture is ignored; expected a region that leaves something to inspect")
        flat = ignored.reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        ends = [*([0] if flat[0] else []), *changes.tolist(), flat.size]
        if len(ends) > MOST_RUNS:
            raise UsageError(
                f"the ignored region has {len(ends)} edges along its rows; expected at most {MOST_RUNS}: smooth it"
            )
        height, width = ignored.shape
        return cls(height=height, width=width, runs=tuple(b - a for a, b in pairwise([0, *ends])))

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, bool [H, W], true where the picture is ignored."""
        values = np.zeros(self.height * self.width, dtype=np.bool_)
        ends = list(accumulate(self.runs))
        for begin, end in zip(ends[::2], ends[1::2], strict=False):
            values[begin:end] = True
        return values.reshape(self.height, self.width)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """The other pixels, bool [H, W]."""
        return ~self.mask

    @property
    def share(self) -> float:
        """Share of the picture that is ignored, above 0 and below 1."""
        return sum(self.runs[1::2]) / (self.height * self.width)

    def describe(self) -> str:
        """Return the region in words."""
        mask = self.mask
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        return (
            f"{self.share:.1%} of the picture, within x {columns[0]} to {columns[-1]} and y {rows[0]} to {rows[-1]} of "
            f"{self.width}x{self.height} (width x height)"
        )


def paint_over(image: NDArray[np.uint8], ignored: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a picture with the mean colour of the rest in place of what is ignored, for measures of whole pictures.

    Args:
        image: uint8 [H, W, 3].
        ignored: bool [H, W].
    """
    painted = image.copy()
    painted[ignored] = np.rint(image[~ignored].mean(axis=0)).astype(np.uint8)
    return painted


def kept_places(ignored: IgnoredRegion, height: int, width: int) -> NDArray[np.bool_]:
    """Return which positions of a coarser grid count, bool [height, width]: those that are covered by half or less.

    Args:
        ignored: at the model's size, whose sides are multiples of those of the grid.
        height: of the grid.
        width: of the grid.
    """
    blocks = ignored.mask.reshape(height, ignored.height // height, width, ignored.width // width)
    return np.asarray(blocks.mean(axis=(1, 3)) <= 0.5)


def parse_polygon(text: str) -> Polygon:
    """Read a polygon such as `0.1,0.2 0.4,0.2 0.4,0.6`.

    Raises:
        UsageError: there are fewer than 3 points, or one is not two numbers from 0 to 1.
    """
    points = []
    for word in text.split():
        try:
            x, y = (float(part) for part in word.split(","))
        except ValueError:
            x = y = float("nan")
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise UsageError(
                f"the polygon {text!r} has the point {word!r}; expected x,y as shares of width and height from 0 to 1, "
                "such as 0.1,0.25"
            )
        points.append((x, y))
    if len(points) < 3:
        raise UsageError(
            f"the polygon {text!r} has {len(points)} points; expected 3 or more, such as '0,0 0.2,0 0.2,0.1'"
        )
    return tuple(points)


def draw_region(
    height: int, width: int, polygons: Sequence[Polygon] = (), mask: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return what is ignored at the model's size, bool [height, width]: pixels that are covered by more than half.

    Args:
        height: of the model's picture.
        width: likewise.
        polygons: each is ignored as a whole.
        mask: bool [H, W] of any size, true where the picture is ignored; it is resized as a picture is.
    """
    ignored = np.zeros((height, width), dtype=np.bool_)
    finer = max(2, min(_FINER, _MOST_STEPS // max(height, width)))
    if mask is not None:
        # Nearest to the finer grid, then by area: each pixel counts by the share of it that is covered.
        fine = cv2.resize(mask.astype(np.uint8), (width * finer, height * finer), interpolation=cv2.INTER_NEAREST_EXACT)
        ignored |= _mostly(np.asarray(fine), height, width)
    for polygon in polygons:
        canvas = np.zeros((height * finer, width * finer), dtype=np.uint8)
        corners = np.array(polygon) * (width * finer, height * finer) - 0.5
        # With 8 bits for fractions of a step.
        cv2.fillPoly(canvas, [np.rint(corners * 256).astype(np.int32)], 1, shift=8)
        ignored |= _mostly(canvas, height, width)
    return ignored


def _mostly(fine: NDArray[np.uint8], height: int, width: int) -> NDArray[np.bool_]:
    finer = fine.shape[0] // height
    return np.asarray(fine.reshape(height, finer, width, finer).mean(axis=(1, 3)) > 0.5)
