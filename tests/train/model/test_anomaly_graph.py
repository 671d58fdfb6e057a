from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vae_edge.errors import UsageError
from vae_edge.records import make_record
from vae_edge.train.model.anomaly_graph import (
    AnomalyGraph,
    ScoringConstants,
    fold_batch_norms,
    images_at_a_time,
    map_step,
    n_pooled,
    run_graph,
)
from vae_edge.train.model.input_layers import PhotometricNormalization, RangeOfInput, Tiles
from vae_edge.train.model.input_settings import (
    IMAGENET,
    RANGES,
    SYMMETRIC,
    InputRange,
    InputSettings,
    KnownRange,
    Photometric,
    Tiling,
)
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import (
    MAX_POOLED_PIXELS,
    MSE_SCORING,
    NORMALIZED_SCORING,
    MapSettings,
    ScoringSettings,
    parse_scoring,
)
from vae_edge.train.model.scoring_constants import fit_scoring_constants

H, W = 32, 48
NO_SMOOTHING = ScoringSettings(maps=(MapSettings(smoothing_sigma=0.0, top_fraction=0.01),))


def neutral(vae: Vae, settings: ScoringSettings) -> AnomalyGraph:
    return AnomalyGraph(vae, settings, ScoringConstants.neutral(settings))


@pytest.fixture(scope="module")
def vae() -> Vae:
    """A network whose batch norms have seen something, so that they are not the identity."""
    torch.manual_seed(0)
    network = Vae(4, 8, image_size=(H, W)).train()
    for _ in range(3):
        network(torch.rand(8, 3, H, W) * 2 - 1)
    return network.eval()


def pictures(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, H, W, 3), dtype=np.uint8)


def residual(vae: Vae, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The difference to the reconstruction, float32 [N, 3, H, W], by the network's own methods."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return np.asarray((x - vae.reconstruct(x)).numpy())


def test_the_seed_scoring_is_the_mean_squared_error_over_the_image(vae: Vae) -> None:
    images = pictures(3)
    graph = neutral(vae, MSE_SCORING)
    maps, scores = run_graph(graph, images)
    expected = residual(vae, images) ** 2
    np.testing.assert_allclose(maps, expected.mean(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, expected.mean(axis=(1, 2, 3)), rtol=1e-5)


def test_the_map_is_the_residual_in_standard_deviations_of_the_normals(vae: Vae) -> None:
    images = pictures(2)
    mean, scale = torch.rand(1, 1, H, W), 0.5 + torch.rand(1, 1, H, W)
    maps, _ = run_graph(AnomalyGraph(vae, NO_SMOOTHING, ScoringConstants((mean,), (scale,))), images)
    expected = (np.abs(residual(vae, images)).mean(axis=1) - mean[0].numpy()) / scale[0].numpy()
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-4)


def test_the_score_is_the_mean_of_the_maps_largest_values(vae: Vae) -> None:
    graph = neutral(vae, NO_SMOOTHING)
    maps, scores = run_graph(graph, pictures(4))
    n_largest = round(0.01 * H * W)
    expected = np.sort(maps.reshape(4, -1), axis=1)[:, -n_largest:].mean(axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_batch_gives_what_its_images_give_alone(vae: Vae) -> None:
    graph = neutral(vae, NORMALIZED_SCORING)
    images = pictures(5)
    _, together = run_graph(graph, images, batch_size=5)
    _, alone = run_graph(graph, images, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_the_graph_is_deterministic(vae: Vae) -> None:
    graph = neutral(vae, NORMALIZED_SCORING)
    first, second = run_graph(graph, pictures(2)), run_graph(graph, pictures(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, MAX_POOLED_PIXELS), (0.01, 164), (1e-9, 1)])
def test_at_least_one_pixel_is_pooled_and_no_more_than_tensorrt_can(fraction: float, expected: int) -> None:
    assert n_pooled(fraction, 128, 128) == expected


def test_folding_batch_norms_changes_nothing_but_the_layers(vae: Vae) -> None:
    x = torch.rand(2, 3, H, W) * 2 - 1
    folded = fold_batch_norms(vae.reconstruction_layers())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), vae.reconstruct(x), rtol=1e-4, atol=1e-5)


def test_the_graph_leaves_the_network_as_it_was(vae: Vae) -> None:
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    neutral(vae, NORMALIZED_SCORING)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    assert all(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [((32, 48), (32, 48), 16), ((256, 256), (256, 256), 16), ((512, 512), (512, 512), 4), ((400, 400), (64, 64), 4)],
)
def test_as_many_images_make_a_batch_as_a_small_machine_holds(
    size: tuple[int, int], tile: tuple[int, int], expected: int
) -> None:
    tiling = Tiling(image_height=size[0], image_width=size[1], tile_height=tile[0], tile_width=tile[1])
    assert images_at_a_time(InputSettings(tiling)) == expected


class TestTheInputSettings:
    TILING = Tiling(image_height=64, image_width=80, tile_height=H, tile_width=W)
    INPUT_SETTINGS = InputSettings(TILING, Photometric.IMAGE)

    def test_the_network_sees_evened_tiles_and_the_residual_is_between_whole_images(self, vae: Vae) -> None:
        images = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)
        graph = AnomalyGraph(vae, MSE_SCORING, ScoringConstants.neutral(MSE_SCORING), self.INPUT_SETTINGS)
        maps, scores = run_graph(graph, images)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = PhotometricNormalization(Photometric.IMAGE, 64, 80)(pixels)
        tiles = Tiles(self.TILING)
        with torch.no_grad():
            parts = [vae.reconstruct(part) for part in tiles.cut(pixels).chunk(self.TILING.n_tiles)]
        expected = (pixels - tiles.stitch(torch.cat(parts))).square().mean(dim=1)
        np.testing.assert_allclose(maps, expected.numpy(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(scores, expected.mean(dim=(1, 2)).numpy(), rtol=1e-4)

    def test_an_image_at_the_other_place_of_a_batch_keeps_its_score(self, vae: Vae) -> None:
        images = np.random.default_rng(0).integers(0, 256, (3, 64, 80, 3), dtype=np.uint8)
        graph = AnomalyGraph(vae, NORMALIZED_SCORING, ScoringConstants.neutral(NORMALIZED_SCORING), self.INPUT_SETTINGS)
        maps, scores = run_graph(graph, images)
        turned_maps, turned = run_graph(graph, images[::-1].copy())
        np.testing.assert_allclose(turned[::-1], scores, rtol=1e-5)
        np.testing.assert_allclose(turned_maps[::-1], maps, rtol=1e-3, atol=1e-5)
        assert len(set(scores.tolist())) == 3

    def test_the_graph_says_all_that_it_does(self, vae: Vae) -> None:
        graph = AnomalyGraph(vae, MSE_SCORING, ScoringConstants.neutral(MSE_SCORING), self.INPUT_SETTINGS)
        assert graph.describe() == (
            "images of 64x80, cut into 6 tiles of 32x48 (3 x 2); brightness and contrast normalized by the image's "
            "own; squared residual, averaged over the image"
        )


class TestCoarseMaps:
    """Maps that are smoothed widely are computed at every second pixel."""

    WIDE = "l2/0.08/image+pixel/top5%,gradient/0.07/local/max,map=0.08"

    @pytest.mark.parametrize(
        ("sigma", "map_sigma", "size", "step"),
        [
            (0.08, 0.08, (32, 48), 2),
            (0.05, 0.08, (32, 48), 1),
            (0.08, 0.0, (32, 48), 1),
            (0.08, 0.08, (33, 48), 1),
            (0.008, 0.025, (256, 256), 2),
            (0.004, 0.025, (256, 256), 1),
        ],
    )
    def test_a_map_is_coarse_where_nothing_is_lost_by_it(
        self, sigma: float, map_sigma: float, size: tuple[int, int], step: int
    ) -> None:
        assert map_step(MapSettings(smoothing_sigma=sigma), map_sigma, *size) == step

    def test_the_map_has_the_images_size_and_the_score_is_of_the_coarse_ones(self, vae: Vae) -> None:
        scoring = parse_scoring(self.WIDE)
        assert scoring is not None
        graph = AnomalyGraph(vae, scoring, fit_scoring_constants(vae, scoring, pictures(9)))
        buffers = dict(graph.score.named_buffers())
        assert [tuple(buffers[f"mean_{i}"].shape[2:]) for i in range(2)] == [(H // 2, W // 2), (1, 1)]
        maps, scores = run_graph(graph, pictures(3, seed=5))
        assert maps.shape == (3, H, W)
        assert scores.shape == (3,)

    def test_a_coarse_map_says_what_a_fine_one_says(self, vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
        scoring = parse_scoring(self.WIDE)
        assert scoring is not None
        normals, images = pictures(9), pictures(6, seed=5)
        images[:3, 8:20, 12:30] = 255
        coarse = run_graph(AnomalyGraph(vae, scoring, fit_scoring_constants(vae, scoring, normals)), images)
        monkeypatch.setattr("vae_edge.train.model.anomaly_graph.map_step", lambda *_: 1)
        fine = run_graph(AnomalyGraph(vae, scoring, fit_scoring_constants(vae, scoring, normals)), images)
        assert not np.array_equal(coarse[1], fine[1])
        assert np.corrcoef(coarse[1], fine[1])[0, 1] > 0.99
        assert np.corrcoef(coarse[0].ravel(), fine[0].ravel())[0, 1] > 0.98

    def test_constants_of_another_size_are_refused(self, vae: Vae) -> None:
        scoring = parse_scoring(self.WIDE)
        assert scoring is not None
        constants = fit_scoring_constants(vae, scoring, pictures(9))
        full = [torch.nn.functional.interpolate(mean, (H, W)) if mean.numel() > 1 else mean for mean in constants.means]
        with pytest.raises(KeyError, match="constants of"):
            AnomalyGraph(vae, scoring, ScoringConstants(tuple(full), constants.scales))


def test_extra_layers_are_folded_like_the_others() -> None:
    torch.manual_seed(0)
    network = Vae(4, 8, image_size=(H, W), extra_layers=2).train()
    for _ in range(3):
        network(torch.rand(8, 3, H, W) * 2 - 1)
    network.eval()
    images = pictures(3)
    maps, scores = run_graph(neutral(network, MSE_SCORING), images)
    expected = residual(network, images) ** 2
    np.testing.assert_allclose(maps, expected.mean(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, expected.mean(axis=(1, 2, 3)), rtol=1e-5)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in neutral(network, MSE_SCORING).modules())


class TestInputRange:
    """A network that was trained on images normalized otherwise sees them so."""

    def input_settings(self, wanted: InputRange, photometric: Photometric = Photometric.NONE) -> InputSettings:
        return InputSettings(Tiling.whole(H, W), photometric, wanted)

    def test_the_network_sees_what_imagenets_mean_and_deviation_make_of_the_image(self, vae: Vae) -> None:
        images = pictures(3)
        graph = AnomalyGraph(vae, MSE_SCORING, ScoringConstants.neutral(MSE_SCORING), self.input_settings(IMAGENET))
        maps, scores = run_graph(graph, images)
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        normalized = ((images / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
        with torch.no_grad():
            seen = vae.reconstruct(torch.from_numpy(normalized)).numpy()
        expected = (normalized - seen) ** 2
        np.testing.assert_allclose(maps, expected.mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, expected.mean(axis=(1, 2, 3)), rtol=1e-5)

    def test_light_is_evened_behind_it(self, vae: Vae) -> None:
        images = pictures(2)
        input_settings = self.input_settings(IMAGENET, Photometric.IMAGE)
        stage = AnomalyGraph(vae, MSE_SCORING, ScoringConstants.neutral(MSE_SCORING), input_settings).reconstruct
        mean, deviation = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.deviation)
        normalized = ((torch.from_numpy(images) / 255 - mean) / deviation).permute(0, 3, 1, 2)
        expected = PhotometricNormalization(Photometric.IMAGE, H, W)(normalized)
        with torch.no_grad():
            pixels = stage(torch.from_numpy(images)).pixels
        torch.testing.assert_close(pixels, expected, rtol=1e-4, atol=1e-4)

    def test_the_symmetric_range_leaves_the_graph_as_it_was(self, vae: Vae) -> None:
        constants = ScoringConstants.neutral(NORMALIZED_SCORING)
        plain = AnomalyGraph(vae, NORMALIZED_SCORING, constants)
        symmetric = AnomalyGraph(vae, NORMALIZED_SCORING, constants, self.input_settings(InputRange()))
        assert symmetric.state_dict().keys() == plain.state_dict().keys()
        for found, expected in zip(run_graph(symmetric, pictures(2)), run_graph(plain, pictures(2)), strict=True):
            np.testing.assert_array_equal(found, expected)
        pixels = torch.rand(2, 3, H, W)
        assert RangeOfInput(SYMMETRIC)(pixels) is pixels

    def test_constants_are_measured_in_the_networks_own_range(self, vae: Vae) -> None:
        normals = pictures(9)
        ours = fit_scoring_constants(vae, NORMALIZED_SCORING, normals, input_settings=self.input_settings(IMAGENET))
        plain = fit_scoring_constants(vae, NORMALIZED_SCORING, normals)
        graph = AnomalyGraph(vae, NORMALIZED_SCORING, ours, self.input_settings(IMAGENET))
        # Of the images that it was measured on the map is about 0 to 1, in whatever unit the residual was.
        maps, _ = run_graph(graph, normals)
        assert abs(float(maps.mean())) < 0.1
        maps, _ = run_graph(AnomalyGraph(vae, NORMALIZED_SCORING, plain, self.input_settings(IMAGENET)), normals)
        assert abs(float(maps.mean())) > 1

    @pytest.mark.parametrize("deviation", [(0.5, 0.0, 0.5), (-1.0, 1.0, 1.0)])
    def test_a_deviation_that_is_not_above_0_is_refused(self, deviation: tuple[float, float, float]) -> None:
        with pytest.raises(UsageError, match="expected three numbers above 0"):
            make_record(InputRange, {"deviation": deviation})

    def test_a_range_survives_json_and_the_named_ones_are_known(self) -> None:
        assert InputRange.model_validate_json(IMAGENET.model_dump_json()) == IMAGENET
        assert (RANGES[KnownRange("imagenet")], RANGES[KnownRange("symmetric")]) == (IMAGENET, SYMMETRIC)
