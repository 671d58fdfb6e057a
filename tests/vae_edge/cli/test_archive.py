"""`vae-edge archive` before Ray starts: what is wrong is said in a sentence, and nothing is begun."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_bundles import dark_image, make_bundle, write_image
from vae_edge.archive.listing import SourceOptions, list_source, open_source
from vae_edge.archive.places import LocalPlace
from vae_edge.archive.plan import ScoringSettings, begin_archive
from vae_edge.archive.rows import to_parquet
from vae_edge.bundle import Bundle
from vae_edge.cli import archive
from vae_edge.image import MAX_PIXELS
from vae_edge.platform.atomic import LOCK_FILE, claim
from vae_edge.targets import Target

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(3):
        write_image(tmp_path / "pictures" / f"{number}.png", dark_image(number))
    return tmp_path / "pictures"


@pytest.fixture
def has_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray and pyarrow seem to be installed; nothing here gets so far as to use them."""
    monkeypatch.setattr(archive, "_check_packages", lambda: None)


def sentence(err: str) -> str:
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def test_without_ray_the_way_to_it_is_said(
    command: Command, onnx_bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = command("archive", onnx_bundle.folder, pictures, "--out", tmp_path / "out")
    assert code == 1
    assert 'pip install "vae-edge[archive]"' in sentence(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("has_packages")
@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["{bundle}/nowhere", "{pictures}"], 1, "is not a bundle"),
        (["{bundle}", "{pictures}/nowhere"], 1, "does not exist; expected a folder of pictures"),
        (["{bundle}", "{pictures}", "--kind", "parquet"], 1, "holds no Parquet file"),
        (["{bundle}", "{pictures}", "--address", "here"], 2, "'here' is not the address of a Ray cluster"),
        (["{bundle}", "{pictures}", "--address", "127.0.0.1:1"], 1, "no Ray cluster answers at 127.0.0.1:1"),
        (["{bundle}", "{pictures}", "--workers", "100000"], 1, "100000 workers need 100000 processors"),
        (["{bundle}", "{pictures}", "--picture-column", "x"], 2, "columns are for Parquet files"),
        (["{bundle}", "{pictures}", "--no-gate"], 2, "--no-gate is for bundles with a gate"),
        (["{bundle}", "{pictures}", "--false-alarm-rate", "0.001"], 2, "smallest"),
        (["{bundle}", "{pictures}", "--workers", "0"], 2, "--workers"),
        (["{bundle}", "{pictures}", "--out", "{bundle}/manifest.json"], 1, "is a file"),
        (["{bundle}", "{pictures}", "--out", "{pictures}"], 1, "and no archive; choose another --out"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    command: Command,
    onnx_bundle: Bundle,
    pictures: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    expected: str,
) -> None:
    words = [word.format(bundle=onnx_bundle.folder, pictures=pictures) for word in arguments]
    before = sorted(pictures.iterdir())
    if "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    found, _, err = command("archive", *words)
    assert (found, expected in sentence(err)) == (code, True), err
    assert sorted(pictures.iterdir()) == before
    assert not (tmp_path / "out" / "_plan").exists()


@pytest.mark.usefixtures("has_packages")
def test_an_archive_of_something_else_is_not_continued(
    command: Command, onnx_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = ScoringSettings(max_pixels=MAX_PIXELS)
    source, parts = list_source(*open_source(str(pictures)), SourceOptions())
    begin_archive(LocalPlace(out), source, parts, onnx_bundle, settings)
    other = make_bundle(tmp_path / "other-onnx-fp32", Target.ONNX, n_normals=60)
    write_image(tmp_path / "more" / "0.png", dark_image(0))
    for words, code, expected in (
        ((other.folder, pictures), 1, "is the archive of another bundle"),
        ((onnx_bundle.folder, tmp_path / "more"), 1, "is the archive of another source"),
        ((onnx_bundle.folder, pictures, "--false-alarm-rate", 0.1), 2, "begun with false_alarm_rate as in the bundle"),
        ((onnx_bundle.folder, pictures, "--kind", "parquet"), 2, "was begun with pictures"),
    ):
        found, _, err = command("archive", *words, "--out", out)
        assert (found, expected in sentence(err)) == (code, True), err


@pytest.mark.usefixtures("has_packages")
@pytest.mark.parametrize(("last", "code"), [({"verdict": "normal"}, 0), ({"error": "it is no picture"}, 1)])
def test_a_complete_archive_is_reported_as_by_the_run_that_scored_it(
    command: Command, onnx_bundle: Bundle, pictures: Path, tmp_path: Path, last: dict[str, str], code: int
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: vae-edge[archive]")
    out = tmp_path / "out"
    source, parts = list_source(*open_source(str(pictures)), SourceOptions())
    begun = begin_archive(LocalPlace(out), source, parts, onnx_bundle, ScoringSettings(max_pixels=MAX_PIXELS))
    begun.write(1, to_parquet([{"verdict": "anomalous"}, {"verdict": "not inspectable"}, last], {}))
    found, _, err = command("archive", onnx_bundle.folder, pictures, "--out", out)  # Without Ray: nothing is to do.
    assert found == code, err
    said = " ".join(err.split())
    counts = f"pictures 3 anomalous 1 normal {1 - code} not inspectable 1 errors {code} parts all 1 are there"
    assert counts in said
    file = out / begun.folder / begun.name_of(1)
    file.write_bytes(file.read_bytes()[:-20])
    found, _, err = command("archive", onnx_bundle.folder, pictures, "--out", out)
    assert found == 1
    assert f"{file} could not be read" in sentence(err)
    assert "remove it: the same command scores its part again" in sentence(err)


@pytest.mark.usefixtures("has_packages")
def test_two_runs_do_not_write_into_one_folder(
    command: Command, onnx_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    with claim(tmp_path / "out" / LOCK_FILE, "another vae-edge archive is writing"):
        code, _, err = command("archive", onnx_bundle.folder, pictures, "--out", tmp_path / "out")
    assert code == 1
    assert "another vae-edge archive is writing to" in sentence(err)


@pytest.mark.usefixtures("has_packages")
def test_the_plan_records_what_was_asked_for(
    command: Command, onnx_bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_score", lambda *_: None)
    out = tmp_path / "out"
    words = ("--rows-per-part", 1, "--false-alarm-rate", 0.2, "--max-pixels", 5000)
    code, _, err = command("archive", onnx_bundle.folder, pictures, "--out", out, *words)
    assert code == 0, err
    record = json.loads((out / "_plan" / "archive.json").read_text(encoding="utf-8"))
    assert (record["n_parts"], record["n_pictures"], record["source"]) == (3, 3, str(pictures))
    assert record["settings"] == {"false_alarm_rate": 0.2, "gate": True, "max_pixels": 5000, "arithmetic": "fp32"}


def test_the_help_names_resuming_and_the_sources(command: Command) -> None:
    code, text, _ = command("archive", "--help")
    assert code == 0
    for word in ("--address", "--workers", "--picture-column", "s3://", "continues a run", "--rows-per-part"):
        assert word in text
