"""The whole model on features: what it computes, and that every runtime computes the same."""

from __future__ import annotations

from dataclasses import replace
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
    STEPS,
    FeatureConstants,
    FeatureGraph,
    FeatureMapMaker,
    FeatureMaps,
    FeatureScorer,
    interpolation_matrix,
    to_pixels,
)
from vae_edge.train.features.network import FeatureVae
from vae_edge.train.features.patches import patch_convolutions, patch_vae
from vae_edge.train.features.places import PlaceConstants
from vae_edge.train.features.settings import PIXEL_MAP, FeatureMap, FeatureSettings, MapSource, PositionVae
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.input_settings import Photometric
from vae_edge.train.model.residuals import Enlarging

SIZE = (64, 96)
SETTINGS = FeatureSettings(n_hidden=24, latent_vec_size=4)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return backbone_from(random_weights("package", 0), "random")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


def feature_graph(
    backbone: Backbone, settings: FeatureSettings = SETTINGS, photometric: Photometric = Photometric.NONE
) -> FeatureGraph:
    torch.manual_seed(2)
    vae = FeatureVae(N_CHANNELS, settings).eval().convolutions()
    ones = torch.ones(1, N_CHANNELS, 1, 1)
    sizes = [4 if each.source is MapSource.PIXELS else 8 for each in settings.maps]
    grids = tuple(torch.rand(1, 1, SIZE[0] // step, SIZE[1] // step) for step in sizes)
    constants = FeatureConstants(0 * ones, ones, grids, tuple(grid + 0.5 for grid in grids))
    pixel_vae = None
    if settings.pixels is not None:
        pixel_vae = patch_convolutions(patch_vae(settings.pixels).eval())
        colours = torch.tensor([0.1, 0.0, -0.1]).reshape(1, 3, 1, 1)
        constants = replace(constants, pixel_mean=colours, pixel_deviation=torch.full((1, 3, 1, 1), 0.5))
    if settings.places is not None:
        n_positions, n_directions = SIZE[0] * SIZE[1] // 64, settings.places
        places = PlaceConstants(
            torch.randn(n_directions, N_CHANNELS, 1, 1) / N_CHANNELS,
            torch.randn(1, n_positions, 1, n_directions),
            torch.randn(n_positions, n_directions, n_directions),
        )
        constants = replace(constants, places=places)
    return FeatureGraph(backbone, vae, settings, constants, SIZE, photometric, pixel_vae)


def graph_on_both(backbone: Backbone) -> FeatureGraph:
    both = SETTINGS.with_pixels()
    small = PositionVae(n_hidden=12, latent_vec_size=4)
    return feature_graph(backbone, both.model_copy(update={"pixels": small}), Photometric.IMAGE)


def graph_by_place(backbone: Backbone) -> FeatureGraph:
    settings = SETTINGS.with_places()
    return feature_graph(backbone, settings.model_copy(update={"places": 5}))


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


@pytest.mark.parametrize("shown", [(0.5, 0.5, 0.5), (0.5, 1.5, 2.0)])
def test_each_map_is_shown_as_smooth_as_it_says_and_the_score_does_not_see_it(shown: tuple[float, ...]) -> None:
    torch.manual_seed(4)
    settings = SETTINGS.with_pixels()
    maps = [each.model_copy(update={"shown_sigma": s}) for each, s in zip(settings.maps, shown, strict=True)]
    sizes = [(SIZE[0] // STEPS[each.source], SIZE[1] // STEPS[each.source]) for each in maps]
    residuals = {each.source: torch.rand(2, 1, *size) for each, size in zip(maps, sizes, strict=True)}
    neutral = FeatureConstants(
        torch.zeros(1, N_CHANNELS, 1, 1),
        torch.ones(1, N_CHANNELS, 1, 1),
        tuple(torch.zeros(1, 1, *size) for size in sizes),
        tuple(torch.ones(1, 1, *size) for size in sizes),
    )
    scorer = FeatureScorer(settings.model_copy(update={"maps": tuple(maps)}), neutral, SIZE)
    anomaly_map, score = scorer(residuals)
    expected = torch.zeros(2, *SIZE)
    for each, size in zip(maps, sizes, strict=True):
        made, step = FeatureMapMaker(each, size)(residuals[each.source]), STEPS[each.source]
        expected += Enlarging(each.shown_sigma * step, *SIZE, step)(made)[:, 0] / len(maps)
    assert torch.allclose(anomaly_map, expected, atol=1e-5)
    assert torch.equal(score, FeatureScorer(settings, neutral, SIZE)(residuals)[1])


def test_a_map_of_a_run_that_does_not_say_how_smooth_it_is_shown_is_shown_as_it_was() -> None:
    said = PIXEL_MAP.model_dump(mode="json")
    assert said.pop("shown_sigma") == PIXEL_MAP.shown_sigma > 0.5
    assert FeatureMap.model_validate(said).shown_sigma == 0.5


def test_dividing_by_the_pictures_own_level_takes_its_scale_away() -> None:
    residual = torch.rand(3, 1, 8, 12)
    made = FeatureMapMaker(FeatureMap(by_level=True), (8, 12))(residual)
    assert torch.allclose(made.mean(dim=(1, 2, 3)), torch.ones(3), atol=1e-4)
    assert torch.allclose(FeatureMapMaker(FeatureMap(by_level=True), (8, 12))(5 * residual), made, atol=1e-4)


def test_constants_of_another_size_are_refused(backbone: Backbone) -> None:
    constants = feature_graph(backbone).constants
    with pytest.raises(KeyError, match="for a grid of"):
        FeatureGraph(backbone, FeatureVae(N_CHANNELS, SETTINGS).convolutions(), SETTINGS, constants, (64, 64))


def test_the_score_on_both_is_the_mean_over_all_maps(backbone: Backbone, images: np.ndarray) -> None:
    graph = graph_on_both(backbone)
    residuals = graph.residuals(to_pixels(torch.from_numpy(images)))
    assert residuals[MapSource.FEATURES].shape == (3, 1, SIZE[0] // 8, SIZE[1] // 8)
    assert residuals[MapSource.PIXELS].shape == (3, 1, SIZE[0] // 4, SIZE[1] // 4)
    scores = []
    for i, each in enumerate(graph.settings.maps):
        residual = residuals[each.source]
        made = FeatureMapMaker(each, (residual.shape[2], residual.shape[3]))(residual)
        values = ((made - graph.constants.means[i]) / graph.constants.scales[i]).flatten(1)
        n = max(1, round(each.top_fraction * values.shape[1]))
        scores.append(values.sort(dim=1, descending=True).values[:, :n].mean(dim=1))
    anomaly_map, score = graph(torch.from_numpy(images))
    assert anomaly_map.shape == (3, *SIZE)
    assert torch.allclose(score, torch.stack(scores).mean(dim=0), rtol=1e-4, atol=1e-4)


def test_a_spot_on_pixels_is_in_the_map_where_it_was_seen(backbone: Backbone) -> None:
    graph = graph_on_both(backbone)
    image = torch.full((1, *SIZE, 3), 100, dtype=torch.uint8)
    image[:, :, ::7] = 160  # A picture of one colour has no contrast to be evened out.
    spot = image.clone()
    spot[:, 20:24, 60:64] = 255
    change = (graph(spot)[0] - graph(image)[0]).abs()[0]
    row, column = divmod(int(change.argmax()), SIZE[1])
    assert abs(row - 22) <= 8
    assert abs(column - 62) <= 8


def test_without_the_network_on_pixels_its_settings_are_refused(backbone: Backbone) -> None:
    graph = graph_on_both(backbone)
    with pytest.raises(KeyError, match="the network on pixels is missing"):
        FeatureGraph(backbone, graph.residual.vae, graph.settings, graph.constants, SIZE)


def test_without_the_constants_of_each_place_settings_with_places_are_refused(backbone: Backbone) -> None:
    graph = graph_by_place(backbone)
    without = replace(graph.constants, places=None)
    with pytest.raises(KeyError, match="constants of each place"):
        FeatureGraph(backbone, graph.residual.vae, graph.settings, without, SIZE)


def test_constants_of_places_are_saved_with_the_others(backbone: Backbone, images: np.ndarray) -> None:
    graph = graph_by_place(backbone)
    constants = FeatureConstants.from_tensors(graph.constants.tensors())
    again = FeatureGraph(backbone, graph.residual.vae, graph.settings, constants, SIZE)
    for one, other in zip(graph(torch.from_numpy(images)), again(torch.from_numpy(images)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["feature", "both", "places"])
def test_onnx_runtime_computes_the_same(kind: str, backbone: Backbone, images: np.ndarray, tmp_path: Path) -> None:
    make = {"feature": feature_graph, "both": graph_on_both, "places": graph_by_place}[kind]
    graph = make(backbone)
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


def test_maps_and_scores_are_the_same_for_any_number_of_cores(backbone: Backbone, images: np.ndarray) -> None:
    graph, many = graph_on_both(backbone), np.concatenate([images] * 9)
    assert len(many) > 2 * graph.images_at_a_time
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            found.append(run_graph(graph, many))
    finally:
        torch.set_num_threads(before)
    for maps, scores in found[1:]:
        assert np.array_equal(maps, found[0][0])
        assert np.array_equal(scores, found[0][1])
    with torch.inference_mode():
        expected_maps, expected_scores = graph(torch.from_numpy(images))
    assert np.allclose(found[0][0][-3:], expected_maps, rtol=1e-4, atol=1e-4)
    assert np.allclose(found[0][1][-3:], expected_scores, rtol=1e-5, atol=1e-5)
