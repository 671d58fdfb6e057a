from __future__ import annotations

import numpy as np
import pytest

from vae_edge.benchmarks.measure.statistics import (
    binomial_interval,
    incomplete_beta,
    percentile_interval,
    rank_correlation,
    resample_weights,
    student_t_quantile,
)
from vae_edge.errors import InputError


@pytest.mark.parametrize(("n_hits", "n"), [(0, 1), (0, 40), (1, 40), (40, 40), (7, 123), (500, 10_000)])
def test_the_binomial_interval_is_clopper_and_pearsons(n_hits: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(n_hits, n).proportion_ci(0.95, "exact")
    found = binomial_interval(n_hits, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("n_hits", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_a_share_that_is_none_is_refused(n_hits: int, n: int) -> None:
    with pytest.raises(InputError, match="is not a share"):
        binomial_interval(n_hits, n)


def test_the_incomplete_beta_function_and_students_t_agree_with_scipy() -> None:
    special, stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
    for a, b in ((0.5, 0.5), (1.0, 3.0), (2.5, 40.0), (300.0, 0.5), (5000.0, 5000.0)):
        for x in (0.0, 1e-6, 0.1, 0.5, 0.93, 1.0):
            assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-12)
    for degrees in (1, 2, 4, 9, 100):
        assert student_t_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees))
    assert student_t_quantile(0.5, 3) == 0.0


def test_the_interval_of_a_mean_of_normal_values_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).normal(10, 1, 12)
    drawn = resample_weights(12, 20_000) @ values / 12
    found = percentile_interval(drawn, 12)
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert found.contains(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_resamples_are_of_the_same_number_and_the_same_every_time() -> None:
    weights = resample_weights(7, 50)
    assert weights.sum(axis=1).tolist() == [7.0] * 50
    assert (resample_weights(7, 50) == weights).all()
    assert (resample_weights(7, 50, seed=1) != weights).any()


def test_one_unit_gives_no_interval() -> None:
    with pytest.raises(InputError, match="2 units or more"):
        percentile_interval([1.0, 1.0], 1)


def test_rank_correlation_agrees_with_scipy_with_and_without_ties() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=(2, 50)), rng.integers(0, 5, (2, 50))):
        assert rank_correlation(*values) == pytest.approx(stats.spearmanr(*values).statistic)


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0])])
def test_rank_correlation_of_one_value_or_a_constant_is_absent(first: list[float], second: list[float]) -> None:
    assert rank_correlation(np.array(first), np.array(second)) is None
