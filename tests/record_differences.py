"""What an old record says and the record that it is read into does not."""

from __future__ import annotations

from typing import Any


def differences(written: Any, read: Any, name: str = "") -> list[str]:
    """Return the names of what differs, `a.b` for a field within a field; what came later has no counterpart."""
    if isinstance(written, dict) and isinstance(read, dict):
        inner = f"{name}." if name else ""
        return [each for key in written for each in differences(written[key], read.get(key), f"{inner}{key}")]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [
            each
            for i, pair in enumerate(zip(written, read, strict=True))
            for each in differences(*pair, f"{name}[{i}]")
        ]
    return [] if written == read else [name]
