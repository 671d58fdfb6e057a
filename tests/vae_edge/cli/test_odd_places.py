"""The commands as processes where something around them is odd: streams, folders, users, locks, terminals, names."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_bundles import hostile_bundle
from tests.tiny_bundles import dark_image, make_bundle, write_image
from vae_edge import Bundle
from vae_edge.errors import InputError
from vae_edge.platform.atomic import scratch_folder
from vae_edge.targets import Target

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[3]
IMPORTS = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
"""Where programs find this package, and the others if they are not installed: in the emulation of Arm, for example."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells, descriptors and users as POSIX has them")

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m[red]x[/red][link=file:///x]:smile:\u202egnp\u2066\x00|`<b>"
NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

NO_USERS = """
#include <pwd.h>
#include <stddef.h>
struct passwd *getpwuid(uid_t user) { return NULL; }
int getpwuid_r(uid_t user, struct passwd *entry, char *text, size_t size, struct passwd **found)
{ *found = NULL; return 0; }
"""
NO_LOCKS = """
#include <errno.h>
int flock(int file, int operation) { errno = ENOLCK; return -1; }
"""


@dataclass(frozen=True)
class Case:
    """A line for the shell and what comes of it; `vae` is vae-edge, $B a bundle, $P a picture, $OUT a free name."""

    name: str
    line: str
    code: int
    said: str = ""
    """A part of stderr; of a failure the only line that is no note."""
    surroundings: dict[str, str | None] = field(default_factory=dict)
    """Environment variables; None: not set."""
    lines: int | None = None
    """Whole lines of JSON on stdout."""


CASES = [
    Case("stdout-closed", "vae inspect $B >&-", 1, "stdout is closed"),
    Case("stdout-closed-with-out", "vae run $B $P --out $OUT >&- && cat $OUT/predictions.jsonl", 0, lines=1),
    Case("all-closed", "vae run $B $P --out $OUT <&- >&- 2>&- && cat $OUT/predictions.jsonl", 0, lines=1),
    Case("stdin-closed", "vae run $B - <&-", 1, "standard input is closed"),
    Case("stdin-not-readable", "vae run $B - 0>$OUT", 1, "standard input could not be read (Bad file descriptor)"),
    Case("stdout-full", "vae run $B $P >/dev/full", 1, "stdout could not be written (No space left on device)"),
    Case("stdout-full-json", "vae inspect --json $B >/dev/full", 1, "No space left on device"),
    Case("stderr-full", "vae run $B $P $P 2>/dev/full", 0, lines=2),
    Case("head-help", "set -o pipefail; vae run --help | head -1", 0),
    Case("head-table", "set -o pipefail; vae inspect $B | head -1", 0),
    Case("head-lines", "yes $P | head -2000 >$OUT; set -o pipefail; vae run $B - <$OUT | head -1", 0, lines=1),
    Case("head-out", "set -o pipefail; vae run $B $P $P --out $OUT | head -0; cat $OUT/predictions.jsonl", 0, lines=2),
    Case("head-notes", "vae run $B $P 2> >(head -c 0)", 0, lines=1),
    Case("no-home", "vae run $B $P", 0, surroundings={"HOME": None, "VAE_EDGE_CACHE": None}, lines=1),
    Case("unknown-user", "vae run $B ~nobody-of-that-name/x", 2, "there is no user 'nobody-of-that-name'"),
    Case("unknown-user-out", "vae run $B $P --out=~nobody-of-that-name/x", 2, "write the path in full"),
    Case("home", "vae run $B $P --out=~/new && cat ~/new/predictions.jsonl", 0, surroundings={"HOME": "$OUT"}, lines=1),
    Case("home-nowhere", "vae run $B $P", 0, surroundings={"HOME": "/dev/null/x", "VAE_EDGE_CACHE": None}, lines=1),
    Case("cache-is-a-file", "vae cache", 1, "is not a folder", surroundings={"VAE_EDGE_CACHE": "/dev/null"}),
    Case("folder-gone", "mkdir $OUT; cd $OUT; rmdir $OUT; vae run $B $P", 0, lines=1),
    Case("folder-gone-out", "mkdir $OUT; cd $OUT; rmdir $OUT; vae sample here", 1, "current folder no longer exists"),
    Case("folder-gone-torch", "mkdir $OUT; cd $OUT; rmdir $OUT; vae run $TORCH $P", 1, "torch cannot run"),
    Case("folder-gone-train", "mkdir $OUT; cd $OUT; rmdir $OUT; vae train --data $B --out /x", 1, "torch cannot"),
    Case("empty-argument", "vae run $B $P --out ''", 2, "argument 5, after --out, is empty"),
    Case("empty-value", "vae run $B $P --out=", 2, "--out= has no value"),
    Case("ascii", "vae run $B $P", 0, surroundings={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, lines=1),
    Case("cp1252", "vae inspect $B", 0, surroundings={"PYTHONIOENCODING": "cp1252"}),
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the cases run."""

    bundle: Path
    picture: Path
    torch: Path

    def shell(self, line: str, folder: Path, surroundings: Mapping[str, str | None] | None = None) -> Any:
        """Run a line; `$OUT` is a name in `folder` that is free."""
        names = {"B": str(self.bundle), "P": str(self.picture), "TORCH": str(self.torch), "OUT": str(folder / "out")}
        changes = {name: value if value != "$OUT" else names["OUT"] for name, value in (surroundings or {}).items()}
        environment = {**os.environ, **names, "PYTHONPATH": IMPORTS, **changes}
        script = f'vae() {{ "{sys.executable}" -m vae_edge "$@"; }}\n{line}'
        return subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            check=False,
            env={name: value for name, value in environment.items() if value is not None},
            timeout=120,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    folder = tmp_path_factory.mktemp("place")
    # Not UTF-8, a line end, an escape sequence and a character of no code page: whatever a file system takes.
    picture = folder / os.fsdecode(b"St\xfcck\n\x1b[31m\xe2\x80\xae\xe9\x83\xa8.png")
    try:
        write_image(picture, dark_image(0))
    except (OSError, UnicodeEncodeError):
        picture = write_image(folder / "piece.png", dark_image(0))
    torch = folder / "toy-torch-fp32"
    if importlib.util.find_spec("torch") is not None:
        make_bundle(torch, Target.TORCH)
    return Place(make_bundle(folder / "toy-onnx-fp32", Target.ONNX).folder, picture, torch)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_command_works_or_says_one_true_sentence(case: Case, place: Place, tmp_path: Path) -> None:
    if "-gone-t" in case.name:
        pytest.importorskip("lightning")
    line = case.line.replace("$P", '"$P"').replace('yes "$P"', "yes $OUT.png")
    if "yes " in line:
        shutil.copy(place.picture, tmp_path / "out.png")
    done = place.shell(line, tmp_path, case.surroundings)
    err = done.stderr.decode(errors="replace")
    assert done.returncode == case.code, err
    assert case.said in " ".join(err.split())
    assert not re.search("Traceback|Exception ignored|BrokenPipe|unexpected", err)
    assert not NOT_TEXT.search(err)
    assert err.count("error: ") == bool(case.said)
    if case.lines is not None:
        found = [json.loads(text) for text in done.stdout.decode("utf-8").splitlines()]
        assert len(found) == case.lines
        if "yes " not in line and found:
            assert {record["source"] for record in found} == {str(place.picture)}


def compiled(code: str, folder: Path) -> str:
    """Compile what stands before the C library, and return its path."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(code)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library)


def test_a_user_that_the_system_does_not_know_needs_no_home(place: Place, tmp_path: Path) -> None:
    nameless: dict[str, str | None] = dict.fromkeys(["HOME", "USER", "LOGNAME", "USERNAME", "VAE_EDGE_CACHE"])
    nameless["LD_PRELOAD"] = compiled(NO_USERS, tmp_path)
    done = place.shell('vae run $B "$P"', tmp_path, nameless)
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 1)
    for line, said in (("vae cache", b"set VAE_EDGE_CACHE to a folder"), ("vae run $B ~/x", b"has no home folder")):
        done = place.shell(line.replace("~/x", "'~/x'"), tmp_path, nameless)
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_a_file_system_without_locks_costs_a_compiled_model_its_lock_only(place: Place, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle = make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO).folder
    without_locks = {"LD_PRELOAD": compiled(NO_LOCKS, tmp_path), "VAE_EDGE_CACHE": str(tmp_path / "cache")}
    for _ in range(2):
        done = place.shell(f'vae run {bundle} "$P"', tmp_path, without_locks)
        assert (done.returncode, done.stdout.count(b"\n")) == (0, 1), done.stderr.decode()
    assert list((tmp_path / "cache/compiled/openvino").glob("*.bin"))


def test_a_gate_is_not_lost_with_the_reader_of_its_output(tmp_path: Path) -> None:
    script = tmp_path / "gate.py"
    script.write_text(
        "import sys, typer\n"
        "from vae_edge.cli import main\n"
        "def gate() -> None:\n"
        "    for _ in range(100_000): print('a line')\n"
        "    raise typer.Exit(3)\n"
        "main.COMMANDS['bench'] = main.Command('__main__:gate', '')\n"
        "sys.exit(main.invoke([], command='bench'))\n"
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} {script} | head -1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": IMPORTS},
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "a line\n", "")


@pytest.fixture
def hostile(onnx_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle whose every free text is hostile, and whose hashes and digest are right."""

    def change(content: dict[str, Any]) -> None:
        content.update(name=HOSTILE, scoring=HOSTILE, verified=False, not_verified_because=HOSTILE)
        content["runtime"].update(version=HOSTILE, details={HOSTILE: HOSTILE})
        content["thresholds"]["scored_by"] = HOSTILE
        content["provenance"].update(run=HOSTILE, library_versions={HOSTILE: HOSTILE})

    return hostile_bundle(onnx_bundle, tmp_path / "\x1b[2J[red]b[/red]\u202e", manifest=change)


@pytest.mark.parametrize("more", [["inspect"], ["inspect", "--json"], ["run", "PICTURE"], ["verify", "--data", "GONE"]])
def test_a_hostile_bundle_is_printed_harmlessly(command: Run, hostile: Path, tmp_path: Path, more: list[str]) -> None:
    picture = write_image(tmp_path / "\x1b]0;x\x07\u202e[bold].png", dark_image(0))
    name, *rest = [{"PICTURE": str(picture), "GONE": str(tmp_path / "\x1b[1m[bold]")}.get(word, word) for word in more]
    code, out, err = command(name, hostile, *rest)
    assert code == (1 if name == "verify" else 0)
    assert not NOT_TEXT.search(out + err)
    said = out + err
    assert "owned" in said or name == "verify"
    assert "[red]" in said or name == "verify"  # As text; and no emoji.
    assert "\U0001f604" not in said
    if "--json" in more:
        assert json.loads(out)["manifest"]["provenance"]["run"] == HOSTILE
    elif name == "run":
        assert json.loads(out)["source"] == str(picture)


@pytest.mark.parametrize(
    "arguments", [["\x1b[2J"], ["run", "--\x1b]0;x\x07"], ["inspect", "/no\x1b[1m\u202e/b\nerror: x"]]
)
def test_what_was_typed_comes_back_harmlessly(command: Run, arguments: list[str]) -> None:
    code, out, err = command(*arguments)
    assert (code, out) in ((1, ""), (2, ""))
    assert not NOT_TEXT.search(err)
    assert [line.startswith("error: ") for line in err.splitlines() if not line.startswith("Usage: ")] == [True]


def test_a_real_terminal_gets_colours_and_nothing_foreign(hostile: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "vae_edge", "inspect", str(hostile)], stdin=theirs, stdout=theirs, stderr=theirs,
        cwd=ROOT, env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # The other end is closed.
            break
    os.close(ours)
    assert process.wait(60) == 0
    assert b"\x1b[1m" in seen
    text = re.sub(r"\x1b\[[\d;]*m", "", seen.decode())  # Colours are ours.
    assert not NOT_TEXT.search(text.replace("\r\n", "\n"))
    assert "\\x1b]0;owned" in text


def test_paths_can_be_typed(place: Place) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "vae_edge", "run", str(place.bundle), "-"], stdin=theirs, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": IMPORTS},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, b"gone.png\n\x04")
    out, err = process.communicate(timeout=60)
    os.close(ours)
    assert (process.returncode, json.loads(out)["source"]) == (1, "gone.png")
    assert b"Reading paths from this terminal" in err


@pytest.mark.parametrize(
    "surroundings", [{"COLUMNS": "1"}, {"COLUMNS": "0"}, {"COLUMNS": "x"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}]
)
def test_help_can_be_read_in_any_terminal(
    command: Run, monkeypatch: pytest.MonkeyPatch, surroundings: dict[str, str]
) -> None:
    monkeypatch.delenv("HOME")
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    code, out, err = command("run", "--help")
    assert (code, err) == (0, "")
    assert "--follow-redirects" in out


NUMBERS = {
    "run": ["--max-pictures", "--every", "--max-frames", "--threads", "--requests", "--batch-size", "--reconnect"],
    "run --watch": ["--poll", "--settle", "--patience", "--idle-timeout"],
    "verify --data .": ["--false-alarm-rate"],
    "sample": ["--seed", "--image-size", "--train", "--test-good", "--per-defect"],
    "cache": ["--older-than"],
    "inspect": ["--threads", "--requests"],
    "train --data . --out": ["--kl-weight", "--epochs", "--batch-size", "--learning-rate", "--patience", "--max-time",
        "--seed", "--false-alarm-rate", "--folds", "--white-level", "--tile-overlap", "--held-out"],
    "export": ["--false-alarm-rate", "--max-auroc-drop", "--max-flip-rate", "--max-batch", "--workspace-mib"],
    "bench": ["--threads", "--rounds", "--round-time", "--load-fps", "--deadline-ms", "--requests", "--batch-sizes"],
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_makes_no_sense_is_wrong_usage(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    program, *more = name.split()
    if program in ("train", "export", "bench"):
        pytest.importorskip("torch")
    write_image(tmp_path / "pictures" / "0.png", dark_image(0))
    needed = {"cache": [], "run": [onnx_bundle.folder, tmp_path / "pictures"]}
    of_bundle = [onnx_bundle.folder] if program in ("verify", "inspect") else [tmp_path / "new"]
    for option in NUMBERS[name]:
        for value in ("nan", "-inf", "-1", "1e400", "99999999999999999999", "x"):
            code, out, err = command(program, *more, *needed.get(program, of_bundle), option, value)
            assert (code, out) == (2, ""), (option, value, err)
            said = [line[:7] for line in err.splitlines() if not line.startswith("Usage: ")]
            assert said == ["error: "], (option, value, err)


def use_scratch_folder(error: OSError) -> None:
    with scratch_folder("x") as folder:
        (folder / "file").touch()
        raise error


def test_a_temporary_folder_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"the temporary folder \S+gone cannot be used .*set TMPDIR"):
        use_scratch_folder(full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InputError, match=rf"the temporary folder {tmp_path} is full .*set TMPDIR"):
        use_scratch_folder(full)
    with pytest.raises(PermissionError):
        use_scratch_folder(PermissionError(errno.EACCES, "Permission denied", "/elsewhere"))
    assert list(tmp_path.iterdir()) == []
