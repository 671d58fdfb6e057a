"""Bundles that were signed with a certificate: which roots, times and purposes are accepted."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="it is in the extra [verify]")
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.signed_bundles import CURVES, NOW, Authority, make_certificate, make_key, sign_by_hand
from vae_edge import Bundle, BundleError
from vae_edge.signing.envelope import read_signature
from vae_edge.signing.keys import check_signer, trusted_keys

ROOT = make_certificate("Root", is_authority=True)
MIDDLE = make_certificate("Middle", ROOT, is_authority=True, path_length=0)
SIGNER = make_certificate("Signer", MIDDLE)


def refusal(folder: Path, *trusted: Authority) -> str:
    with pytest.raises(BundleError) as told:
        Bundle.open(folder, trusted_keys=[each.pem for each in trusted])
    return str(told.value)


def sign(bundle: Bundle, signer: Authority, *chain: Authority) -> Path:
    sign_by_hand(bundle.folder, signer.key, certificates=(signer.certificate, *(each.certificate for each in chain)))
    return bundle.folder


@pytest.mark.parametrize("curve", CURVES)
def test_a_certificate_that_a_trusted_root_vouches_for_is_accepted(onnx_bundle: Bundle, curve: str) -> None:
    signer = make_certificate("Signer", MIDDLE, curve=curve)
    folder = sign(onnx_bundle, signer, MIDDLE)
    other = make_certificate("Other", is_authority=True)
    opened = Bundle.open(folder, trusted_keys=[other.pem, ROOT.pem])
    assert opened.signature is not None
    until = (NOW + timedelta(days=30)).date().isoformat()
    assert opened.signature.by.what == f"the certificate of Signer, issued by Middle, valid until {until}"


def test_the_chain_may_be_in_any_order_or_with_the_device(onnx_bundle: Bundle) -> None:
    folder = sign(onnx_bundle, SIGNER, ROOT, MIDDLE)
    assert Bundle.open(folder, trusted_keys=ROOT.pem).signature is not None
    folder = sign(onnx_bundle, SIGNER)
    assert Bundle.open(folder, trusted_keys=ROOT.pem + MIDDLE.pem).signature is not None
    assert "no trusted root leads there" in refusal(folder, ROOT)


def test_a_certificate_that_is_its_own_root_is_accepted_where_it_is_trusted(onnx_bundle: Bundle) -> None:
    alone = make_certificate("Alone")
    folder = sign(onnx_bundle, alone)
    assert Bundle.open(folder, trusted_keys=alone.pem).signature is not None
    assert "no trusted root leads there; expected one by Alone" in refusal(folder, make_certificate("Alone"))


def test_an_authority_in_the_middle_is_no_root(onnx_bundle: Bundle) -> None:
    assert "no trusted root leads there" in refusal(sign(onnx_bundle, SIGNER, MIDDLE), MIDDLE)


def test_another_root_is_refused(onnx_bundle: Bundle) -> None:
    said = refusal(sign(onnx_bundle, SIGNER, MIDDLE, ROOT), make_certificate("Root", is_authority=True))
    assert "certificate of Signer, issued by Middle, and no trusted root leads there; expected one by Root" in said


def test_keys_vouch_for_no_certificates_and_roots_for_no_keys(onnx_bundle: Bundle, tmp_path: Path) -> None:
    vendor = make_key(tmp_path)
    folder = sign(onnx_bundle, SIGNER, MIDDLE)
    with pytest.raises(BundleError, match=r"was signed with a certificate, but vendor\.pub\.pem .* public keys only"):
        Bundle.open(folder, trusted_keys=vendor.public)
    sign_by_hand(folder, vendor.key)
    assert "was signed by another key" in refusal(folder, ROOT)


@pytest.mark.parametrize(
    ("signer", "sentence"),
    [
        (make_certificate("S", MIDDLE, days=(-9, -1)), "that has expired: that of S was valid until"),
        (make_certificate("S", MIDDLE, days=(1, 9)), "that is not valid yet: that of S is from"),
        (
            make_certificate("S", MIDDLE, purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)),
            "of S that is for other purposes than signing code (extendedKeyUsage); expected one with",
        ),
        (make_certificate("S", MIDDLE, digital_signature=False), "is not for digital signatures (keyUsage)"),
        (make_certificate("S", MIDDLE, digital_signature=None, purposes=None), "says nothing about what it is for"),
        (
            make_certificate("S", MIDDLE, extension=x509.InhibitAnyPolicy(0)),
            "that of S has the extension 2.5.29.54, which is not supported",
        ),
    ],
)
def test_a_certificate_that_is_not_valid_or_for_something_else_is_refused(
    onnx_bundle: Bundle, signer: Authority, sentence: str
) -> None:
    assert sentence in refusal(sign(onnx_bundle, signer, MIDDLE), ROOT)


@pytest.mark.parametrize("purposes", [None, (ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.TIME_STAMPING)])
def test_one_of_the_two_ways_to_be_for_signing_is_enough(
    onnx_bundle: Bundle, purposes: tuple[x509.ObjectIdentifier, ...] | None
) -> None:
    signer = make_certificate("S", MIDDLE, digital_signature=True if purposes is None else None, purposes=purposes)
    assert Bundle.open(sign(onnx_bundle, signer, MIDDLE), trusted_keys=ROOT.pem).signature is not None


def test_an_authority_that_has_expired_or_may_not_issue_vouches_for_nobody(onnx_bundle: Bundle) -> None:
    expired = make_certificate("Middle", ROOT, is_authority=True, days=(-9, -1))
    said = refusal(sign(onnx_bundle, make_certificate("S", expired, days=(-5, 5)), expired), ROOT)
    assert "that has expired: that of Middle was valid until" in said
    young = make_certificate("Middle", ROOT, is_authority=True, days=(-1, 9))
    said = refusal(sign(onnx_bundle, make_certificate("S", young, days=(-5, 5)), young), ROOT)
    assert "not valid yet: that of Middle" in said
    assert "when the signer's became valid" in said
    leaf = make_certificate("Leaf", ROOT)
    assert "no trusted root leads there" in refusal(sign(onnx_bundle, make_certificate("S", leaf), leaf), ROOT)
    below = make_certificate("Below", MIDDLE, is_authority=True)  # Middle may have none below it.
    said = refusal(sign(onnx_bundle, make_certificate("S", below), below, MIDDLE), ROOT)
    assert "no trusted root leads there" in said


def test_a_certificate_of_the_same_name_with_another_key_vouches_for_nothing(onnx_bundle: Bundle) -> None:
    twin = make_certificate("Middle", make_certificate("Root", is_authority=True), is_authority=True)
    said = refusal(sign(onnx_bundle, make_certificate("S", twin), MIDDLE, twin), ROOT)
    assert "no trusted root leads there" in said


def test_the_signature_is_that_of_the_certificates_key(onnx_bundle: Bundle, tmp_path: Path) -> None:
    chain = (SIGNER.certificate, MIDDLE.certificate)
    sign_by_hand(onnx_bundle.folder, make_key(tmp_path).key, certificates=chain)
    assert "is not valid: it was changed, or was not made by the certificate of Signer" in refusal(
        onnx_bundle.folder, ROOT
    )


def test_a_certificate_counts_until_its_last_second(onnx_bundle: Bundle) -> None:
    envelope = read_signature(sign(onnx_bundle, SIGNER, MIDDLE))
    assert envelope is not None
    trusted, end = trusted_keys(ROOT.pem), NOW + timedelta(days=30)
    check_signer(envelope, trusted, "it", now=end)
    with pytest.raises(BundleError, match="has expired"):
        check_signer(envelope, trusted, "it", now=end + timedelta(seconds=1))
