from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_bundles import make_bundle
from vae_edge.errors import UsageError
from vae_edge.manifest import Thresholds
from vae_edge.prediction import Prediction
from vae_edge.sinks.keep_rules import Chooser, KeepRules, near_distance, parse_quota


@pytest.fixture(scope="module")
def thresholds(tmp_path_factory: pytest.TempPathFactory) -> Thresholds:

    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy").manifest.thresholds


def prediction(score: float, threshold: float = 0.5) -> Prediction:
    return Prediction(score, 0.5, threshold, score > threshold, np.zeros((2, 2), np.float32), 0.5)


@pytest.mark.parametrize("text", ["", "far", "1/0", "1/-2", "2/10", "1/", "near;drift", "1/99999999999", "1/1e3"])
def test_what_is_not_a_rule_is_refused_with_the_rules(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a rule .* expected near, anomalous, not-inspectable, drift or 1/N"):
        KeepRules.parse(["near", text])


def test_two_samples_are_refused() -> None:
    with pytest.raises(UsageError, match=r"1/10 and 1/20; leave out one"):
        KeepRules.parse(["1/10,1/20"])


@pytest.mark.parametrize("text", ["", "2", "0GB", "-1GB", "999999", "2 apples", "nan", "inf", "1e3GB", "2GBB"])
def test_a_quota_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the quota for kept pictures is"):
        parse_quota(text)


def test_near_is_half_a_spread_of_the_normals_on_either_side(thresholds: Thresholds) -> None:
    scores = np.array(thresholds.calibration_scores)
    spread = (np.quantile(scores, 0.75) - np.quantile(scores, 0.25)) / 1.349
    assert near_distance(thresholds) == pytest.approx(spread / 2)
    chooser = Chooser(KeepRules.parse(["near"]), thresholds)
    inside, outside = 0.49 * spread, 0.51 * spread
    assert [chooser.rules_for(prediction(0.5 + by)) for by in (inside, -inside, outside, -outside)] == [
        ["near"],
        ["near"],
        [],
        [],
    ]


def test_of_each_n_pictures_a_random_one_is_kept(thresholds: Thresholds) -> None:
    chooser = Chooser(KeepRules.parse(["1/4"]), thresholds)
    kept = np.array([bool(chooser.rules_for(prediction(0.1))) for _ in range(400)]).reshape(100, 4)
    assert (kept.sum(axis=1) == 1).all()
    assert (kept.sum(axis=0) > 5).all()


def test_several_rules_and_what_is_not_inspectable(thresholds: Thresholds) -> None:
    chooser = Chooser(KeepRules.parse(["anomalous,not-inspectable", "1/1"]), thresholds)
    assert chooser.rules_for(prediction(0.1)) == ["1/1"]
    assert chooser.rules_for(prediction(0.9)) == ["anomalous", "1/1"]
    dark = prediction(0.1)
    object.__setattr__(dark, "not_inspectable_because", ("too dark",))
    assert chooser.rules_for(dark) == ["not-inspectable", "1/1"]
