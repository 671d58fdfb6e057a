"""Keeps out of the file what tells whose device it is: names, addresses, serial numbers and paths.

Nothing of that is collected, but error messages repeat paths, and libraries write what they like. So every text passes
here before it is written.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vae_edge.platform.machine import read_system_file
from vae_edge.platform.outside import home_folder

_PATTERNS = (
    (
        re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}(?![0-9A-Fa-f])"),
        "<mac>",
    ),
    (re.compile(r"(?:GPU-|MIG-)?[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"), "<id>"),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "<address>"),
    (re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)[^\s'\"`,;:()<>|]*"), "<path>"),
)
"""Of network cards, GPUs and other things with a UUID, of people, and of home folders, whoever's they are."""

_SERIAL_FILES = (
    "proc/device-tree/serial-number",
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "sys/class/dmi/id/product_serial",
    "sys/class/dmi/id/board_serial",
    "sys/class/dmi/id/chassis_serial",
    "sys/class/dmi/id/product_uuid",
)
_NETWORK_CARDS = "sys/class/net/*/address"

_FEWEST_CHARACTERS = 3
_TELLS_NOTHING = re.compile(
    r"root|user|admin|test|host|localhost|runner|nvidia|jetson|orin|ubuntu|debian|docker|linux|windows|none|unknown|"
    r"default|python|cuda|[cgn]pu|tensorrt|openvino|onnx|onnxruntime|torch|0+|0123456789",
    re.IGNORECASE,
)
"""Names that many devices have, and that are words of the report too."""


class Redactor:
    """Replaces private texts in whatever is to be written.

    Args:
        named: further texts to replace, and what to write in place of each: the folders of given bundles.
        root: where the system's files are; another than `/` in tests.
    """

    def __init__(self, named: Mapping[str, str] | None = None, root: Path = Path("/")) -> None:
        words: dict[str, str] = {}
        for user in _users():
            words[user] = "<user>"
        for host in (platform.node(), _host_name(), os.environ.get("HOSTNAME", ""), os.environ.get("COMPUTERNAME", "")):
            words[host] = "<host>"
            words[host.partition(".")[0]] = "<host>"
        for file in _SERIAL_FILES:
            words[read_system_file(root / file)] = "<serial>"
        for path in root.glob(_NETWORK_CARDS):
            words[read_system_file(path)] = "<mac>"
        told = {
            word: label
            for word, label in words.items()
            if len(word) >= _FEWEST_CHARACTERS and not _TELLS_NOTHING.fullmatch(word)
        }
        self._words = [
            (re.compile(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", re.IGNORECASE), label)
            for word, label in sorted(told.items(), key=lambda each: -len(each[0]))
        ]
        paths = {**_homes(), **(named or {})}
        self._paths = [(path, paths[path]) for path in sorted(paths, key=len, reverse=True)]

    def text(self, text: str) -> str:
        """Return a text without them."""
        for path, label in self._paths:
            if label == "<path>":
                text = re.sub(rf"{re.escape(path)}(?:[/\\][^\s'\"`,;:()<>|]*)?(?![A-Za-z0-9])", label, text)
            else:
                text = text.replace(path, label)
        for pattern, label in (*_PATTERNS, *self._words):
            text = pattern.sub(label, text)
        return text

    def value(self, value: Any) -> Any:
        """Return a value of JSON without them: all of its texts, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        return value


def _users() -> set[str]:
    found = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER", "USERNAME")}
    with suppress(KeyError, OSError, ImportError):  # A container's user may have no name.
        found.add(getpass.getuser())
    found |= {Path(home).name for home in _homes()}
    return found - {""}


def _homes() -> dict[str, str]:
    homes = {str(home) for home in (home_folder(),) if home is not None}
    homes |= {str(Path(home).resolve()) for home in homes}
    # A home that is the root of everything tells nothing, and would hide all paths.
    return {home: "<path>" for home in homes if len(Path(home).parts) > 1}


def _host_name() -> str:
    try:
        return socket.gethostname()
    except OSError:
        return ""
