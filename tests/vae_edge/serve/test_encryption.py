"""The files of the server's own TLS, before a server starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.line_receivers import certificate
from vae_edge.errors import InputError, UsageError
from vae_edge.serve.encryption import Encryption


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("which", ["certificate", "private_key"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path, which: str) -> None:
    files = {"certificate": tmp_path / "own.pem", "private_key": tmp_path / "key.pem"}
    for name, path in files.items():
        path.touch() if name != which else os.mkfifo(path)
    with pytest.raises(InputError, match=r"could not be read \(it is a FIFO; expected a regular file\)"):
        Encryption.read(**files)


@pytest.mark.parametrize(("since", "days", "problem"), [(-3, -1, "has expired"), (1, 2, "is not valid yet")])
def test_a_certificate_that_is_not_valid_now_is_refused(tmp_path: Path, since: int, days: int, problem: str) -> None:
    own, key = certificate(tmp_path, "press3", since=since, days=days)
    with pytest.raises(UsageError, match=rf"press3\.pem has a certificate that {problem}: that of press3 .* the clock"):
        Encryption.read(own, key)


def test_the_certificates_that_lead_to_a_known_one_have_to_be_valid_too(tmp_path: Path) -> None:
    own, key = certificate(tmp_path, "press3")
    old, _ = certificate(tmp_path, "authority", days=-1)
    assert Encryption.read(own, key) == Encryption(own, key)
    own.write_bytes(own.read_bytes() + old.read_bytes())
    with pytest.raises(
        UsageError, match=r"press3\.pem has a certificate that has expired: that of authority was valid"
    ):
        Encryption.read(own, key)
