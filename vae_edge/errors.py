"""The exceptions of vae-edge.

    VaeEdgeError
    ├── InputError              (ValueError)    an image, a data set or a file cannot be used
    │   └── UsageError          (ValueError)    an argument has an unusable value
    ├── BundleError             (ValueError)    a bundle or a run folder is damaged, foreign or too new
    ├── MissingDependencyError  (ImportError)   a package is not installed; the message says how to install it
    ├── DeviceError             (RuntimeError)  the device or its driver cannot do what was asked
    └── ParityError             (RuntimeError)  an exported model does not give the trained model's verdict

A message names the actual value, the expected one and what to do. The command line prints it without a traceback.
"""

from __future__ import annotations

import re


class VaeEdgeError(Exception):
    """Base of all exceptions of vae-edge."""

    exit_code: int = 1
    """Exit code of a command that ends with this error: 1 failed, 2 wrong usage, 3 a gate failed."""


class InputError(VaeEdgeError, ValueError):
    """An image, a data set, a file or an argument cannot be used."""


class UsageError(InputError):
    """An argument has an unusable value, regardless of files and machine."""

    exit_code = 2


class BundleError(VaeEdgeError, ValueError):
    """A bundle or a run folder is damaged, foreign or written by a newer version."""


class MissingDependencyError(VaeEdgeError, ImportError):
    """A package is not installed."""


class DeviceError(VaeEdgeError, RuntimeError):
    """The device, its driver or its runtime cannot do what was asked."""


class ParityError(VaeEdgeError, RuntimeError):
    """An exported model does not give the trained model's verdict."""

    exit_code = 3


_MOST_CHARACTERS = 300

_OF_A_SOURCE_FILE = re.compile(r"Exception from \S+|Check '.*' failed at \S+")
"""Lines of OpenVINO's messages that name a place in its source, before those that say what happened."""


def said_by(error: BaseException) -> str:
    """Return what an error of another library says in one line of at most 300 printable characters.

    That is its first line with any content. Messages repeat the contents of a file, so control characters, which
    could act on a terminal, are written as escapes. The full message is in the exception's `__cause__`.
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    lines = (line.strip().removesuffix(":") for line in str(error)[:100_000].splitlines())
    text = next((line for line in lines if line and not _OF_A_SOURCE_FILE.fullmatch(line)), type(error).__name__)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: _MOST_CHARACTERS + 1])
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
