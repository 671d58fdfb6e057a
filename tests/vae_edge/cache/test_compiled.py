from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vae_edge.cache import compiled
from vae_edge.cache.compiled import CompiledKey, building, entries, find, keep
from vae_edge.cache.folders import compiled_cache_folder
from vae_edge.errors import InputError

ROOT = Path(__file__).parents[3]

KEY = CompiledKey(
    "openvino", "a" * 64, "OpenVINO 2026.4.1", "CPU of this machine", (("batch", "1"), ("hint", "latency"))
)

posix = pytest.mark.skipif(os.name != "posix", reason="mode bits are POSIX's")
is_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(autouse=True)
def _warned_of_nothing() -> None:
    compiled._warn_once.cache_clear()


def clear() -> int:
    """Remove what nobody is writing, as `vae-edge cache --clear` does."""
    return sum(entry.remove() for entry in entries() if not entry.is_unfinished)


def keep_bytes(key: CompiledKey = KEY, content: bytes = b"compiled") -> Path:
    path = keep(key, lambda path: path.write_bytes(content))
    assert path is not None
    return path


def files() -> list[str]:
    folder = compiled_cache_folder()
    return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def set_last_use(key: CompiledKey, days_ago: float) -> None:
    path = compiled_cache_folder() / key.kind / f"{key.hash}.json"
    os.utime(path, (time.time() - days_ago * 86400,) * 2)


class TestFinding:
    def test_nothing_is_found_in_an_empty_cache_and_nothing_is_made(self) -> None:
        assert find(KEY) is None
        assert not compiled_cache_folder().exists()
        assert entries() == []

    def test_what_was_kept_is_found(self) -> None:
        kept = keep_bytes()
        assert find(KEY) == kept
        assert kept.read_bytes() == b"compiled"
        assert len(files()) == 2

    def test_the_latest_wins(self) -> None:
        first, second = keep_bytes(content=b"first"), keep_bytes(content=b"second")
        assert find(KEY) == second
        assert first.read_bytes() == b"first", "a process that was given the first may still have to open it"
        os.utime(second, (time.time() - 120,) * 2)
        third = keep_bytes(content=b"third")
        assert find(KEY) == third
        assert not second.exists()

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "tensorrt"},
            {"model_sha256": "b" * 64},
            {"runtime": "OpenVINO 2026.5.0"},
            {"device": "GPU"},
            {"settings": ()},
            {"settings": (("batch", "2"), ("hint", "latency"))},
        ],
    )
    def test_a_key_that_differs_in_one_field_finds_nothing(self, change: dict[str, object]) -> None:
        kept = keep_bytes()
        assert find(replace(KEY, **change)) is None  # type: ignore[arg-type]  # fields of several types
        assert find(KEY) == kept

    def test_fields_are_compared_and_not_their_hash_alone(self) -> None:
        kept = keep_bytes()
        record_path = kept.parent / f"{KEY.hash}.json"
        content = json.loads(record_path.read_text())
        content["key"]["device"] = "another"
        record_path.write_text(json.dumps(content))
        assert find(KEY) is None

    @pytest.mark.parametrize("damage", ["truncated", "altered", "gone", "not JSON", "JSON of something else"])
    def test_a_damaged_entry_is_not_found_and_is_removed(self, damage: str, caplog: pytest.LogCaptureFixture) -> None:
        kept = keep_bytes()
        record_path = kept.parent / f"{KEY.hash}.json"
        if damage == "truncated":
            kept.write_bytes(b"compile")
        elif damage == "altered":
            kept.write_bytes(b"Compiled")
        elif damage == "gone":
            kept.unlink()
        else:
            record_path.write_text("{" if damage == "not JSON" else '{"name": "x"}')
        assert find(KEY) is None
        assert "is damaged and ignored" in caplog.text
        assert not record_path.exists()
        assert find(KEY) is None
        assert keep_bytes() == find(KEY)

    def test_a_record_cannot_point_outside_its_folder(self, tmp_path: Path) -> None:
        kept = keep_bytes()
        record_path = kept.parent / f"{KEY.hash}.json"
        record_path.write_text(record_path.read_text().replace(kept.name, "../../elsewhere"))
        assert find(KEY) is None

    def test_a_miss_costs_next_to_nothing(self) -> None:
        keep_bytes()
        other = replace(KEY, device="other")
        started = time.perf_counter()
        for _ in range(100):
            assert find(other) is None
        assert (time.perf_counter() - started) / 100 < 0.001


class TestKeeping:
    def test_the_folder_and_the_content_are_the_users_alone(self) -> None:
        if os.name != "posix":
            pytest.skip("mode bits are POSIX's")
        kept = keep_bytes()
        assert kept.stat().st_mode & 0o777 == 0o600
        for folder in (kept.parent, kept.parent.parent):
            assert folder.stat().st_mode & 0o777 == 0o700

    @pytest.mark.skipif(os.name != "posix", reason="mode bits are POSIX's")
    def test_a_folder_that_others_can_write_to_is_not_used(self, caplog: pytest.LogCaptureFixture) -> None:
        keep_bytes()
        compiled_cache_folder().chmod(0o777)
        assert find(KEY) is None
        assert keep(KEY, lambda path: None) is None
        assert caplog.text.count("others can write to it") == 1

    @posix
    @pytest.mark.parametrize("mode", [0o770, 0o775, 0o777, 0o707, 0o3770])
    @pytest.mark.parametrize("depth", range(4))
    def test_a_folder_that_others_can_write_to_is_not_used_wherever_it_is_on_the_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: int, depth: int
    ) -> None:
        monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "above" / "vae-edge"))
        monkeypatch.setattr(compiled, "_is_own_group", lambda gid: False)
        kept = keep_bytes()
        kind = compiled_cache_folder() / KEY.kind
        folder = [kind, *kind.parents][depth]
        assert [kind.name, "compiled", "vae-edge", "above"][depth] == folder.name
        folder.chmod(mode)
        if mode & stat.S_ISVTX and folder != kind:
            # As in /tmp, others can add something there and can neither rename nor replace what lies in it.
            assert find(KEY) == kept
            return
        assert find(KEY) is None
        assert keep(KEY, lambda path: None) is None
        with building(KEY):
            assert not list(kind.glob("*.lock"))
        assert caplog.text.count(f"chmod go-w {folder},") == 1
        folder.chmod(0o755)
        assert find(KEY) == kept

    @posix
    @pytest.mark.skipif(not is_root, reason="only root can give a folder to somebody else")
    @pytest.mark.parametrize("depth", range(4))
    def test_a_folder_of_another_user_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
    ) -> None:
        monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "above" / "vae-edge"))
        keep_bytes()
        kind = compiled_cache_folder() / KEY.kind
        folder = [kind, *kind.parents][depth]
        os.chown(folder, 12345, -1)
        assert find(KEY) is None
        assert keep(KEY, lambda path: None) is None

    @posix
    def test_links_are_followed_and_what_they_lead_through_is_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "disk" / "open" / "deep").mkdir(parents=True)
        (tmp_path / "disk" / "second").symlink_to("open/../open/deep")
        (tmp_path / "first").symlink_to(tmp_path / "disk" / "second")
        monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "first" / "vae-edge"))
        kept = keep_bytes()
        assert find(KEY) == kept
        (tmp_path / "disk" / "open").chmod(0o777)
        assert find(KEY) is None
        (tmp_path / "disk" / "open").chmod(0o755)
        assert find(KEY) == kept
        (tmp_path / "disk").chmod(0o777)
        assert find(KEY) is None
        assert keep(KEY, lambda path: None) is None

    @posix
    @pytest.mark.skipif(not is_root, reason="only root can give a link to somebody else")
    def test_a_link_of_another_user_is_not_followed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "link").symlink_to("mine")
        monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "link" / "vae-edge"))
        keep_bytes()
        os.chown(tmp_path / "link", 12345, -1, follow_symlinks=False)
        assert find(KEY) is None

    @posix
    def test_links_in_a_circle_are_no_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "a" / "vae-edge"))
        assert find(KEY) is None
        assert keep(KEY, lambda path: None) is None

    @posix
    def test_every_folder_that_is_made_is_this_users_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "a" / "b" / "vae-edge"))
        before = os.umask(0)
        try:
            keep_bytes()
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()} == {0o700}

    @posix
    def test_a_group_of_the_users_own_is_nobody_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import grp
        import pwd

        user = pwd.struct_passwd(("ada", "x", os.geteuid(), 1234, "", "/home/ada", "/bin/sh"))
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
        groups: dict[int, tuple[str, str, int, list[str]]] = {
            1234: ("ada", "x", 1234, []),
            5: ("tty", "x", 5, []),
            0: ("ada", "x", 0, []),
        }
        monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(groups[gid]))
        assert [compiled._is_own_group(gid) for gid in (1234, 5, 0, 77)] == [True, False, False, False]
        groups[1234] = ("ada", "x", 1234, ["bob"])
        assert not compiled._is_own_group(1234)

    @pytest.mark.skipif(is_root or os.name != "posix", reason="root may write everywhere")
    def test_a_read_only_folder_is_warned_of_once_and_still_read(self, caplog: pytest.LogCaptureFixture) -> None:
        kept = keep_bytes()
        kept.parent.chmod(0o500)
        other = replace(KEY, device="other")
        try:
            assert keep(other, lambda path: None) is None
            assert keep(other, lambda path: None) is None
            assert find(KEY) == kept
            with building(other):
                pass
        finally:
            kept.parent.chmod(0o700)
        assert caplog.text.count("cannot be cached") == 1

    def test_a_place_that_is_no_folder_is_no_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "file"))
        assert find(KEY) is None
        assert keep(KEY, lambda path: None) is None
        with building(KEY):
            pass
        assert entries() == []
        assert "cannot be cached" in caplog.text

    def test_a_full_disk_is_no_error_and_leaves_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        def fill(path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        assert keep(KEY, fill) is None
        assert keep(KEY, fill) is None
        assert caplog.text.count("No space left on device") == 1
        assert files() == []

    @pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt(), InputError("no model")])
    def test_what_the_writer_raises_is_passed_on_and_leaves_the_old_entry(self, error: BaseException) -> None:
        kept = keep_bytes()

        def fail(path: Path) -> None:
            path.write_bytes(b"half")
            raise error

        with pytest.raises(type(error)):
            keep(KEY, fail)
        assert find(KEY) == kept
        assert len(files()) == 2

    @pytest.mark.parametrize("kind", ["", "../up", "Open", "a/b", "."])
    def test_a_kind_that_is_no_plain_name_is_refused(self, kind: str) -> None:
        with pytest.raises(ValueError, match="expected a plain folder name"):
            CompiledKey(kind, "", "", "")


class TestSize:
    def test_the_least_recently_used_goes_first_and_the_newest_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = [replace(KEY, device=str(number)) for number in range(4)]
        for number, key in enumerate(keys[:3]):
            keep_bytes(key, bytes(600_000))
            set_last_use(key, 10 - number)
        assert find(keys[0]) is not None  # Used now, so it is no longer the oldest.
        monkeypatch.setenv("VAE_EDGE_CACHE_LIMIT_MB", "2")
        keep_bytes(keys[3], bytes(600_000))
        assert [find(key) is not None for key in keys] == [True, False, True, True]
        monkeypatch.setenv("VAE_EDGE_CACHE_LIMIT_MB", "1")
        newest = keep_bytes(keys[1], bytes(1_500_000))
        assert [entry.key for entry in entries()] == [keys[1]]
        assert find(keys[1]) == newest

    def test_a_limit_of_0_keeps_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VAE_EDGE_CACHE_LIMIT_MB", "0")
        assert keep(KEY, lambda path: None) is None
        assert not compiled_cache_folder().exists()

    def test_a_limit_that_is_no_number_is_warned_of(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("VAE_EDGE_CACHE_LIMIT_MB", "2 GB")
        keep_bytes()
        assert "VAE_EDGE_CACHE_LIMIT_MB is '2 GB'" in caplog.text


class TestClearing:
    def test_what_is_open_stays_readable(self) -> None:
        with keep_bytes().open("rb") as file:
            clear()
            assert find(KEY) is None
            assert file.read() == b"compiled"

    def test_what_cannot_be_read_is_listed_and_cleared(self) -> None:
        kept = keep_bytes()
        (kept.parent / f"{KEY.hash}.json").write_text("{")
        (entry,) = entries()
        assert entry.key is None
        assert entry.size_bytes == 9
        assert clear() == 1
        assert files() == []

    def test_what_killed_processes_left_goes_once_nobody_can_be_writing_it(self) -> None:
        folder = keep_bytes().parent
        other = replace(KEY, device="other").hash
        left = [folder / f"{other}-0123.bin", folder / f".{other}-0456.bin.ab12.tmp"]
        for path in left:
            path.write_bytes(b"left")
        assert [entry.is_unfinished for entry in entries() if entry.key is None] == [True]
        clear()
        assert all(path.exists() for path in left)
        for path in left:
            os.utime(path, (time.time() - 7200,) * 2)
        keep_bytes()
        assert not any(path.exists() for path in left)

    def test_files_of_others_are_left_alone(self) -> None:
        stranger = keep_bytes().parent / "notes.txt"
        stranger.write_text("mine")
        clear()
        assert stranger.exists()


PROGRAM = """
import sys, time
from pathlib import Path
from vae_edge.cache.compiled import CompiledKey, building, find, keep
key = CompiledKey("tensorrt", "c" * 64, "TensorRT 10.3.0", "a GPU")
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


class TestProcesses:
    KEY = CompiledKey("tensorrt", "c" * 64, "TensorRT 10.3.0", "a GPU")

    def test_two_that_fill_one_key_at_once_both_succeed(self) -> None:
        code = (
            "print('ready', flush=True); sys.stdin.readline()\n"
            "for number in range(8):\n"
            "    path = keep(key, lambda path: path.write_bytes(sys.argv[0].encode() + bytes(100_000 + number)))\n"
            "    assert path is not None and path.stat().st_size > 100_000\n"
            "    found = find(key)\n"
            "    assert found is not None and len(found.read_bytes()) > 100_000\n"
        )
        processes = [start(code) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
        assert find(self.KEY) is not None
        assert len([entry for entry in entries() if entry.key is not None]) == 1

    @pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
    def test_one_that_is_killed_while_it_writes_leaves_no_entry_and_no_lock(self) -> None:
        code = (
            "def write(path):\n"
            "    path.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
            "with building(key): keep(key, write)\n"
        )
        process = start(code)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert find(self.KEY) is None
        waited: list[int] = []
        with building(self.KEY, lambda: waited.append(1)):
            assert keep(self.KEY, lambda path: path.write_bytes(b"whole")) is not None
        assert not waited
        found = find(self.KEY)
        assert found is not None
        assert found.read_bytes() == b"whole"

    def test_one_builds_while_the_others_wait(self) -> None:
        code = "with building(key): print('building', flush=True); sys.stdin.readline(); keep(key, Path.touch)\n"
        process = start(code)
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        waits = threading.Event()
        found: list[Path | None] = []

        def wait() -> None:
            with building(self.KEY, waits.set):
                found.append(find(self.KEY))

        threads = [threading.Thread(target=wait) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert waits.wait(30)
        assert not found
        process.communicate("\n", timeout=30)
        for thread in threads:
            thread.join(30)
        assert len(found) == 2
        assert None not in found

    def test_other_keys_do_not_wait(self) -> None:
        waited: list[int] = []
        with building(self.KEY), building(replace(self.KEY, device="another"), lambda: waited.append(1)):
            pass
        assert not waited

    def test_two_threads_take_turns(self) -> None:
        inside, most = [0], [0]

        def work() -> None:
            with building(self.KEY):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.05)
                inside[0] -= 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert most == [1]

    @posix
    def test_where_there_are_no_locks_nobody_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import fcntl

        def no_locks(handle: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        with building(self.KEY):
            monkeypatch.setattr(fcntl, "flock", no_locks)
            with building(self.KEY), building(self.KEY):
                pass
        with building(self.KEY):
            assert list((compiled_cache_folder() / self.KEY.kind).iterdir()) == []
