"""The compositions that `--scoring auto` chooses from, and the record of a choice. Loads no torch.

Maps, each good at something, and every fusion of up to three of them. Fusions are what keeps a choice safe: over
the image sets available no single map was near the best everywhere, and a fusion of a fine, a middle and a small one
was (`benchmarks/DETECTION.md`).
"""

from __future__ import annotations

from itertools import combinations

from vae_edge.records import Record
from vae_edge.train.model.scoring import (
    DEFAULT_SCORING,
    MAP_SIGMA,
    MSE_SCORING,
    NORMALIZED_SCORING,
    Level,
    MapSettings,
    Pooling,
    Residual,
    ScoringSettings,
)

MOST_FUSED = 3
"""Each further map costs time on the device, and the next one found little."""


def _map(residual: Residual, sigma: float, level: Level, top: float | None) -> MapSettings:
    pooling = Pooling.MAX if top is None else Pooling.TOP
    return MapSettings(
        residual=residual,
        smoothing_sigma=sigma,
        level=level,
        per_pixel=True,
        pooling=pooling,
        top_fraction=MapSettings().top_fraction if top is None else top,
    )


CANDIDATE_MAPS: tuple[MapSettings, ...] = (
    _map(Residual.GRADIENT, 0.008, Level.LOCAL, 0.005),  # thin lines, edges
    _map(Residual.GRADIENT, 0.008, Level.IMAGE, 0.005),
    _map(Residual.L1, 0.016, Level.IMAGE, 0.005),  # spots of some size
    _map(Residual.L2, 0.016, Level.IMAGE, 0.005),
    _map(Residual.L1, 0.008, Level.IMAGE, 0.0005),  # small spots
    _map(Residual.L1, 0.008, Level.NONE, 0.0005),
    _map(Residual.L2, 0.004, Level.IMAGE, None),  # specks
    _map(Residual.L1, 0.04, Level.IMAGE, 0.02),  # large faint places
    _map(Residual.SSIM, 0.008, Level.IMAGE, 0.005),  # texture
)

FUSED: tuple[ScoringSettings, ...] = tuple(
    ScoringSettings(maps=maps, map_sigma=MAP_SIGMA)
    for size in range(1, MOST_FUSED + 1)
    for maps in combinations(CANDIDATE_MAPS, size)
)

CANDIDATES: tuple[ScoringSettings, ...] = (
    DEFAULT_SCORING,
    *(each for each in (*FUSED, MSE_SCORING) if each not in (DEFAULT_SCORING, NORMALIZED_SCORING)),
    NORMALIZED_SCORING,
)
"""All of them, the one that the choice prefers first."""


class Ranked(Record):
    """One candidate of a choice and what it reached."""

    name: str
    auroc: float
    """Image AUROC, averaged over the strata of defects."""
    behind: float
    """How far behind the first one, AUROC."""
    standard_error: float
    """Of that difference, over defects and normals: below about three times this it may be chance."""


class ChoiceRecord(Record):
    """How light and scoring were chosen, and what the others reached."""

    judged_on: str
    """What the images were, in words."""
    network: tuple[Ranked, ...] = ()
    """The kinds of networks, best first; empty: it was given."""
    photometric: tuple[Ranked, ...] = ()
    """The kinds of evening out light, best first; empty: it was given."""
    scoring: tuple[Ranked, ...] = ()
    """The compositions, best first; empty: it was given."""
    n_compositions: int = 0
    """Compositions that were compared; the record holds the first ones."""
    because: tuple[str, ...] = ()
    """Why the chosen ones are not the first ones, or why nothing was compared."""
