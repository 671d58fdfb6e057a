"""What a signed bundle is accepted for, and every way to change it that is refused, by name."""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="it is in the extra [verify]")

from tests.hostile_bundles import change_manifest
from tests.signed_bundles import CURVES, KeyPair, make_key, sign_by_hand
from tests.tiny_bundles import dark_image, make_bundle
from vae_edge import Bundle, BundleError, Detector, InputError
from vae_edge.errors import MissingDependencyError, UsageError
from vae_edge.targets import Target


def refusal(folder: Path, vendor: KeyPair) -> str:
    with pytest.raises(BundleError) as told:
        Bundle.open(folder, trusted_keys=vendor.public)
    return str(told.value)


@pytest.mark.parametrize("curve", CURVES)
def test_a_bundle_that_a_trusted_key_signed_is_opened(onnx_bundle: Bundle, tmp_path: Path, curve: str) -> None:
    vendor, other = make_key(tmp_path / "keys", curve=curve), make_key(tmp_path / "keys", "other")
    sign_by_hand(onnx_bundle.folder, vendor.key)
    with Detector.open(onnx_bundle.folder, trusted_keys=[other.public, vendor.public]) as detector:
        assert not detector.predict(dark_image(0)).is_anomalous
        assert detector.bundle.signature is not None
        assert detector.bundle.signature.by.what.startswith("the key vendor.pub.pem (SHA-256 ")
    assert Bundle.open(onnx_bundle.folder, trusted_keys=vendor.public.read_bytes()).signature is not None
    assert Bundle.open(onnx_bundle.folder).signature is None  # Nobody asked.


def test_a_bundle_whose_files_were_not_read_yet_is_read_before_it_is_loaded(signed: Path, vendor: KeyPair) -> None:
    flip(signed / "model.onnx")
    opened = Bundle.open(signed, check_files=False, trusted_keys=vendor.public)
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        Detector.open(opened, trusted_keys=vendor.public)


def test_a_bundle_that_is_open_is_not_read_again(
    signed: Path, vendor: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(signed, trusted_keys=vendor.public)
    monkeypatch.setattr(Bundle, "open", lambda *arguments, **options: pytest.fail("it was opened again"))
    Detector.open(opened, trusted_keys=vendor.public, hint="latency").close()


def test_keys_in_one_file_are_trusted_too(signed: Path, vendor: KeyPair, tmp_path: Path) -> None:
    other = make_key(tmp_path / "keys", "other")
    both = tmp_path / "both.pem"
    both.write_bytes(other.public.read_bytes() + vendor.public.read_bytes())
    assert Bundle.open(signed, trusted_keys=both).signature is not None


def test_what_nobody_signed_is_refused(onnx_bundle: Bundle, vendor: KeyPair) -> None:
    said = refusal(onnx_bundle.folder, vendor)
    assert "is not signed: it has no model.sig; expected a signature by vendor.pub.pem" in said
    with pytest.raises(BundleError, match="is not signed"):
        Detector.open(onnx_bundle, trusted_keys=vendor.public)  # Also one that is open already.


def test_what_another_key_signed_is_refused(signed: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "keys", "other")
    assert "was signed by another key (SHA-256" in refusal(signed, other)


def test_another_signature_under_the_hint_of_a_trusted_key_is_refused(signed: Path, vendor: KeyPair) -> None:
    right = json.loads((signed / "model.sig").read_text())
    sign_by_hand(signed, make_key(signed.parent / "keys", "other").key)
    wrong = json.loads((signed / "model.sig").read_text())
    wrong["verificationMaterial"] = right["verificationMaterial"]
    (signed / "model.sig").write_text(json.dumps(wrong))
    assert "is not valid: it was changed, or was not made by the key vendor.pub.pem" in refusal(signed, vendor)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(folder: Path, first: str, second: str) -> None:
    (folder / first).rename(folder / "x")
    (folder / second).rename(folder / first)
    (folder / "x").rename(folder / second)


def correct(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a change after which sizes, hashes and digest of the manifest are right again, as an attacker's."""

    def changed(folder: Path) -> None:
        change(folder)
        change_manifest(folder)

    return changed


def add_below(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "model.sig").write_text("")


def make_link(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "moved")
    (folder / name).symlink_to(folder.parent / "moved")


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "model": (lambda f: flip(f / "model.onnx"), "model.onnx was changed"),
    "model, corrected": (
        correct(lambda f: flip(f / "model.onnx")),
        "manifest.json was changed after",
    ),
    "references": (lambda f: flip(f / "references.safetensors"), "references.safetensors was changed"),
    "thresholds": (
        lambda f: change_manifest(f, lambda c: c["thresholds"].update(pixel_threshold=0.9)),
        "manifest.json was changed after the bundle was signed",
    ),
    "line ends": (
        lambda f: (f / "manifest.json").write_bytes((f / "manifest.json").read_bytes().replace(b"\n", b"\r\n")),
        "manifest.json was changed after",
    ),
    "a covered file that the manifest does not list": (
        lambda f: (f / "notes.txt").write_text("other"),
        "notes.txt was changed after",
    ),
    "missing": (lambda f: (f / "notes.txt").unlink(), "notes.txt is missing, and the signature covers it"),
    "missing model": (lambda f: (f / "model.onnx").unlink(), "model.onnx is missing"),
    "extra": (lambda f: (f / "model.onnx.data").write_text(""), "model.onnx.data is not covered"),
    "hidden": (lambda f: (f / ".gitignore").write_text(""), ".gitignore is not covered"),
    "below": (add_below, "a/model.sig is not covered"),
    "swapped": (lambda f: swap(f, "model.onnx", "references.safetensors"), "was changed"),
    "link": (lambda f: make_link(f, "notes.txt"), "notes.txt is a link"),
    "folder as a link": (lambda f: (f / "more").symlink_to(f), "more is a link"),
    "no signature": (lambda f: (f / "model.sig").unlink(), "is not signed: it has no model.sig"),
    "signature as a link": (lambda f: make_link(f, "model.sig"), "model.sig is a link"),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_a_bundle_that_was_changed_is_refused_by_name(onnx_bundle: Bundle, vendor: KeyPair, how: str) -> None:
    folder = onnx_bundle.folder
    (folder / "notes.txt").write_text("as signed")
    sign_by_hand(folder, vendor.key)
    Bundle.open(folder, trusted_keys=vendor.public)
    change, sentence = TAMPERING[how]
    change(folder)
    assert sentence in refusal(folder, vendor)


def test_a_signature_is_of_its_own_bundle_only(signed: Path, vendor: KeyPair, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", n_normals=49)
    shutil.copy(signed / "model.sig", other.folder / "model.sig")
    assert "manifest.json was changed after the bundle was signed" in refusal(other.folder, vendor)


def test_a_bundle_may_be_moved_and_renamed(signed: Path, vendor: KeyPair, tmp_path: Path) -> None:
    moved = shutil.copytree(signed, tmp_path / "elsewhere" / "renamed")
    assert Bundle.open(moved, trusted_keys=vendor.public).signature is not None


def test_what_another_process_keeps_in_the_folder_meanwhile_is_no_tampering(signed: Path, vendor: KeyPair) -> None:
    from vae_edge.platform.atomic import claim, new_file

    with claim(signed / ".lock", "x"), new_file(signed / "local.json") as temporary:
        Bundle.open(signed, trusted_keys=vendor.public)
        temporary.unlink()
        shutil.copy(signed / "manifest.json", temporary)
        other = signed / temporary.name.replace("local", "manifest")
        temporary.rename(other)
        assert f"{other.name} is not covered" in refusal(signed, vendor)
        other.rename(temporary)
    (signed / "local.json").unlink()


HOSTILE: dict[str, bytes | Callable[[dict[str, Any]], object]] = {
    "empty": b"",
    "no JSON": b"\x00\xff",
    "deep": b"[" * 100_000,
    "large": b" " * 2_000_000,
    "many": b"[" + b"1," * 10_000 + b"1]",
    "key twice": b'{"mediaType": "a", "mediaType": "b"}',
    "list": b"[]",
    "other media type": lambda c: c.update(mediaType="application/vnd.dev.sigstore.bundle.v0.4+json"),
    "other payload type": lambda c: c["dsseEnvelope"].update(payloadType="text/plain"),
    "no signature": lambda c: c["dsseEnvelope"].update(signatures=[]),
    "two signatures": lambda c: c["dsseEnvelope"].update(signatures=c["dsseEnvelope"]["signatures"] * 2),
    "key and certificate": lambda c: c["verificationMaterial"].update(
        x509CertificateChain={"certificates": [{"rawBytes": "AAAA"}]}
    ),
    "neither": lambda c: c.update(verificationMaterial={"tlogEntries": []}),
    "Sigstore": lambda c: c.update(verificationMaterial={"certificate": {"rawBytes": ""}, "tlogEntries": [{}]}),
    "many certificates": lambda c: c.update(
        verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}] * 9}}
    ),
    "other spelling of base64": lambda c: c["dsseEnvelope"].update(payload=c["dsseEnvelope"]["payload"] + "\n"),
    "key id": lambda c: c["dsseEnvelope"]["signatures"][0].update(keyid="x"),
    "unknown key": lambda c: c.update(extra=1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_damaged_signature_is_refused_in_a_sentence(signed: Path, vendor: KeyPair, what: str) -> None:
    made = HOSTILE[what]
    if isinstance(made, bytes):
        (signed / "model.sig").write_bytes(made)
    else:
        content = json.loads((signed / "model.sig").read_text())
        made(content)
        (signed / "model.sig").write_text(json.dumps(content))
    said = refusal(signed, vendor)
    assert "model.sig is damaged: " in said
    assert len(said) < 700
    if what == "Sigstore":
        assert "made with Sigstore's services" in said


STATEMENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "other type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "other predicate": lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "two subjects": lambda s: s.update(subject=s["subject"] * 2),
    "other digest": lambda s: s["subject"][0].update(digest={"sha256": "0" * 64}),
    "links allowed": lambda s: s["predicate"]["serialization"].update(allow_symlinks=True),
    "other hash": lambda s: s["predicate"]["serialization"].update(hash_type="blake2"),
    "shards": lambda s: s["predicate"]["serialization"].update(method="shards"),
    "nothing": lambda s: s["predicate"].update(resources=[]),
    "twice": lambda s: s["predicate"].update(resources=s["predicate"]["resources"] * 2),
    "outside": lambda s: s["predicate"]["resources"][0].update(name="../manifest.json"),
    "absolute": lambda s: s["predicate"]["resources"][0].update(name="/etc/passwd"),
    "itself": lambda s: s["predicate"]["resources"][0].update(name="model.sig"),
}


@pytest.mark.parametrize("what", STATEMENTS)
def test_a_trusted_key_cannot_sign_something_else_in_its_place(signed: Path, vendor: KeyPair, what: str) -> None:
    sign_by_hand(signed, vendor.key, change=STATEMENTS[what])
    said = refusal(signed, vendor)
    assert "the statement in" in said or "which cannot be a file of it" in said


def test_a_file_that_the_signer_left_out_is_refused(signed: Path, vendor: KeyPair) -> None:
    def leave_out(statement: dict[str, Any]) -> None:
        statement["predicate"]["serialization"]["ignore_paths"].append("references.safetensors")
        del statement["predicate"]["resources"][-1]
        import hashlib

        digests = [bytes.fromhex(each["digest"]) for each in statement["predicate"]["resources"]]
        statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(b"".join(digests)).hexdigest()

    sign_by_hand(signed, vendor.key, change=leave_out)
    assert "references.safetensors is not covered by the bundle's signature" in refusal(signed, vendor)


TRIES = int(os.environ.get("VAE_EDGE_FUZZ_TRIES", "60"))


def test_no_changed_byte_of_any_file_is_accepted(signed: Path, vendor: KeyPair, tmp_path: Path) -> None:
    """Half of the changes are in model.sig, spread over its parts; a change may leave its content as it is."""
    rng = random.Random(7)
    names = sorted(path.name for path in signed.iterdir() if path.name != "model.sig")
    whole = json.loads((signed / "model.sig").read_text())
    for number in range(TRIES):
        folder = shutil.copytree(signed, tmp_path / str(number))
        path = folder / ("model.sig" if number % 2 else names[number // 2 % len(names)])
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        what = rng.randrange(4)
        if what == 0:
            del data[place : place + rng.choice((1, 5, 100))]
        elif what == 1:
            data[place:place] = rng.randbytes(rng.choice((1, 3, 200)))
        else:
            data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            Bundle.open(folder, trusted_keys=vendor.public)
        except BundleError:
            pass
        except Exception as error:
            raise AssertionError(f"number {number} raised {type(error).__name__}: {error}") from error
        else:
            assert path.name == "model.sig", (number, path.name)
            assert json.loads(path.read_text()) == whole, number
        shutil.rmtree(folder)


def test_every_part_of_a_signature_counts(signed: Path, vendor: KeyPair) -> None:
    whole = json.loads((signed / "model.sig").read_text())
    envelope = whole["dsseEnvelope"]
    for text in (envelope["payload"], envelope["signatures"][0]["sig"]):
        raw = base64.b64decode(text)
        for place in range(0, len(raw), max(1, len(raw) // 40)):
            changed = bytearray(raw)
            changed[place] ^= 1
            spelled = json.dumps(whole).replace(text, base64.b64encode(changed).decode())
            (signed / "model.sig").write_text(spelled)
            refusal(signed, vendor)


# What is trusted


def test_what_is_no_key_is_refused(signed: Path, vendor: KeyPair, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    def pem(key: Any) -> bytes:
        content: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return content

    keys: dict[bytes, str] = {
        b"": "is not a key: there is no -----BEGIN PUBLIC KEY-----",
        b"ssh-ed25519 AAAA": "is not a key",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n": "is damaged: its public key cannot be read",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": "is damaged: its certificate cannot be",
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n": "holds 'X509 CRL'; expected public keys",
        vendor.private.read_bytes(): "holds a private key, which no device should have",
        vendor.public.read_bytes() + vendor.private.read_bytes(): "holds a private key",
        b"-----BEGIN EC PARAMETERS-----\nBggq\n-----END EC PARAMETERS-----\n"
        + vendor.private.read_bytes(): "holds a private key",
        pem(rsa.generate_private_key(65537, 2048).public_key()): "holds an RSA key; expected an EC key on P-256",
        pem(ed25519.Ed25519PrivateKey.generate().public_key()): "holds an Ed25519 key",
        pem(ec.generate_private_key(ec.SECP256K1()).public_key()): "holds an EC key on secp256k1",
    }
    path = tmp_path / "given.pem"
    for content, sentence in keys.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            Bundle.open(signed, trusted_keys=path)
    with pytest.raises(InputError, match="cannot be read"):
        Bundle.open(signed, trusted_keys=tmp_path / "none.pem")
    with pytest.raises(InputError, match="cannot be read"):
        Bundle.open(signed, trusted_keys=tmp_path)
    path.write_bytes(b"x" * 2_000_000)
    with pytest.raises(InputError, match="more than 1000000 bytes"):
        Bundle.open(signed, trusted_keys=path)
    with pytest.raises(UsageError, match="trusted_keys is empty"):
        Bundle.open(signed, trusted_keys=[])


def test_without_cryptography_the_extra_is_named(
    signed: Path, vendor: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .vae-edge\[verify\]"):
        Bundle.open(signed, trusted_keys=vendor.public)


def test_nothing_of_it_is_loaded_where_no_key_is_trusted(signed: Path) -> None:
    code = (
        "import sys; from vae_edge import Detector; from vae_edge.cli import run\n"
        f"Detector.open({str(signed)!r}).close()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('cryptography', 'model_signing', 'OpenSSL')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_program_without_keys_loads_the_policy_alone(signed: Path) -> None:
    code = (
        f"import sys; from vae_edge import Detector; Detector.open({str(signed)!r}).close()\n"
        "print(*sorted(name for name in sys.modules if name.startswith('vae_edge.signing.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vae_edge.signing.files", "vae_edge.signing.policy"]


# Where detectors are opened again


def test_a_pickled_detector_demands_the_same_signature(signed: Path, vendor: KeyPair) -> None:
    with Detector.open(signed, trusted_keys=vendor.public, hint="latency") as detector:
        pickled = pickle.dumps(detector)
    vendor.public.unlink()  # The key itself is in the pickle.
    with pickle.loads(pickled) as again:
        assert again.bundle.signature is not None
    (signed / "model.sig").unlink()
    with pytest.raises(BundleError, match="is not signed"):
        pickle.loads(pickled)


def test_a_second_model_is_not_loaded_from_a_signed_bundle_that_was_changed(signed: Path, vendor: KeyPair) -> None:
    with Detector.open(signed, trusted_keys=vendor.public) as detector:
        make_bundle(signed, Target.ONNX, n_normals=49)
        with pytest.raises(BundleError, match="open it again"):
            list(detector.stream([dark_image(0)]))
