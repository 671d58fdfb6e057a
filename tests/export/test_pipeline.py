from __future__ import annotations

import errno
import getpass
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.fake_datamodule import FakeDataModule, rows_of
from vae_edge.agreement import Outputs, run_backend
from vae_edge.backends.base import Backend
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import BundleError, InputError, ParityError
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.export.settings import Budget, LowPrecisionSettings, ReferenceSettings
from vae_edge.image import load_prepared
from vae_edge.manifest import MANIFEST_FILE
from vae_edge.platform.atomic import sha256_file
from vae_edge.reference_file import REFERENCES_FILE, ReferenceFile, ReferenceKind
from vae_edge.references import size_of
from vae_edge.signing.files import PROVENANCE_FILE
from vae_edge.signing.provenance import read_provenance
from vae_edge.targets import SUPPORTED, Precision, Target
from vae_edge.train import fit
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.presets import make_architecture
from vae_edge.train.model.scoring import MSE_SCORING
from vae_edge.train.run.folder import RunFolder

RUNNABLE = (Target.ONNX, Target.OPENVINO, Target.TORCH)


@pytest.fixture(scope="module")
def bundles(trained_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[Target, Bundle]:
    results = export_run(trained_run, tmp_path_factory.mktemp("bundles"), ExportSettings(targets=tuple(Target)))
    assert [result.error for result in results] == [None] * len(Target)
    return {result.target: result.bundle for result in results if result.bundle is not None}


def test_every_target_leaves_a_whole_bundle_named_after_the_run(bundles: dict[Target, Bundle]) -> None:
    assert [bundle.folder.name for bundle in bundles.values()] == [f"dial-{target}-fp32" for target in Target]
    for target, bundle in bundles.items():
        names = {record.name for record in bundle.manifest.files}
        assert names == {SUPPORTED[target].model_file, *SUPPORTED[target].other_files, REFERENCES_FILE}
        assert {path.name for path in bundle.folder.iterdir()} == names | {MANIFEST_FILE, PROVENANCE_FILE}
        for record in bundle.manifest.files:
            assert sha256_file(bundle.folder / record.name) == record.sha256


def test_every_bundle_states_where_it_comes_from(bundles: dict[Target, Bundle], trained_run: RunFolder) -> None:
    for target, bundle in bundles.items():
        statement = read_provenance(bundle.folder)
        assert statement is not None
        files = {path.name: sha256_file(path) for path in bundle.folder.iterdir() if path.name != PROVENANCE_FILE}
        assert statement.differing(files) == []
        definition = statement.predicate.buildDefinition
        assert definition.externalParameters["target"] == target
        digests = {each.name: each.digest["sha256"] for each in definition.resolvedDependencies if each.digest}
        assert digests["training images"] == trained_run.record.data.train_fingerprint
        assert set(digests) == {"run", "training images", "vae-edge"}
        text = (bundle.folder / PROVENANCE_FILE).read_text(encoding="utf-8")
        for private in (
            socket.gethostname(),
            getpass.getuser() + "/",
            str(trained_run.folder.parent),
            str(Path.home()),
        ):
            assert private not in text


@pytest.mark.parametrize("target", RUNNABLE)
def test_a_bundle_that_runs_here_is_verified_on_its_own_outputs(
    target: Target, bundles: dict[Target, Bundle], trained_run: RunFolder
) -> None:
    manifest = bundles[target].manifest
    assert manifest.verified
    assert manifest.not_verified_because is None
    assert manifest.parity is not None
    assert manifest.parity.label_flips == 0
    n_normals = len(trained_run.split.of("threshold"))
    assert manifest.parity.n_images == n_normals + len(trained_run.split.of("test"))
    assert manifest.thresholds.n_normals == n_normals
    assert "on cpu" in manifest.thresholds.scored_by


def test_an_engine_that_cannot_run_here_says_so_and_has_the_trained_models_thresholds(
    bundles: dict[Target, Bundle], trained_run: RunFolder
) -> None:
    manifest = bundles[Target.TENSORRT].manifest
    if manifest.verified:
        pytest.skip("this machine has a GPU that runs the engine")
    assert manifest.parity is None
    assert "GPU" in str(manifest.not_verified_because)
    assert manifest.thresholds.image_threshold == trained_run.thresholds.image_threshold
    assert manifest.max_batch == 8


@pytest.mark.parametrize("target", RUNNABLE)
def test_a_bundle_gives_the_trained_models_scores_on_files(
    target: Target, bundles: dict[Target, Bundle], trained_run: RunFolder
) -> None:
    files = trained_run.find_images(("test",))
    images = np.stack([load_prepared(file.path, trained_run.record.preparation) for file in files])
    _, expected = run_graph(trained_run.load_graph(), images)
    with Detector.open(bundles[target]) as detector:
        scores = [prediction.score for prediction in detector.predict_batch([file.path for file in files])]
    np.testing.assert_allclose(scores, expected, rtol=1e-3)


def test_the_threshold_keeps_its_rate_on_the_very_normals_it_was_fitted_on(bundles: dict[Target, Bundle]) -> None:
    thresholds = bundles[Target.ONNX].manifest.thresholds
    above = sum(score > thresholds.image_threshold for score in thresholds.calibration_scores)
    assert above <= thresholds.false_alarm_rate * (thresholds.n_normals + 1) - 1
    assert thresholds.false_alarm_rate_requested == 0.1


def test_a_bundle_says_which_pasted_defects_the_trained_model_finds_unless_it_decides_otherwise(
    bundles: dict[Target, Bundle], trained_run: RunFolder, tmp_path: Path
) -> None:
    found = trained_run.metrics.detectability
    assert found is not None
    assert all(bundle.manifest.detectability == found for bundle in bundles.values())
    (other,) = export_run(trained_run, tmp_path, ExportSettings(targets=(Target.ONNX,), false_alarm_rate=0.3))
    assert other.bundle is not None
    assert other.bundle.manifest.detectability is None


def test_a_second_export_replaces_the_first(trained_run: RunFolder, tmp_path: Path) -> None:
    settings = ExportSettings(targets=(Target.ONNX,), name="tile")
    (first,) = export_run(trained_run, tmp_path, settings)
    (second,) = export_run(trained_run, tmp_path, settings)
    assert first.bundle is not None
    assert second.bundle is not None
    assert first.bundle.folder == second.bundle.folder == tmp_path / "tile-onnx-fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["tile-onnx-fp32"]


def test_a_name_taken_by_something_else_is_refused_before_any_work(trained_run: RunFolder, tmp_path: Path) -> None:
    mine = tmp_path / "dial-onnx-fp32" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(InputError, match="already exists"):
        export_run(trained_run, tmp_path, ExportSettings(targets=(Target.ONNX,)))
    assert mine.read_text() == "years of work"


def test_a_full_disk_leaves_no_bundle(trained_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    (result,) = export_run(trained_run, tmp_path, ExportSettings(targets=(Target.ONNX,)))
    assert result.bundle is None
    assert "No space left" in str(result.error)
    assert list(tmp_path.iterdir()) == []


def test_every_bundle_has_the_pictures_that_the_run_kept(bundles: dict[Target, Bundle], trained_run: RunFolder) -> None:
    kept = trained_run.read_references()
    for target, bundle in bundles.items():
        record = bundle.manifest.references
        assert record is not None
        assert trained_run.record.references is not None
        assert (record.kind, record.images) == (ReferenceKind.PARTS, trained_run.record.references.images)
        file = ReferenceFile.read(bundle.folder / record.file, record, size_of(bundle.manifest))
        assert file.pictures == kept.pictures
        assert (file.own is not None) == (target in RUNNABLE) == (record.own is not None)
        assert record.trained_threshold == trained_run.thresholds.image_threshold


def test_every_bundle_has_the_gate_that_the_run_learnt(bundles: dict[Target, Bundle], trained_run: RunFolder) -> None:
    gate = trained_run.record.gate
    assert gate is not None
    assert (gate.n_fitted, gate.n_normals) == (20, 20)
    assert gate.mean_picture is not None  # The dial lies at the same place in all pictures.
    assert all(bundle.manifest.gate == gate for bundle in bundles.values())


def test_a_run_of_an_earlier_version_gets_drawn_ones_and_says_so(own_run: Path, tmp_path: Path) -> None:
    record = json.loads((own_run / "model.json").read_text())
    record["schema_version"] = 3
    del record["references"]
    record["files"] = [each for each in record["files"] if each["name"] != REFERENCES_FILE]
    (own_run / "model.json").write_text(json.dumps(record))
    (own_run / REFERENCES_FILE).unlink()
    (result,) = export_run(RunFolder.open(own_run), tmp_path / "out", ExportSettings(targets=(Target.ONNX,)))
    assert result.bundle is not None
    assert result.bundle.manifest.references is not None
    assert result.bundle.manifest.references.kind is ReferenceKind.DRAWN
    assert any("is of an earlier version and keeps no pictures" in warning for warning in result.warnings)


def test_a_folder_of_pictures_or_drawn_ones_take_the_place_of_the_runs(
    trained_run: RunFolder, sample_data: Path, tmp_path: Path
) -> None:
    found = []
    for chosen in (ReferenceSettings(folder=sample_data / "test"), ReferenceSettings(drawn=True)):
        settings = ExportSettings(targets=(Target.ONNX,), references=chosen)
        (result,) = export_run(trained_run, tmp_path, settings)
        assert result.bundle is not None
        assert result.warnings == ()
        assert result.bundle.manifest.references is not None
        with Detector.open(result.bundle, check=True):
            found.append(result.bundle.manifest.references)
    assert [(each.kind, each.shows_parts) for each in found] == [
        (ReferenceKind.GIVEN, True),
        (ReferenceKind.DRAWN, False),
    ]
    assert "pictures of the folder test" in found[0].images


def test_too_few_pictures_of_a_folder_are_refused(trained_run: RunFolder, sample_data: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((sample_data / "train" / "good").iterdir())[:5]):
        (tmp_path / "few").mkdir(exist_ok=True)
        shutil.copyfile(path, tmp_path / "few" / f"{number}.png")
    settings = ExportSettings(targets=(Target.ONNX,), references=ReferenceSettings(folder=tmp_path / "few"))
    steps: list[str] = []
    with pytest.raises(InputError, match=r"there are 5 pictures in .*few, given with --references; expected 6 or more"):
        export_run(trained_run, tmp_path / "out", settings, progress=lambda step, *_: steps.append(step))
    assert steps == [], "it is refused before the run's images are scored"


@pytest.mark.parametrize(("name", "what"), [("nowhere", "does not exist"), ("file.png", "is a file")])
def test_references_that_are_no_folder_are_named_as_such(
    trained_run: RunFolder, tmp_path: Path, name: str, what: str
) -> None:
    (tmp_path / "file.png").touch()
    settings = ExportSettings(targets=(Target.ONNX,), references=ReferenceSettings(folder=tmp_path / name))
    with pytest.raises(InputError, match=f"{name}, given with --references, {what}; expected a folder of 6 or more"):
        export_run(trained_run, tmp_path / "out", settings)


def test_a_bundle_that_differs_on_its_references_alone_is_not_published(
    trained_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drifting(backend: Backend, images: NDArray[np.uint8], **kwargs: Any) -> Outputs:
        outputs = run_backend(backend, images, **kwargs)
        factor = np.float32(1.01 if len(images) == 16 else 1)
        return Outputs(outputs.maps * factor, outputs.scores * factor)

    monkeypatch.setattr("vae_edge.export.pipeline.run_backend", drifting)
    (result,) = export_run(trained_run, tmp_path, ExportSettings(targets=(Target.ONNX,)))
    assert isinstance(result.error, ParityError)
    assert "does not give the trained model's outputs for its references" in str(result.error)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_drifts_is_not_published(
    trained_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drifting(*args: object, **kwargs: object) -> Outputs:
        outputs = run_backend(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they came
        return Outputs(outputs.maps * np.float32(1.1), outputs.scores * np.float32(1.1))

    monkeypatch.setattr("vae_edge.export.pipeline.run_backend", drifting)
    (result,) = export_run(trained_run, tmp_path, ExportSettings(targets=(Target.OPENVINO,)))
    assert isinstance(result.error, ParityError)
    assert list(tmp_path.iterdir()) == []


def test_changed_weights_are_refused(own_run: Path) -> None:
    weights = own_run / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        RunFolder.open(own_run)


def test_images_that_moved_are_found_by_the_folder_given(
    trained_run: RunFolder, sample_data: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(sample_data, tmp_path / "moved"))
    settings = ExportSettings(targets=(Target.TORCH,), data_root=moved)
    (result,) = export_run(trained_run, tmp_path / "bundles", settings)
    assert result.bundle is not None


def test_a_missing_image_is_named_with_what_to_do(trained_run: RunFolder, sample_data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(sample_data, tmp_path / "moved"))
    lost = trained_run.split.of("threshold")[0].name
    (moved / lost).unlink()
    with pytest.raises(InputError, match=f"{lost}.*--data"):
        export_run(trained_run, tmp_path / "bundles", ExportSettings(targets=(Target.TORCH,), data_root=moved))


def test_the_scoring_can_be_chosen_anew_at_export(trained_run: RunFolder, tmp_path: Path) -> None:
    plain = ExportSettings(targets=(Target.ONNX,), name="plain", scoring=MSE_SCORING)
    own = ExportSettings(targets=(Target.ONNX,))
    (by_mse,) = export_run(trained_run, tmp_path, plain)
    (by_own,) = export_run(trained_run, tmp_path, own)
    assert by_mse.bundle is not None
    assert by_own.bundle is not None
    assert "averaged over the image" in by_mse.bundle.manifest.scoring
    fingerprints = {result.manifest.provenance.run_fingerprint for result in (by_mse.bundle, by_own.bundle)}
    assert len(fingerprints) == 2
    with Detector.open(by_mse.bundle) as detector:
        prediction = detector.predict(trained_run.find_images(("test",))[0].path)
    assert prediction.score == pytest.approx(float(prediction.anomaly_map.mean()), rel=1e-4)


LOW = [
    (target, precision)
    for target in (Target.ONNX, Target.OPENVINO, Target.TENSORRT)
    for precision in (Precision.FP16, Precision.INT8)
]


@pytest.fixture(scope="module")
def low_bundles(
    larger_run: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[Target, Precision], Bundle]:
    settings = ExportSettings(
        targets=(Target.ONNX, Target.OPENVINO, Target.TENSORRT),
        precisions=(Precision.FP16, Precision.INT8),
        low_precision=LowPrecisionSettings(budget=Budget(max_auroc_drop=None, max_flip_rate=None)),
    )
    results = export_run(larger_run, tmp_path_factory.mktemp("low"), settings)
    assert [str(result.error) for result in results if result.error is not None] == []
    return {(r.target, r.precision): r.bundle for r in results if r.bundle is not None}


@pytest.mark.parametrize(("target", "precision"), LOW)
def test_low_precision_says_what_it_costs(
    target: Target, precision: Precision, low_bundles: dict[tuple[Target, Precision], Bundle]
) -> None:
    manifest = low_bundles[target, precision].manifest
    assert manifest.precision is precision
    assert manifest.accuracy is not None
    assert manifest.parity is not None
    assert manifest.parity.tolerance is None
    assert manifest.verified == (target is not Target.TENSORRT)
    drift = manifest.parity.max_score_difference / manifest.parity.reference_score_scale
    assert 0 < drift < (0.01 if precision is Precision.FP16 else 0.5)


@pytest.mark.parametrize(("target", "precision"), LOW)
def test_the_threshold_is_fitted_on_the_bundles_own_scores(
    target: Target, precision: Precision, low_bundles: dict[tuple[Target, Precision], Bundle], larger_run: RunFolder
) -> None:
    thresholds = low_bundles[target, precision].manifest.thresholds
    assert thresholds.calibration_scores != larger_run.thresholds.calibration_scores
    assert thresholds.n_normals == larger_run.thresholds.n_normals
    assert ("simulating" in thresholds.scored_by) == (target is Target.TENSORRT)


def test_all_int8_bundles_have_one_calibration_set(low_bundles: dict[tuple[Target, Precision], Bundle]) -> None:
    records = [
        bundle.manifest.calibration_set for (_, precision), bundle in low_bundles.items() if precision is Precision.INT8
    ]
    assert len(records) == 3
    assert records[0] is not None
    assert records[0] == records[1] == records[2]


@pytest.mark.parametrize("target", [Target.ONNX, Target.OPENVINO, Target.TENSORRT])
def test_int8_quantizes_every_layer_where_no_budget_forbids_it(
    target: Target, low_bundles: dict[tuple[Target, Precision], Bundle]
) -> None:
    quantization = low_bundles[target, Precision.INT8].manifest.quantization
    assert quantization is not None
    assert quantization.given_back == ()
    assert quantization.n_passes == 1
    # Eight convolutions; ONNX Runtime keeps the last one in float32.
    assert len(quantization.layers) == (7 if target is Target.ONNX else 8)


def test_fp16_halves_the_weights(low_bundles: dict[tuple[Target, Precision], Bundle], larger_run: RunFolder) -> None:
    single = (larger_run.folder / "model.safetensors").stat().st_size
    half = (low_bundles[Target.OPENVINO, Precision.FP16].folder / "model.bin").stat().st_size
    assert half < 0.75 * single


def test_two_exports_of_a_run_are_calibrated_alike_and_equal_to_the_byte(larger_run: RunFolder, tmp_path: Path) -> None:
    settings = ExportSettings(
        targets=(Target.ONNX,),
        precisions=(Precision.INT8,),
        low_precision=LowPrecisionSettings(budget=Budget(max_auroc_drop=None, max_flip_rate=None)),
    )
    first, second = (export_run(larger_run, tmp_path / name, settings)[0].bundle for name in ("a", "b"))
    assert first is not None
    assert second is not None
    assert first.manifest.calibration_set == second.manifest.calibration_set
    assert first.model_path.read_bytes() == second.model_path.read_bytes()


def test_a_calibration_set_that_cannot_be_used_leaves_no_bundle(larger_run: RunFolder, tmp_path: Path) -> None:
    settings = ExportSettings(
        targets=(Target.ONNX,),
        precisions=(Precision.INT8,),
        low_precision=LowPrecisionSettings(calibration_data=tmp_path / "nothing"),
    )
    (result,) = export_run(larger_run, tmp_path / "bundles", settings)
    assert result.bundle is None
    assert isinstance(result.error, InputError)
    assert list((tmp_path / "bundles").iterdir()) == []


def test_a_run_on_files_that_a_data_module_named_is_exported_without_it(sample_data: Path, tmp_path: Path) -> None:
    run = fit(
        FakeDataModule(**rows_of(sample_data)),
        tmp_path / "run",
        architecture=make_architecture("nano", (32, 32), n_features=4, latent_vec_size=8),
        max_epochs=1,
        batch_size=8,
        accelerator="cpu",
        calibration="split",
        scoring="normalized",
        photometric="none",
    )
    (result,) = export_run(run, tmp_path / "bundles", ExportSettings(targets=(Target.TORCH,)))
    assert result.error is None
    assert result.bundle is not None
