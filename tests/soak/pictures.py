"""The pictures that a soak gives: whole, torn and broken ones, and what each has to be called."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.soak.ledger import ANOMALOUS, ERROR, NORMAL
from tests.tiny_bundles import dark_image, spotted_image

_SIZE = 64
_KINDS = 20
BROKEN_EVERY = 25
"""One of so many is not a picture, and is owed an error."""
TORN_EVERY = 7
"""One of so many is half-written at first."""


def encoded(number: int) -> tuple[bytes, str, str]:
    """Return the content of a picture file, its ending, and the verdict that it is owed."""
    suffix = ".jpg" if number % 3 == 0 else ".png"
    if number % BROKEN_EVERY == BROKEN_EVERY - 1:
        return b"\x89PNG\r\n\x1a\n" + bytes(range(200)), suffix, ERROR
    is_spotted = number % 4 == 0
    draw = spotted_image if is_spotted else dark_image
    return _file(draw, number % _KINDS, suffix), suffix, ANOMALOUS if is_spotted else NORMAL


@cache
def _file(draw: Callable[[int, int], NDArray[np.uint8]], seed: int, suffix: str) -> bytes:
    done, data = cv2.imencode(suffix, draw(seed, _SIZE))
    assert done
    return data.tobytes()


_ways = itertools.cycle(("half", "empty", "zeros"))


def write_torn(path: Path, content: bytes, pause_s: float) -> None:
    """Write a file as slow programs do: half of it, nothing, or zeros of the whole size; and the rest after a pause."""
    way = next(_ways)
    with path.open("wb", buffering=0) as file:
        if way == "half":
            file.write(content[: len(content) // 2])
        elif way == "zeros":
            file.write(bytes(len(content)))
        time.sleep(pause_s)
        if way == "zeros":
            file.seek(0)
            file.write(content)
        else:
            file.write(content[len(content) // 2 :] if way == "half" else content)
