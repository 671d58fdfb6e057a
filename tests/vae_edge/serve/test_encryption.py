"""The files of the server's own TLS, before a server starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vae_edge.errors import InputError
from vae_edge.serve.encryption import Encryption


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("which", ["certificate", "private_key"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path, which: str) -> None:
    files = {"certificate": tmp_path / "own.pem", "private_key": tmp_path / "key.pem"}
    for name, path in files.items():
        path.touch() if name != which else os.mkfifo(path)
    with pytest.raises(InputError, match=r"could not be read \(it is a FIFO; expected a regular file\)"):
        Encryption.read(**files)
