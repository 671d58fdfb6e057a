from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import MakeBundle
from tests.benchmarks.example_report import example_pictures, example_report
from tests.hostile_bundles import as_first_schema, hostile_bundle
from vae_edge.benchmarks.measure.plan import SuiteSettings
from vae_edge.benchmarks.measure.statistics import Interval
from vae_edge.benchmarks.report.pages.html import to_html
from vae_edge.benchmarks.report.pages.markdown import to_markdown
from vae_edge.benchmarks.report.records.accuracy import PromiseRecord
from vae_edge.benchmarks.report.records.speed import RoundRecord
from vae_edge.benchmarks.report.reservations import bundle_warnings, machine_warnings, round_warnings
from vae_edge.bundle import Bundle
from vae_edge.manifest import NEVER_VERIFIED, ThresholdMethod


def a_round(number: int, **changes: Any) -> RoundRecord:
    usual: dict[str, Any] = {"begin_s": 0.0, "engine_p50_ms": 5.0, "spin_before_ms": 10.0, "spin_after_ms": 10.1}
    return RoundRecord(number=number, **{**usual, **changes})


def test_quiet_rounds_are_not_warned_of() -> None:
    assert round_warnings([a_round(1, foreign_cores=0.1, stolen_share=0.0, n_throttled=0), a_round(2)]) == []


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"foreign_cores": 1.5}, "up to 1.5 cores busy in 1 of 2 rounds"),
        ({"stolen_share": 0.2}, "gave up to 20% of the processor time to others in 1 of 2 rounds"),
        (
            {"spin_before_ms": 12.0, "spin_after_ms": 12.0},
            "the clock drifted: the same computation took 10.00 to 12.00",
        ),
        ({"n_throttled": 3}, "throttled by heat 3 times"),
    ],
)
def test_what_disturbs_a_round_is_told(changes: dict[str, Any], warning: str) -> None:
    (found,) = round_warnings([a_round(1), a_round(2, **changes)])
    assert warning in found


def test_one_slow_spin_beside_a_normal_one_is_no_drift_of_the_clock() -> None:
    assert round_warnings([a_round(1), a_round(2, spin_after_ms=19.0)]) == []


def test_few_rounds_are_warned_of_before_measuring() -> None:
    machine = example_report().machine
    assert any(
        "only 1 round: there are no intervals" in each for each in machine_warnings(machine, SuiteSettings(rounds=1))
    )
    assert not any("too narrow" in each for each in machine_warnings(machine, SuiteSettings(rounds=5)))


@pytest.mark.parametrize(
    ("asked", "used", "reason", "warning"),
    [
        ("auto", "cpu", "the only one found", None),
        ("gpu", "gpu.0", "asked for", None),
        ("cuda:1", "cuda:1", "asked for", None),
        ("cuda", "cpu", "no driver", "it runs on cpu although cuda was requested"),
        ("auto", "cpu", "the CPU, because: no driver", "it fell back to cpu"),
    ],
)
def test_a_device_that_is_not_the_one_asked_for_is_told(
    make_bundle: MakeBundle, asked: str, used: str, reason: str, warning: str | None
) -> None:
    manifest = Bundle.open(make_bundle(f"{asked}-{used}-{len(reason)}".replace(":", ""))).manifest
    result = (
        example_report()
        .bundles[0]
        .model_copy(update={"device": used, "device_reason": reason, "notes": ("its engine was built anew",)})
    )
    found = " ".join(bundle_warnings(result, manifest, SuiteSettings(device=asked)))
    assert "as it was loaded: its engine was built anew" in found
    assert (warning is None) == ("requested (" not in found and "fell back" not in found)
    assert warning is None or warning in found


def test_a_bundle_of_the_first_schema_is_told_as_not_verified(make_bundle: MakeBundle, tmp_path: Path) -> None:
    old = hostile_bundle(make_bundle("whole"), tmp_path / "old", manifest=as_first_schema)
    result = example_report().bundles[0]
    found = bundle_warnings(result, Bundle.open(old).manifest, SuiteSettings())
    assert f"{result.name}: it is not verified: {NEVER_VERIFIED[1]}" in found


def test_an_accuracy_that_may_be_chance_and_a_broken_promise_are_told(make_bundle: MakeBundle) -> None:
    manifest = Bundle.open(make_bundle("chance")).manifest
    result = example_report().bundles[0]
    assert result.accuracy is not None
    promise = PromiseRecord(
        promised_rate=0.01, n_normal=40, n_false_alarms=9, interval=Interval(low=0.1, high=0.4), is_kept=False
    )
    accuracy = result.accuracy.model_copy(
        update={"intervals": {"image_auroc": Interval(low=0.45, high=0.7)}, "promise": promise}
    )
    found = " ".join(bundle_warnings(result.model_copy(update={"accuracy": accuracy}), manifest, SuiteSettings()))
    assert "may be no better than chance" in found
    assert "called 9 of 40 good test images anomalous, certainly more (10.0% or above) than the 1.0%" in found


def test_wherever_a_report_says_what_is_promised_an_f1_optimal_threshold_promises_nothing(
    make_bundle: MakeBundle,
) -> None:
    report = example_report()
    result = report.bundles[0]
    assert result.accuracy is not None
    by_f1 = {"threshold_method": ThresholdMethod.F1_OPTIMAL, "promise": None}
    changed = result.model_copy(update={"accuracy": result.accuracy.model_copy(update=by_f1)})
    found = " ".join(bundle_warnings(changed, Bundle.open(make_bundle("by-f1")).manifest, SuiteSettings()))
    assert "promises no false-alarm rate" in found
    whole = report.model_copy(update={"bundles": (changed, *report.bundles[1:])})
    assert "no promise: F1-optimal" in to_html(whole, example_pictures())
    assert ", no promise: F1-optimal |" in to_markdown(whole)
