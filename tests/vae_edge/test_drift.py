from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle, spotted_image
from vae_edge import Bundle, Detector
from vae_edge.drift import ALLOWED_SHARE, DriftMonitor
from vae_edge.drift_file import MAX_SCORES, DriftAlarm, read_drift
from vae_edge.errors import InputError, UsageError
from vae_edge.manifest import ThresholdMethod
from vae_edge.prediction import Prediction
from vae_edge.targets import Target


def first_alarm(
    seed: int, n: int, *, shift: float = 0, at: int = 0, defects: float = 0, rate: float = 0.05, n_normals: int = 200
) -> DriftMonitor:
    """Watch n parts whose scores are normally distributed, shifted from part `at` on; stop at an alarm."""
    rng = np.random.default_rng(seed)
    monitor = DriftMonitor.for_scores(rng.normal(size=n_normals), alarm_rate=rate, seed=seed)
    scores = rng.normal(size=n)
    scores[at:] += shift
    scores[rng.random(n) < defects] += 6
    for score in scores.tolist():
        if monitor.add(score).alarm:
            break
    return monitor


def test_without_drift_alarms_are_at_most_as_frequent_as_stated() -> None:
    alarms = [first_alarm(seed, 500, rate=0.1).alarm is not None for seed in range(60)]
    # At the stated rate of 0.1, more than 12 of 60 would have a chance of 0.8 %.
    assert sum(alarms) <= 12


def test_scattered_defects_are_no_drift() -> None:
    alarms = [first_alarm(seed, 1000, defects=0.05, rate=0.05).alarm is not None for seed in range(30)]
    assert sum(alarms) <= 4


@pytest.mark.parametrize(
    ("shift", "direction", "parts"), [(1.5, "higher", 100), (-1.5, "lower", 100), (8, "higher", 20)]
)
def test_a_shift_is_noticed_soon_with_its_direction_size_and_beginning(
    shift: float, direction: str, parts: int
) -> None:
    for seed in range(5):
        alarm = first_alarm(seed, 1000, shift=shift, at=500, rate=0.01).alarm
        assert alarm is not None
        assert 500 < alarm.part <= 500 + parts
        assert alarm.direction == direction
        assert abs(alarm.began - 501) <= 15
        assert alarm.shift == pytest.approx(shift, rel=0.2, abs=0.8)


def test_too_many_parts_above_the_cut_are_drift_though_they_are_not_ranked() -> None:
    monitor = first_alarm(1, 1000, defects=0.5, rate=0.01)
    assert monitor.alarm is not None
    assert monitor.alarm.direction == "higher"
    assert first_alarm(1, 1000, defects=ALLOWED_SHARE * 0.75, rate=0.01).alarm is None


def test_the_martingale_is_the_mixture_over_beginnings_of_the_products_of_bets() -> None:
    rng = np.random.default_rng(3)
    normals = rng.normal(size=80)
    monitor = DriftMonitor.for_scores(normals, seed=5)
    cut = np.sort(normals)[-1]  # The largest of 80, for 1 % of 81 is less than one.
    kept = [score for score in normals if score < cut]
    factors: list[list[float]] = []
    for score in rng.normal(size=40):
        before = monitor.record()
        monitor.add(float(score))
        if score >= cut:
            factors.append([1] * 6 + [1 + g * 0.8 / 0.2 for g in (0.25, 0.5, 0.75)])
            continue
        kept.append(score)
        theta = _splitmix(5, before.n_draws + 1)
        u = (sum(other < score for other in kept) + theta) / len(kept)
        factors.append([0.5 + u, 2 * u, 4 * u**3, 1.5 - u, 2 * (1 - u), 4 * (1 - u) ** 3, 0.75, 0.5, 0.25])
    waiting = [1 / (1 + math.log(1 + n)) for n in range(41)]
    products = np.array(factors)
    expected = waiting[40] + sum((waiting[n] - waiting[n + 1]) * products[n:].prod(axis=0).mean() for n in range(40))
    assert monitor.martingale == pytest.approx(expected, rel=1e-9)


def _splitmix(seed: int, position: int) -> float:
    # Written once more from Steele, Lea and Flood's paper, with NumPy's arithmetic modulo 2^64.
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.uint64(position) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 2**53


def test_every_bet_has_mean_1_and_ties_are_in_random_order() -> None:
    from vae_edge.drift import _higher_and_lower

    grid = (np.arange(20_000) + 0.5) / 20_000
    assert np.mean([_higher_and_lower(u) for u in grid], axis=0) == pytest.approx(1, abs=1e-6)
    monitor = DriftMonitor.for_scores([0.0] * 150 + [1.0] * 10, seed=1)
    for _ in range(2000):
        monitor.add(0.0)
    assert monitor.alarm is None


def test_ranks_stay_uniform_and_independent_when_the_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    import vae_edge.drift as module

    monkeypatch.setattr(module, "MAX_SCORES", 20)
    rng = np.random.default_rng(0)
    ranks = []
    for seed in range(300):
        monitor = DriftMonitor.for_scores(rng.normal(size=30), seed=seed)
        monitor._begin = monitor._begin.model_copy(update={"cut": 1e9})
        ranks.append([monitor._rank(float(score)) for score in rng.normal(size=100)])
        assert len(monitor._scores) == 20
    found = np.array(ranks)
    # A fixed set of 20 scores would give each run its own mean, with a variance of 1 / 12 / 20 and more.
    assert found.mean(axis=1).var() == pytest.approx(1 / 12 / 100, rel=0.3)
    assert np.abs(np.quantile(found, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.01


def test_it_goes_on_after_a_restart_as_if_there_had_been_none(tmp_path: Path, onnx_bundle: Bundle) -> None:
    scores = np.random.default_rng(1).uniform(0.1, 0.2, 60).tolist()
    path = tmp_path / "line.drift"
    monitor = DriftMonitor.open(path, onnx_bundle)
    for score in scores[:30]:
        monitor.add(score)
    monitor.close()
    through = DriftMonitor(read_drift(path))
    again = DriftMonitor.open(path, onnx_bundle)
    for score in scores[30:]:
        assert again.add(score) == through.add(score)
    again.close()
    assert read_drift(path) == through.record()
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_an_alarm_is_on_disk_at_once(tmp_path: Path, onnx_bundle: Bundle) -> None:
    monitor = DriftMonitor.open(tmp_path / "state", onnx_bundle)
    while not monitor.add(1e6).alarm:
        pass
    written = read_drift(tmp_path / "state")
    assert written.alarm == monitor.alarm is not None
    monitor.close()


def test_a_file_of_another_bundle_or_rate_or_a_changed_one_is_refused(tmp_path: Path, onnx_bundle: Bundle) -> None:
    path = tmp_path / "state"
    DriftMonitor.open(path, onnx_bundle).close()
    other = make_bundle(tmp_path / "other", Target.ONNX, n_normals=98)
    with pytest.raises(InputError, match=r"belongs to the bundle .* delete it to begin anew"):
        DriftMonitor.open(path, other)
    with pytest.raises(InputError, match=r"false-alarm rate of 0.01, not 0.02"):
        DriftMonitor.open(path, onnx_bundle, alarm_rate=0.02)
    text = path.read_text()
    path.write_text(text.replace('"n_parts": 0', '"n_parts": 7'))
    with pytest.raises(InputError, match="was changed since it was written"):
        DriftMonitor.open(path, onnx_bundle)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="is damaged"):
        DriftMonitor.open(path, onnx_bundle)
    path.write_text('{"something": "else"}')
    with pytest.raises(InputError, match="is not the state of a drift monitor"):
        DriftMonitor.open(path, onnx_bundle)
    assert path.read_text() == '{"something": "else"}'


def test_only_one_program_at_a_time_has_a_file(tmp_path: Path, onnx_bundle: Bundle) -> None:
    monitor = DriftMonitor.open(tmp_path / "state", onnx_bundle)
    with pytest.raises(InputError, match="another program watches for drift"):
        DriftMonitor.open(tmp_path / "state", onnx_bundle)
    monitor.close()
    DriftMonitor.open(tmp_path / "state", onnx_bundle).close()


def test_a_link_to_a_file_is_followed_and_stays_a_link(tmp_path: Path, onnx_bundle: Bundle) -> None:
    link = tmp_path / "link"
    (tmp_path / "shared").mkdir()
    try:
        link.symlink_to(tmp_path / "shared" / "state")
    except OSError:
        pytest.skip("this system lets no usual user make links")
    with_link = DriftMonitor.open(link, onnx_bundle)
    with pytest.raises(InputError, match="another program watches for drift"):
        DriftMonitor.open(tmp_path / "shared" / "state", onnx_bundle)
    with_link.add(1.0)
    with_link.close()
    assert link.is_symlink()
    assert read_drift(tmp_path / "shared" / "state").n_parts == 1


def test_only_the_deployed_models_own_scores_are_compared_with(onnx_bundle: Bundle) -> None:
    assert DriftMonitor.for_bundle(onnx_bundle).record().n_reference == 98  # Of 99, without the cut itself.
    thresholds = onnx_bundle.manifest.thresholds.model_copy(update={"method": ThresholdMethod.CROSS_CONFORMAL})
    manifest = onnx_bundle.manifest.model_copy(update={"thresholds": thresholds})
    for changed in (manifest, onnx_bundle.manifest.model_copy(update={"verified": False})):
        monitor = DriftMonitor.for_bundle(Bundle(onnx_bundle.folder, changed))
        assert monitor.record().n_reference == 0
        assert "earlier parts only" in monitor.sentence()


def test_memory_is_bounded_from_the_beginning() -> None:
    monitor = DriftMonitor.for_scores(np.random.default_rng(0).normal(size=MAX_SCORES + 500), seed=0)
    assert len(monitor.record().scores) == MAX_SCORES
    monitor.add(0.0)
    assert len(monitor.record().scores) == MAX_SCORES


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused(score: float) -> None:
    with pytest.raises(InputError, match="expected a finite number"):
        DriftMonitor.for_scores([0.1, 0.2]).add(score)


def test_a_detector_says_it_with_every_prediction_in_order(tmp_path: Path, onnx_bundle: Bundle) -> None:
    with Detector.open(onnx_bundle, drift=tmp_path / "state", drift_alarm_rate=0.05) as detector:
        first = detector.predict(dark_image(0))
        assert first.drift is not None
        assert (first.drift.alarm, first.drift.direction, first.drift.shift) == (False, None, None)
        rest = list(detector.stream([spotted_image(seed) for seed in range(1, 20)]))
        assert all(isinstance(each, Prediction) for each in rest)
        assert rest[-1].drift is not None
        assert (rest[-1].drift.alarm, rest[-1].drift.direction) == (True, "higher")
        assert detector.drift is not None
        assert detector.drift.n_parts == 20
        with pytest.raises(UsageError, match="watches for drift"):
            detector.refit_thresholds([dark_image(0)])
    record = read_drift(tmp_path / "state")
    assert record.n_parts == 20
    assert list(record.recent) == [first.score, *(each.score for each in rest)]


def test_a_picture_that_is_not_inspectable_is_no_part_but_has_the_verdict_so_far(onnx_bundle: Bundle) -> None:
    with Detector.open(onnx_bundle, drift=True) as detector:
        seen = detector.predict(dark_image(0))
        blurred = detector._watched(replace(seen, not_inspectable_because=("blurred",)))
        assert blurred.drift == seen.drift is not None
        assert detector.drift is not None
        assert detector.drift.n_parts == 1


def test_without_being_asked_nothing_is_watched(onnx_bundle: Bundle) -> None:
    with Detector.open(onnx_bundle) as detector:
        assert detector.drift is None
        assert detector.predict(dark_image(0)).drift is None
    with pytest.raises(UsageError, match="drift is False"):
        Detector.open(onnx_bundle, drift_alarm_rate=0.1)
    with pytest.raises(UsageError, match=r"drift is 0.9; expected 1e-06 to 0.5"):
        Detector.open(onnx_bundle, drift=True, drift_alarm_rate=0.9)


def test_a_part_takes_microseconds() -> None:
    rng = np.random.default_rng(0)
    monitor = DriftMonitor.for_scores(rng.normal(size=MAX_SCORES), seed=0)
    scores = rng.normal(size=2000).tolist()
    begin_s = time.process_time()
    for score in scores:
        monitor.add(score)
    assert (time.process_time() - begin_s) / len(scores) < 500e-6  # Ten to twenty where nothing else runs.


def test_an_alarm_states_its_time_which_the_file_keeps(tmp_path: Path, onnx_bundle: Bundle) -> None:
    with closing(DriftMonitor.open(tmp_path / "line.drift", onnx_bundle)) as monitor:
        while not monitor.add(1e6).alarm:
            pass
        assert monitor.alarm is not None
        assert monitor.alarm.raised_s == pytest.approx(time.time(), abs=60)
        assert f", {monitor.alarm.raised_utc} (" in monitor.sentence()
    assert read_drift(tmp_path / "line.drift").alarm == monitor.alarm
    with pytest.raises(ValueError, match="2026-99"):
        DriftAlarm.model_validate(monitor.alarm.model_dump() | {"raised_utc": "2026-99-01T00:00:00Z"})
