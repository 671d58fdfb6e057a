"""Real engines, built with TensorRT-RTX, which needs no GPU for it; full TensorRT's own steps through the double."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vae_edge.backends.tensorrt_double import CudaDouble, TensorRtDouble
from tests.vae_edge.backends.tensorrt_models import make_onnx
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.gpus import Gpu
from vae_edge.backends.tensorrt import build
from vae_edge.backends.tensorrt.build import EngineSettings, build_engine
from vae_edge.backends.tensorrt.module import TensorRtModule, find_tensorrt, read_plan_header
from vae_edge.backends.tensorrt_backend import TensorRtBackend
from vae_edge.errors import DeviceError, InputError
from vae_edge.manifest import RuntimeRecord, graph_inputs, graph_outputs


@pytest.fixture
def onnx_path(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(make_onnx())
    return tmp_path / "model.onnx"


@pytest.fixture
def engine_path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model.engine"


@pytest.fixture
def rtx() -> Any:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

    def find() -> TensorRtModule:
        return find_tensorrt("tensorrt_rtx")

    return find


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> TensorRtDouble:
    monkeypatch.setattr(build, "find_gpus", lambda: [Gpu(0, "Orin", "8.7", 16)])
    return TensorRtDouble(CudaDouble())


class TestRealEngines:
    def test_an_engine_is_built_without_a_gpu(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        record = build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)
        assert record.flavour == "tensorrt_rtx"
        assert record.details["max_batch"] == "8"
        assert record.details["gpu"] == "RTX GPUs of compute capability 8.0 and newer"
        assert "gpu_kind" not in record.details, "it is for many"
        assert "FLOAT" in record.details["tensor_types"]
        assert engine_path.read_bytes()[:4] == b"vtrt"
        assert [path.name for path in engine_path.parent.iterdir()] == ["model.engine"]

    def test_the_header_tells_the_version_that_built_it(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        record = build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)
        assert str(read_plan_header(engine_path)) == f"TensorRT-RTX {record.version}"

    def test_named_compute_capabilities_and_effort_are_taken(
        self, onnx_path: Path, engine_path: Path, rtx: Any
    ) -> None:
        settings = EngineSettings(compute_capabilities=("7.5",), optimization_level=1, timing_cache=Path("ignored"))
        assert build_engine(onnx_path, engine_path, settings, find_module=rtx).details["gpu"] == "7.5"
        settings = EngineSettings(compute_capabilities=("9.0",))
        with pytest.raises(InputError, match=r"capability '9\.0'; choose from 7\.5, 8\.0"):
            build_engine(onnx_path, engine_path, settings, find_module=rtx)

    def test_progress_is_told_and_ends_every_phase(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        seen: dict[str, list[tuple[int, int]]] = {}
        build_engine(
            onnx_path,
            engine_path,
            EngineSettings(),
            lambda phase, done, total: seen.setdefault(phase, []).append((done, total)),
            find_module=rtx,
        )
        assert sum(map(len, seen.values())) > 20
        assert all(steps[-1][0] == steps[-1][1] for steps in seen.values())

    def test_an_error_in_the_progress_ends_the_build(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        def fail(phase: str, done: int, total: int) -> None:
            raise ZeroDivisionError("in the listener")

        with pytest.raises(ZeroDivisionError, match="in the listener"):
            build_engine(onnx_path, engine_path, EngineSettings(), fail, find_module=rtx)
        assert not engine_path.exists()

    @pytest.mark.skipif(os.name == "nt", reason="signals of this kind are not sent on Windows")
    def test_ctrl_c_ends_the_build(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        pressed: list[int] = []

        def press(*step: object) -> None:
            # As in life, the signal comes at any time and from anywhere: here while TensorRT is at work.
            if not pressed:
                pressed.append(1)
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001)

        with pytest.raises(KeyboardInterrupt):
            build_engine(onnx_path, engine_path, EngineSettings(), press, find_module=rtx)
        assert not engine_path.exists()

    @pytest.mark.skipif(os.name == "nt", reason="signals of this kind are not sent on Windows")
    @pytest.mark.parametrize("delay_s", [0.01, 0.03, 0.05])
    def test_ctrl_c_is_heard_where_nobody_wants_the_progress(
        self, onnx_path: Path, engine_path: Path, rtx: Any, delay_s: float
    ) -> None:
        # In the main thread the signal would be raised in a callback of TensorRT's, which swallows it.
        timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))

        def build_until_interrupted() -> None:
            timer.start()
            for _ in range(100):
                build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)

        with pytest.raises(KeyboardInterrupt):
            build_until_interrupted()

    def test_what_the_parser_cannot_read_is_told_by_node(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        onnx_path.write_bytes(make_onnx(unknown=True))
        with pytest.raises(DeviceError, match=r"cannot read .*model\.onnx: .*'strange', operator 'Det'"):
            build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)

    def test_a_path_that_is_not_ascii_is_no_matter(self, tmp_path: Path, engine_path: Path, rtx: Any) -> None:
        path = tmp_path / "Prüfstück 零件.onnx"
        path.write_bytes(make_onnx())
        build_engine(path, engine_path, EngineSettings(), find_module=rtx)
        assert engine_path.is_file()

    def test_bytes_that_are_no_model_are_told(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        onnx_path.write_bytes(b"xx")
        with pytest.raises(DeviceError, match=r"contains no model|cannot read"):
            build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)

    def test_a_fixed_batch_must_be_the_largest(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        onnx_path.write_bytes(make_onnx(batch=2))
        with pytest.raises(InputError, match="fixed batch of 2, and max_batch is 8"):
            build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)
        build_engine(onnx_path, engine_path, EngineSettings(max_batch=2, opt_batch=2), find_module=rtx)
        assert engine_path.is_file()

    def test_a_dynamic_image_size_is_refused(self, onnx_path: Path, engine_path: Path, rtx: Any) -> None:
        onnx_path.write_bytes(make_onnx(height="H"))
        with pytest.raises(InputError, match=r"\[-1, -1, 32, 3\]; only the batch may be dynamic"):
            build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)

    def test_an_older_engine_is_replaced_and_a_failed_build_leaves_it(
        self, onnx_path: Path, engine_path: Path, rtx: Any
    ) -> None:
        engine_path.parent.mkdir()
        engine_path.write_bytes(b"older")
        onnx_path.write_bytes(b"xx")
        with pytest.raises(DeviceError):
            build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)
        assert engine_path.read_bytes() == b"older"
        onnx_path.write_bytes(make_onnx())
        build_engine(onnx_path, engine_path, EngineSettings(), find_module=rtx)
        assert engine_path.read_bytes()[:4] == b"vtrt"


class TestFullTensorRt:
    """Steps that only full TensorRT takes, through the double."""

    def test_what_is_built_also_runs(self, onnx_path: Path, engine_path: Path, double: TensorRtDouble) -> None:
        record = build_engine(onnx_path, engine_path, EngineSettings(max_batch=3), find_module=double.find_module)
        assert record.flavour == "tensorrt"
        assert record.details["gpu"] == "cuda:0 (Orin, compute capability 8.7, 16 SMs)"
        assert record.details["gpu_kind"] == "Orin (8.7, 16 SMs)"
        assert record.details["typing"] == "strong"
        with TensorRtBackend(
            engine_path,
            graph_inputs(32, 32),
            graph_outputs(32, 32),
            max_batch=None,
            options=RuntimeOptions(),
            find_module=double.find_module,
            open_memory=double.open_memory,
        ) as backend:
            assert backend.max_batch == 3

    def test_timings_are_kept_between_builds(
        self, onnx_path: Path, engine_path: Path, double: TensorRtDouble, tmp_path: Path
    ) -> None:
        settings = EngineSettings(timing_cache=tmp_path / "orin-10.3.cache")
        build_engine(onnx_path, engine_path, settings, find_module=double.find_module)
        assert (tmp_path / "orin-10.3.cache").read_bytes() == b"timings"
        build_engine(onnx_path, engine_path, settings, find_module=double.find_module)
        assert double.built[-1]._limits[double.api.MemoryPoolType.WORKSPACE] == 512 * 2**20

    def test_timings_of_another_device_are_measured_afresh(
        self,
        onnx_path: Path,
        engine_path: Path,
        double: TensorRtDouble,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        (tmp_path / "other.cache").write_bytes(b"of another device")
        double.faults.add("set_timing_cache")
        settings = EngineSettings(timing_cache=tmp_path / "other.cache")
        build_engine(onnx_path, engine_path, settings, find_module=double.find_module)
        assert "timings are measured again" in caplog.text
        assert (tmp_path / "other.cache").read_bytes() == b"timings"

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ("Builder", "could not be started: Builder was told to fail"),
            ("parse", r"an operator is not known \(node 'node_7', operator 'Frobnicate'\); an operator"),
            ("add_optimization_profile", "refused batches of 1 to 8: add_optimization_profile was told to fail"),
            ("build_serialized_network", "could not build an engine .*: build_serialized_network was told to fail"),
        ],
    )
    def test_a_step_that_fails_is_told_with_tensorrts_reason(
        self, onnx_path: Path, engine_path: Path, double: TensorRtDouble, call: str, message: str
    ) -> None:
        double.faults.add(call)
        with pytest.raises(DeviceError, match=message):
            build_engine(onnx_path, engine_path, EngineSettings(), find_module=double.find_module)
        assert not engine_path.exists()

    def test_compute_capabilities_are_refused(self, onnx_path: Path, engine_path: Path, double: TensorRtDouble) -> None:
        settings = EngineSettings(compute_capabilities=("8.7",))
        with pytest.raises(InputError, match="compute_capabilities is for TensorRT-RTX only"):
            build_engine(onnx_path, engine_path, settings, find_module=double.find_module)


HALF, INT8 = "half", "QuantizeLinear"


class TestLowPrecision:
    """A device that cannot build INT8, and the way round with a weakly typed network."""

    def build(self, onnx_path: Path, double: TensorRtDouble, doc: str, **settings: Any) -> RuntimeRecord:
        onnx_path.write_bytes(make_onnx(doc=doc))
        engine_path = onnx_path.with_name("model.engine")
        return build_engine(onnx_path, engine_path, EngineSettings(**settings), find_module=double.find_module)

    def test_an_int8_model_that_cannot_be_built_names_the_fp16_bundle(
        self, onnx_path: Path, double: TensorRtDouble
    ) -> None:
        double.faults.add("build_serialized_network")
        with pytest.raises(DeviceError) as caught:
            self.build(onnx_path, double, HALF + INT8)
        assert str(caught.value).endswith(
            "build_serialized_network was told to fail; if this device cannot run this INT8 model, use the FP16 bundle "
            "(vae-export RUN --precision fp16), or try vae-export BUNDLE --target tensorrt --weak-typing, whose scores "
            "can differ"
        )
        with pytest.raises(DeviceError, match=r"use the FP16 bundle \(vae-export RUN --precision fp16\)$"):
            self.build(onnx_path, double, HALF + INT8, weak_typing=True)

    def test_an_int8_model_that_cannot_be_read_names_the_fp16_bundle(
        self, onnx_path: Path, double: TensorRtDouble
    ) -> None:
        double.faults.add("parse")
        with pytest.raises(
            DeviceError, match=r"cannot read .*; if this device .* \(vae-export RUN --precision fp16\)$"
        ):
            self.build(onnx_path, double, HALF + INT8)

    def test_where_there_is_no_weak_typing_it_is_not_named(
        self, onnx_path: Path, monkeypatch: pytest.MonkeyPatch, double: TensorRtDouble
    ) -> None:
        newer = TensorRtDouble(CudaDouble(), version="11.4.0.106", faults=("build_serialized_network",))
        with pytest.raises(DeviceError, match=r"use the FP16 bundle \(vae-export RUN --precision fp16\)$"):
            self.build(onnx_path, newer, HALF + INT8)

    def test_another_model_that_cannot_be_built_names_neither(self, onnx_path: Path, double: TensorRtDouble) -> None:
        double.faults.add("build_serialized_network")
        with pytest.raises(DeviceError, match=r"was told to fail$"):
            self.build(onnx_path, double, HALF)

    @pytest.mark.parametrize(("doc", "allowed"), [(HALF, {"FP16"}), (INT8, {"INT8"}), (HALF + INT8, {"FP16", "INT8"})])
    def test_a_weakly_typed_network_may_use_the_files_types_and_the_record_says_so(
        self, onnx_path: Path, double: TensorRtDouble, caplog: pytest.LogCaptureFixture, doc: str, allowed: set[str]
    ) -> None:
        record = self.build(onnx_path, double, doc, weak_typing=True)
        config = double.built[-1]
        assert {flag.name for flag in config._flags} == allowed | {"PREFER_PRECISION_CONSTRAINTS"}
        assert config._network._is_weak
        assert record.details["typing"] == "weak: TensorRT chose the layers' types"
        assert "the engine is weakly typed: its scores can differ" in caplog.text
        # What gives the map and the score stays in FP32; the rest is TensorRT's choice.
        chosen = {layer.name: layer.precision for layer in config._network._layers}
        assert {name for name, precision in chosen.items() if precision is not None} == {
            "layer_anomaly_map",
            "layer_score",
        }

    def test_by_default_networks_are_strongly_typed(self, onnx_path: Path, double: TensorRtDouble) -> None:
        assert self.build(onnx_path, double, HALF + INT8).details["typing"] == "strong"
        assert not double.built[-1]._network._is_weak

    def test_weak_typing_of_an_fp32_model_is_refused(self, onnx_path: Path, double: TensorRtDouble) -> None:
        with pytest.raises(InputError, match="is in FP32, for which weak typing has no effect; leave it out"):
            self.build(onnx_path, double, "", weak_typing=True)

    @pytest.mark.parametrize(("version", "flavour"), [("11.4.0.106", "tensorrt"), ("1.7.1.116", "tensorrt_rtx")])
    def test_a_tensorrt_without_weak_typing_refuses_it(
        self, onnx_path: Path, double: TensorRtDouble, version: str, flavour: str
    ) -> None:
        newer = TensorRtDouble(CudaDouble(), version=version, flavour=flavour)
        with pytest.raises(InputError, match=rf"weak typing is for TensorRT 10, and this is .* {version}"):
            self.build(onnx_path, newer, HALF, weak_typing=True)


def test_a_missing_onnx_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the ONNX file .* does not exist"):
        build_engine(tmp_path / "none.onnx", tmp_path / "model.engine", EngineSettings())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0"),
        ({"opt_batch": 0}, "opt_batch is 0; expected 1 to max_batch, which is 8"),
        ({"opt_batch": 9}, "opt_batch is 9"),
        ({"workspace_bytes": 512}, "workspace_bytes is 512"),
        ({"optimization_level": 6}, "optimization_level is 6; expected 0 to 5"),
        ({"compute_capabilities": ("8.6", "8.6")}, "name one of them twice"),
    ],
)
def test_wrong_settings_are_refused_with_their_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineSettings(**wrong)
