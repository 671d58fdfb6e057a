from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.tiny_bundles import dark_image, write_image
from vae_edge import Bundle, MissingDependencyError, __version__
from vae_edge.cli import main

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[3]


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vae_edge", *map(str, arguments)]


def test_help_lists_every_command_without_loading_any(command: Run) -> None:
    code, out, _ = command("--help")
    assert code == 0
    for name in main.COMMANDS:
        assert f" {name} " in out
    assert "--debug" in out


@pytest.mark.parametrize("name", main.COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_as_its_own_program_too(command: Run, name: str, flag: str) -> None:
    try:
        main._load(main.COMMANDS[name])
    except MissingDependencyError as error:
        pytest.skip(str(error))
    code, out, _ = command(name, flag)
    assert code == 0
    assert f"vae-edge {name}" in out
    code, out, _ = command(flag, program=name)
    assert code == 0
    assert f"Usage: vae-{name}" in out


@pytest.mark.parametrize("name", ["main", "train_main", "export_main", "run_main", "bench_main"])
def test_every_entry_point_of_the_package_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vae-edge", "--no-such-option"])
    monkeypatch.setattr(main, "_end_soon_after_a_signal", lambda: None)  # It is for a process that ends afterwards.
    with pytest.raises(SystemExit) as end:
        getattr(main, name)()
    assert end.value.code == 2


def test_the_version_is_the_packages(command: Run) -> None:
    assert command("--version") == (0, f"vae-edge {__version__}\n", "")


def test_a_typing_mistake_is_wrong_usage(command: Run) -> None:
    code, out, err = command("rnu")
    assert code == 2
    assert out == ""
    assert "No such command 'rnu'" in err


@pytest.mark.parametrize("arguments", [["run"], ["run", "--no-such-option"], ["verify"], ["sample"]])
def test_wrong_usage_ends_with_2(command: Run, arguments: list[str]) -> None:
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    assert "Usage: vae-edge" in err


def test_an_error_is_one_line_and_debug_shows_where_it_came_from(command: Run, tmp_path: Path) -> None:
    code, out, err = command("inspect", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for arguments in (
        ["--debug", "inspect", tmp_path],
        ["inspect", "--debug", tmp_path],
        ["inspect", tmp_path, "--debug"],
    ):
        code, _, err = command(*arguments)
        assert code == 1
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("program_name", "arguments", "expected"),
    [
        (None, ["bench", "bundle"], "bench ['bundle']"),
        ("bench", ["bundle", "compare"], "bench ['bundle', 'compare']"),
        ("bench", ["./compare"], "bench ['./compare']"),
        (None, ["bench", "compare", "old", "new"], "compare old new"),
        ("bench", ["compare", "old", "new"], "compare old new"),
        (None, ["--debug", "bench", "compare", "old", "new"], "compare old new"),
    ],
)
def test_a_command_and_the_command_below_it_are_told_apart(
    command: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program_name: str | None,
    arguments: list[str],
    expected: str,
) -> None:
    (tmp_path / "toy_commands.py").write_text(
        "def bench(bundles: list[str]) -> None: print('bench', bundles)\n"
        "def compare(old: str, new: str) -> None: print('compare', old, new)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(main.COMMANDS, "bench", main.Command("toy_commands:bench", "", None, ("compare",)))
    assert command(*arguments, program=program_name) == (0, expected + "\n", "")
    assert "compare old" not in command("bench", "--help")[1]


@pytest.mark.parametrize(
    "entry", [entry.child(name) for entry in main.COMMANDS.values() for name in entry.children], ids=str
)
def test_every_command_below_another_exists(entry: main.Command) -> None:
    try:
        assert callable(main._load(entry))
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_what_follows_two_dashes_is_left_alone() -> None:
    assert main._take_debug(["run", "--debug", "--", "--debug"]) == (["run", "--", "--debug"], True)
    assert main._take_debug(["run", "--", "--debug"]) == (["run", "--", "--debug"], False)


@pytest.mark.parametrize("name", ["train", "export"])
def test_without_torch_training_and_export_say_what_to_install(name: str, tmp_path: Path) -> None:
    for seed in range(4):
        write_image(tmp_path / "good" / f"{seed}.png", dark_image(seed, 64))
    arguments = [str(tmp_path)] if name == "export" else ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    script = (
        "import sys; sys.modules['torch'] = None\n"  # as if it were not installed
        "from vae_edge.cli.main import invoke\n"
        f"sys.exit(invoke({arguments!r}, command={name!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"needs the package 'torch', which is not installed; run: pip install \"vae-edge[{name}]\"" in done.stderr


def test_a_missing_package_becomes_the_command_that_installs_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"needs the package 'torch.*pip install .vae-edge\[train\]."):
        main._explain_missing(ModuleNotFoundError("No module", name="torch"), "train")
    # A module of our own that is missing is a bug, and its traceback is wanted.
    main._explain_missing(ModuleNotFoundError("No module", name="vae_edge.train.gone"), "train")
    main._explain_missing(ModuleNotFoundError("No module", name="numpy"), None)


def test_a_reader_that_has_seen_enough_is_no_error(onnx_bundle: Bundle, tmp_path: Path) -> None:
    picture = write_image(tmp_path / "piece.png", dark_image(0))
    with subprocess.Popen(
        program("run", onnx_bundle.folder, *[picture] * 300), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"source"')
        process.stdout.close()
        noise = process.stderr.read()
    assert b"Traceback" not in noise
    assert b"BrokenPipe" not in noise


@pytest.mark.parametrize("name", ["run", "demo", "export"])
def test_help_wraps_at_the_terminals_width_and_not_at_the_sources(command: Run, name: str) -> None:
    pytest.importorskip("torch") if name != "run" else None
    lines = [line.rstrip() for line in command(name, "--help")[1].partition("─ Arguments")[0].splitlines()]
    lines = [line for line in lines if not line.startswith(" vae-")]  # Examples are not wrapped.
    words = [len(line) for line, following in pairwise(lines) if line and following.strip()]
    assert min(words[1:], default=80) > 60


@pytest.mark.parametrize("name", ["train", "export", "run"])
def test_an_example_in_the_help_is_one_line_on_80_columns(
    command: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch") if name != "run" else None
    monkeypatch.setenv("COLUMNS", "80")
    told = [line.strip() for line in (main._load(main.COMMANDS[name]).__doc__ or "").splitlines()]
    examples = [line for line in told if line.startswith("vae-")]
    shown = [line.strip() for line in command("--help", program=name)[1].splitlines()]
    assert examples
    assert [line for line in shown if line.startswith("vae-")] == examples


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--json"]])
def test_a_full_disk_behind_stdout_is_a_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            program(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_terminal_without_umlauts_gets_escapes_and_json_stays_json(onnx_bundle: Bundle, tmp_path: Path) -> None:
    picture = write_image(tmp_path / "Stück.png", dark_image(0))
    surroundings = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    for arguments in (["run", onnx_bundle.folder, picture], ["inspect", onnx_bundle.folder]):
        done = subprocess.run(program(*arguments), capture_output=True, check=False, cwd=ROOT, env=surroundings)
        assert done.returncode == 0
        if arguments[0] == "run":
            assert json.loads(done.stdout)["source"] == str(picture)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without telling it")
def test_a_termination_signal_leaves_nothing_half_finished_behind(tmp_path: Path) -> None:
    arguments = program("sample", tmp_path / "set", "--product", "dial", "--image-size", 1024, "--train", 500)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not list(tmp_path.glob("set/.dial.*/train/good/*.png")):
            time.sleep(0.02)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "error: interrupted; no partial results were left behind\n")
    assert list((tmp_path / "set").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_keeps_what_is_finished_and_ends_with_130(onnx_bundle: Bundle, tmp_path: Path) -> None:
    picture = write_image(tmp_path / "piece.png", dark_image(0, 256))
    out = tmp_path / "out"
    arguments = program("run", onnx_bundle.folder, *[picture] * 20_000, "--out", out)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        lines = out / "predictions.jsonl"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (lines.is_file() and lines.stat().st_size):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted after" in err
    assert "Traceback" not in err
    assert lines.read_text().endswith("}\n")


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'cv2'", name="cv2"),
        ImportError("numpy.core.multiarray failed to import"),  # A cv2 for NumPy 1 beside NumPy 2.
    ],
)
def test_an_opencv_that_cannot_be_imported_is_no_bug(error: ImportError) -> None:
    said = main._sentence(error)
    assert said.startswith("OpenCV cannot be imported (")
    assert "pip install opencv-python-headless" in said
    assert "'numpy<2'" in said
