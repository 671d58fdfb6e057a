"""`provenance.json`: an in-toto statement about a bundle's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.signed_bundles import make_key, sign_by_hand
from tests.tiny_bundles import dark_image, make_bundle
from vae_edge import Bundle, BundleError, Detector
from vae_edge.export.provenance import write_provenance
from vae_edge.signing.files import PROVENANCE_FILE
from vae_edge.signing.provenance import read_provenance

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(onnx_bundle: Bundle) -> Bundle:
    write_provenance(onnx_bundle.folder, onnx_bundle.manifest)
    return onnx_bundle


def test_it_is_a_statement_with_the_predicate_of_slsa(bundle: Bundle) -> None:
    content = json.loads((bundle.folder / PROVENANCE_FILE).read_text())
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["predicateType"] == "https://slsa.dev/provenance/v1"
    names = [each["name"] for each in content["subject"]]
    assert names == ["manifest.json", "model.onnx", "references.safetensors"]
    assert set(content["predicate"]) == {"buildDefinition", "runDetails"}
    uris = {each.get("uri") for each in content["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert f"pkg:pypi/numpy@{np.__version__}" in uris
    # What the packages need in turn, too.
    assert any(uri and uri.startswith("pkg:pypi/annotated-types@") for uri in uris)


def test_the_library_that_defines_the_formats_reads_it(bundle: Bundle) -> None:
    statement = pytest.importorskip("in_toto_attestation.v1.statement", reason="it comes with the extra [sign]")
    provenance = pytest.importorskip("in_toto_attestation.predicates.provenance.v1.provenance_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    text = (bundle.folder / PROVENANCE_FILE).read_text(encoding="utf-8")
    message = json_format.Parse(text, statement.spb.Statement())  # It takes no field that it does not know.
    statement.Statement.copy_from_pb(message).validate()
    predicate = json_format.ParseDict(json.loads(text)["predicate"], provenance.Provenance())
    assert predicate.run_details.builder.id == "https://vae-edge/vae-export"
    assert len(predicate.build_definition.resolved_dependencies) > 10


def test_the_code_has_a_hash_of_its_own(bundle: Bundle) -> None:
    found = read_provenance(bundle.folder)
    assert found is not None
    (code,) = [each for each in found.predicate.buildDefinition.resolvedDependencies if each.name == "vae-edge"]
    assert code.uri is not None
    assert code.uri.startswith("pkg:pypi/vae-edge@")
    assert code.digest is not None
    assert not [each for each in found.packages if each.startswith("vae-edge ")]


def test_a_bundle_that_was_built_from_another_names_it(bundle: Bundle, tmp_path: Path) -> None:
    built = make_bundle(tmp_path / "built")
    write_provenance(built.folder, built.manifest, bundle)
    found = read_provenance(built.folder)
    assert found is not None
    assert found.predicate.buildDefinition.buildType == "https://vae-edge/rebuild/v1"
    digests = {each.name: each.digest for each in found.predicate.buildDefinition.resolvedDependencies}
    assert bundle.seen is not None
    assert digests["manifest of toy-onnx-fp32"] == {"sha256": bundle.seen.manifest_sha256}


def test_inspect_shows_it_and_whether_it_is_about_these_files(command: Run, bundle: Bundle, tmp_path: Path) -> None:
    vendor = make_key(tmp_path / "keys")
    sign_by_hand(bundle.folder, vendor.key)
    _, out, _ = command("inspect", bundle.folder, "--trusted-key", vendor.public)
    shown = " ".join(out.split())
    assert "provenance.json, of these very files, signed: in-toto, https://slsa.dev/provenance/v1" in shown
    assert f"numpy {np.__version__}" in shown
    content = json.loads(command("inspect", bundle.folder, "--json")[1])
    assert content["provenance"] == json.loads((bundle.folder / PROVENANCE_FILE).read_text())
    (bundle.folder / "model.sig").unlink()
    with Detector.open(bundle.folder) as detector:
        detector.refit_thresholds([dark_image(seed) for seed in range(20)], 0.1)
    shown = " ".join(command("inspect", bundle.folder)[1].split())
    assert "provenance.json, not of manifest.json as it is now" in shown


def test_a_signature_covers_it(bundle: Bundle, tmp_path: Path) -> None:
    vendor = make_key(tmp_path / "keys")
    sign_by_hand(bundle.folder, vendor.key)
    path = bundle.folder / PROVENANCE_FILE
    path.write_text(path.read_text().replace("training images", "other images"))
    with pytest.raises(BundleError, match=r"provenance\.json was changed after the bundle was signed"):
        Bundle.open(bundle.folder, trusted_keys=vendor.public)


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, '{"_type": "https://in-toto.io/Statement/v0.1"}'])
def test_a_damaged_one_is_shown_as_that(command: Run, onnx_bundle: Bundle, content: str) -> None:
    (onnx_bundle.folder / PROVENANCE_FILE).write_text(content)
    code, out, _ = command("inspect", onnx_bundle.folder)
    assert code == 0
    assert "provenance.json cannot be read: " in " ".join(out.split())


def test_a_bundle_with_one_can_be_replaced(bundle: Bundle) -> None:
    make_bundle(bundle.folder)
    assert not (bundle.folder / PROVENANCE_FILE).exists()
