import math
from fractions import Fraction

import numpy as np
import pytest

from vae_edge.decision import (
    PixelTail,
    check_rate,
    check_thresholds,
    conformal_p_value,
    describe_promise,
    describe_support,
    fit_f1_threshold,
    fit_f1_thresholds_with_tail,
    fit_image_threshold,
    fit_thresholds,
    fit_thresholds_with_tail,
    normals_needed,
    promised_rate,
    smallest_false_alarm_rate,
    thresholds_at,
    too_few_normals,
)
from vae_edge.errors import InputError, UsageError
from vae_edge.manifest import ThresholdMethod, Thresholds

RATES = [0.5, 0.3, 0.29, 0.1, 0.07, 0.05, 1 / 3, 0.33333333333, 0.01, 0.001, 1 / 7, 0.9, 0.999999999999]


def test_the_p_value_counts_the_normals_that_score_at_least_as_high() -> None:
    normals = np.array([1.0, 2.0, 2.0, 4.0])
    assert [conformal_p_value(score, normals) for score in (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)] == [
        5 / 5, 5 / 5, 4 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5,
    ]  # fmt: skip


def test_a_score_beyond_all_numbers_gets_the_smallest_p_value_and_one_that_is_no_number_is_refused() -> None:
    normals = np.arange(9.0)
    assert conformal_p_value(math.inf, normals) == conformal_p_value(math.inf, tuple(normals.tolist())) == 0.1
    with pytest.raises(InputError, match="NaN"):
        conformal_p_value(math.nan, normals)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 10, 29, 99, 100, 299, 1000])
def test_above_the_threshold_means_exactly_a_p_value_within_the_rate(n: int, rate: float) -> None:
    rng = np.random.default_rng(n)
    for scores in (rng.normal(size=n), rng.integers(0, 4, n).astype(float), np.zeros(n)):
        threshold, rate_in_force = fit_image_threshold(scores, rate)
        assert rate_in_force == max(rate, 1 / (n + 1))
        ordered = np.sort(scores)
        candidates = np.concatenate([scores, np.nextafter(scores, math.inf), np.nextafter(scores, -math.inf)])
        for score in candidates:
            assert (score > threshold) == (conformal_p_value(float(score), ordered) <= rate_in_force)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1234, 0.5])
def test_another_rate_takes_its_threshold_from_the_same_scores(rate: float) -> None:
    scores = np.random.default_rng(0).normal(size=99).astype(np.float32)
    own = fit_thresholds(scores, np.zeros((99, 2, 2), np.float32), false_alarm_rate=0.02, scored_by="a test")
    chosen = thresholds_at(own, rate)
    check_thresholds(chosen)  # What a bundle made with that rate would have.
    assert (chosen.false_alarm_rate, chosen.image_threshold) == (rate, fit_image_threshold(scores, rate)[0])
    assert (chosen.pixel_threshold, chosen.calibration_scores) == (own.pixel_threshold, own.calibration_scores)


def test_a_rate_that_the_normals_or_the_method_do_not_support_is_refused() -> None:
    own = fit_thresholds(np.arange(49), np.zeros((49, 2, 2), np.float32), scored_by="a test")
    assert thresholds_at(own, 0.02).image_threshold == 48
    with pytest.raises(UsageError, match=r"0\.01; the smallest .* 49 normals can support is 0\.02.*on 99 normals"):
        thresholds_at(own, 0.01)
    for rate in (0.0, 0.7, float("nan")):
        with pytest.raises(UsageError, match=r"expected 1e-06 to 0\.5"):
            thresholds_at(own, rate)
    with pytest.raises(UsageError, match="largest F1 on labelled images and keeps no rate"):
        thresholds_at(own.model_copy(update={"method": ThresholdMethod.F1_OPTIMAL}), 0.05)


def test_a_float32_score_is_decided_alike_by_threshold_and_p_value() -> None:
    scores = np.random.default_rng(0).normal(size=99).astype(np.float32)
    threshold, rate = fit_image_threshold(scores, 0.05)
    ordered = np.sort(scores.astype(np.float64))
    for score in scores:
        assert (float(score) > threshold) == (conformal_p_value(float(score), ordered) <= rate)


def test_the_false_alarm_rate_holds_on_average_over_many_fits() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        scores = rng.exponential(size=120)
        threshold, _ = fit_image_threshold(scores[:99], 0.05)
        shares.append(np.mean(scores[99:] > threshold))
    assert np.mean(shares) == pytest.approx(0.05, abs=0.004)


def test_the_order_of_the_scores_does_not_matter() -> None:
    scores = np.random.default_rng(1).normal(size=50)
    assert fit_image_threshold(scores, 0.1) == fit_image_threshold(scores[::-1], 0.1)


@pytest.mark.parametrize("rate", [*RATES, 1e-6, 1 / 49, 1 / 99, 1e-12])
def test_the_normals_needed_are_the_fewest_that_support_the_rate(rate: float) -> None:
    n = normals_needed(rate)
    assert n >= 1
    assert smallest_false_alarm_rate(n) <= rate
    if n > 1:
        assert smallest_false_alarm_rate(n - 1) > rate


def test_a_rate_of_one_in_a_hundred_needs_99_normals() -> None:
    assert normals_needed(0.01) == 99
    assert Fraction(1, 99 + 1) == Fraction("0.01")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, math.nan])
def test_a_rate_outside_0_to_1_is_refused_with_its_value(rate: float) -> None:
    with pytest.raises(InputError, match=str(rate)):
        check_rate(rate, "false-alarm rate")
    with pytest.raises(InputError):
        fit_image_threshold(np.arange(5.0), rate)
    with pytest.raises(InputError):
        normals_needed(rate)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_scores_that_give_no_threshold_are_refused(scores: list[float]) -> None:
    with pytest.raises(InputError, match="held-out normal"):
        fit_image_threshold(np.array(scores), 0.1)


def test_too_few_normals_give_the_smallest_rate_they_support_and_a_sentence() -> None:
    maps = np.random.default_rng(0).random((20, 4, 4)).astype(np.float32)
    thresholds = fit_thresholds(np.arange(20.0), maps, false_alarm_rate=0.01, scored_by="the test")
    assert thresholds.false_alarm_rate == 1 / 21
    assert thresholds.image_threshold == 19.0
    sentence = too_few_normals(thresholds)
    assert sentence is not None
    assert "99" in sentence
    assert "20" in sentence


def test_enough_normals_give_no_sentence_and_sorted_calibration_scores() -> None:
    scores = np.random.default_rng(0).permutation(99).astype(float)
    thresholds = fit_thresholds(scores, np.zeros((99, 2, 2), np.float32), scored_by="the test")
    assert too_few_normals(thresholds) is None
    assert thresholds.false_alarm_rate == 0.01
    assert thresholds.calibration_scores == tuple(float(score) for score in range(99))
    assert thresholds.n_normals == 99
    assert thresholds.image_threshold == 98.0


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.25, 0.5])
def test_at_most_the_asked_share_of_normal_pixels_is_above_the_pixel_threshold(rate: float) -> None:
    maps = np.random.default_rng(0).permutation(3000).reshape(3, 10, 100).astype(np.float32)
    thresholds = fit_thresholds(np.arange(3.0), maps, pixel_false_positive_rate=rate, scored_by="the test")
    assert np.mean(maps > thresholds.pixel_threshold) == pytest.approx(rate, abs=1e-9)


def test_ties_among_pixels_never_mark_more_than_the_share() -> None:
    maps = np.repeat(np.array([0, 1], np.float32), 500).reshape(1, 10, 100)
    thresholds = fit_thresholds([1.0], maps, pixel_false_positive_rate=0.1, scored_by="the test")
    assert not (maps > thresholds.pixel_threshold).any()


def test_maps_that_do_not_fit_the_scores_are_refused() -> None:
    with pytest.raises(InputError, match="3 scores"):
        fit_thresholds([1.0, 2.0, 3.0], np.zeros((2, 4, 4), np.float32), scored_by="the test")
    with pytest.raises(InputError, match="1 score "):
        fit_thresholds([1.0], np.zeros((1, 0, 4), np.float32), scored_by="the test")
    with pytest.raises(InputError, match="not finite"):
        fit_thresholds([1.0], np.full((1, 4, 4), np.nan, np.float32), scored_by="the test")


def f1_of(threshold: float, normals: np.ndarray, anomalous: np.ndarray) -> float:
    """Count it anew, from its definition."""
    hits, alarms = int((anomalous > threshold).sum()), int((normals > threshold).sum())
    return 2 * hits / (2 * hits + alarms + (anomalous.size - hits))


def drawn(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    normals, anomalous = rng.normal(size=rng.integers(1, 40)), rng.normal(1.5, size=rng.integers(1, 40))
    if kind == "ties":
        normals, anomalous = np.round(normals), np.round(anomalous)
    if kind == "float32":
        normals, anomalous = (values.astype(np.float32).astype(np.float64) for values in (normals, anomalous))
    if kind == "apart":
        anomalous = anomalous + 100
    return normals, np.append(anomalous, normals.max() + 1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["plain", "ties", "float32", "apart"])
def test_above_an_f1_optimal_threshold_means_exactly_a_p_value_within_the_rate_it_amounts_to(
    kind: str, seed: int
) -> None:
    normals, anomalous = drawn(kind, seed)
    threshold, rate = fit_f1_threshold(normals, anomalous)
    assert 0 < rate < 1
    ordered = np.sort(normals)
    near = np.concatenate([normals, anomalous])
    for score in np.concatenate([near, np.nextafter(near, math.inf), np.nextafter(near, -math.inf), [-99.0, 1e9]]):
        assert (score > threshold) == (conformal_p_value(float(score), ordered) <= rate)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["plain", "ties", "apart"])
def test_no_other_cut_between_the_normals_has_a_larger_f1(kind: str, seed: int) -> None:
    normals, anomalous = drawn(kind, seed)
    threshold, _ = fit_f1_threshold(normals, anomalous)
    found = {other: f1_of(other, normals, anomalous) for other in map(float, normals)}
    assert found[threshold] == max(found.values())
    # Of equally good ones the largest, which has the fewest false alarms.
    assert threshold == max(other for other, value in found.items() if value == found[threshold])


def test_an_f1_optimal_threshold_lies_at_the_largest_normal_where_all_defects_score_above() -> None:
    assert fit_f1_threshold(np.array([3.0, 1.0, 2.0]), np.array([5.0, 9.0])) == (3.0, 1 / 4)
    # One odd normal among many is worth a false alarm; two defects would be the price of none.
    assert fit_f1_threshold(np.array([1.0, 2.0, 8.0]), np.array([5.0, 6.0, 9.0])) == (2.0, 2 / 4)


def test_of_two_cuts_with_the_same_f1_the_one_with_fewer_false_alarms_is_taken() -> None:
    normals, anomalous = np.array([1.0, 4.0, 5.0]), np.array([3.0, 9.0])
    assert f1_of(1.0, normals, anomalous) == f1_of(5.0, normals, anomalous) == 2 / 3
    assert fit_f1_threshold(normals, anomalous) == (5.0, 1 / 4)


def test_the_rate_that_ties_amount_to_counts_only_the_normals_above() -> None:
    threshold, rate = fit_f1_threshold(np.array([1.0, 2.0, 2.0, 2.0, 4.0]), np.array([3.0, 3.0, 3.0, 3.0, 2.0]))
    assert (threshold, rate) == (2.0, 2 / 6)


@pytest.mark.parametrize(
    ("normals", "anomalous", "says"),
    [
        ([], [1.0], "there is no normal"),
        ([1.0], [], "there is no anomalous image"),
        ([1.0], [math.nan], "a score of the anomalous images is not a finite number"),
        ([math.inf], [1.0], "a score of the normal images is not a finite number"),
        ([2.0, 3.0], [1.0, 2.0], "none of 2 anomalous images scores above any of 2 normals"),
    ],
)
def test_scores_that_give_no_f1_optimal_threshold_are_refused(
    normals: list[float], anomalous: list[float], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        fit_f1_threshold(np.array(normals), np.array(anomalous))


def fitted(method: ThresholdMethod) -> Thresholds:
    tail = PixelTail(99 * 4)
    tail.add(np.zeros((99, 2, 2), np.float32))
    if method is ThresholdMethod.F1_OPTIMAL:
        return fit_f1_thresholds_with_tail(np.arange(99.0), tail, [97.5, 200.0], scored_by="the test")
    return fit_thresholds_with_tail(np.arange(99.0), tail, false_alarm_rate=0.02, scored_by="the test", method=method)


@pytest.mark.parametrize(
    ("method", "promised", "words"),
    [
        (ThresholdMethod.SPLIT_CONFORMAL, 0.02, "at most 0.02 of normal parts"),
        (
            ThresholdMethod.CROSS_CONFORMAL,
            0.02,
            "at most 0.02 of normal parts in practice (cross-conformal calibration), without a proof",
        ),
        (ThresholdMethod.F1_OPTIMAL, None, "no rate is guaranteed (F1-optimal on labelled images)"),
    ],
)
def test_what_a_threshold_promises_is_said_with_its_ground(
    method: ThresholdMethod, promised: float | None, words: str
) -> None:
    thresholds = fitted(method)
    assert thresholds.method is method
    assert promised_rate(thresholds) == promised
    assert words in describe_promise(thresholds)
    assert describe_support(thresholds) == "0.01 with 99 normals, 1 / (99 + 1)"
    assert too_few_normals(thresholds) is None


def test_an_f1_optimal_threshold_has_the_normals_calibration_scores_and_pixel_threshold() -> None:
    thresholds = fitted(ThresholdMethod.F1_OPTIMAL)
    assert (thresholds.image_threshold, thresholds.false_alarm_rate) == (97.0, 2 / 100)
    assert thresholds.calibration_scores == tuple(map(float, range(99)))
    assert thresholds.pixel_threshold == 0.0


def test_thresholds_written_before_there_were_methods_are_split_conformal() -> None:
    content = fitted(ThresholdMethod.SPLIT_CONFORMAL).model_dump(mode="json")
    assert content.pop("method") == "split-conformal"
    assert Thresholds.model_validate(content) == fitted(ThresholdMethod.SPLIT_CONFORMAL)
