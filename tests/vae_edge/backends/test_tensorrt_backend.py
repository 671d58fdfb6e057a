"""The backend's flow, driven through the double: TensorRT's calls computed by ONNX Runtime on host memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.vae_edge.backends.tensorrt_double import CudaDouble, MisuseError, TensorRtDouble, run_onnx
from tests.vae_edge.backends.tensorrt_models import make_onnx
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.gpus import Gpu
from vae_edge.backends.tensorrt_backend import TensorRtBackend, parse_device
from vae_edge.errors import DeviceError, InputError, MissingDependencyError
from vae_edge.manifest import TensorSpec, graph_inputs, graph_outputs

ROOT = Path(__file__).parents[3]
ONNX = make_onnx()


def images(batch: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)


def open_model(plan: Path, double: TensorRtDouble, **changes: Any) -> TensorRtBackend:
    arguments: dict[str, Any] = {"max_batch": 4, "options": RuntimeOptions(), "open_memory": double.open_memory}
    arguments["find_gpus"] = lambda: [Gpu(0, "Orin", "8.7")]
    arguments |= {"inputs": graph_inputs(32, 32), "outputs": graph_outputs(32, 32), **changes}
    return TensorRtBackend(plan, find_module=double.find_module, **arguments)


@pytest.fixture(params=[False, True], ids=["copied", "mapped"])
def double(request: pytest.FixtureRequest) -> TensorRtDouble:
    """With a GPU that has memory of its own, and with one that uses the host's in place."""
    return TensorRtDouble(CudaDouble(maps_host_memory=request.param))


@pytest.fixture
def plan(tmp_path: Path, double: TensorRtDouble) -> Path:
    double.write_plan(tmp_path / "model.engine", ONNX)
    return tmp_path / "model.engine"


@pytest.fixture
def backend(plan: Path, double: TensorRtDouble) -> Iterator[TensorRtBackend]:
    with open_model(plan, double) as opened:
        assert isinstance(opened, TensorRtBackend)
        yield opened


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(ONNX, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_results_equal_onnx_runtimes(
    backend: TensorRtBackend, session: onnxruntime.InferenceSession, batch: int
) -> None:
    expected = run_onnx(session, {"image": images(batch)})
    results = backend.run({"image": images(batch)})
    assert set(results) == {"anomaly_map", "score"}
    for name, value in results.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)


def test_results_are_the_callers_own(backend: TensorRtBackend) -> None:
    first = backend.run({"image": images(4, seed=1)})
    kept = {name: value.copy() for name, value in first.items()}
    backend.run({"image": images(2, seed=2)})
    backend.close()
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])


def test_the_calls_come_in_tensorrts_order(backend: TensorRtBackend, double: TensorRtDouble) -> None:
    backend.run({"image": images(1)})
    double.cuda.events.clear()
    backend.run({"image": images(2)})
    calls = ["set_input_shape", *["set_tensor_address"] * 3, "execute_async_v3"]
    if not double.cuda.maps_host_memory:
        calls = ["copy_in", *calls, "copy_out", "copy_out"]
    assert double.cuda.events == [*calls, "synchronize"]


def test_many_threads_get_their_own_results(
    backend: TensorRtBackend, double: TensorRtDouble, session: onnxruntime.InferenceSession
) -> None:
    started = threading.Barrier(8)

    def work(seed: int) -> None:
        started.wait(timeout=30)
        for step in range(5):
            feed = images(1 + (seed + step) % 4, seed=seed * 10 + step)
            expected = run_onnx(session, {"image": feed})
            for name, value in backend.run({"image": feed}).items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result(timeout=60)
    assert double.n_contexts == 8
    assert len(double.cuda.streams) == 8


def test_a_thread_takes_over_what_an_ended_thread_left(backend: TensorRtBackend, double: TensorRtDouble) -> None:
    for _ in range(5):
        thread = threading.Thread(target=backend.run, args=({"image": images(1)},))
        thread.start()
        thread.join(timeout=30)
    assert double.n_contexts == 1


def test_close_leaves_nothing_on_the_device(plan: Path, double: TensorRtDouble) -> None:
    backend = open_model(plan, double)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: backend.run({"image": images(1, seed)}), range(6)))
    assert double.cuda.live() > 0
    backend.close()
    backend.close()
    gc.collect()
    assert double.cuda.live() == 0
    assert double.cuda.closed == 1
    assert not double.contexts
    assert not double.engines


def test_a_closed_model_refuses_to_run(backend: TensorRtBackend) -> None:
    backend.close()
    with pytest.raises(DeviceError, match="has been closed"):
        backend.run({"image": images(1)})


def test_close_waits_for_the_calls_under_way(plan: Path, double: TensorRtDouble) -> None:
    backend = open_model(plan, double)
    in_call, go_on = threading.Event(), threading.Event()
    synchronize = double.cuda.synchronize

    def slow(stream: Any) -> None:
        in_call.set()
        assert go_on.wait(30)
        synchronize(stream)

    double.cuda.synchronize = slow  # type: ignore[method-assign]  # the device of this one test is slow
    results: list[Any] = []
    runner = threading.Thread(target=lambda: results.append(backend.run({"image": images(1)})))
    closer = threading.Thread(target=backend.close)
    runner.start()
    assert in_call.wait(30)
    closer.start()
    closer.join(timeout=0.2)
    assert closer.is_alive()
    go_on.set()
    runner.join(timeout=30)
    closer.join(timeout=30)
    assert results
    assert double.cuda.live() == 0


def test_wrong_feeds_are_refused_before_tensorrt_sees_them(backend: TensorRtBackend) -> None:
    with pytest.raises(InputError, match="1 to 4 at a time"):
        backend.run({"image": images(5)})
    with pytest.raises(InputError, match="expected uint8 Nx32x32x3"):
        backend.run({"image": np.zeros((1, 32, 32, 4), np.uint8)})


def test_without_a_largest_batch_the_engines_own_holds(plan: Path, double: TensorRtDouble) -> None:
    with open_model(plan, double, max_batch=None) as backend:
        assert backend.max_batch == 8
        assert backend.run({"image": images(8)})["score"].shape == (8,)


def test_a_fixed_batch_is_the_largest(tmp_path: Path, double: TensorRtDouble) -> None:
    (tmp_path / "model.engine").write_bytes(double.plan_bytes(make_onnx(batch=2), {"image": [2, 2, 2]}))
    with open_model(tmp_path / "model.engine", double, max_batch=None) as backend:
        assert backend.max_batch == 2
        assert backend.run({"image": images(2)})["score"].shape == (2,)


def test_version_and_device_are_told(backend: TensorRtBackend, double: TensorRtDouble) -> None:
    assert backend.version == "TensorRT 10.3.0"
    assert backend.device.name == "cuda:0"
    in_place = ", with host memory in place" if double.cuda.maps_host_memory else ""
    assert backend.device.reason == f"the first GPU (auto), through a double{in_place}"


def test_why_another_adapter_was_not_used_is_told(plan: Path, double: TensorRtDouble) -> None:
    double.cuda.refused = ("driver: cuInit failed", "pycuda: No module named 'pycuda'")
    with open_model(plan, double) as backend:
        assert backend.device.reason.endswith(" (driver: cuInit failed; pycuda: No module named 'pycuda')")


AT_EXIT = """
import atexit, sys, threading
from pathlib import Path
import numpy as np
from tests.vae_edge.backends.tensorrt_double import CudaDouble, TensorRtDouble
from vae_edge.backends import base
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.tensorrt_backend import TensorRtBackend
from vae_edge.manifest import graph_inputs, graph_outputs

double = TensorRtDouble(CudaDouble())
cuda = double.cuda
atexit.register(lambda: print("registered first:", cuda.live(), cuda.closed))

def open_memory(index):
    # As pycuda does when it is imported, which is here.
    atexit.register(lambda: print("the adapter's own:", cuda.live(), cuda.closed))
    return cuda

backend = TensorRtBackend(
    Path(sys.argv[1]), graph_inputs(32, 32), graph_outputs(32, 32), max_batch=4, options=RuntimeOptions(),
    find_module=double.find_module, open_memory=open_memory,
)
image = {"image": np.zeros((1, 32, 32, 3), np.uint8)}
backend.run(image)
print("before the end:", cuda.live() > 0, cuda.closed)
if sys.argv[2] == "in a call":
    base._LAST_CALL_S = 0.2
    is_in, never = threading.Event(), threading.Event()
    cuda.synchronize = lambda stream: (is_in.set(), never.wait())
    threading.Thread(target=backend.run, args=(image,), daemon=True).start()
    is_in.wait(30)
"""


@pytest.mark.parametrize(("what", "left"), [("idle", "0 1"), ("in a call", "14 0")])
def test_at_the_end_it_is_closed_before_the_adapters_exit_handler(tmp_path: Path, what: str, left: str) -> None:
    TensorRtDouble(CudaDouble()).write_plan(tmp_path / "model.engine", ONNX)
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(tmp_path / "model.engine"), what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # A call that never ends uses what would be freed: that stays, and goes with the process.
    assert done.stdout.splitlines() == [
        "before the end: True 0",
        f"the adapter's own: {left}",
        f"registered first: {left}",
    ]


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_a_call_that_fails_is_told_and_the_next_one_works(
    backend: TensorRtBackend, double: TensorRtDouble, session: onnxruntime.InferenceSession, call: str
) -> None:
    double.faults.add(call)
    with pytest.raises(DeviceError, match=rf"refused .*: {call} was told to fail"):
        backend.run({"image": images(1)})
    double.faults.clear()
    expected = run_onnx(session, {"image": images(3)})["score"]
    np.testing.assert_allclose(backend.run({"image": images(3)})["score"], expected, rtol=1e-6)


def test_a_context_that_cannot_be_made_is_told(backend: TensorRtBackend, double: TensorRtDouble) -> None:
    double.faults.add("create_execution_context")
    with pytest.raises(DeviceError, match="could not create an execution context"):
        backend.run({"image": images(1)})


def test_an_engine_that_does_not_load_is_told_and_leaves_nothing(plan: Path, double: TensorRtDouble) -> None:
    double.faults.add("deserialize_cuda_engine")
    with pytest.raises(
        DeviceError, match=r"does not load with TensorRT 10\.3\.0: .*told to fail; .*model\.onnx, .*is missing"
    ):
        open_model(plan, double)
    assert double.cuda.live() == 0
    assert double.cuda.closed == 1


def test_a_device_without_room_leaves_nothing_behind(
    backend: TensorRtBackend, double: TensorRtDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size_bytes: int) -> Any:
        raise DeviceError("cuMemAlloc failed: out of memory")

    monkeypatch.setattr(double.cuda, "map_pinned" if double.cuda.maps_host_memory else "allocate_device", refuse)
    with pytest.raises(DeviceError, match="out of memory"):
        backend.run({"image": images(1)})
    assert double.cuda.live() == 0


def test_a_device_that_fails_at_the_end_does_not_hide_the_first_error(
    plan: Path, double: TensorRtDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    double.faults.add("deserialize_cuda_engine")

    def refuse() -> None:
        raise DeviceError("cuCtxPushCurrent failed: an illegal memory access was encountered")

    monkeypatch.setattr(double.cuda, "close", refuse)
    with pytest.raises(DeviceError, match="deserialize_cuda_engine was told to fail"):
        open_model(plan, double)
    assert "could not free cuda:0: cuCtxPushCurrent failed" in caplog.text


def test_an_engine_of_the_other_flavour_is_refused(tmp_path: Path, double: TensorRtDouble) -> None:
    other = TensorRtDouble(CudaDouble(), version="1.7.1.116", flavour="tensorrt_rtx")
    other.write_plan(tmp_path / "model.engine", ONNX)
    with pytest.raises(DeviceError, match=r"is for TensorRT-RTX 1\.7\.1\.116, but TensorRT 10\.3\.0 is installed"):
        open_model(tmp_path / "model.engine", double)


def test_an_engine_of_another_version_is_refused(tmp_path: Path, double: TensorRtDouble) -> None:
    double.write_plan(tmp_path / "model.engine", ONNX, version="10.13.0.35")
    with pytest.raises(
        DeviceError, match=r"is for TensorRT 10\.13\.0\.35, but TensorRT 10\.3\.0 is installed; this GPU"
    ):
        open_model(tmp_path / "model.engine", double)


def test_an_engine_that_differs_in_the_build_number_alone_is_left_to_tensorrt(
    tmp_path: Path, double: TensorRtDouble
) -> None:
    double.write_plan(tmp_path / "model.engine", ONNX, version="10.3.0.30")
    open_model(tmp_path / "model.engine", double).close()


@pytest.mark.parametrize("content", [b"", b"ftrt", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_engine_is_refused(tmp_path: Path, double: TensorRtDouble, content: bytes) -> None:
    (tmp_path / "model.engine").write_bytes(content)
    with pytest.raises(DeviceError, match="is not a TensorRT engine, or is damaged"):
        open_model(tmp_path / "model.engine", double)


def test_an_engine_without_the_flavours_library_names_what_to_install(
    plan: Path, double: TensorRtDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nothing(flavour: str | None) -> Any:
        raise MissingDependencyError(f"{flavour} is not installed")

    monkeypatch.setattr(double, "find_module", find_nothing)
    with pytest.raises(MissingDependencyError, match=r"^tensorrt is not installed"):
        open_model(plan, double)


def test_an_engine_with_other_tensors_is_refused(tmp_path: Path, double: TensorRtDouble) -> None:
    double.write_plan(tmp_path / "model.engine", make_onnx(score="pred_score"))
    with pytest.raises(DeviceError, match=r"has the tensors .*'pred_score'.*; expected .*'score'"):
        open_model(tmp_path / "model.engine", double)


def test_an_engine_of_another_image_size_is_refused(plan: Path, double: TensorRtDouble) -> None:
    with pytest.raises(DeviceError, match=r"'image' is UINT8 \[-1, 32, 32, 3\]; expected uint8 \[None, 64, 64, 3\]"):
        open_model(plan, double, inputs=graph_inputs(64, 64), outputs=graph_outputs(64, 64))


def test_an_engine_of_another_element_type_is_refused(plan: Path, double: TensorRtDouble) -> None:
    floats = (TensorSpec(name="image", dtype="float32", shape=(None, 32, 32, 3)),)
    with pytest.raises(DeviceError, match="'image' is UINT8"):
        open_model(plan, double, inputs=floats)


def test_an_input_in_the_place_of_an_output_is_refused(plan: Path, double: TensorRtDouble) -> None:
    image, (anomaly_map, score) = graph_inputs(32, 32), graph_outputs(32, 32)
    with pytest.raises(DeviceError, match="'score' is OUTPUT; expected the opposite"):
        open_model(plan, double, inputs=(*image, score), outputs=(anomaly_map,))


def test_a_batch_beyond_the_engines_is_refused(plan: Path, double: TensorRtDouble) -> None:
    with pytest.raises(DeviceError, match="supports batches up to 8, but 9 is required"):
        open_model(plan, double, max_batch=9)


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_nvidia_devices_are_understood(device: str, index: int) -> None:
    assert parse_device(device) == index


@pytest.mark.parametrize("device", ["cpu", "gpu", "npu", "cuda:", "cuda:x", "cuda:-1", "CUDA:0 "])
def test_other_devices_are_refused(plan: Path, double: TensorRtDouble, device: str) -> None:
    with pytest.raises(InputError, match="expected auto, cuda or cuda:N"):
        open_model(plan, double, options=RuntimeOptions(device=device))


class TestDouble:
    """The double must catch what it is there to catch."""

    def test_reading_before_synchronizing_gives_garbage(self) -> None:
        cuda = CudaDouble()
        with cuda.activate():
            stream, device, pinned = cuda.create_stream(), cuda.allocate_device(4), cuda.allocate_pinned(4)
            pinned.array[:] = 1
            cuda.copy_in(device, pinned, 4, stream)
            assert device.owner[0] != 1
            cuda.synchronize(stream)
            assert device.owner[0] == 1

    def test_use_after_free_is_caught(self) -> None:
        cuda = CudaDouble()
        with cuda.activate():
            stream, device, pinned = cuda.create_stream(), cuda.allocate_device(4), cuda.allocate_pinned(4)
            cuda.copy_in(device, pinned, 4, stream)
            cuda.free_device(device)
            with pytest.raises(MisuseError, match="freed memory"):
                cuda.synchronize(stream)

    def test_a_copy_of_memory_that_is_used_in_place_is_caught(self) -> None:
        cuda = CudaDouble(maps_host_memory=True)
        with cuda.activate():
            stream, pinned = cuda.create_stream(), cuda.allocate_pinned(4)
            with pytest.raises(MisuseError, match="in place was copied"):
                cuda.copy_in(cuda.map_pinned(pinned), pinned, 4, stream)

    def test_a_device_that_is_not_current_is_caught(self) -> None:
        with pytest.raises(MisuseError, match="without the device being current"):
            CudaDouble().create_stream()

    def test_closing_with_things_not_freed_is_caught(self) -> None:
        cuda = CudaDouble()
        with cuda.activate():
            cuda.create_stream()
        with pytest.raises(MisuseError, match="1 things not freed"):
            cuda.close()

    def test_addresses_before_shapes_are_caught(self, plan: Path, double: TensorRtDouble) -> None:
        with double.cuda.activate():
            engine = double.api.Runtime(double.module.logger).deserialize_cuda_engine(plan.read_bytes())
            context = engine.create_execution_context()
            with pytest.raises(MisuseError, match="before every shape"):
                context.set_tensor_address("image", double.cuda.allocate_device(4).address)
            with pytest.raises(MisuseError, match="before every address"):
                context.execute_async_v3(1)
