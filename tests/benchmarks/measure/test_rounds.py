from __future__ import annotations

import numpy as np
import pytest

from vae_edge.benchmarks.measure.rounds import (
    LatencyRounds,
    RateRounds,
    latency_intervals,
    latency_ratios,
)
from vae_edge.benchmarks.measure.statistics import Ratio, percentile_interval, resample_weights
from vae_edge.errors import InputError

N_TRIALS = 80
BETWEEN, WITHIN = 0.3, 0.3


def simulated(rng: np.random.Generator, n_rounds: int, speed: float = 1.0) -> LatencyRounds:
    """Rounds that differ as much as the samples within them."""
    return LatencyRounds(
        {
            number: speed * (10 + BETWEEN * rng.normal() + rng.exponential(WITHIN, 30))
            for number in range(1, n_rounds + 1)
        }
    )


def true_median() -> float:
    rng = np.random.default_rng(99)
    return float(np.median(10 + BETWEEN * rng.normal(size=400_000) + rng.exponential(WITHIN, 400_000)))


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (30, 30, 31), (1024,)])
def test_figures_agree_with_numpy(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(sizes))
    rounds = LatencyRounds({number: rng.gamma(3, 2, size) for number, size in enumerate(sizes)})
    values = rounds.values()
    found = {name: float(estimates[0]) for name, estimates in rounds.figures().items()}
    assert found["mean_ms"] == pytest.approx(values.mean())
    assert found["std_ms"] == pytest.approx(values.std(ddof=1) if values.size > 1 else 0.0)
    for percent in (50, 90, 95, 99):
        # numpy's name for nearest rank is the inverse of the empirical distribution function.
        assert found[f"p{percent}_ms"] == np.percentile(values, percent, method="inverted_cdf")


def test_a_round_that_is_drawn_twice_counts_twice() -> None:
    first, second = np.array([1.0, 5.0, 2.0]), np.array([7.0, 3.0])
    rounds = LatencyRounds({1: first, 2: second})
    found = rounds.figures(np.array([[2.0, 0.0], [0.0, 2.0]]))
    doubled = np.concatenate([first, first])
    assert found["p90_ms"].tolist() == [5.0, 7.0]
    assert found["mean_ms"].tolist() == pytest.approx([first.mean(), second.mean()])
    assert found["std_ms"][0] == pytest.approx(doubled.std(ddof=1))


@pytest.mark.parametrize(("n_rounds", "at_least"), [(5, 0.80), (10, 0.88)])
def test_the_interval_of_a_median_covers_the_truth_although_samples_of_a_round_are_alike(
    n_rounds: int, at_least: float
) -> None:
    truth = true_median()
    covered = 0
    for trial in range(N_TRIALS):
        interval = latency_intervals(simulated(np.random.default_rng(trial), n_rounds))["p50_ms"]
        covered += interval.contains(truth)
    assert at_least <= covered / N_TRIALS


def test_resampling_single_samples_would_promise_far_too_much() -> None:
    truth = true_median()
    covered = 0
    for trial in range(N_TRIALS):
        values = simulated(np.random.default_rng(trial), 10).values()
        each_alone = LatencyRounds({number: [value] for number, value in enumerate(values)})
        drawn = each_alone.figures(resample_weights(values.size, 300))["p50_ms"]
        covered += percentile_interval(drawn, values.size).contains(truth)
    assert covered / N_TRIALS < 0.6


def test_the_interval_of_a_ratio_of_equals_contains_1_as_often_as_promised() -> None:
    found: list[Ratio] = []
    for trial in range(N_TRIALS):
        rng = np.random.default_rng(1000 + trial)
        found += latency_ratios(simulated(rng, 10), simulated(rng, 10), ["p50_ms"]).values()
    assert 0.88 <= sum(not ratio.is_certain for ratio in found) / N_TRIALS <= 1.0


def test_what_slows_down_both_in_a_round_cancels_out_of_a_paired_ratio() -> None:
    rng = np.random.default_rng(3)
    slowness = {number: 1 + rng.gamma(1, 1) for number in range(1, 11)}

    def measured(ms: float) -> LatencyRounds:
        return LatencyRounds({number: by * (ms + 0.01 * rng.random(50)) for number, by in slowness.items()})

    slow, fast = measured(3.0), measured(2.0)
    paired = latency_ratios(slow, fast, ["mean_ms"])["mean_ms"]
    apart = latency_ratios(slow, fast, ["mean_ms"], paired=False)["mean_ms"]
    assert paired.value == pytest.approx(1.5, rel=0.01)
    assert paired.interval is not None
    assert apart.interval is not None
    assert paired.interval.high - paired.interval.low < 0.05
    assert apart.interval.high - apart.interval.low > 0.3


def test_a_percentile_with_few_samples_beyond_it_has_no_interval() -> None:
    rng = np.random.default_rng(5)
    few, many = (LatencyRounds({n: rng.gamma(4, 1, size) for n in range(5)}) for size in (199, 200))
    assert set(latency_intervals(few)) == {"mean_ms", "std_ms", "p50_ms", "p90_ms", "p95_ms"}
    assert "p99_ms" in latency_intervals(many)
    ratios = latency_ratios(few, many, ["p95_ms", "p99_ms"])
    assert ratios["p95_ms"].interval is not None
    assert ratios["p99_ms"].interval is None


def test_only_rounds_that_both_have_are_compared_and_one_gives_no_interval() -> None:
    mine = LatencyRounds({1: [2.0, 2.0], 2: [9.0]})
    other = LatencyRounds({1: [1.0], 3: [5.0]})
    ratio = latency_ratios(mine, other, ["p50_ms"])["p50_ms"]
    assert (ratio.value, ratio.interval, ratio.n_rounds) == (2.0, None, 1)
    assert latency_ratios(mine, LatencyRounds({3: [5.0]}), ["p50_ms"]) == {}
    assert latency_intervals(LatencyRounds({1: [1.0, 2.0]})) == {}


def test_a_rate_is_of_the_sums_and_its_ratio_is_paired() -> None:
    mine = RateRounds({1: (10.0, 1.0), 2: (30.0, 1.0)})
    other = RateRounds({1: (5.0, 1.0), 2: (15.0, 1.0)})
    assert mine.value() == 20.0
    interval = mine.interval()
    assert interval is not None
    assert (interval.low, interval.high) == (10.0, 30.0)
    ratio = mine.ratio_to(other)
    assert ratio is not None
    assert ratio.interval is not None
    assert (ratio.value, ratio.interval.low, ratio.interval.high) == (2.0, 2.0, 2.0)
    apart = mine.ratio_to(other, paired=False)
    assert apart is not None
    assert apart.interval is not None
    assert apart.interval.low < 1.0
    assert RateRounds({3: (1.0, 1.0)}).ratio_to(other) is None


def test_nothing_measured_is_refused() -> None:
    empty: tuple[dict[int, list[float]], ...] = ({}, {1: []})
    for nothing in empty:
        with pytest.raises(InputError, match="no samples"):
            LatencyRounds(nothing)
    with pytest.raises(InputError, match="no round"):
        RateRounds({1: (3.0, 0.0)})
