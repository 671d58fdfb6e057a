"""Runs that ignore a part of the picture: nothing that lies there decides anything, from training to the bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import save_file

from tests.train.listener import Listener
from tests.train.random_backbones import random_weights
from tests.train.run.test_feature_fitting import FEATURE, TINY
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import UsageError
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.ignored_region import IgnoredRegion, parse_polygon
from vae_edge.records import make_record
from vae_edge.targets import Target
from vae_edge.train.choice.synthetic_defects import KINDS, SIZES, paste_defect
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.presets import Network
from vae_edge.train.model.scoring import parse_scoring
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.run.metrics import aupro, evaluate
from vae_edge.train.sample import SampleSettings, write_sample_set

POLYGON = "0.05,0.05 0.45,0.05 0.45,0.6 0.05,0.6"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(random_weights("timm", 0), path)
    return path


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same parts twice; in the second every picture shows another noise within the polygon."""
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=3, n_test_per_defect=1)
    first = write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]
    second = tmp_path_factory.mktemp("noisy") / first.name
    shutil.copytree(first, second)
    random = np.random.default_rng(0)
    for path in sorted(second.rglob("*.png")):
        if "ground_truth" not in path.parts:
            image = np.asarray(cv2.imread(str(path)))
            image[4:38, 4:28] = random.integers(0, 256, (34, 24, 3))
            cv2.imwrite(str(path), image)
    return first, second


def settings(data: Path, weights: Path, network: Network, **values: object) -> TrainSettings:
    given = {
        "source": {"root": str(data)},
        "network": network,
        "feature": FEATURE,
        "backbone_weights": str(weights) if network is not Network.PIXEL else None,
        "size": {"image": (64, 64), "tiles": "none"},
        "architecture": TINY,
        "epochs": 2,
        "batch_size": 8,
        "accelerator": "cpu",
        "photometric": "none",
        "scoring": parse_scoring("default"),
        "calibration": "split",
        "split": {"group_by": "none", "threshold_share": 0.3},
        "ignore_polygons": (parse_polygon(POLYGON),),
    }
    return make_record(TrainSettings, given | values)


@pytest.mark.parametrize("network", [Network.BOTH, Network.PIXEL])
def test_a_run_and_its_bundle_keep_the_region_and_nothing_that_lies_there_decides(
    network: Network, two_sets: tuple[Path, Path], weights: Path, tmp_path: Path
) -> None:
    listener = Listener()
    fit_run(settings(two_sets[1], weights, network), out=tmp_path / "noisy", watcher=listener)
    assert any(text.startswith("ignored in training, calibration and on the device: 2") for text in listener.said)
    assert listener.heard("pixel metrics leave out what is ignored")
    run = RunFolder.open(tmp_path / "noisy")
    region = run.record.ignored
    assert isinstance(region, IgnoredRegion)
    graph = run.load_graph()
    pictures = [np.asarray(cv2.imread(str(path)))[:, :, ::-1] for path in sorted(two_sets[1].glob("test/*/*.png"))]
    images = np.ascontiguousarray(np.stack(pictures))
    maps, scores = run_graph(graph, images)
    images[:, region.mask] = 77
    assert np.array_equal(run_graph(graph, images)[1], scores)
    assert not maps[:, region.mask].any()

    (made,) = export_run(run, tmp_path / "bundles", ExportSettings(targets=(Target.ONNX,)))
    assert made.error is None
    assert made.bundle is not None
    bundle = Bundle.open(made.bundle.folder)
    assert bundle.manifest.ignored == region
    assert bundle.manifest.verified
    with Detector.open(bundle) as detector:
        found = [each.score for each in detector.stream(list(images))]
    np.testing.assert_allclose(found, scores, atol=1e-3 * np.abs(scores).max())


@pytest.mark.parametrize("size", SIZES)
def test_defects_are_pasted_beside_the_region_alone(size: float) -> None:
    images = np.random.default_rng(0).integers(60, 200, (3, 64, 64, 3), dtype=np.uint8)
    ignored = np.ones((64, 64), dtype=bool)
    ignored[40:56, 6:22] = False
    for variant, kind in enumerate(KINDS):
        made = paste_defect(images, 0, kind, size, 0.5, variant=variant, ignored=IgnoredRegion.of_mask(ignored))
        assert made.mask.sum() >= 4
        assert not (made.mask & ignored).any()
        np.testing.assert_array_equal(made.image[ignored], images[0][ignored])


def test_pixel_metrics_leave_the_region_out() -> None:
    random = np.random.default_rng(1)
    maps = random.random((6, 16, 16)).astype(np.float32)
    masks = np.zeros((6, 16, 16), dtype=bool)
    masks[3:, 2:6, 2:10] = True
    kept = np.ones((16, 16), dtype=bool)
    kept[:, 8:] = False
    labels, defects = [0, 0, 0, 1, 1, 1], [None] * 3 + ["dent"] * 3
    found = evaluate(labels, random.random(6), defects, maps, masks, kept=kept)
    alone = evaluate(labels, random.random(6), defects, maps[:, :, :8], masks[:, :, :8])
    assert found.pixel_auroc == alone.pixel_auroc
    assert found.per_defect["dent"].pixel_auroc == alone.per_defect["dent"].pixel_auroc
    assert found.aupro == alone.aupro == aupro(masks[:, :, :8], maps[:, :, :8])


def write_mask(path: Path, mask: np.ndarray) -> Path:
    cv2.imwrite(str(path), mask.astype(np.uint8) * 255)
    return path


def test_a_mask_that_cannot_be_meant_is_refused_with_one_sentence(
    two_sets: tuple[Path, Path], weights: Path, tmp_path: Path
) -> None:
    half = np.zeros((64, 64), dtype=bool)
    half[:, :32] = True
    (tmp_path / "text.png").write_text("no picture")
    cases = {
        write_mask(tmp_path / "none.png", half & False): "0 everywhere, so it ignores nothing",
        write_mask(tmp_path / "all.png", half | True): "0 nowhere, so it ignores everything",
        write_mask(tmp_path / "wide.png", half[:32]): r"has 64x32 pixels .*, the pictures typically 64x64",
        tmp_path / "text.png": "text.png",
        tmp_path / "missing.png": "missing.png",
    }
    for path, why in cases.items():
        with pytest.raises(UsageError, match=why):
            fit_run(settings(two_sets[0], weights, Network.PIXEL, ignore_mask=str(path)), out=tmp_path / "run")
    grid = np.indices((64, 64)).sum(axis=0) % 8 < 7
    with pytest.raises(UsageError, match="leaves no place of 8x8 pixels"):
        fit_run(
            settings(two_sets[0], weights, Network.PIXEL, ignore_mask=str(write_mask(tmp_path / "grid.png", grid))),
            out=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
