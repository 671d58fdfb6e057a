from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import nn

from vae_edge.errors import InputError
from vae_edge.train.anomaly_graph import (
    AnomalyGraph,
    ScoringConstants,
    fit_scoring_constants,
    fold_batch_norms,
    gaussian_kernel,
    run_graph,
)
from vae_edge.train.network import Vae
from vae_edge.train.scoring import MAX_POOLED_PIXELS, ScoringMethod, ScoringSettings

H, W = 32, 48
NO_SMOOTHING = ScoringSettings(smoothing_sigma=0.0, top_fraction=0.01)


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
    graph = AnomalyGraph(vae, ScoringSettings(method=ScoringMethod.MSE), ScoringConstants.neutral(H, W))
    maps, scores = run_graph(graph, images)
    expected = residual(vae, images) ** 2
    np.testing.assert_allclose(maps, expected.mean(axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, expected.mean(axis=(1, 2, 3)), rtol=1e-5)


def test_the_map_is_the_residual_in_standard_deviations_of_the_normals(vae: Vae) -> None:
    images = pictures(2)
    mean, scale = torch.rand(1, H, W), 0.5 + torch.rand(1, H, W)
    maps, _ = run_graph(AnomalyGraph(vae, NO_SMOOTHING, ScoringConstants(mean, scale)), images)
    expected = (np.abs(residual(vae, images)).mean(axis=1) - mean.numpy()) / scale.numpy()
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-4)


def test_the_score_is_the_mean_of_the_maps_largest_values(vae: Vae) -> None:
    graph = AnomalyGraph(vae, NO_SMOOTHING, ScoringConstants.neutral(H, W))
    maps, scores = run_graph(graph, pictures(4))
    n_largest = round(0.01 * H * W)
    expected = np.sort(maps.reshape(4, -1), axis=1)[:, -n_largest:].mean(axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_smoothing_is_scipys_gaussian_with_the_border_repeated(vae: Vae) -> None:
    settings = ScoringSettings(smoothing_sigma=0.05)
    graph = AnomalyGraph(vae, settings, ScoringConstants.neutral(H, W))
    values = torch.rand(2, 1, H, W)
    expected = [gaussian_filter(value[0].numpy(), 0.05 * H, mode="nearest", radius=5) for value in values]
    np.testing.assert_allclose(graph.smooth(values)[:, 0].numpy(), np.stack(expected), rtol=1e-4)


@pytest.mark.parametrize(("sigma", "size"), [(0.0, 1), (0.3, 3), (1.0, 7), (2.5, 17)])
def test_the_gaussian_reaches_three_sigma_and_sums_to_one(sigma: float, size: int) -> None:
    kernel = gaussian_kernel(sigma)
    assert kernel.numel() == size
    assert float(kernel.sum()) == pytest.approx(1)


def test_a_batch_gives_what_its_images_give_alone(vae: Vae) -> None:
    graph = AnomalyGraph(vae, ScoringSettings(), ScoringConstants.neutral(H, W))
    images = pictures(5)
    _, together = run_graph(graph, images, batch_size=5)
    _, alone = run_graph(graph, images, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_the_graph_is_deterministic(vae: Vae) -> None:
    graph = AnomalyGraph(vae, ScoringSettings(), ScoringConstants.neutral(H, W))
    first, second = run_graph(graph, pictures(2)), run_graph(graph, pictures(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_no_more_pixels_are_pooled_than_tensorrt_can(vae: Vae) -> None:
    large = Vae(2, 2, image_size=(128, 128), max_features=2)
    graph = AnomalyGraph(large, ScoringSettings(top_fraction=1.0), ScoringConstants.neutral(128, 128))
    assert graph.n_pooled == MAX_POOLED_PIXELS


def test_folding_batch_norms_changes_nothing_but_the_layers(vae: Vae) -> None:
    x = torch.rand(2, 3, H, W) * 2 - 1
    folded = fold_batch_norms(vae.reconstruction_layers())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), vae.reconstruct(x), rtol=1e-4, atol=1e-5)


def test_the_graph_leaves_the_network_as_it_was(vae: Vae) -> None:
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    AnomalyGraph(vae, ScoringSettings(), ScoringConstants.neutral(H, W))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    assert all(parameter.requires_grad for parameter in vae.parameters())


class TestFittingTheConstants:
    def test_normals_have_maps_around_zero_in_units_of_their_raised_deviation(self, vae: Vae) -> None:
        images = pictures(60)
        constants = fit_scoring_constants(vae, NO_SMOOTHING, images)
        maps, _ = run_graph(AnomalyGraph(vae, NO_SMOOTHING, constants), images)
        assert abs(float(maps.mean())) < 0.05
        # 0.3 of the median deviation is added to each, and here all are alike.
        assert float(maps.std()) == pytest.approx(1 / 1.3, rel=0.05)

    def test_the_batch_size_does_not_matter(self, vae: Vae) -> None:
        one = fit_scoring_constants(vae, ScoringSettings(), pictures(7), batch_size=2)
        other = fit_scoring_constants(vae, ScoringSettings(), pictures(7), batch_size=7)
        torch.testing.assert_close(one.mean, other.mean)
        torch.testing.assert_close(one.scale, other.scale)

    def test_a_pixel_that_never_moved_keeps_a_scale(self, vae: Vae) -> None:
        images = np.repeat(pictures(1), 5, axis=0)
        constants = fit_scoring_constants(vae, ScoringSettings(), images)
        assert float(constants.scale.min()) > 0
        assert bool(torch.isfinite(constants.mean).all())

    def test_the_seed_scoring_needs_no_normals(self, vae: Vae) -> None:
        constants = fit_scoring_constants(vae, ScoringSettings(method=ScoringMethod.MSE), pictures(0))
        assert float(constants.mean.abs().sum()) == 0
        assert bool((constants.scale == 1).all())

    def test_one_normal_is_too_few(self, vae: Vae) -> None:
        with pytest.raises(InputError, match="1 held-out normals; expected at least 2"):
            fit_scoring_constants(vae, ScoringSettings(), pictures(1))

    def test_progress_reaches_the_end(self, vae: Vae) -> None:
        calls: list[tuple[int, int]] = []
        fit_scoring_constants(
            vae, ScoringSettings(), pictures(5), batch_size=2, progress=lambda *now: calls.append(now)
        )
        assert calls == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("values", [{"method": "ssim"}, {"smoothing_sigma": -1}, {"top_fraction": 0}, {"colour": 1}])
def test_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ScoringSettings.model_validate(values)
