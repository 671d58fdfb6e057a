"""`check.sh` without a GPU, and with doubles of the driver, of TensorRT and of torch's CUDA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu import check
from tests.gpu.check import EXIT_FAILED, EXIT_NOTHING_RAN, FAILED, LOG, NOT_RUN, RAN, ROOT, STEPS, SUMMARY
from tests.gpu.steps import STEPS as FUNCTIONS
from vae_edge.backends.cuda.gpus import find_gpus
from vae_edge.errors import DeviceError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="check.sh is for Linux")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are for 16 cores; a busy machine without a GPU may take longer."""
    monkeypatch.setattr(check, "STEPS", tuple(replace(step, limit_s=20 * step.limit_s) for step in STEPS))


def run(which: str, out: Path, *arguments: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Run the check with doubles; return the exit code, each step's outcome and reason, and the summary."""
    program = (sys.executable, "-m", "tests.gpu.fake_steps", which)
    code = check.main(["--out", str(out), "--limit", "3600", *arguments], program)
    text = (out / SUMMARY).read_text(encoding="utf-8")
    return code, outcomes(text), text


def outcomes(summary: str) -> dict[str, tuple[str, str]]:
    """Return what the summary's table says of each step, by the step's name."""
    names = {step.title: step.name for step in STEPS}
    rows = [re.split(r" \| |^\| | \|$", line) for line in summary.splitlines() if line.startswith("| ")]
    found = {names[row[1]]: row[2].partition(": ") for row in rows if row[1] in names}
    return {name: (outcome, reason) for name, (outcome, _, reason) in found.items()}


def test_every_step_has_a_function_and_all_fit_into_the_log() -> None:
    assert [step.name for step in STEPS] == list(FUNCTIONS)
    assert STEPS[0].name == "machine"
    assert len({step.title for step in STEPS}) == len(STEPS)


def test_without_a_gpu_nothing_runs_and_the_reason_and_the_exit_code_say_so(tmp_path: Path) -> None:
    try:
        pytest.skip(f"this machine has {find_gpus()[0]}")
    except DeviceError as error:
        driver = str(error.__cause__)
    done = subprocess.run(
        ["bash", str(ROOT / "tests/gpu/check.sh")],
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == EXIT_NOTHING_RAN, done.stderr
    found = outcomes((tmp_path / "out" / SUMMARY).read_text(encoding="utf-8"))
    assert set(found) == {step.name for step in STEPS}
    assert found.pop("machine") == (NOT_RUN, f"no NVIDIA GPU can be used here: {driver}")
    assert set(found.values()) == {(NOT_RUN, "there is no NVIDIA GPU")}
    assert (tmp_path / "out" / LOG).read_text(encoding="utf-8").startswith("==> machine\n")


def test_wheels_that_do_not_install_and_unknown_steps_are_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    for variables in ({"WHEELS": str(tmp_path)}, {"STEPS": "machine test"}):
        done = subprocess.run(
            ["bash", str(ROOT / "tests/gpu/check.sh")],
            env={**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
    assert "invalid choice: 'test'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_sound_device_runs_what_is_installed_and_says_what_is_not(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    steps = ("cuda-driver", "cuda-driver-copies", "cuda-pycuda", "cuda-cuda-bindings", "tensorrt-rtx")
    code, found, text = run("sound", tmp_path, *steps)
    assert code == 0, text
    assert [found[name][0] for name in ("machine", "cuda-driver", "cuda-driver-copies")] == [RAN] * 3
    for name in ("pycuda", "cuda-bindings"):
        outcome, reason = found[f"cuda-{name}"]
        assert outcome == NOT_RUN
        assert f'pip install "vae-edge[{name}]"' in reason
    assert found["tensorrt-rtx"][0] == NOT_RUN
    assert "TensorRT-RTX is not installed" in found["tensorrt-rtx"][1]
    assert "240 round trips from 4 threads" in text
    assert list(found) == ["machine", *steps]
    assert "2 ran" not in text


@pytest.mark.slow
def test_tensorrt_runs_the_shipped_bundles_and_times_one(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code, found, text = run("sound", tmp_path / "sound", "tensorrt")
    assert (code, found["tensorrt"]) == (0, (RAN, "")), text
    assert text.count("-tensorrt-") == 4
    assert text.count("verdicts: 16 of 16 are the trained model's") == 3
    assert re.search(r"1024 verdicts, p50 [\d.]+ ms", text)
    code, found, text = run("wrong-engine", tmp_path / "wrong", "tensorrt")
    assert code == EXIT_FAILED
    assert found["tensorrt"][0] == FAILED
    assert "does not give its reference outputs" in found["tensorrt"][1]


def test_bytes_that_change_on_their_way_are_a_failure(tmp_path: Path) -> None:
    code, found, _ = run("corrupting", tmp_path, "cuda-driver")
    assert code == EXIT_FAILED
    assert found["cuda-driver"][0] == FAILED
    assert "came back with other bytes" in found["cuda-driver"][1]


@pytest.mark.slow
def test_torch_on_cuda_has_to_give_the_scores_of_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    code, found, text = run("torch", tmp_path / "sound", "torch")
    assert (code, found["torch"]) == (0, (RAN, "")), text
    assert "scores within 0.0e+00 of the CPU's" in text
    code, found, _ = run("torch-differs", tmp_path / "differs", "torch")
    assert code == EXIT_FAILED
    assert found["torch"][0] == FAILED
    assert re.search(r"scores within \d.\de-0[34] of the CPU's, .*; at most 2e-04 is allowed", found["torch"][1])


def test_a_crash_is_a_failure_with_what_the_process_wrote_last(tmp_path: Path) -> None:
    code, found, _ = run("crash", tmp_path, "cuda-driver", "cuda-pycuda")
    assert code == EXIT_FAILED
    assert found["machine"][0] == RAN
    assert found["cuda-driver"] == (FAILED, "its process was ended by SIGSEGV")
    assert found["cuda-pycuda"] == (FAILED, "its process was ended by SIGSEGV")


def test_a_step_that_hangs_is_stopped_with_its_children_and_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = {step.name: step for step in check.STEPS}
    patient["cuda-driver"] = replace(patient["cuda-driver"], limit_s=4)
    monkeypatch.setattr(check, "STEPS", tuple(patient.values()))
    code, found, text = run("hang", tmp_path, "cuda-driver")
    assert code == EXIT_FAILED
    assert found["cuda-driver"] == (FAILED, "it had not ended after 4 s and was stopped")
    child = re.search(r"^child (\d+)$", text, re.MULTILINE)
    assert child is not None
    stat = Path(f"/proc/{child[1]}/stat")
    # Killed, though whoever inherited it may not have asked for its status yet.
    assert not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"


def test_what_has_no_time_left_is_not_run(tmp_path: Path) -> None:
    code, found, _ = run("sound", tmp_path, "cuda-driver", "--limit", "0.5")
    assert code == EXIT_NOTHING_RAN
    assert found["machine"] == (NOT_RUN, "the 0 s for all steps were over")
