from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import SIZE, dark_image, make_bundle, toy_onnx, toy_outputs
from vae_edge.backends.base import Hint, RuntimeOptions, open_backend
from vae_edge.bundle import Bundle
from vae_edge.cache.compiled import entries
from vae_edge.manifest import graph_inputs, graph_outputs
from vae_edge.targets import Target

pytest.importorskip("openvino")

from vae_edge.backends import openvino_backend
from vae_edge.backends.openvino_backend import OpenVinoBackend, openvino


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy", Target.OPENVINO)


@contextmanager
def open_it(bundle: Bundle, **options: Any) -> Iterator[OpenVinoBackend]:
    manifest = bundle.manifest
    backend = OpenVinoBackend(
        bundle.model_path,
        manifest.inputs,
        manifest.outputs,
        max_batch=None,
        options=RuntimeOptions(model_sha256=bundle.model_sha256, **options),
    )
    with backend:
        yield backend


def test_the_second_start_takes_the_compiled_model_from_the_cache(bundle: Bundle) -> None:
    images = np.stack([dark_image(seed) for seed in range(3)])
    with open_it(bundle) as first:
        assert not first.is_from_cache
        expected = first.run({"image": images})
    with open_it(bundle) as second:
        assert second.is_from_cache
        for name, value in second.run({"image": images}).items():
            np.testing.assert_array_equal(value, expected[name])
        assert second.layout == first.layout
    with open_it(bundle, hint=Hint.THROUGHPUT) as other:
        assert not other.is_from_cache


def test_a_model_that_was_compiled_for_other_shapes_is_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    # The same file twice, whose size is open; only the manifests say other ones.
    model = onnx.load_from_string(toy_onnx())
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim[1:3]:
            dim.dim_param = f"{value.name}_{dim.dim_value}"
    (tmp_path / "open.onnx").write_bytes(model.SerializeToString())
    openvino.save_model(openvino.Core().read_model(tmp_path / "open.onnx"), tmp_path / "model.xml")
    for size in (SIZE, 2 * SIZE):
        backend = OpenVinoBackend(
            tmp_path / "model.xml",
            graph_inputs(size, size),
            graph_outputs(size, size),
            max_batch=None,
            options=RuntimeOptions(model_sha256="a" * 64),
        )
        with backend:
            assert not backend.is_from_cache
            image = dark_image(0, size)[None]
            assert backend.run({"image": image})["anomaly_map"].shape == (1, size, size)
    assert len(entries()) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
        lambda patch: patch.setattr(openvino_backend, "processor_features", lambda: "another processor"),
        lambda patch: patch.setattr(openvino_backend, "usable_cores", lambda: 64),
        lambda patch: patch.setattr(openvino_backend.openvino, "__version__", "2027.0"),
    ],
    ids=["variable", "processor", "cores", "version"],
)
def test_what_decides_how_a_model_is_compiled_is_in_the_key(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with open_it(bundle):
        pass
    with open_it(bundle) as same:
        assert same.is_from_cache
    change(monkeypatch)
    with open_it(bundle) as other:
        assert not other.is_from_cache


@pytest.mark.parametrize("damage", ["cut", "other bytes"])
def test_a_damaged_entry_is_compiled_again(bundle: Bundle, damage: str) -> None:
    with open_it(bundle):
        pass
    blob = next(path for path in entries()[0].files if path.suffix == ".bin")
    content = bytearray(blob.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0xFF
    blob.chmod(0o600)
    blob.write_bytes(content)
    with open_it(bundle) as backend:
        assert not backend.is_from_cache
    with open_it(bundle) as backend:
        assert backend.is_from_cache


def test_a_blob_that_openvino_refuses_is_compiled_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "blob").write_bytes(b"no compiled model" * 100)
    monkeypatch.setattr("vae_edge.cache.compiled.find", lambda key: tmp_path / "blob")
    with open_it(bundle) as backend:
        assert not backend.is_from_cache
    assert "is compiled again" in caplog.text


def test_without_a_hash_nothing_is_kept(bundle: Bundle) -> None:
    manifest = bundle.manifest
    open_backend(manifest.target, bundle.model_path, manifest.inputs, manifest.outputs).close()
    assert entries() == []


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_a_batch_is_spread_over_the_requests(bundle: Bundle, requests: int) -> None:
    images = np.stack([dark_image(seed) for seed in range(11)])
    maps, scores = toy_outputs(images)
    with open_it(bundle, hint=Hint.THROUGHPUT, requests=requests) as backend:
        assert backend.layout.requests == requests
        for _ in range(5):
            outputs = backend.run({"image": images})
            np.testing.assert_allclose(outputs["anomaly_map"], maps, atol=1e-6)
            np.testing.assert_allclose(outputs["score"], scores, atol=1e-6)
        assert len(backend._idle) == requests


def test_a_failure_in_the_middle_of_a_batch_leaves_the_backend_in_order(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.stack([dark_image(seed) for seed in range(8)])
    with open_it(bundle, hint=Hint.THROUGHPUT, requests=2) as backend:
        start = openvino_backend._Request.start
        started = 0

        def fails_at_the_fifth(request: openvino_backend._Request, feeds: object) -> None:
            nonlocal started
            started += 1
            if started == 5:
                raise RuntimeError("the fifth")
            start(request, feeds)  # type: ignore[arg-type]  # passed on as they came

        with monkeypatch.context() as patched:
            patched.setattr(openvino_backend._Request, "start", fails_at_the_fifth)
            with pytest.raises(RuntimeError, match=r"OpenVINO \S+ failed on cpu: the fifth"):
                backend.run({"image": images})
        np.testing.assert_allclose(backend.run({"image": images})["score"], toy_outputs(images)[1], atol=1e-6)


def test_read_only_images_are_taken_too(bundle: Bundle) -> None:
    image = dark_image(1)[None]
    image.setflags(write=False)
    with open_it(bundle) as backend:
        np.testing.assert_allclose(backend.run({"image": image})["score"], toy_outputs(image)[1], atol=1e-6)


def test_threads_are_obeyed_and_shown(bundle: Bundle) -> None:
    with open_it(bundle, threads=1) as backend:
        assert (backend.layout.threads, backend.layout.requests, backend.layout.batch) == (1, 1, 1)
        assert str(backend.layout) == "1 request on 1 thread, batch 1"


def test_importing_openvino_tells_nobody() -> None:
    script = (
        "import sys, vae_edge.backends.openvino_backend\n"
        "print([name for name in sys.modules if 'openvino_telemetry' in name])\n"
        "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True False"]


def test_ctrl_c_is_survived_after_models_were_closed_in_any_order(bundle: Bundle) -> None:
    script = (
        "import os, signal\nfrom vae_edge import Detector\n"
        f"first = Detector.open({str(bundle.folder)!r})\n"
        f"second = Detector.open({str(bundle.folder)!r}, hint='throughput')\n"
        "first.close()\nsecond.close()\ndel first, second\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr
