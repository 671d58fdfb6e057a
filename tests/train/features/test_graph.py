"""The whole model on features: what it computes, and that every runtime computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.train.random_backbones import random_weights
from vae_edge.export.targets.onnx_target import export_onnx, export_program
from vae_edge.train.features.backbone import Backbone
from vae_edge.train.features.backbone_weights import backbone_from
from vae_edge.train.features.graph import (
    N_CHANNELS,
    FeatureConstants,
    FeatureGraph,
    FeatureMapMaker,
    FeatureMaps,
    FusedGraph,
    FusionConstants,
    interpolation_matrix,
)
from vae_edge.train.features.network import FeatureVae
from vae_edge.train.features.settings import FeatureMap, FeatureSettings
from vae_edge.train.model.anomaly_graph import AnomalyGraph, ScoringConstants
from vae_edge.train.model.input_settings import InputSettings, Tiling
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import MSE_SCORING

SIZE = (64, 96)
SETTINGS = FeatureSettings(n_hidden=24, latent_vec_size=4)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return backbone_from(random_weights("package", 0), "random")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


def feature_graph(backbone: Backbone, settings: FeatureSettings = SETTINGS) -> FeatureGraph:
    torch.manual_seed(2)
    vae = FeatureVae(N_CHANNELS, settings).eval().convolutions()
    ones = torch.ones(1, N_CHANNELS, 1, 1)
    grid = torch.rand(1, 1, SIZE[0] // 8, SIZE[1] // 8)
    n = len(settings.maps)
    return FeatureGraph(backbone, vae, settings, FeatureConstants(0 * ones, ones, (grid,) * n, (grid + 0.5,) * n), SIZE)


def fused_graph(backbone: Backbone) -> FusedGraph:
    torch.manual_seed(3)
    vae = Vae(4, 4, image_size=(32, 32), max_features=8).eval()
    pixel = AnomalyGraph(vae, MSE_SCORING, ScoringConstants.neutral(MSE_SCORING), InputSettings(Tiling.whole(32, 32)))
    return FusedGraph(feature_graph(backbone), pixel, FusionConstants(0.1, 0.2, 1.0, 4.0))


def test_the_convolutions_compute_what_the_trained_layers_do_with_the_mean_of_the_latents() -> None:
    torch.manual_seed(0)
    vae = FeatureVae(10, SETTINGS)
    for _ in range(3):
        vae(torch.randn(64, 10) * 3 + 1)  # So that the batch norms have statistics of their own.
    vae.eval()
    x = torch.randn(2, 10, 3, 5)
    table = x.permute(0, 2, 3, 1).reshape(-1, 10)
    expected = vae(table).reconstruction.reshape(2, 3, 5, 10).permute(0, 3, 1, 2)
    assert torch.allclose(vae.convolutions()(x), expected, atol=1e-5)


def test_taps_lie_on_one_grid_at_the_place_they_were_seen(backbone: Backbone) -> None:
    maps = FeatureMaps(backbone, 128, 128).eval()
    image = torch.full((1, 128, 128, 3), 127, dtype=torch.uint8)
    spot = image.clone()
    spot[:, 40:48, 88:96] = 255
    with torch.inference_mode():
        change = (maps(spot) - maps(image)).abs().mean(dim=1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert change.shape == (16, 16)
    assert abs(row - 5) <= 1
    assert abs(column - 11) <= 1


def test_the_map_has_the_pictures_size_and_the_score_is_the_mean_of_its_largest_positions(
    backbone: Backbone, images: np.ndarray
) -> None:
    settings = SETTINGS.model_copy(update={"maps": (FeatureMap(smoothing_sigma=0, top_fraction=0.05),)})
    graph = feature_graph(backbone, settings)
    anomaly_map, score = graph(torch.from_numpy(images))
    constants = graph.constants
    values = (graph.residual(graph.features(torch.from_numpy(images))) - constants.means[0]) / constants.scales[0]
    largest = values.flatten(1).sort(dim=1, descending=True).values[:, : round(0.05 * 8 * 12)]
    assert anomaly_map.shape == (3, *SIZE)
    assert torch.allclose(score, largest.mean(dim=1), atol=1e-4)


def test_dividing_by_the_pictures_own_level_takes_its_scale_away() -> None:
    residual = torch.rand(3, 1, 8, 12)
    made = FeatureMapMaker(FeatureMap(by_level=True), (8, 12))(residual)
    assert torch.allclose(made.mean(dim=(1, 2, 3)), torch.ones(3), atol=1e-4)
    assert torch.allclose(FeatureMapMaker(FeatureMap(by_level=True), (8, 12))(5 * residual), made, atol=1e-4)


def test_constants_of_another_size_are_refused(backbone: Backbone) -> None:
    constants = feature_graph(backbone).constants
    with pytest.raises(KeyError, match="for a grid of"):
        FeatureGraph(backbone, FeatureVae(N_CHANNELS, SETTINGS).convolutions(), SETTINGS, constants, (64, 64))


def test_the_fused_score_is_the_mean_of_both_in_units_of_normals(backbone: Backbone, images: np.ndarray) -> None:
    fused = fused_graph(backbone)
    image = torch.from_numpy(images)
    _, feature_score = fused.feature(image)
    small = torch.from_numpy(images).float() / 127.5 - 1
    shrunk = fused.to_pixel(small.permute(0, 3, 1, 2))
    seen = fused.pixel.reconstruct.of_pixels(shrunk)
    pixel_score = (seen.pixels - seen.reconstruction).square().mean(dim=(1, 2, 3))
    expected = ((pixel_score - 0.1) / 0.2 + (feature_score - 1) / 4) / 2
    assert torch.allclose(fused(image)[1], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["feature", "fused"])
def test_onnx_runtime_computes_the_same(kind: str, backbone: Backbone, images: np.ndarray, tmp_path: Path) -> None:
    graph = feature_graph(backbone) if kind == "feature" else fused_graph(backbone)
    path = tmp_path / "model.onnx"
    export_onnx(export_program(graph), path, metadata={})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    maps, scores = session.run(None, {"image": images})
    expected_map, expected_score = graph(torch.from_numpy(images))
    assert np.abs(maps - expected_map.numpy()).max() < 1e-4 * expected_map.abs().max()
    assert np.abs(scores - expected_score.numpy()).max() < 1e-4 * expected_score.abs().max()


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4), (64, 48), (5, 5)])
def test_interpolation_keeps_a_constant_and_a_slope(before: int, after: int) -> None:
    matrix = interpolation_matrix(before, after)
    assert torch.allclose(matrix.sum(dim=1), torch.ones(after))
    centres = (torch.arange(before) + 0.5) / before
    wanted = (torch.arange(after) + 0.5) / after
    inner = slice(after // 4, after - after // 4)
    assert torch.allclose((matrix @ centres)[inner], wanted[inner], atol=1e-3)
