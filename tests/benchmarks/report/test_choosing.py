from __future__ import annotations

import math

import pytest

from tests.benchmarks.example_report import example_report
from vae_edge.benchmarks.measure.samples import RATIO_METRICS
from vae_edge.benchmarks.measure.statistics import Interval, Ratio
from vae_edge.benchmarks.report.choosing import parse_objective, parse_requirement, recommend
from vae_edge.benchmarks.report.figures import FIGURES, figure, figure_help
from vae_edge.benchmarks.report.records.report import BundleResult, Objective, Recommendation
from vae_edge.errors import UsageError

BUNDLES = example_report().bundles


def said_of(found: Recommendation, bundle: str) -> str:
    judgement = next(each for each in found.judgements if each.bundle == bundle)
    return "; ".join((*judgement.reasons, *judgement.caveats))


def test_without_being_asked_it_takes_the_fastest_that_is_as_right_and_flips_nothing() -> None:
    found = recommend(BUNDLES)
    assert found.is_default_rule
    assert found.chosen == "tile-openvino-int8"
    assert "by default, of the bundles" in found.rule
    assert found.why == "tile-openvino-int8 has the lowest p50 of the 4 bundles that fit: 9.29 ms (9.10 to 9.48)."
    assert "without lying at the threshold: test/scratch/000.png, test/scratch/001.png" in said_of(
        found, "tile-onnx-int8"
    )
    assert said_of(found, "tile-tensorrt-fp16").startswith("it did not run: ")
    assert [judgement.bundle for judgement in found.judgements] == [bundle.name for bundle in BUNDLES]


def test_a_bundle_that_is_less_right_than_the_best_for_certain_is_passed_over() -> None:
    worse = [_with_auroc(bundle, 0.7) if bundle.name == "tile-openvino-int8" else bundle for bundle in BUNDLES]
    found = recommend(worse)
    assert found.chosen == "tile-openvino-fp32"
    assert "its image AUROC of 0.700 is below 0.890" in said_of(found, "tile-openvino-int8")


def test_requirements_are_kept_and_each_bundle_is_told_which_it_misses() -> None:
    requirements = [parse_requirement("image_auroc >= 0.93"), parse_requirement("p99_ms<=16")]
    found = recommend(BUNDLES, requirements, parse_objective(None, "recall"))
    assert not found.is_default_rule
    assert found.why.startswith(
        "tile-openvino-fp32 has the highest recall at promised rate of the 2 bundles that fit: "
    )
    assert {judgement.bundle: judgement.fits for judgement in found.judgements} == {
        "tile-torch-fp32": False,
        "tile-onnx-fp32": False,
        "tile-onnx-int8": False,
        "tile-openvino-fp32": True,
        "tile-openvino-int8": True,
        "tile-tensorrt-fp16": False,
    }
    assert "the requirement is p99_ms <= 16" in said_of(found, "tile-onnx-fp32")
    assert "the requirement is image_auroc >= 0.93" in said_of(found, "tile-onnx-int8")
    assert "met, but not with certainty: 0.89 to 0.98" in said_of(found, "tile-openvino-fp32")


def test_a_bundle_that_does_not_give_its_reference_outputs_is_never_recommended() -> None:
    fastest = "tile-openvino-int8"
    changed = [
        bundle.model_copy(update={"references_agree": False}) if bundle.name == fastest else bundle
        for bundle in BUNDLES
    ]
    asked = recommend(changed, [], parse_objective("p50_ms", None))
    for found, chosen in ((recommend(changed), "tile-openvino-fp32"), (asked, "tile-onnx-int8")):
        assert found.chosen == chosen
        assert said_of(found, fastest) == "it does not give its reference outputs here"


def test_how_to_open_a_bundle_in_its_faster_arithmetic_is_said() -> None:
    changed = [
        bundle.model_copy(update={"arithmetic": "bfloat16"}) if bundle.name == "tile-openvino-int8" else bundle
        for bundle in BUNDLES
    ]
    assert recommend(changed).why.endswith(" It was opened with arithmetic='auto' and computed in bfloat16.")


def test_nothing_that_fits_is_said() -> None:
    found = recommend(BUNDLES, [parse_requirement("p50_ms<1")])
    assert found.chosen is None
    assert found.why == "5 of 6 bundles ran, and none of them fits the rule."


def test_what_was_not_measured_keeps_no_requirement() -> None:
    found = recommend(BUNDLES, [parse_requirement("joules_per_image<=9")])
    assert "it has no joules_per_image: that was not measured" in said_of(found, "tile-torch-fp32")
    assert found.chosen == "tile-openvino-int8"


def test_a_close_second_is_said_to_be_close() -> None:
    def ratio(metric: str, bundle: str, other: str) -> Ratio | None:
        assert (metric, other) == ("p50_ms", "tile-openvino-int8")
        low = 0.99 if bundle == "tile-onnx-fp32" else 1.2
        return Ratio(value=1.3, interval=Interval(low=low, high=1.6), n_rounds=10)

    found = recommend(BUNDLES, ratio=ratio)
    assert "not certainly worse than tile-openvino-int8: the ratio is 1.3 (0.99 to 1.6)" in said_of(
        found, "tile-onnx-fp32"
    )
    assert "not certainly" not in said_of(found, "tile-openvino-fp32")


@pytest.mark.parametrize("text", ["p50_ms", "p50_ms=3", "p50_ms<=fast", "p50_ms<=nan", "<=3", "p50_ms<=inf"])
def test_a_requirement_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        parse_requirement(text)


def test_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no metric 'speed'; choose from mean_ms, p50_ms.*unexplained_flips"):
        parse_requirement("speed<=3")
    with pytest.raises(UsageError, match="no metric 'speed'"):
        parse_objective("speed", None)
    with pytest.raises(UsageError, match="choose one of them"):
        parse_objective("p50_ms", "recall")
    assert parse_objective(None, None) is None
    assert parse_objective(None, "recall") == Objective(metric="recall", direction="maximize")


@pytest.mark.parametrize("name", FIGURES)
def test_every_metric_is_found_in_a_complete_report_and_in_the_help(name: str) -> None:
    bundle = BUNDLES[1]
    found = figure(name).find(bundle)
    assert found is not None
    assert found.value is not None
    assert found.interval is None or found.interval.low <= found.interval.high
    assert not math.isnan(found.value)
    assert name.removeprefix("predict_").removeprefix("engine_") in figure_help()
    assert figure(name).find(BUNDLES[-1]) is None or name == "size_mib"


def test_what_can_be_compared_can_be_required() -> None:
    assert set(RATIO_METRICS) <= set(FIGURES)


def _with_auroc(bundle: BundleResult, auroc: float) -> BundleResult:
    assert bundle.accuracy is not None
    metrics = bundle.accuracy.metrics.model_copy(update={"image_auroc": auroc})
    return bundle.model_copy(update={"accuracy": bundle.accuracy.model_copy(update={"metrics": metrics})})
