"""The command as its users start it, with the runtimes that are here, and its file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vae_edge.selfcheck.sent_file import read_file
from vae_edge.bundle import Bundle
from vae_edge.errors import BundleError
from vae_edge.selfcheck.file import JSON_NAME, PAGE_NAME
from vae_edge.selfcheck.record import SCHEMA_VERSION, Verdict
from vae_edge.selfcheck.shipped import BUNDLES_FILES, CONSTRUCTS_FILE, MOST_BYTES, unpack_bundles
from vae_edge.targets import SUPPORTED

Run = Callable[..., tuple[int, str, str]]


def test_what_is_shipped_is_small_and_covers_every_target_and_precision(tmp_path: Path) -> None:
    assert sum(file.stat().st_size for file in (*BUNDLES_FILES, CONSTRUCTS_FILE)) < MOST_BYTES
    expected = {
        f"{network}-{target}-{precision}"
        for network in ("pixels", "tiles", "features")
        for target, row in SUPPORTED.items()
        for precision in row.precisions
    }
    expected |= {name.replace("features-", "joined-") for name in expected if not name.endswith("-int8")} - expected
    assert {folder.name for folder in unpack_bundles(tmp_path)} == expected


def test_every_shipped_bundle_opens_and_has_references_of_drawn_parts(tmp_path: Path) -> None:
    for folder in unpack_bundles(tmp_path):
        bundle = Bundle.open(folder)
        assert bundle.manifest.references is not None, folder.name
        assert folder.name.endswith(f"-{bundle.manifest.target}-{bundle.manifest.precision}")
        assert "/" not in json.dumps(bundle.manifest.provenance.model_dump(mode="json")).replace("https://", "")


def test_a_shipped_network_has_all_maps_that_training_joins_by_default(tmp_path: Path) -> None:
    for folder in unpack_bundles(tmp_path):
        if folder.name.startswith("joined-"):
            scoring = Bundle.open(folder).manifest.scoring
            for source in ("pixels", "places"):
                assert f"of {source}, " in scoring, folder.name


@pytest.mark.slow
def test_the_command_checks_what_is_here_and_leaves_a_file_to_send(tmp_path: Path, command: Run) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    unpack_bundles(tmp_path / "shipped")
    given = tmp_path / "customer-xyz-gearbox"
    shutil.copytree(tmp_path / "shipped" / "pixels-onnx-fp32", given)
    out = tmp_path / "sent.zip"
    code, printed, _ = command("selfcheck", given, "--out", out, "--soak", "0.1")
    record = read_file(out)
    assert [step.title for step in record.problems] == []
    assert code == 0
    assert record.is_complete
    assert record.schema_version == SCHEMA_VERSION
    found = {step.key: step for step in record.steps}
    for network in ("pixels", "tiles", "features"):
        for target, row in SUPPORTED.items():
            for precision in row.precisions if target in ("onnx", "openvino") else ():
                assert found[f"bundle:{network}-{target}-{precision}:cpu"].verdict is Verdict.OK
    assert found["bundle:given-1-onnx-fp32:cpu"].verdict is Verdict.OK
    second = next(step for key, step in found.items() if key.startswith("start:second:") and "openvino" in key)
    assert second.facts["is_from_cache"]
    assert second.facts["equal_outputs"]
    timing = next(step for key, step in found.items() if key.startswith("timing:") and "onnx" in key)
    assert timing.facts["n"] == 1024 or timing.facts["n"] > 100
    assert 0 < timing.facts["p50_ms"] <= timing.facts["p99_ms"]
    assert len(found["soak"].facts["samples"]) >= 2
    assert found["soak"].facts["n_verdicts_not_equal"] == 0
    assert all(step.title in printed for step in record.steps)
    with zipfile.ZipFile(out) as archive:
        assert sorted(archive.namelist()) == [PAGE_NAME, JSON_NAME]
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"gearbox" not in content
    assert str(tmp_path).encode() not in content


def test_wrong_usage_is_refused_before_anything_runs(tmp_path: Path, command: Run) -> None:
    code, _, said = command("selfcheck", "--out", tmp_path / "sent.tar")
    assert (code, "ends in .zip" in said) == (2, True)
    code, _, said = command("selfcheck", "--soak", "-1")
    assert (code, "expected 0 to" in said) == (2, True)
    (tmp_path / "mine.zip").write_bytes(b"mine")
    code, _, said = command("selfcheck", "--out", tmp_path / "mine.zip")
    assert (code, "exists already" in said) == (1, True)
    code, _, said = command("selfcheck", tmp_path, "--out", tmp_path / "new.zip")
    assert (code, "is not a bundle" in said) == (1, True)
    assert not (tmp_path / "new.zip").exists()


@pytest.mark.skipif(os.name != "posix", reason="ends a process by SIGKILL")
def test_a_program_that_is_killed_leaves_what_it_had_found_and_the_step_that_was_running(tmp_path: Path) -> None:
    out = tmp_path / "sent.zip"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-m", "vae_edge", "selfcheck", "--out", str(out)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (out.exists() and len(read_file(out).steps) > 1):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    record = read_file(out)
    assert not record.is_complete
    assert record.steps[0].verdict is Verdict.OK
    assert record.steps[-1].verdict is Verdict.RUNNING
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert "It did not end, while this step was running" in archive.read(PAGE_NAME).decode()


def test_a_damaged_file_of_bundles_is_named(tmp_path: Path) -> None:
    cut = tmp_path / "bundles.tar.xz"
    cut.write_bytes(BUNDLES_FILES[0].read_bytes()[:100_000])
    with pytest.raises(BundleError, match=r"cannot be read .* install vae-edge again"):
        unpack_bundles(tmp_path / "out", [cut])
