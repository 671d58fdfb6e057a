from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vae_edge.errors import InputError
from vae_edge.platform import file_system, windows
from vae_edge.platform.atomic import LOCK_FILE, claim, new_folder, restore, write_text
from vae_edge.platform.windows import decoded_path, patiently, reader_left
from vae_edge.platform.work import as_they_end, result_of

on_windows = pytest.mark.skipif(sys.platform != "win32", reason="asks Windows")


# On every system


def test_a_call_that_is_refused_elsewhere_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        patiently(refuse, 0.2)
    assert len(calls) > 1 if sys.platform == "win32" else len(calls) == 1


def test_a_pipe_whose_reader_has_left_is_told_from_a_full_disk() -> None:
    assert reader_left(BrokenPipeError())
    assert reader_left(OSError(errno.EINVAL, "")) == (sys.platform == "win32")
    assert not reader_left(OSError(errno.ENOSPC, ""))


def test_a_path_in_utf_8_is_read_as_such(tmp_path: Path) -> None:
    assert decoded_path("größe.png".encode()) == Path("größe.png")


def test_results_of_futures_come_as_they_end() -> None:
    with ThreadPoolExecutor(2) as pool:
        go = threading.Event()
        slow, quick = pool.submit(go.wait, 10), pool.submit(bool)
        ended = as_they_end([slow, quick])
        assert result_of(next(ended)) is False
        go.set()
        assert next(ended) is slow
        assert list(ended) == []
        with pytest.raises(ZeroDivisionError):
            result_of(pool.submit(lambda: 1 / 0))


# On Windows


@on_windows
def test_a_file_that_is_open_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    write_text(tmp_path / "manifest.json", "old")
    opened = (tmp_path / "manifest.json").open("rb")
    timer = threading.Timer(0.2, opened.close)
    timer.start()
    write_text(tmp_path / "manifest.json", "new")
    timer.join()
    assert (tmp_path / "manifest.json").read_text(encoding="utf-8") == "new"


@on_windows
def test_a_file_that_stays_open_is_said_to_be(tmp_path: Path) -> None:
    write_text(tmp_path / "manifest.json", "old")
    with (
        (tmp_path / "manifest.json").open("rb"),
        pytest.raises(InputError, match="close the programs that have it or something in it open"),
    ):
        write_text(tmp_path / "manifest.json", "new")
    assert (tmp_path / "manifest.json").read_text(encoding="utf-8") == "old"
    assert len(list(tmp_path.iterdir())) == 1


@on_windows
def test_a_path_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * (240 - len(str(tmp_path))))
    with pytest.raises(InputError, match="characters, and Windows allows 259"), new_folder(folder / "deep") as made:
        (made / "a-file").touch()


@on_windows
@pytest.mark.parametrize("code_page", ["cp1252", "cp850"])
def test_a_path_in_a_code_page_is_found(tmp_path: Path, code_page: str) -> None:
    (tmp_path / "größe.png").touch()
    assert decoded_path(str(tmp_path / "größe.png").encode(code_page)) == tmp_path / "größe.png"
    assert not decoded_path(str(tmp_path / "nö.png").encode(code_page)).exists()


@on_windows
def test_a_process_is_known_by_its_number_and_its_start() -> None:
    start = windows.process_start(os.getpid())
    assert start is not None
    assert int(start[0], 16) > 0
    assert not start[1]
    me = file_system.owner()
    assert file_system.OWNER.fullmatch(me)
    assert file_system.is_alive(me)
    assert file_system.is_alive(me[:-1] + ("0" if me[-1] != "0" else "1")) is False
    assert file_system.is_alive(f"00000000-{os.getpid()}-1") is None
    assert (windows.peak_memory_bytes(os.getpid()) or 0) > 1_000_000
    assert (windows.memory_bytes() or 0) > 1 << 28
    assert windows.processor_features()


@on_windows
def test_a_process_that_has_ended_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        start = windows.process_start(other.pid)
        assert start is not None
        name = f"{file_system._host()}-{other.pid}-{start[0]}"
        assert file_system.is_alive(name)
        other.communicate(b"\n")
        assert file_system.is_alive(name) is False
    assert file_system.is_alive(name) is False


HOLD = """
import sys
from pathlib import Path
from vae_edge.platform.atomic import claim
with claim(Path(sys.argv[1]), "another training is writing to it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@on_windows
def test_a_claim_names_its_holder_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run" / LOCK_FILE
    for end in ("kill", "exit"):
        command = [sys.executable, "-c", HOLD, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            assert holder.stdout.readline() == "held\n"
            assert path.stat().st_size < 100
            with (
                pytest.raises(InputError, match=rf"another training .*process {holder.pid}"),
                claim(path, "another training is writing to it"),
            ):
                pytest.fail("the block must not run")
            holder.kill() if end == "kill" else holder.stdin.close()
            holder.wait()
        with claim(path, "another training is writing to it"):
            assert path.exists()
    assert list(path.parent.iterdir()) == []


DIE = """
import os, sys
from pathlib import Path
from vae_edge.platform import atomic
real, n_calls = atomic.rename, 0
def rename(source, target):
    global n_calls
    n_calls += 1
    real(source, target)
    if n_calls == int(sys.argv[2]):
        os._exit(1)
atomic.rename = rename
with atomic.new_folder(Path(sys.argv[1]), replaces="marker") as temporary:
    (temporary / "marker").write_text("new", encoding="utf-8")
    if sys.argv[2] == "0":
        os._exit(1)
"""


@on_windows
@pytest.mark.parametrize(("step", "there"), [("0", "old"), ("1", "old"), ("2", "new"), ("3", "new")])
def test_whenever_a_replacement_is_killed_the_old_or_the_new_is_there(tmp_path: Path, step: str, there: str) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "marker").write_text("old", encoding="utf-8")
    subprocess.run([sys.executable, "-c", DIE, str(bundle), step], check=False)
    restore(bundle)
    assert (bundle / "marker").read_text(encoding="utf-8") == there
    with new_folder(bundle, replaces="marker") as temporary:
        (temporary / "marker").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@on_windows
def test_what_another_machine_left_is_removed_after_a_day(tmp_path: Path) -> None:
    left = tmp_path / ".manifest.json.01234567-1-89abcdef-00000000.tmp"
    left.mkdir()
    for age_s, remains in ((3600.0, True), (90_000.0, False)):
        os.utime(left, (time.time() - age_s, time.time() - age_s))
        write_text(tmp_path / "manifest.json", "ours")
        assert left.exists() == remains


@on_windows
def test_ctrl_break_ends_a_wait_of_the_main_thread(tmp_path: Path) -> None:
    """Only a wait with a limit hears it; `vae-run --watch` waits so for its next picture."""
    code = (
        "import sys, threading\n"
        "from vae_edge.cli import main\n"
        "from vae_edge.platform.work import InOrder\n"
        "class Endless:\n"
        "    ended = threading.Event()\n"
        "    def __iter__(self):\n"
        "        yield 1\n"
        "        self.ended.wait()\n"
        "    def stop(self): self.ended.set()\n"
        "try:\n"
        "    with main._ended_like_ctrl_c():\n"
        "        for _ in InOrder(Endless(), lambda items: items, n_workers=1): print('waiting', flush=True)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, creationflags=flags
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", 21))
        begin_s = time.monotonic()
        assert process.stdout.read() == "interrupted\n"
        assert time.monotonic() - begin_s < 5
