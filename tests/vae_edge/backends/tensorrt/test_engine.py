"""Which engine runs, through the double; and real TensorRT-RTX, which builds without a GPU, in two processes."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vae_edge.backends.tensorrt_double import CudaDouble, TensorRtDouble
from tests.vae_edge.backends.tensorrt_models import make_onnx
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.gpus import Gpu
from vae_edge.backends.tensorrt.engine import Rebuild
from vae_edge.backends.tensorrt.module import find_tensorrt
from vae_edge.backends.tensorrt_backend import TensorRtBackend
from vae_edge.cache.compiled import building, entries, keep
from vae_edge.cache.folders import compiled_cache_folder
from vae_edge.errors import DeviceError, MissingDependencyError
from vae_edge.manifest import graph_inputs, graph_outputs

ROOT = Path(__file__).parents[4]
ONNX = make_onnx()
ORIN = Gpu(0, "Orin", "8.7")
OTHER_VERSION = "10.13.0.35"
OPTIONS = RuntimeOptions(model_sha256="a" * 64)

Spoil = Callable[[Path, TensorRtDouble], None]


def open_model(
    plan: Path, double: TensorRtDouble, options: RuntimeOptions = OPTIONS, gpu: Gpu = ORIN, max_batch: int = 4
) -> TensorRtBackend:
    double.cuda.closed = 0  # The device is opened again.
    return TensorRtBackend(
        plan,
        graph_inputs(32, 32),
        graph_outputs(32, 32),
        max_batch=max_batch,
        options=options,
        find_module=double.find_module,
        open_memory=double.open_memory,
        find_gpus=lambda: [gpu],
    )


def score(backend: TensorRtBackend) -> float:
    with backend:
        return float(backend.run({"image": np.full((1, 32, 32, 3), 99, np.uint8)})["score"][0])


def kept() -> list[str]:
    return [entry.kind for entry in entries()]


@pytest.fixture
def double() -> TensorRtDouble:
    return TensorRtDouble(CudaDouble())


@pytest.fixture
def plan(tmp_path: Path, double: TensorRtDouble) -> Path:
    """A bundle's engine for another version, and the ONNX beside it."""
    double.write_plan(tmp_path / "model.engine", ONNX, version=OTHER_VERSION)
    (tmp_path / "model.onnx").write_bytes(ONNX)
    return tmp_path / "model.engine"


def other_version(plan: Path, double: TensorRtDouble) -> None:
    double.write_plan(plan, ONNX, version=OTHER_VERSION)


def other_flavour(plan: Path, double: TensorRtDouble) -> None:
    TensorRtDouble(CudaDouble(), version="1.7.1.116", flavour="tensorrt_rtx").write_plan(plan, ONNX)


def damaged_header(plan: Path, double: TensorRtDouble) -> None:
    plan.write_bytes(b"PK\x03\x04" + bytes(100))


def too_small(plan: Path, double: TensorRtDouble) -> None:
    double.write_plan(plan, ONNX, max_batch=2)


SPOILT: tuple[tuple[Spoil, str], ...] = (
    (other_version, "is for TensorRT 10.13.0.35, but TensorRT 10.3.0 is installed"),
    (other_flavour, "is for TensorRT-RTX 1.7.1.116, but TensorRT 10.3.0 is installed"),
    (damaged_header, "is not a TensorRT engine, or is damaged"),
    (too_small, "supports batches up to 2, but 4 is required"),
)


class TestRebuilding:
    @pytest.mark.parametrize(("spoil", "reason"), SPOILT)
    def test_an_engine_that_does_not_fit_is_rebuilt_once_and_found_from_then_on(
        self, plan: Path, double: TensorRtDouble, caplog: pytest.LogCaptureFixture, spoil: Spoil, reason: str
    ) -> None:
        spoil(plan, double)
        before = {path.name: path.read_bytes() for path in plan.parent.iterdir()}
        first = open_model(plan, double)
        assert first.notes == (
            f"the engine of this bundle {reason}: rebuilt from model.onnx in 0 s; "
            "the bundle's references are run on it now, unless it is too old to have any",
        )
        assert first.notes[0] in caplog.text
        assert first.max_batch == 4
        expected = score(first)
        assert len(double.built) == 1
        assert {path.name: path.read_bytes() for path in plan.parent.iterdir()} == before
        second = open_model(plan, double)
        assert len(double.built) == 1
        assert second.notes == (
            f"the engine of this bundle {reason}: using the one that was built here from model.onnx",
        )
        assert score(second) == expected
        assert double.cuda.live() == 0

    def test_a_plan_that_tensorrt_does_not_take_is_rebuilt(self, plan: Path, double: TensorRtDouble) -> None:
        double.write_plan(plan, b"of another GPU")
        double.refused.append(plan.read_bytes())
        backend = open_model(plan, double)
        assert "does not load with TensorRT 10.3.0: deserialize_cuda_engine was told to fail" in backend.notes[0]
        score(backend)

    def test_an_engine_that_fits_is_not_rebuilt(self, plan: Path, double: TensorRtDouble) -> None:
        double.write_plan(plan, ONNX)
        with open_model(plan, double) as backend:
            assert backend.notes == ()
        assert not double.built
        assert not compiled_cache_folder().exists()

    def test_an_unknown_version_in_the_header_is_tried_first(self, plan: Path, double: TensorRtDouble) -> None:
        content = bytearray(double.plan_bytes(ONNX, {"image": [1, 1, 8]}))
        content[24:28] = bytes(4)
        plan.write_bytes(bytes(content))
        with open_model(plan, double) as backend:
            assert backend.notes == ()

    @pytest.mark.parametrize(
        "change",
        [
            {"gpu": Gpu(0, "Thor", "11.0")},
            {"max_batch": 6},
            {"options": RuntimeOptions(model_sha256="b" * 64)},
        ],
    )
    def test_another_gpu_batch_or_model_gets_an_engine_of_its_own(
        self, plan: Path, double: TensorRtDouble, change: dict[str, Any]
    ) -> None:
        open_model(plan, double).close()
        open_model(plan, double, **change).close()
        assert len(double.built) == 2
        assert kept().count("tensorrt") == 2

    def test_a_damaged_entry_of_the_cache_is_built_anew(self, plan: Path, double: TensorRtDouble) -> None:
        open_model(plan, double).close()
        (entry,) = (entry for entry in entries() if entry.kind == "tensorrt")
        content = next(path for path in entry.files if path.suffix == ".bin")
        content.write_bytes(content.read_bytes()[:-1] + b"!")
        score(open_model(plan, double))
        assert len(double.built) == 2

    def test_a_kept_engine_that_does_not_load_any_more_is_built_anew(
        self, plan: Path, double: TensorRtDouble, caplog: pytest.LogCaptureFixture
    ) -> None:
        open_model(plan, double).close()
        (entry,) = (entry for entry in entries() if entry.kind == "tensorrt")
        double.refused.append(next(path for path in entry.files if path.suffix == ".bin").read_bytes())
        double.built_differ = True
        score(open_model(plan, double))
        assert "the engine that was built here before does not load" in caplog.text
        assert len(double.built) == 2

    def test_the_steps_are_told(self, plan: Path, double: TensorRtDouble) -> None:
        steps: list[tuple[str, int, int]] = []
        options = RuntimeOptions(model_sha256="a" * 64, progress=lambda *step: steps.append(step))
        open_model(plan, double, options).close()
        assert steps[0] == ("building the engine: Building", 0, 2)
        assert steps[-1] == ("building the engine: Building", 2, 2)

    def test_without_the_models_hash_nothing_is_kept(self, plan: Path, double: TensorRtDouble) -> None:
        for _ in range(2):
            score(open_model(plan, double, RuntimeOptions()))
        assert len(double.built) == 2
        assert set(kept()) == {"tensorrt-timings"}

    def test_a_cache_that_cannot_be_written_costs_a_build_and_no_prediction(
        self, plan: Path, double: TensorRtDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "model.onnx"))
        score(open_model(plan, double))
        assert len(double.built) == 1

    def test_the_timings_of_a_build_serve_the_next(self, plan: Path, double: TensorRtDouble) -> None:
        open_model(plan, double, max_batch=4).close()
        assert sorted(kept()) == ["tensorrt", "tensorrt-timings"]
        open_model(plan, double, max_batch=5).close()
        assert [config.given for config in double.built] == [b"", b"timings"]


class TestKindsOfGpus:
    """An engine that loads may still be for another GPU: every Orin names itself so, and has other multiprocessors."""

    BIG, SMALL = Gpu(0, "Orin", "8.7", 16), Gpu(0, "Orin", "8.7", 8)

    @pytest.fixture
    def plan(self, plan: Path, double: TensorRtDouble) -> Path:
        double.write_plan(plan, ONNX)
        return plan

    def test_an_engine_for_this_kind_of_gpu_runs(self, plan: Path, double: TensorRtDouble) -> None:
        with open_model(plan, double, replace(OPTIONS, built_for=self.BIG.kind), self.BIG) as backend:
            assert backend.notes == ()
        assert not double.built

    def test_one_for_an_orin_with_other_multiprocessors_is_rebuilt_for_this_one(
        self, plan: Path, double: TensorRtDouble
    ) -> None:
        options = replace(OPTIONS, built_for=self.BIG.kind)
        backend = open_model(plan, double, options, self.SMALL)
        assert backend.notes == (
            "the engine of this bundle is for Orin (8.7, 16 SMs), but this GPU is Orin (8.7, 8 SMs): rebuilt from "
            "model.onnx in 0 s; the bundle's references are run on it now, unless it is too old to have any",
        )
        score(backend)
        score(open_model(plan, double, options, self.SMALL))
        assert len(double.built) == 1, "it is found again"

    def test_where_building_is_ruled_out_both_kinds_are_told(self, plan: Path, double: TensorRtDouble) -> None:
        options = RuntimeOptions(rebuild=False, built_for=self.BIG.kind)
        with pytest.raises(
            DeviceError, match=r"16 SMs\), but this GPU is Orin \(8\.7, 8 SMs\); .*rebuilding is disabled"
        ):
            open_model(plan, double, options, self.SMALL)

    def test_an_engine_whose_record_does_not_say_it_is_left_to_tensorrt(
        self, plan: Path, double: TensorRtDouble
    ) -> None:
        with open_model(plan, double, OPTIONS, self.SMALL) as backend:
            assert backend.notes == ()

    def test_an_engine_of_tensorrt_rtx_is_for_many_kinds(self, plan: Path) -> None:
        double = TensorRtDouble(CudaDouble(), version="1.7.1.116", flavour="tensorrt_rtx")
        double.write_plan(plan, ONNX)
        with open_model(plan, double, replace(OPTIONS, built_for=self.BIG.kind), self.SMALL) as backend:
            assert backend.notes == ()


class TestRefusing:
    @pytest.mark.parametrize(("spoil", "reason"), SPOILT)
    def test_where_building_is_ruled_out_the_error_says_what_differs_and_what_to_do(
        self, plan: Path, double: TensorRtDouble, spoil: Spoil, reason: str
    ) -> None:
        spoil(plan, double)
        with pytest.raises(DeviceError) as caught:
            open_model(plan, double, RuntimeOptions(model_sha256="a" * 64, rebuild=False))
        for part in (
            str(plan),
            reason,
            "Orin, compute capability 8.7",
            f"vae-export {plan.parent} --target tensorrt --out DIR",
        ):
            assert part in str(caught.value)
        assert not double.built
        assert double.cuda.live() == 0

    def test_one_that_was_built_before_runs_where_building_is_ruled_out(
        self, plan: Path, double: TensorRtDouble
    ) -> None:
        open_model(plan, double).close()
        score(open_model(plan, double, RuntimeOptions(model_sha256="a" * 64, rebuild=False)))
        assert len(double.built) == 1

    def test_without_the_onnx_nothing_can_be_built(self, plan: Path, double: TensorRtDouble) -> None:
        (plan.parent / "model.onnx").unlink()
        with pytest.raises(
            DeviceError,
            match=r"model\.onnx, from which to build one that fits, is missing: copy or export the bundle again",
        ):
            open_model(plan, double)

    @pytest.mark.parametrize("call", ["Builder", "parse", "build_serialized_network"])
    def test_a_build_that_fails_says_why_and_leaves_nothing(
        self, plan: Path, double: TensorRtDouble, call: str
    ) -> None:
        double.faults.add(call)
        with pytest.raises(
            DeviceError, match=r"is for TensorRT 10\.13\.0\.35, .*; building one for cuda:0 .* failed: "
        ):
            open_model(plan, double)
        assert entries() == []
        assert double.cuda.live() == 0
        double.faults.clear()
        score(open_model(plan, double))

    def test_a_new_engine_that_does_not_load_either_is_not_kept(self, plan: Path, double: TensorRtDouble) -> None:
        double.faults.add("deserialize_cuda_engine")
        with pytest.raises(DeviceError, match=r"the one built from model\.onnx does not load with TensorRT 10\.3\.0"):
            open_model(plan, double)
        assert kept() == ["tensorrt-timings"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
    def test_an_interrupted_build_leaves_nothing_and_no_lock(
        self, plan: Path, double: TensorRtDouble, error: type[BaseException]
    ) -> None:
        def interrupt(*step: object) -> None:
            raise error

        with pytest.raises(error):
            open_model(plan, double, RuntimeOptions(model_sha256="a" * 64, progress=interrupt))
        assert entries() == []
        assert double.cuda.live() == 0
        score(open_model(plan, double))

    def test_without_any_tensorrt_the_package_of_the_engines_flavour_is_named(
        self, plan: Path, double: TensorRtDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def find_nothing(flavour: str | None) -> Any:
            raise MissingDependencyError(f"{flavour} is not installed")

        monkeypatch.setattr(double, "find_module", find_nothing)
        with pytest.raises(MissingDependencyError, match=r"^tensorrt is not installed"):
            open_model(plan, double)


class TestRtxValidity:
    @pytest.fixture
    def double(self) -> TensorRtDouble:
        return TensorRtDouble(CudaDouble(), version="1.7.1.116", flavour="tensorrt_rtx")

    @pytest.fixture
    def plan(self, tmp_path: Path, double: TensorRtDouble) -> Path:
        double.write_plan(tmp_path / "model.engine", ONNX)
        (tmp_path / "model.onnx").write_bytes(ONNX)
        return tmp_path / "model.engine"

    @pytest.mark.parametrize("validity", [0, 1])
    def test_an_engine_that_is_valid_or_only_slow_runs(self, plan: Path, double: TensorRtDouble, validity: int) -> None:
        double.validity = (validity, 2 * validity)
        with open_model(plan, double) as backend:
            assert backend.notes == ()

    def test_one_for_another_gpu_is_rebuilt_without_being_loaded(self, plan: Path, double: TensorRtDouble) -> None:
        double.validity = (2, 2)
        with pytest.raises(
            DeviceError, match=r"is not valid here according to TensorRT-RTX .*: UNSUPPORTED_CC; building one"
        ):
            # The double says the same of the new one.
            open_model(plan, double)
        assert len(double.built) == 1
        assert "deserialize_cuda_engine" not in double.cuda.events

    def test_what_no_engine_would_mend_is_told_at_once(self, plan: Path, double: TensorRtDouble) -> None:
        double.validity = (2, 4)
        with pytest.raises(DeviceError, match="OLD_CUDA_DRIVER; update the GPU's driver"):
            open_model(plan, double)
        assert not double.built

    def test_gpus_before_ampere_are_named_to_the_builder(self, plan: Path, double: TensorRtDouble) -> None:
        def settings(capability: str) -> tuple[str, ...]:
            gpu = Gpu(0, "a GPU", capability)
            return Rebuild(plan, double.module, gpu, None, double.cuda.activate).settings.compute_capabilities

        assert settings("7.5") == ("7.5",)
        assert settings("8.6") == ()
        assert settings("12.0") == ()


class TestAtOnce:
    def test_threads_that_open_at_once_build_once(self, plan: Path) -> None:
        started = threading.Barrier(4)
        doubles = [TensorRtDouble(CudaDouble()) for _ in range(4)]

        def work(double: TensorRtDouble) -> float:
            started.wait(30)
            return score(open_model(plan, double))

        with ThreadPoolExecutor(4) as pool:
            scores = list(pool.map(work, doubles))
        assert len(set(scores)) == 1
        assert sum(len(double.built) for double in doubles) == 1

    def test_one_waits_for_the_other_and_finds_what_it_built(
        self, plan: Path, double: TensorRtDouble, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        key = Rebuild(plan.with_name("model.onnx"), double.module, ORIN, 4, double.cuda.activate).key("a" * 64)
        waits, steps = threading.Event(), []

        def tell(*step: Any) -> None:
            steps.append(step)
            waits.set()

        results: list[float] = []
        options = RuntimeOptions(model_sha256="a" * 64, progress=tell)
        thread = threading.Thread(target=lambda: results.append(score(open_model(plan, double, options))))
        with building(key):
            thread.start()
            assert waits.wait(30)
            assert not results
            content = double.plan_bytes(ONNX, {"image": [1, 1, 4]})
            keep(key, lambda path: path.write_bytes(content))
        thread.join(30)
        assert results
        assert not double.built
        assert [step[1:] for step in steps] == [(0, 1), (1, 1)]
        assert "waiting for another process" in caplog.text

    def test_clearing_does_not_break_what_runs(self, plan: Path, double: TensorRtDouble) -> None:
        backend = open_model(plan, double)
        for entry in entries():
            assert entry.remove()
        score(backend)


BUILD = """
import sys
from contextlib import nullcontext
from pathlib import Path
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.gpus import Gpu
from vae_edge.backends.tensorrt.module import find_tensorrt, judge_plan
from vae_edge.backends.tensorrt.engine import Rebuild
plan = Path(sys.argv[1])
module, misfit = judge_plan(plan)
assert misfit is not None and misfit.startswith("is for TensorRT-RTX 1.2.0.0, but"), misfit
rebuild = Rebuild(plan.with_name("model.onnx"), module, Gpu(0, "a GPU", "8.6"), 4, nullcontext)
print("ready", flush=True)
sys.stdin.readline()
content, seconds = rebuild.find_or_build(bytes, RuntimeOptions(model_sha256="d" * 64))
assert content.startswith(b"vtrt") and len(content) > 1000
print("found" if seconds is None else "built")
"""


def test_a_real_engine_is_built_exactly_once_by_two_processes_at_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    (tmp_path / "model.onnx").write_bytes(ONNX)
    module = find_tensorrt("tensorrt_rtx")
    gpu = Gpu(0, "a GPU", "8.6")
    real = Rebuild(tmp_path / "model.onnx", module, gpu, 4, CudaDouble().activate)
    built = real.find_or_build(bytes, RuntimeOptions())
    assert built is not None
    content = bytearray(built[0])
    content[24:28] = bytes([1, 2, 0, 0])
    (tmp_path / "model.engine").write_bytes(bytes(content))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(tmp_path / "model.engine")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert said == ["built", "found"]
    assert kept() == ["tensorrt"]
