"""Windows' rules imposed on Linux, so that what would fail there fails here.

`pytest -p tests.windows_semantics.plugin` (or `make test-windows-semantics`) runs tests under them; programs that the
tests start get them as well. They hold for the code of `vae_edge` and of the tests: other packages still see Linux.

- Files (`files`): what is open or mapped, in this process or in one that it started, cannot be renamed, replaced or
  deleted, nor can a folder that holds it; folders cannot be opened; names are case-insensitive, some names and
  characters are refused, and so are paths of more than 259 characters; a handle that only reads cannot be flushed;
  links need a privilege that nobody has; a locked region cannot be read through another handle.
- The system (`system`): `os.name`, `sys.platform`, no fork, no kill, no fcntl; msvcrt and kernel32 are doubles.
- Consoles: stdout is cp1252 and strict.
- What never fails but is wrong there is written down as a violation and fails the test: text files whose encoding is
  left to the system, and waiting in the main thread without a time limit, during which Ctrl-C is not heard.

What this cannot show: drive letters, backslashes and UNC paths; rights (ACLs); virus scanners that hold new files open;
what the real C runtime, console, job objects and drivers do; Windows builds of the runtimes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.windows_semantics import files, system

_SITE = Path(__file__).with_name("site")
_ROOT = Path(__file__).resolve().parents[2]


def _impose() -> None:
    """Impose the rules here and on the programs that tests start."""
    place = _scope()
    os.environ["TMPDIR"] = str(place)
    tempfile.tempdir = None
    os.environ[system.VIOLATIONS] = str(place / "violations")
    path = [str(_SITE), str(_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    os.environ["PYTHONIOENCODING"] = "cp1252:strict"
    files.impose()
    system.impose()


def _scope() -> Path:
    """Return a folder for temporary files of its own, with as long a path as Windows gives a user's."""
    here = tempfile.mkdtemp(prefix="vae-edge-")
    usual = len(r"C:\Users\runneradmin\AppData\Local\Temp") + len("runneradmin") - len("root")
    deep = Path(here, "Temp".rjust(usual - len(here) - 1, "_"))
    deep.mkdir()
    return deep


_impose()  # Now: the conftest files, which are imported next, import the product.


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder for temporary files, by Linux's rules."""
    place = Path(os.environ.pop("TMPDIR"))
    files.lift()
    shutil.rmtree(place.parent, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_violation() -> Iterator[None]:
    """Fail a test during which something happened that is wrong on Windows and does not fail by itself."""
    place = Path(os.environ[system.VIOLATIONS])
    place.write_bytes(b"")
    yield
    found = sorted(set(place.read_text(encoding="utf-8").splitlines()))
    assert not found, "\n".join(found)
