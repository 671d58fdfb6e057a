"""The kinds of calibration that a training can be asked for. Loads nothing, for the command line's sake."""

from __future__ import annotations

from enum import Enum


class Calibration(str, Enum):
    """Where the scores come from that set the threshold."""

    AUTO = "auto"
    """`split` where enough good parts can be held out for the false-alarm rate asked for, else `cross`."""
    SPLIT = "split"
    """From good parts that are held out from the training: one training, and a proven rate."""
    CROSS = "cross"
    """From all good parts, each scored by a network trained without it: see `vae_edge.train.cross_conformal`."""

    def __str__(self) -> str:
        return self.value
