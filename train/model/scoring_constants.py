"""Measuring on held-out normals what the scoring divides by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.errors import InputError
from vae_edge.platform.work import Progress
from vae_edge.train.data.inspection_set import spread_places
from vae_edge.train.model.anomaly_graph import (
    MapMaker,
    Reconstructed,
    Reconstruction,
    Scorer,
    ScoringConstants,
    images_at_a_time,
    pool,
)
from vae_edge.train.model.input_settings import InputSettings
from vae_edge.train.model.kept import KeptPlaces
from vae_edge.train.model.network import Vae
from vae_edge.train.model.residuals import Smoothing, mahalanobis_whitening
from vae_edge.train.model.scoring import Latent, MapSettings, ScoringSettings

_SCALE_FLOOR = 0.3
"""Share of the median scale that is added to every pixel's: see `PixelStatistics`."""

MOST_FITTED = 300
"""Images that the network was fitted on which count for each pixel's statistics, at most."""

_LOW_QUANTILE, _HIGH_QUANTILE = 0.5, 0.9


@dataclass
class PixelStatistics:
    """Mean and spread of one map at each pixel, gathered batch by batch.

    Both are blurred as widely as the residual was, since over a few dozen images they are noisy, and 0.3 of the median
    scale is added to the scale: a pixel that never moved in a few images must not shout at the first speck of dust.
    """

    total: Tensor
    total_squares: Tensor
    n: int = 0

    @classmethod
    def empty(cls, height: int, width: int) -> PixelStatistics:
        """Return statistics over no image."""
        size = (1, 1, height, width)
        return cls(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64))

    def add(self, maps: Tensor) -> None:
        """Take in float32 [N, 1, H, W]."""
        values = maps.double()
        self.total += values.sum(dim=0, keepdim=True)
        self.total_squares += values.square().sum(dim=0, keepdim=True)
        self.n += len(maps)

    def mean_and_scale(self, settings: MapSettings, kept: KeptPlaces | None = None) -> tuple[Tensor, Tensor]:
        """Return what is subtracted and what is divided by, float32 [1, 1, H, W]; 0 and 1 where it is ignored."""
        height, width = self.total.shape[2:]
        blur = Smoothing(max(settings.smoothing_sigma * min(height, width), 0.5), height, width).double()
        mean: Tensor = blur(self.total / self.n)
        # The mean square of (residual - mean), so that what the blur took from the mean is in the scale.
        spread = (self.total_squares - 2 * mean * self.total) / self.n + mean.square()
        scale = blur(spread.clamp_min(0)).clamp_min(0).sqrt()
        median = scale.median() if kept is None else kept.of(scale).median()
        scale = (scale + _SCALE_FLOOR * median).clamp_min(1e-6)
        if kept is not None:
            mean, scale = mean.where(kept.places, 0), scale.where(kept.places, 1)
        return mean.float(), scale.float()


def fit_scoring_constants(
    vae: Vae,
    settings: ScoringSettings,
    images: NDArray[np.uint8],
    *,
    input_settings: InputSettings | None = None,
    fitted: NDArray[np.uint8] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> ScoringConstants:
    """Measure on normals what each part of a scoring is normalized by.

    Per pixel: `PixelStatistics`. Where several parts are fused each is brought to one scale by two quantiles of its own
    scores, as EfficientAD does with its maps (Batzner et al., WACV 2024): the median becomes 0, the 0.9-quantile 1.
    Both normalizations are one subtraction and one division in the graph.

    Args:
        vae: trained, in any mode.
        settings: the scoring.
        images: uint8 [n, H, W, 3], normal images that the network was not fitted on and that set no threshold.
        fitted: uint8 [m, H, W, 3], normal images that it was fitted on. At most 300 of them, spread evenly, count for
            each pixel's mean and deviation too: the network has seen windows of them, so their residual is a little too
            small everywhere, but they show many more parts, and where a residual is usual is what matters. On the
            magnetic tiles 45 held-out images of 8 parts gave an AUROC of 0.78 to 0.83, these with the others 0.87. The
            units of fused parts are those of `images` alone.
        input_settings: how an image becomes the input; None: as it is.
        batch_size: images at a time; None: what fits.
        progress: called with images done and in all.

    Raises:
        InputError: fewer than 2 images where the scoring needs some.
    """
    neutral = ScoringConstants.neutral(settings)
    if not settings.needs_normals:
        return neutral
    if len(images) < 2:
        raise InputError(f"there are {len(images)} held-out normals to normalize the residual; expected at least 2")
    input_settings = input_settings or InputSettings.of(vae)
    reconstruct = Reconstruction(vae, input_settings, settings.latent)
    scorer = Scorer(settings, neutral, input_settings)
    step = batch_size or images_at_a_time(input_settings)
    for_pixels = images if fitted is None else np.concatenate([images, some_fitted(fitted)])
    report = _Passes(progress, len(for_pixels) + (len(images) if settings.is_fused else 0))

    # A ModuleList knows no more of its items than that they are modules.
    statistics = [PixelStatistics.empty(*cast(MapMaker, maker).size) for maker in scorer.makers]
    latents: list[Tensor] = []
    with torch.inference_mode():
        for seen in _reconstructed(reconstruct, for_pixels, step, report):
            for made, gathered in zip(_maps(scorer, seen), statistics, strict=True):
                gathered.add(made)
            if seen.latents is not None and settings.latent is Latent.DISTANCE:
                latents.append(seen.latents)
        constants = _per_pixel(settings, statistics, [cast(MapMaker, maker).kept for maker in scorer.makers])
        if not settings.is_fused:
            return constants
        latent = {}
        if settings.latent is Latent.DISTANCE:
            latent["mean"], latent["whitening"] = mahalanobis_whitening(torch.cat(latents))
        neutral_latent = latent | {"center": torch.zeros(1), "unit": torch.ones(1)}
        scorer = Scorer(settings, ScoringConstants(constants.means, constants.scales, neutral_latent), input_settings)
        scores: list[list[Tensor]] = [[] for _ in settings.maps]
        terms: list[Tensor] = []
        for seen in _reconstructed(reconstruct, images, step, report):
            for i, made in enumerate(_maps(scorer, seen)):
                normalized = ((made - constants.means[i]) / constants.scales[i]).flatten(1, 2)
                scores[i].append(pool(normalized, settings.maps[i], cast(MapMaker, scorer.makers[i]).kept))
            if settings.latent is not Latent.NONE:
                terms.append(scorer.latent_term(seen).reshape(input_settings.tiling.n_tiles, -1).amax(dim=0))
    means, scales = [], []
    for i, (mean, scale) in enumerate(zip(constants.means, constants.scales, strict=True)):
        center, unit = center_and_unit(torch.cat(scores[i]).numpy())
        # ((m - mean) / scale - center) / unit in one step.
        means.append(mean + center * scale)
        scales.append(scale * unit)
    if settings.latent is not Latent.NONE:
        center, unit = center_and_unit(torch.cat(terms).numpy())
        latent |= {"center": torch.tensor([center]), "unit": torch.tensor([unit])}
    return ScoringConstants(tuple(means), tuple(scales), latent)


def some_fitted(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return at most 300 of the images, uint8 [n, H, W, 3], spread evenly over them."""
    return images[spread_places(len(images), MOST_FITTED)]


def center_and_unit(scores: NDArray[Any]) -> tuple[float, float]:
    """Return the median of normals' scores, float [n], and the distance from it to their 0.9-quantile, above 0."""
    low, high = (float(value) for value in np.quantile(scores.astype(np.float64), (_LOW_QUANTILE, _HIGH_QUANTILE)))
    return low, max(high - low, 1e-3 * abs(low), 1e-6)


def _per_pixel(
    settings: ScoringSettings, statistics: list[PixelStatistics], kept: list[KeptPlaces | None]
) -> ScoringConstants:
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    pairs = [
        gathered.mean_and_scale(each, places) if each.per_pixel else (zero, one)
        for each, gathered, places in zip(settings.maps, statistics, kept, strict=True)
    ]
    return ScoringConstants(tuple(mean for mean, _ in pairs), tuple(scale for _, scale in pairs))


def _maps(scorer: Scorer, seen: Reconstructed) -> Iterator[Tensor]:
    """Return each map before its normalization by normals, float32 [N, 1, H, W]."""
    residuals = {kind: compare(seen.pixels, seen.reconstruction) for kind, compare in scorer.residuals.items()}
    for maker, each in zip(scorer.makers, scorer.settings.maps, strict=True):
        yield maker(residuals[each.residual.value])


def _reconstructed(
    reconstruct: Reconstruction, images: NDArray[np.uint8], step: int, report: Callable[[int], None]
) -> Iterator[Reconstructed]:
    for start in range(0, len(images), step):
        batch = images[start : start + step]
        yield reconstruct(torch.from_numpy(batch))
        report(len(batch))


class _Passes:
    """Progress over several passes of the same images."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def __call__(self, n_images: int) -> None:
        self._done += n_images
        if self._progress is not None:
            self._progress(self._done, self._total)
