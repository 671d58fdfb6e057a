from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_bundles import dark_image, spotted_image, write_image
from vae_edge import Bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three normal parts, and twelve anomalous ones."""
    for seed in range(3):
        write_image(tmp_path / "normal" / f"{seed}.png", dark_image(seed))
    for seed in range(12):
        write_image(tmp_path / "changed" / f"{seed:02}.png", spotted_image(seed))
    return tmp_path


def test_lines_summary_and_inspect_say_whether_the_process_has_drifted(
    command: Run, onnx_bundle: Bundle, parts: Path
) -> None:
    state = parts / "line.drift"
    code, out, err = command("run", onnx_bundle.folder, parts / "normal", "--drift", state)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["drift"]["alarm"] is False
    assert "no drift in 3 parts" in " ".join(err.split())
    code, out, err = command("run", onnx_bundle.folder, parts / "changed", "--drift", state, "--drift-alarm", "0.01")
    assert code == 0
    drift = [json.loads(line)["drift"] for line in out.splitlines()]
    assert drift[0] == {"alarm": False, "martingale": drift[0]["martingale"], "direction": None, "shift": None}
    assert (drift[-1]["alarm"], drift[-1]["direction"]) == (True, "higher")
    assert drift[-1]["shift"] > 10
    assert [each["alarm"] for each in drift] == sorted(each["alarm"] for each in drift)
    assert "the process has drifted: scores are higher" in " ".join(err.split())
    code, out, _ = command("inspect", state)
    assert code == 0
    assert "the process has drifted: scores are higher" in " ".join(out.split())
    assert "above the cut 12" in " ".join(out.split())
    code, out, _ = command("inspect", state, "--json")
    assert json.loads(out)["alarm"]["direction"] == "higher"
    assert command("inspect", state, "--device", "cpu")[0] == 2


def test_without_the_option_lines_are_as_before(command: Run, onnx_bundle: Bundle, parts: Path) -> None:
    _, out, err = command("run", onnx_bundle.folder, parts / "normal")
    assert all("drift" not in json.loads(line) for line in out.splitlines())
    assert "drift" not in err
    assert "98 held-out normals" in " ".join(command("inspect", onnx_bundle.folder)[1].split())


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--drift-alarm", "0.1"], 2, "--drift-alarm is for drift: add --drift STATE_FILE"),
        (["--drift", "state", "--drift-alarm", "0.7"], 2, "for drift is 0.7; expected 1e-06 to 0.5"),
        (["--drift", "normal"], 1, "normal is not the state of a drift monitor"),
        (["--drift", "normal/0.png"], 1, "0.png is not the state of a drift monitor"),
        (["--drift", "normal/0.png/state"], 1, "could not be written because"),
    ],
)
def test_what_cannot_be_used_is_said_before_the_first_picture(
    command: Run,
    onnx_bundle: Bundle,
    parts: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(parts)
    found, out, err = command("run", onnx_bundle.folder, "normal", *options)
    assert (found, out) == (code, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("d" * 300, "the name of the drift file, dddddddddddddddddddd..., has 300 bytes; expected at most 200"),
        ("d" * 250, "has 250 bytes; expected at most 200"),
        ("d" * 300 + "/state", "could not be written (File name too long)"),
    ],
)
def test_a_name_that_no_file_can_have_is_one_sentence(
    command: Run, onnx_bundle: Bundle, parts: Path, name: str, sentence: str
) -> None:
    code, out, err = command("run", onnx_bundle.folder, parts / "normal", "--drift", parts / name)
    assert (code, out) == (1, "")
    assert sentence in " ".join(err.split())
    assert err.count("error: ") == 1
    assert command("run", onnx_bundle.folder, parts / "normal", "--drift", parts / ("d" * 200))[0] == 0
