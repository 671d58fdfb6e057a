from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.hostile_bundles import change_manifest
from tests.picture_bytes import animated_png, part
from tests.tiny_bundles import SIZE, dark_image, make_bundle, spotted_image, toy_outputs, write_image
from vae_edge import Detector, DeviceError, InputError, MissingDependencyError, Prediction, VaeEdgeError
from vae_edge.backends.base import Backend, DeviceChoice, Layout, RuntimeOptions, Tensors
from vae_edge.bundle import Bundle
from vae_edge.detector import n_stream_workers
from vae_edge.errors import UsageError
from vae_edge.image import prepare
from vae_edge.targets import Target

PIECES = [dark_image(seed, 48) if seed % 3 else spotted_image(seed, 48) for seed in range(24)]


class ScriptedBackend(Backend):
    """Gives the scores it is told to; for what no healthy model does."""

    def __init__(self, bundle: Bundle, scores: list[float], spot: float = 0.0) -> None:
        manifest = bundle.manifest
        self._spot = spot
        choice = DeviceChoice("cpu", "for a test")
        layout = Layout(1, None, None)
        super().__init__(
            manifest.inputs, manifest.outputs, max_batch=None, device=choice, layout=layout, version="script"
        )
        self._scores = iter(scores)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        n = len(feeds["image"])
        scores = np.array([next(self._scores) for _ in range(n)], dtype=np.float32)
        maps = np.zeros((n, SIZE, SIZE), dtype=np.float32)
        maps[:, -1, 7] = self._spot
        return {"score": scores, "anomaly_map": maps}

    def _free(self) -> None:
        self._scores = iter(())


@pytest.fixture
def detector(onnx_bundle: Bundle) -> Iterator[Detector]:
    with Detector.open(onnx_bundle) as opened:
        yield opened


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vae-edge")]


def test_a_verdict_follows_from_score_and_threshold(detector: Detector) -> None:
    for piece in PIECES:
        prediction = detector.predict(piece)
        maps, scores = toy_outputs(prepare(piece, detector.bundle.manifest.preparation)[None])
        np.testing.assert_allclose(prediction.anomaly_map, maps[0], atol=1e-6)
        assert prediction.score == pytest.approx(scores[0], abs=1e-6)
        assert prediction.is_anomalous == (prediction.p_value <= detector.bundle.manifest.thresholds.false_alarm_rate)
    assert detector.predict(PIECES[0]).is_anomalous
    assert not detector.predict(PIECES[1]).is_anomalous


def test_another_false_alarm_rate_is_in_force_at_once_and_leaves_the_bundle_alone(onnx_bundle: Bundle) -> None:
    files = {path: path.read_bytes() for path in onnx_bundle.folder.iterdir() if path.is_file()}
    normals = [dark_image(seed) for seed in range(99)]
    with Detector.open(onnx_bundle, false_alarm_rate=0.2) as detector:
        for rate in (0.2, 0.01, 0.35):
            detector.false_alarm_rate = rate
            assert detector.false_alarm_rate == detector.thresholds.false_alarm_rate == rate
            predictions = list(detector.stream(normals))
            assert all(each.is_anomalous == (each.p_value <= rate) for each in predictions)
            assert all(each.is_anomalous == (each.score > each.threshold) for each in predictions)
            own = onnx_bundle.manifest.thresholds
            assert {each.pixel_threshold for each in predictions} == {own.pixel_threshold}
        with pickle.loads(pickle.dumps(detector)) as copied:
            assert copied.false_alarm_rate == 0.35
        with pytest.raises(UsageError, match=r"smallest that this bundle's 99 normals can support is 0\.01"):
            detector.false_alarm_rate = 0.005
        assert detector.false_alarm_rate == 0.35
        detector.false_alarm_rate = None
        assert detector.thresholds == own
    with pytest.raises(UsageError, match=r"expected 1e-06 to 0\.5"):
        Detector.open(onnx_bundle, false_alarm_rate=0.9)
    assert {path: path.read_bytes() for path in onnx_bundle.folder.iterdir() if path.is_file()} == files


def test_a_file_and_its_array_get_the_same_verdict(detector: Detector, tmp_path: Path) -> None:
    path = write_image(tmp_path / "piece.png", PIECES[3])
    from_file, from_array = detector.predict(path), detector.predict(PIECES[3])
    assert from_file.score == from_array.score
    assert from_file.source == str(path)
    assert from_array.source is None


def test_eight_threads_get_the_verdicts_of_one(detector: Detector) -> None:
    alone = [detector.predict(piece).score for piece in PIECES]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(lambda piece: detector.predict(piece).score, PIECES))
            assert together == alone


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5, 100])
def test_a_stream_keeps_the_order_for_every_batch_size(detector: Detector, batch_size: int | None) -> None:
    alone = [detector.predict(piece).score for piece in PIECES]
    assert [p.score for p in detector.stream(PIECES, batch_size=batch_size)] == pytest.approx(alone)
    assert [p.score for p in detector.predict_batch(PIECES, batch_size=batch_size)] == pytest.approx(alone)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_bad_image_in_a_stream_is_an_error_in_its_place(detector: Detector, tmp_path: Path, batch_size: int) -> None:
    (tmp_path / "empty.png").touch()
    images: list[Any] = [PIECES[0], tmp_path / "empty.png", PIECES[1], PIECES[2].astype(np.float32), PIECES[3]]
    results = list(detector.stream(images, batch_size=batch_size, errors="return"))
    assert [type(result) for result in results] == [Prediction, InputError, Prediction, InputError, Prediction]
    assert "empty.png is empty" in str(results[1])
    assert "float32" in str(results[3])


def test_a_bad_image_ends_a_stream_that_is_to_raise(detector: Detector) -> None:
    results = detector.stream([PIECES[0], PIECES[1][:0], PIECES[2]])
    assert next(results).is_anomalous
    with pytest.raises(InputError, match="without any pixel"):
        list(results)
    assert prefetch_threads() == []


def test_an_empty_stream_is_empty(detector: Detector) -> None:
    assert list(detector.stream([])) == []


def test_an_endless_stream_is_taken_a_few_images_ahead_at_most(detector: Detector) -> None:
    taken = 0

    def camera() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield PIECES[1]

    results = detector.stream(camera(), batch_size=2)
    for _ in range(10):
        next(results)
    assert taken <= 10 + 2 * (2 * n_stream_workers(detector.stream_backend().layout) + 2)
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert prefetch_threads() == []


def test_a_consumer_that_stops_early_leaves_no_thread(detector: Detector) -> None:
    for prediction in detector.stream(PIECES):
        assert prediction.is_anomalous
        break
    del prediction
    deadline = time.monotonic() + 5
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert prefetch_threads() == []


def test_an_error_of_the_source_itself_comes_through(detector: Detector) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield PIECES[0]
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        list(detector.stream(broken(), errors="return"))
    assert prefetch_threads() == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused_at_once(detector: Detector, batch_size: int) -> None:
    with pytest.raises(InputError, match=f"batch_size is {batch_size}; this bundle takes 1 or more"):
        detector.stream(PIECES, batch_size=batch_size)


def test_a_batch_larger_than_the_bundle_takes_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX, max_batch=2)
    with Detector.open(bundle) as detector, pytest.raises(InputError, match="takes 1 to 2"):
        detector.stream(PIECES, batch_size=3)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_gets_no_verdict(onnx_bundle: Bundle, score: float) -> None:
    detector = Detector(onnx_bundle, ScriptedBackend(onnx_bundle, [0.1, score, 0.1, score, score]))
    results = list(detector.stream(PIECES[:3], batch_size=3, errors="return"))
    assert [type(result) for result in results] == [Prediction, DeviceError, Prediction]
    with pytest.raises(DeviceError, match="export it again"):
        detector.predict(PIECES[0])
    with pytest.raises(DeviceError, match="export it again"):
        list(detector.stream(PIECES[:1]))


@pytest.mark.parametrize("spot", [float("nan"), float("inf"), float("-inf")])
def test_a_map_with_a_value_that_is_no_number_gets_no_verdict(onnx_bundle: Bundle, spot: float) -> None:
    with pytest.raises(DeviceError, match="map of the image has values that are not numbers"):
        Detector(onnx_bundle, ScriptedBackend(onnx_bundle, [0.1], spot)).predict(PIECES[0])
    largest = float(np.finfo(np.float32).max)
    assert Detector(onnx_bundle, ScriptedBackend(onnx_bundle, [0.1], largest)).predict(PIECES[0]).score < 1


@pytest.mark.parametrize("failure", [OSError("the camera is gone"), MemoryError()])
def test_what_a_source_gave_before_it_failed_is_decided_first(detector: Detector, failure: Exception) -> None:
    def source() -> Iterator[NDArray[np.uint8]]:
        yield from PIECES[:2]
        raise failure

    predictions = detector.stream(source())
    decided = [next(predictions).score, next(predictions).score]
    assert decided == [detector.predict(piece).score for piece in PIECES[:2]]
    with pytest.raises(type(failure)) as caught:
        next(predictions)
    assert caught.value is failure
    assert prefetch_threads() == []


def test_a_closed_detector_says_so(onnx_bundle: Bundle) -> None:
    detector = Detector.open(onnx_bundle)
    detector.close()
    detector.close()
    with pytest.raises(DeviceError, match="closed"):
        detector.predict(PIECES[0])


@pytest.mark.parametrize("image", [None, 3, [1, 2], np.zeros((4, 4, 2), dtype=np.uint8), np.zeros(4, dtype=np.uint8)])
def test_what_is_no_image_is_refused_with_what_came(detector: Detector, image: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        detector.predict(image)


@pytest.mark.parametrize(("options", "error"), [({"threads": 0}, InputError), ({"device": " "}, InputError)])
def test_options_that_make_no_sense_are_refused(
    onnx_bundle: Bundle, options: dict[str, Any], error: type[VaeEdgeError]
) -> None:
    with pytest.raises(error, match="expected"):
        Detector.open(onnx_bundle, **options)


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        (Target.ONNX, "onnxruntime", "onnxruntime"),
        (Target.OPENVINO, "openvino", "openvino"),
        (Target.TORCH, "torch", "torch"),
    ],
)
def test_a_missing_runtime_is_named_with_the_command_that_installs_it(
    tmp_path: Path, target: Target, package: str, extra: str
) -> None:
    pytest.importorskip(package)
    bundle = make_bundle(tmp_path / "toy", target)
    # A module that sys.modules holds as None cannot be imported, as if it were not installed.
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from vae_edge import Detector, MissingDependencyError\n"
        f"try: Detector.open({str(bundle.folder)!r})\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"needs the package '{package}'" in done.stdout
    assert f'pip install "vae-edge[{extra}]"' in done.stdout
    assert issubclass(MissingDependencyError, ImportError)


@pytest.mark.parametrize("kind", [None, "Orin (8.7, 16 SMs)"])
def test_the_kind_of_gpu_that_an_engine_is_for_reaches_the_backend(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    seen: list[str | None] = []

    def look(*arguments: Any, options: RuntimeOptions, **more: Any) -> Backend:
        seen.append(options.built_for)
        return ScriptedBackend(onnx_bundle, [])

    monkeypatch.setattr("vae_edge.detector.open_backend", look)
    details = {} if kind is None else {"gpu_kind": kind}
    change_manifest(onnx_bundle.folder, lambda content: content["runtime"]["details"].update(details))
    Detector.open(onnx_bundle.folder).close()
    assert seen == [kind]


@pytest.mark.parametrize("failure", ["ImportError('libcudart.so.12: cannot open')", "OSError('wrong ELF class')"])
def test_a_damaged_runtime_is_named_with_the_command_that_mends_it(
    onnx_bundle: Bundle, tmp_path: Path, failure: str
) -> None:
    (tmp_path / "onnxruntime.py").write_text(f"raise {failure}")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from vae_edge import Detector, DeviceError\n"
        f"try: Detector.open({str(onnx_bundle.folder)!r})\n"
        "except DeviceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "is installed but does not load" in done.stdout
    assert 'pip install --force-reinstall "vae-edge[onnxruntime]"' in done.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes in the file system are POSIX's")
def test_a_named_pipe_or_an_animation_is_an_input_error_and_waits_for_nobody(
    onnx_bundle: Bundle, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "frames.png").write_bytes(animated_png(part(), part()))
    with Detector.open(onnx_bundle) as detector:
        for name, says in (("pipe.png", "a named pipe"), ("frames.png", "2 frames")):
            with pytest.raises(InputError, match=says):
                detector.predict(tmp_path / name)
        assert detector.predict(write_image(tmp_path / "a.png", dark_image(1, 64))).score >= 0
        first, second = detector.stream([tmp_path / "pipe.png", part()], errors="return")
        assert isinstance(first, InputError)
        assert not isinstance(second, InputError)


def test_the_limit_of_pixels_is_the_detectors(onnx_bundle: Bundle, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", dark_image(1, 64))
    with Detector.open(onnx_bundle.folder, max_pixels=64 * 64 - 1) as detector:
        with pytest.raises(InputError, match="64x64 pixels"):
            detector.predict(path)
        with pickle.loads(pickle.dumps(detector)) as other, pytest.raises(InputError, match="64x64 pixels"):
            other.predict(path)
    with pytest.raises(InputError, match="max_pixels is 0"):
        Detector.open(onnx_bundle.folder, max_pixels=0)
