"""How far features are from those of good parts at the same place of the picture.

For parts that lie at the same place in all pictures. There a VAE that sees one position at a time accepts a component
that belongs elsewhere: it is normal, but not here. At each position the features of good parts, along their main
directions, get a normal distribution of their own, and what counts is the Mahalanobis distance from it: Defard et al.,
"PaDiM: a patch distribution modeling framework for anomaly detection and localization", ICPR 2021. There the directions
are random channels; here they are principal components over all positions, so that 32 keep about 0.8 of the variance.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vae_edge.train.features.network import InChannelUnits

_MOST_UNITS = 40.0
"""Limit of a whitened direction's share of the distance: as a sum of squares it stays in the range of FP16."""


@dataclass(frozen=True)
class PlaceConstants:
    """What good parts say about each position; K directions of C channels."""

    directions: Tensor
    """float32 [K, C, 1, 1], from channels in units of their deviations to directions of unit variance."""
    means: Tensor
    """float32 [1, h * w, 1, K], of the directions at each position."""
    whitening: Tensor
    """float32 [h * w, K, K]: x @ whitening has a squared length with an expected value of 1 on good parts."""

    def tensors(self) -> dict[str, Tensor]:
        """Return them by name."""
        return {"directions": self.directions, "means": self.means, "whitening": self.whitening}


class PlaceDistance(InChannelUnits):
    """From features to the squared Mahalanobis distance of each position, float32 [N, 1, h, w], 0 or more.

    Args:
        constants: of good parts.
        channel_mean: see `InChannelUnits`.
        channel_deviation: likewise.
    """

    means: Tensor
    whitening: Tensor

    def __init__(self, constants: PlaceConstants, channel_mean: Tensor, channel_deviation: Tensor) -> None:
        super().__init__(channel_mean, channel_deviation)
        n_directions, n_channels = constants.directions.shape[:2]
        self.constants = constants
        self.directions = nn.Conv2d(n_channels, n_directions, 1, bias=False)
        self.directions.load_state_dict({"weight": constants.directions})
        self.register_buffer("means", constants.means)
        self.register_buffer("whitening", constants.whitening)
        self.eval().requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Measure float32 [N, C, h, w]; its expected value on good parts is 1."""
        height, width = features.shape[2:]
        found = self.directions(self.in_units(features))
        at_places = found.flatten(2).permute(0, 2, 1).unsqueeze(2) - self.means
        whitened = (at_places @ self.whitening).clamp(-_MOST_UNITS, _MOST_UNITS)
        distance: Tensor = (whitened * whitened).sum(dim=3)
        return distance.permute(0, 2, 1).reshape(-1, 1, height, width)
