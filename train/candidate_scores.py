"""The scores that every single map would give a set of images, from one run of the network over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.progress import Progress
from vae_edge.train.anomaly_graph import (
    MapMaker,
    Reconstruction,
    map_step,
    n_pooled,
)
from vae_edge.train.residuals import ResidualMap
from vae_edge.train.scoring import MAP_SIGMA, Level, MapSettings, Pooling, Residual
from vae_edge.train.scoring_constants import PixelStatistics

N_FOLDS = 2


class _Base:
    """What several candidates have in common: residual, smoothing and level; they differ in what follows."""

    def __init__(self, settings: MapSettings, height: int, width: int) -> None:
        self.residual = settings.residual
        # As in a fusion whose map is smoothed, which the compositions to choose from are.
        self.maker = MapMaker(settings, height, width, map_step(settings, MAP_SIGMA, height, width)).eval()
        self.statistics = [PixelStatistics.empty(*self.maker.size) for _ in range(N_FOLDS + 1)]
        self.settings = settings

    def normals_of_other_folds(self, fold: int) -> tuple[Tensor, Tensor]:
        """Return mean and scale from the normals that are not in a fold, those of neither among them."""
        merged = PixelStatistics.empty(*self.statistics[0].total.shape[2:])
        for other, gathered in enumerate(self.statistics):
            if other != fold:
                merged.total += gathered.total
                merged.total_squares += gathered.total_squares
                merged.n += gathered.n
        return merged.mean_and_scale(self.settings)


def score_candidates(
    reconstruct: Reconstruction,
    image_size: tuple[int, int],
    candidates: Sequence[MapSettings],
    normals: NDArray[np.uint8],
    images: NDArray[np.uint8],
    folds: NDArray[np.int64],
    *,
    fitted: NDArray[np.uint8] | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Score images by every candidate; each image's pixels are normalized by the normals of the other fold alone.

    So no image, and no defect pasted on it, is measured by statistics that it is part of itself.

    Args:
        reconstruct: the network with what is around it.
        image_size: height and width.
        candidates: single maps.
        normals: uint8 [n, H, W, 3], at least one in each fold; number i is in fold i modulo 2.
        images: uint8 [m, H, W, 3], what is scored.
        folds: int64 [m], the fold of each image, that of the normal it was made from.
        fitted: uint8 [k, H, W, 3], normals that the network was fitted on, which count in both folds; see
            `fit_scoring_constants`.
        batch_size: images at a time.
        progress: called with images done and in all.

    Returns:
        float64 [m, candidates].
    """
    height, width = image_size
    kinds = list(dict.fromkeys(each.residual for each in candidates))
    compare = {kind: ResidualMap(kind, height, width).eval() for kind in kinds}
    bases: dict[tuple[Residual, float, Level], _Base] = {}
    for each in candidates:
        bases.setdefault(_base_of(each), _Base(each, height, width))
    # The last group is in neither fold, so that it counts in both.
    groups = [normals[fold::N_FOLDS] for fold in range(N_FOLDS)] + [normals[:0] if fitted is None else fitted]
    total, done = sum(map(len, groups)) + len(images), 0
    scores = np.empty((len(images), len(candidates)))
    columns: dict[tuple[Residual, float, Level], list[int]] = {}
    for column, each in enumerate(candidates):
        columns.setdefault(_base_of(each), []).append(column)

    def residuals_of(batch: NDArray[np.uint8]) -> dict[Residual, Tensor]:
        seen = reconstruct(torch.from_numpy(batch))
        return {kind: compare[kind](seen.pixels, seen.reconstruction) for kind in kinds}

    with torch.inference_mode():
        for number, group in enumerate(groups):
            for batch in _batches(group, batch_size):
                residuals = residuals_of(batch)
                for base in bases.values():
                    base.statistics[number].add(base.maker(residuals[base.residual]))
                done += len(batch)
                if progress is not None:
                    progress(done, total)
        for fold in range(N_FOLDS):
            members = np.flatnonzero(folds == fold)
            constants = {key: base.normals_of_other_folds(fold) for key, base in bases.items()}
            for start in range(0, len(members), batch_size):
                chosen = members[start : start + batch_size]
                residuals = residuals_of(images[chosen])
                for key, base in bases.items():
                    made = base.maker(residuals[base.residual])
                    wanted = [candidates[column] for column in columns[key]]
                    scores[np.ix_(chosen, np.array(columns[key]))] = _pooled(made, constants[key], wanted)
                done += len(chosen)
                if progress is not None:
                    progress(done, total)
    return scores


def _pooled(made: Tensor, constants: tuple[Tensor, Tensor], wanted: Sequence[MapSettings]) -> NDArray[np.float64]:
    """Return the scores, float64 [N, wanted], of a map with and without normalization per pixel."""
    result = np.empty((len(made), len(wanted)))
    mean, scale = constants
    for per_pixel in {each.per_pixel for each in wanted}:
        values = ((made - mean) / scale if per_pixel else made).flatten(1)
        height, width = made.shape[2:]
        counts = {
            column: 1 if each.pooling is Pooling.MAX else n_pooled(each.top_fraction, height, width)
            for column, each in enumerate(wanted)
            if each.per_pixel is per_pixel and each.pooling is not Pooling.MEAN
        }
        if counts:
            # One search for the largest serves every share.
            sums = torch.topk(values, max(counts.values()), dim=1).values.double().cumsum(dim=1)
            for column, count in counts.items():
                result[:, column] = (sums[:, count - 1] / count).numpy()
        for column, each in enumerate(wanted):
            if each.per_pixel is per_pixel and each.pooling is Pooling.MEAN:
                result[:, column] = values.mean(dim=1).numpy()
    return result


def _base_of(settings: MapSettings) -> tuple[Residual, float, Level]:
    return settings.residual, settings.smoothing_sigma, settings.level


def _batches(images: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]
