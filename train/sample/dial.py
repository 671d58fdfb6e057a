"""The face of a pressure gauge before the pointer is fitted: enamel, print, coloured zones and a turned bezel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from vae_edge.train.sample import defects
from vae_edge.train.sample.camera import Spread
from vae_edge.train.sample.canvas import (
    Canvas,
    FloatImage,
    Point,
    blend,
    blur,
    cloud,
    grain,
    shaded,
    turned,
    turned_metal,
    unit_grid,
)
from vae_edge.train.sample.product import Product

_CENTRE = (0.5, 0.5)
_BEZEL, _FACE = 0.46, 0.405
_FIRST, _LAST = 135.0, 405.0  # Angles of the marks 0 and 10.
_BROWN, _OIL = (150.0, 105.0, 55.0), (120.0, 112.0, 92.0)


@dataclass(frozen=True)
class _Dial:
    """One dial within its tolerances; the generators of its textures start from ``grain_seed``."""

    print_shift: Point
    print_turn: float
    ink: float
    enamel: float
    sheen: float
    grain_seed: int
    numerals: tuple[str, ...] = tuple(str(n) for n in range(11))
    marks: frozenset[int] = field(default_factory=lambda: frozenset(range(51)))
    zones: tuple[float, ...] = (0.0, 0.6, 0.8, 1.0)


def _dial(rng: np.random.Generator) -> _Dial:
    shift_x, shift_y = rng.uniform(-0.0012, 0.0012, 2)
    return _Dial(
        print_shift=(float(shift_x), float(shift_y)),
        print_turn=float(rng.uniform(-0.25, 0.25)),
        ink=float(rng.uniform(30, 42)),
        enamel=float(rng.uniform(-5, 5)),
        sheen=float(rng.uniform(-8, 8)),
        grain_seed=int(rng.integers(1 << 32)),
    )


def _angle(share: float) -> float:
    return _FIRST + (_LAST - _FIRST) * share


def _paint(dial: _Dial, size: int) -> FloatImage:
    rng = np.random.default_rng(dial.grain_seed)
    canvas = Canvas(size, (58, 63, 70))
    canvas.disc(_CENTRE, _BEZEL, (176, 178, 182))
    canvas.ring(_CENTRE, _BEZEL - 0.003, 0.006, (120, 122, 126))
    canvas.ring(_CENTRE, _BEZEL - 0.022, 0.005, (214, 216, 219))
    canvas.disc(_CENTRE, _FACE + 0.008, (74, 75, 78))
    canvas.disc(_CENTRE, _FACE, shaded((232, 229, 217), 1, dial.enamel))
    _print(canvas, dial)
    canvas.disc(_CENTRE, 0.052, (150, 122, 66))
    canvas.disc(_CENTRE, 0.044, (196, 166, 98))
    canvas.disc(_CENTRE, 0.026, (34, 32, 30))
    for x in (0.385, 0.615):
        canvas.disc((x, 0.5), 0.0175, (122, 124, 128))
        canvas.disc((x - 0.001, 0.499), 0.0145, (190, 192, 195))
    picture = canvas.picture()

    fan_cos, fan_sin, metal, shade = _relief(size)
    turn = 2 * math.radians(-50 + dial.sheen)
    light = shade + fan_cos * np.float32(math.cos(turn)) + fan_sin * np.float32(math.sin(turn))
    light += np.float32(0.025) * metal * turned_metal(rng, size)
    light += np.float32(0.010) * grain(rng, size) + np.float32(0.006) * cloud(rng, size, 5)
    picture *= light[:, :, None]
    return np.clip(picture, 0, 255, out=picture)


@lru_cache(maxsize=4)
def _relief(size: int) -> tuple[FloatImage, FloatImage, FloatImage, FloatImage]:
    """Return what the light does to every dial alike, each float32 [size, size].

    The first two are the cosine and the sine part of the bezel's sheen, the third is 1 on the bezel, the fourth is the
    light of what lies in the bezel's shadow and 1 elsewhere.
    """
    x, y = unit_grid(size)
    bearing = np.arctan2(y - np.float32(0.5), x - np.float32(0.5))
    radius = np.hypot(x - np.float32(0.5), y - np.float32(0.5))
    metal = np.clip((radius - np.float32(_FACE + 0.008)) * size, 0, 1) * np.clip((_BEZEL - radius) * size, 0, 1)
    # Turned metal throws the light back in two opposite fans.
    fan_cos, fan_sin = (np.float32(0.16) * metal * wave(2 * bearing) for wave in (np.cos, np.sin))
    # The bezel stands above enamel and mat: its shadow falls inwards at the upper left, outwards at the lower right.
    fall = np.clip(1 - np.abs(radius - np.float32(_FACE - 0.012)) / np.float32(0.018), 0, 1)
    inwards = np.float32(0.16) * fall * np.clip(-np.cos(bearing - np.float32(0.8)), 0, 1)
    cast = np.clip(1 - (radius - np.float32(_BEZEL)) / np.float32(0.035), 0, 1) * (radius > _BEZEL)
    outwards = np.float32(0.45) * cast * np.clip(np.cos(bearing - np.float32(0.8)) + np.float32(0.5), 0, 1)
    fields = tuple(part.astype(np.float32) for part in (fan_cos, fan_sin, metal, 1 - inwards - outwards))
    for shared in fields:
        shared.setflags(write=False)
    return fields[0], fields[1], fields[2], fields[3]


def _print(canvas: Canvas, dial: _Dial) -> None:
    centre = (_CENTRE[0] + dial.print_shift[0], _CENTRE[1] + dial.print_shift[1])
    ink = (dial.ink, dial.ink, dial.ink + 4)
    colours = ((56, 140, 84), (226, 178, 48), (196, 52, 46))
    for colour, start, end in zip(colours, dial.zones, dial.zones[1:], strict=False):
        angles = (_angle(start) + dial.print_turn, _angle(end) + dial.print_turn)
        canvas.arc(centre, 0.372, angles, 0.020, colour)
    for mark in sorted(dial.marks):
        angle = _angle(mark / 50) + dial.print_turn
        long = mark % 5 == 0
        ends = [turned(centre, (reach, 0.0), angle) for reach in (0.308 if long else 0.333, 0.358)]
        canvas.line(ends, 0.0095 if long else 0.0045, ink)
    for place, numeral in enumerate(dial.numerals):
        spot = turned(centre, (0.248, 0.0), _angle(place / 10) + dial.print_turn)
        canvas.text(numeral, spot, 0.056, ink, dial.print_turn)
    for text, offset, height in (
        ("BAR", (0.0, -0.125), 0.044),
        ("VE-20", (0.0, 0.150), 0.036),
        ("CL 1.6", (0.0, 0.222), 0.026),
    ):
        canvas.text(text, turned(centre, offset, dial.print_turn), height, ink, dial.print_turn)
    canvas.text("EN 837-1", turned(centre, (0.0, 0.300), dial.print_turn), 0.022, ink, dial.print_turn)


def _draw(rng: np.random.Generator, size: int) -> FloatImage:
    return _paint(_dial(rng), size)


def _spoil(rng: np.random.Generator, flaw: np.random.Generator, size: int, kind: str) -> FloatImage:
    dial = _dial(rng)
    if kind == "misprint":
        return _paint(_misprinted(dial, flaw), size)
    picture = _paint(dial, size)
    place = defects.point_in_disc(flaw, _CENTRE, 0.30)
    if kind == "scratch":
        return defects.scratch(picture, flaw, place, (0.28, 0.60), (0.5, 0.95), (0.004, 0.008))
    if kind == "stain":
        colour = _BROWN if flaw.random() < 0.6 else _OIL
        return defects.stain(picture, flaw, place, (0.035, 0.10), (0.35, 0.85), colour)
    if kind == "smudge":
        spot = turned(_CENTRE, (flaw.uniform(0.25, 0.35), 0.0), _angle(flaw.random()))
        return defects.smear(picture, flaw, spot, (0.055, 0.10), (0.035, 0.07))
    if kind == "chip":
        return _chipped(picture, flaw)
    if kind == "dent":
        spot = turned(_CENTRE, (flaw.uniform(0.42, 0.445), 0.0), flaw.uniform(0, 360))
        return defects.dent(picture, flaw, spot, (0.035, 0.060), (0.60, 1.20), _relief(size)[2])
    fibre_colour = ((38.0, 42.0, 60.0), (170.0, 40.0, 44.0), (44.0, 84.0, 150.0))[int(flaw.integers(3))]
    return defects.fibre(picture, flaw, place, (0.18, 0.40), (0.004, 0.008), fibre_colour)


def _misprinted(dial: _Dial, flaw: np.random.Generator) -> _Dial:
    fault = int(flaw.integers(3))
    if fault == 0:  # Two numerals are missing.
        gone = int(flaw.integers(0, 10))
        return replace(
            dial, numerals=tuple("" if n in (gone, gone + 1) else text for n, text in enumerate(dial.numerals))
        )
    if fault == 1:  # A run of marks did not print.
        start, n = int(flaw.integers(0, 44)), int(flaw.integers(5, 10))
        return replace(dial, marks=dial.marks - frozenset(range(start, start + n)))
    move = flaw.choice([-1.0, 1.0]) * flaw.uniform(0.08, 0.14)  # The red zone starts at the wrong mark.
    return replace(dial, zones=(0.0, 0.6, 0.8 + float(move), 1.0))


def _chipped(picture: FloatImage, flaw: np.random.Generator) -> FloatImage:
    size = picture.shape[0]
    spot = turned(_CENTRE, (flaw.uniform(0.20, 0.39), 0.0), flaw.uniform(0, 360))
    body = defects.blot(flaw, size, spot, flaw.uniform(0.026, 0.055), 0.5)
    # Enamel breaks down to dark primer and, in the middle, to bare steel; the broken edge catches the light.
    halo = np.clip(blur(body, 0.004) * 2, 0, 1)
    core = np.clip(blur(body, 0.008) * 2.2 - 1.2, 0, 1)
    chipped = blend(picture, halo * np.float32(0.6), (248.0, 247.0, 242.0))
    return blend(blend(chipped, body, (66.0, 60.0, 56.0)), core * np.float32(0.8), (138.0, 136.0, 134.0))


DIAL = Product(
    name="dial",
    kinds=("chip", "dent", "fibre", "misprint", "scratch", "smudge", "stain"),
    spread=Spread(shift=0.004, turn=0.6, zoom=0.003, exposure=0.04, gradient=0.05),
    draw=_draw,
    spoil=_spoil,
)
