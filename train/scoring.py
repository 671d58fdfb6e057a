"""How a residual becomes a map and a score, as settings; `vae_edge.train.anomaly_graph` computes it. Loads no torch."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from vae_edge.records import Record

MAX_POOLED_PIXELS = 3840
"""TensorRT's largest k of TopK."""


class ScoringMethod(str, Enum):
    """The kinds of scoring that `ScoringSettings` describes."""

    NORMALIZED = "normalized"
    MSE = "mse"

    def __str__(self) -> str:
        return self.value


class ScoringSettings(Record):
    """How a residual becomes a map and a score.

    `normalized`: the absolute residual, averaged over the channels and smoothed by a Gaussian, minus its mean and
    divided by its standard deviation over held-out normals, pixel by pixel; the score is the mean of the map's largest
    values. `mse`: the squared residual is the map and its mean over the image is the score, as in the reference VAE.
    """

    method: ScoringMethod = ScoringMethod.NORMALIZED
    smoothing_sigma: float = Field(default=0.008, ge=0, le=0.1)
    """Standard deviation of the Gaussian, as a share of the image's shorter side; 0: no smoothing."""
    top_fraction: float = Field(default=0.0005, gt=0, le=1)
    """Share of the map's pixels whose mean is the score, at most 3840 pixels."""

    def describe(self) -> str:
        """Return the scoring in words."""
        if self.method is ScoringMethod.MSE:
            return "squared residual, averaged over the image"
        return (
            f"absolute residual, Gaussian smoothing of {self.smoothing_sigma:.3g} of the shorter side, normalized per "
            f"pixel by held-out normals, mean of the largest {self.top_fraction:.3%} of the map"
        )
