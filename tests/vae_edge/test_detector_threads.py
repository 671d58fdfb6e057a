"""One Detector in many threads, consumers that stop, closing in the middle, and two processes with one cache."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.threads import our_threads
from tests.tiny_bundles import TARGETS, dark_image, make_bundle, spotted_image
from vae_edge import Bundle, Detector, DeviceError, Prediction
from vae_edge.backends.base import Hint
from vae_edge.cache.compiled import entries
from vae_edge.targets import Target

RUNTIMES = {Target.ONNX: "onnxruntime", Target.OPENVINO: "openvino", Target.TORCH: "torch"}
PIECES = [dark_image(seed) if seed % 3 else spotted_image(seed) for seed in range(50)]


@pytest.fixture(params=TARGETS, ids=str, scope="module")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("onnx")
    pytest.importorskip(RUNTIMES[request.param])
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy", request.param)


def same(first: Prediction, second: Prediction) -> bool:
    return (
        (first.score, first.p_value, first.is_anomalous) == (second.score, second.p_value, second.is_anomalous)
    ) and np.array_equal(first.anomaly_map, second.anomaly_map)


@pytest.mark.parametrize("n_predictions", [400, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("hint", [None, "throughput"])
def test_eight_threads_on_one_detector_get_what_one_thread_gets(
    bundle: Bundle, n_predictions: int, hint: Hint | None
) -> None:
    with Detector.open(bundle, device="cpu", hint=hint) as detector:
        alone = [detector.predict(piece) for piece in PIECES]

        def predict(number: int) -> bool:
            piece = number % len(PIECES)
            return same(detector.predict(PIECES[piece]), alone[piece])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(predict, range(n_predictions)))


def test_streams_and_single_predictions_at_the_same_time_do_not_mix(bundle: Bundle) -> None:
    with Detector.open(bundle, device="cpu") as detector:
        alone = [detector.predict(piece) for piece in PIECES]

        def stream(batch_size: int) -> list[float]:
            return [prediction.score for prediction in detector.stream(PIECES, batch_size=batch_size)]

        with ThreadPoolExecutor(4) as pool:
            streams = [pool.submit(stream, batch_size) for batch_size in (1, 2, 7)]
            for piece, before in zip(PIECES, alone, strict=True):
                assert same(detector.predict(piece), before)
            for scores in streams:
                np.testing.assert_allclose(scores.result(), [one.score for one in alone], atol=1e-6)
    assert our_threads() == []


def test_a_consumer_that_stops_after_three_leaves_no_thread(bundle: Bundle) -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        for seed in count():
            yield PIECES[seed % len(PIECES)]

    with Detector.open(bundle, device="cpu") as detector:
        for number, _ in enumerate(detector.stream(camera()), start=1):
            if number == 3:
                break
        assert our_threads() == []

        def consume() -> None:
            for _ in detector.stream(camera()):
                raise RuntimeError("the consumer fails")

        with pytest.raises(RuntimeError, match="consumer"):
            consume()
        assert our_threads() == []


def test_closing_while_others_predict_waits_for_them_and_refuses_the_next(bundle: Bundle) -> None:
    for _ in range(5):
        detector = Detector.open(bundle, device="cpu")
        predicting = threading.Barrier(5)
        outcomes: list[str] = []

        def predict(opened: Detector, begin: threading.Barrier, told: list[str]) -> None:
            opened.predict(PIECES[0])
            begin.wait(20)
            try:
                while True:
                    assert opened.predict(PIECES[0]).is_anomalous
            except DeviceError as error:
                told.append(str(error))

        threads = [threading.Thread(target=predict, args=(detector, predicting, outcomes)) for _ in range(4)]
        for thread in threads:
            thread.start()
        predicting.wait(20)
        detector.close()
        for thread in threads:
            thread.join(20)
        assert outcomes == ["this model has been closed; open it again to run it"] * 4


def test_a_stream_whose_detector_is_closed_ends_with_an_error(bundle: Bundle) -> None:
    detector = Detector.open(bundle, device="cpu")
    results = detector.stream(PIECES[number % 50] for number in count())
    next(results)
    detector.close()
    with pytest.raises(DeviceError, match="has been closed"):
        for _ in results:
            pass
    with pytest.raises(DeviceError, match="has been closed"):
        next(detector.stream(PIECES))
    assert our_threads() == []


def test_two_processes_fill_one_cache_at_once(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle = make_bundle(tmp_path / "toy", Target.OPENVINO)
    script = (
        "import sys; sys.stdin.readline()\n"
        "from vae_edge import Detector\n"
        "import numpy as np\n"
        f"with Detector.open({str(bundle.folder)!r}) as detector:\n"
        "    print(detector.predict(np.full((32, 32, 3), 51, np.uint8)).score)\n"
        "    print(next(detector.stream([np.full((32, 32, 3), 51, np.uint8)])).score)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed[0] == printed[1]
    # One layout for predict and one for stream.
    assert len({entry.key for entry in entries() if entry.key is not None}) == 2
    third = subprocess.run([sys.executable, "-c", script], input="go\n", capture_output=True, text=True, check=True)
    assert third.stdout.split() == printed[0]


def test_a_program_that_forgets_to_close_ends_well(bundle: Bundle) -> None:
    script = (
        "from vae_edge import Detector\nimport numpy as np\n"
        f"detector = Detector.open({str(bundle.folder)!r}, device='cpu')\n"
        "pieces = [np.zeros((32, 32, 3), np.uint8)] * 9\n"
        "stream = detector.stream(pieces)\nnext(stream)\nprint('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "done", "")
