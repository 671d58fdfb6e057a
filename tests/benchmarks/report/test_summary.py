from __future__ import annotations

import numpy as np
import pytest

from vae_edge.benchmarks.measure.rounds import LatencyRounds, median, nearest_rank
from vae_edge.benchmarks.report.summary import summarize
from vae_edge.errors import InputError


def rounds(*values: list[float]) -> LatencyRounds:
    return LatencyRounds(dict(enumerate(values, 1)))


def test_a_summary_holds_every_figure_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    samples = rounds(*(list(rng.gamma(4, 1, 200)) for _ in range(6)))
    found = summarize(samples)
    values = samples.values()
    assert (found.n, found.n_rounds) == (1200, 6)
    assert (found.min_ms, found.max_ms) == (values.min(), values.max())
    assert set(found.intervals) == {"mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "std_ms"}
    for name, interval in found.intervals.items():
        assert interval.low <= getattr(found, name) <= interval.high
    assert found.round_p50_ms[0] == np.percentile(samples.rounds[1], 50, method="inverted_cdf")
    assert found.elapsed_s == pytest.approx(values.sum() / 1e3)


def test_the_histogram_counts_every_sample_and_ends_before_the_outliers() -> None:
    found = summarize(rounds([1.0 + 0.001 * i for i in range(999)] + [500.0]))
    assert sum(found.histogram.counts) == found.n
    assert len(found.histogram.edges) == len(found.histogram.counts) + 1
    assert found.histogram.edges[-1] < 3.0
    assert sum(summarize(rounds([2.0, 2.0])).histogram.counts) == 2


def test_a_percentile_is_a_sample_that_was_measured() -> None:
    assert nearest_rank([15, 20, 35, 40, 50], 30) == 20
    assert nearest_rank([15, 20, 35, 40, 50], 100) == 50
    assert nearest_rank(sorted(range(99)), 99) == 98
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_of_nothing_or_outside_its_range_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(InputError, match="expected above 0"):
        nearest_rank(values, percent)


def test_steady_rounds_are_stable() -> None:
    assert summarize(rounds(*[[1.0, 1.01] * 20] * 4)).is_stable


def test_a_wide_spread_is_unstable_and_says_so() -> None:
    found = summarize(rounds([1.0, 2.0] * 50))
    assert not found.is_stable
    assert found.unstable_because == ("the standard deviation is 34% of the mean",)


def test_a_drift_over_the_rounds_is_unstable_although_the_spread_is_narrow() -> None:
    found = summarize(rounds([1.0] * 9, [1.0] * 9, [1.04] * 9, [1.08] * 9, [1.08] * 9))
    assert found.unstable_because == ("the second half's median is +8% from the first half's",)
