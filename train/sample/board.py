"""A small controller board on its tray: screws, chip, connector, capacitors, resistors, lamp and three wires."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from vae_edge.train.sample import defects
from vae_edge.train.sample.camera import Spread
from vae_edge.train.sample.canvas import Canvas, Colour, FloatImage, Point, blur, brushed, cloud, grain, shaded, turned
from vae_edge.train.sample.product import Product

_SCREWS: tuple[Point, ...] = ((0.135, 0.175), (0.865, 0.175), (0.135, 0.825), (0.865, 0.825))
_CAPACITORS: tuple[Point, ...] = ((0.265, 0.285), (0.375, 0.285), (0.485, 0.285))
_RESISTORS: tuple[Point, ...] = tuple((0.245 + 0.062 * n, 0.800) for n in range(5))
_CODES = ("103", "472", "103", "220", "472")
_LAMP, _CHIP, _CONNECTOR = (0.690, 0.285), (0.375, 0.560), (0.682, 0.790)
_PINS: tuple[float, ...] = (0.612, 0.682, 0.752)
_WIRES: tuple[Colour, ...] = ((186, 42, 40), (226, 186, 52), (40, 42, 46))
_HOLES: tuple[Point, ...] = ((0.610, 0.470), (0.670, 0.470), (0.730, 0.470))


@dataclass(frozen=True)
class _Board:
    """One board within its tolerances. Offsets are from each part's place, turns in degrees."""

    slots: tuple[float, ...]
    offsets: tuple[Point, ...]
    turns: tuple[float, ...]
    sags: tuple[float, ...]
    lacquer: float
    grain_seed: int
    missing: frozenset[str] = frozenset()
    codes: tuple[str, ...] = _CODES
    lamp: Colour = (196.0, 40.0, 36.0)
    cut_wire: tuple[int, float] | None = None
    bridge: int | None = None


def _board(rng: np.random.Generator) -> _Board:
    offsets = rng.uniform(-0.0035, 0.0035, (14, 2))
    return _Board(
        slots=tuple(float(turn) for turn in rng.uniform(0, 180, len(_SCREWS))),
        offsets=tuple((float(x), float(y)) for x, y in offsets),
        turns=tuple(float(turn) for turn in rng.uniform(-1.6, 1.6, 14)),
        sags=tuple(float(sag) for sag in rng.uniform(-0.014, 0.014, len(_WIRES))),
        lacquer=float(rng.uniform(-6, 6)),
        grain_seed=int(rng.integers(1 << 32)),
    )


def _moved(board: _Board, number: int, place: Point) -> Point:
    return place[0] + board.offsets[number][0], place[1] + board.offsets[number][1]


def _paint(board: _Board, size: int) -> FloatImage:
    rng = np.random.default_rng(board.grain_seed)
    tray = brushed(rng, size)
    ground = Canvas(size, (140, 144, 149))
    _lay_out(ground, board)
    shadow = Canvas(size, 0)
    _shadows(shadow, board)
    picture = ground.picture()
    bare = Canvas(size, 0)
    bare.box((0.5, 0.5), (0.88, 0.80), 255)
    on_tray = 1 - bare.coverage()
    shade = 1 + on_tray * np.float32(0.035) * tray + np.float32(0.012) * grain(rng, size)
    shade += np.float32(0.010) * cloud(rng, size, 4)
    shade *= 1 - np.float32(0.50) * blur(shadow.coverage(), 0.008)
    picture = np.clip(picture * shade[:, :, None], 0, 255)
    # The parts come after the shadows that they throw on the board.
    ground.pixels = np.rint(picture).astype(np.uint8)
    _fit(ground, board)
    return ground.picture()


def _lay_out(canvas: Canvas, board: _Board) -> None:
    """Draw the bare board: lacquer, tracks, pads and legend."""
    lacquer = (22.0, 88.0 + board.lacquer, 62.0 + board.lacquer / 2)
    track = (34.0, 112.0 + board.lacquer, 80.0 + board.lacquer / 2)
    tin, legend = (198.0, 190.0, 150.0), (214.0, 220.0, 212.0)
    canvas.box((0.508, 0.512), (0.88, 0.80), (96, 99, 104))
    canvas.box((0.5, 0.5), (0.88, 0.80), (14, 58, 42))
    canvas.box((0.5, 0.5), (0.872, 0.792), lacquer)
    for n, pin in enumerate(_PINS):
        y = 0.505 + 0.028 * n
        canvas.line([(pin, 0.74), (pin, 0.66 - 0.02 * n), (pin - 0.05, y + 0.1), (0.47, y)], 0.009, track)
    for n, (x, _) in enumerate(_RESISTORS):
        canvas.line([(x, 0.765), (x, 0.71), (0.300 + 0.036 * n, 0.665), (0.300 + 0.036 * n, 0.62)], 0.007, track)
    for n, (x, y) in enumerate(_CAPACITORS):
        canvas.line([(x, y), (x, 0.400), (0.315 + 0.045 * n, 0.440), (0.315 + 0.045 * n, 0.50)], 0.009, track)
    canvas.line([_LAMP, (0.69, 0.385), (0.55, 0.385), (0.525, 0.41), (0.49, 0.455)], 0.009, track)
    canvas.line([(0.09, 0.25), (0.09, 0.75)], 0.012, track)
    canvas.line([(0.91, 0.25), (0.91, 0.75)], 0.012, track)
    for x, y in ((0.56, 0.62), (0.60, 0.36), (0.86, 0.42), (0.84, 0.60), (0.18, 0.42), (0.18, 0.62), (0.530, 0.870)):
        canvas.disc((x, y), 0.009, tin)
        canvas.disc((x, y), 0.004, (24, 30, 28))
    for x, y in _SCREWS:
        canvas.disc((x, y), 0.056, tin)
        canvas.disc((x, y), 0.024, (26, 26, 28))
    for x, y in _HOLES:
        canvas.disc((x, y), 0.020, tin)
    for x, y in _CAPACITORS:
        canvas.ring((x, y), 0.050, 0.004, legend)
        canvas.disc((x - 0.016, y), 0.009, tin)
        canvas.disc((x + 0.016, y), 0.009, tin)
    canvas.ring(_LAMP, 0.047, 0.004, legend)
    for x in (-0.014, 0.014):
        canvas.disc((_LAMP[0] + x, _LAMP[1]), 0.009, tin)
    for x, y in _RESISTORS:
        canvas.box((x, y - 0.021), (0.036, 0.018), tin)
        canvas.box((x, y + 0.021), (0.036, 0.018), tin)
    for n in range(8):
        for y in (0.478, 0.642):
            canvas.box((0.270 + 0.030 * n, y), (0.016, 0.034), tin)
    canvas.text("VE-7 CONTROL", (0.5, 0.150), 0.026, legend)
    for n, (x, _) in enumerate(_CAPACITORS):
        canvas.text(f"C{n + 1}", (x, 0.358), 0.021, legend)
    for n, (x, _) in enumerate(_RESISTORS):
        canvas.text(f"R{n + 1}", (x, 0.853), 0.019, legend)
    for text, place in (("D1", (0.757, 0.285)), ("U1", (0.205, 0.52)), ("J1", (0.527, 0.740)), ("+", (0.610, 0.430))):
        canvas.text(text, place, 0.021, legend)


def _shadows(canvas: Canvas, board: _Board) -> None:
    """Cover what lies in a part's shadow; the light comes from the upper left."""
    for n, screw in enumerate(_SCREWS):
        if f"screw {n}" not in board.missing:
            canvas.disc((screw[0] + 0.007, screw[1] + 0.008), 0.044, 220)
    for n, capacitor in enumerate(_CAPACITORS):
        if f"capacitor {n}" not in board.missing:
            x, y = _moved(board, n, capacitor)
            canvas.disc((x + 0.013, y + 0.015), 0.046, 255)
    if "lamp" not in board.missing:
        x, y = _moved(board, 3, _LAMP)
        canvas.disc((x + 0.012, y + 0.014), 0.040, 240)
    x, y = _moved(board, 4, _CHIP)
    canvas.box((x + 0.007, y + 0.009), (0.252, 0.142), 220, board.turns[4] / 2)
    x, y = _moved(board, 5, _CONNECTOR)
    canvas.box((x + 0.011, y + 0.013), (0.250, 0.112), 255, board.turns[5] / 2)
    for n, resistor in enumerate(_RESISTORS):
        if f"resistor {n}" not in board.missing:
            x, y = _moved(board, 6 + n, resistor)
            canvas.box((x + 0.003, y + 0.004), (0.036, 0.056), 160, board.turns[6 + n])
    for n in range(len(_WIRES)):
        for path in _wire(board, n):
            canvas.line([(x + 0.010, y + 0.012) for x, y in path], 0.018, 190)


def _fit(canvas: Canvas, board: _Board) -> None:
    """Draw the parts that are on the board."""
    for n, screw in enumerate(_SCREWS):
        if f"screw {n}" not in board.missing:
            _screw(canvas, screw, board.slots[n])
    for n, capacitor in enumerate(_CAPACITORS):
        if f"capacitor {n}" not in board.missing:
            _capacitor(canvas, _moved(board, n, capacitor), board.turns[n] * 3)
    if "lamp" not in board.missing:
        _lamp(canvas, _moved(board, 3, _LAMP), board.lamp)
    _chip(canvas, _moved(board, 4, _CHIP), board.turns[4] / 2, board.bridge)
    for n, resistor in enumerate(_RESISTORS):
        if f"resistor {n}" not in board.missing:
            _resistor(canvas, _moved(board, 6 + n, resistor), board.turns[6 + n], board.codes[n])
    _connector(canvas, _moved(board, 5, _CONNECTOR), board.turns[5] / 2)
    for n, colour in enumerate(_WIRES):
        for path in _wire(board, n):
            canvas.line(path, 0.019, shaded(colour, 0.55))
            canvas.line([(x - 0.001, y - 0.001) for x, y in path], 0.014, colour)
            canvas.line([(x - 0.003, y - 0.003) for x, y in path], 0.004, shaded(colour, 1, 55))
    for n, hole in enumerate(_HOLES):
        canvas.disc(hole, 0.0135, (150, 152, 150))
        canvas.disc((hole[0] - 0.003, hole[1] - 0.003), 0.0075, (222, 224, 222))
        if n == 0:
            canvas.ring(hole, 0.0225, 0.003, (214, 220, 212))


def _screw(canvas: Canvas, place: Point, slot: float) -> None:
    canvas.disc(place, 0.046, (112, 114, 118))
    canvas.disc((place[0] - 0.0015, place[1] - 0.0015), 0.043, (176, 178, 182))
    canvas.disc(place, 0.034, (134, 136, 140))
    canvas.disc((place[0] - 0.002, place[1] - 0.002), 0.031, (204, 206, 209))
    for angle in (slot, slot + 90):
        canvas.box(place, (0.040, 0.0095), (64, 66, 70), angle)


def _capacitor(canvas: Canvas, place: Point, turn: float) -> None:
    canvas.disc(place, 0.045, (40, 44, 58))
    canvas.disc(place, 0.0395, (186, 189, 194))
    edge = [turned(place, (0.039 * math.cos(t), 0.039 * math.sin(t)), turn) for t in np.linspace(-0.95, 0.95, 16)]
    canvas.polygon(edge, (44, 48, 62))
    for angle in (60.0, 120.0, 180.0):
        ends = [turned(place, (reach, 0.0), turn + angle) for reach in (-0.017, 0.017)]
        canvas.line(ends, 0.003, (140, 143, 148))
    canvas.arc(place, 0.042, (190, 260), 0.004, (112, 118, 138))


def _lamp(canvas: Canvas, place: Point, colour: Colour) -> None:
    canvas.disc(place, 0.041, shaded(colour, 0.55))
    canvas.disc((place[0] - 0.001, place[1] - 0.001), 0.036, colour)
    canvas.disc(place, 0.024, shaded(colour, 1, 28))
    canvas.disc((place[0] - 0.013, place[1] - 0.014), 0.008, shaded(colour, 1, 130))


def _chip(canvas: Canvas, place: Point, turn: float, bridge: int | None) -> None:
    tin = (206, 207, 204)
    for n in range(8):
        for y in (-0.078, 0.078):
            canvas.box(turned(place, (-0.105 + 0.030 * n, y), turn), (0.011, 0.034), tin, turn)
    if bridge is not None:
        row = -0.086 if bridge < 7 else 0.086
        spot = turned(place, (-0.105 + 0.030 * (bridge % 7 + 0.5), row), turn)
        canvas.box(spot, (0.036, 0.016), (216, 217, 215), turn)
    canvas.box(place, (0.250, 0.134), (26, 27, 29), turn)
    canvas.box(turned(place, (-0.001, -0.001), turn), (0.238, 0.122), (47, 48, 51), turn)
    canvas.disc(turned(place, (-0.098, 0.040), turn), 0.009, (26, 27, 29))
    canvas.text("VE8051", turned(place, (0.0, -0.018), turn), 0.032, (172, 174, 172), turn)
    canvas.text("2614-A", turned(place, (0.008, 0.030), turn), 0.023, (150, 152, 150), turn)


def _resistor(canvas: Canvas, place: Point, turn: float, code: str) -> None:
    canvas.box(place, (0.034, 0.056), (198, 199, 200), turn)
    canvas.box(place, (0.034, 0.036), (30, 30, 33), turn)
    canvas.text(code, place, 0.0135, (222, 222, 218), turn, 0.16)


def _connector(canvas: Canvas, place: Point, turn: float) -> None:
    canvas.box(place, (0.250, 0.112), (176, 172, 158), turn)
    canvas.box(turned(place, (-0.0015, -0.0015), turn), (0.240, 0.102), (232, 229, 218), turn)
    for n in range(3):
        spot = turned(place, (-0.070 + 0.070 * n, 0.004), turn)
        canvas.box(spot, (0.046, 0.060), (188, 184, 170), turn)
        canvas.disc(spot, 0.017, (120, 118, 110))
        canvas.disc((spot[0] - 0.001, spot[1] - 0.001), 0.0145, (196, 190, 172))
        canvas.box(spot, (0.026, 0.005), (90, 88, 82), 25.0 + 40 * n + turn)


def _wire(board: _Board, n: int) -> list[list[Point]]:
    """Return the wire's path from its hole to the connector, in two pieces where it is cut."""
    start, end = _HOLES[n], (_PINS[n] + board.offsets[5][0], 0.742 + board.offsets[5][1])
    sag = 0.045 + 0.010 * n + board.sags[n]
    path = []
    for t in np.linspace(0, 1, 25):
        bow = float(sag * math.sin(math.pi * t) + 0.012 * math.sin(2 * math.pi * t))
        path.append((start[0] + (end[0] - start[0]) * float(t) + bow, start[1] + (end[1] - start[1]) * float(t)))
    if board.cut_wire is None or board.cut_wire[0] != n:
        return [path]
    at = 6 + int(board.cut_wire[1] * 10)
    # The springy ends stand apart from where the wire lay.
    upper = [(x + 0.030 * (i / at) ** 3, y) for i, (x, y) in enumerate(path[: at + 1])]
    rest = path[at + 3 :]
    lower = [(x - 0.022 * (1 - i / len(rest)) ** 3, y) for i, (x, y) in enumerate(rest)]
    return [upper, lower]


def _draw(rng: np.random.Generator, size: int) -> FloatImage:
    return _paint(_board(rng), size)


def _spoil(rng: np.random.Generator, flaw: np.random.Generator, size: int, kind: str) -> FloatImage:
    board = _board(rng)
    if kind == "missing_part":
        names = [f"screw {n}" for n in range(4)] + [f"capacitor {n}" for n in range(3)]
        names += [f"resistor {n}" for n in range(5)] + ["lamp"]
        return _paint(replace(board, missing=frozenset({str(flaw.choice(names))})), size)
    if kind == "wrong_part":
        return _paint(_mistaken(board, flaw), size)
    if kind == "cut_wire":
        return _paint(replace(board, cut_wire=(int(flaw.integers(3)), float(flaw.random()))), size)
    if kind == "solder_bridge":
        return _paint(replace(board, bridge=int(flaw.integers(14))), size)
    picture = _paint(board, size)
    if kind == "crack":
        return _cracked(picture, flaw)
    place = defects.point_in_box(flaw, (0.12, 0.16), (0.88, 0.84))
    if kind == "scratch":
        return defects.scratch(picture, flaw, place, (0.12, 0.40), (0.35, 0.9), (0.003, 0.007))
    colour = ((196.0, 170.0, 120.0), (222.0, 224.0, 226.0), (120.0, 84.0, 50.0))[int(flaw.integers(3))]
    return defects.specks(picture, flaw, place, 0.028, (0.004, 0.012), colour)


def _cracked(picture: FloatImage, flaw: np.random.Generator) -> FloatImage:
    """Crack the board from an edge inwards, where nothing is fitted."""
    edges = ((0.065, (0.28, 0.72), 0.0), (0.935, (0.28, 0.72), 180.0), ((0.24, 0.76), 0.105, 90.0))
    x, y, inwards = edges[int(flaw.integers(len(edges)))]
    start = tuple(float(flaw.uniform(*part)) if isinstance(part, tuple) else part for part in (x, y))
    heading = math.radians(inwards + flaw.uniform(-30, 30))
    return defects.crack(picture, flaw, (start[0], start[1]), heading, (0.08, 0.20), (0.004, 0.008), (8.0, 20.0, 16.0))


def _mistaken(board: _Board, flaw: np.random.Generator) -> _Board:
    """Fit a lamp of another colour, a resistor of another value, or a capacitor the wrong way round."""
    fault = int(flaw.integers(3))
    if fault == 0:
        lamps: tuple[Colour, ...] = ((60.0, 168.0, 72.0), (222.0, 164.0, 44.0), (66.0, 104.0, 204.0))
        return replace(board, lamp=lamps[int(flaw.integers(3))])
    if fault == 1:
        n = int(flaw.integers(len(_CODES)))
        return replace(board, codes=tuple("000" if i == n else code for i, code in enumerate(board.codes)))
    n = int(flaw.integers(len(_CAPACITORS)))
    turns = tuple(turn + (60.0 if i == n else 0.0) for i, turn in enumerate(board.turns))
    return replace(board, turns=turns)


BOARD = Product(
    name="board",
    kinds=("contamination", "crack", "cut_wire", "missing_part", "scratch", "solder_bridge", "wrong_part"),
    spread=Spread(shift=0.012, turn=1.8, zoom=0.010),
    draw=_draw,
    spoil=_spoil,
)
