"""What the soak counts, fits and concludes; and a soak of seconds with faults of the cheap kinds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("psutil")
pytest.importorskip("jinja2")
if sys.platform == "win32":
    pytest.skip("the soak ends its processes with signals that Windows does not have", allow_module_level=True)

from tests.soak import command, places
from tests.soak.faults import Fault, Rig, faults
from tests.soak.growth import LEAST_S, LIMITS, Sample, growths, slope
from tests.soak.ledger import ANOMALOUS, ERROR, NORMAL, WAITING_IN_MEMORY, Arrived, Count, Ledger, count_arrivals
from tests.soak.page import html
from tests.soak.pictures import encoded, write_torn
from tests.soak.record import Injected, Soak, as_json, markdown
from tests.soak.subject import Ending
from vae_edge.image import read_image

MEMORY = LIMITS[0]


def samples(rise_mb_per_min: float, *, minutes: int = 10, generation: int = 1, noise_mb: float = 0.3) -> list[Sample]:
    """Return a sample a second of a process of 100 MB that grows."""
    return [
        Sample(
            float(second),
            generation,
            int(1e6 * (100 + rise_mb_per_min * second / 60 + noise_mb * (second % 3))),
            20 + second % 2,
            8,
        )
        for second in range(60 * minutes)
    ]


def soak(**found: object) -> Soak:
    """Return a soak without a problem, with changes."""
    nothing: dict[str, object] = {"counts": {"watch": Count(5, 5, 1, 0, 0, 0, 0)}, "torn": {"watch": 2}}
    return Soak("2026-12-01T00:00:00+00:00", "0.3.0", 10.0, "a processor", **{**nothing, **found})  # type: ignore[arg-type]  # values by name


class TestLedger:
    def test_a_picture_with_one_right_line_is_fine(self) -> None:
        ledger = Ledger()
        ledger.owe("a", NORMAL)
        ledger.owe("b", ANOMALOUS)
        ledger.give("a", NORMAL, 1)
        assert ledger.missing == ["b"]
        assert ledger.count().problems == ["1 of 2 verdicts lost"]
        ledger.give("b", ANOMALOUS, 1)
        assert ledger.count() == Count(owed=2, given=2, doubled=0, lost=0, twice=0, wrong=0, unknown=0)
        assert not ledger.count().problems

    def test_a_second_line_is_explained_only_by_a_process_that_a_fault_ended(self) -> None:
        ledger = Ledger()
        for name in "abc":
            ledger.owe(name, NORMAL)
            ledger.give(name, NORMAL, 1)
        ledger.give("a", NORMAL, 2)  # Before it is known why the first process ended.
        ledger.excuse(1)
        assert ledger.count().problems == []
        assert ledger.count().doubled == 1
        ledger.give("b", NORMAL, 2)
        ledger.give("b", NORMAL, 2)  # From the same process.
        ledger.give("b", NORMAL, 3)  # The second one was not ended by a fault.
        assert (ledger.count().doubled, ledger.count().twice) == (2, 2)

    def test_other_verdicts_and_other_pictures_are_problems(self) -> None:
        ledger = Ledger()
        ledger.owe("a", ERROR)
        ledger.give("a", NORMAL, 1)
        ledger.give("z", NORMAL, 1)
        assert ledger.count().problems == ["1 of 1 verdicts wrong", "1 of 1 verdicts about pictures that nobody gave"]

    def test_nothing_owed_shows_nothing(self) -> None:
        assert Ledger().count().problems == ["no verdict was owed, so this shows nothing"]


class TestMessages:
    def test_the_same_id_twice_is_one_message(self) -> None:
        arrived = [Arrived("r", 1, "a"), Arrived("r", 2, "b"), Arrived("r", 1, "a")]
        assert count_arrivals({1: ["a", "b"]}, arrived, set()) == Count(2, 2, 1, 0, 0, 0, 0)

    def test_a_message_that_does_not_come_is_lost(self) -> None:
        found = count_arrivals({1: ["a", "b", "c"]}, [Arrived("r", 1, "a"), Arrived("r", 3, "c")], {1})
        assert (found.owed, found.lost) == (3, 1)  # In the middle, which no kill explains.
        assert found.problems == ["1 of 3 verdicts lost", "lost: b, line 2 of 3 of process 1"]
        found = count_arrivals({1: ["a", "b"]}, [Arrived("r", 1, "a")], set())
        assert found.lost == 1  # At the end of a process that ended well.

    def test_a_killed_process_may_lose_its_last_ones_as_far_as_they_fit_its_memory(self) -> None:
        names = [f"{number}" for number in range(300)]
        found = count_arrivals({1: names, 2: ["x"]}, [Arrived("r", 1, "0"), Arrived("s", 1, "x")], {1})
        assert (found.owed, found.lost) == (301 - WAITING_IN_MEMORY, 299 - WAITING_IN_MEMORY)

    def test_one_picture_in_two_processes_is_two_messages(self) -> None:
        arrived = [Arrived("r", 1, "a"), Arrived("s", 1, "a")]
        assert count_arrivals({1: ["a"], 2: ["a"]}, arrived, {1}) == Count(2, 2, 0, 0, 0, 0, 0)
        assert count_arrivals({1: ["a"], 2: ["a"]}, arrived[:1], {1}).lost == 1
        # A third one was sent by nobody; by a killed process, just before its line, it may have been.
        more = [*arrived, Arrived("t", 1, "a")]
        assert count_arrivals({1: ["a"], 2: ["a"]}, more, set()).twice == 1
        assert count_arrivals({1: ["a"], 2: ["a"]}, more, {1}).twice == 0


class TestGrowth:
    def test_the_slope_is_not_bent_by_a_peak(self) -> None:
        points = [(float(n), 3.0 * n + (500 if n == 50 else 0)) for n in range(100)]
        assert slope(points) == pytest.approx(3.0)
        assert slope([(1.0, 1.0)]) == 0.0

    @pytest.mark.parametrize(("rise", "is_too_large"), [(0.0, False), (0.7, False), (1.5, True), (-5.0, False)])
    def test_memory_may_gain_a_few_megabytes(self, rise: float, is_too_large: bool) -> None:
        found = growths("watch", samples(rise), from_s=60, to_s=600)
        memory = next(each for each in found if each.what == "memory")
        assert memory.gain == pytest.approx(rise * 9, abs=0.2)
        assert memory.per_hour == pytest.approx(rise * 60, abs=1)
        assert memory.is_too_large is is_too_large
        assert [each.what for each in found if each.is_too_large] == ["memory"] * is_too_large

    def test_a_descriptor_that_leaks_once_a_minute_is_too_much(self) -> None:
        leaking = [
            Sample(each.at_s, 1, each.rss_bytes, each.n_descriptors + int(each.at_s / 60), 8) for each in samples(0.0)
        ]
        (found,) = [each for each in growths("watch", leaking, from_s=60, to_s=600) if each.is_too_large]
        assert re.match(r"the descriptors of watch grew by [89]\.\d in 9 minutes; allowed are 2\.0", found.problem)

    def test_only_the_last_process_counts_and_only_after_the_warm_up(self) -> None:
        before = samples(50.0, minutes=2)
        last = [
            Sample(each.at_s + 120, 2, each.rss_bytes + (0 if each.at_s > 60 else -(10**8)), 20, 8)
            for each in samples(0.0, minutes=5)
        ]
        assert not any(each.is_too_large for each in growths("watch", before + last, from_s=190, to_s=420))
        assert growths("watch", before + last, from_s=420 - LEAST_S / 2, to_s=420) == []

    def test_more_is_allowed_to_large_processes(self) -> None:
        assert MEMORY.allowed(100.0) == 8.0
        assert MEMORY.allowed(1000.0) == 50.0


class TestConclusion:
    def test_without_problems_it_says_so(self) -> None:
        good = soak(injected=[Injected("SIGKILL", "watch", 1.0, 3.0)])
        assert not good.problems
        assert "1 faults, 5 verdicts: none was lost, nothing grew" in markdown(good)
        assert as_json(good)["ok"] is True

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"counts": {"mqtt": Count(5, 4, 0, 1, 0, 0, 0)}}, "mqtt: 1 of 5 verdicts lost"),
            ({"endings": [Ending("serve", 2, -11, None, "a crash")]}, "process 2 of serve ended with -11"),
            ({"growths": growths("watch", samples(2.0), from_s=0, to_s=600)}, "the memory of watch grew by"),
            ({"problems_of_faults": ["it went on on a full disk"]}, "it went on on a full disk"),
            ({"interrupted": True}, "it was interrupted"),
        ],
    )
    def test_each_problem_is_named_everywhere(self, changes: dict[str, object], problem: str) -> None:
        bad = soak(**changes)
        (only,) = bad.problems
        assert only.startswith(problem)
        assert problem in markdown(bad)
        assert problem in html(bad)
        assert as_json(bad)["problems"] == [only]

    def test_an_end_that_a_fault_explains_is_none(self) -> None:
        assert not soak(endings=[Ending("watch", 1, -9, "killed by the soak", "")]).problems

    def test_the_page_draws_every_process_and_fault_and_loads_nothing(self) -> None:
        both = samples(0.0, minutes=2) + [
            Sample(each.at_s + 120, 2, each.rss_bytes, 20, 8) for each in samples(0.0, minutes=8)
        ]
        page = html(
            soak(samples={"watch": both}, injected=[Injected("<SIGKILL>", "watch", 120.0, 125.0)], judged_from_s=360.0)
        )
        assert page.count("<svg") == len(LIMITS)
        assert page.count("<polyline") == 2 * len(LIMITS)
        assert page.count("&lt;SIGKILL&gt; (watch), minute 2.0") == len(LIMITS)
        assert not re.search(r"https?:|<script|src=", page)


class TestPictures:
    def test_each_is_called_what_it_is_owed_even_when_it_was_torn(self, tmp_path: Path) -> None:
        kinds = set()
        for number in range(26):
            content, suffix, verdict = encoded(number)
            kinds.add((suffix, verdict))
            if verdict != ERROR:
                path = tmp_path / f"{number}{suffix}"
                write_torn(path, content, 0.0)
                assert path.read_bytes() == content
                assert (read_image(path).max() > 200) == (verdict == ANOMALOUS)
        assert len(kinds) >= 5


@pytest.mark.slow
def test_a_soak_of_seconds_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cheap(rig: Rig) -> list[Fault]:
        return [each for each in faults(rig) if each.name in ("SIGKILL", "limit on the size of files")]

    monkeypatch.setattr(command, "faults", cheap)
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # Nothing is mounted, whoever runs the tests.
    out = tmp_path / "out"
    code = command.main(["--minutes", "0.2", "--out", str(out), "--subjects", "watch,stream"])
    record = json.loads((out / "soak.json").read_text(encoding="utf-8"))
    assert code == 0, record["problems"]
    assert record["ok"]
    assert ("SIGKILL", "watch") in {(each["name"], each["subject"]) for each in record["injected"]}
    for name in ("watch", "stream"):
        assert record["counts"][name]["owed"] == record["counts"][name]["given"] > 5
    assert any(each["code"] == -9 and each["subject"] == "watch" for each in record["endings"])
    assert "Verdicts" in (out / "soak.md").read_text(encoding="utf-8")
    assert "<svg" in (out / "soak.html").read_text(encoding="utf-8")
    assert (out / "logs" / "watch-1.txt").exists()
    assert not [each for each in threading.enumerate() if each.name.startswith(("watch-", "stream-"))]


class TestPlaces:
    @pytest.mark.skipif(not places.can_limit_files(), reason="only Linux limits the files of another process")
    def test_a_limit_on_files_is_met_as_a_full_disk(self, tmp_path: Path) -> None:
        write = (
            "import sys\nfile = open(sys.argv[1], 'wb', buffering=0)\nfile.write(b'1234')\nprint(flush=True)\ninput()\n"
            "try:\n    file.write(b'5')\nexcept OSError as error:\n    print(error.strerror)\n"
        )
        words = [sys.executable, "-c", write, str(tmp_path / "file")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            places.limit_files(process.pid, 4)
            said, _ = process.communicate("\n")
        assert said.strip() == "File too large"

    def test_a_place_is_filled_to_the_last_byte_and_freed(self, tmp_path: Path) -> None:
        place = places.Place(tmp_path / "small", 1)
        try:
            if not place.is_mounted:
                pytest.skip("only root on Linux may mount a small file system; the limit on files takes its place")
            place.fill()
            with pytest.raises(OSError, match="No space left"):
                (place.folder / "file").write_bytes(b"1")
            place.free()
            assert (place.folder / "file").write_bytes(bytes(1000)) == 1000
        finally:
            place.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the clock is moved by LD_PRELOAD, which is Linux's")
def test_the_wall_clock_jumps_and_the_monotonic_one_does_not(tmp_path: Path) -> None:
    from tests.soak.clock import WallClock

    try:
        clock = WallClock(tmp_path)
    except OSError as error:
        assert "CI" not in os.environ
        pytest.skip(str(error))
    tell = "import time; print(time.time(), time.monotonic(), flush=True); input(); time.sleep(.01)\n"
    with subprocess.Popen(
        [sys.executable, "-c", f"{tell}print(time.time(), time.monotonic(), flush=True)"],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        wall_s, monotonic_s = map(float, process.stdout.readline().split())
        assert wall_s == pytest.approx(time.time(), abs=60)
        clock.move(-7200)
        process.stdin.write("\n")
        process.stdin.flush()
        later_wall_s, later_monotonic_s = map(float, process.stdout.readline().split())
    assert later_wall_s - wall_s == pytest.approx(-7200, abs=60)
    assert 0 <= later_monotonic_s - monotonic_s < 60
