"""What every backend must do, for every runtime that is installed; TensorRT, which needs a GPU, has its own tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_bundles import SIZE, TARGETS, dark_image, make_bundle, toy_outputs
from vae_edge.backends.base import Backend, RuntimeOptions, open_backend
from vae_edge.bundle import Bundle
from vae_edge.errors import BundleError, DeviceError, InputError, VaeEdgeError
from vae_edge.targets import SUPPORTED, Target

RUNTIMES = {Target.ONNX: "onnxruntime", Target.OPENVINO: "openvino", Target.TORCH: "torch"}


@pytest.fixture(params=TARGETS, ids=str, scope="module")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("onnx")
    pytest.importorskip(RUNTIMES[request.param])
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy", request.param)


def open_it(bundle: Bundle, *, max_batch: int | None = None, **options: Any) -> Backend:
    manifest = bundle.manifest
    return open_backend(
        manifest.target,
        bundle.model_path,
        manifest.inputs,
        manifest.outputs,
        max_batch=max_batch,
        options=RuntimeOptions(**{"device": "cpu", **options}),
    )


@pytest.fixture
def backend(bundle: Bundle) -> Iterator[Backend]:
    with open_it(bundle) as opened:
        yield opened


def images(n: int, begin: int = 0) -> NDArray[np.uint8]:
    return np.stack([dark_image(seed) for seed in range(begin, begin + n)])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_outputs_are_the_models_for_every_batch(backend: Backend, n: int) -> None:
    outputs = backend.run({"image": images(n)})
    maps, scores = toy_outputs(images(n))
    assert list(outputs) == ["anomaly_map", "score"]
    for name, expected in (("anomaly_map", maps), ("score", scores)):
        assert outputs[name].dtype == np.float32
        assert outputs[name].shape == expected.shape
        np.testing.assert_allclose(outputs[name], expected, atol=1e-6)


def test_the_order_of_batches_does_not_matter(backend: Backend) -> None:
    alone = np.concatenate([backend.run({"image": images(1, seed)})["score"] for seed in range(5)])
    np.testing.assert_allclose(backend.run({"image": images(5)})["score"], alone, atol=1e-6)
    np.testing.assert_allclose(backend.run({"image": images(1, 4)})["score"], alone[4:], atol=1e-6)


def test_an_image_gets_the_same_bits_whatever_the_stride_of_its_batch_axis(backend: Backend) -> None:
    image = images(1)[0]
    alone, of_a_batch = backend.run({"image": image[None]}), backend.run({"image": np.stack([image])})
    for name, value in alone.items():
        assert np.array_equal(value, of_a_batch[name])


def test_outputs_are_the_callers_and_no_later_run_changes_them(backend: Backend) -> None:
    first = backend.run({"image": images(2)})
    kept = {name: value.copy() for name, value in first.items()}
    backend.run({"image": 255 - images(2)})
    for name, value in first.items():
        assert np.array_equal(value, kept[name])
        value += 1  # They can be written to.


def test_the_input_is_left_as_it_is(backend: Backend) -> None:
    feed = images(1)
    feed.setflags(write=False)
    backend.run({"image": feed})
    assert np.array_equal(feed, images(1))


def test_eight_threads_get_what_one_gets(backend: Backend) -> None:
    expected = [backend.run({"image": images(1, seed)})["score"][0] for seed in range(32)]
    start = threading.Barrier(8)

    def work(worker: int) -> list[np.float32]:
        start.wait()
        return [backend.run({"image": images(1, seed)})["score"][0] for seed in range(worker, 32, 8)]

    with ThreadPoolExecutor(8) as pool:
        for worker, scores in enumerate(pool.map(work, range(8))):
            assert scores == expected[worker::8]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "the inputs are"),
        ({"picture": images(1)}, r"the inputs are \['picture'\]; expected \['image'\]"),
        ({"image": images(1), "more": images(1)}, "the inputs are"),
        ({"image": images(1).astype(np.float32)}, f"float32 1x{SIZE}x{SIZE}x3; expected uint8 Nx{SIZE}x{SIZE}x3"),
        ({"image": images(1)[0]}, "expected uint8 Nx"),
        ({"image": images(1)[:, :-1]}, f"1x{SIZE - 1}x{SIZE}x3"),
        ({"image": images(1).transpose(0, 3, 1, 2)}, f"1x3x{SIZE}x{SIZE}"),
        ({"image": images(1)[:0]}, "has 0 images"),
        ({"image": images(1)[:, ::-1]}, "not C-contiguous"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(backend: Backend, feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        backend.run(feeds)


def test_a_batch_over_the_limit_is_refused(bundle: Bundle) -> None:
    with open_it(bundle, max_batch=2) as backend:
        assert backend.run({"image": images(2)})["score"].shape == (2,)
        with pytest.raises(InputError, match="3 images; this model accepts 1 to 2"):
            backend.run({"image": images(3)})


def test_a_closed_backend_says_so_and_can_be_closed_again(bundle: Bundle) -> None:
    backend = open_it(bundle)
    backend.close()
    backend.close()
    with pytest.raises(DeviceError, match="closed"):
        backend.run({"image": images(1)})


def test_the_backend_says_what_it_runs_on_and_why(bundle: Bundle) -> None:
    for device in ("cpu", "auto", " CPU "):
        with open_it(bundle, device=device) as backend:
            assert backend.device.reason
            assert backend.version.split()[-1][0].isdigit()
    with open_it(bundle, device="cpu") as backend:
        assert backend.device.name == "cpu"


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "cpu:1", "cuda:", "cuda:x", "gpu.99"])
def test_a_device_that_is_not_there_is_an_error_of_ours(bundle: Bundle, device: str) -> None:
    with pytest.raises(VaeEdgeError, match=r"expected|finds no|has no|there is no"):
        open_it(bundle, device=device).close()


def test_threads_can_be_chosen(bundle: Bundle) -> None:
    with open_it(bundle, threads=1) as backend:
        assert backend.run({"image": images(1)})["score"].shape == (1,)


@pytest.mark.parametrize("content", [b"", b"not a model", b"{}", b"\x00" * 100])
def test_a_file_that_is_no_model_is_an_error_of_ours(bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    for name in (bundle.manifest.model_file, *SUPPORTED[bundle.manifest.target].other_files):
        (tmp_path / name).write_bytes(content)
    with pytest.raises((DeviceError, BundleError), match=bundle.manifest.model_file):
        open_it(Bundle(tmp_path, bundle.manifest))


def test_a_missing_file_is_an_error_of_ours(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises((DeviceError, BundleError), match=bundle.manifest.model_file):
        open_it(Bundle(tmp_path, bundle.manifest))


def test_a_path_with_spaces_and_umlauts_is_fine(bundle: Bundle, tmp_path: Path) -> None:
    with open_it(make_bundle(tmp_path / "bündel mit leerzeichen", bundle.manifest.target)) as backend:
        assert backend.run({"image": images(1)})["score"].shape == (1,)


def test_what_a_runtime_throws_is_one_sentence_of_ours_with_its_own_as_the_cause(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        SystemError("error return\nwithout exception set"),
        MemoryError(),
        KeyError("score"),
        RuntimeError("Exception from src/core.cpp:1:\n\n\x1b[2Jline one\nline two" + "x" * 10_000),
    ):

        def fail(feeds: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(backend, "_run", fail)
        with pytest.raises(DeviceError, match="failed on cpu: ") as caught:
            backend.run({"image": images(1)})
        assert caught.value.__cause__ is error
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert "failed on cpu: \\x1b[2Jline one" in str(caught.value)


def test_what_a_runtime_throws_while_it_loads_is_of_the_bundle_or_of_the_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _, name = SUPPORTED[bundle.manifest.target].backend.partition(":")

    class Panic(BaseException):
        """As of an extension in Rust."""

    for error, kind in (
        (ValueError("no\nmore"), BundleError),
        (Panic("at the disco"), BundleError),
        (MemoryError(), DeviceError),
    ):

        def fail(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(f"{place}.{name}", fail)
        with pytest.raises(kind, match=f"{bundle.manifest.model_file} cannot be loaded") as caught:
            open_it(bundle)
        assert caught.value.__cause__ is error
    monkeypatch.setattr(f"{place}.{name}", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_it(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("score"), "gave NoneType as its output 'score'"),
        (lambda o: o.update(score=o["score"].astype(np.float64)), "gave float64 2"),
        (lambda o: o.update(score=o["score"][:1]), "gave float32 1 as its output 'score'; expected float32 2"),
        (lambda o: o.update(score=o["score"][:, None]), "gave float32 2x1"),
        (lambda o: o.update(score=list(o["score"])), "gave list"),
        (lambda o: o.update(anomaly_map=o["anomaly_map"][:, 1:]), f"expected float32 2x{SIZE}x{SIZE}"),
        (lambda o: o.update(score=o["anomaly_map"][:, 0, 0]), "share memory"),
        (
            lambda o: o.update(score=o["anomaly_map"], anomaly_map=o["score"]),
            "gave float32 2 as its output 'anomaly_map'",
        ),
    ],
)
def test_outputs_that_are_not_those_of_the_manifest_are_an_error(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    run = backend._run

    def changed(feeds: Any) -> dict[str, Any]:
        outputs = run(feeds)
        change(outputs)
        return outputs

    monkeypatch.setattr(backend, "_run", changed)
    with pytest.raises(DeviceError, match=message):
        backend.run({"image": images(2)})
