"""Whether a picture is fit to be judged: its light, its sharpness and its place, compared with those of good parts.

A network says how unlike good parts a picture is, not whether it shows a part at all: a covered lens gives an even
picture, which may well score as normal. So a few measures are taken of each prepared picture, at one small size
(`vae_edge.gate_measures`), and their ranges are learnt from good parts (`vae_edge.gate_fitting`). A picture outside a
range is not inspectable.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from vae_edge.gate_measures import MEASURES, MEASURES_VERSION, PLACE_SIDE, Look, MeanPicture
from vae_edge.records import Record

_BY_NAME = {measure.name: measure for measure in MEASURES}
_N_ANYWHERE = len(MEASURES) - 2
"""Measures that need no mean picture."""
_PLACE_BYTES = PLACE_SIDE * PLACE_SIDE


class MeasureRange(Record):
    """The range of one measure within which a picture is inspectable."""

    measure: str
    """A name of `MEASURES`, of the gate's version."""
    low: float | None = None
    """Smallest value; None: any."""
    high: float | None = None
    """Largest value; None: any."""

    @model_validator(mode="after")
    def _check(self) -> MeasureRange:
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

    measures_version: int = Field(default=1, ge=1)
    """Which measures the ranges are of: see `MEASURES_VERSION`. Version 1 was never released, and wrote no number."""
    rejection_rate_requested: float = Field(gt=0, lt=1)
    rejection_rate: float = Field(gt=0, lt=1)
    n_normals: int = Field(ge=1)
    """Good parts that were held out for the rate."""
    n_fitted: int = Field(ge=1)
    """Other good parts, from which the measures' usual ranges come."""
    ranges: tuple[MeasureRange, ...]
    mean_picture: str | None = Field(default=None, max_length=8192)
    """The mean of good parts, 64x64 grey values in Base64; None: the parts do not lie at the same place."""
    displaced_below: float | None = None
    """Likeness below which a displacement is looked for, which takes longer than all the rest; None: always."""

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
        if not self.is_current:
            return self  # Nothing is known of them, and they are not used.
        for each in self.ranges:
            if each.measure not in _BY_NAME:
                raise ValueError(f"there is no measure {each.measure!r}; expected {', '.join(_BY_NAME)}")
        names = [each.measure for each in self.ranges]
        expected = [m.name for m in (MEASURES[:_N_ANYWHERE] if self.mean_picture is None else MEASURES)]
        if names != expected:
            raise ValueError(f"the ranges are those of {', '.join(names) or 'nothing'}; expected {', '.join(expected)}")
        return self

    @property
    def is_current(self) -> bool:
        """Whether the ranges are of this version's measures; else they must not be used."""
        return self.measures_version == MEASURES_VERSION

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
        below = math.inf if self.displaced_below is None else self.displaced_below
        return MeanPicture(mean.reshape(PLACE_SIDE, PLACE_SIDE), below)

    @cached_property
    def _limits(self) -> tuple[tuple[float, float], ...]:
        return tuple(
            (-math.inf if each.low is None else each.low, math.inf if each.high is None else each.high)
            for each in self.ranges
        )

    def problems(self, look: Look) -> tuple[str, ...]:
        """Return a sentence for each measure of a picture that is outside its range; none: it is inspectable."""
        values = values_of(look, self._compared_with)
        for value, (low, high) in zip(values, self._limits, strict=True):
            if not low <= value <= high:
                break
        else:
            return ()
        sentences = (each.problem(value) for each, value in zip(self.ranges, values, strict=True))
        return tuple(sentence for sentence in sentences if sentence is not None)


def gate_in_force(gate: GateRecord | None) -> GateRecord | None:
    """Return a gate, or None where its ranges are of other measures than this version's."""
    return gate if gate is not None and gate.is_current else None


def describe_gate(gate: GateRecord | None) -> str:
    """Return in words how often a good picture is not inspectable, or that there is no gate."""
    if gate is None:
        return "never: there is no gate (the bundle is of an earlier version, or there were too few good parts)"
    if not gate.is_current:
        return (
            "never: the gate is of another version of vae-edge (vae-edge verify BUNDLE --data NORMALS learns it again)"
        )
    return gate.promise


def values_of(look: Look, mean: MeanPicture | None) -> Sequence[float]:
    """Return the values of all measures, those of the place only where there is a mean picture."""
    return look.values if mean is None else (*look.values, *mean.compare(look.place, (look.values[0], look.values[1])))


def encode_mean_picture(mean: NDArray[np.uint8]) -> str:
    """Return a mean picture, uint8 [64, 64], as the record holds it."""
    return base64.b64encode(np.ascontiguousarray(mean).tobytes()).decode()
