"""What `--layout model-api` leaves has the bundle's verdicts, in OpenVINO and, where it is installed, in Model API."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from tests.hostile_bundles import as_first_schema, hostile_bundle
from tests.tiny_bundles import SIZE, dark_image, make_bundle, move_threshold, spotted_image, write_image
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import BundleError, InputError, ParityError, UsageError
from vae_edge.export.model_api.folder import (
    ModelApiRecord,
    compare_verdicts,
    drawn_images,
    export_model_api,
    images_below,
    model_api_folder,
    open_model,
    read_model_api_record,
)
from vae_edge.export.model_api.graph import Scale, Scales, as_model_api
from vae_edge.image import Preparation
from vae_edge.manifest import NEVER_VERIFIED, Thresholds
from vae_edge.targets import Precision, Target

SIZES = (SIZE, 2 * SIZE, 50, 20, 97)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO)


@pytest.fixture
def exported(bundle: Bundle, tmp_path: Path) -> Path:
    folder = model_api_folder(tmp_path, bundle.manifest.name, Precision.FP32)
    export_model_api(bundle, folder)
    return folder


def pictures() -> list[NDArray[np.uint8]]:
    return [draw(seed, size) for seed, size in enumerate(SIZES) for draw in (dark_image, spotted_image)]


def with_thresholds(bundle: Bundle, image: float, pixel: float) -> Bundle:
    moved = move_threshold(bundle.manifest.thresholds, image)
    thresholds = moved.model_copy(update={"pixel_threshold": pixel})
    return bundle.with_manifest(bundle.manifest.model_copy(update={"thresholds": thresholds}))


def test_the_folder_says_what_it_is_and_where_it_comes_from(bundle: Bundle, exported: Path) -> None:
    assert exported.name == "toy-openvino-model-api-fp32"
    assert sorted(path.name for path in exported.iterdir()) == ["model.bin", "model.xml", "model_api.json"]
    record = read_model_api_record(exported)
    assert (record.name, record.bundle) == (exported.name, "toy-openvino-fp32")
    assert record.bundle_model_sha256 == bundle.model_sha256
    assert record.thresholds == bundle.manifest.thresholds
    assert record.provenance.run_fingerprint == bundle.manifest.provenance.run_fingerprint
    assert record.provenance.library_versions["openvino"]
    assert (record.check.label_differences, record.check.mask_differences) == (0, 0)
    assert record.check.images == "drawn pictures"


def test_the_record_says_that_its_bundle_was_not_verified(bundle: Bundle, tmp_path: Path) -> None:
    old = Bundle.open(hostile_bundle(bundle, tmp_path / "old", manifest=as_first_schema))
    record = export_model_api(old, tmp_path / "out")
    assert record.bundle_not_verified_because == NEVER_VERIFIED[1]
    assert export_model_api(bundle, tmp_path / "other").bundle_not_verified_because is None


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("thresholds", "image_threshold", 99.0, r"the image threshold is 99\.0; its own"),
        ("thresholds", "false_alarm_rate", 0.2, r"the false-alarm rate is 0\.2; its own"),
        ("thresholds", "calibration_scores", ["x"] * 99, "there is a str among them"),
        ("image_scale", "threshold", 99.0, "scales do not follow"),
        ("pixel_scale", "spread", 99.0, "scales do not follow"),
    ],
)
def test_a_record_that_does_not_fit_its_own_scores_is_refused(
    exported: Path, place: str, key: str, value: object, message: str
) -> None:
    content = json.loads((exported / "model_api.json").read_text(encoding="utf-8"))
    content[place][key] = value
    (exported / "model_api.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        read_model_api_record(exported)


def test_a_changed_byte_is_found(exported: Path) -> None:
    model = exported / "model.xml"
    model.write_text(model.read_text(encoding="utf-8").replace("pred_mask", "pred_mosk"), encoding="utf-8")
    with pytest.raises(BundleError, match=r"model\.xml was changed"):
        read_model_api_record(exported)


def test_two_exports_have_equal_models(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("first", "second"):
        export_model_api(bundle, tmp_path / name / "same")
    for file in ("model.xml", "model.bin"):
        assert (tmp_path / "first/same" / file).read_bytes() == (tmp_path / "second/same" / file).read_bytes()


def test_inputs_outputs_and_entries_are_those_that_model_api_looks_for(exported: Path) -> None:
    model = openvino.Core().read_model(exported / "model.xml")
    (image,) = model.inputs
    assert str(image.partial_shape) == "[1,?,?,3]"
    assert image.get_element_type() == openvino.Type.u8
    assert str(openvino.layout_helpers.get_layout(image)) == "[N,H,W,C]"
    found = {
        output.get_any_name(): (output.get_element_type().get_type_name(), list(output.shape))
        for output in model.outputs
    }
    assert found == {
        "pred_score": ("f32", [1]),
        "pred_label": ("boolean", [1]),
        "pred_mask": ("boolean", [1, SIZE, SIZE]),
        "anomaly_map": ("f32", [1, SIZE, SIZE]),
    }
    assert all(len(output.get_names()) == 1 for output in model.outputs)

    def entry(key: str) -> str:
        return str(model.get_rt_info(["model_info", key]).astype(str))

    assert entry("model_type") == "AnomalyDetection"
    assert entry("embedded_processing") == entry("reverse_input_channels") == "True"
    assert (entry("orig_height"), entry("orig_width")) == (str(SIZE), str(SIZE))
    assert entry("image_threshold") == entry("pixel_threshold") == "0.5"
    assert model.get_rt_info(["vae_edge", "precision"]).astype(str) == "fp32"


def test_verdicts_masks_and_scores_are_the_bundles_for_pictures_of_any_size(bundle: Bundle, exported: Path) -> None:
    run = open_model(exported / "model.xml")
    scales = Scales.of(bundle.manifest.thresholds)
    verdicts = []
    with Detector.open(bundle) as detector:
        for picture in pictures():
            prediction, found = detector.predict(picture), run(picture[:, :, ::-1])
            verdicts.append(prediction.is_anomalous)
            assert bool(found["pred_label"][0]) == prediction.is_anomalous
            assert (found["pred_mask"][0] == prediction.mask).all()
            assert (found["pred_score"][0] > 0.5) == (found["pred_score"][0] >= 0.5) == prediction.is_anomalous
            assert ((found["anomaly_map"][0] > 0.5) == prediction.mask).all()
            expected = scales.pixel.normalize(prediction.anomaly_map)
            np.testing.assert_allclose(found["anomaly_map"][0], expected, atol=1e-6)
    assert set(verdicts) == {True, False}


def test_blue_comes_first(bundle: Bundle, exported: Path) -> None:
    # The toy weighs all colours alike; with a red weight of 0 only blue and green count.
    model = openvino.Core().read_model(bundle.model_path)
    (kernel,) = (op for op in model.get_ordered_ops() if op.get_type_name() == "Constant" and op.data.ndim == 4)
    without_red = kernel.data.copy()
    without_red[:, 0] = 0
    for reader in kernel.output(0).get_target_inputs():
        reader.replace_source_output(openvino.opset13.constant(without_red).output(0))
    graph = as_model_api(model, bundle.manifest.preparation, Scales.of(bundle.manifest.thresholds), {})
    compiled = openvino.Core().compile_model(graph, "CPU")
    scores = []
    for channel in range(3):
        picture = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
        picture[..., channel] = 255
        scores.append(float(compiled(picture)["pred_score"][0]))
    assert scores[0] == scores[1] > scores[2]


def decide(scale: Scale, values: list[float]) -> tuple[list[bool], list[float]]:
    """Run the decision alone on scores."""
    from vae_edge.export.model_api.graph import _decide

    parameter = openvino.opset13.parameter([-1], openvino.Type.f32)
    label, normalized = _decide(parameter, scale)
    model = openvino.Model([openvino.opset13.result(label), openvino.opset13.result(normalized)], [parameter], "decide")
    found = openvino.Core().compile_model(model, "CPU")(np.array(values, dtype=np.float32))
    return [bool(value) for value in found[0]], [float(value) for value in found[1]]


def thresholds(image: float, pixel: float = 1.0, scores: tuple[float, ...] = (0.0, 1.0, 2.0)) -> Thresholds:
    return Thresholds(
        false_alarm_rate_requested=0.1,
        false_alarm_rate=0.25,
        image_threshold=image,
        pixel_threshold=pixel,
        pixel_false_positive_rate=0.001,
        n_normals=len(scores),
        calibration_scores=scores,
        scored_by="a test",
    )


@pytest.mark.parametrize("threshold", [0.1, 1 / 3, 2.0, -1.163, 0.0, 1e-12, 123456.789])
def test_scores_beside_the_threshold_get_the_detectors_verdict(threshold: float) -> None:
    nearest = np.float32(threshold)
    values = [nearest, np.nextafter(nearest, np.float32(np.inf)), np.nextafter(nearest, np.float32(-np.inf))]
    values += [nearest + np.float32(1), nearest - np.float32(1)]
    scores = [float(value) for value in values]
    labels, normalized = decide(Scales.of(thresholds(threshold)).image, scores)
    # Detector: a float32 score, as a Python float, against the 64-bit threshold.
    assert labels == [score > threshold for score in scores]
    assert [value > 0.5 for value in normalized] == [value >= 0.5 for value in normalized] == labels


def test_the_scale_keeps_the_order_and_ends_at_0_and_1() -> None:
    scale = Scales.of(thresholds(2.0)).image
    assert (scale.threshold, scale.spread) == (2.0, 1.0)
    values = np.concatenate([np.linspace(-50, 50, 4001), [3.0, 1.0]]).astype(np.float32)
    _, normalized = decide(scale, [float(value) for value in values])
    ordered = np.array(normalized)[np.argsort(values, kind="stable")]
    assert (np.diff(ordered) >= 0).all()
    assert normalized[-2:] == [0.75, 0.25]
    assert 0 <= min(normalized) <= max(normalized) <= 1
    np.testing.assert_allclose(normalized, scale.normalize(values), atol=1e-6)


def test_what_is_no_number_is_anomalous() -> None:
    labels, normalized = decide(Scale(1.0, 1.0), [float("nan"), float("inf"), float("-inf")])
    assert labels == [True, True, True]
    assert normalized == [1.0, 1.0, 1.0]


def test_a_threshold_at_the_median_or_below_has_a_scale_too() -> None:
    for scores in ((2.0, 2.0, 2.0), (3.0, 4.0, 5.0)):
        scale = Scales.of(thresholds(2.0, scores=scores)).image
        assert scale.spread > 0
        labels, normalized = decide(scale, [2.0, 2.5])
        assert labels == [False, True]
        assert normalized[0] < 0.5 < normalized[1]


def test_a_threshold_beyond_32_bits_is_refused() -> None:
    with pytest.raises(InputError, match="32 bits"):
        Scales.of(thresholds(1e300))


def test_the_bundles_own_thresholds_are_used_after_a_refit(bundle: Bundle, tmp_path: Path) -> None:
    score = Detector.open(bundle).predict(spotted_image(0)).score
    for threshold, expected in ((score, False), (float(np.nextafter(np.float32(score), np.float32(0))), True)):
        bundle = with_thresholds(bundle, threshold, bundle.manifest.thresholds.pixel_threshold)
        export_model_api(bundle, tmp_path / "out", [spotted_image(0)])
        found = open_model(tmp_path / "out" / "model.xml")(spotted_image(0)[:, :, ::-1])
        assert bool(found["pred_label"][0]) is expected


def test_another_verdict_ends_the_export_and_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Scales.of(thresholds(1e6, pixel=1e6))
    monkeypatch.setattr(Scales, "of", lambda _: wrong)
    with pytest.raises(ParityError, match=r"a different verdict from that of toy-openvino-fp32 \(picture 1"):
        export_model_api(bundle, tmp_path / "out", [dark_image(0), spotted_image(1)])
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_another_score_ends_the_export(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scale, "normalize", lambda _, values: np.zeros_like(values, dtype=np.float64))
    with pytest.raises(ParityError, match="the score differs from that of toy-openvino-fp32"):
        export_model_api(bundle, tmp_path / "out", [dark_image(0)])


def test_a_bundle_for_another_target_is_refused_in_one_sentence(onnx_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a bundle for target onnx; the layout model-api needs one for openvino"):
        export_model_api(onnx_bundle, tmp_path / "out")


def test_a_name_that_is_taken_by_something_else_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already exists"):
        export_model_api(bundle, bundle.folder)
    assert Bundle.open(bundle.folder).manifest == bundle.manifest


def test_an_older_export_is_replaced(bundle: Bundle, exported: Path) -> None:
    before = json.loads((exported / "model_api.json").read_text(encoding="utf-8"))
    record = export_model_api(bundle, exported, [dark_image(3)], description="one picture")
    assert before["check"]["images"] == "drawn pictures"
    assert read_model_api_record(exported) == record
    assert record.check.n_images == 1


def test_somebody_elses_file_in_an_older_export_is_not_lost(bundle: Bundle, exported: Path) -> None:
    (exported / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt, which vae-edge did not write"):
        export_model_api(bundle, exported, [dark_image(3)])
    assert (exported / "notes.txt").read_text() == "mine"


def test_files_are_compared_as_well_and_named(bundle: Bundle, exported: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "parts" / "a" / "good.png", dark_image(0, 50))
    write_image(tmp_path / "parts" / "bad.jpg", spotted_image(1, 70))
    (tmp_path / "parts" / "notes.txt").write_text("no image")
    files = images_below(tmp_path / "parts")
    assert [path.name for path in files] == ["good.png", "bad.jpg"]
    wrong = Scales.of(thresholds(1e6))
    check = compare_verdicts(bundle, exported / "model.xml", files, wrong, description="parts")
    assert (check.n_images, check.n_anomalous, check.label_differences) == (2, 1, 0)
    with pytest.raises(InputError, match="no image in"):
        images_below(exported)


def test_drawn_pictures_shrink_grow_and_stay() -> None:
    shapes = [image.shape for image in drawn_images(Preparation(height=64, width=48)) if isinstance(image, np.ndarray)]
    assert (64, 48, 3) in shapes
    assert any(height > 64 and width < 48 for height, width, _ in shapes)
    assert any(height < 64 and width < 48 for height, width, _ in shapes)
    assert len({shape[:2] for shape in shapes}) == len(shapes)


def test_model_api_itself_gives_the_detectors_verdicts(bundle: Bundle, exported: Path) -> None:
    pytest.importorskip("model_api", reason="openvino-model-api 0.4.6 needs OpenCV 4; install it apart to run this")
    from model_api.models import AnomalyDetection, Model

    opened = Model.create_model(str(exported / "model.xml"))
    assert isinstance(opened, AnomalyDetection)
    with Detector.open(bundle) as detector:
        for picture in pictures():
            prediction, result = detector.predict(picture), opened(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            assert result.pred_label == str(prediction.is_anomalous)
            assert (result.pred_score > 0.5) == prediction.is_anomalous
            assert result.anomaly_map.shape == result.pred_mask.shape == picture.shape[:2]
            if picture.shape[:2] == (SIZE, SIZE):
                assert (result.pred_mask == prediction.mask).all()
                assert ((result.anomaly_map > 127) == prediction.mask).all()


def test_the_record_is_one_that_can_be_read_back(exported: Path) -> None:
    text = (exported / "model_api.json").read_text(encoding="utf-8")
    assert ModelApiRecord.model_validate_json(text).model_dump_json(indent=2) + "\n" == text
