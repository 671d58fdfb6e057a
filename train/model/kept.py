"""Leaving an ignored region out inside the graph, with products and sums of constants, which every runtime has.

Pixels there are painted over with the mean of the others before anything sees them, so that no output depends on them
at all. Maps are 0 there, and what is pooled or averaged is the kept positions alone. A position of a coarser map is
ignored if more than half of it is. Without a region none of this is in the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_edge.ignored_region import IgnoredRegion, kept_places

_BELOW = 3e4
"""Subtracted from ignored positions before the largest are searched: below every score, and in the range of FP16."""


class Painting(nn.Module):
    """Paints the ignored pixels with the mean of the kept ones.

    Args:
        ignored: at the picture's size.
    """

    kept: Tensor
    paint: Tensor

    def __init__(self, ignored: IgnoredRegion) -> None:
        super().__init__()
        kept = torch.from_numpy(ignored.kept).float()[None, None]
        self.register_buffer("kept", kept)
        # The mean over all pixels, with 0 for the ignored ones, is smaller than the mean of the kept ones.
        self.register_buffer("paint", (1 - kept) / kept.mean())

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 [N, C, H, W] for the same."""
        kept = pixels * self.kept
        return kept + kept.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True) * self.paint


class KeptPlaces(nn.Module):
    """The positions of a map that count.

    Args:
        ignored: at the picture's size.
        height: of the map.
        width: of the map.
    """

    share: Tensor
    below: Tensor

    def __init__(self, ignored: IgnoredRegion, height: int, width: int) -> None:
        super().__init__()
        kept = kept_places(ignored, height, width)
        self.n = int(kept.sum())
        """How many there are, 1 or more: see `check_leaves_something`."""
        self.places = torch.from_numpy(kept)
        """bool [height, width]."""
        self.whole = height * width / max(self.n, 1)
        share = self.places.float()[None, None]
        self.register_buffer("share", share)
        self.register_buffer("below", (share - 1) * _BELOW)

    def only(self, values: Tensor) -> Tensor:
        """Set float32 [N, 1, h, w] to 0 at ignored positions."""
        return values * self.share

    def to_pool(self, values: Tensor) -> Tensor:
        """Make ignored positions of float32 [N, 1, h, w] smaller than every other."""
        return values * self.share + self.below

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of float32 [N, 1, h, w] over the kept positions, [N, 1, 1, 1]."""
        return (values * self.share).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True) * self.whole

    def of(self, values: Tensor) -> Tensor:
        """Return the kept positions of [..., h, w] as [..., n]; not for the graph."""
        return values[..., self.places]


def kept_or_none(ignored: IgnoredRegion | None, height: int, width: int) -> KeptPlaces | None:
    """Return what counts of a map, or None where everything does."""
    return None if ignored is None else KeptPlaces(ignored, height, width)
