"""`vae-edge sign`: sign a bundle with a key or a certificate, so that a device can tell who made it."""

from __future__ import annotations

import codecs
import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.bundle import Bundle
from vae_edge.cli.console import print_warning, results_console
from vae_edge.errors import InputError, UsageError
from vae_edge.manifest import MANIFEST_FILE
from vae_edge.platform.outside import printable
from vae_edge.records import open_regular, read_bounded
from vae_edge.signing.signer import PASSWORD_VARIABLE, PasswordNeededError, SigningKey, sign_folder
from vae_edge.sinks.sink import trust_warnings
from vae_edge.wording import count

_MAX_PASSWORD_BYTES = 1024


def sign(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a folder made by vae-export.")],
    key: Annotated[Path, typer.Option(metavar="KEY.pem", help="The private key: EC on P-256, P-384 or P-521, in PEM.")],
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="CERT.pem", help="The key's certificate: devices then trust its root, not the key."),
    ] = None,
    chain: Annotated[
        list[Path] | None,
        typer.Option(metavar="CA.pem", help="Certificates from that one to its root; may be repeated."),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File whose first line is the key's password; otherwise {PASSWORD_VARIABLE} is used, or you are "
            "asked.",
        ),
    ] = None,
) -> None:
    """Sign a bundle: model.sig in it then says who made it, and covers every file (OpenSSF model signing).

        openssl ecparam -name prime256v1 -genkey -noout -out key.pem
        openssl pkey -in key.pem -pubout -out public.pem
        vae-edge sign bundles/tile-openvino-int8 --key key.pem
        vae-run bundles/tile-openvino-int8 today --trusted-key public.pem

    A signature that is there is replaced. No network is used.
    """
    if chain and certificate is None:
        raise UsageError("--chain is for certificates: add --certificate, that of the key")
    opened = Bundle.open(bundle, obeys_policy=False)
    signing_key = _read_key(key, certificate, chain or [], password_file)
    assert opened.seen is not None
    known = {file.name: file.sha256 for file in opened.manifest.files} | {MANIFEST_FILE: opened.seen.manifest_sha256}
    for warning in trust_warnings(opened):
        print_warning(warning)
    done = sign_folder(opened.folder, signing_key, known)
    said = f"{opened.folder} is signed by {signing_key.by}: model.sig covers its {count(done.n_files, 'file')}."
    results_console().print(printable(said), markup=False, highlight=False, soft_wrap=True)
    if done.replaces:
        results_console().print("The signature that was there has been replaced.", soft_wrap=True)


def _read_key(path: Path, certificate: Path | None, chain: list[Path], password_file: Path | None) -> SigningKey:
    password = _password(password_file)
    try:
        return SigningKey.read(path, password, certificate=certificate, chain=chain)
    except PasswordNeededError:
        if not sys.stdin.isatty():
            raise
        typed = getpass.getpass(f"Password of {printable(str(path))}: ")
        return SigningKey.read(path, typed.encode(), certificate=certificate, chain=chain)


def _password(file: Path | None) -> bytes | None:
    """Return the password of the key, from a file or the environment; None: there is none.

    Raises:
        InputError: the file cannot be read, is in UTF-16 or is empty.
    """
    if file is None:
        text = os.environ.get(PASSWORD_VARIABLE)
        return text.encode() if text else None
    try:
        with open_regular(file) as opened:
            content = read_bounded(opened, _MAX_PASSWORD_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the file of the password {file} cannot be read ({reason})") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"the file of the password {file} is in UTF-16; save it in UTF-8")
    password = content.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].rstrip(b"\r")
    if not password:
        raise InputError(f"the file of the password {file} is empty; expected the password in its first line")
    return password
