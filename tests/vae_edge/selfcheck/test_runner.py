"""Every kind of failure, provoked once: on a device that is a double, and in processes that crash, hang or lie."""

from __future__ import annotations

import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from tests.vae_edge.selfcheck.sent_file import read_file
from vae_edge.manifest_file import read_manifest
from vae_edge.selfcheck.constructs import construct_titles
from vae_edge.selfcheck.file import JSON_NAME, PAGE_NAME
from vae_edge.selfcheck.privacy import Redactor
from vae_edge.selfcheck.record import StepRecord, Verdict
from vae_edge.selfcheck.runner import Runner
from vae_edge.selfcheck.shipped import unpack_bundles
from vae_edge.selfcheck.steps import ADAPTERS, BundleToCheck, Plan, Step
from vae_edge.targets import Target

pytest.importorskip("onnxruntime")

CUDA = Step("cuda:driver", "GPU memory through driver", "cuda", {"adapter": "driver"}, 240)
CONSTRUCT = Step("construct:slices", "slices", "construct", {"name": "slices"}, 240)


@pytest.fixture
def bundles(tmp_path: Path) -> dict[str, Path]:
    return {folder.name: folder for folder in unpack_bundles(tmp_path / "bundles")}


def run(
    tmp_path: Path, which: str, *steps: Step, total_s: float = 600.0, limit_s: float | None = None
) -> list[StepRecord]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    own_cache = {"VAE_EDGE_CACHE": str(tmp_path / "cache")}
    worker = (sys.executable, "-X", "faulthandler", "-m", "tests.vae_edge.selfcheck.fake_worker", which)
    told: list[StepRecord] = []
    runner = Runner(
        tmp_path / "sent.zip", Redactor(), on_step=told.append, worker=worker, total_s=total_s, limit_s=limit_s
    )
    record = runner.run_steps([replace(step, variables=own_cache) for step in steps], scratch)
    assert read_file(tmp_path / "sent.zip") == record
    assert list(record.steps) == told
    assert record.is_complete
    return told


def references(folder: Path, device: str = "auto") -> Step:
    return Step(f"bundle:{folder.name}", folder.name, "references", {"folder": str(folder), "device": device}, 120)


def test_a_sound_device_gives_the_stored_answers(tmp_path: Path, bundles: dict[str, Path]) -> None:
    # The double computes with ONNX Runtime; 1.18 and 1.24.1 compute pairs with FP16 scales wrongly here, 1.32 right.
    is_old = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32)
    engine = references(bundles["pixels-tensorrt-fp32" if is_old else "pixels-tensorrt-int8"])
    cuda, construct, references_of_engine = run(tmp_path, "sound", CUDA, CONSTRUCT, engine)
    assert (cuda.verdict, cuda.facts["n_wrong"], cuda.facts["n_round_trips"]) == (Verdict.OK, 0, 240)
    assert construct.verdict is Verdict.OK, construct
    assert construct.facts["largest_difference"] <= construct.facts["tolerance"]
    assert references_of_engine.verdict is Verdict.OK, references_of_engine
    assert any("rebuilt from model.onnx" in line for line in references_of_engine.lines)


def test_a_second_start_takes_the_engine_that_the_first_one_built(tmp_path: Path, bundles: dict[str, Path]) -> None:
    arguments = {"folder": str(bundles["pixels-tensorrt-fp32"]), "device": "auto", "state": str(tmp_path / "first.npz")}
    steps = [Step(f"start:{which}", which, "start", arguments, 120) for which in ("first", "second")]
    timing = Step("timing", "timing", "timing", {**arguments}, 120)
    first, second, timed = run(tmp_path, "sound", *steps, timing)
    assert (first.verdict, first.facts["is_from_cache"]) == (Verdict.OK, False)
    assert (second.verdict, second.facts["equal_outputs"], second.facts["is_from_cache"]) == (Verdict.OK, True, True)
    assert (timed.verdict, timed.facts["n_scores_not_equal"]) == (Verdict.OK, 0), timed


@pytest.mark.slow
def test_every_construct_gives_its_answers_on_the_double(tmp_path: Path) -> None:
    steps = [Step(f"construct:{name}", name, "construct", {"name": name}) for name in construct_titles()]
    assert {step.key: step.reason for step in run(tmp_path, "sound", *steps) if step.verdict is not Verdict.OK} == {}


def test_an_adapter_that_changes_a_byte_differs(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "corrupting", CUDA)
    assert found.verdict is Verdict.DIFFERS
    assert "of 240 round trips came back with other bytes" in (found.reason or "")


def test_an_engine_with_wrong_values_differs(tmp_path: Path, bundles: dict[str, Path]) -> None:
    construct, engine = run(tmp_path, "wrong-engine", CONSTRUCT, references(bundles["pixels-tensorrt-fp32"]))
    assert construct.verdict is Verdict.DIFFERS
    assert "5.00e-01" in (construct.reason or "")
    assert engine.verdict is Verdict.DIFFERS
    assert "does not give its reference outputs" in (engine.reason or "")


def test_an_engine_that_gives_nan_differs(tmp_path: Path, bundles: dict[str, Path]) -> None:
    construct, engine = run(tmp_path, "nan-engine", CONSTRUCT, references(bundles["pixels-tensorrt-fp32"]))
    assert construct.verdict is Verdict.DIFFERS
    assert "are not finite numbers" in (construct.reason or "")
    assert engine.verdict in (Verdict.DIFFERS, Verdict.FAILED)


def test_a_score_that_is_nan_differs(tmp_path: Path, bundles: dict[str, Path]) -> None:
    (found,) = run(tmp_path, "nan", references(bundles["pixels-onnx-fp32"], "cpu"))
    assert found.verdict is Verdict.DIFFERS
    assert "nan" in (found.reason or "")


def test_verdicts_that_change_with_time_differ(tmp_path: Path, bundles: dict[str, Path]) -> None:
    folder = str(bundles["pixels-onnx-fp32"])
    timing = Step("timing", "timing", "timing", {"folder": folder, "device": "cpu"}, 120)
    soak = Step("soak", "soak", "soak", {"folder": folder, "device": "cpu", "minutes": 0.05}, 120, is_soak=True)
    for found in run(tmp_path, "drift", timing, soak):
        assert found.verdict is Verdict.DIFFERS
        assert "not the first one for the same picture" in (found.reason or "") or "move by" in (found.reason or "")


@pytest.mark.skipif(os.name != "posix", reason="ends a process by a signal")
def test_a_crash_is_a_failed_step_and_the_next_one_runs(tmp_path: Path) -> None:
    first, second = run(tmp_path, "crash", CUDA, Step("machine", "the machine", "machine"))
    for found in (first, second):
        assert found.verdict is Verdict.FAILED
        assert found.reason == "its process was ended by SIGSEGV without a result"
        assert "Segmentation fault" in (found.messages or "")
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [PAGE_NAME, JSON_NAME]


def test_a_crash_at_the_end_of_the_process_is_seen_although_there_is_a_result(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "crash-at-exit", CUDA)
    assert found.verdict is Verdict.FAILED
    assert "after its result" in (found.reason or "")
    assert found.facts["n_wrong"] == 0


def test_a_step_that_never_ends_is_stopped(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "hang", CUDA, limit_s=1.5)
    assert found.verdict is Verdict.FAILED
    assert found.reason == "it had not ended after 2 s and was stopped"
    assert 1 < (found.seconds or 0) < 20


def test_what_would_begin_after_the_ten_minutes_is_skipped(tmp_path: Path) -> None:
    first, second = run(tmp_path, "hang", CUDA, CONSTRUCT, total_s=6.0)
    assert first.verdict is Verdict.FAILED
    assert (second.verdict, second.seconds) == (Verdict.SKIPPED, None)


def probed(runtime: str, status: str, *devices: str) -> StepRecord:
    facts = {"status": status, "devices": list(devices), "notes": "", "version": "1", "fix": None}
    return StepRecord(key=f"runtime:{runtime}", title=runtime, verdict=Verdict.OK, facts=facts, reason="probed")


def test_the_steps_follow_from_what_is_on_the_device(tmp_path: Path, bundles: dict[str, Path]) -> None:
    given = BundleToCheck(
        "given-1", bundles["tiles-openvino-int8"], read_manifest(bundles["tiles-openvino-int8"]), True
    )
    shipped = [BundleToCheck(name, folder, read_manifest(folder), False) for name, folder in bundles.items()]
    found = [
        probed("onnxruntime", "works", "cpu", "cuda"),
        probed("openvino", "works", "cpu", "gpu", "npu"),
        probed("tensorrt", "works", "cuda:0 (Orin, ...)"),
        probed("torch", "missing"),
        probed("cuda", "works", "cuda:0 (Orin, ...)"),
    ]
    (tmp_path / "scratch").mkdir()
    steps = list(Plan(found, [given, *shipped], tmp_path / "scratch", 5.0).steps())
    keys = [step.key for step in steps]
    assert keys[: len(ADAPTERS)] == [f"cuda:{name}" for name in ADAPTERS]
    assert len(set(keys)) == len(keys)
    assert [key for key in keys if key.startswith("bundle:given-1")] == [
        f"bundle:given-1:{d}" for d in ("cpu", "gpu", "npu")
    ]
    assert {"bundle:tiles-onnx-fp16:cuda", "bundle:features-tensorrt-int8:auto"} <= set(keys)
    skipped = {step.key: step.skipped_because for step in steps if step.skipped_because}
    assert skipped == {"bundle:torch": "probed"}
    soak = steps[-1]
    assert (soak.key, soak.is_soak, soak.arguments["minutes"]) == ("soak", True, 5.0)
    assert soak.arguments["device"] == "gpu"


def test_without_a_gpu_tensorrt_rtx_builds_and_full_tensorrt_is_skipped(
    tmp_path: Path, bundles: dict[str, Path]
) -> None:
    shipped = [BundleToCheck(name, folder, read_manifest(folder), False) for name, folder in bundles.items()]
    (tmp_path / "scratch").mkdir()

    def keys(status: str) -> set[str]:
        found = [probed("cuda", "missing"), probed("tensorrt", status)]
        return {step.key for step in Plan(found, shipped, tmp_path / "scratch", 0).steps() if not step.skipped_because}

    building = keys("partly")
    assert {f"construct:{name}" for name in construct_titles()} <= building
    assert "build:tiles-tensorrt-int8" in building
    assert keys("broken") == keys("missing") == set()
    found = [probed("cuda", "missing"), probed("onnxruntime", "works", "cpu", "cuda")]
    plan = Plan(found, shipped, tmp_path / "scratch", 0)
    assert plan.devices(Target.ONNX) == ["cpu"]
