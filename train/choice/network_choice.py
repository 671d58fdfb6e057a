"""Whether a network on pixels, and the comparison by place, join the network on features: decided without labels.

Held-out normals get synthetic defects, as for the choice of a scoring (`vae_edge.train.choice.scoring_choice`), and are
scored by networks that have not seen them, with and without the map of the network on pixels.

Where the map of pixels finds anything, it joins. It is one of three in the mean. If d is how far a score moves on a
defect, in standard deviations of normals, and the map errs independently of the others, the mean of all has d of
(2 d_feature + d_pixel) / sqrt(5), which is more than d_feature for a d_pixel of a quarter of it. What is measured for
the mean itself decides only where it is clearly worse: synthetic defects are coarser than many real ones, which is what
features see best, and on image sets with real defects the mean found more than they promised
(`benchmarks/DETECTION.md`). Where parts lie at the same place in all pictures, features are compared by place
(`vae_edge.train.features.places`), by the same rule.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.train.choice.candidates import Ranked
from vae_edge.train.choice.scoring_choice import ChoiceSet, rank, standard_error, stratum_aurocs
from vae_edge.train.features.graph import FeatureGraph, FeatureScorer, to_pixels
from vae_edge.train.features.settings import MapSource
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.cores import on_each_core
from vae_edge.train.model.presets import Network, network_name

_FEATURE, _PLACES, _PIXEL = "feature", "places", "pixel"
_BY_PLACE, _BOTH, _BOTH_BY_PLACE = "feature and places", "both", "both and places"

_KINDS = {
    _FEATURE: {MapSource.FEATURES},
    _BY_PLACE: {MapSource.FEATURES, MapSource.PLACES},
    _BOTH: {MapSource.FEATURES, MapSource.PIXELS},
    _BOTH_BY_PLACE: {MapSource.FEATURES, MapSource.PLACES, MapSource.PIXELS},
    _PLACES: {MapSource.PLACES},
    _PIXEL: {MapSource.PIXELS},
}
"""Whose maps are in the mean."""

LEAST_SHARE = 0.25
"""Of the separation that features reach, what pixels alone have to reach: sqrt(5) - 2 and a little."""

MOST_LOSS = 0.03
"""AUROC on synthetic defects by which both together may be worse than features alone."""


@dataclass(frozen=True)
class NetworkRanking:
    """What the kinds of networks reached."""

    kinds: tuple[str, ...]
    """Their names; without places these are feature, both and pixel."""
    aurocs: NDArray[np.float64]
    """float64 [kinds, strata]."""
    by_normal: NDArray[np.float64]
    """float64 [kinds, normals], as in `ScoringRanking`."""

    @property
    def by_place(self) -> bool:
        """Whether features are compared with those of good parts at the same place."""
        return _BY_PLACE in self.kinds and self._joins(_PLACES, _FEATURE, _BY_PLACE)

    @property
    def chosen(self) -> Network:
        """`BOTH`, or `FEATURE` where pixels show too little, or clearly spoil what features show."""
        names = (_BY_PLACE, _BOTH_BY_PLACE) if self.by_place else (_FEATURE, _BOTH)
        return Network.BOTH if self._joins(_PIXEL, *names) else Network.FEATURE

    def _joins(self, alone: str, without: str, together: str) -> bool:
        one, before, after = (self.kinds.index(name) for name in (alone, without, together))
        reached = self.aurocs.mean(axis=1)
        error = standard_error(self.by_normal[before] - self.by_normal[after])
        loss = reached[before] - reached[after]
        is_blind = separation(reached[one]) < LEAST_SHARE * separation(reached[before])
        return not is_blind and not loss > max(MOST_LOSS, 2 * error)

    def records(self) -> tuple[Ranked, ...]:
        """Return all, best first."""
        return rank(list(self.kinds), self.aurocs, self.by_normal)

    def sentence(self) -> str:
        """Say what was chosen and why."""
        reached = ", ".join(f"{kind} {row.mean():.3f}" for kind, row in zip(self.kinds, self.aurocs, strict=True))
        return f"network: {network_name(self.chosen, self.by_place)}; AUROC on synthetic defects: {reached}"


def separation(auroc: float) -> float:
    """Return d, how far the mean score of defects is from that of normals in standard deviations, of an AUROC.

    For normal distributions of equal deviation: d = sqrt(2) * the quantile of the AUROC (Green and Swets, "Signal
    detection theory and psychophysics", 1966).

    >>> round(separation(0.76), 3), separation(0.5)
    (0.999, 0.0)
    """
    probability = torch.tensor(min(max(auroc, 1e-6), 1 - 1e-6), dtype=torch.float64)
    return float(2**0.5 * torch.special.ndtri(probability))


def choose_network(judge: FeatureGraph, choice_set: ChoiceSet, watcher: Watcher) -> NetworkRanking:
    """Compare a model on all sources with its parts.

    Args:
        judge: trained without the normals of the choice set, which its constants do not come from either.
        choice_set: what it is judged on.
        watcher: receives progress.
    """
    progress = watcher.progress_of("judging the networks")
    available = set(judge.settings.sources)
    kinds = tuple(kind for kind, sources in _KINDS.items() if sources <= available)
    scorers = [_part(judge, _KINDS[kind]) for kind in kinds]
    scores = np.empty((len(scorers), len(choice_set.images)))

    @torch.inference_mode()
    def score(image: NDArray[np.uint8]) -> list[float]:
        residuals = judge.residuals(to_pixels(torch.from_numpy(image[None])))
        return [float(scorer(residuals)[1]) for scorer in scorers]

    for number, found in enumerate(on_each_core(score, choice_set.images)):
        scores[:, number] = found
        progress(number + 1, len(choice_set.images))
    rows = [stratum_aurocs(row, choice_set) for row in scores]
    return NetworkRanking(kinds, np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]))


def _part(judge: FeatureGraph, sources: Set[MapSource]) -> FeatureScorer:
    """Return the scorer with the maps of some sources alone."""
    places = [i for i, each in enumerate(judge.settings.maps) if each.source in sources]
    constants = replace(
        judge.constants,
        means=tuple(judge.constants.means[i] for i in places),
        scales=tuple(judge.constants.scales[i] for i in places),
    )
    maps = tuple(judge.settings.maps[i] for i in places)
    return FeatureScorer(
        judge.settings.model_copy(update={"maps": maps}), constants, judge.image_size, judge.features.ignored
    ).eval()
