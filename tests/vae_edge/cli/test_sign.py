"""`vae-edge sign`, and the commands that check what it signed."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("cryptography", reason="it is in the extra [verify]")

from tests.signed_bundles import KeyPair, make_certificate, make_key, sign_by_hand
from tests.tiny_bundles import dark_image, make_bundle, write_image
from vae_edge import Bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vendor(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path / "keys")


def needs_model_signing() -> None:
    pytest.importorskip("model_signing", reason="model-signing is in the extra [sign], not on a device")


def test_run_judges_what_is_signed_and_refuses_what_is_not(
    command: Run, onnx_bundle: Bundle, vendor: KeyPair, tmp_path: Path
) -> None:
    picture = write_image(tmp_path / "part.png", dark_image(0))
    arguments = (onnx_bundle.folder, picture, "--trusted-key", vendor.public)
    code, _, err = command(*arguments, program="run")
    assert code == 1
    assert "is not signed: it has no model.sig; expected a signature by vendor.pub.pem (from --trusted-key)" in err
    sign_by_hand(onnx_bundle.folder, vendor.key)
    assert command(*arguments, program="run")[0] == 0
    other = make_key(tmp_path / "keys", "other")
    code, _, err = command(onnx_bundle.folder, picture, "--trusted-key", other.public, program="run")
    assert code == 1
    assert "was signed by another key" in err
    code, _, err = command(onnx_bundle.folder, picture, "--trusted-key", vendor.private, program="run")
    assert code == 1
    assert "holds a private key, which no device should have" in err


def test_signing_twice_replaces_the_signature_and_says_so(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    needs_model_signing()
    first, second = make_key(tmp_path / "keys", "first"), make_key(tmp_path / "keys", "second")
    code, out, _ = command("sign", onnx_bundle.folder, "--key", first.private)
    assert code == 0
    assert "is signed by the key first.pem (SHA-256 " in out
    assert "model.sig covers its 3 files." in out
    assert "replaced" not in out
    code, out, _ = command("sign", onnx_bundle.folder, "--key", second.private)
    assert code == 0
    assert "The signature that was there has been replaced." in out
    assert Bundle.open(onnx_bundle.folder, trusted_keys=second.public).signature is not None


def test_a_re_fit_stays_valid_when_its_bundle_is_signed_again(
    command: Run, onnx_bundle: Bundle, vendor: KeyPair
) -> None:
    needs_model_signing()
    folder = onnx_bundle.folder
    assert command("sign", folder, "--key", vendor.private)[0] == 0
    assert command("verify", folder, "--trusted-key", vendor.public)[0] == 0
    assert (folder / "local.json").is_file()
    assert command("sign", folder, "--key", vendor.private)[0] == 0
    assert Bundle.open(folder, trusted_keys=vendor.public).local is not None
    (folder / "notes.txt").write_text("one more")
    code, _, err = command("sign", folder, "--key", vendor.private)
    assert code == 1
    assert "local.json belongs to other content than what would be signed; remove it and sign again" in err


@pytest.mark.parametrize("how", ["file", "environment"])
def test_a_password_comes_from_a_file_or_the_environment(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    needs_model_signing()
    vendor = make_key(tmp_path / "keys", password=b"secret")
    secret = tmp_path / "password"
    secret.write_bytes(b"secret\r\nmore")
    code, _, err = command("sign", onnx_bundle.folder, "--key", vendor.private)
    assert code == 1
    assert "is encrypted; give its password with --password-file FILE or in VAE_EDGE_KEY_PASSWORD" in err
    more: tuple[object, ...] = ("--password-file", secret)
    if how == "environment":
        monkeypatch.setenv("VAE_EDGE_KEY_PASSWORD", "secret")
        more = ()
    assert command("sign", onnx_bundle.folder, "--key", vendor.private, *more)[0] == 0
    assert Bundle.open(onnx_bundle.folder, trusted_keys=vendor.public).signature is not None
    secret.write_text("wrong")
    monkeypatch.setenv("VAE_EDGE_KEY_PASSWORD", "wrong")
    code, _, err = command("sign", onnx_bundle.folder, "--key", vendor.private, *more)
    assert code == 1
    assert "the password is wrong" in err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_password_file_of_a_windows_editor_is_read_or_named(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, encoding: str
) -> None:
    needs_model_signing()
    vendor = make_key(tmp_path / "keys", password=b"secret")
    secret = tmp_path / "password"
    secret.write_bytes("secret\r\n".encode(encoding))
    code, _, err = command("sign", onnx_bundle.folder, "--key", vendor.private, "--password-file", secret)
    if encoding == "utf-16":
        assert (code, err) == (1, f"error: the file of the password {secret} is in UTF-16; save it in UTF-8\n")
    else:
        assert (code, err) == (0, "")


def test_keys_in_other_formats_are_named(command: Run, onnx_bundle: Bundle, vendor: KeyPair, tmp_path: Path) -> None:
    der, wide = tmp_path / "key.der", tmp_path / "key.txt"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(vendor.public.read_text().replace("PUBLIC KEY", "CERTIFICATE")))
    wide.write_text(vendor.public.read_text(), encoding="utf-16")
    for path, sentence in (
        (der, f"{der} is binary (DER or PKCS #12); expected PEM: convert it with openssl pkey -inform DER"),
        (wide, f"{wide} is in UTF-16; expected PEM: save it as ASCII or UTF-8"),
    ):
        for command_line in (("sign", onnx_bundle.folder, "--key"), ("inspect", onnx_bundle.folder, "--trusted-key")):
            code, _, err = command(*command_line, path)
            assert code == 1
            assert sentence in err


def test_a_password_is_asked_for_on_a_terminal(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_model_signing()
    vendor = make_key(tmp_path / "keys", password=b"secret")
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "secret"

    monkeypatch.setattr("getpass.getpass", answer)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert command("sign", onnx_bundle.folder, "--key", vendor.private)[0] == 0
    assert asked == [f"Password of {vendor.private}: "]
    assert Bundle.open(onnx_bundle.folder, trusted_keys=vendor.public).signature is not None


def test_what_cannot_sign_is_refused(command: Run, onnx_bundle: Bundle, vendor: KeyPair, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    folder = onnx_bundle.folder
    ed = tmp_path / "ed.pem"
    ed.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    expired, other = make_certificate("S", days=(-9, -1)), make_certificate("S")
    for name, authority in (("expired", expired), ("other", other)):
        (tmp_path / f"{name}.crt").write_bytes(authority.pem)
    for options, code, sentence in (
        ((vendor.public,), 1, "is a public key; expected an EC key on P-256, P-384 or P-521"),
        ((empty,), 1, "is no private key in PEM"),
        ((ed,), 1, "is an Ed25519 key; expected an EC key"),
        ((tmp_path / "none.pem",), 1, "the key "),
        ((vendor.private, "--certificate", tmp_path / "other.crt"), 1, "is not of the key"),
        ((vendor.private, "--certificate", tmp_path / "expired.crt"), 1, "is a certificate that has expired"),
        ((vendor.private, "--certificate", vendor.public), 1, "is not a certificate in PEM"),
        ((vendor.private, "--chain", tmp_path / "other.crt"), 2, "--chain is for certificates: add --certificate"),
        ((vendor.private, "--password-file", empty), 1, "is empty; expected the password in its first line"),
    ):
        found, _, err = command("sign", folder, "--key", *options)
        assert found == code, (options, err)
        assert sentence in err, (options, err)
    assert not (folder / "model.sig").exists()


def test_what_is_no_bundle_is_not_signed(command: Run, onnx_bundle: Bundle, vendor: KeyPair, tmp_path: Path) -> None:
    code, _, err = command("sign", tmp_path / "keys", "--key", vendor.private)
    assert code == 1
    assert "is not a bundle: there is no manifest.json in it" in err
    with onnx_bundle.model_path.open("ab") as file:
        file.write(b"x")
    code, _, err = command("sign", onnx_bundle.folder, "--key", vendor.private)
    assert code == 1
    assert "model.onnx was changed" in err
    hidden = make_bundle(tmp_path / "hidden").folder
    (hidden / ".DS_Store").write_text("")
    code, _, err = command("sign", hidden, "--key", vendor.private)
    assert code == 1
    assert ".DS_Store is hidden" in err


def test_a_bundle_of_little_trust_is_signed_with_a_warning(command: Run, vendor: KeyPair, tmp_path: Path) -> None:
    needs_model_signing()
    bundle = make_bundle(tmp_path / "toy", n_normals=5, verified=False)
    code, _, err = command("sign", bundle.folder, "--key", vendor.private)
    assert code == 0
    assert "warning: this bundle is not verified (there was no such device)" in err


@pytest.mark.skipif(os.name != "posix", reason="this system has no such modes")
def test_a_bundle_that_cannot_be_written_is_refused(onnx_bundle: Bundle, vendor: KeyPair) -> None:
    needs_model_signing()
    onnx_bundle.folder.chmod(0o555)
    command = [sys.executable, "-m", "vae_edge", "sign", str(onnx_bundle.folder), "--key", str(vendor.private)]
    if os.geteuid() == 0:  # Whom no mode stops.
        (onnx_bundle.folder / "model.sig").mkdir()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        onnx_bundle.folder.chmod(0o755)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_package_the_extra_is_named(
    command: Run, onnx_bundle: Bundle, vendor: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    code, _, err = command("sign", onnx_bundle.folder, "--key", vendor.private)
    assert code == 1
    assert 'pip install "vae-edge[sign]"' in err
    assert not (onnx_bundle.folder / "model.sig").exists()
