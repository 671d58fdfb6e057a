"""Re-fits of a signed bundle: a separate record, signed here, which leaves the maker's signature valid."""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="it is in the extra [verify]")

from tests.signed_bundles import KeyPair, sign_by_hand
from tests.tiny_bundles import dark_image, make_bundle, write_image
from vae_edge import Bundle, BundleError, Detector, InputError
from vae_edge.errors import MissingDependencyError
from vae_edge.signing.device_key import KEY_FILE, PUBLIC_KEY_FILE
from vae_edge.signing.policy import config_folder

Run = Callable[..., tuple[int, str, str]]
NORMALS = [dark_image(seed) for seed in range(1000, 1030)]


def configuration() -> Path:
    folder = config_folder()
    assert folder is not None
    return folder


def refit(folder: Path, vendor: KeyPair | None, n: int = 30, rate: float = 0.1) -> Bundle:
    with Detector.open(folder, trusted_keys=None if vendor is None else vendor.public, hint="latency") as detector:
        return detector.refit_thresholds(NORMALS[:n], rate).bundle


def as_another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    other = tmp_path / "other-user"
    other.mkdir(mode=0o700)
    monkeypatch.setenv("VAE_EDGE_CONFIG", str(other))
    return other


def refusal(folder: Path, vendor: KeyPair) -> str:
    with pytest.raises(BundleError) as told:
        Bundle.open(folder, trusted_keys=vendor.public)
    return str(told.value)


def test_a_refit_leaves_the_makers_files_alone_and_is_in_force(signed: Path, vendor: KeyPair) -> None:
    before = {path.name: path.read_bytes() for path in signed.iterdir()}
    fitted = refit(signed, vendor)
    assert {path.name: path.read_bytes() for path in signed.iterdir() if path.name != "local.json"} == before
    opened = Bundle.open(signed, trusted_keys=vendor.public)
    assert opened.manifest == fitted.manifest
    assert opened.manifest.thresholds.n_normals == 30
    assert opened.manifest.gate is not None
    assert opened.signature is not None
    assert opened.local is not None
    assert opened.local.record.number == 1
    assert Bundle.open(signed).manifest == fitted.manifest  # Also where nobody asks who signed.
    assert refit(signed, vendor, 20).manifest.thresholds.n_normals == 20
    with Detector.open(signed, trusted_keys=vendor.public) as detector:
        assert detector.thresholds.n_normals == 20
        assert detector.bundle.local is not None
        assert detector.bundle.local.record.number == 2


def test_a_refit_where_nobody_checks_signatures_goes_beside_the_manifest_too(signed: Path, vendor: KeyPair) -> None:
    refit(signed, None)
    assert Bundle.open(signed, trusted_keys=vendor.public).manifest.thresholds.n_normals == 30


def test_an_unsigned_bundle_is_written_as_ever(onnx_bundle: Bundle) -> None:
    refit(onnx_bundle.folder, None)
    assert not (onnx_bundle.folder / "local.json").exists()
    assert list(configuration().iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="this system has no such modes")
def test_the_key_is_for_its_user_alone(signed: Path, vendor: KeyPair) -> None:
    refit(signed, vendor)
    key = configuration() / KEY_FILE
    assert key.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in configuration().iterdir()) == [KEY_FILE, PUBLIC_KEY_FILE, "refits"]
    key.chmod(0o644)
    with pytest.raises(InputError, match=r"other users can read the key for re-fits .* run: chmod 600"):
        Bundle.open(signed, trusted_keys=vendor.public)


def test_a_refit_without_permission_is_refused(
    signed: Path, vendor: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refit(signed, vendor)
    other = as_another_user(monkeypatch, tmp_path)
    assert "were fitted without permission: they are signed by the key" in refusal(signed, vendor)
    refit_of_other = shutil.copytree(signed, tmp_path / "copy")
    (refit_of_other / "local.json").unlink()
    refit(refit_of_other, vendor)  # That user's own key.
    assert (other / KEY_FILE).is_file()
    assert "without permission" in refusal(signed, vendor)
    (signed / "local.json").unlink()
    assert Bundle.open(signed, trusted_keys=vendor.public).manifest.thresholds.n_normals == 99


def test_the_policy_may_accept_the_refits_of_others(
    signed: Path, vendor: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refit(signed, vendor)
    technician = configuration() / PUBLIC_KEY_FILE
    other = as_another_user(monkeypatch, tmp_path)
    shutil.copy(technician, other / "technician.pem")
    shutil.copy(vendor.public, other / "vendor.pem")
    policy = {"schema_version": 1, "trusted_keys": ["vendor.pem"], "trusted_refit_keys": ["technician.pem"]}
    (other / "signing.json").write_text(json.dumps(policy))
    assert Bundle.open(signed).manifest.thresholds.n_normals == 30
    (other / "signing.json").write_text(json.dumps({**policy, "trusted_refit_keys": []}))
    with pytest.raises(BundleError, match="without permission"):
        Bundle.open(signed)


def test_the_makers_key_does_not_fit_thresholds(signed: Path, vendor: KeyPair, tmp_path: Path) -> None:
    shutil.copy(vendor.private, configuration() / KEY_FILE)
    (configuration() / KEY_FILE).chmod(0o600)
    refit(signed, vendor)
    (configuration() / KEY_FILE).unlink()
    assert "without permission" in refusal(signed, vendor)


def payload_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))
    return content


def with_payload(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a local record says, and leave its signature."""
    content, payload = json.loads(path.read_text()), payload_of(path)
    change(payload)
    content["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    path.write_text(json.dumps(content))


def test_a_refit_that_was_changed_is_refused(signed: Path, vendor: KeyPair) -> None:
    refit(signed, vendor)
    with_payload(signed / "local.json", lambda p: p["predicate"]["thresholds"].update(pixel_threshold=0.9))
    assert "local.json was changed after it was signed" in refusal(signed, vendor)


def test_no_changed_byte_of_a_refit_is_accepted(signed: Path, vendor: KeyPair) -> None:
    refit(signed, vendor)
    whole = (signed / "local.json").read_bytes()
    rng = random.Random(11)
    for place in [*range(0, 100, 7), *(rng.randrange(len(whole)) for _ in range(60))]:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        (signed / "local.json").write_bytes(changed)
        try:
            Bundle.open(signed, trusted_keys=vendor.public)
        except BundleError:
            continue
        assert json.loads(changed) == json.loads(whole), place


def test_a_refit_of_another_bundle_is_refused(signed: Path, vendor: KeyPair, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", n_normals=49).folder
    sign_by_hand(other, vendor.key)
    refit(other, vendor)
    shutil.copy(other / "local.json", signed / "local.json")
    assert "local.json belongs to another bundle, or to another version of this one" in refusal(signed, vendor)
    with pytest.raises(BundleError, match="belongs to another bundle"):
        Bundle.open(signed)
    shutil.copytree(signed, tmp_path / "same")  # The same manifest, and another file more that is signed.
    (tmp_path / "same" / "notes.txt").write_text("x")
    sign_by_hand(tmp_path / "same", vendor.key)
    (signed / "local.json").unlink()
    refit(signed, vendor)
    shutil.copy(signed / "local.json", tmp_path / "same" / "local.json")
    assert "local.json belongs to another signed bundle" in refusal(tmp_path / "same", vendor)


def test_an_older_refit_that_was_put_back_is_refused(
    signed: Path, vendor: KeyPair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refit(signed, vendor)
    old = (signed / "local.json").read_bytes()
    refit(signed, vendor, 20)
    newest = (signed / "local.json").read_bytes()
    (signed / "local.json").write_bytes(old)
    said = refusal(signed, vendor)
    assert "is number 1 of the re-fits of this bundle, and 2 were made here: an older one was put back" in said
    (signed / "local.json").unlink()
    with caplog.at_level(logging.WARNING):
        Bundle.open(signed, trusted_keys=vendor.public)
    assert "has no local.json any more: the thresholds of its maker are in force" in caplog.text
    (signed / "local.json").write_bytes(newest)
    assert Bundle.open(signed, trusted_keys=vendor.public).manifest.thresholds.n_normals == 20


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff", b"[" * 100_000, b'{"payload": "AAAA", "payloadType": "application/vnd.in-toto+json"}'],
)
def test_a_damaged_record_is_refused_in_a_sentence(signed: Path, vendor: KeyPair, content: bytes) -> None:
    (signed / "local.json").write_bytes(content)
    for trusted in (vendor.public, None):
        with pytest.raises(BundleError, match=r"local\.json is damaged: "):
            Bundle.open(signed, trusted_keys=trusted)


def test_thresholds_that_do_not_follow_from_their_scores_are_refused(signed: Path, vendor: KeyPair) -> None:
    refit(signed, vendor)
    with_payload(signed / "local.json", lambda p: p["predicate"]["thresholds"].update(image_threshold=0.9))
    with pytest.raises(BundleError, match=r"local\.json was changed: "):
        Bundle.open(signed)


def test_a_record_without_the_signature_that_it_belongs_to_is_refused(signed: Path, vendor: KeyPair) -> None:
    refit(signed, vendor)
    (signed / "model.sig").unlink()
    with pytest.raises(BundleError, match=r"local\.json belongs to a signed bundle, and there is no model\.sig"):
        Bundle.open(signed)


def test_a_detector_notices_that_a_bundle_was_fitted_again_by_another(signed: Path, vendor: KeyPair) -> None:
    with Detector.open(signed, trusted_keys=vendor.public) as detector:
        refit(signed, vendor)
        with pytest.raises(BundleError, match="open it again"):
            list(detector.stream(NORMALS[:2]))
        with pytest.raises(BundleError, match="open it again"):
            detector.refit_thresholds(NORMALS, 0.1)


def test_nothing_is_scored_where_a_refit_could_not_be_signed(
    signed: Path, vendor: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("VAE_EDGE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    scored: list[int] = []
    with Detector.open(signed) as detector:
        with pytest.raises(InputError, match="the key that signs re-fits could not be written"):
            detector.refit_thresholds(NORMALS, 0.1, progress=lambda done, total: scored.append(done))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        import sys

        monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
        with pytest.raises(MissingDependencyError, match=r"vae-edge\[verify\]"):
            detector.refit_thresholds(NORMALS, 0.1, progress=lambda done, total: scored.append(done))
    assert scored == []
    assert not (signed / "local.json").exists()


def test_verify_and_inspect_say_what_was_changed_here(
    command: Run, signed: Path, vendor: KeyPair, tmp_path: Path
) -> None:
    for seed in range(30):
        write_image(tmp_path / "normals" / f"{seed}.png", dark_image(seed))
    arguments = ("--data", tmp_path / "normals", "--false-alarm-rate", "0.1")
    code, out, err = command("verify", signed, "--trusted-key", vendor.public, *arguments)
    assert code == 0, err
    assert "in local.json, signed with this user's key; its maker's signature stays valid" in " ".join(out.split())
    code, out, _ = command("inspect", signed, "--trusted-key", vendor.public)
    assert code == 0
    assert "changed here number " in " ".join(out.split())
    code, out, _ = command("inspect", signed)
    assert "as it says; not checked: add --trusted-key PUB.pem" in " ".join(out.split())
    content = json.loads(command("inspect", signed, "--json")[1])
    assert content["manifest"]["thresholds"]["n_normals"] == 30
    assert set(content["signature"]) == {"signed_by", "changed_here"}
    assert content["signature"]["changed_here"].endswith("; not checked")
