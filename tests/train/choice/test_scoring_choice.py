from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tests.train.tiny_models import make_vae, noise, scoring_of, surfaces
from vae_edge.train.choice.candidates import CANDIDATES
from vae_edge.train.choice.scoring_choice import (
    MOST_NORMALS,
    ChoiceSet,
    Effort,
    ScoringRanking,
    choose_row,
    labelled_set,
    paste_on,
    rank,
    rank_scorings,
    standard_error,
)
from vae_edge.train.choice.synthetic_defects import KINDS, SIZES
from vae_edge.train.model.anomaly_graph import AnomalyGraph, run_graph
from vae_edge.train.model.input_settings import InputSettings
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import DEFAULT_SCORING, MSE_SCORING, NORMALIZED_SCORING, ScoringSettings
from vae_edge.train.model.scoring_constants import fit_scoring_constants

SIZE = 48
INPUT_SETTINGS = InputSettings.of(make_vae(SIZE, SIZE))
SMALL = (
    scoring_of("l1/0.02/image+pixel/top1%,l2/0.04/image+pixel/max"),
    scoring_of("l1/0.02/image+pixel/top1%"),
    scoring_of("l2/0.04/image+pixel/max"),
    scoring_of("gradient/0.02/local+pixel/top1%,l1/0.02/image+pixel/top1%,ssim/0.02/image/mean"),
    MSE_SCORING,
    NORMALIZED_SCORING,
)


@pytest.fixture(scope="module")
def vae() -> Vae:
    return make_vae(SIZE, SIZE)


def lit(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Surfaces under very different light."""
    return surfaces(n, SIZE, SIZE, seed=seed, light=45)


def with_speck(images: NDArray[np.uint8], seed: int = 0, contrast: int = 60) -> NDArray[np.uint8]:
    """A dark speck of a few pixels, which the mean over an image hides behind its light."""
    made = images.copy()
    places = np.random.default_rng(seed).integers(4, SIZE - 8, (len(images), 2))
    for image, (row, column) in zip(made, places, strict=True):
        patch = image[row : row + 4, column : column + 4]
        patch[:] = np.clip(patch.astype(int) - contrast, 0, 255)
    return made


def speck_set(n: int = 16, seed: int = 0) -> ChoiceSet:
    normals = lit(n, seed)
    specks = [with_speck(normals, seed=10 * seed + k) for k in range(3)]
    own = np.arange(n) % 2
    return ChoiceSet(
        normals,
        np.concatenate([normals, *specks]),
        (*(None for _ in range(n)), *(f"speck {k}" for k in range(3) for _ in range(n))),
        np.concatenate([own] * 4),
        "specks",
    )


SURE = np.full((3, 8), 0.5)
"""Figures by normals that do not differ."""


class TestChoosingARow:
    def test_the_best_is_taken_where_it_is_better_by_more_than_three_errors(self) -> None:
        aurocs = np.array([[0.7, 0.8, 0.75, 0.7], [0.8, 0.91, 0.86, 0.79], [0.6, 0.7, 0.5, 0.7]])
        assert choose_row(aurocs, SURE, 0) == 1
        assert choose_row(aurocs[[2, 0, 1]], SURE, 1) == 2

    def test_the_default_stays_where_the_best_leads_by_the_chance_of_some_defects(self) -> None:
        aurocs = np.array([[0.7, 0.8, 0.75, 0.7], [0.9, 0.7, 0.85, 0.65]])
        assert aurocs[1].mean() > aurocs[0].mean()
        assert choose_row(aurocs, SURE[:2], 0) == 0

    @pytest.mark.parametrize("n_strata", [1, 4])
    def test_the_default_stays_where_the_best_leads_by_the_chance_of_some_normals(self, n_strata: int) -> None:
        aurocs = np.repeat([[0.7], [0.8]], n_strata, axis=1)
        by_normal = np.array([[0.7, 0.7, 0.7, 0.7], [0.8, 0.4, 1.0, 1.0]])
        assert choose_row(aurocs, by_normal, 0) == 0
        assert choose_row(aurocs, np.array([[0.7, 0.7, 0.7, 0.7], [0.8, 0.81, 0.79, 0.8]]), 0) == 1

    def test_a_tie_is_the_defaults(self) -> None:
        assert choose_row(np.full((3, 5), 0.9), SURE, 2) == 2

    @pytest.mark.parametrize("scale", [1.0, 3.0])
    def test_the_error_is_that_of_a_mean(self, scale: float) -> None:
        differences = scale * np.array([1.0, 2.0, 3.0, 4.0])
        assert standard_error(differences) == pytest.approx(scale * np.sqrt(5 / 3) / 2)

    def test_a_single_stratum_has_no_error(self) -> None:
        assert standard_error(np.array([0.3])) == 0


def test_the_ranking_is_by_the_mean_and_says_how_far_the_others_are_behind() -> None:
    aurocs = np.array([[0.5, 0.7], [0.9, 0.9], [0.8, 0.6]])
    ranked = rank(["a", "b", "c"], aurocs, SURE)
    assert [each.name for each in ranked] == ["b", "c", "a"]
    assert [each.auroc for each in ranked] == pytest.approx([0.9, 0.7, 0.6])
    assert [each.behind for each in ranked] == pytest.approx([0, 0.2, 0.3])
    assert [each.standard_error for each in ranked] == pytest.approx([0, 0.1, 0.1])


class TestTheSet:
    def test_defects_are_pasted_on_evenly_spread_normals_and_share_their_fold(self) -> None:
        normals = surfaces(100, 32, 32)
        made = paste_on(normals, seed=0)
        assert len(made.normals) == MOST_NORMALS
        np.testing.assert_array_equal(made.normals, normals[[i * 100 // MOST_NORMALS for i in range(MOST_NORMALS)]])
        n = len(made.normals)
        np.testing.assert_array_equal(made.images[:n], made.normals)
        assert made.strata[:n] == (None,) * n
        assert len(made.images) == len(made.strata) == len(made.folds)
        np.testing.assert_array_equal(made.folds[:n], np.arange(n) % 2)
        # A defect changes little of its picture: the nearest normal is the one it was pasted on.
        for image, fold in list(zip(made.images[n:], made.folds[n:], strict=True))[::17]:
            distance = np.abs(made.normals.astype(int) - image).mean(axis=(1, 2, 3))
            assert np.argmin(distance) % 2 == fold

    @pytest.mark.parametrize("n", [1, 8, 25])
    def test_every_kind_meets_every_size_whatever_the_number_of_normals(self, n: int) -> None:
        made = paste_on(surfaces(n, 32, 32), seed=0)
        counts = {stratum: made.strata.count(stratum) for stratum in {*made.strata} - {None}}
        assert counts.keys() == {f"{kind} {size}" for kind in KINDS for size in SIZES}
        assert min(counts.values()) >= 6
        assert str(n) in made.description

    @pytest.mark.parametrize("n_tiles", [1, 9, 42, 100])
    def test_all_comparisons_run_the_network_for_less_than_a_third_of_the_training(self, n_tiles: int) -> None:
        n_windows = 1500 * 36
        effort = Effort.within(n_windows, n_tiles, 100)
        n_images = 2 * MOST_NORMALS + effort.n_defective + effort.n_fitted
        # Two kinds of light and the scorings; a step of the training is worth three runs.
        assert 3 * n_images * n_tiles <= 3 * n_windows / 3
        assert effort.n_defective >= len(KINDS) * len(SIZES)

    def test_a_brief_training_is_chosen_for_by_fewer_defects_of_every_kind_and_size(self) -> None:
        effort = Effort.within(100, 42, 40)
        made = paste_on(surfaces(8, 32, 32), seed=0, effort=effort)
        assert len({*made.strata} - {None}) == len(KINDS) * len(SIZES)
        assert len(made.images) - len(made.normals) == 48  # As many on each of 8 normals.
        assert made.n_fitted == effort.n_fitted == 20

    def test_another_seed_gives_other_defects_on_the_same_normals(self) -> None:
        one, other = (paste_on(surfaces(8, 32, 32), seed=seed) for seed in (0, 1))
        np.testing.assert_array_equal(one.normals, other.normals)
        assert not np.array_equal(one.images[8:], other.images[8:])
        np.testing.assert_array_equal(paste_on(surfaces(8, 32, 32), seed=1).images, other.images)

    def test_labels_are_the_strata_and_normals_are_used_up_to_the_most(self) -> None:
        images = noise(5, 32, 32)
        made = labelled_set(surfaces(50, 32, 32), images, [None, "dent", None, "rust", "dent"])
        assert made.strata == (None, "dent", None, "rust", "dent")
        assert len(made.normals) == MOST_NORMALS
        assert made.description == "2 normal and 3 anomalous labelled images"
        assert set(made.folds.tolist()) == {0, 1}


class TestRanking:
    def test_a_figure_is_the_auroc_of_the_graphs_own_scores(self, vae: Vae) -> None:
        """Single maps and fusions: where the statistics are of the same normals the graph gives the same order."""
        normals, others = lit(9), noise(9, SIZE, SIZE)
        # Faint ones, so that every composition orders the images in its own way.
        specks = [with_speck(normals, seed=k, contrast=9) for k in range(2)]
        images = np.concatenate([normals, *specks])
        strata = (*(None for _ in normals), *(f"speck {k}" for k in range(2) for _ in normals))
        # Images of fold 0 are measured by the normals of fold 1: those that the graph gets.
        interleaved = np.stack([others, normals], axis=1).reshape(-1, SIZE, SIZE, 3)
        choice_set = ChoiceSet(interleaved, images, strata, np.zeros(len(images), dtype=np.int64), "")
        ranking = rank_scorings(vae, INPUT_SETTINGS, choice_set, candidates=SMALL, default=SMALL[0])
        assert len({tuple(row) for row in ranking.aurocs.tolist()}) >= len(SMALL) - 1
        assert ranking.aurocs.max() < 1
        for scoring, found in zip(SMALL, ranking.aurocs, strict=True):
            graph = AnomalyGraph(vae, scoring, fit_scoring_constants(vae, scoring, normals))
            _, scores = run_graph(graph, images)
            for k, auroc in enumerate(found):
                defective = scores[9 * (k + 1) : 9 * (k + 2)]
                labels = np.repeat([0, 1], 9)
                expected = roc_auc_score(labels, np.concatenate([scores[:9], defective]))
                # Float32 may turn the order of two scores that are nearly equal.
                assert auroc == pytest.approx(expected, abs=0.013), str(scoring)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_what_is_obviously_better_is_chosen_whatever_the_seed(self, vae: Vae, seed: int) -> None:
        blind, sharp = MSE_SCORING, scoring_of("gradient/0.02/image+pixel/max")
        choice_set = speck_set(seed=seed)
        ranking = rank_scorings(vae, INPUT_SETTINGS, choice_set, candidates=(blind, sharp), default=blind)
        assert ranking.chosen == sharp
        assert ranking.best > ranking.aurocs[0].mean() + 0.2
        assert ranking.sentence().startswith(f"scoring {sharp}: AUROC {ranking.best:.3f}, the default reaches")
        turned = rank_scorings(vae, INPUT_SETTINGS, choice_set, candidates=(sharp, blind), default=sharp)
        assert turned.chosen == sharp
        assert turned.sentence() == f"the default scoring is the best of 2: AUROC {ranking.best:.3f}"

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_among_candidates_that_are_nearly_the_same_nothing_that_matters_is_given_up(
        self, vae: Vae, seed: int
    ) -> None:
        default = scoring_of("l1/0.02/image+pixel/top1%")
        alike = tuple(scoring_of(f"l1/{0.02 + step}/image+pixel/top1%") for step in (-0.0005, 0.0005))
        choice_set = paste_on(lit(12, seed), seed=seed)
        ranking = rank_scorings(vae, INPUT_SETTINGS, choice_set, candidates=(default, *alike), default=default)
        assert np.ptp(ranking.aurocs.mean(axis=1)) < 0.01
        assert ranking.best >= ranking.aurocs[0].mean()

    def test_candidates_that_are_the_same_to_the_last_bit_leave_the_default(self, vae: Vae) -> None:
        default = scoring_of("l1/0.02/image+pixel/top1%")
        # A share of the pixels that comes to the same number of them.
        alike = scoring_of("l1/0.02/image+pixel/top1.01%")
        choice_set = paste_on(lit(12), seed=0)
        ranking = rank_scorings(vae, INPUT_SETTINGS, choice_set, candidates=(alike, default), default=default)
        np.testing.assert_array_equal(ranking.aurocs[0], ranking.aurocs[1])
        assert ranking.chosen == default

    @pytest.mark.parametrize("n_classes", [24, 1])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_normals_in_the_place_of_defects_choose_nothing(self, vae: Vae, n_classes: int, seed: int) -> None:
        """All candidates differ by chance alone, and the best of them leads by a lot."""
        images = surfaces(40 + 240, SIZE, SIZE, seed=seed, light=20)
        strata = (*(None for _ in range(40)), *(f"none {i % n_classes}" for i in range(240)))
        folds = np.concatenate([np.arange(40) % 2, np.arange(240) % 2])
        ranking = rank_scorings(vae, INPUT_SETTINGS, ChoiceSet(images[:40], images, strata, folds, ""))
        assert ranking.chosen == DEFAULT_SCORING
        assert ranking.aurocs.mean(axis=1).max() > ranking.aurocs[ranking.default].mean() + 0.02

    def test_the_figures_by_normals_are_those_by_defects_otherwise_added_up(self, vae: Vae) -> None:
        ranking = rank_scorings(vae, INPUT_SETTINGS, speck_set(8), candidates=SMALL, default=SMALL[0])
        assert ranking.by_normal.shape == (len(SMALL), 8)
        np.testing.assert_allclose(ranking.by_normal.mean(axis=1), ranking.aurocs.mean(axis=1))

    def test_all_candidates_are_compared_and_the_choice_is_the_same_again(self, vae: Vae) -> None:
        choice_set = paste_on(lit(8), seed=0)
        one, other = (rank_scorings(vae, INPUT_SETTINGS, choice_set) for _ in range(2))
        assert one.candidates == CANDIDATES
        assert one.aurocs.shape == (len(CANDIDATES), len(KINDS) * len(SIZES))
        assert one.candidates[one.default] == DEFAULT_SCORING
        np.testing.assert_array_equal(one.aurocs, other.aurocs)
        assert one.chosen == other.chosen
        assert one.records() == other.records()

    def test_progress_reaches_the_end(self, vae: Vae) -> None:
        calls: list[tuple[int, int]] = []
        choice_set = speck_set(4)
        rank_scorings(
            vae,
            INPUT_SETTINGS,
            choice_set,
            candidates=SMALL[:1],
            default=SMALL[0],
            progress=lambda *now: calls.append((now[0], now[1])),
        )
        assert calls[-1] == (4 + 16, 4 + 16)


class TestRecords:
    @staticmethod
    def ranking(order: list[int], chosen: ScoringSettings | None = None) -> ScoringRanking:
        """Twenty candidates; the higher its number in `order` the better."""
        names = tuple(scoring_of(f"l1/0.0{i + 10}/pixel/max") for i in range(len(order)))
        aurocs = np.array(order, dtype=np.float64)[:, None] / 100 + np.array([[0.0, 0.01]])
        return ScoringRanking(chosen or names[0], aurocs, np.full((len(names), 8), 0.5), names, 0)

    def test_the_first_twelve_are_recorded_best_first(self) -> None:
        records = self.ranking(list(range(20))[::-1]).records()
        # And the last two, which are the plain ones.
        assert len(records) == 14
        assert [each.auroc for each in records] == sorted((each.auroc for each in records), reverse=True)
        assert records[0].behind == 0

    def test_the_default_and_the_plain_ones_are_recorded_wherever_they_are(self) -> None:
        ranking = self.ranking([0, *range(19, 2, -1), 1, 2])
        names = [each.name for each in ranking.records()]
        assert str(ranking.candidates[0]) == names[-1]
        assert {str(ranking.candidates[-1]), str(ranking.candidates[-2])} <= set(names)
        assert len(names) == len(set(names))

    def test_a_default_that_stays_behind_says_why(self) -> None:
        ranking = self.ranking([3, 9, 1])
        assert ranking.sentence() == (
            "the default scoring stays: AUROC 0.035, and none of 3 compositions is clearly better (the first reaches "
            "0.095)"
        )
        assert replace(ranking, chosen=ranking.candidates[1]).sentence() == (
            f"scoring {ranking.candidates[1]}: AUROC 0.095, the default reaches 0.035"
        )


def test_the_pictures_of_these_tests_are_what_they_say() -> None:
    normals = lit(8)
    assert np.ptp(normals.mean(axis=(1, 2, 3))) > 50
    changed = (with_speck(normals) != normals).any(axis=-1)
    assert changed.any(axis=(1, 2)).all()
    assert changed.mean() < 0.01
    assert cv2.connectedComponents(changed[0].astype(np.uint8))[0] == 2
