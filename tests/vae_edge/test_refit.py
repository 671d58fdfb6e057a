from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_bundles import SIZE, TARGETS, dark_image, make_bundle, spotted_image, toy_outputs, write_image
from vae_edge import Bundle, Detector, DeviceError, InputError
from vae_edge.decision import PixelTail, fit_thresholds
from vae_edge.manifest import MANIFEST_FILE, ThresholdMethod
from vae_edge.prediction import Prediction
from vae_edge.refit import refit_thresholds
from vae_edge.targets import Target

SEEDS = range(1000, 1120)


@pytest.fixture
def normals(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / "normals" / f"{seed}.png", dark_image(seed)) for seed in SEEDS]


@pytest.mark.parametrize("target", TARGETS)
def test_the_new_thresholds_are_those_of_all_maps_at_once(tmp_path: Path, normals: list[Path], target: Target) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(str(target), str(target)))
    bundle = make_bundle(tmp_path / "toy", target, n_normals=5, verified=False)
    with Detector.open(bundle, device="cpu") as detector:
        refit = detector.refit_thresholds(normals, 0.05)
        scored_by = f"{detector.backend.version} on cpu"
    maps, scores = toy_outputs(np.stack([dark_image(seed) for seed in SEEDS]))
    expected = fit_thresholds(scores, maps, false_alarm_rate=0.05, scored_by=scored_by)
    new = Bundle.open(bundle.folder).manifest
    assert new == refit.bundle.manifest
    assert new.verified
    assert new.not_verified_because is None
    assert new.thresholds.image_threshold == pytest.approx(expected.image_threshold, abs=1e-6)
    assert new.thresholds.pixel_threshold == pytest.approx(expected.pixel_threshold, abs=1e-6)
    assert new.thresholds.false_alarm_rate == expected.false_alarm_rate
    assert new.thresholds.n_normals == 120
    assert new.thresholds.scored_by == scored_by
    assert refit.old.n_normals == 5
    with Detector.open(bundle.folder, device="cpu") as detector:
        alarms = sum(prediction.is_anomalous for prediction in detector.stream(normals))
    assert alarms == 6 - 1  # (1 + alarms) / 121 <= 0.05


def test_images_that_cannot_be_read_are_left_out_and_named(
    onnx_bundle: Bundle, normals: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    seen: list[tuple[int, int | None]] = []
    with Detector.open(onnx_bundle) as detector:
        refit = detector.refit_thresholds(
            [normals[0], tmp_path / "empty.png", normals[1]],
            progress=lambda done, total: seen.append((done, total)),
        )
    assert refit.n_images == 3
    assert ["empty.png is empty" in str(error) for error in refit.unreadable] == [True]
    assert refit.bundle.manifest.thresholds.n_normals == 2
    assert refit.bundle.manifest.thresholds.false_alarm_rate == pytest.approx(1 / 3)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_stream_without_an_end_is_taken_as_far_as_it_was_asked_for(onnx_bundle: Bundle) -> None:
    class Camera:
        n_taken = 0
        stopped = False

        def __iter__(self) -> Iterator[NDArray[np.uint8]]:
            for seed in count(1000):
                self.n_taken += 1
                yield dark_image(seed)

        def stop(self) -> None:
            self.stopped = True

    camera = Camera()
    with Detector.open(onnx_bundle) as detector:
        refit = detector.refit_thresholds(camera, 0.02, max_images=40)
        assert detector.bundle.manifest.thresholds.n_normals == 40
        # The new thresholds hold at once, for this detector too.
        brightest = max(dark_image(seed).max() for seed in range(1000, 1040))
        assert detector.predict(np.full((48, 48, 3), brightest, np.uint8)).threshold == (
            refit.bundle.manifest.thresholds.image_threshold
        )
    assert (camera.n_taken, camera.stopped) == (40, True)
    assert refit.warning is not None
    assert "needs at least 49 held-out normals, there are 40" in refit.warning


def test_no_images_at_all_are_refused(onnx_bundle: Bundle) -> None:
    with Detector.open(onnx_bundle) as detector, pytest.raises(InputError, match="max_images is 0; expected 1 or more"):
        detector.refit_thresholds([], max_images=0)


def test_a_model_that_gives_no_finite_score_is_not_verified(
    tmp_path: Path, normals: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    bundle = make_bundle(tmp_path / "toy", verified=False)
    before = (bundle.folder / "manifest.json").read_bytes()
    with Detector.open(bundle, device="cpu") as detector:
        model = detector.stream_backend()
        outputs = [model.run({"image": np.stack([dark_image(seed)])}) for seed in range(3)]
        outputs[1]["score"][:] = np.nan
        monkeypatch.setattr(model, "run", lambda feeds: outputs.pop(0))
        with pytest.raises(DeviceError, match="not a number"):
            detector.refit_thresholds(normals[:3])
    assert (bundle.folder / "manifest.json").read_bytes() == before


def test_without_a_readable_image_the_bundle_stays_as_it_is(onnx_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with Detector.open(onnx_bundle) as detector:
        for files in ([], [tmp_path / "empty.png"]):
            with pytest.raises(InputError, match="the bundle was not changed"):
                detector.refit_thresholds(files)
    assert Bundle.open(onnx_bundle.folder).manifest == onnx_bundle.manifest


def test_on_a_full_disk_the_bundle_stays_as_it_is(
    onnx_bundle: Bundle, normals: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Detector.open(onnx_bundle) as detector:
        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(InputError, match="No space left"):
            detector.refit_thresholds(normals)
    assert Bundle.open(onnx_bundle.folder).manifest == onnx_bundle.manifest
    assert len(list(onnx_bundle.folder.iterdir())) == 3


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_a_rate_outside_zero_to_one_is_refused(onnx_bundle: Bundle, normals: list[Path], rate: float) -> None:
    with Detector.open(onnx_bundle) as detector, pytest.raises(InputError, match="false-alarm rate"):
        detector.refit_thresholds(normals, rate)


@pytest.mark.parametrize("rate", [0.0001, 0.001, 0.3, 0.999])
@pytest.mark.parametrize("missing", [0, 3])
def test_a_tail_gives_the_threshold_of_all_pixels(rate: float, missing: int) -> None:
    maps = np.random.default_rng(0).normal(size=(20, SIZE, SIZE)).astype(np.float32)
    maps[3] = maps[4]  # equal values
    used = maps[: len(maps) - missing]
    tail = PixelTail(maps.size, rate)
    for one in used:
        tail.add(one)
    allowed = int(rate * used.size)
    assert tail.threshold() == np.sort(used.reshape(-1))[used.size - 1 - allowed]
    assert (used > tail.threshold()).mean() <= rate


def test_a_tail_holds_a_small_share_of_the_pixels() -> None:
    tail = PixelTail(1000 * SIZE * SIZE, 0.001)
    for seed in range(50):
        tail.add(np.random.default_rng(seed).normal(size=(SIZE, SIZE)).astype(np.float32))
    assert tail._kept.size <= 1000 * SIZE * SIZE * 0.001 + 1


def test_a_tail_refuses_what_it_cannot_judge() -> None:
    tail = PixelTail(4)
    with pytest.raises(InputError, match="no anomaly map"):
        tail.threshold()
    with pytest.raises(InputError, match="not finite"):
        tail.add(np.array([1, np.nan], dtype=np.float32))
    with pytest.raises(InputError, match="at most 4"):
        tail.add(np.zeros(5, dtype=np.float32))


def faint(seed: int, level: int) -> NDArray[np.uint8]:
    """Draw dark noise with a spot as bright as that."""
    image = dark_image(seed)
    image[8:16, 8:16] = level
    return image


def test_an_f1_optimal_threshold_is_recorded_as_one_and_p_values_agree_with_it(
    onnx_bundle: Bundle, normals: list[Path]
) -> None:
    # The toy's normals score about 0.2; half of these defects are no brighter than that.
    defects = [faint(seed, 40 + seed) for seed in range(20)] + [spotted_image(seed) for seed in range(3)]
    seen: list[tuple[int, int | None]] = []
    with Detector.open(onnx_bundle) as detector:
        refit = detector.refit_thresholds(
            normals,
            anomalous=[*defects, "missing.png"],
            method="f1-optimal",
            progress=lambda done, total: seen.append((done, total)),
        )
        predictions = [*detector.stream(normals), *detector.stream(defects)]
    thresholds = Bundle.open(onnx_bundle.folder).manifest.thresholds
    assert thresholds.method is ThresholdMethod.F1_OPTIMAL
    assert refit.warning is None
    assert refit.labelled is not None
    assert (refit.labelled.n_normal, refit.labelled.n_anomalous) == (120, 23)
    verdicts = [prediction.is_anomalous for prediction in predictions]
    assert (sum(verdicts[:120]), sum(verdicts[120:])) == (refit.labelled.n_false_alarms, refit.labelled.n_hits)
    assert thresholds.false_alarm_rate == (1 + refit.labelled.n_false_alarms) / 121
    assert 3 <= refit.labelled.n_hits < 23
    for prediction in predictions:
        assert prediction.is_anomalous == (prediction.p_value <= thresholds.false_alarm_rate)
    assert len(refit.unreadable) == 1
    assert seen[-1] == (144, 144)


def test_defects_decide_nothing_where_the_method_is_conformal(onnx_bundle: Bundle, normals: list[Path]) -> None:
    with Detector.open(onnx_bundle) as detector:
        alone = detector.refit_thresholds(normals, 0.05)
        refit = detector.refit_thresholds(normals, 0.05, anomalous=[spotted_image(0), dark_image(1)])
    assert refit.bundle.manifest.thresholds == alone.bundle.manifest.thresholds
    assert alone.labelled is None
    assert refit.labelled is not None
    assert (refit.labelled.n_hits, refit.labelled.n_anomalous, refit.labelled.n_false_alarms) == (1, 2, 5)
    assert refit.labelled.f1 == pytest.approx(2 * 1 / (2 * 1 + 5 + 1))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": "f1-optimal"}, "needs anomalous images as well as normal ones"),
        ({"method": "f1-optimal", "anomalous": []}, "none of 0 anomalous images could be read"),
        ({"method": "f1-optimal", "anomalous": ["gone.png"]}, "none of 1 anomalous images could be read: .*gone.png"),
        (
            {"method": "f1-optimal", "anomalous": [np.zeros((9, 9), np.uint8)]},
            "none of 1 anomalous image scores above",
        ),
        ({"method": "f1-optimal", "anomalous": ["x.png"], "false_alarm_rate": 0.1}, "one threshold cannot be both"),
        ({"method": "cross-conformal"}, "need several trainings"),
        ({"method": "best"}, "the method is 'best'; expected split-conformal or f1-optimal"),
    ],
)
def test_a_refit_that_cannot_be_leaves_the_bundle_as_it_is(
    onnx_bundle: Bundle, normals: list[Path], values: dict[str, Any], says: str
) -> None:
    with Detector.open(onnx_bundle) as detector, pytest.raises(InputError, match=says):
        detector.refit_thresholds(normals[:5], **values)
    assert Bundle.open(onnx_bundle.folder).manifest == onnx_bundle.manifest


def test_fitting_alone_writes_nothing_and_needs_no_detector(onnx_bundle: Bundle) -> None:
    before = (onnx_bundle.folder / MANIFEST_FILE).read_bytes()

    def stream(images: Iterable[float]) -> Iterator[Prediction]:
        for score in images:
            anomaly_map = np.full((SIZE, SIZE), score, np.float32)
            yield Prediction(score, 0.5, 1.0, False, anomaly_map, 1.0)

    scores = [float(score) for score in range(1, 20)]
    fitted = refit_thresholds(
        onnx_bundle,
        stream,
        lambda: "nobody",
        scores,
        0.05,
        anomalous=[30.0, 5.0],
        method="split-conformal",
        max_images=100,
    )
    thresholds = fitted.bundle.manifest.thresholds
    assert thresholds.calibration_scores == tuple(scores)
    assert thresholds.scored_by == "nobody"
    assert fitted.old == onnx_bundle.manifest.thresholds != thresholds
    assert fitted.labelled is not None
    assert (fitted.labelled.n_hits, fitted.labelled.n_anomalous) == (1, 2)
    assert (onnx_bundle.folder / MANIFEST_FILE).read_bytes() == before
