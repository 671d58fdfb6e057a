from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest

from tests.line_receivers import record
from vae_edge.sinks.line.backlog import Backlog
from vae_edge.sinks.line.channel import Message, Messages


def messages(n: int, maker: Messages | None = None) -> list[Message]:
    maker = maker or Messages()
    return [maker.make(record(number)) for number in range(n)]


def fill(backlog: Backlog, made: list[Message]) -> None:
    for message in made:
        backlog.put(message)


def drain(backlog: Backlog, most: int = 7) -> list[str]:
    names = []
    while taken := backlog.peek(most, 0.0):
        names += [message.id for message in taken]
        backlog.remove(len(taken))
    return names


def ids(made: list[Message]) -> list[str]:
    return [message.id for message in made]


def test_the_order_stays_whether_in_memory_or_on_disk(tmp_path: Path) -> None:
    made = messages(3000)
    backlog = Backlog(tmp_path / "waiting", in_memory=10)
    names: list[str] = []
    for begin in range(0, 3000, 300):
        fill(backlog, made[begin : begin + 300])
        taken = backlog.peek(50, 0.0)
        names += ids(taken)
        backlog.remove(len(taken))
    assert backlog.n_spilled > 2000
    assert names + drain(backlog) == ids(made)
    assert (len(backlog), backlog.n_dropped) == (0, 0)
    assert list((tmp_path / "waiting").iterdir()) == []


def test_times_survive_the_disk(tmp_path: Path) -> None:
    made = messages(50)
    backlog = Backlog(tmp_path, in_memory=1)
    fill(backlog, made)
    backlog.peek(1, 0.0)
    backlog.remove(1)
    taken = backlog.peek(60, 0.0)
    assert [message.written_s for message in taken] == [message.written_s for message in made[1:]]
    assert taken[0] == made[1]


def test_beyond_the_cap_the_oldest_are_dropped_and_counted(tmp_path: Path) -> None:
    made = messages(20_000)
    backlog = Backlog(tmp_path, in_memory=10, most_bytes=1_000_000)
    fill(backlog, made)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000_000
    assert backlog.n_dropped > 5000
    names = drain(backlog)
    assert len(names) + backlog.n_dropped == 20_000
    # Those in memory, and then the newest without a gap.
    assert names == ids(made[:10]) + ids(made[10 + backlog.n_dropped :])


@pytest.mark.parametrize("n_taken", [0, 3, 10, 15, 700])
def test_what_is_left_comes_first_in_the_next_run(tmp_path: Path, n_taken: int) -> None:
    made = messages(2000)
    folder = tmp_path / "waiting"
    backlog = Backlog(folder, in_memory=10)
    fill(backlog, made)
    left = n_taken
    while left:
        taken = backlog.peek(left, 0.0)
        backlog.remove(len(taken))
        left -= len(taken)
    assert backlog.keep_rest() == 2000 - n_taken
    later = Backlog(folder, in_memory=10)
    assert later.n_earlier >= 2000 - n_taken
    more = messages(30)
    fill(later, more)
    names = drain(later)
    # Of a file that was begun, what was delivered comes once more: at most one file's.
    again = 2030 - n_taken - len(names)
    assert again <= 0
    assert names == ids(made[n_taken + again :]) + ids(more)
    later.keep_rest()
    assert not folder.exists()


def test_without_a_folder_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backlog = Backlog(None, in_memory=2)
    fill(backlog, messages(10))
    assert len(list(tmp_path.rglob("*.jsonl"))) == 1
    assert backlog.keep_rest() == 0
    assert backlog.n_dropped == 10
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_a_crash_cut_short_costs_that_line_only(tmp_path: Path) -> None:
    made = messages(20)
    backlog = Backlog(tmp_path, in_memory=1)
    fill(backlog, made)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    later = Backlog(tmp_path)
    assert drain(later) == ids(made[1:-1])
    assert later.n_dropped == 1


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\x80\x81", b"[1]", b"{}", b""])
def test_a_line_that_is_no_verdict_costs_that_line_only(tmp_path: Path, line: bytes) -> None:
    made = messages(20)
    fill(Backlog(tmp_path, in_memory=1), made)
    (file,) = tmp_path.iterdir()
    file.write_bytes(line + b"\n" + file.read_bytes())
    later = Backlog(tmp_path)
    assert drain(later) == ids(made[1:])
    assert later.n_dropped == 1


def test_a_full_disk_costs_what_does_not_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = messages(30)
    backlog = Backlog(tmp_path / "waiting", in_memory=10)

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    fill(backlog, made)
    assert backlog.n_dropped == 20
    assert drain(backlog) == ids(made[:10])


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("{}\n")
    (tmp_path / "000000000002.jsonl").write_bytes(b"x" * 3_000_000)
    backlog = Backlog(tmp_path)
    assert backlog.n_earlier == 0
    fill(backlog, messages(300))
    drain(backlog)
    backlog.keep_rest()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.jsonl", "000000000002.jsonl"}
