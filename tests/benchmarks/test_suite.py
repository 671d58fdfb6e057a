from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.benchmarks.conftest import MakeBundle
from vae_edge.benchmarks.measure.measurer import Measurer, Row, SuiteProgress, named_bundles
from vae_edge.benchmarks.measure.plan import SuiteSettings
from vae_edge.benchmarks.measure.samples import RawSamples
from vae_edge.benchmarks.report.pages.html import render_report
from vae_edge.benchmarks.report.pages.markdown import to_markdown
from vae_edge.benchmarks.report.records.files import read_report, read_samples
from vae_edge.benchmarks.report.records.report import Report
from vae_edge.benchmarks.suite import run_suite
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError
from vae_edge.targets import Precision, Target


@pytest.fixture(scope="module")
def suite(
    make_bundle: MakeBundle,
    inspection_folder: Path,
    short_settings: SuiteSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Report, Path, list[SuiteProgress]]:
    """Four bundles: ONNX, the same with a moved threshold, OpenVINO, and TensorRT, which has no GPU or no engine."""
    folder = tmp_path_factory.mktemp("four")
    make_bundle("squares-onnx-fp32", folder=folder)
    make_bundle("squares-onnx-moved", folder=folder, threshold=0.45)
    make_bundle("squares-openvino-fp32", Target.OPENVINO, folder=folder)
    make_bundle("squares-tensorrt-fp32", Target.TENSORRT, folder=folder)
    told: list[SuiteProgress] = []
    settings = short_settings.model_copy(update={"simple_method": True, "load_fps": (200.0,), "requests": (1, 2)})
    report_folder = tmp_path_factory.mktemp("reports") / "report"
    report = run_suite([folder], inspection_folder, settings, report_folder=report_folder, progress=told.append)
    render_report(report_folder)
    return report, report_folder, told


def test_every_bundle_that_can_run_gets_all_its_numbers(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    report, _, _ = suite
    for bundle in report.bundles[:3]:
        assert bundle.has_run, bundle.not_run_because
        assert bundle.latency is not None
        assert bundle.latency.engine.n >= 5
        assert 0 < bundle.latency.engine.min_ms <= bundle.latency.engine.p50_ms <= bundle.latency.engine.p99_ms
        assert bundle.latency.engine.min_ms < bundle.latency.predict.mean_ms < bundle.latency.file.max_ms
        assert bundle.throughput is not None
        assert bundle.throughput.default.images_per_s > 1
        assert [stream.requests for stream in bundle.throughput.sweep] == [1, 2]
        assert bundle.start is not None
        assert bundle.start.cold is not None
        assert (bundle.start.warm.n_starts, bundle.start.cold.n_starts) == (2, 1)
        for start in (bundle.start.warm, bundle.start.cold):
            inside_s = start.import_s + start.runtime_import_s + start.open_s + start.first_predict_s
            assert inside_s < start.first_result_s < 60
            assert start.process_s > 0
        assert bundle.stages is not None
        assert [stage.name for stage in bundle.stages.stages] == ["decode", "resize", "engine", "decision"]
        assert bundle.stages.end_to_end_ms == bundle.latency.file.p50_ms
        (load,) = bundle.load
        assert (load.fps, load.deadline_ms, load.latency.n) == (200.0, 5.0, 40)
        assert bundle.energy is not None
        assert (bundle.energy.joules_per_image is None) != (bundle.energy.not_available_because is None)
        assert [each.number for each in bundle.rounds] == [1, 2]
        assert all(each.spin_before_ms > 0 for each in bundle.rounds)
        assert set(bundle.latency.file.intervals) == {"mean_ms", "p50_ms", "std_ms"}
        assert bundle.memory is not None
        assert bundle.memory.before_open_bytes is not None
        assert 10 << 20 < bundle.memory.before_open_bytes < bundle.memory.peak_resident_bytes < 2 << 30
        assert bundle.size_bytes == sum(
            path.stat().st_size for path in _folder_of(suite, bundle.name).iterdir() if path.name != "manifest.json"
        )


def test_a_bundle_that_cannot_run_stays_with_its_reason(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    last = suite[0].bundles[3]
    assert last.target is Target.TENSORRT
    assert last.not_run_because
    assert last.latency is None
    assert last.memory is None
    assert last.accuracy is None
    assert suite[0].any_ran


def test_accuracy_is_at_the_bundles_own_threshold(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    first, moved, other, _ = suite[0].bundles
    assert first.accuracy is not None
    assert moved.accuracy is not None
    assert other.accuracy is not None
    metrics = first.accuracy.metrics
    assert metrics.image_auroc == moved.accuracy.metrics.image_auroc == other.accuracy.metrics.image_auroc == 1.0
    # The faint spot lies at 120 / 255 = 0.47.
    assert (metrics.recall, moved.accuracy.metrics.recall) == (0.75, 1.0)
    assert metrics.false_alarm_rate == 0.0
    assert metrics.pixel_auroc is not None
    assert metrics.pixel_auroc > 0.95
    assert metrics.per_defect["spot"].n == 4
    assert first.accuracy.roc is not None
    assert first.accuracy.pro is not None
    assert first.accuracy.pro.hit_rate[-1] == 1.0
    assert sum(first.accuracy.scores.normal) == sum(first.accuracy.scores.anomalous) == 4


def test_flips_are_counted_and_named_against_the_reference(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    first, moved, other, _ = suite[0].bundles
    assert first.is_reference
    assert first.comparison is None
    assert moved.comparison is not None
    assert moved.comparison.reference == first.name
    assert moved.comparison.flipped_images == ("test/spot/0.png",)
    assert moved.comparison.label_flips == 1
    assert moved.comparison.max_score_difference == 0.0
    assert other.comparison is not None
    assert other.comparison.label_flips == 0
    assert other.comparison.max_map_difference is not None
    assert other.comparison.max_map_difference < 1e-6
    assert "first FP32 bundle" in suite[0].reference_notes[0]


def test_the_baseline_is_measured_beside_the_bundles(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    (method,) = suite[0].simple_methods
    assert method.n_train == 4
    assert method.metrics.image_auroc == 1.0
    assert method.metrics.recall is None


def test_ratios_are_to_the_baseline_with_intervals(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    report = suite[0]
    first, moved, _, last = report.bundles
    assert report.baseline == first.name
    assert first.is_baseline
    assert first.ratios == last.ratios == {}
    ratio = moved.ratios["p50_ms"]
    assert ratio.n_rounds == 2
    assert ratio.interval is not None
    assert ratio.interval.low <= ratio.value <= ratio.interval.high
    assert {"engine_p99_ms", "images_per_s", "first_result_s", "cold_first_result_s"} <= set(moved.ratios)


def test_a_bundle_is_recommended_and_the_one_that_flips_is_not(
    suite: tuple[Report, Path, list[SuiteProgress]],
) -> None:
    report = suite[0]
    assert report.recommendation is not None
    assert report.recommendation.chosen in (report.bundles[0].name, report.bundles[2].name)
    moved = report.recommendation.judgements[1]
    assert not moved.fits
    assert "test/spot/0.png" in moved.reasons[0]


def test_pictures_of_the_flip_lie_beside_the_report(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    report, folder, _ = suite
    (flip,) = [example for example in report.examples if example.kind == "flip"]
    assert (flip.bundle, flip.image) == ("squares-onnx-moved", "test/spot/0.png")
    for name in (flip.input_file, flip.map_file, flip.mask_file, flip.truth_file):
        assert name is not None
        assert (folder / "images" / name).stat().st_size > 0


def test_few_rounds_and_a_few_good_test_images_are_warned_of(
    suite: tuple[Report, Path, list[SuiteProgress]],
) -> None:
    warnings = "\n".join(suite[0].warnings)
    assert "only 2 rounds: the intervals are too narrow" in warnings
    assert "squares-onnx-fp32: 4 good test images are few" in warnings


def test_the_report_and_its_samples_are_written_and_read_back(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    report, folder, _ = suite
    assert read_report(folder) == report
    samples = RawSamples.from_dict(read_samples(folder, report.bundles[0]))
    latency = report.bundles[0].latency
    assert latency is not None
    for number, result in samples.rounds.items():
        engine = result["series"]["engine"]
        assert len(engine["warmup_ns"]) >= 3
        assert len(engine["measured_ns"]) >= 5
        assert number in (1, 2)
    measured = samples.latency("engine").values()
    assert measured.size == latency.engine.n
    assert measured.min() == latency.engine.min_ms
    markdown = (folder / "report.md").read_text()
    assert "squares-openvino-fp32" in markdown
    assert "| spot | 4 |" in markdown
    assert markdown.index("on this device") < markdown.index("## Bundles")
    assert "vae-bench squares-onnx-fp32 " in markdown
    assert "nan" not in markdown
    assert "None" not in markdown
    assert str(folder.parent) not in markdown


def test_each_bundle_is_measured_in_its_faster_arithmetic_too(
    make_bundle: MakeBundle, inspection_folder: Path, short_settings: SuiteSettings, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    folder = tmp_path / "bundles"
    make_bundle("strict-onnx", folder=folder)
    loose = Bundle.open(make_bundle("loose-openvino", Target.OPENVINO, folder=folder))
    make_bundle("without-tensorrt", Target.TENSORRT, folder=folder)
    record = loose.manifest.references
    assert record is not None
    assert record.own is not None
    allowed = {"score_tolerance": 0.05, "map_tolerance": 0.05}
    wide = record.model_copy(update={**allowed, "own": record.own.model_copy(update=allowed)})
    loose.with_manifest(loose.manifest.model_copy(update={"precision": Precision.FP16, "references": wide}))
    settings = short_settings.model_copy(update={"arithmetic": "auto", "device": "cpu"})
    report = run_suite([folder], inspection_folder, settings, report_folder=tmp_path / "report")
    rows = {bundle.name: bundle for bundle in report.bundles}
    assert list(rows) == [
        "loose-openvino",
        "loose-openvino (auto)",
        "strict-onnx",
        "strict-onnx (auto)",
        "without-tensorrt",
    ]
    assert rows["strict-onnx (auto)"].not_run_because == (
        "it would compute in FP32 all the same (asked for; there is no faster arithmetic for this model here)"
    )
    faster = rows["loose-openvino (auto)"]
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert (faster.arithmetic, faster.references_agree) == ("bfloat16", True)
        assert faster.comparison is not None
        assert faster.comparison.reference == "strict-onnx"
        assert faster.latency is not None
    else:
        assert "there is no faster arithmetic for this model here" in (faster.not_run_because or "")
    assert rows["loose-openvino"].arithmetic is None
    assert read_report(tmp_path / "report") == report
    assert report.reproduce.startswith("vae-bench loose-openvino strict-onnx without-tensorrt --data ")
    assert "--arithmetic auto" in report.reproduce


def test_progress_names_what_is_measured_and_ends_in_time(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    told = suite[2]
    assert {"verdicts", "round 1 of 2", "round 2 of 2", "accuracy"} == {now.doing for now in told}
    turns = [now.bundle.removeprefix("squares-") for now in told if now.doing.startswith("round")]
    # They take turns, and each round begins with another one.
    assert turns == ["onnx-fp32", "onnx-moved", "openvino-fp32", "onnx-moved", "openvino-fp32", "onnx-fp32"]
    steps = [now.step for now in told]
    assert steps == sorted(steps)
    assert all(now.step < now.n_steps for now in told)


def test_data_of_one_class_gives_absent_metrics_and_a_corrupt_bundle_says_so(
    make_bundle: MakeBundle, inspection_folder: Path, short_settings: SuiteSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "bundles"
    make_bundle("good", folder=folder)
    with (make_bundle("changed", folder=folder) / "model.onnx").open("ab") as file:
        file.write(b"x")
    (make_bundle("torn", folder=folder) / "manifest.json").write_text('{"schema_version": 1, ')
    data = tmp_path / "one-class"
    shutil.copytree(inspection_folder / "train", data / "train")
    shutil.copytree(inspection_folder / "test/good", data / "test/good")
    report = run_suite([folder], data, short_settings)
    changed, good, torn = report.bundles
    assert changed.not_run_because is not None
    assert "bytes, but the manifest lists" in changed.not_run_because
    assert torn.not_run_because is not None
    assert "manifest.json cannot be read" in torn.not_run_because
    assert torn.target is None
    assert good.accuracy is not None
    assert good.accuracy.metrics.image_auroc is None
    assert good.accuracy.metrics.recall is None
    assert good.accuracy.metrics.false_alarm_rate == 0.0
    assert "image_auroc" not in report.to_json()


def test_what_was_measured_before_an_interruption_is_kept_and_the_report_says_so(
    make_bundle: MakeBundle,
    inspection_folder: Path,
    short_settings: SuiteSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "bundles"
    make_bundle("a", folder=folder)
    make_bundle("b", folder=folder)
    finished: list[str] = []
    measure = Measurer.measure_round

    def measure_and_interrupt(self: Measurer, row: Row, number: int) -> None:
        if len(finished) == 3:
            raise KeyboardInterrupt
        measure(self, row, number)
        finished.append(row.name)

    monkeypatch.setattr(Measurer, "measure_round", measure_and_interrupt)
    settings = short_settings.model_copy(update={"rounds": 9})
    report = run_suite([folder], inspection_folder, settings, report_folder=tmp_path / "report")
    assert finished == ["a", "b", "b"]
    assert report.interrupted_because == "it was interrupted in round 2 of 9"
    assert [len(bundle.rounds) for bundle in report.bundles] == [1, 2]
    assert report.bundles[1].ratios["p50_ms"].n_rounds == 1
    assert read_report(tmp_path / "report") == report
    assert "**Not complete**" in to_markdown(report)


def test_an_interruption_before_the_first_round_leaves_nothing(
    make_bundle: MakeBundle,
    inspection_folder: Path,
    short_settings: SuiteSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurer, "take_outputs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_suite([make_bundle("only")], inspection_folder, short_settings, report_folder=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_bundle_that_fails_in_the_middle_keeps_its_rounds_and_the_others_go_on(
    make_bundle: MakeBundle,
    inspection_folder: Path,
    short_settings: SuiteSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "bundles"
    make_bundle("a", folder=folder)
    broken = make_bundle("b", folder=folder)
    measure = Measurer.measure_round

    def measure_and_break(self: Measurer, row: Row, number: int) -> None:
        measure(self, row, number)
        if row.name == "b":
            (broken / "model.onnx").write_bytes(b"no model")

    monkeypatch.setattr(Measurer, "measure_round", measure_and_break)
    report = run_suite([folder], inspection_folder, short_settings)
    assert [len(bundle.rounds) for bundle in report.bundles] == [2, 1]
    assert all(bundle.has_run for bundle in report.bundles)
    assert any(warning.startswith("b: it failed after 1 round") for warning in report.warnings)
    assert report.interrupted_because is None


def test_bundles_are_taken_once_and_named_apart(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first = make_bundle("same", folder=tmp_path / "one")
    second = make_bundle("same", folder=tmp_path / "two")
    other = make_bundle("other", folder=tmp_path / "two")
    assert named_bundles([tmp_path / "one", first, tmp_path / "two"]) == {
        "one/same": first,
        "other": other,
        "two/same": second,
    }


def test_a_reference_or_baseline_that_is_none_of_the_bundles_is_refused_before_measuring(
    make_bundle: MakeBundle, inspection_folder: Path
) -> None:
    for settings in (SuiteSettings(reference="no"), SuiteSettings(baseline="no")):
        with pytest.raises(InputError, match=r"'no' is not one of the bundles; choose from only"):
            run_suite([make_bundle("only")], inspection_folder, settings)


def test_a_report_folder_that_holds_something_else_is_refused_before_measuring(
    make_bundle: MakeBundle, inspection_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a benchmark report"):
        run_suite([make_bundle("only")], inspection_folder, report_folder=tmp_path)


def _folder_of(suite: tuple[Report, Path, list[SuiteProgress]], name: str) -> Path:
    return next(suite[1].parent.parent.glob(f"four*/{name}"))
