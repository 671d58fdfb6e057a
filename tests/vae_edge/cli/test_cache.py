from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vae_edge.cache.compiled import CompiledKey, entries, find, keep
from vae_edge.cache.entries import CompiledEntry
from vae_edge.cache.folders import compiled_cache_folder, sample_cache_folder, sample_sets
from vae_edge.cli import cache as cache_command
from vae_edge.train.sample import SampleSettings, write_sample_set

Run = Callable[..., tuple[int, str, str]]

OPENVINO = CompiledKey("openvino", "a" * 64, "OpenVINO 2026.4.1", "CPU [x86]", (("batch", "1"),))
ENGINE = CompiledKey("tensorrt", "b" * 64, "TensorRT 10.3.0", "Orin (8.7)")


@pytest.fixture
def filled() -> None:
    """A compiled model of today, an engine of ten days ago, and a set of sample images."""
    for key in (OPENVINO, ENGINE):
        assert keep(key, lambda path: path.write_bytes(bytes(1_000_000)))
    record = compiled_cache_folder() / "tensorrt" / f"{ENGINE.hash}.json"
    os.utime(record, (time.time() - 10 * 86400,) * 2)
    settings = SampleSettings(image_size=64, n_train=1, n_test_good=1, n_test_per_defect=1)
    write_sample_set(sample_cache_folder() / "v1", ["dial"], settings)


def kinds() -> set[str]:
    return {entry.kind for entry in entries()} | {"sample" for _ in sample_sets()}


def test_an_empty_cache_is_listed_as_empty(command: Run) -> None:
    code, out, err = command("cache")
    assert (code, err) == (0, "")
    assert out.startswith("0 entries, 0.0 kB: ")
    assert not compiled_cache_folder().exists()


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("width", ["80", "140"])
def test_everything_is_listed_with_totals_and_the_folder(
    command: Run, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    code, out, err = command("cache")
    assert (code, err) == (0, "")
    for part in ("aaaaaaaaaaaa", "just now", "10 d ago", "dial v1", "tensorrt: 1 entry, 1.0 MB", "Orin (8.7)", "[x86]"):
        assert part in out
    assert f"3 entries, 2.1 MB: {compiled_cache_folder().parent}" in out.splitlines()[-1]


@pytest.mark.usefixtures("filled")
def test_everything_is_given_as_json(command: Run) -> None:
    code, out, _ = command("cache", "--json")
    assert code == 0
    content = json.loads(out)
    assert content["folder"] == str(compiled_cache_folder().parent)
    assert content["compiled_limit_bytes"] == 2_000_000_000
    assert content["size_bytes"] == sum(entry["size_bytes"] for entry in content["entries"])
    first = content["entries"][0]
    assert (first["kind"], first["state"], first["model"]) == ("openvino", "kept", "a" * 64)
    assert first["settings"] == {"batch": "1"}


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--clear"], set()),
        (["--clear", "openvino"], {"tensorrt", "sample"}),
        (["sample", "--clear"], {"openvino", "tensorrt"}),
        (["--clear", "--older-than", "7"], {"openvino", "sample"}),
        (["--clear", "--older-than", "11"], {"openvino", "tensorrt", "sample"}),
        (["--clear", "tensorrt-timings"], {"openvino", "tensorrt", "sample"}),
        (["--older-than", "0"], {"openvino", "tensorrt", "sample"}),
    ],
)
def test_what_was_named_is_removed_and_nothing_else(command: Run, arguments: list[str], left: set[str]) -> None:
    code, _, err = command("cache", *arguments)
    assert (code, err) == (0, "")
    assert kinds() == left


@pytest.mark.usefixtures("filled")
def test_what_was_removed_is_told(command: Run) -> None:
    assert command("cache", "--clear", "openvino")[1].startswith("1 entry removed, 1.0 MB: ")
    content = json.loads(command("cache", "--clear", "--json")[1])
    assert content["removed"] == 2


@pytest.mark.usefixtures("filled")
def test_what_cannot_be_removed_is_a_failure(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledEntry, "remove", lambda entry: False)
    code, out, err = command("cache", "--clear")
    assert code == 1
    assert out.startswith("1 entry removed")
    assert "2 entries could not be removed" in err


@pytest.mark.usefixtures("filled")
def test_what_is_being_written_is_left_and_what_is_damaged_goes(command: Run) -> None:
    folder = compiled_cache_folder() / "openvino"
    (folder / f"{OPENVINO.hash}.json").write_text("{")
    (folder / f".{'c' * 32}-0123.bin.ab12.tmp").write_bytes(b"half")
    _, out, _ = command("cache", "openvino")
    assert "(unreadable)" in out
    assert "(being written)" in out
    code, _, err = command("cache", "--clear", "openvino")
    assert code == 0
    assert "1 entry kept because a process may be writing" in err
    assert find(OPENVINO) is None
    assert [path.name[:5] for path in folder.iterdir()] == [".cccc"]


@pytest.mark.parametrize(("arguments", "said"), [(["jpeg"], "'jpeg'; expected one of"), (["--older-than", "-1"], "-1")])
def test_wrong_usage_is_refused(command: Run, arguments: list[str], said: str) -> None:
    code, _, err = command("cache", *arguments)
    assert code == 2
    assert said in err


def test_folders_that_the_drawing_did_not_make_are_left_alone(command: Run) -> None:
    mine = sample_cache_folder() / "v1" / "mine"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("keep")
    assert command("cache", "--clear")[0] == 0
    assert (mine / "notes.txt").exists()


@pytest.mark.parametrize(
    ("age_s", "text"), [(0, "just now"), (59, "just now"), (61, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")]
)
def test_ages_are_said_as_people_say_them(age_s: float, text: str) -> None:
    assert cache_command._age_text(age_s) == text


def test_the_cache_is_where_the_variable_says(command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in "".join(command("cache")[1].splitlines())
