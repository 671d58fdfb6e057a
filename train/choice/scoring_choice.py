"""Which composition, and which way of evening out light, finds defects best: decided without labels, or by some.

Held-out normals get synthetic defects (`vae_edge.train.choice.synthetic_defects`); every candidate scores both, and its
figure is the image AUROC, averaged over kinds and sizes of defects, so that the easy ones do not decide. Such defects
are not the real ones, and a few dozen images are few: so the default stays unless another candidate is better by more
than three standard errors of the difference. That also keeps the choice the same under another random seed, unless the
data speak clearly.

The error is that of other defects and of other normals. Over defects alone it would be far too small: all of them are
compared with the same few dozen normals, whose chance they share, and with a single class it would be nothing. Three,
because the best of a hundred and more is compared with the default: of sets without any difference (normals in the
place of defects) the best led by 1.5 such errors at the median and by 2.5 at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.ignored_region import IgnoredRegion
from vae_edge.platform.work import Progress
from vae_edge.train.choice.candidates import CANDIDATES, Ranked
from vae_edge.train.choice.synthetic_defects import KINDS, SIZES, paste_defects
from vae_edge.train.data.inspection_set import spread_places
from vae_edge.train.model.anomaly_graph import MapMaker, Reconstruction, images_at_a_time, map_step, n_pooled
from vae_edge.train.model.input_settings import InputSettings
from vae_edge.train.model.kept import KeptPlaces
from vae_edge.train.model.network import Vae
from vae_edge.train.model.residuals import ResidualMap
from vae_edge.train.model.scoring import (
    DEFAULT_SCORING,
    MAP_SIGMA,
    Level,
    MapSettings,
    Pooling,
    Residual,
    ScoringSettings,
)
from vae_edge.train.model.scoring_constants import MOST_FITTED, PixelStatistics, center_and_unit
from vae_edge.wording import count

N_FOLDS = 2


class _Base:
    """What several candidates have in common: residual, smoothing and level; they differ in what follows."""

    def __init__(self, settings: MapSettings, height: int, width: int, ignored: IgnoredRegion | None) -> None:
        self.residual = settings.residual
        # As in a fusion whose map is smoothed, which the compositions to choose from are.
        step = map_step(settings, MAP_SIGMA, height, width)
        self.maker = MapMaker(settings, height, width, step, ignored).eval()
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
        return merged.mean_and_scale(self.settings, self.maker.kept)


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
        bases.setdefault(_base_of(each), _Base(each, height, width, reconstruct.ignored))
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
                    scores[np.ix_(chosen, np.array(columns[key]))] = _pooled(
                        made, constants[key], wanted, base.maker.kept
                    )
                done += len(chosen)
                if progress is not None:
                    progress(done, total)
    return scores


def _pooled(
    made: Tensor, constants: tuple[Tensor, Tensor], wanted: Sequence[MapSettings], kept: KeptPlaces | None
) -> NDArray[np.float64]:
    """Return the scores, float64 [N, wanted], of a map with and without normalization per pixel."""
    result = np.empty((len(made), len(wanted)))
    mean, scale = constants
    for per_pixel in {each.per_pixel for each in wanted}:
        normalized = (made - mean) / scale if per_pixel else made
        values = normalized.flatten(1) if kept is None else kept.of(normalized).flatten(1)
        counts = {
            column: 1 if each.pooling is Pooling.MAX else n_pooled(each.top_fraction, 1, values.shape[1])
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


FEWEST_NORMALS = 8
"""Held-out normals below which nothing is compared: the figures would be chance."""

MOST_NORMALS = 40
_DEFECTIVE_WANTED = 6 * len(KINDS) * len(SIZES)

_SHARE_OF_TRAINING = 1 / 12
"""Of the work of the training, what one comparison may run the network for. Two ways of evening out light are judged
and the scorings compared, and residuals come on top: on tiles together three tenths of a training by AMX, and less of a
slower one."""

_STEP_IN_PASSES = 3
"""Runs of a network that a step of its training is worth: forwards, and backwards twice that."""

_FEWEST_FITTED = 20

_CLEARLY = 3.0
"""Standard errors by which a candidate has to be better than the default."""

_KEPT = 12


@dataclass(frozen=True)
class ChoiceSet:
    """Images to choose by."""

    normals: NDArray[np.uint8]
    """uint8 [n, H, W, 3], normals that the network was not fitted on: what scores are normalized by. Number i is in
    fold i modulo 2."""
    images: NDArray[np.uint8]
    """uint8 [m, H, W, 3], what is scored."""
    strata: tuple[str | None, ...]
    """Of each anomalous image the stratum that its result is averaged in; None for a normal one."""
    folds: NDArray[np.int64]
    """int64 [m], the fold whose normals an image is made from, and must not be normalized by."""
    description: str
    """In words."""
    n_fitted: int = MOST_FITTED
    """Images that the network was fitted on, spread evenly, that count in the statistics of each pixel, at most."""


@dataclass(frozen=True)
class Effort:
    """How many images a comparison looks at, so that all of them together take less time than the training."""

    n_defective: int
    """Synthetic defects; at least one of each kind and size."""
    n_fitted: int
    """Images that the network was fitted on, for the statistics of each pixel."""

    @classmethod
    def within(cls, n_windows_trained: int, n_tiles: int, n_normals: int) -> Effort:
        """Return what suits a training.

        Args:
            n_windows_trained: images, or windows of them, in all its steps.
            n_tiles: windows that an image is cut into where it is scored.
            n_normals: held-out normals; at most 40 count.

        >>> Effort.within(1500 * 36, 42, 40), Effort.within(700 * 24, 1, 40)
        (Effort(n_defective=181, n_fitted=60), Effort(n_defective=264, n_fitted=300))
        """
        n_images = int(_SHARE_OF_TRAINING * _STEP_IN_PASSES * n_windows_trained) // n_tiles
        # Each normal is measured, and scored.
        left = n_images - 2 * min(n_normals, MOST_NORMALS)
        n_fitted = min(max(left // 4, _FEWEST_FITTED), MOST_FITTED)
        n_strata = len(KINDS) * len(SIZES)
        return cls(min(max(left - n_fitted, n_strata), _DEFECTIVE_WANTED), n_fitted)


@dataclass(frozen=True)
class ScoringRanking:
    """What the candidates reached."""

    chosen: ScoringSettings
    aurocs: NDArray[np.float64]
    """float64 [candidates, strata]."""
    by_normal: NDArray[np.float64]
    """float64 [candidates, normals]: what share of the anomalous images score above a normal one, averaged over strata;
    its mean over the normals is the candidate's figure."""
    candidates: tuple[ScoringSettings, ...]
    default: int
    """Index of the candidate that stays unless another is clearly better."""

    @property
    def best(self) -> float:
        """The chosen one's figure."""
        return float(self.aurocs[self.candidates.index(self.chosen)].mean())

    def records(self) -> tuple[Ranked, ...]:
        """Return the first ones, and the plain ones wherever they are, for the run's record."""
        names = [str(each) for each in self.candidates]
        ranked = rank(names, self.aurocs, self.by_normal)
        plain = {names[self.default], str(self.chosen), names[-1], names[-2]}
        return (*ranked[:_KEPT], *(each for each in ranked[_KEPT:] if each.name in plain))

    def sentence(self) -> str:
        """Say what was chosen and why."""
        index = self.candidates.index(self.chosen)
        default = float(self.aurocs[self.default].mean())
        if index == self.default:
            top = self.records()[0]
            if top.name == str(self.chosen):
                return f"the default scoring is the best of {len(self.candidates)}: AUROC {default:.3f}"
            return (
                f"the default scoring stays: AUROC {default:.3f}, and none of {len(self.candidates)} compositions is "
                f"clearly better (the first reaches {top.auroc:.3f})"
            )
        return f"scoring {self.chosen}: AUROC {self.best:.3f}, the default reaches {default:.3f}"


def paste_on(
    normals: NDArray[np.uint8],
    *,
    seed: int,
    ignored: IgnoredRegion | None = None,
    effort: Effort | None = None,
) -> ChoiceSet:
    """Make a set to choose by from held-out normals alone.

    Args:
        normals: uint8 [n, H, W, 3], 1 or more; at most 40 are used, spread evenly.
        seed: of the defects.
        ignored: where there are none.
        effort: how many there are, rounded up to as many on each normal, two at least; None: 264, six of each kind and
            size.
    """
    effort = effort or Effort(_DEFECTIVE_WANTED, MOST_FITTED)
    normals = normals[spread_places(len(normals), MOST_NORMALS)]
    n = len(normals)
    pasted = paste_defects(normals, max(-(-effort.n_defective // n), 2), seed=seed, ignored=ignored)
    own = np.arange(n) % N_FOLDS
    return ChoiceSet(
        normals,
        np.concatenate([normals, pasted.images]),
        (*(None for _ in range(n)), *pasted.strata),
        np.concatenate([own, own[list(pasted.sources)]]),
        f"{n} held-out normals and {len(pasted.images)} synthetic defects on them",
        effort.n_fitted,
    )


def labelled_set(
    normals: NDArray[np.uint8],
    images: NDArray[np.uint8],
    defects: Sequence[str | None],
    *,
    n_fitted: int = MOST_FITTED,
) -> ChoiceSet:
    """Make a set to choose by from labelled images; every class of defects counts the same.

    Args:
        normals: uint8 [n, H, W, 3], held-out normals to normalize by.
        images: uint8 [m, H, W, 3], labelled images.
        defects: of each one its class, None for a normal one; both kinds are there.
        n_fitted: as in `ChoiceSet`.
    """
    n_anomalous = sum(defect is not None for defect in defects)
    return ChoiceSet(
        normals[:MOST_NORMALS],
        images,
        tuple(defects),
        np.arange(len(images)) % N_FOLDS,
        f"{len(images) - n_anomalous} normal and {count(n_anomalous, 'anomalous labelled image')}",
        n_fitted,
    )


def rank_scorings(
    vae: Vae,
    input_settings: InputSettings,
    choice_set: ChoiceSet,
    *,
    candidates: Sequence[ScoringSettings] = CANDIDATES,
    default: ScoringSettings = DEFAULT_SCORING,
    fitted: NDArray[np.uint8] | None = None,
    progress: Progress | None = None,
) -> ScoringRanking:
    """Score the set by every candidate and choose.

    Args:
        vae: trained.
        input_settings: how an image becomes its input.
        choice_set: at least 2 normals.
        candidates: the compositions; `default` among them.
        default: stays unless another is clearly better.
        fitted: uint8 [k, H, W, 3], normals that the network was fitted on; see `fit_scoring_constants`.
        progress: called with images done and in all.
    """
    units = _scores_in_units(vae, input_settings, choice_set, candidates, fitted=fitted, progress=progress)
    rows = [
        stratum_aurocs(np.sum([units[each] for each in scoring.maps], axis=0), choice_set) for scoring in candidates
    ]
    aurocs, by_normal = np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])
    index = list(candidates).index(default)
    row = choose_row(aurocs, by_normal, index)
    return ScoringRanking(candidates[row], aurocs, by_normal, tuple(candidates), index)


def _scores_in_units(
    vae: Vae,
    input_settings: InputSettings,
    choice_set: ChoiceSet,
    candidates: Sequence[ScoringSettings],
    *,
    fitted: NDArray[np.uint8] | None,
    progress: Progress | None,
) -> dict[MapSettings, NDArray[np.float64]]:
    """Return the score of each image by every map of the candidates, on the scale that fusion brings it to."""
    maps = list(dict.fromkeys(each for scoring in candidates for each in scoring.maps))
    scores = score_candidates(
        Reconstruction(vae, input_settings),
        input_settings.image_size,
        maps,
        choice_set.normals,
        choice_set.images,
        choice_set.folds,
        fitted=None if fitted is None else fitted[spread_places(len(fitted), choice_set.n_fitted)],
        batch_size=images_at_a_time(input_settings),
        progress=progress,
    )
    is_normal = np.array([stratum is None for stratum in choice_set.strata])
    return {each: candidate_units(scores[:, column], is_normal) for column, each in enumerate(maps)}


def stratum_aurocs(
    scores: NDArray[np.float64], choice_set: ChoiceSet
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the image AUROC in each stratum, float64 [strata], and what `ScoringRanking.by_normal` has, [normals].

    Args:
        scores: float64 [m], of the set's images.
        choice_set: says which of them are normal, and the others' strata.
    """
    strata = np.array([stratum or "" for stratum in choice_set.strata])
    is_normal = np.array([stratum is None for stratum in choice_set.strata])
    names = sorted({stratum for stratum in choice_set.strata if stratum is not None})
    above = np.stack([_share_above(scores[(strata == name) & ~is_normal], scores[is_normal]) for name in names])
    return above.mean(axis=1), above.mean(axis=0)


def choose_row(aurocs: NDArray[np.float64], by_normal: NDArray[np.float64], default: int) -> int:
    """Return the best row, or the default one where the best is not better by three standard errors.

    Args:
        aurocs: float64 [candidates, strata].
        by_normal: float64 [candidates, normals], as in `ScoringRanking`.
        default: a row.
    """
    best = int(np.argmax(aurocs.mean(axis=1)))
    gain = float((aurocs[best] - aurocs[default]).mean())
    error = _error_of_gain(aurocs, by_normal, best, default)
    return best if gain > _CLEARLY * error else default


def _error_of_gain(aurocs: NDArray[np.float64], by_normal: NDArray[np.float64], row: int, other: int) -> float:
    """Return the standard error of the difference of two rows' figures: over defects, and over normals."""
    over_defects = standard_error(aurocs[row] - aurocs[other])
    return float(np.hypot(over_defects, standard_error(by_normal[row] - by_normal[other])))


def _share_above(anomalous: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of anomalous scores above each normal one, a tie counting half: float64 [normals]."""
    ordered = np.sort(anomalous)
    below = np.searchsorted(ordered, normal, "left") + np.searchsorted(ordered, normal, "right")
    return np.asarray(1 - below / (2 * len(ordered)))


def rank(names: Sequence[str], aurocs: NDArray[np.float64], by_normal: NDArray[np.float64]) -> tuple[Ranked, ...]:
    """Order candidates by their mean AUROC.

    Args:
        names: of the candidates.
        aurocs: float64 [candidates, strata].
        by_normal: float64 [candidates, normals], as in `ScoringRanking`.
    """
    means = aurocs.mean(axis=1)
    order = np.argsort(-means, kind="stable")
    first = int(order[0])
    return tuple(
        Ranked(
            name=names[row],
            auroc=float(means[row]),
            behind=float(means[first] - means[row]),
            standard_error=_error_of_gain(aurocs, by_normal, first, int(row)),
        )
        for row in order
    )


def standard_error(differences: NDArray[np.float64]) -> float:
    """Return the standard error of a mean; 0 for a single value."""
    n = len(differences)
    return float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def candidate_units(scores: NDArray[np.float64], is_normal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Bring scores to the scale that fusion brings them to in the graph.

    Args:
        scores: float64 [n], of one map.
        is_normal: bool [n], the images whose quantiles make the scale.
    """
    center, unit = center_and_unit(scores[is_normal])
    return (scores - center) / unit
