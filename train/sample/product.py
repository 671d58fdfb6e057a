"""What every product of the sample set provides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from vae_edge.train.sample.camera import Spread
from vae_edge.train.sample.canvas import FloatImage

Draw: TypeAlias = Callable[[np.random.Generator, int], FloatImage]
"""Draws a good part: (the part's generator, the canvas' side C) to a picture, float32 [C, C, 3] from 0 to 255."""

Spoil: TypeAlias = Callable[[np.random.Generator, np.random.Generator, int, str], FloatImage]
"""Draws the same part with a defect: (the part's generator, the defect's generator, C, kind) to a picture.

Given the part's generator in the state that ``Draw`` got it in, it differs from that drawing by the defect alone.
"""


@dataclass(frozen=True)
class Product:
    """One product: its name, the kinds of defect it can have, how its photographs vary, and how it is drawn."""

    name: str
    kinds: tuple[str, ...]
    spread: Spread
    draw: Draw
    spoil: Spoil
