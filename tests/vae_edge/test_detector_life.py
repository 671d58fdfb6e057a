"""A Detector in programs: other folders, replaced bundles, forks, worker processes, pickles, reused buffers."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_bundles import TARGETS, dark_image, make_bundle, spotted_image
from vae_edge import BundleError, Detector, DeviceError, InputError
from vae_edge.backends.base import Backend, open_backend
from vae_edge.bundle import Bundle
from vae_edge.targets import Target

RUNTIMES = {Target.ONNX: "onnxruntime", Target.OPENVINO: "openvino", Target.TORCH: "torch"}
GOOD, BAD = dark_image(1), spotted_image(2)


@pytest.fixture(params=TARGETS, ids=str)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    pytest.importorskip(RUNTIMES[request.param])
    return make_bundle(tmp_path / "toy", request.param)


def other_bundle(folder: Path) -> Bundle:
    """Make a bundle with other thresholds."""
    return make_bundle(folder, Target.ONNX, n_normals=49)


# Where the bundle is


def test_a_bundle_is_found_after_the_working_folder_was_changed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened_before = Bundle.open("toy")
    with Detector.open("toy", cache=False) as detector:
        expected = detector.predict(BAD).score
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        assert [p.score for p in detector.stream([BAD])] == pytest.approx([expected])
        refit = detector.refit_thresholds([dark_image(seed) for seed in range(20)], 0.1)
    assert refit.bundle.folder == bundle.folder.resolve()
    assert Bundle.open(bundle.folder).manifest.thresholds == refit.bundle.manifest.thresholds
    assert list(Path.cwd().iterdir()) == []
    with pytest.raises(BundleError, match="open it again"):
        Detector.open(opened_before)  # found, and not what it was: the thresholds are new


def test_a_link_that_moves_changes_nothing_for_those_who_have_opened_it(bundle: Bundle, tmp_path: Path) -> None:
    other = other_bundle(tmp_path / "other")
    (tmp_path / "current").symlink_to("toy")
    with Detector.open(tmp_path / "current", cache=False) as detector:
        (tmp_path / "next").symlink_to("other")
        (tmp_path / "next").replace(tmp_path / "current")
        assert [p.threshold for p in detector.stream([GOOD])] == [bundle.manifest.thresholds.image_threshold]
        assert detector.refit_thresholds([GOOD] * 20, 0.1).bundle.folder == bundle.folder.resolve()
    assert Bundle.open(other.folder).manifest == other.manifest


def test_a_link_to_itself_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BundleError, match="loop"):
        Detector.open(tmp_path / "loop")


# What was replaced


def replace_folder(bundle: Bundle) -> None:
    other_bundle(bundle.folder)


def replace_by_hand(bundle: Bundle) -> None:
    other = other_bundle(bundle.folder.parent / "other")
    shutil.rmtree(bundle.folder)
    shutil.copytree(other.folder, bundle.folder)


def write_into_the_model(bundle: Bundle) -> None:
    facts = bundle.model_path.stat()
    content = bytearray(bundle.model_path.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.model_path.write_bytes(content)
    os.utime(bundle.model_path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def write_thresholds(bundle: Bundle) -> None:
    with Detector.open(bundle.folder) as detector:
        detector.refit_thresholds([dark_image(seed) for seed in range(30)], 0.1)


def remove(bundle: Bundle) -> None:
    shutil.rmtree(bundle.folder)


CHANGES = [replace_folder, replace_by_hand, write_into_the_model, write_thresholds, remove]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cache", [True, False])
def test_a_second_model_is_not_loaded_from_a_bundle_that_was_replaced(tmp_path: Path, change: Any, cache: bool) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    with Detector.open(bundle.folder, cache=cache) as detector:
        expected = detector.predict(BAD)
        change(bundle)
        with pytest.raises(BundleError, match="was replaced or changed since it was opened; open it again"):
            list(detector.stream([BAD]))
        assert detector.predict(BAD).score == expected.score  # what is loaded goes on


@pytest.mark.parametrize("change", CHANGES)
def test_thresholds_are_not_written_into_a_bundle_that_was_replaced(tmp_path: Path, change: Any) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    with Detector.open(bundle.folder, hint="latency") as detector:
        change(bundle)
        before = {path: path.read_bytes() for path in bundle.folder.rglob("*")}
        with pytest.raises((BundleError, InputError)) as told:
            detector.refit_thresholds([dark_image(seed) for seed in range(20)], 0.1)
        assert "open it again" in str(told.value) or change is remove
        assert detector.bundle.manifest.thresholds == bundle.manifest.thresholds
    assert {path: path.read_bytes() for path in bundle.folder.rglob("*")} == before


def test_of_two_refits_at_once_the_second_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    good = [dark_image(seed) for seed in range(20)]
    with Detector.open(bundle.folder) as first, Detector.open(bundle.folder) as second:
        list(first.stream(good)), list(second.stream(good))
        fitted = first.refit_thresholds(good, 0.1).bundle.manifest
        with pytest.raises(BundleError, match="open it again"):
            second.refit_thresholds(good, 0.2)
        first.refit_thresholds(good, 0.1)  # its own change is none of somebody else's
    assert Bundle.open(bundle.folder).manifest.thresholds.image_threshold == fitted.thresholds.image_threshold


def test_a_bundle_that_is_exchanged_while_its_manifest_is_written_gets_no_old_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    check = Bundle.check_unchanged

    def check_and_be_late(self: Bundle) -> None:
        check(self)
        replace_folder(self)

    with Detector.open(bundle.folder, hint="latency", check=True) as detector:
        monkeypatch.setattr(Bundle, "check_unchanged", check_and_be_late)
        with pytest.raises(InputError, match="nothing was changed"):
            detector.refit_thresholds([dark_image(seed) for seed in range(20)], 0.1)
    monkeypatch.undo()
    # Windows exchanges no folder in which something is open: there it is the other one that is refused.
    n_normals = 49 if os.name == "posix" else 99
    assert len(Bundle.open(bundle.folder).manifest.thresholds.calibration_scores) == n_normals
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_model_that_is_exchanged_while_it_is_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)

    def be_late(*arguments: Any, **options: Any) -> Backend:
        replace_folder(bundle)
        return open_backend(*arguments, **options)

    monkeypatch.setattr("vae_edge.detector.open_backend", be_late)
    with pytest.raises(BundleError, match="open it again"):
        Detector.open(bundle.folder)


def test_a_bundle_that_was_copied_over_itself_is_the_same(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    with Detector.open(bundle.folder) as detector:
        shutil.copytree(bundle.folder, tmp_path / "copy")
        shutil.rmtree(bundle.folder)
        (tmp_path / "copy").rename(bundle.folder)
        assert [p.is_anomalous for p in detector.stream([BAD, GOOD])] == [True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not show what is mapped")
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_a_model_in_use_does_not_depend_on_its_files_any_more(bundle: Bundle, hint: Any) -> None:
    with Detector.open(bundle.folder, cache=False, hint=hint) as detector:
        expected = detector.predict(BAD).score
        assert str(bundle.folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")
        for file in bundle.manifest.files:
            with (bundle.folder / file.name).open("r+b") as opened:
                opened.write(bytes(file.size_bytes))
                opened.truncate(1)
        assert detector.predict(BAD).score == expected


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_folder_of_any_name_is_opened_or_its_name_is_the_error(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("a b", "a\nb", "\u90e8\u54c1 \u00e9", "a'\"$(x)%s{0}", "-x", "#?&=:;", "x" * 200):
        shutil.copytree(bundle.folder, tmp_path / name)
        with Detector.open(f"{tmp_path / name}/") as detector:
            assert detector.predict(BAD).is_anomalous
    shutil.copytree(bundle.folder, tmp_path / "\udcff")
    if bundle.manifest.target is Target.OPENVINO:
        Detector.open(tmp_path / "\udcff").close()
    else:
        with pytest.raises(BundleError, match="not UTF-8, which this runtime cannot open; rename"):
            Detector.open(tmp_path / "\udcff")


# Forks

FORKS = """
import json, os, pickle, sys, time
import numpy as np
from vae_edge import Detector, VaeEdgeError
from tests.tiny_bundles import dark_image, spotted_image

GOOD, BAD = dark_image(1), spotted_image(2)

def outcome(work):
    try:
        return str(work())
    except VaeEdgeError as error:
        return f"{type(error).__name__}: {error}"

def in_child(work, leave):
    sys.stdout.flush()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, outcome(work).encode())
        os.close(write)
        if leave:
            sys.exit(0)  # with everything that runs at the end of a program
        os._exit(0)
    os.close(write)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.read(read, 10000).decode() if status == 0 else f"status {status}"
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"

def verdicts(detector):
    return [detector.predict(BAD).is_anomalous, *(p.is_anomalous for p in detector.stream([GOOD, BAD]))]

def open_another():
    with Detector.open(sys.argv[1]) as another:
        return verdicts(another)

detector = Detector.open(sys.argv[1])
verdicts(detector)
begun = detector.stream([GOOD, BAD] * 50)
next(begun)
pickled = pickle.dumps(detector)
found = {
    "nothing": in_child(lambda: None, True),
    "predict": in_child(lambda: detector.predict(BAD).score, True),
    "stream": in_child(lambda: list(detector.stream([BAD])), False),
    "refit": in_child(lambda: detector.refit_thresholds([GOOD]), False),
    "begun": in_child(lambda: list(begun), True),
    "backend": in_child(lambda: detector.backend.run({"image": GOOD[None]}), False),
    "close": in_child(detector.close, True),
    "another": in_child(open_another, True),
    "pickle": in_child(lambda: verdicts(pickle.loads(pickled)), False),
    "parent": str(verdicts(detector) + [len(list(begun))]),
}
detector.close()
found["nothing after close"] = in_child(lambda: None, True)
found["another after close"] = in_child(open_another, True)
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_is_told_what_to_do_and_never_hangs(bundle: Bundle) -> None:
    command = [sys.executable, "-c", FORKS, str(bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    verdicts = "[True, False, True]"
    for what in ("predict", "stream", "refit"):
        assert found.pop(what).startswith("DeviceError: this detector was opened before the fork")
    assert found.pop("begun").startswith("DeviceError: this stream was opened before the fork")
    assert found.pop("backend").startswith("DeviceError: this model was opened before the fork")
    after_close = found.pop("another after close")
    if bundle.manifest.target is Target.OPENVINO:
        assert after_close.startswith("DeviceError: OpenVINO loaded and freed a model before this process was")
    else:
        assert after_close == verdicts
    assert found == {
        "nothing": "None",
        "close": "None",
        "another": verdicts,
        "pickle": verdicts,
        "parent": "[True, False, True, 99]",
        "nothing after close": "None",
    }


PROBE_AND_FORK = """
import os, sys
from vae_edge import Detector, DeviceError
from vae_edge.doctor import probe_openvino
probe_openvino()
if os.fork() == 0:
    try:
        Detector.open(sys.argv[1])
    except DeviceError as error:
        os._exit(0 if "start workers with the method spawn" in str(error) else 2)
    os._exit(3)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_models_that_other_code_loaded_before_the_fork_count_as_well(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    folder = make_bundle(tmp_path / "toy", Target.OPENVINO).folder
    done = subprocess.run([sys.executable, "-c", PROBE_AND_FORK, str(folder)], timeout=60, check=False)
    assert done.returncode == 0


def test_all_code_that_loads_a_model_with_openvino_says_so() -> None:
    root = Path(__file__).parents[2]
    loading = [
        path
        for folder in ("vae_edge", "export")
        for path in (root / folder).rglob("*.py")
        if any(call in path.read_text(encoding="utf-8") for call in (".compile_model(", "nncf.quantize("))
    ]
    assert len(loading) >= 4
    assert [path for path in loading if "check_can_load()" not in path.read_text(encoding="utf-8")] == []


# Worker processes


def judge(detector: Detector, image: NDArray[np.uint8]) -> tuple[bool, int, int]:
    return detector.predict(image).is_anomalous, id(detector), os.getpid()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_detector_can_be_sent_to_workers_and_is_opened_once_in_each(bundle: Bundle, method: str) -> None:
    if method == "forkserver" and os.name != "posix":
        pytest.skip("this system has no fork server")
    if (method, bundle.manifest.target) == ("forkserver", Target.TORCH):
        pytest.skip("takes 10 s, and differs from spawn in nothing that is torch's")
    with Detector.open(bundle.folder) as detector, ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        found = list(pool.map(judge, [detector] * 8, [GOOD, BAD] * 4, timeout=120))
    assert [is_anomalous for is_anomalous, _, _ in found] == [False, True] * 4
    assert len({(which, process) for _, which, process in found}) == len({process for _, _, process in found})


def test_a_pickle_opens_the_bundle_with_the_same_arguments(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Detector.open(bundle.folder, hint="latency", threads=1, cache=False) as detector:
        pickled = pickle.dumps(detector)
        monkeypatch.chdir("/")
        with pickle.loads(pickled) as opened:
            assert opened is not detector
            assert opened.backend is not detector.backend
            assert opened.backend.layout == detector.backend.layout
            assert opened.predict(BAD).score == detector.predict(BAD).score
        assert detector.predict(BAD).is_anomalous  # its own model is not closed


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_detector_of_its_own(tmp_path: Path, duplicate: Any) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    with Detector.open(bundle.folder) as detector:
        duplicate(detector).close()
        assert detector.predict(BAD).is_anomalous


def test_a_pickle_does_not_open_another_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    with Detector.open(bundle.folder) as detector:
        pickled = pickle.dumps(detector)
    replace_folder(bundle)
    with pytest.raises(BundleError, match="replaced or changed since its detector was pickled"):
        pickle.loads(pickled)


def test_a_pickle_of_what_cannot_be_opened_again_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    with Detector.open(bundle.folder) as detector:
        with pytest.raises(TypeError, match="constructed from its parts"):
            pickle.dumps(Detector(detector.bundle, detector.backend))
        prediction = detector.predict(BAD)
    with pytest.raises(DeviceError, match="has been closed"):
        pickle.dumps(detector)
    assert pickle.loads(pickle.dumps(prediction)).score == prediction.score


# Sources


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_camera_that_gives_one_buffer_again_and_again_gets_right_verdicts(bundle: Bundle, batch_size: int) -> None:
    buffer = np.empty_like(GOOD)

    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in range(100):
            buffer[:] = BAD if number % 2 else GOOD
            yield buffer

    with Detector.open(bundle.folder) as detector:
        found = [p.is_anomalous for p in detector.stream(camera(), batch_size=batch_size)]
    assert found == [False, True] * 50


async def _frames() -> AsyncIterator[NDArray[np.uint8]]:
    yield GOOD


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (_frames(), "asynchronous source"),
        ("part.png", "got one path, part.png"),
        (Path("part.png"), "got one path, part.png"),
        (GOOD, "one array of shape 32x32x3, which is one image"),
        (GOOD[:, :, 0], "one array of shape 32x32, which is one image"),
        (None, "got NoneType"),
        (3, "got int"),
    ],
)
def test_one_image_is_not_taken_for_many(onnx_bundle: Bundle, images: Any, sentence: str) -> None:
    with Detector.open(onnx_bundle) as detector:
        with pytest.raises(InputError, match=sentence):
            detector.stream(images)
        with pytest.raises(InputError, match=sentence):
            detector.refit_thresholds(images)


def test_arrays_of_images_are_many(onnx_bundle: Bundle) -> None:
    with Detector.open(onnx_bundle) as detector:
        assert [p.is_anomalous for p in detector.stream(np.stack([GOOD, BAD]))] == [False, True]
        assert len(list(detector.stream(np.stack([GOOD, BAD])[..., 0]))) == 2


def test_a_detector_serves_an_event_loop(onnx_bundle: Bundle) -> None:
    async def judge_all(detector: Detector) -> list[bool]:
        found = await asyncio.gather(*[asyncio.to_thread(detector.predict, image) for image in [GOOD, BAD] * 5])
        return [prediction.is_anomalous for prediction in found]

    with Detector.open(onnx_bundle) as detector:
        assert asyncio.run(judge_all(detector)) == [False, True] * 5


def test_a_stream_of_a_detector_that_is_closed_ends_with_an_error(bundle: Bundle) -> None:
    detector = Detector.open(bundle.folder)
    results = detector.stream([GOOD] * 1000)
    next(results)
    detector.close()
    with pytest.raises(DeviceError, match="closed; open it again"):
        list(results)


def test_a_detector_needs_no_standard_streams(onnx_bundle: Bundle) -> None:
    code = (
        "import os, sys; sys.stdout = sys.stderr = sys.stdin = None\n"
        "from vae_edge import Detector; from tests.tiny_bundles import spotted_image\n"
        "detector = Detector.open(sys.argv[1])\n"
        "os.write(1, str(detector.predict(spotted_image(2)).is_anomalous).encode())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(onnx_bundle.folder)], capture_output=True, check=True)
    assert done.stdout == b"True"


# Signals and the end of a program

PROGRAM = """
import os, signal, sys, threading, time
from vae_edge import Detector, DeviceError
from tests.tiny_bundles import dark_image, spotted_image

GOOD, BAD = dark_image(1), spotted_image(2)
detector = Detector.open(sys.argv[1])
"""

HANDLERS = """
# Python calls a handler between two steps of the main thread, so also within a call of the detector.
handled = 0
def judge(number, frame):
    global handled
    assert not detector.predict(GOOD).is_anomalous
    handled += 1
signal.signal(signal.SIGUSR1, judge)
def send():
    while handled < 40:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.02)
sender = threading.Thread(target=send)
sender.start()
while sender.is_alive():
    assert detector.predict(BAD).is_anomalous
signal.signal(signal.SIGALRM, lambda number, frame: another.close())
for number in range(12):
    another = Detector.open(sys.argv[1])
    signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.003 * number)
    try:
        while True:
            another.predict(BAD)
    except DeviceError as error:
        assert "has been closed" in str(error)
print("done")
"""

DAEMONS = """
def judge():
    while True:
        detector.predict(big)
import numpy as np
big = np.tile(BAD, (20, 20, 1))
for _ in range(3):
    threading.Thread(target=judge, daemon=True).start()
def load():
    while True:
        Detector.open(sys.argv[1]).close()
threading.Thread(target=load, daemon=True).start()
time.sleep(0.3)
print("done")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("program", [HANDLERS, DAEMONS], ids=["signal-handlers", "daemon-threads"])
def test_signal_handlers_and_daemon_threads_may_judge_and_close(bundle: Bundle, program: str) -> None:
    command = [sys.executable, "-c", PROGRAM + program, str(bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
