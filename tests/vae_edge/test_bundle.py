from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile_bundles import (
    as_first_schema,
    as_second_schema,
    change_manifest,
    hostile_bundle,
    read_content,
    with_digest,
)
from tests.record_differences import differences
from tests.tiny_bundles import dark_image, make_bundle, make_manifest
from vae_edge.bundle import Bundle, bundles_in, new_bundle
from vae_edge.decision import PixelTail, check_thresholds, fit_f1_thresholds_with_tail, fit_thresholds_with_tail
from vae_edge.detector import Detector
from vae_edge.errors import BundleError, InputError, UsageError
from vae_edge.manifest import MANIFEST_FILE, NEVER_VERIFIED, SCHEMA_VERSION, ThresholdMethod, Thresholds
from vae_edge.manifest_file import manifest_text, read_manifest
from vae_edge.targets import Target


def rewrite(bundle: Bundle, **changes: Any) -> None:
    path = bundle.folder / MANIFEST_FILE
    path.write_text(json.dumps(with_digest({**json.loads(path.read_text()), **changes})))


def test_a_bundle_comes_back_as_it_was_written(onnx_bundle: Bundle) -> None:
    again = Bundle.open(onnx_bundle.folder)
    assert again.manifest == onnx_bundle.manifest
    assert again.model_path == onnx_bundle.folder / "model.onnx"
    files = ("model.onnx", "references.safetensors")
    assert again.size_bytes == sum((again.folder / name).stat().st_size for name in files)


def test_one_changed_byte_is_found_before_the_model_is_loaded(onnx_bundle: Bundle) -> None:
    content = bytearray(onnx_bundle.model_path.read_bytes())
    content[len(content) // 2] ^= 1
    onnx_bundle.model_path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        Detector.open(onnx_bundle.folder)
    assert Bundle.open(onnx_bundle.folder, check_files=False).manifest == onnx_bundle.manifest


def test_a_cut_off_file_is_named_with_both_sizes(onnx_bundle: Bundle) -> None:
    content = onnx_bundle.model_path.read_bytes()
    onnx_bundle.model_path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{len(content) - 1} bytes, but the manifest lists {len(content)}"):
        Bundle.open(onnx_bundle.folder)


def test_a_missing_file_is_named(onnx_bundle: Bundle) -> None:
    onnx_bundle.model_path.unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        Bundle.open(onnx_bundle.folder)


def test_a_newer_schema_asks_for_an_upgrade(onnx_bundle: Bundle) -> None:
    rewrite(onnx_bundle, schema_version=SCHEMA_VERSION + 1, something_new=True)
    with pytest.raises(BundleError, match="pip install --upgrade vae-edge"):
        Bundle.open(onnx_bundle.folder)


@pytest.mark.parametrize("version", ["1", None, 0, -1, 1.5, 1.0, 2.0, True, [2], "absent"])
def test_a_schema_version_that_is_none_is_damage(onnx_bundle: Bundle, version: object) -> None:
    rewrite(onnx_bundle, schema_version=version)
    if version == "absent":
        change_manifest(onnx_bundle.folder, lambda content: content.pop("schema_version"))
    with pytest.raises(BundleError):
        Bundle.open(onnx_bundle.folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version": 1}'])
def test_a_damaged_manifest_is_a_bundle_error(onnx_bundle: Bundle, content: bytes) -> None:
    (onnx_bundle.folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(onnx_bundle.folder)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "", ".hidden", "model.onnx\n"])
def test_a_manifest_cannot_point_outside_its_folder(onnx_bundle: Bundle, name: str) -> None:
    rewrite(onnx_bundle, model_file=name)
    with pytest.raises(BundleError, match="model_file"):
        Bundle.open(onnx_bundle.folder)


def test_a_model_file_of_another_name_than_the_targets_is_refused(onnx_bundle: Bundle) -> None:
    rewrite(onnx_bundle, model_file="other.onnx")
    with pytest.raises(BundleError, match=r"is 'other\.onnx'; expected 'model\.onnx'"):
        Bundle.open(onnx_bundle.folder)


def test_a_model_file_whose_hash_is_not_in_the_manifest_is_refused(onnx_bundle: Bundle) -> None:
    rewrite(onnx_bundle, files=[])
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Bundle.open(onnx_bundle.folder)


def test_calibration_scores_out_of_order_are_damage(onnx_bundle: Bundle) -> None:
    thresholds = onnx_bundle.manifest.thresholds.model_dump(mode="json")
    rewrite(onnx_bundle, thresholds={**thresholds, "calibration_scores": thresholds["calibration_scores"][::-1]})
    with pytest.raises(BundleError, match="ascending"):
        Bundle.open(onnx_bundle.folder)


def test_calibration_scores_must_be_as_many_as_the_normals(onnx_bundle: Bundle) -> None:
    thresholds = onnx_bundle.manifest.thresholds.model_dump(mode="json")
    rewrite(onnx_bundle, thresholds={**thresholds, "n_normals": 98})
    with pytest.raises(BundleError, match="98"):
        Bundle.open(onnx_bundle.folder)


def test_a_folder_that_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(BundleError, match=r"model\.onnx is .*not a bundle.*; pass a folder made by vae-export"):
        Bundle.open(tmp_path / "model.onnx")


def test_a_changed_manifest_replaces_the_old_one_and_nothing_else(onnx_bundle: Bundle) -> None:
    model = onnx_bundle.model_path.read_bytes()
    changed = onnx_bundle.with_manifest(onnx_bundle.manifest.model_copy(update={"name": "other"}))
    assert Bundle.open(onnx_bundle.folder).manifest.name == changed.manifest.name == "other"
    assert onnx_bundle.model_path.read_bytes() == model
    assert sorted(path.name for path in onnx_bundle.folder.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "references.safetensors",
    ]


def test_a_full_disk_never_leaves_a_half_written_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left"):
        make_bundle(tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_publishing_without_a_manifest_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), new_bundle(tmp_path / "toy"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_bundles_are_found_in_a_folder_and_leftovers_are_not(onnx_bundle: Bundle) -> None:
    folder = onnx_bundle.folder.parent
    (folder / ".half.tmp").mkdir()
    (folder / ".half.tmp" / MANIFEST_FILE).write_text("{}")
    (folder / "other").mkdir()
    assert bundles_in(folder) == [onnx_bundle.folder]
    assert bundles_in(onnx_bundle.folder) == [onnx_bundle.folder]
    with pytest.raises(InputError, match="contains none"):
        bundles_in(folder / "other")


def test_the_digest_is_that_of_the_rule_whatever_writes_the_file(onnx_bundle: Bundle) -> None:
    path = onnx_bundle.folder / MANIFEST_FILE
    content = read_content(onnx_bundle.folder)
    assert content["schema_version"] == 3
    assert content == with_digest(content)
    content["scoring"] = "größer, 大きい"
    for ascii_only in (True, False):
        text = json.dumps(dict(reversed(with_digest(content).items())), indent=3, ensure_ascii=ascii_only)
        path.write_text(text.replace("\n", "\r\n"), encoding="utf-8", newline="")
        assert Bundle.open(onnx_bundle.folder).manifest.scoring == "größer, 大きい"


def test_a_changed_manifest_is_refused_by_its_digest(onnx_bundle: Bundle) -> None:
    path = onnx_bundle.folder / MANIFEST_FILE
    path.write_text(path.read_text().replace("NumPy", "numPy"))
    with pytest.raises(BundleError, match=r"was changed: its digest does not match"):
        Bundle.open(onnx_bundle.folder)


def test_a_manifest_without_its_digest_is_refused(onnx_bundle: Bundle, tmp_path: Path) -> None:
    out = hostile_bundle(onnx_bundle, tmp_path / "out", manifest=lambda content: content.pop("digest"))
    with pytest.raises(BundleError, match="its digest does not match"):
        Bundle.open(out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 2, "schema_version": 1}', "'schema_version' occurs twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1' + "0" * 5000 + "}", "5001 digits"),
        ('{"a": ' + "[" * 200_000, "cannot be read"),
    ],
)
def test_json_that_others_read_differently_is_refused(onnx_bundle: Bundle, text: str, message: str) -> None:
    (onnx_bundle.folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(BundleError, match=message):
        Bundle.open(onnx_bundle.folder)


def test_a_text_that_is_not_unicode_is_refused(onnx_bundle: Bundle, tmp_path: Path) -> None:
    out = hostile_bundle(onnx_bundle, tmp_path / "out", manifest=lambda content: content.update(scoring="\ud800"))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(out)


def test_a_bundle_of_the_first_schema_opens_with_a_warning_and_is_not_verified(
    onnx_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = hostile_bundle(onnx_bundle, tmp_path / "out", manifest=as_first_schema)
    manifest = Bundle.open(out).manifest
    assert read_content(out)["verified"]
    assert not manifest.verified
    assert manifest.not_verified_because == NEVER_VERIFIED[1]
    assert f"{out} is not verified: {NEVER_VERIFIED[1]}" in caplog.text


def test_a_manifest_that_version_0_1_wrote_still_opens_with_all_that_it_says(tmp_path: Path) -> None:
    written = Path(__file__).with_name("manifest_0_1.json").read_text(encoding="utf-8")
    (tmp_path / MANIFEST_FILE).write_text(written, encoding="utf-8")
    manifest, content = read_manifest(tmp_path), json.loads(written)
    assert (manifest.target, manifest.precision, manifest.thresholds.n_normals) == ("onnx", "int8", 100)
    assert (content["schema_version"], content["verified"], manifest.verified) == (1, True, False)
    assert differences(content, json.loads(manifest_text(manifest))) == ["verified", "not_verified_because"]


def test_a_refit_does_not_verify_a_bundle_of_the_first_schema(onnx_bundle: Bundle, tmp_path: Path) -> None:
    out = hostile_bundle(onnx_bundle, tmp_path / "out", manifest=as_first_schema)
    with Detector.open(out) as detector:
        refit = detector.refit_thresholds([dark_image(seed) for seed in range(9)])
    assert not refit.bundle.manifest.verified
    again = Bundle.open(out).manifest
    assert again == refit.bundle.manifest
    assert (again.schema_version, again.thresholds.n_normals) == (1, 9)


@pytest.mark.parametrize("version", ["0.2.0", "0.2.0.dev1", "0.10.0", "1.0.0", "00.1.0", "", "x", "0.1\n.0", "0.1x"])
def test_a_bundle_that_was_stripped_down_to_the_first_schema_is_refused(
    onnx_bundle: Bundle, tmp_path: Path, version: str
) -> None:
    def strip(content: dict[str, Any]) -> None:
        as_first_schema(content)
        content["provenance"]["vae_edge_version"] = version

    with pytest.raises(BundleError, match=r"was changed: it has schema 1 but was written by vae-edge .* with a later"):
        Bundle.open(hostile_bundle(onnx_bundle, tmp_path / "out", manifest=strip))


def test_the_first_schema_with_a_digest_is_refused(onnx_bundle: Bundle, tmp_path: Path) -> None:
    def strip(content: dict[str, Any]) -> None:
        as_second_schema(content)
        content["schema_version"] = 1
        content["provenance"]["vae_edge_version"] = "0.1.0"

    with pytest.raises(BundleError, match="was changed: it has schema 1"):
        Bundle.open(hostile_bundle(onnx_bundle, tmp_path / "out", manifest=strip))


def in_thresholds(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["thresholds"].update(values)


def shifted(content: dict[str, Any]) -> None:
    """Move one score that decides."""
    scores = content["thresholds"]["calibration_scores"]
    scores[-1] += 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_thresholds(image_threshold=99.0), "the image threshold is 99.0; its own scores and rate give 0.2"),
        (in_thresholds(image_threshold=0.0), "the image threshold is 0.0"),
        (shifted, "its own scores and rate give"),
        (in_thresholds(false_alarm_rate=0.02), r"the false-alarm rate is 0\.02; its own scores .* give 0\.01"),
        (in_thresholds(false_alarm_rate=0.010000000000000002), "the false-alarm rate is"),
        (in_thresholds(false_alarm_rate_requested=0.05), "the image threshold is"),
        (in_thresholds(false_alarm_rate_requested=0.0101), "the false-alarm rate is"),
        (in_thresholds(false_alarm_rate_requested=0.999999, false_alarm_rate=0.999999), "expected 1e-06 to 0.5"),
        (in_thresholds(false_alarm_rate_requested=1e-300), "is 1e-300; expected 1e-06 to 0.5"),
        (in_thresholds(pixel_false_positive_rate=1e-300), "the pixel false-positive rate is 1e-300"),
        (in_thresholds(pixel_false_positive_rate=0.9), "the pixel false-positive rate is 0.9"),
        (in_thresholds(pixel_threshold=1e39), "exceeds float32"),
        (in_thresholds(pixel_threshold=-1e39), "exceeds float32"),
        (in_thresholds(method="f1-optimal", image_threshold=0.05), "is not one of its own normals' scores"),
        (in_thresholds(method="f1-optimal", false_alarm_rate_requested=0.02), "the false-alarm rate is"),
        (in_thresholds(calibration_scores=["x"] * 99), "there is a str among them; expected numbers"),
        (in_thresholds(calibration_scores=["0.1"] * 99), "there is a str among them; expected numbers"),
        (in_thresholds(calibration_scores=[True] * 99), "there is a bool among them; expected numbers"),
        (in_thresholds(calibration_scores=[[]] * 99), "there is a list among them; expected numbers"),
        (in_thresholds(calibration_scores=[], n_normals=0), "n_normals"),
        (in_thresholds(calibration_scores={}), "calibration_scores"),
        (
            in_thresholds(calibration_scores=[0] * 260_000, n_normals=260_000),
            "there are 260000; expected at most 250000",
        ),
        (lambda content: content.update(outputs=[]), "the outputs are not anomaly_map float32"),
        (lambda content: content["outputs"].reverse(), "the outputs are not anomaly_map float32"),
        (lambda content: content["inputs"][0].update(shape=[None] * 4), r"not image uint8 \[N, 32, 32, 3\]"),
        (lambda content: content["preparation"].update(height=64), "the inputs are not image uint8"),
        (
            lambda content: content["provenance"].update(library_versions=dict.fromkeys(map(str, range(60_000)), "1")),
            "values; expected at most",
        ),
        (
            lambda content: content["files"].extend(content["files"] * 20),
            r"(21|42) files are listed; expected at most 16",
        ),
        (lambda content: content["files"].extend(content["files"]), "listed twice"),
        (
            lambda content: content["files"].extend(
                {"name": name, "size_bytes": 2**31, "sha256": "0" * 64} for name in ("a", "b", "c")
            ),
            "bytes together; expected at most 4294967296",
        ),
    ],
)
def test_what_follows_from_the_rest_is_checked_behind_the_digest(
    onnx_bundle: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(hostile_bundle(onnx_bundle, tmp_path / "second", manifest=change))

    def of_the_first_schema(content: dict[str, Any]) -> None:
        as_first_schema(content)
        change(content)

    with pytest.raises(BundleError, match=message):
        Bundle.open(hostile_bundle(onnx_bundle, tmp_path / "first", manifest=of_the_first_schema))


@pytest.mark.parametrize("n_normals", [1, 2, 20, 99, 100, 250, 4000])
@pytest.mark.parametrize("rate", [1e-6, 0.001, 0.01, 1 / 3, 0.3, 0.5])
@pytest.mark.parametrize("kind", ["spread", "tied", "float32"])
def test_thresholds_of_every_method_pass_the_check_of_their_own_scores(n_normals: int, rate: float, kind: str) -> None:
    rng = np.random.default_rng(n_normals)
    scores = rng.normal(size=n_normals) if kind != "tied" else rng.integers(0, 3, n_normals).astype(float)
    scores = scores.astype(np.float32) if kind == "float32" else scores
    defects = rng.normal(1.0, size=50)
    tail = PixelTail(100)
    tail.add(rng.normal(size=100).astype(np.float32))
    for method in (ThresholdMethod.SPLIT_CONFORMAL, ThresholdMethod.CROSS_CONFORMAL):
        fitted = fit_thresholds_with_tail(scores, tail, false_alarm_rate=rate, scored_by="a test", method=method)
        check_thresholds(Thresholds.model_validate_json(fitted.model_dump_json()))
    if (defects > scores.min()).any():
        by_f1 = fit_f1_thresholds_with_tail(scores, tail, defects, scored_by="a test")
        check_thresholds(Thresholds.model_validate_json(by_f1.model_dump_json()))


@pytest.mark.parametrize("rate", [1e-7, 0.6])
def test_no_thresholds_are_fitted_that_a_bundle_could_not_be_opened_with(rate: float) -> None:
    tail = PixelTail(4)
    tail.add(np.zeros(4, np.float32))
    with pytest.raises(UsageError, match=r"expected 1e-06 to 0\.5"):
        fit_thresholds_with_tail([1.0], tail, false_alarm_rate=rate, scored_by="a test")
    with pytest.raises(InputError, match="there are 250001 normals"):
        fit_thresholds_with_tail(np.zeros(250_001), tail, false_alarm_rate=0.01, scored_by="a test")


def content_of(path: Path) -> Any:
    """Return what a file says; None where it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


@pytest.mark.parametrize("seed", range(2))
def test_no_single_bit_of_a_manifest_can_be_flipped(tmp_path: Path, seed: int) -> None:
    """Some of all bits are drawn; all 16,160 of this one were tried once: 5 leave what the file says."""
    pytest.importorskip("onnx")
    bundle = make_bundle(tmp_path / "toy", n_normals=5)
    path = bundle.folder / MANIFEST_FILE
    whole = path.read_bytes()
    flips = [(place, bit) for place in range(len(whole)) for bit in range(8)]
    n_equal = 0
    for place, bit in random.Random(seed).sample(flips, len(flips) // 16):
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            manifest = read_manifest(bundle.folder)
        except BundleError:
            continue
        n_equal += 1
        # A space that became another, or an e that became E: the file says what it said.
        assert content_of(path) == json.loads(whole)
        assert manifest == bundle.manifest
    assert n_equal < 100


def test_the_manifest_keeps_every_bit_of_the_scores(tmp_path: Path) -> None:
    files = [tmp_path / "model.onnx", tmp_path / "references.safetensors"]
    for path in files:
        path.write_bytes(b"x")
    manifest = make_manifest(Target.ONNX, files, n_normals=7)
    again = type(manifest).model_validate_json(manifest_text(manifest))
    assert again.model_copy(update={"digest": None}) == manifest
