from __future__ import annotations

import time

import numpy as np
import pytest

from vae_edge.benchmarks.measure.instruments import MeasuringRules, Notes, PacedSource, measure, spin_ns

RULES = MeasuringRules(
    warmup_s=0.0, warmup_iterations=3, round_s=5.0, most_iterations=7, fewest_iterations=2, longest_s=5.0
)


def test_inputs_go_round_and_warm_up_is_kept_apart() -> None:
    seen: list[str] = []
    samples = measure(seen.append, ["a", "b", "c"], RULES)
    assert (len(samples.warmup_ns), len(samples.measured_ns)) == (3, 7)
    assert "".join(seen) == "abcabcabca"


def test_a_slow_call_ends_by_time_after_the_fewest_iterations() -> None:
    rules = MeasuringRules(
        warmup_s=9.0, warmup_iterations=1000, round_s=0.01, most_iterations=1000, fewest_iterations=4, longest_s=0.05
    )
    samples = measure(time.sleep, [0.02], rules)
    assert 1 <= len(samples.warmup_ns) <= 3
    assert len(samples.measured_ns) == 4
    assert min(samples.measured_ns) >= 20_000_000


def test_nothing_to_measure_with_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        measure(str, [], RULES)


def test_the_spin_takes_time() -> None:
    assert spin_ns() > 0


def test_a_paced_source_gives_each_image_when_it_is_due_and_never_early() -> None:
    source = PacedSource([np.full(1, value) for value in (1, 2)], fps=200.0, duration_s=0.025)
    came = [(int(image[0]), time.perf_counter_ns()) for image in source]
    assert [value for value, _ in came] == [1, 2, 1, 2, 1]
    assert np.diff(source.due_ns).tolist() == [5_000_000] * 4
    assert all(now >= due for (_, now), due in zip(came, source.due_ns, strict=True))


def test_a_slow_consumer_moves_no_due_time_so_its_waiting_counts() -> None:
    source = PacedSource([np.zeros(1)], fps=1000.0, duration_s=0.02)
    latencies_ms = []
    for number, _ in enumerate(source):
        time.sleep(0.005)
        latencies_ms.append((time.perf_counter_ns() - source.due_ns[number]) / 1e6)
    # 20 images that take 5 ms each and come every 1 ms: the last one is behind by at least 20 x 5 - 19.
    assert latencies_ms[-1] >= 80
    assert latencies_ms == sorted(latencies_ms)


def test_a_paced_source_that_is_stopped_gives_no_more() -> None:
    source = PacedSource([np.zeros(1)], fps=0.001, duration_s=10_000.0)
    images = iter(source)
    next(images)
    source.stop()
    assert list(images) == []


def test_progress_is_noted_now_and_then_and_a_short_stage_not_at_all(capfd: pytest.CaptureFixture[str]) -> None:
    seldom, always = Notes(every_s=3600.0), Notes(every_s=0.0)
    for number in range(1, 4):
        seldom.progress("training, batches", number, 3)
    assert capfd.readouterr() == ("", "")
    always.progress("training, batches", 2, 3)
    output, log = capfd.readouterr()
    assert log == "training, batches: 2 of 3\n"
    assert '"event": "note", "sentence": "training, batches: 2 of 3"' in output
