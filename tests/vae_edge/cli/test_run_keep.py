from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.threads import wait_until
from tests.tiny_bundles import dark_image, make_bundle, spotted_image, write_image
from vae_edge import Bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder with 20 normal parts and one anomalous one."""
    for seed in range(20):
        write_image(tmp_path / "today" / f"{seed:02}.png", dark_image(seed))
    write_image(tmp_path / "today" / "bad.jpg", spotted_image(0))
    return tmp_path


def test_pictures_are_kept_labelled_and_set_thresholds(command: Run, onnx_bundle: Bundle, parts: Path) -> None:
    kept = parts / "kept"
    code, out, err = command(
        "run", onnx_bundle.folder, parts / "today", "--keep", "anomalous", "--keep", "1/1", "--keep-dir", kept
    )
    assert code == 0
    assert len(out.splitlines()) == 21
    assert "kept 21 in" in " ".join(err.split())
    records = [json.loads(line) for line in (kept / "kept.jsonl").read_text().splitlines()]
    assert [each["rules"] for each in records if each["is_anomalous"]] == [["anomalous", "1/1"]]

    code, _, err = command("verify", onnx_bundle.folder, "--data", kept)
    assert code == 1
    assert "has 0 pictures in normal/" in err
    for record in records[:15]:
        path = kept / "unlabelled" / record["name"]
        path.rename(kept / ("anomalous" if record["is_anomalous"] else "normal") / path.name)
    code, out, _ = command("verify", onnx_bundle.folder, "--data", kept, "--false-alarm-rate", "0.1")
    assert code == 0
    assert "normals 99 15" in " ".join(out.split())

    (bad,) = [record["name"] for record in records if record["is_anomalous"]]
    (kept / "unlabelled" / bad).rename(kept / "anomalous" / bad)
    code, out, _ = command("verify", onnx_bundle.folder, "--data", kept, "--abnormal", kept)
    assert code == 0
    assert "finds 1 of 1 anomalous" in " ".join(out.split())


def test_a_second_run_goes_on_within_the_quota(command: Run, onnx_bundle: Bundle, parts: Path) -> None:
    options = ("--keep", "1/1", "--keep-dir", parts / "kept", "--keep-quota", "1MB")
    for _ in range(2):
        assert command("run", onnx_bundle.folder, parts / "today", *options)[0] == 0
    assert len(list((parts / "kept" / "unlabelled").iterdir())) == 42


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--keep", "far", "--keep-dir", "kept"], "'far' is not a rule"),
        (["--keep", "1/0", "--keep-dir", "kept"], "'1/0' is not a rule"),
        (["--keep", "near"], "add --keep-dir DIR"),
        (["--keep-dir", "kept"], "add --keep RULE"),
        (["--keep-quota", "2GB"], "add --keep RULE"),
        (["--keep", "near", "--keep-dir", "kept", "--keep-quota", "lots"], "is 'lots'; expected a size"),
        (["--keep", "near", "--keep-dir", "kept", "--keep-quota", "10"], "expected 1MB or more"),
        (["--keep", "drift", "--keep-dir", "kept"], "add --drift STATE_FILE"),
        (["--keep", "near", "--keep-dir", "today/kept"], "is in the source today"),
        (["--keep", "near", "--keep-dir", "results", "--out", "results"], "is also --out; choose another folder"),
        (["--keep", "near", "--keep-dir", "today/00.png"], "is in the source today"),
        (["--keep", "near", "--keep-dir", "toy-onnx-fp32"], "which is not a kept picture"),
        (["--keep", "near", "--keep-dir", "a file/kept"], "is a file, not a folder"),
    ],
)
def test_what_cannot_be_used_is_said_before_the_first_picture(
    command: Run,
    onnx_bundle: Bundle,
    parts: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(parts)
    Path("a file").write_text("x")
    code, out, err = command("run", onnx_bundle.folder, "today", *options)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not Path("kept").exists()


def test_pictures_around_an_alarm_of_drift_are_kept(command: Run, parts: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    bundle = make_bundle(parts / "toy")
    for seed in range(20):
        write_image(parts / "changed" / f"{seed:02}.png", spotted_image(seed))
    sources = parts / "today", parts / "changed"
    options = ("--drift", parts / "state", "--keep", "drift", "--keep-dir", parts / "kept")
    assert command("run", bundle.folder, *sources, *options)[0] == 0
    records = [json.loads(line) for line in (parts / "kept" / "kept.jsonl").read_text().splitlines()]
    assert len(records) == 8 + 1 + 8
    assert {tuple(record["rules"]) for record in records} == {("drift",)}


@pytest.mark.slow
def test_two_runs_cannot_keep_in_one_folder_at_once(command: Run, onnx_bundle: Bundle, parts: Path) -> None:
    options = ["--keep", "1/1", "--keep-dir", str(parts / "kept")]
    words = [sys.executable, "-m", "vae_edge", "run", str(onnx_bundle.folder), str(parts / "today"), *options]
    record = parts / "kept" / "kept.jsonl"
    with subprocess.Popen([*words, "--watch", "--poll", "0.05"], stdout=subprocess.DEVNULL) as first:
        try:
            wait_until(lambda: record.exists() and record.read_bytes().count(b"\n") == 21, 60)
            code, out, err = command("run", onnx_bundle.folder, parts / "today", *options)
            assert (code, out) == (2, "")
            assert "another vae-run keeps pictures in" in err
            write_image(parts / "today" / "later.png", dark_image(99))
            wait_until(lambda: record.read_bytes().count(b"\n") == 22, 60)
        finally:
            first.terminate()
    assert len(list((parts / "kept" / "unlabelled").iterdir())) == 22
    assert command("run", onnx_bundle.folder, parts / "today", *options)[0] == 0
    names = [json.loads(line)["name"] for line in record.read_text().splitlines()]
    assert len(set(names)) == len(names) == 44
