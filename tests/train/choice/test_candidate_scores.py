from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.tiny_models import make_vae, noise, scoring_of, surfaces
from vae_edge.train.choice.candidates import CANDIDATE_MAPS
from vae_edge.train.choice.scoring_choice import score_candidates
from vae_edge.train.model.anomaly_graph import AnomalyGraph, Reconstruction, run_graph
from vae_edge.train.model.input_settings import InputSettings, Photometric, Tiling
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import MapSettings, ScoringSettings
from vae_edge.train.model.scoring_constants import fit_scoring_constants

CANDIDATES = (
    *CANDIDATE_MAPS,
    *scoring_of("l1/0.03/image/mean,l1/0.03/image/max,l1/0.03/image/top3%,l1/0.03/image+pixel/mean").maps,
    *scoring_of("l2/0/none/mean,ssim/0.02/local/top2%").maps,
)
INPUTS = {
    "whole": InputSettings(Tiling.whole(32, 32)),
    "tiles": InputSettings(Tiling(image_height=48, image_width=40, tile_height=32, tile_width=32)),
    "even light": InputSettings(
        Tiling(image_height=48, image_width=40, tile_height=32, tile_width=32), Photometric.IMAGE
    ),
}


@pytest.fixture(scope="module")
def vae() -> Vae:
    return make_vae()


def scores_of(
    vae: Vae,
    input_settings: InputSettings,
    normals: NDArray[np.uint8],
    images: NDArray[np.uint8],
    folds: NDArray[np.int64],
    candidates: tuple[MapSettings, ...] = CANDIDATES,
    batch_size: int = 8,
) -> NDArray[np.float64]:
    return score_candidates(
        Reconstruction(vae, input_settings),
        input_settings.image_size,
        candidates,
        normals,
        images,
        folds,
        batch_size=batch_size,
    )


def interleaved(even: NDArray[np.uint8], odd: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Normals of which every other one is in each fold."""
    return np.stack([even, odd], axis=1).reshape(-1, *even.shape[1:])


@pytest.mark.parametrize("input_settings", INPUTS.values(), ids=INPUTS)
def test_scores_are_those_of_the_graph_whose_statistics_are_of_the_same_normals(
    vae: Vae, input_settings: InputSettings
) -> None:
    normals = surfaces(6, *input_settings.image_size, light=15)
    others, images = noise(6, *input_settings.image_size), noise(5, *input_settings.image_size, seed=7)
    # Images of fold 0 are measured by the normals of fold 1.
    found = scores_of(vae, input_settings, interleaved(others, normals), images, np.zeros(5, dtype=np.int64))
    for column, each in enumerate(CANDIDATES):
        alone = ScoringSettings(maps=(each,))
        graph = AnomalyGraph(
            vae, alone, fit_scoring_constants(vae, alone, normals, input_settings=input_settings), input_settings
        )
        np.testing.assert_allclose(found[:, column], run_graph(graph, images)[1], rtol=1e-3, err_msg=str(each))


@pytest.mark.parametrize("fold", [0, 1])
def test_normals_that_the_network_was_fitted_on_count_in_both_folds(vae: Vae, fold: int) -> None:
    input_settings, images = INPUTS["whole"], noise(3, seed=7)
    even, odd, fitted = surfaces(4, light=15), noise(4), surfaces(5, light=5)
    found = score_candidates(
        Reconstruction(vae, input_settings),
        input_settings.image_size,
        CANDIDATES,
        interleaved(even, odd),
        images,
        np.full(3, fold),
        fitted=fitted,
    )
    measured_by = np.concatenate([odd if fold == 0 else even, fitted])
    for column, each in enumerate(CANDIDATES):
        alone = ScoringSettings(maps=(each,))
        graph = AnomalyGraph(
            vae, alone, fit_scoring_constants(vae, alone, measured_by, input_settings=input_settings), input_settings
        )
        np.testing.assert_allclose(found[:, column], run_graph(graph, images)[1], rtol=1e-3, err_msg=str(each))


def test_no_image_is_measured_by_the_normals_of_its_own_fold(vae: Vae) -> None:
    input_settings, images = INPUTS["whole"], noise(6, seed=7)
    folds = np.array([0, 1, 0, 1, 1, 0])
    per_pixel = np.array([each.per_pixel for each in CANDIDATES])
    normals = surfaces(8)
    before = scores_of(vae, input_settings, normals, images, folds)
    normals[::2] = noise(4)  # Fold 0 changes: it measures the images of fold 1 alone.
    after = scores_of(vae, input_settings, normals, images, folds)
    np.testing.assert_array_equal(after[folds == 0], before[folds == 0])
    assert (after != before)[np.ix_(folds == 1, per_pixel)].all()
    np.testing.assert_array_equal(after[:, ~per_pixel], before[:, ~per_pixel])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_does_not_matter(vae: Vae, batch_size: int) -> None:
    input_settings, folds = INPUTS["whole"], np.array([1, 0, 0, 1, 1])
    arguments = (vae, input_settings, surfaces(5), noise(5, seed=7), folds)
    found = scores_of(*arguments, batch_size=batch_size)
    np.testing.assert_allclose(found, scores_of(*arguments), rtol=1e-4)


def test_the_order_of_the_candidates_does_not_matter(vae: Vae) -> None:
    arguments = (vae, INPUTS["whole"], surfaces(4), noise(3, seed=7), np.array([1, 0, 1]))
    backwards = scores_of(*arguments, candidates=CANDIDATES[::-1])
    np.testing.assert_array_equal(backwards[:, ::-1], scores_of(*arguments))


def test_progress_counts_normals_and_images_to_the_end(vae: Vae) -> None:
    calls: list[tuple[int, int]] = []
    input_settings = INPUTS["whole"]
    score_candidates(
        Reconstruction(vae, input_settings),
        input_settings.image_size,
        CANDIDATES[:1],
        surfaces(5),
        noise(4),
        np.array([0, 1, 1, 1]),
        batch_size=2,
        progress=lambda *now: calls.append((now[0], now[1])),
    )
    assert [total for _, total in calls] == [9] * len(calls)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (9, 9)
