from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.forked import end_of, fork
from vae_edge.errors import InputError
from vae_edge.platform import atomic, file_system
from vae_edge.platform.atomic import (
    LOCK_FILE,
    claim,
    new_file,
    new_folder,
    remove_leftovers_in,
    restore,
    sha256_file,
    write_bytes,
    write_text,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="forks")


def full_disk(handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_folder_of_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left"), new_folder(tmp_path / "bundle") as temporary:
        (temporary / "model").write_bytes(b"weights")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_older_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bundle"
    old.mkdir()
    (old / "marker").write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="could not be written"), new_folder(old, replaces="marker") as temporary:
        (temporary / "marker").write_text("new")
    assert (old / "marker").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "bundle") as temporary:
            (temporary / "model").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_readable_for_everyone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "bundle") as temporary:
        (temporary / "model").write_bytes(b"weights")
        assert not (tmp_path / "deep" / "bundle").exists()
    assert (tmp_path / "deep" / "bundle" / "model").read_bytes() == b"weights"
    assert (tmp_path / "deep" / "bundle").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bundle"]


def test_an_older_folder_with_the_marker_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_folder(tmp_path / "bundle", replaces="marker") as temporary:
            (temporary / "marker").write_text(content)
            (temporary / content).touch()
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["marker", "new"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("marker", [None, "marker"])
def test_a_folder_of_someone_else_is_refused_and_kept(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"beach")
    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "holiday", replaces=marker):
        pytest.fail("the block must not run")
    assert (tmp_path / "holiday" / "photo.jpg").read_bytes() == b"beach"


def test_a_dangling_link_is_no_free_name(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "bundle"):
        pytest.fail("the block must not run")


def test_text_on_a_full_disk_leaves_the_older_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="could not be written"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_parent_that_is_a_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="could not be written"):
        write_text(tmp_path / "file" / "manifest.json", "text")
    with pytest.raises(InputError, match="could not be written"), new_folder(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")


def test_the_hash_of_an_empty_file_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_an_error_in_the_block_leaves_the_older_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_text(path, "old")

    def write_half() -> None:
        with new_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@posix_only
@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_modes_are_what_the_umask_leaves(tmp_path: Path, mask: int, file_mode: int, folder_mode: int) -> None:
    with umask(mask):
        write_text(tmp_path / "manifest.json", "text")
        with new_folder(tmp_path / "bundle") as temporary:
            (temporary / "deep").mkdir(mode=0o700)
            (temporary / "deep" / "model").touch(mode=0o600)  # as writers do that use tempfile
            write_text(temporary / "manifest.json", "text")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        "bundle": folder_mode,
        "deep": folder_mode,
        "model": file_mode,
        "manifest.json": file_mode,
    }


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_file_system_that_knows_no_modes_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    with new_folder(tmp_path / "bundle") as temporary:
        (temporary / "model").touch(mode=0o600)
    write_text(tmp_path / "text", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "text"]


def fsync_that_fails(code: int, *, folders_only: bool) -> Callable[[int], None]:
    real = os.fsync

    def fsync(handle: int) -> None:
        if not folders_only or stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        real(handle)

    return fsync


@pytest.mark.parametrize("folders_only", [True, False])
def test_a_file_system_that_flushes_nothing_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders_only: bool
) -> None:
    monkeypatch.setattr(os, "fsync", fsync_that_fails(errno.EINVAL, folders_only=folders_only))
    for content in ("old", "new"):
        with new_folder(tmp_path / "bundle", replaces="marker") as temporary:
            (temporary / "marker").write_text(content)
        write_text(tmp_path / "text", content)
    assert (tmp_path / "bundle" / "marker").read_text() == "new"
    assert (tmp_path / "text").read_text() == "new"


@posix_only
def test_what_is_there_is_not_said_to_be_unchanged_when_its_flush_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def broken(handle: int) -> None:
        if os.path.samestat(os.fstat(handle), tmp_path.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(InputError, match="was written, but the disk did not confirm it") as told:
        write_text(tmp_path / "text", "new")
    assert "nothing was changed" not in str(told.value)
    assert (tmp_path / "text").read_text() == "new"


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "marker").write_text("old")
    (tmp_path / "current").symlink_to("v1")
    with new_folder(tmp_path / "current", replaces="marker") as temporary:
        (temporary / "marker").write_text("new")
    assert (tmp_path / "current" / "marker").read_text() == "new"
    assert (tmp_path / "v1" / "marker").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v1"]


def test_what_somebody_put_into_a_folder_is_not_replaced_with_it(tmp_path: Path) -> None:
    def own(_: Path) -> set[str]:
        return {"marker", "deep/model"}

    for name in ("marker", "deep/model", ".DS_Store", ".lock.owner"):
        (tmp_path / "bundle" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundle" / name).touch()
    with new_folder(tmp_path / "bundle", replaces="marker", own=own) as temporary:
        (temporary / "marker").touch()
    (tmp_path / "bundle" / "deep").mkdir()
    (tmp_path / "bundle" / "deep" / "notes.txt").write_text("mine")
    with (
        pytest.raises(InputError, match=r"deep/notes\.txt, which vae-edge did not write"),
        new_folder(tmp_path / "bundle", replaces="marker", own=own),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "bundle" / "deep" / "notes.txt").read_text() == "mine"


def test_a_folder_that_fills_while_it_is_written_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "bundle"):
            (tmp_path / "bundle").mkdir()
            (tmp_path / "bundle" / "photo.jpg").write_bytes(b"beach")

    with pytest.raises(InputError, match="already exists"):
        write()
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("length", [255, 240, 151] if os.name == "posix" else [100, 50])
@pytest.mark.parametrize("letter", ["x", "ä", "語"])
def test_the_longest_names_can_be_written(tmp_path: Path, length: int, letter: str) -> None:
    name = letter * (length // len(letter.encode()))
    write_text(tmp_path / name, "text")
    with new_folder(tmp_path / "folders" / name) as temporary:
        (temporary / "model").touch()
    assert (tmp_path / name).read_text() == "text"
    assert [path.name for path in (tmp_path / "folders").iterdir()] == [name]


# What killed processes leave


def killed_at(call: int, work: Callable[[], None]) -> Callable[[], None]:
    """Return the work with a death at the n-th call of the system from now on."""

    def run() -> None:
        n_calls = 0

        def count(_: Any, event: str, what: Any) -> None:
            nonlocal n_calls
            if event == "c_call" and getattr(what, "__module__", None) == "posix":
                n_calls += 1
                if n_calls == call:
                    sys.setprofile(None)
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        work()
        sys.setprofile(None)

    return run


def write_bundle(folder: Path, content: str) -> None:
    with new_folder(folder, replaces="marker") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "model").write_text(content)
        (temporary / "marker").write_text(content)


@posix_only
@pytest.mark.parametrize("has_exchange", [True, False])
def test_whenever_a_replacement_is_killed_the_old_or_the_new_is_there_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_exchange: bool
) -> None:
    if not has_exchange:
        monkeypatch.setattr(atomic, "exchange", lambda first, second: False)
    monkeypatch.setattr(os, "fsync", os.fstat)  # Some hundred runs; a power cut is another matter.
    bundle = tmp_path / "bundle"
    n_kills, seen = 0, set()
    for call in range(1, 2000):
        write_bundle(bundle, "old")
        code = end_of(fork(killed_at(call, lambda: write_bundle(bundle, "new"))))
        if has_exchange:
            assert bundle.is_dir()
        restore(bundle)  # as whoever opens it does
        content = (bundle / "marker").read_text()
        assert (bundle / "deep" / "model").read_text() == content
        seen.add(content)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        n_kills += 1
        write_bundle(bundle, "next")
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert code == 0
    assert n_kills > 50
    assert seen == {"old", "new"}


@posix_only
def test_whenever_the_writing_of_a_file_is_killed_the_old_or_the_new_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", os.fstat)
    path = tmp_path / "manifest.json"
    for call in range(1, 1000):
        write_text(path, "old")
        code = end_of(fork(killed_at(call, lambda: write_text(path, "new"))))
        assert path.read_text() in ("old", "new")
        if code == 0:
            break
        write_text(path, "next")
        assert list(tmp_path.iterdir()) == [path]
    assert code == 0
    assert call > 20


@posix_only
def test_what_a_live_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    ready, go = os.pipe(), os.pipe()

    def write() -> None:
        with new_file(tmp_path / "manifest.json") as temporary:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            temporary.write_text("theirs")

    child = fork(write)
    os.read(ready[0], 1)
    write_text(tmp_path / "manifest.json", "ours")
    remove_leftovers_in(tmp_path)
    assert len(list(tmp_path.glob(".manifest.json.*.tmp"))) == 1
    os.write(go[1], b"x")
    assert end_of(child) == 0
    assert (tmp_path / "manifest.json").read_text() == "theirs"


@posix_only
def test_what_a_killed_process_left_that_is_not_waited_for_is_removed(tmp_path: Path) -> None:
    def write() -> None:
        with new_file(tmp_path / "manifest.json"):
            os.kill(os.getpid(), signal.SIGKILL)

    child = fork(write)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # A container without an init leaves its dead like that.
    write_text(tmp_path / "manifest.json", "ours")
    assert end_of(child) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@posix_only
@pytest.mark.parametrize("is_in_use", [True, False])
def test_what_another_container_left_is_removed_when_nobody_holds_it(tmp_path: Path, is_in_use: bool) -> None:
    left = tmp_path / ".manifest.json.01234567-1-89abcdef-00000000.tmp"
    left.touch()
    os.utime(left, (time.time() - 3600, time.time() - 3600))
    handle = os.open(left, os.O_RDONLY)
    if is_in_use:
        assert file_system.lock(handle)
    write_text(tmp_path / "manifest.json", "ours")
    assert left.exists() == is_in_use
    os.close(handle)


def test_names_that_look_like_leftovers_and_are_not_are_kept(tmp_path: Path) -> None:
    names = [".bundle.tmp", ".bundle.backup.tmp", ".bundle.1234.old", ".bundle.old", "bundle.tmp"]
    for name in names:
        (tmp_path / name).mkdir()
    write_bundle(tmp_path / "bundle", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "bundle"])


# Claims

HOLD = """
import sys
from pathlib import Path
from vae_edge.platform.atomic import claim
if {no_locks}:
    import errno, fcntl
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")
    fcntl.flock = flock
with claim(Path(sys.argv[1]), "another training is writing to it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(path: Path, *, no_locks: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD.format(no_locks=no_locks), str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@posix_only
@pytest.mark.parametrize("no_locks", [False, True])
def test_a_place_is_one_processs_at_a_time_and_free_when_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_locks: bool
) -> None:
    if no_locks:
        import fcntl

        def flock(*_: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "run" / LOCK_FILE
    for end in ("kill", "exit"):
        with start_holder(path, no_locks=no_locks) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            assert holder.stdout.readline() == "held\n"
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


def test_a_claim_in_the_same_process_counts_too(tmp_path: Path) -> None:
    with claim(tmp_path / LOCK_FILE, "it is taken"):
        with pytest.raises(InputError, match="it is taken"), claim(tmp_path / LOCK_FILE, "it is taken"):
            pytest.fail("the block must not run")
        assert (tmp_path / LOCK_FILE).exists()
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("no_locks", [False, True])
def test_a_claim_that_fails_on_a_full_disk_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_locks: bool
) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if no_locks:
        monkeypatch.setattr(file_system, "lock", lambda handle: None)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(InputError, match="No space left"), claim(tmp_path / LOCK_FILE, "it is taken"):
            pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path / LOCK_FILE, "it is taken"):
        assert (tmp_path / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_second_file_without_an_owner_keeps_others_out_for_a_minute_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_system, "lock", lambda handle: None)
    lost = tmp_path / f"{LOCK_FILE}.owner"
    lost.touch()
    with pytest.raises(InputError, match=r"it is taken \(another process; .* delete .*\.owner\)"):
        claim(tmp_path / LOCK_FILE, "it is taken").__enter__()
    hour_ago = time.time() - 3600
    os.utime(lost, (hour_ago, hour_ago))
    with claim(tmp_path / LOCK_FILE, "it is taken"):
        assert lost.read_text()
    assert list(tmp_path.iterdir()) == []


@posix_only
def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_claim(tmp_path: Path) -> None:
    hold = HOLD.format(no_locks=False).replace("sys.stdin.read()", "import os, time; os.fork() or time.sleep(30)")
    command = [sys.executable, "-c", hold, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, start_new_session=True) as holder:
        holder.wait()
        with claim(tmp_path / LOCK_FILE, "it is taken"):
            pass
        os.killpg(holder.pid, signal.SIGKILL)


def test_two_that_write_one_name_at_the_same_time_are_told_apart(tmp_path: Path) -> None:
    with new_folder(tmp_path / "bundle") as temporary:
        with pytest.raises(InputError, match="another process is writing"):
            write_bundle(tmp_path / "bundle", "second")
        (temporary / "marker").write_text("first")
    assert (tmp_path / "bundle" / "marker").read_text() == "first"


@posix_only
def test_eight_processes_that_take_turns_never_meet(tmp_path: Path) -> None:
    inside = tmp_path / "inside"

    def enter_and_leave() -> None:
        for _ in range(20):
            with claim(tmp_path / LOCK_FILE, "it is taken", wait=True):
                inside.mkdir()  # fails where somebody else is inside
                inside.rmdir()

    children = [fork(enter_and_leave) for _ in range(8)]
    assert [end_of(child) for child in children] == [0] * 8


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_bytes(tmp_path / "bytes", memoryview(b"\r\n\x00"))
    assert (tmp_path / "bytes").read_bytes() == b"\r\n\x00"


@pytest.mark.parametrize("knows_the_call", [True, False])
def test_a_file_gets_all_its_room_before_anything_is_written_to_it(
    knows_the_call: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not knows_the_call:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path, n_bytes = tmp_path / "table", (1 << 20) + 4097
    path.write_bytes(b"older" * 10)
    file_system.allocate(path, n_bytes)
    assert path.read_bytes() == bytes(n_bytes)
    if sys.platform != "win32":
        assert path.stat().st_blocks * 512 >= n_bytes


def test_a_file_that_gets_no_room_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    with pytest.raises(OSError, match="No space left"):
        file_system.allocate(tmp_path / "table", 4096)
    assert not list(tmp_path.iterdir())
