from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import MakeBundle
from vae_edge.benchmarks.jobs import (
    QUICK_RULES,
    LoadJob,
    OutputsJob,
    RoundJob,
    StartJob,
    StreamJob,
    read_job,
    write_job,
)
from vae_edge.benchmarks.machine import machine_facts
from vae_edge.benchmarks.processes import run_worker
from vae_edge.benchmarks.processor_load import CpuClock
from vae_edge.benchmarks.worker import peak_resident_bytes
from vae_edge.errors import DeviceError


def start_job(bundle: Path, images: Path) -> StartJob:
    files = tuple(map(str, sorted(images.glob("*.png"))))
    return StartJob(str(bundle), "cpu", 1, files, "vae_edge.backends.onnxruntime_backend", len(files))


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    opening: dict[str, Any] = {"bundle": "bundle", "device": "cpu", "threads": None, "images": ("a", "b")}
    for job in (
        StartJob(**opening, runtime_module="m", n_memory_images=2),
        RoundJob(**opening, runtime_module="m", n_memory_images=2, rules=QUICK_RULES, throughput_s=1.0),
        StreamJob(**opening, requests=None, batch_size=4, throughput_s=1.0),
        LoadJob(**opening, fps=30.0, load_s=1.0),
        OutputsJob(**opening, maps_file="maps.npy"),
    ):
        write_job(tmp_path / "job.json", job)
        assert read_job(tmp_path / "job.json") == job


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
    write_job(tmp_path / "job.json", start_job(make_bundle("light"), inspection_folder / "train/good"))
    code = (
        "import json, sys; from vae_edge.benchmarks.worker import main; "
        "status = main(sys.argv[1:]); print(json.dumps([status, *sys.modules]))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "job.json"), str(tmp_path / "result.json")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    status, *modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    ours = {name for name in modules if name.startswith(("vae_edge.train", "vae_edge.benchmarks"))}
    assert ours == {"vae_edge.benchmarks", "vae_edge.benchmarks.jobs", "vae_edge.benchmarks.worker"}
    assert not {"torch", "openvino", "psutil", "rich", "typer"} & set(modules)


def test_a_job_that_takes_too_long_is_stopped(make_bundle: MakeBundle, inspection_folder: Path) -> None:
    with pytest.raises(DeviceError, match="not done after 0 s"):
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
