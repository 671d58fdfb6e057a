from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tests.train.tiny_models import as_pixels, make_vae, noise, scoring_of, surfaces
from vae_edge.errors import InputError
from vae_edge.train.model.anomaly_graph import AnomalyGraph, ScoringConstants, pool, run_graph
from vae_edge.train.model.input_settings import InputSettings, Photometric, Tiling
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import (
    MSE_SCORING,
    NORMALIZED_SCORING,
    Latent,
    MapSettings,
    ScoringSettings,
    parse_scoring,
)
from vae_edge.train.model.scoring_constants import PixelStatistics, center_and_unit, fit_scoring_constants, some_fitted

H, W = 32, 48
NO_SMOOTHING = ScoringSettings(maps=(MapSettings(smoothing_sigma=0.0, top_fraction=0.01),))
FUSED = "l1/0.05/image+pixel/top1%,l2/0.02/pixel/max,gradient/0/local/mean,ssim/0.02/none/top5%"
IMAGES = surfaces(21, H, W, light=20)
TILED = InputSettings(Tiling(image_height=48, image_width=56, tile_height=32, tile_width=32), Photometric.LOCAL)


@pytest.fixture(scope="module")
def vae() -> Vae:
    return make_vae(H, W)


@pytest.fixture(scope="module")
def tile_vae() -> Vae:
    return make_vae(32, 32)


@pytest.fixture(scope="module")
def constants(vae: Vae) -> ScoringConstants:
    return fit_scoring_constants(vae, scoring_of(FUSED), IMAGES)


def single_score(
    vae: Vae, settings: MapSettings, images: NDArray[np.uint8], input_settings: InputSettings
) -> NDArray[np.float64]:
    """The score of a map by itself, before any normalization by normals."""
    plain = ScoringSettings(maps=(settings.model_copy(update={"per_pixel": False}),))
    return run_graph(AnomalyGraph(vae, plain, ScoringConstants.neutral(plain), input_settings), images)[1].astype(
        np.float64
    )


def part_scores(
    vae: Vae,
    scoring: ScoringSettings,
    constants: ScoringConstants,
    images: NDArray[np.uint8],
    input_settings: InputSettings,
) -> list[NDArray[np.float64]]:
    """The score of each map of a fused scoring, each by a graph of its own."""
    scores = []
    for each, mean, scale in zip(scoring.maps, constants.means, constants.scales, strict=True):
        if each.per_pixel:
            alone = ScoringSettings(maps=(each,))
            graph = AnomalyGraph(vae, alone, ScoringConstants((mean,), (scale,)), input_settings)
            scores.append(run_graph(graph, images)[1].astype(np.float64))
        else:
            # Pooling follows a change of scale that is the same at all pixels.
            assert mean.numel() == scale.numel() == 1
            scores.append((single_score(vae, each, images, input_settings) - float(mean)) / float(scale))
    return scores


def latents_of(vae: Vae, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with torch.no_grad():
        seen = vae(as_pixels(images))
    return seen.mean.double().numpy(), seen.log_variance.double().numpy()


def test_normals_have_maps_around_zero_in_units_of_their_raised_deviation(vae: Vae) -> None:
    images = noise(60, H, W)
    constants = fit_scoring_constants(vae, NO_SMOOTHING, images)
    maps, _ = run_graph(AnomalyGraph(vae, NO_SMOOTHING, constants), images)
    assert abs(float(maps.mean())) < 0.05
    # 0.3 of the median deviation is added to each, and here all are alike.
    assert float(maps.std()) == pytest.approx(1 / 1.3, rel=0.05)


@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_statistics_gathered_in_batches_are_numpys_over_all_maps(sigma: float) -> None:
    settings = MapSettings(smoothing_sigma=sigma)
    maps = torch.rand(11, 1, H, W, generator=torch.Generator().manual_seed(0))
    gathered = PixelStatistics.empty(H, W)
    for start in range(0, 11, 4):
        gathered.add(maps[start : start + 4])
    mean, scale = (each[0, 0].numpy() for each in gathered.mean_and_scale(settings))
    values = maps[:, 0].double().numpy()
    width = max(sigma * H, 0.5)
    reach = int(np.ceil(3 * width))
    expected = gaussian_filter(values.mean(axis=0), width, mode="nearest", radius=reach)
    spread = gaussian_filter(((values - expected) ** 2).mean(axis=0), width, mode="nearest", radius=reach)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    # torch takes the lower of the two values in the middle.
    deviation = np.sqrt(spread)
    median = np.sort(deviation.ravel())[(deviation.size - 1) // 2]
    np.testing.assert_allclose(scale, deviation + 0.3 * median, rtol=1e-4)


@pytest.mark.parametrize("text", ["normalized", FUSED, "l1/0.05/image+pixel/max,latent", "l2/0/none/mean,kl"])
def test_the_batch_size_does_not_matter(vae: Vae, text: str) -> None:
    settings = scoring_of(text)
    one = fit_scoring_constants(vae, settings, noise(7, H, W), batch_size=2).tensors()
    other = fit_scoring_constants(vae, settings, noise(7, H, W), batch_size=7).tensors()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-4)


def test_a_pixel_that_never_moved_keeps_a_scale(vae: Vae) -> None:
    images = np.repeat(noise(1, H, W), 5, axis=0)
    constants = fit_scoring_constants(vae, scoring_of(FUSED), images)
    assert all(float(scale.min()) > 0 for scale in constants.scales)
    assert all(bool(torch.isfinite(mean).all()) for mean in constants.means)


@pytest.mark.parametrize("scoring", [MSE_SCORING, scoring_of("l1/0.05/local/max")], ids=str)
def test_a_scoring_without_normals_needs_none(vae: Vae, scoring: ScoringSettings) -> None:
    constants = fit_scoring_constants(vae, scoring, noise(0, H, W))
    assert [mean.flatten().tolist() for mean in constants.means] == [[0.0]]
    assert [scale.flatten().tolist() for scale in constants.scales] == [[1.0]]


@pytest.mark.parametrize("text", ["normalized", "l1/0/none/mean,l2/0/none/mean", "l1/0/none/mean,latent"])
def test_one_normal_is_too_few(vae: Vae, text: str) -> None:
    with pytest.raises(InputError, match="1 held-out normals to normalize the residual; expected at least 2"):
        fit_scoring_constants(vae, scoring_of(text), noise(1, H, W))


def test_progress_reaches_the_end_once_or_with_fusion_twice(vae: Vae) -> None:
    calls: list[tuple[int, int]] = []

    def take(*now: int) -> None:
        calls.append((now[0], now[1]))

    fit_scoring_constants(vae, NORMALIZED_SCORING, noise(5, H, W), batch_size=2, progress=take)
    assert calls == [(2, 5), (4, 5), (5, 5)]
    calls.clear()
    fit_scoring_constants(vae, scoring_of(FUSED), noise(5, H, W), batch_size=3, progress=take)
    assert calls == [(3, 10), (5, 10), (8, 10), (10, 10)]


class TestNormalsThatTheNetworkWasFittedOn:
    def test_they_count_for_each_pixel_like_the_others(self, vae: Vae) -> None:
        together = fit_scoring_constants(vae, NORMALIZED_SCORING, IMAGES)
        apart = fit_scoring_constants(vae, NORMALIZED_SCORING, IMAGES[:9], fitted=IMAGES[9:])
        torch.testing.assert_close(apart.means, together.means)
        torch.testing.assert_close(apart.scales, together.scales)

    def test_the_units_of_fused_parts_are_those_of_the_others_alone(self, vae: Vae) -> None:
        scoring = scoring_of(FUSED)
        constants = fit_scoring_constants(vae, scoring, IMAGES[:9], fitted=IMAGES[9:])
        for part in part_scores(vae, scoring, constants, IMAGES[:9], InputSettings.of(vae)):
            assert np.quantile(part, (0.5, 0.9)) == pytest.approx([0, 1], abs=2e-3)

    def test_three_hundred_of_them_are_enough(self) -> None:
        images = np.arange(1000, dtype=np.uint16).astype(np.uint8).reshape(-1, 1, 1, 1)
        chosen = some_fitted(images)
        assert len(chosen) == 300
        np.testing.assert_array_equal(chosen[:4, 0, 0, 0], [0, 3, 6, 10])
        assert some_fitted(images[:7]) is not None
        assert len(some_fitted(images[:7])) == 7
        assert len(some_fitted(images[:0])) == 0


class TestFusion:
    """Every part is in units of what normals show: its median is 0 and its 0.9-quantile is 1."""

    def test_each_maps_scores_of_the_normals_have_median_0_and_quantile_1(
        self, vae: Vae, constants: ScoringConstants
    ) -> None:
        for scores in part_scores(vae, scoring_of(FUSED), constants, IMAGES, InputSettings.of(vae)):
            assert np.quantile(scores, (0.5, 0.9)) == pytest.approx([0, 1], abs=2e-3)

    @pytest.mark.parametrize("fusion", ["mean", "max"])
    def test_the_fused_score_is_the_mean_or_the_maximum_of_the_parts(
        self, vae: Vae, constants: ScoringConstants, fusion: str
    ) -> None:
        scoring, images = scoring_of(f"{FUSED},fusion={fusion}"), noise(4, H, W, seed=5)
        parts = part_scores(vae, scoring, constants, images, InputSettings.of(vae))
        _, scores = run_graph(AnomalyGraph(vae, scoring, constants), images)
        expected = np.mean(parts, axis=0) if fusion == "mean" else np.max(parts, axis=0)
        assert np.ptp(parts, axis=0).min() > 0.1, "the parts differ, so that the fusion is seen"
        np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("fusion", ["mean", "max"])
    def test_the_fused_map_is_made_of_the_parts_maps(self, vae: Vae, constants: ScoringConstants, fusion: str) -> None:
        scoring, images = scoring_of(f"{FUSED},fusion={fusion}"), noise(2, H, W, seed=5)
        maps = []
        for each, mean, scale in zip(scoring.maps, constants.means, constants.scales, strict=True):
            plain = ScoringSettings(maps=(each.model_copy(update={"per_pixel": False}),))
            made, _ = run_graph(AnomalyGraph(vae, plain, ScoringConstants.neutral(plain)), images)
            maps.append((made - mean[0].numpy()) / scale[0].numpy())
        fused, _ = run_graph(AnomalyGraph(vae, scoring, constants), images)
        expected = np.mean(maps, axis=0) if fusion == "mean" else np.max(maps, axis=0)
        np.testing.assert_allclose(fused, expected, rtol=1e-3, atol=2e-3)

    def test_with_tiles_and_evened_light_it_is_the_same(self, tile_vae: Vae) -> None:
        scoring, images = scoring_of(FUSED), surfaces(12, *TILED.image_size, light=20)
        constants = fit_scoring_constants(tile_vae, scoring, images, input_settings=TILED)
        parts = part_scores(tile_vae, scoring, constants, images, TILED)
        for scores in parts:
            assert np.quantile(scores, (0.5, 0.9)) == pytest.approx([0, 1], abs=2e-3)
        _, fused = run_graph(AnomalyGraph(tile_vae, scoring, constants, TILED), images)
        np.testing.assert_allclose(fused, np.mean(parts, axis=0), rtol=1e-3, atol=1e-3)


class TestLatentTerms:
    @pytest.mark.parametrize("latent", ["latent", "kl"])
    def test_the_term_of_the_normals_has_median_0_and_quantile_1(self, vae: Vae, latent: str) -> None:
        scoring, images = scoring_of(f"l1/0.05/none/mean,{latent}"), noise(15, H, W)
        constants = fit_scoring_constants(vae, scoring, images)
        (of_map,) = part_scores(vae, scoring, constants, images, InputSettings.of(vae))
        _, fused = run_graph(AnomalyGraph(vae, scoring, constants), images)
        assert np.quantile(2 * fused - of_map, (0.5, 0.9)) == pytest.approx([0, 1], abs=2e-3)

    def test_the_distance_is_numpys_mahalanobis_distance_of_the_latents_from_the_normals(self, vae: Vae) -> None:
        normals, images = noise(40, H, W), surfaces(5, H, W, light=40)
        scoring = scoring_of("l1/0.05/none/mean,latent")
        graph = AnomalyGraph(vae, scoring, fit_scoring_constants(vae, scoring, normals))
        latents, _ = latents_of(vae, normals)
        covariance = np.cov(latents, rowvar=False)
        size = covariance.shape[0]
        share = size / (len(latents) + size)
        inverse = np.linalg.inv((1 - share) * covariance + share * np.trace(covariance) / size * np.eye(size))
        off = latents_of(vae, images)[0] - latents.mean(axis=0)
        expected = np.sqrt(np.einsum("ni,ij,nj->n", off, inverse, off))
        with torch.inference_mode():
            found = graph.score.latent_term(graph.reconstruct(torch.from_numpy(images))).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3)

    def test_the_divergence_is_that_of_the_vaes_loss(self, vae: Vae) -> None:
        images = noise(6, H, W)
        scoring = scoring_of("l1/0.05/none/mean,kl")
        graph = AnomalyGraph(vae, scoring, fit_scoring_constants(vae, scoring, images))
        with torch.inference_mode():
            found = graph.score.latent_term(graph.reconstruct(torch.from_numpy(images)))
            pixels = as_pixels(images)
            expected = vae.loss(vae(pixels), pixels).kl
        assert float(found.mean()) == pytest.approx(float(expected), rel=1e-4)
        mean, log_variance = latents_of(vae, images)
        each = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance)).sum(axis=1)
        np.testing.assert_allclose(found.numpy(), each, rtol=1e-4)

    @pytest.mark.parametrize("latent", list(Latent)[1:])
    def test_of_an_image_that_is_cut_the_most_unusual_tile_counts_and_the_map_shows_where_it_is(
        self, tile_vae: Vae, latent: Latent
    ) -> None:
        input_settings = InputSettings(
            Tiling(image_height=32, image_width=64, tile_height=32, tile_width=32, overlap=0)
        )
        normals = surfaces(20, 32, 64)
        scoring = scoring_of(f"l1/0.05/none/mean,{latent}")
        constants = fit_scoring_constants(tile_vae, scoring, normals, input_settings=input_settings)
        odd = normals[:1].copy()
        odd[:, :, 32:] = noise(1)
        only = {
            name: run_graph(AnomalyGraph(tile_vae, scoring, constants, input_settings), images)[0]
            for name, images in (("normal", normals[:1]), ("odd", odd))
        }
        graph = AnomalyGraph(tile_vae, scoring, constants, input_settings)
        with torch.inference_mode():
            seen = graph.reconstruct(torch.from_numpy(odd))
            terms = ((graph.score.latent_term(seen) - constants.latent["center"]) / constants.latent["unit"]).numpy()
        assert terms.shape == (2,)
        assert terms[1] != pytest.approx(terms[0], abs=0.5)
        plain = ScoringSettings(maps=scoring.maps)
        of_map, map_score = run_graph(
            AnomalyGraph(tile_vae, plain, ScoringConstants.neutral(plain), input_settings), odd
        )
        mean, scale = float(constants.means[0]), float(constants.scales[0])
        part = (of_map - mean) / scale
        term_map = 2 * only["odd"][0] - part[0]
        np.testing.assert_allclose(term_map[:, :32], terms[0], rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(term_map[:, 32:], terms[1], rtol=1e-3, atol=1e-2)
        _, fused = run_graph(graph, odd)
        expected = 0.5 * ((map_score - mean) / scale + terms.max())
        np.testing.assert_allclose(fused, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("text", ["normalized", FUSED, "l1/0.05/pixel/max,latent", "l1/0.05/none/max,kl"])
def test_constants_survive_being_saved_by_name(vae: Vae, text: str) -> None:
    scoring = scoring_of(text)
    constants = fit_scoring_constants(vae, scoring, noise(6, H, W))
    again = ScoringConstants.from_tensors(constants.tensors())
    before = run_graph(AnomalyGraph(vae, scoring, constants), noise(2, H, W, seed=3))
    after = run_graph(AnomalyGraph(vae, scoring, again), noise(2, H, W, seed=3))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_constants_of_another_scoring_are_refused(vae: Vae) -> None:
    constants = fit_scoring_constants(vae, NORMALIZED_SCORING, noise(4, H, W))
    with pytest.raises(KeyError, match="constants of 1 maps for a scoring of 4"):
        AnomalyGraph(vae, scoring_of(FUSED), constants)
    tensors = fit_scoring_constants(vae, scoring_of(FUSED), noise(4, H, W)).tensors()
    tensors.pop("scale.2")
    with pytest.raises(KeyError, match=r"scale\.2"):
        ScoringConstants.from_tensors(tensors)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (np.arange(11.0), (5.0, 4.0)),
        (np.full(7, 3.0), (3.0, 0.003)),
        (np.zeros(3), (0.0, 1e-6)),
        (-np.arange(11.0), (-5.0, 4.0)),
    ],
)
def test_the_unit_is_never_nothing(scores: NDArray[np.float64], expected: tuple[float, float]) -> None:
    assert center_and_unit(scores) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"), [("mean", 4.5), ("max", 9.0), ("top20%", 8.5), ("top0.001%", 9.0), ("top100%", 4.5)]
)
def test_pooling_takes_what_it_says(text: str, expected: float) -> None:
    scoring = parse_scoring(f"l1/0/none/{text}")
    assert scoring is not None
    values = torch.arange(10.0).reshape(1, 2, 5)
    assert float(pool(values, scoring.maps[0])) == pytest.approx(expected)
