from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_bundles import as_first_schema, hostile_bundle, read_content, with_digest
from tests.tiny_bundles import dark_image, make_bundle, make_manifest
from vae_edge.bundle import Bundle, bundles_in, manifest_text, new_bundle
from vae_edge.detector import Detector
from vae_edge.errors import BundleError, InputError
from vae_edge.manifest import MANIFEST_FILE, NO_DIGEST, SCHEMA_VERSION
from vae_edge.targets import Target


def rewrite(bundle: Bundle, **changes: Any) -> None:
    path = bundle.folder / MANIFEST_FILE
    path.write_text(json.dumps(with_digest({**json.loads(path.read_text()), **changes})))


def test_a_bundle_comes_back_as_it_was_written(onnx_bundle: Bundle) -> None:
    again = Bundle.open(onnx_bundle.folder)
    assert again.manifest == onnx_bundle.manifest
    assert again.model_path == onnx_bundle.folder / "model.onnx"
    assert again.size_bytes == again.model_path.stat().st_size


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
    with pytest.raises(BundleError, match=f"{len(content) - 1} bytes, the manifest says {len(content)}"):
        Bundle.open(onnx_bundle.folder)


def test_a_missing_file_is_named(onnx_bundle: Bundle) -> None:
    onnx_bundle.model_path.unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        Bundle.open(onnx_bundle.folder)


def test_a_newer_schema_asks_for_an_upgrade(onnx_bundle: Bundle) -> None:
    rewrite(onnx_bundle, schema_version=SCHEMA_VERSION + 1, something_new=True)
    with pytest.raises(BundleError, match="pip install --upgrade vae-edge"):
        Bundle.open(onnx_bundle.folder)


@pytest.mark.parametrize("version", ["1", None, 0, -1, 1.5])
def test_a_schema_version_that_is_none_is_damage(onnx_bundle: Bundle, version: object) -> None:
    rewrite(onnx_bundle, schema_version=version)
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


def test_a_changed_manifest_replaces_the_old_one_and_nothing_else(onnx_bundle: Bundle) -> None:
    model = onnx_bundle.model_path.read_bytes()
    changed = onnx_bundle.with_manifest(onnx_bundle.manifest.model_copy(update={"name": "other"}))
    assert Bundle.open(onnx_bundle.folder).manifest.name == changed.manifest.name == "other"
    assert onnx_bundle.model_path.read_bytes() == model
    assert sorted(path.name for path in onnx_bundle.folder.iterdir()) == ["manifest.json", "model.onnx"]


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
    with pytest.raises(InputError, match="holds none"):
        bundles_in(folder / "other")


def test_the_digest_is_that_of_the_rule_whatever_writes_the_file(onnx_bundle: Bundle) -> None:
    path = onnx_bundle.folder / MANIFEST_FILE
    content = read_content(onnx_bundle.folder)
    assert content["schema_version"] == 2
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
        ('{"schema_version": 2, "schema_version": 1}', "'schema_version' is there twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
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
    assert manifest.not_verified_because == NO_DIGEST
    assert f"{out} is not verified: {NO_DIGEST}" in caplog.text


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

    with pytest.raises(BundleError, match=r"was changed: it has schema 1 and was written by vae-edge .* with a later"):
        Bundle.open(hostile_bundle(onnx_bundle, tmp_path / "out", manifest=strip))


def test_the_first_schema_with_a_digest_is_refused(onnx_bundle: Bundle, tmp_path: Path) -> None:
    def strip(content: dict[str, Any]) -> None:
        content["schema_version"] = 1
        content["provenance"]["vae_edge_version"] = "0.1.0"

    with pytest.raises(BundleError, match="was changed: it has schema 1"):
        Bundle.open(hostile_bundle(onnx_bundle, tmp_path / "out", manifest=strip))


def test_the_manifest_keeps_every_bit_of_the_scores(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    manifest = make_manifest(Target.ONNX, [tmp_path / "model.onnx"], n_normals=7)
    again = type(manifest).model_validate_json(manifest_text(manifest))
    assert again.model_copy(update={"digest": None}) == manifest
