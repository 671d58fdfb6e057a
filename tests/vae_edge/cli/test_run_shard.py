"""`vae-run --shard I/N`: one of several runs over the same pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny_bundles import dark_image, spotted_image, write_image
from vae_edge import Bundle

Run = Callable[..., tuple[int, str, str]]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def draw(folder: Path, n: int) -> Path:
    for number in range(n):
        write_image(folder / f"{number:02d}.png", (spotted_image if number % 4 == 0 else dark_image)(number, 48))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_the_lines_of_all_shards_are_those_of_one_run(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    folder = draw(tmp_path / "pieces", 12)
    _, whole, _ = command("run", onnx_bundle.folder, folder)
    found: list[dict[str, Any]] = []
    for number in (1, 2, 3):
        code, out, _ = command("run", onnx_bundle.folder, folder, "--shard", f"{number}/3")
        assert code == int(any("error" in line for line in lines(out)))
        found += lines(out)
    assert sorted(found, key=lambda line: line["source"]) == lines(whole)
    assert len(found) == 13


def test_an_empty_shard_is_a_run_of_no_pictures(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    write_image(folder / "only.png", dark_image(1))
    n_lines = []
    for number in (1, 2):
        out = tmp_path / f"out-{number}"
        code, _, err = command("run", onnx_bundle.folder, folder, "--shard", f"{number}/2", "--out", out)
        assert code == 0, err
        n_lines.append(len((out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()))
    assert sorted(n_lines) == [0, 1]


def test_what_is_wrong_with_a_shard_is_said_at_once(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    folder = draw(tmp_path / "pieces", 2)
    code, _, err = command("run", onnx_bundle.folder, folder, "--shard", "4/3")
    assert code == 2
    assert "'4/3' is not a shard" in err
    code, _, err = command("run", onnx_bundle.folder, folder, "--watch", "--shard", "1/3")
    assert code == 2
    assert "--shard is for images that are there already" in err
