from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import MakeBundle
from vae_edge.benchmarks.measure.conditions import CpuClock, machine_facts
from vae_edge.benchmarks.measure.instruments import QUICK_RULES, peak_resident_bytes
from vae_edge.benchmarks.measure.jobs import LoadJob, OutputsJob, RoundJob, StartJob, StreamJob, read_job
from vae_edge.benchmarks.measure.measurer import run_worker
from vae_edge.benchmarks.measure.process import run_job, run_process
from vae_edge.errors import DeviceError


def start_job(bundle: Path, images: Path) -> StartJob:
    files = tuple(map(str, sorted(images.glob("*.png"))))
    return StartJob(str(bundle), "cpu", 1, "fp32", files, "vae_edge.backends.onnxruntime_backend", len(files))


def test_a_job_is_read_as_it_was_written() -> None:
    opening: dict[str, Any] = {"bundle": "bundle", "device": "cpu", "threads": None, "images": ("a", "b")}
    opening["arithmetic"] = "auto"
    for job in (
        StartJob(**opening, runtime_module="m", n_memory_images=2),
        RoundJob(**opening, runtime_module="m", n_memory_images=2, rules=QUICK_RULES, throughput_s=1.0),
        StreamJob(**opening, requests=None, batch_size=4, throughput_s=1.0),
        LoadJob(**opening, fps=30.0, load_s=1.0),
        OutputsJob(**opening, maps_file="maps.npy"),
    ):
        assert read_job(json.loads(json.dumps(asdict(job)))) == job


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
def test_a_large_parent_does_not_enlarge_the_peak_of_its_worker(
    make_bundle: MakeBundle, inspection_folder: Path
) -> None:
    job = start_job(make_bundle("memory"), inspection_folder / "train/good")
    alone = run_worker(job, 60.0)["peak_resident_bytes"]
    ballast = bytearray(512 << 20)
    beside = run_worker(job, 60.0)["peak_resident_bytes"]
    own = peak_resident_bytes()
    assert own is not None
    assert own > len(ballast)
    assert abs(beside - alone) < 32 << 20


def test_the_start_is_timed_from_outside_and_covers_what_happens_inside(
    make_bundle: MakeBundle, inspection_folder: Path
) -> None:
    begin = time.perf_counter_ns()
    result = run_worker(start_job(make_bundle("start"), inspection_folder / "train/good"), 60.0)
    elapsed_ns = time.perf_counter_ns() - begin
    assert result.first_result_ns is not None
    inside_ns = sum(result[name] for name in ("import_s", "runtime_import_s", "open_s", "first_predict_s")) * 1e9
    assert inside_ns < result.first_result_ns < elapsed_ns


def test_the_start_imports_no_metrics_no_report_and_no_other_runtime(
    make_bundle: MakeBundle, inspection_folder: Path, tmp_path: Path
) -> None:
    job = start_job(make_bundle("light"), inspection_folder / "train/good")
    (tmp_path / "job.json").write_text(json.dumps(asdict(job)))
    code = (
        "import json, sys; from vae_edge.benchmarks.measure.worker import do, serve; "
        "status = serve(sys.argv[1:], do); print(json.dumps([status, *sys.modules]))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "job.json"), str(tmp_path / "result.json")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    status, *modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    ours = {name for name in modules if name.startswith(("vae_edge.train", "vae_edge.benchmarks"))}
    ours -= {"vae_edge.benchmarks", "vae_edge.benchmarks.measure"}
    allowed = {"instruments", "jobs", "worker"}
    assert {name.removeprefix("vae_edge.benchmarks.measure.") for name in ours} == allowed
    assert not {"torch", "openvino", "psutil", "rich", "typer"} & set(modules)


def test_a_job_that_takes_too_long_is_stopped(make_bundle: MakeBundle, inspection_folder: Path) -> None:
    with pytest.raises(DeviceError, match="not finished after 0 s"):
        run_worker(start_job(make_bundle("slow"), inspection_folder / "train/good"), 0.01)


def test_the_workers_own_words_are_the_reason(inspection_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"is not a bundle: there is no manifest\.json"):
        run_worker(start_job(tmp_path, inspection_folder / "train/good"), 60.0)


def test_another_program_at_work_is_noticed() -> None:
    pytest.importorskip("psutil")
    clock = CpuClock()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.7: pass"], check=True)
    busy = clock.foreign_cores()
    assert busy is not None
    assert busy > 0.3


def test_machine_facts_are_known_or_absent_but_never_empty() -> None:
    facts = machine_facts()
    assert facts.cores_usable >= 1
    assert facts.packages["numpy"]
    values = facts.model_dump(exclude_none=True)
    assert all(value != "" and value != 0 for name, value in values.items() if not name.startswith("load_average"))


def test_a_process_that_hangs_is_stopped() -> None:
    with pytest.raises(DeviceError, match="not finished after 1 s"):
        run_process([sys.executable, "-c", "import time; time.sleep(60)"], 1.0)


def test_a_process_that_is_cancelled_is_stopped_at_once() -> None:
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="it was cancelled"):
        run_process([sys.executable, "-c", "import time; time.sleep(60)"], math.inf, cancel=cancel)
    assert time.monotonic() - begin < 30


def test_a_process_is_timed_to_its_first_result_and_its_memory_is_read() -> None:
    script = "import time; print('first', flush=True); time.sleep(0.5); print('end')"
    seen = run_process([sys.executable, "-c", script], 60.0, is_first_result="first".__eq__, watch_memory=True)
    assert seen.first_result_ns is not None
    assert 0 < seen.first_result_ns < 60e9
    assert seen.output.split() == ["first", "end"]
    assert sys.platform != "linux" or (seen.peak_bytes or 0) > 1_000_000


def test_how_a_process_ended_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"^it ended with status 1: it broke$"):
        run_process([sys.executable, "-c", "import sys; print('all well'); sys.exit('it broke')"], 60.0)
    with pytest.raises(DeviceError, match="cannot be started"):
        run_process([str(tmp_path / "no-program")], 60.0)
    if sys.platform != "win32":
        seen = run_process([sys.executable, "-c", "import os; os.abort()"], 60.0, must_succeed=False)
        assert seen.ending.startswith("was ended by SIGABRT")
    log = tmp_path / "log.txt"
    run_process([sys.executable, "-c", "import sys; sys.stderr.write('kept')"], 60.0, log=log)
    assert log.read_text() == "kept"


def test_a_jobs_progress_is_heard_while_it_works_and_stands_in_its_log(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from vae_edge.benchmarks.measure.instruments import Notes, serve\n"
        "def do(job):\n"
        "    Notes().note('half of it')\n"
        "    return {}\n"
        "sys.exit(serve(sys.argv[1:], do))\n"
    )
    heard: list[str] = []
    log = tmp_path / "log.txt"
    run_job([sys.executable, str(script)], {}, 60.0, log=log, hear=heard.append)
    assert heard == ["half of it"]
    assert log.read_text() == "half of it\n"
