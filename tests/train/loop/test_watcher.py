"""What a run tells while it works."""

from __future__ import annotations

import pytest

from vae_edge.train.loop.watcher import Stopwatch, Watcher


def test_a_stopwatch_gives_each_stage_the_time_up_to_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 6.0, 8.0, 10.0])
    monkeypatch.setattr("vae_edge.train.loop.watcher.time.monotonic", lambda: next(times))
    seen: list[str] = []

    class Listener(Watcher):
        def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
            seen.append(stage)

    clock = Stopwatch(Listener())
    clock.progress("training fold 1 of 2", 1, 1)
    clock.progress("reading images", 1, 1)
    clock.progress("training fold 2 of 2", 1, 1)
    assert clock.seconds == {"training fold": 8.0, "reading images": 2.0}
    assert clock.sentence() == "took 10 s: training fold 80%, reading images 20%"
    assert seen == ["training fold 1 of 2", "reading images", "training fold 2 of 2"]


def test_stages_of_less_than_a_hundredth_each_are_shown_together() -> None:
    clock = Stopwatch(Watcher())
    assert clock.sentence() == "took no time"
    clock.seconds = {"finding images": 0.3, "reading images": 0.4, "training": 49.3, "scoring": 0.0}
    assert clock.sentence() == "took 50 s: training 99%, others 1%"
    clock.seconds = {"finding images": 0.1, "training": 49.9}
    assert clock.sentence() == "took 50 s: training 100%"
