"""A woven fabric close up: a twill of two colours whose phase, tension and light differ from picture to picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from vae_edge.train.sample import defects
from vae_edge.train.sample.camera import Spread
from vae_edge.train.sample.canvas import FloatImage, Point, blend, cloud, grain, unit_grid
from vae_edge.train.sample.product import Product

_THREADS = 30.0  # Threads along one side of the canvas.
_TWILL = 4  # A warp thread passes over two wefts and under two, one further on in every row.


@dataclass(frozen=True)
class _Cloth:
    """One piece of cloth; a fault names the thread and the share of the side between which it reaches."""

    phase: Point
    pitch: Point
    warp: tuple[float, float, float]
    weft: tuple[float, float, float]
    grain_seed: int
    broken: tuple[int, float, float] | None = None
    thick: int | None = None
    misweave: tuple[int, float, float] | None = None


def _cloth(rng: np.random.Generator) -> _Cloth:
    # One thread is left over at the start, for the wandering tension to pull into sight.
    phase, pitch = rng.uniform(1, 1 + _TWILL, 2), rng.uniform(0.97, 1.03, 2)
    shade = rng.uniform(-5, 5, 2)
    return _Cloth(
        phase=(float(phase[0]), float(phase[1])),
        pitch=(float(pitch[0]), float(pitch[1])),
        warp=(72.0 + float(shade[0]), 98.0 + float(shade[0]), 132.0 + float(shade[0])),
        weft=(176.0 + float(shade[1]), 180.0 + float(shade[1]), 178.0 + float(shade[1])),
        grain_seed=int(rng.integers(1 << 32)),
    )


def _paint(cloth: _Cloth, size: int) -> FloatImage:
    rng = np.random.default_rng(cloth.grain_seed)
    x, y = unit_grid(size)
    # Threads do not lie straight: the tension wanders slowly over the cloth.
    u = x * np.float32(_THREADS * cloth.pitch[0]) + np.float32(cloth.phase[0]) + np.float32(0.10) * cloud(rng, size, 3)
    v = y * np.float32(_THREADS * cloth.pitch[1]) + np.float32(cloth.phase[1]) + np.float32(0.10) * cloud(rng, size, 3)
    n = int(_THREADS * 1.2) + _TWILL + 2
    thickness = rng.normal(0, 0.022, (2, n)).astype(np.float32)
    tone = rng.normal(0, 0.03, (2, n)).astype(np.float32)
    lint, tuft = grain(rng, size), grain(rng, size, 128)

    column, row = u.astype(np.intp), v.astype(np.intp)
    # NumPy makes float64 of float32 and int32, so the parts between integers are found among floats.
    across_warp, across_weft = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
    half_warp, half_weft = 0.46 + thickness[0], 0.46 + thickness[1]
    if cloth.thick is not None:
        half_weft[cloth.thick] += 0.22
        tone[1, cloth.thick] += 0.14
    step = (column + row) & (_TWILL - 1)
    if cloth.misweave is not None:
        line, start, end = cloth.misweave
        step = np.where((row == line) & (x > start) & (x < end), (step + _TWILL // 2) & (_TWILL - 1), step)
    warp_on_top, place = step < _TWILL // 2, step.astype(np.float32)
    # How high each thread stands: a rounded section, bowed where it passes over the other.
    section_warp = np.clip(1 - (across_warp / half_warp[column]) ** 2, 0, 1)
    section_weft = np.clip(1 - (across_weft / half_weft[row]) ** 2, 0, 1)
    if cloth.broken is not None:
        line, start, end = cloth.broken
        section_weft = np.where((row == line) & (x > start) & (x < end), np.float32(0), section_weft)
    has_warp, has_weft = section_warp > 0.04, section_weft > 0.04
    top_warp = np.where(warp_on_top, has_warp, ~has_weft)
    bare = ~(has_warp | has_weft)

    # A thread passes over two others: it rises at the first, falls at the second and dives in between two pairs.
    along = place + np.where(top_warp, across_weft + np.float32(0.5), across_warp - np.float32(1.5))
    bow = np.float32(0.76) + np.float32(0.24) * np.sin(np.float32(np.pi / 2) * along)
    section = np.where(top_warp, section_warp, section_weft)
    lit_side = np.where(top_warp, tone[0][column], tone[1][row])
    lit_side += 1 - np.float32(0.10) * np.where(top_warp, across_warp, across_weft)
    # What lies below lies in the shade of what lies above.
    buried = np.where(top_warp == warp_on_top, np.float32(1.0), np.float32(0.55))
    light = np.sqrt(section) * bow * lit_side * buried
    light = np.where(bare, np.float32(0.12), np.float32(0.22) + np.float32(0.86) * light)
    light *= 1 + np.float32(0.035) * lint + np.float32(0.025) * tuft
    # Channel by channel: NumPy is ten times slower where the last axis holds three values.
    of_warp = light * top_warp
    of_weft = light - of_warp
    channels = [
        of_warp * np.float32(warp) + of_weft * np.float32(weft)
        for warp, weft in zip(cloth.warp, cloth.weft, strict=True)
    ]
    picture = np.asarray(cv2.merge(channels), dtype=np.float32)
    return np.clip(picture, 0, 255, out=picture)


def _draw(rng: np.random.Generator, size: int) -> FloatImage:
    return _paint(_cloth(rng), size)


def _spoil(rng: np.random.Generator, flaw: np.random.Generator, size: int, kind: str) -> FloatImage:
    cloth = _cloth(rng)
    line = int(flaw.integers(7, 27))
    start = float(flaw.uniform(0.05, 0.45))
    end = start + float(flaw.uniform(0.2, 0.5))
    if kind == "broken_thread":
        return _paint(replace(cloth, broken=(line, start, end)), size)
    if kind == "misweave":
        return _paint(replace(cloth, misweave=(line, start, end + 0.15)), size)
    if kind == "thick_thread":
        return _paint(replace(cloth, thick=line), size)
    picture = _paint(cloth, size)
    place = defects.point_in_box(flaw, (0.15, 0.15), (0.85, 0.85))
    if kind == "stain":
        colour = (150.0, 110.0, 66.0) if flaw.random() < 0.5 else (84.0, 88.0, 92.0)
        return defects.stain(picture, flaw, place, (0.04, 0.11), (0.35, 0.8), colour)
    if kind == "foreign_fibre":
        colours = ((176.0, 46.0, 42.0), (26.0, 26.0, 30.0), (196.0, 160.0, 60.0))
        return defects.fibre(picture, flaw, place, (0.18, 0.42), (0.006, 0.011), colours[int(flaw.integers(3))])
    return _torn(picture, flaw, place)


def _torn(picture: FloatImage, flaw: np.random.Generator, place: Point) -> FloatImage:
    """Tear a hole that frayed ends reach into."""
    size = picture.shape[0]
    radius = flaw.uniform(0.025, 0.055)
    hole = defects.blot(flaw, size, place, radius, 0.5)
    torn = blend(picture, hole * np.float32(0.95), (24.0, 23.0, 24.0))
    for _ in range(int(flaw.integers(4, 9))):
        edge = defects.point_in_disc(flaw, place, radius, 0.75 * radius)
        end = (edge[0] + 0.65 * (place[0] - edge[0]), edge[1] + 0.65 * (place[1] - edge[1]))
        ends = defects.path_coverage(size, [edge, end], 0.0055)
        colour = (168.0, 170.0, 168.0) if flaw.random() < 0.6 else (76.0, 98.0, 128.0)
        torn = blend(torn, ends * np.float32(0.85), colour)
    return torn


FABRIC = Product(
    name="fabric",
    kinds=("broken_thread", "foreign_fibre", "hole", "misweave", "stain", "thick_thread"),
    spread=Spread(shift=0.010, turn=2.0, zoom=0.015, base_zoom=1.08),
    draw=_draw,
    spoil=_spoil,
)
