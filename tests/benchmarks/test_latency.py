from __future__ import annotations

import time

import numpy as np
import pytest

from vae_edge.benchmarks.jobs import MeasuringRules
from vae_edge.benchmarks.latency import measure, median, nearest_rank, summarize
from vae_edge.errors import InputError

RULES = MeasuringRules(
    warmup_s=0.0, warmup_iterations=3, iterations=7, min_time_s=0.0, max_time_s=5.0, fewest_iterations=2
)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 1024])
def test_statistics_agree_with_numpy(n: int) -> None:
    samples = np.random.default_rng(n).integers(1_000_000, 9_000_000, n)
    found = summarize([int(value) for value in samples])
    values = samples / 1e6
    assert found.n == n
    assert found.mean_ms == pytest.approx(values.mean())
    assert found.std_ms == pytest.approx(values.std(ddof=1) if n > 1 else 0.0)
    assert (found.min_ms, found.max_ms) == (values.min(), values.max())
    for percent, value in ((50, found.p50_ms), (90, found.p90_ms), (95, found.p95_ms), (99, found.p99_ms)):
        # numpy's name for nearest rank is the inverse of the empirical distribution function.
        assert value == np.percentile(values, percent, method="inverted_cdf")
    assert found.elapsed_s == pytest.approx(values.sum() / 1e3)


def test_a_percentile_is_a_sample_that_was_measured() -> None:
    assert nearest_rank([15, 20, 35, 40, 50], 30) == 20
    assert nearest_rank([15, 20, 35, 40, 50], 100) == 50
    assert nearest_rank(sorted(range(99)), 99) == 98
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_of_nothing_or_outside_its_range_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(InputError, match="expected above 0"):
        nearest_rank(values, percent)


def test_steady_samples_are_stable() -> None:
    assert summarize([1_000_000, 1_010_000] * 50).is_stable


def test_a_wide_spread_is_unstable_and_says_so() -> None:
    found = summarize([1_000_000, 2_000_000] * 50)
    assert not found.is_stable
    assert found.unstable_because == ("the standard deviation is 34% of the mean",)


def test_a_drift_is_unstable_although_the_spread_is_narrow() -> None:
    found = summarize([1_000_000] * 50 + [1_080_000] * 50)
    assert found.unstable_because == ("the second half's median is +8% from the first half's",)


def test_inputs_go_round_and_warm_up_is_kept_apart() -> None:
    seen: list[str] = []
    samples = measure(seen.append, ["a", "b", "c"], RULES)
    assert (len(samples.warmup_ns), len(samples.measured_ns)) == (3, 7)
    assert "".join(seen) == "abcabcabca"


def test_a_slow_call_ends_by_time_after_the_fewest_iterations() -> None:
    rules = MeasuringRules(
        warmup_s=9.0, warmup_iterations=1000, iterations=1000, min_time_s=9.0, max_time_s=0.05, fewest_iterations=4
    )
    samples = measure(time.sleep, [0.02], rules)
    assert 1 <= len(samples.warmup_ns) <= 3
    assert len(samples.measured_ns) == 4
    assert min(samples.measured_ns) >= 20_000_000


def test_a_fast_call_is_measured_for_the_time_asked_for() -> None:
    rules = MeasuringRules(
        warmup_s=0.0, warmup_iterations=1, iterations=1, min_time_s=0.05, max_time_s=5.0, fewest_iterations=1
    )
    assert sum(measure(time.sleep, [0.001], rules).measured_ns) > 30_000_000


def test_nothing_to_measure_with_is_refused() -> None:
    with pytest.raises(InputError, match="at least one image"):
        measure(str, [], RULES)
    with pytest.raises(InputError, match="no samples"):
        summarize([])
