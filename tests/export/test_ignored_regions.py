"""Graphs that ignore a part of the picture: what lies there changes nothing, in any runtime."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from tests.export.conftest import train
from tests.export.test_feature_graphs import images_of
from tests.export.tiny_networks import run_model
from tests.train.features.test_graph import SETTINGS, SIZE, feature_graph
from tests.train.random_backbones import random_weights
from tests.vae_edge.backends.tensorrt_double import in_place_of_tensorrt
from vae_edge.backends.base import open_backend
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.export.openvino_ir import export_openvino
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.export.quantization.onnx_network import to_half
from vae_edge.export.settings import Budget, Estimator, LowPrecisionSettings
from vae_edge.export.targets.onnx_target import OnnxRuntimeQuantizer, export_onnx, export_program
from vae_edge.export.targets.tensorrt_rules import warnings_for_tensorrt
from vae_edge.export.targets.tensorrt_target import TensorRtQuantizer
from vae_edge.export.targets.torch_target import save_program
from vae_edge.ignored_region import IgnoredRegion, kept_places, parse_polygon
from vae_edge.manifest import graph_inputs, graph_outputs
from vae_edge.targets import SUPPORTED, Precision, Target
from vae_edge.train.features.backbone_weights import backbone_from
from vae_edge.train.features.graph import FeatureGraph
from vae_edge.train.features.settings import MapSource, PositionVae
from vae_edge.train.model.anomaly_graph import AnomalyGraph, DeployedGraph, ScoringConstants, run_graph
from vae_edge.train.model.input_settings import InputSettings, Photometric, Tiling
from vae_edge.train.model.kept import KeptPlaces
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import parse_scoring
from vae_edge.train.model.scoring_constants import fit_scoring_constants
from vae_edge.train.sample import SampleSettings, write_sample_set

KINDS = ("features", "tiles", "coarse")
SCORINGS = {
    "tiles": "l2/0.03/image+pixel/top5%,gradient/0/local/max,ssim/0.02/none/mean,latent",
    "coarse": "l2/0.05/image+pixel/top5%,gradient/0.04/local/max,map=0.06",
}


def region() -> IgnoredRegion:
    """A third of the picture, with an edge that no grid has."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[5:43, 13:70] = True
    return IgnoredRegion.of_mask(mask)


@cache
def graph_of(kind: str, ignored: IgnoredRegion | None) -> DeployedGraph:
    if kind == "features":
        both = SETTINGS.with_pixels().with_places()
        small = both.model_copy(update={"pixels": PositionVae(n_hidden=12, latent_vec_size=4), "places": 5})
        plain = feature_graph(backbone_from(random_weights("package", 0), "random"), small, Photometric.IMAGE)
        assert plain.pixels is not None
        return FeatureGraph(
            plain.features.backbone,
            plain.residual.vae,
            plain.settings,
            plain.constants,
            SIZE,
            Photometric.IMAGE,
            plain.pixels.vae,
            ignored,
        ).eval()
    torch.manual_seed(0)
    side = {"image_height": SIZE[0], "image_width": SIZE[1], "tile_height": 32, "tile_width": 32}
    input_settings = InputSettings(Tiling(**side), Photometric.LOCAL, ignored=ignored)
    vae = Vae(8, 16, image_size=(32, 32)).eval()
    scoring = parse_scoring(SCORINGS[kind])
    assert scoring is not None
    constants: ScoringConstants = fit_scoring_constants(vae, scoring, images_of(8), input_settings=input_settings)
    return AnomalyGraph(vae, scoring, constants, input_settings)


def with_another_picture_there(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    changed = images.copy()
    changed[:, region().mask] = np.random.default_rng(3).integers(0, 256, (len(images), region().mask.sum(), 3))
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_there_changes_no_map_and_no_score_and_what_lies_beside_it_does(kind: str) -> None:
    graph, images = graph_of(kind, region()), images_of(4, seed=2)
    maps, scores = run_graph(graph, images)
    for found, expected in zip(run_graph(graph, with_another_picture_there(images)), (maps, scores), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not maps[:, region().mask].any()
    assert np.ptp(maps[:, region().kept]) > 0
    beside = images.copy()
    beside[:, 46:60, 75:90] = 255 - beside[:, 46:60, 75:90]
    assert (run_graph(graph, beside)[1] != scores).all()
    assert (run_graph(graph_of(kind, None), with_another_picture_there(images))[1] != scores).all()


def test_only_kept_positions_are_pooled_however_small_they_are() -> None:
    graph = graph_of("features", region())
    assert isinstance(graph, FeatureGraph)
    # Kept positions far below 0, which is what ignored ones are set to in the map.
    residuals = {source: torch.zeros(1, 1, *maker.kept.places.shape) for source, maker in _makers(graph).items()}
    for mean in [name for name, _ in graph.score.named_buffers() if name.startswith("mean_")]:
        assert (getattr(graph.score, mean) > 0).any()
    score = float(graph.score(residuals)[1])
    expected = []
    for i, maker in enumerate(graph.score.makers):
        values = (-getattr(graph.score, f"mean_{i}") * getattr(graph.score, f"unit_{i}"))[0, 0]
        kept = values[torch.from_numpy(kept_places(region(), *values.shape))]
        n = max(round(graph.settings.maps[i].top_fraction * len(kept)), 1)
        expected.append(float(kept.sort(descending=True).values[:n].mean()))
        places = maker.kept
        assert isinstance(places, KeptPlaces)
        assert places.n == len(kept)
    assert score < 0
    assert score == pytest.approx(np.mean(expected), abs=1e-5)


def _makers(graph: FeatureGraph) -> dict[MapSource, Any]:
    return dict(zip(graph.score.sources, graph.score.makers, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_region_nothing_of_it_is_in_the_graph(kind: str) -> None:
    names = [name for name, _ in graph_of(kind, None).named_buffers()]
    assert not [name for name in names if "kept" in name or "paint" in name]
    assert len([name for name, _ in graph_of(kind, region()).named_buffers()]) > len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_every_runtime_gives_torchs_map_and_score(kind: str, tmp_path: Path) -> None:
    graph, images = graph_of(kind, region()), images_of(3, seed=5)
    program = export_program(graph)
    export_onnx(program, tmp_path / "source.onnx", metadata={})
    single = onnx.load(tmp_path / "source.onnx")
    assert warnings_for_tensorrt(single) == ()
    assert warnings_for_tensorrt(to_half(single)) == ()
    exact = run_graph(graph, images)
    for target in (Target.ONNX, Target.OPENVINO, Target.TORCH):
        path = tmp_path / SUPPORTED[target].model_file
        if target is Target.ONNX:
            path.write_bytes((tmp_path / "source.onnx").read_bytes())
        elif target is Target.OPENVINO:
            export_openvino(tmp_path / "source.onnx", path, metadata={})
        else:
            save_program(program, path)
        with open_backend(target, path, graph_inputs(*SIZE), graph_outputs(*SIZE)) as backend:
            first = backend.run({"image": images})
            second = backend.run({"image": with_another_picture_there(images)})
        for name, expected in zip(("anomaly_map", "score"), exact, strict=True):
            np.testing.assert_allclose(first[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
            np.testing.assert_array_equal(first[name], second[name])
        assert not first["anomaly_map"][:, region().mask].any()
    maps, scores = run_model(to_half(single), images)
    assert np.isfinite(maps).all()
    assert np.abs(scores - exact[1]).max() < 0.05 * np.abs(exact[1]).max()


@pytest.mark.slow
def test_no_targets_int8_graph_on_features_depends_on_what_lies_there(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    from vae_edge.export.quantization.nncf_quantizer import OpenVinoQuantizer, QuantizationSettings

    export_onnx(export_program(graph_of("features", region())), tmp_path / "source.onnx", metadata={})
    model, calibration = onnx.load(tmp_path / "source.onnx"), images_of(6)
    quantizers = (
        OnnxRuntimeQuantizer(model, calibration, Estimator.MIN_MAX),
        TensorRtQuantizer(model, calibration, Estimator.MIN_MAX),
        OpenVinoQuantizer(
            tmp_path / "source.onnx",
            calibration,
            QuantizationSettings(fast_bias_correction=True, halve_weight_range=False),
        ),
    )
    images = images_of(2, seed=5)
    for quantizer in quantizers:
        first, second = quantizer.outputs(images), quantizer.outputs(with_another_picture_there(images))
        np.testing.assert_array_equal(first.scores, second.scores)
        np.testing.assert_array_equal(first.maps, second.maps)
        assert not first.maps[:, region().mask].any()
        assert np.ptp(first.maps[:, region().kept]) > 0


@pytest.fixture(scope="module")
def low_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Target, Precision], Bundle]:
    """Of a trained network that ignores a rectangle, with everything in INT8 and FP16 that a target can have in it."""
    for module in ("onnxruntime", "openvino", "nncf", "tensorrt_rtx"):
        pytest.importorskip(module)
    samples = SampleSettings(image_size=64, n_train=60, n_test_good=4, n_test_per_defect=1)
    (folder,) = write_sample_set(tmp_path_factory.mktemp("sample"), ["dial"], samples)
    polygon = parse_polygon("0.05,0.05 0.45,0.05 0.45,0.6 0.05,0.6")
    run = train(folder, tmp_path_factory.mktemp("runs") / "dial", ignore_polygons=(polygon,))
    settings = ExportSettings(
        targets=(Target.ONNX, Target.OPENVINO, Target.TENSORRT),
        precisions=(Precision.INT8, Precision.FP16),
        low_precision=LowPrecisionSettings(budget=Budget(max_auroc_drop=None, max_flip_rate=None)),
    )
    results = export_run(run, tmp_path_factory.mktemp("low"), settings)
    assert [str(result.error) for result in results if result.error is not None] == []
    return {(r.target, r.precision): r.bundle for r in results if r.bundle is not None}


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16])
@pytest.mark.parametrize("target", [Target.ONNX, Target.OPENVINO, Target.TENSORRT])
def test_in_low_precision_nothing_depends_on_what_lies_there_either(
    low_bundles: dict[tuple[Target, Precision], Bundle],
    target: Target,
    precision: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if target is Target.TENSORRT:
        in_place_of_tensorrt(monkeypatch)
    bundle = low_bundles[target, precision]
    ignored = bundle.manifest.ignored
    assert ignored is not None
    random = np.random.default_rng(0)
    size = (ignored.mask.shape[0], ignored.mask.shape[1], 3)
    with Detector.open(bundle, cache=False) as detector:
        for seed in range(6):
            image = images_of(1, seed=seed)[0][: size[0], : size[1]]
            changed, beside = image.copy(), image.copy()
            changed[ignored.mask] = random.integers(0, 256, (int(ignored.mask.sum()), 3))
            beside[ignored.kept] = 255 - beside[ignored.kept]
            first, second, third = (detector.predict(each) for each in (image, changed, beside))
            assert first.score == second.score != third.score
            np.testing.assert_array_equal(first.anomaly_map, second.anomaly_map)
            assert not first.anomaly_map[ignored.mask].any()
            assert np.ptp(first.anomaly_map[ignored.kept]) > 0
            assert first.not_inspectable_because == second.not_inspectable_because
