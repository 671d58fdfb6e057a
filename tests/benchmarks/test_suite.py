from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.benchmarks.conftest import MakeBundle
from vae_edge.benchmarks.measurement import SuiteProgress
from vae_edge.benchmarks.report import Report, read_report
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.benchmarks.suite import named_bundles, run_suite
from vae_edge.errors import InputError
from vae_edge.targets import Target


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
    settings = short_settings.model_copy(update={"baselines": True})
    report_folder = tmp_path_factory.mktemp("reports") / "report"
    report = run_suite([folder], inspection_folder, settings, report_folder=report_folder, progress=told.append)
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
        assert bundle.throughput.images_per_s > 1
        assert bundle.start is not None
        inside_s = bundle.start.import_s + bundle.start.open_s + bundle.start.first_predict_s
        assert inside_s < bundle.start.first_result_s < 60
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
    assert first.accuracy.image_auroc == moved.accuracy.image_auroc == other.accuracy.image_auroc == 1.0
    # The faint spot lies at 120 / 255 = 0.47.
    assert (first.accuracy.recall, moved.accuracy.recall) == (0.75, 1.0)
    assert first.accuracy.false_alarm_rate == 0.0
    assert first.accuracy.pixel_auroc is not None
    assert first.accuracy.pixel_auroc > 0.95
    assert first.accuracy.per_defect["spot"].n == 4


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
    (baseline,) = suite[0].baselines
    assert baseline.n_train == 4
    assert baseline.metrics.image_auroc == 1.0
    assert baseline.metrics.recall is None


def test_the_report_and_its_samples_are_written_and_read_back(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    report, folder, _ = suite
    assert read_report(folder) == report
    samples = json.loads((folder / "samples/squares-onnx-fp32.json").read_text())
    measured = samples["latency"]["engine"]["measured_ns"]
    assert report.bundles[0].latency is not None
    assert len(measured) == report.bundles[0].latency.engine.n
    assert min(measured) / 1e6 == report.bundles[0].latency.engine.min_ms
    assert len(samples["latency"]["engine"]["warmup_ns"]) >= 3
    markdown = (folder / "report.md").read_text()
    assert "squares-openvino-fp32" in markdown
    assert "| spot | 4 |" in markdown
    assert "nan" not in markdown
    assert "None" not in markdown
    assert str(folder.parent) not in markdown


def test_progress_names_what_is_measured_and_ends_in_time(suite: tuple[Report, Path, list[SuiteProgress]]) -> None:
    told = suite[2]
    assert {"engine", "predict", "file", "throughput", "outputs", "accuracy"} <= {now.doing for now in told}
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
    assert "bytes, the manifest says" in changed.not_run_because
    assert torn.not_run_because is not None
    assert "manifest.json cannot be read" in torn.not_run_because
    assert torn.target is None
    assert good.accuracy is not None
    assert good.accuracy.image_auroc is None
    assert good.accuracy.recall is None
    assert good.accuracy.false_alarm_rate == 0.0
    assert "image_auroc" not in report.to_json()


def test_bundles_are_taken_once_and_named_apart(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first = make_bundle("same", folder=tmp_path / "one")
    second = make_bundle("same", folder=tmp_path / "two")
    other = make_bundle("other", folder=tmp_path / "two")
    assert named_bundles([tmp_path / "one", first, tmp_path / "two"]) == {
        "one/same": first,
        "other": other,
        "two/same": second,
    }


def test_a_reference_that_is_none_of_the_bundles_is_refused_before_measuring(
    make_bundle: MakeBundle, inspection_folder: Path
) -> None:
    with pytest.raises(InputError, match=r"'no' is none of the bundles; choose from only"):
        run_suite([make_bundle("only")], inspection_folder, SuiteSettings(reference="no"))


def test_a_report_folder_that_holds_something_else_is_refused_before_measuring(
    make_bundle: MakeBundle, inspection_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no earlier benchmark report"):
        run_suite([make_bundle("only")], inspection_folder, report_folder=tmp_path)


def _folder_of(suite: tuple[Report, Path, list[SuiteProgress]], name: str) -> Path:
    return next(suite[1].parent.parent.glob(f"four*/{name}"))
