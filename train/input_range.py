"""The range of a pixel's value where it enters the network. Loads no torch.

Networks of this package are trained on -1 to 1, the range of the Tanh that ends the decoder. Others, whose weights are
taken over, were trained on images normalized otherwise.
"""

from __future__ import annotations

from enum import Enum

from pydantic import model_validator

from vae_edge.errors import UsageError
from vae_edge.records import Record


class InputRange(Record):
    """(x - mean) / deviation for each channel of RGB, where x is 0 to 1."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Above 0."""

    @model_validator(mode="after")
    def _is_above_zero(self) -> InputRange:
        if not all(value > 0 for value in self.deviation):
            raise UsageError(f"images are divided by {self.deviation}; expected three numbers above 0")
        return self


SYMMETRIC = InputRange()
"""-1 to 1."""

IMAGENET = InputRange(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's images: what anomalib's models get unless they are told otherwise."""


class KnownRange(str, Enum):
    """Names of ranges, for the command line."""

    IMAGENET = "imagenet"
    SYMMETRIC = "symmetric"

    __str__ = str.__str__


RANGES = {KnownRange.IMAGENET: IMAGENET, KnownRange.SYMMETRIC: SYMMETRIC}
