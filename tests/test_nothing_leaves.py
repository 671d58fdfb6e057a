"""Opening, predicting, training, exporting and measuring want no network and leave nothing in the home folder."""

from __future__ import annotations

import importlib.util
import mmap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.network_recorder import Recorded, Recorder
from tests.tiny_bundles import TARGETS, dark_image, make_bundle, write_image

PREDICT = """
import sys, time
from vae_edge import Detector
_, bundle, picture, seconds = sys.argv
end = time.monotonic() + float(seconds)
with Detector.open(bundle) as detector:
    print(len(list(detector.stream([picture] * 4))))
    while time.monotonic() < end:
        detector.predict(picture)
        time.sleep(1)
"""

TRAIN_AND_EXPORT = """
import sys, time
from vae_edge.cli.main import invoke
_, pictures, targets, seconds = sys.argv
end = time.monotonic() + float(seconds)
def run(command, *arguments):
    code = invoke([str(argument) for argument in arguments], command=command)
    assert code == 0, (command, arguments, code)
size = ("--image-size", "32", "--tile-size", "none", "--n-features", "4", "--latent-vec-size", "8", "--epochs", "1")
run("train", "--data", pictures, "--out", "run", "--false-alarm-rate", "0.1", "--scoring", "default", *size)
budget = ("--max-auroc-drop", "1", "--max-flip-rate", "1")
run("export", "run", "--target", targets, "--precision", "all", "--out", "bundles", *budget)
for target in set(targets.split(",")) & {"openvino"}:
    run("export", "bundles/run-openvino-fp32", "--layout", "model-api", "--out", "bundles", "--data", pictures)
run("doctor")
run("inspect", "bundles/run-onnx-fp32")
run("bench", "bundles/run-onnx-fp32", "--data", pictures, "--report", "report", "--quick", "--rounds", "1")
time.sleep(max(0, end - time.monotonic()))
"""

VENDORS_DEFAULT = {
    "onnxruntime": "import onnxruntime, time\nfor _ in range(90): time.sleep(1)",
    "openvino": "import openvino, time\nfor _ in range(20): time.sleep(1)",
}


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    built = Recorder.build(tmp_path)
    yield built
    built.stop()


def test_the_recorder_hears_a_program_and_what_it_starts(recorder: Recorder) -> None:
    attempt = (
        "import socket, subprocess, sys\n"
        "try: socket.create_connection(('vae-edge.invalid', 80), timeout=1)\n"
        "except OSError: pass\n"
        "try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))\n"
        "except OSError: pass\n"
        "for call in ('connect', 'bind'):\n"
        "    family = socket.AF_INET if call == 'connect' else socket.AF_INET6\n"
        "    try: getattr(socket.socket(family), call)(('192.0.2.1' if call == 'connect' else '::1', 9))\n"
        "    except OSError: pass\n"
        "code = 'import socket; socket.gethostbyname(\"child.invalid\")'\n"
        "assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 1\n"
    )
    recorded = recorder.start("attempts", "-c", attempt)
    recorded.finish(60)
    heard = {call.split(" by ")[0] for call in recorded.attempts()}
    assert "getaddrinfo(vae-edge.invalid)" in heard
    assert {"sendto(family 2)", "connect(family 2)", "bind(family 10)"} <= heard
    assert any("child.invalid" in call for call in heard)


@pytest.mark.slow
def test_nothing_is_sent_and_nothing_is_left_in_the_home_folder(recorder: Recorder, tmp_path: Path) -> None:
    """For more than a minute: ONNX Runtime begins to upload 10 s after its import.

    All at once, as they mostly wait. What the vendors do by default runs beside: it shows that this would be heard.
    """
    pytest.importorskip("lightning")
    pytest.importorskip("onnxscript")
    from vae_edge.train.sample import SampleSettings, write_sample_set

    settings = SampleSettings(image_size=64, n_train=80, n_test_good=6, n_test_per_defect=1)
    (pictures,) = write_sample_set(tmp_path / "sample", ["dial"], settings)
    targets = ["onnx", "openvino", "torch", *(["tensorrt"] if importlib.util.find_spec("tensorrt_rtx") else [])]
    quiet = [recorder.start("train-and-export", "-c", TRAIN_AND_EXPORT, str(pictures), ",".join(targets), "75")]
    picture = write_image(tmp_path / "part.png", dark_image(0))
    for target in TARGETS:
        bundle = make_bundle(tmp_path / f"toy-{target}-fp32", target).folder
        quiet.append(recorder.start(f"predict-{target}", "-c", PREDICT, str(bundle), str(picture), "75"))
    loud = {
        name: recorder.start(f"default-{name}", "-c", code, variables={"ORT_DISABLE_TELEMETRY": "0"})
        for name, code in VENDORS_DEFAULT.items()
        if can_report(name)
    }
    for name, recorded in loud.items():
        wait_until(recorded.attempts, recorded)
        recorded.stop()
        assert recorded.attempts(), f"{name} reports by default, and the recorder did not hear it"
    for recorded in quiet:
        recorded.finish(600)
    assert {recorded.folder.name: recorded.attempts() for recorded in quiet if recorded.attempts()} == {}
    assert {recorded.folder.name: recorded.files_in_home() for recorded in quiet if recorded.files_in_home()} == {}
    # Beside what it was asked for.
    assert {path.name for path in quiet[0].working_folder.iterdir()} == {"run", "bundles", "report"}
    assert [path for recorded in quiet[1:] for path in recorded.working_folder.iterdir()] == []


def can_report(package: str) -> bool:
    """Tell whether an installed package has telemetry at all: older ones have none, and later ones may drop it."""
    if package == "openvino":
        return importlib.util.find_spec("openvino_telemetry") is not None
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (library,) = Path(spec.submodule_search_locations[0], "capi").glob("onnxruntime_pybind11_state*")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"ORT_DISABLE_TELEMETRY") >= 0


def wait_until(condition: Callable[[], object], recorded: Recorded) -> None:
    end = time.monotonic() + 120
    while not condition() and recorded.process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
