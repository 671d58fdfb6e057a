"""What model-signing signs is accepted here, and what is accepted here model-signing accepts, too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="it is in the extra [verify]")

from tests.signed_bundles import CURVES, Authority, KeyPair, make_certificate, make_key, sign_by_hand
from tests.tiny_bundles import TARGETS, dark_image, make_bundle
from vae_edge import Bundle, BundleError, Detector
from vae_edge.targets import Target

model_signing = pytest.importorskip("model_signing", reason="model-signing is in the extra [sign], not on a device")

Run = Callable[..., tuple[int, str, str]]


def accepts(folder: Path, *, key: Path | None = None, roots: list[Path] | None = None) -> bool:
    """Return whether model-signing accepts a folder, as its own command does."""
    verifying = model_signing.verifying.Config()
    if key is not None:
        verifying.use_elliptic_key_verifier(public_key=key)
    else:
        verifying.use_certificate_verifier(certificate_chain=roots)
    try:
        verifying.verify(folder, folder / "model.sig")
    except Exception:  # noqa: BLE001 - it raises errors of several packages
        return False
    return True


def ours(folder: Path, trusted: object) -> bool:
    try:
        return Bundle.open(folder, trusted_keys=trusted).signature is not None  # type: ignore[arg-type]  # str or list
    except BundleError:
        return False


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_of_model_signing_accepts_what_vae_edge_signed(
    command: Run, tmp_path: Path, target: Target
) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(str(target), str(target)))
    vendor, folder = make_key(tmp_path / "keys"), make_bundle(tmp_path / "toy", target).folder
    code, _, err = command("sign", folder, "--key", vendor.private)
    assert (code, err) == (0, "")
    arguments = ["--signature", str(folder / "model.sig"), "--public_key", str(vendor.public)]
    verify = [sys.executable, "-m", "model_signing", "verify", "key", str(folder), *arguments]
    assert "Verification succeeded" in subprocess.run(verify, capture_output=True, text=True, check=True).stdout
    with Detector.open(folder, trusted_keys=vendor.public, hint="latency") as detector:
        detector.refit_thresholds([dark_image(seed) for seed in range(20)], 0.1)
    assert (folder / "local.json").is_file()
    subprocess.run(verify, capture_output=True, check=True)  # A re-fit does not break the maker's signature.
    (folder / "extra").write_text("x")
    assert subprocess.run(verify, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("curve", CURVES)
def test_a_device_accepts_what_model_signing_signed_by_itself(onnx_bundle: Bundle, tmp_path: Path, curve: str) -> None:
    vendor, folder = make_key(tmp_path / "keys", curve=curve), onnx_bundle.folder
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=vendor.private)
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[folder / "model.sig"])
    config.set_hashing_config(hashing).sign(folder, folder / "model.sig")
    assert Bundle.open(folder, trusted_keys=vendor.public).signature is not None
    assert accepts(folder, key=vendor.public)


@pytest.mark.parametrize("curve", CURVES)
def test_both_agree_about_keys(onnx_bundle: Bundle, tmp_path: Path, curve: str) -> None:
    vendor, folder = make_key(tmp_path / "keys", curve=curve), onnx_bundle.folder
    other = make_key(tmp_path / "keys", "other", curve)
    sign_by_hand(folder, vendor.key)  # What the tests without model-signing take for its signature.
    assert (ours(folder, vendor.public), accepts(folder, key=vendor.public)) == (True, True)
    assert (ours(folder, other.public), accepts(folder, key=other.public)) == (False, False)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    assert (ours(folder, vendor.public), accepts(folder, key=vendor.public)) == (False, False)


ROOT = make_certificate("Root", is_authority=True)
MIDDLE = make_certificate("Middle", ROOT, is_authority=True, path_length=0)
BELOW = make_certificate("Below", MIDDLE, is_authority=True)
TWIN = make_certificate("Root", is_authority=True)
ALONE = make_certificate("Alone")
CHAINS: dict[str, tuple[Authority, tuple[Authority, ...], tuple[Authority, ...]]] = {
    "root": (make_certificate("S", ROOT), (), (ROOT,)),
    "middle": (make_certificate("S", MIDDLE), (MIDDLE,), (ROOT,)),
    "root in the chain": (make_certificate("S", MIDDLE), (MIDDLE, ROOT), (ROOT,)),
    "another order": (make_certificate("S", MIDDLE), (ROOT, MIDDLE), (ROOT,)),
    "middle trusted alone": (make_certificate("S", MIDDLE), (), (MIDDLE,)),
    "middle with the device": (make_certificate("S", MIDDLE), (), (ROOT, MIDDLE)),
    "middle missing": (make_certificate("S", MIDDLE), (), (ROOT,)),
    "another root of that name": (make_certificate("S", ROOT), (), (TWIN,)),
    "two roots of that name": (make_certificate("S", ROOT), (), (TWIN, ROOT)),
    "its own root": (ALONE, (), (ALONE,)),
    "its own root, not trusted": (ALONE, (), (ROOT,)),
    "too deep": (make_certificate("S", BELOW), (BELOW, MIDDLE), (ROOT,)),
    "P-384": (make_certificate("S", ROOT, curve="P-384"), (), (ROOT,)),
    "P-521": (make_certificate("S", ROOT, curve="P-521"), (), (ROOT,)),
    "not for signing": (make_certificate("S", ROOT, digital_signature=False, purposes=None), (), (ROOT,)),
    "for nothing": (make_certificate("S", ROOT, digital_signature=None, purposes=None), (), (ROOT,)),
    "for code alone": (make_certificate("S", ROOT, digital_signature=None), (), (ROOT,)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_both_agree_about_certificates(onnx_bundle: Bundle, tmp_path: Path, name: str) -> None:
    signer, chain, trusted = CHAINS[name]
    roots = [tmp_path / f"{number}.pem" for number in range(len(trusted))]
    for path, root in zip(roots, trusted, strict=True):
        path.write_bytes(root.pem)
    sign_by_hand(
        onnx_bundle.folder, signer.key, certificates=(signer.certificate, *(each.certificate for each in chain))
    )
    assert ours(onnx_bundle.folder, roots) == accepts(onnx_bundle.folder, roots=roots)


@pytest.mark.parametrize("days", [(-9, -1), (1, 9)], ids=["expired", "early"])
def test_validity_counts_at_this_moment_unlike_in_model_signing(
    onnx_bundle: Bundle, tmp_path: Path, days: tuple[int, int]
) -> None:
    authority = make_certificate("Root", is_authority=True, days=(-20, 40))
    signer = make_certificate("S", authority, days=days)
    root = tmp_path / "root.pem"
    root.write_bytes(authority.pem)
    sign_by_hand(onnx_bundle.folder, signer.key, certificates=(signer.certificate,))
    assert accepts(onnx_bundle.folder, roots=[root])
    assert not ours(onnx_bundle.folder, root)


def write_authority(folder: Path, name: str, authority: Authority, password: bytes | None = None) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    folder.mkdir(exist_ok=True)
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(authority.pem)
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    key.write_bytes(authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return certificate, key


@pytest.mark.parametrize("password", [None, b"secret"])
def test_a_certificate_signs_and_both_accept_it(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: bytes | None
) -> None:
    signer = make_certificate("Signer", MIDDLE)
    certificate, key = write_authority(tmp_path / "keys", "signer", signer, password)
    middle, _ = write_authority(tmp_path / "keys", "middle", MIDDLE)
    root, _ = write_authority(tmp_path / "keys", "root", ROOT)
    if password is not None:
        if not Path("/dev/fd").is_dir():
            pytest.skip("this system has no paths for pipes")
        monkeypatch.setenv("VAE_EDGE_KEY_PASSWORD", password.decode())
    options = ("--key", key, "--certificate", certificate, "--chain", middle)
    code, out, err = command("sign", onnx_bundle.folder, *options)
    assert (code, err) == (0, "")
    assert "is signed by the certificate of Signer" in out
    assert accepts(onnx_bundle.folder, roots=[root])
    code, out, _ = command("inspect", onnx_bundle.folder, "--trusted-key", root)
    assert "the certificate of Signer, issued by Middle, valid until" in " ".join(out.split())


@pytest.mark.parametrize("chain", [False, True])
def test_a_certificate_that_a_root_issued_itself_needs_no_chain(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, chain: bool
) -> None:
    certificate, key = write_authority(tmp_path / "keys", "signer", make_certificate("Signer", ROOT))
    root, _ = write_authority(tmp_path / "keys", "root", ROOT)
    options = ("--chain", certificate, "--chain", root) if chain else ()
    code, _, err = command("sign", onnx_bundle.folder, "--key", key, "--certificate", certificate, *options)
    assert (code, err) == (0, "")
    content = json.loads((onnx_bundle.folder / "model.sig").read_bytes())
    # Each once: the signer's own, and the root where it was given.
    assert len(content["verificationMaterial"]["x509CertificateChain"]["certificates"]) == 1 + chain
    assert accepts(onnx_bundle.folder, roots=[root])
    assert ours(onnx_bundle.folder, root)


def test_a_chain_that_no_device_accepts_signs_nothing(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    certificate, key = write_authority(tmp_path / "keys", "signer", make_certificate("Signer", ROOT))
    store = tmp_path / "store.pem"
    store.write_bytes(b"".join(make_certificate(f"Root {number}", is_authority=True).pem for number in range(8)))
    code, _, err = command("sign", onnx_bundle.folder, "--key", key, "--certificate", certificate, "--chain", store)
    assert code == 1
    assert "the chain has 8 certificates; expected at most 7" in err
    assert not (onnx_bundle.folder / "model.sig").exists()


def test_a_signature_of_other_content_is_refused_by_both(tmp_path: Path) -> None:
    vendor = make_key(tmp_path / "keys")
    first, second = make_bundle(tmp_path / "a").folder, make_bundle(tmp_path / "b", n_normals=49).folder
    sign_by_hand(first, vendor.key)
    shutil.copy(first / "model.sig", second / "model.sig")
    assert (ours(second, vendor.public), accepts(second, key=vendor.public)) == (False, False)


def in_a_namespace_without_network() -> list[str]:
    """Return what starts a program without any network; empty: this machine has no such thing for this user."""
    for command in (["unshare", "-n"], ["unshare", "-rn"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
        ):
            return command
    return []


def test_signing_and_checking_need_no_network(onnx_bundle: Bundle, vendor: KeyPair, tmp_path: Path) -> None:
    alone = in_a_namespace_without_network()
    if not alone:
        pytest.skip("this user cannot start programs without a network (unshare -n)")
    program = [*alone, sys.executable, "-m", "vae_edge"]
    subprocess.run([*program, "sign", str(onnx_bundle.folder), "--key", str(vendor.private)], check=True)
    device = shutil.copytree(onnx_bundle.folder, tmp_path / "device")
    subprocess.run([*program, "verify", str(device), "--trusted-key", str(vendor.public)], check=True)


def test_signing_leaves_nothing_else_and_knows_no_names(command: Run, onnx_bundle: Bundle, vendor: KeyPair) -> None:
    import base64
    import json
    import socket

    before = {path.name for path in onnx_bundle.folder.iterdir()}
    assert command("sign", onnx_bundle.folder, "--key", vendor.private)[0] == 0
    assert {path.name for path in onnx_bundle.folder.iterdir()} == before | {"model.sig"}
    statement = base64.b64decode(json.loads((onnx_bundle.folder / "model.sig").read_text())["dsseEnvelope"]["payload"])
    assert str(onnx_bundle.folder.parent).encode() not in statement
    assert socket.gethostname().encode() not in statement
    assert b".tmp" not in statement
