"""How a network is trained: everything that costs nothing on the device. Loads no torch.

The reference configuration is trained as published: Adam at a constant 2e-4, whole images, nothing else. The other
presets' defaults are what `benchmarks/DETECTION.md` was measured with.
"""

from __future__ import annotations

import math
from enum import Enum

from pydantic import Field

from vae_edge.records import Record


class Schedule(str, Enum):
    """How the learning rate moves."""

    CONSTANT = "constant"
    ONE_CYCLE = "one-cycle"
    """Up linearly over the first tenth of the steps, then down to nothing along a cosine (Smith and Topin 2018)."""

    def __str__(self) -> str:
        return self.value


class Augmentation(str, Enum):
    """What is changed at random in each window of an image."""

    NONE = "none"
    FLIPS = "flips"
    """Mirrored left to right and upside down, half of the time each: for surfaces without an orientation."""
    LIGHT = "light"
    """Brighter or darker, with more or less contrast, by about a tenth."""

    def __str__(self) -> str:
        return self.value


class Recipe(Record):
    """How a network is trained."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Adam's; with `one-cycle` the largest."""
    schedule: Schedule = Schedule.CONSTANT
    kl_warmup: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps over which the weight of the Kullback-Leibler term grows from 0 (Bowman et al. 2016)."""
    averaging: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of the weights that is kept in place of the last ones, such as 0.999 (Polyak and
    Juditsky 1992); 0: none."""
    augmentation: tuple[Augmentation, ...] = ()

    def rate_at(self, step: int, n_steps: int) -> float:
        """Return the share of the learning rate at a step, 0 to 1."""
        if self.schedule is Schedule.CONSTANT:
            return 1.0
        rise = max(1, n_steps // 10)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min((step - rise) / max(n_steps - rise, 1), 1.0)))

    def kl_share_at(self, step: int, n_steps: int) -> float:
        """Return the share of the Kullback-Leibler term's weight at a step, 0 to 1."""
        if self.kl_warmup == 0:
            return 1.0
        return min((step + 1) / max(self.kl_warmup * n_steps, 1), 1.0)


REFERENCE_RECIPE = Recipe()
"""The published one."""

EDGE_RECIPE = Recipe(learning_rate=1e-3, schedule=Schedule.ONE_CYCLE)
"""A schedule that ends at nothing gets along with 1500 steps of tiles, or 700 of whole images."""
