"""Damage that any product may suffer: scratches, stains, fibres, cracks, dents and dirt.

Each function takes a picture (float32 [C, C, 3], 0 to 255), a generator and a place, and returns a new picture. Sizes
are fractions of the canvas' side; a hairline of 0.004 to 0.008 is one or two pixels wide in an image of 256.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from vae_edge.train.sample.canvas import Canvas, Colour, FloatImage, Point, blend, blur, cloud, unit_grid


def point_in_disc(rng: np.random.Generator, centre: Point, radius: float, inner: float = 0.0) -> Point:
    """Draw a point evenly from a disc, or from a ring if an inner radius is given."""
    distance = math.sqrt(rng.uniform(inner**2, radius**2))
    angle = rng.uniform(0, 2 * math.pi)
    return centre[0] + distance * math.cos(angle), centre[1] + distance * math.sin(angle)


def point_in_box(rng: np.random.Generator, low: Point, high: Point) -> Point:
    """Draw a point evenly from a rectangle between two corners."""
    return float(rng.uniform(low[0], high[0])), float(rng.uniform(low[1], high[1]))


def wander(rng: np.random.Generator, start: Point, length: float, curl: float, steps: int = 24) -> list[Point]:
    """Draw a smooth path through the start, at its middle, whose heading changes by up to ``curl`` radians a step."""
    heading, bend = rng.uniform(0, 2 * math.pi), 0.0
    points = [(0.0, 0.0)]
    for _ in range(steps):
        bend = 0.7 * bend + 0.3 * rng.normal(0, curl)
        heading += bend
        x, y = points[-1]
        points.append((x + math.cos(heading) * length / steps, y + math.sin(heading) * length / steps))
    middle = points[steps // 2]
    return [(x - middle[0] + start[0], y - middle[1] + start[1]) for x, y in points]


def path_coverage(size: int, points: list[Point], width: float) -> FloatImage:
    """Return the coverage of a line through the points, float32 [size, size] from 0 to 1."""
    canvas = Canvas(size, 0)
    canvas.line(points, width, 255)
    return canvas.coverage()


def blot(rng: np.random.Generator, size: int, centre: Point, radius: float, raggedness: float = 0.35) -> FloatImage:
    """Return the coverage of a blob with an irregular outline, float32 [size, size] from 0 to 1."""
    x, y = unit_grid(size)
    turn, stretch = rng.uniform(0, math.pi), rng.uniform(0.7, 1.0)
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    along, across = dx * cos + dy * sin, (dy * cos - dx * sin) / np.float32(stretch)
    distance = np.sqrt(along * along + across * across) / np.float32(radius)
    distance += np.float32(raggedness * 0.5) * cloud(rng, size, max(4, int(1.2 / radius)))
    return np.clip((1 - distance) * np.float32(radius / 0.012), 0, 1)


def scratch(
    picture: FloatImage, rng: np.random.Generator, start: Point, length: Point, contrast: Point, width: Point
) -> FloatImage:
    """Scratch a hairline: a bright groove with a thin shadow beside it. Length, contrast and width are ranges."""
    size = picture.shape[0]
    points = wander(rng, start, rng.uniform(*length), curl=0.06)
    thickness, strength = rng.uniform(*width), np.float32(rng.uniform(*contrast))
    groove = path_coverage(size, points, thickness)
    side = 0.7 * thickness
    shadow = path_coverage(size, [(x + side, y + side) for x, y in points], thickness)
    # A scratch bares lighter material on something dark and a darker one on something light.
    light = float(picture[groove > 0.5].mean()) if (groove > 0.5).any() else 128.0
    bare = (250.0, 250.0, 246.0) if light < 150 else (70.0, 66.0, 62.0)
    edge = (25.0, 25.0, 28.0) if light < 150 else (250.0, 248.0, 244.0)
    return blend(blend(picture, shadow * strength * np.float32(0.5), edge), groove * strength, bare)


def stain(
    picture: FloatImage, rng: np.random.Generator, centre: Point, radius: Point, strength: Point, colour: Colour
) -> FloatImage:
    """Let a liquid dry: a translucent blob with a darker rim. Radius and strength are ranges."""
    size = picture.shape[0]
    reach, depth = rng.uniform(*radius), np.float32(rng.uniform(*strength))
    body = blot(rng, size, centre, reach)
    inner = blur(body, 0.02 * min(1.0, reach / 0.06))
    rim = np.clip(body - inner, 0, 1)
    coverage = np.clip(body * np.float32(0.65) + rim * np.float32(0.9), 0, 1) * depth
    # A stain filters what lies under it rather than covering it.
    filtered = picture * (np.asarray(colour, dtype=np.float32) * np.float32(1 / 255))
    return blend(picture, coverage, filtered)


def fibre(
    picture: FloatImage, rng: np.random.Generator, start: Point, length: Point, width: Point, colour: Colour
) -> FloatImage:
    """Drop a curled fibre with its shadow. Length and width are ranges."""
    size = picture.shape[0]
    points = wander(rng, start, rng.uniform(*length), curl=0.75, steps=40)
    thickness = rng.uniform(*width)
    shade = blur(path_coverage(size, [(x + 0.005, y + 0.006) for x, y in points], thickness), 0.003)
    dark = picture * (1 - np.float32(0.4) * shade[:, :, None])
    return blend(dark, path_coverage(size, points, thickness) * np.float32(0.92), colour)


def crack(
    picture: FloatImage,
    rng: np.random.Generator,
    start: Point,
    heading: float,
    length: Point,
    width: Point,
    colour: Colour,
) -> FloatImage:
    """Crack the surface from a point: a jagged line that thins out, with a branch or two.

    The heading is in radians; length and width are ranges.
    """
    size = picture.shape[0]
    canvas = Canvas(size, 0)
    reach, thickness = rng.uniform(*length), rng.uniform(*width)
    paths = [(start, heading, reach, thickness)]
    steps = 12
    for branch in range(1 + int(rng.integers(1, 3))):
        (x, y), heading, reach, thickness = paths[branch]
        for step in range(steps):
            turn = heading + rng.normal(0, 0.45)
            nearer = x + math.cos(turn) * reach / steps, y + math.sin(turn) * reach / steps
            canvas.line([(x, y), nearer], thickness * (1 - 0.6 * step / steps), 255)
            x, y = nearer
            if step in (3, 6):
                fork = heading + rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0)
                paths.append(((x, y), fork, reach * 0.45, thickness * 0.7))
    return blend(picture, canvas.coverage() * np.float32(0.9), colour)


def dent(
    picture: FloatImage, rng: np.random.Generator, centre: Point, radius: Point, depth: Point, sheet: FloatImage
) -> FloatImage:
    """Press a dent: one flank turns to the light, the other away from it.

    Radius and depth are ranges; the sheet is the coverage of what can be dented, float32 [C, C] from 0 to 1.
    """
    size = picture.shape[0]
    x, y = unit_grid(size)
    reach = np.float32(rng.uniform(*radius))
    dx, dy = (x - np.float32(centre[0])) / reach, (y - np.float32(centre[1])) / reach
    bowl = np.exp(-np.float32(1.6) * (dx * dx + dy * dy))
    # The light comes from the upper left in every picture, give or take.
    direction = math.radians(225 + rng.uniform(-25, 25))
    slope = (dx * np.float32(math.cos(direction)) + dy * np.float32(math.sin(direction))) * bowl
    shade = 1 - np.float32(2.2 * rng.uniform(*depth)) * slope * sheet
    dented: FloatImage = picture * shade[:, :, None]
    return np.clip(dented, 0, 255, out=dented)


def specks(
    picture: FloatImage, rng: np.random.Generator, centre: Point, spread: float, size: Point, colour: Colour
) -> FloatImage:
    """Scatter a dozen crumbs about a place. The size is a range of radii."""
    canvas = Canvas(picture.shape[0], 0)
    for _ in range(int(rng.integers(7, 16))):
        place = (centre[0] + rng.normal(0, spread), centre[1] + rng.normal(0, spread))
        radius = rng.uniform(*size)
        corners = [
            (
                place[0] + radius * rng.uniform(0.6, 1.2) * math.cos(t),
                place[1] + radius * rng.uniform(0.6, 1.2) * math.sin(t),
            )
            for t in np.linspace(0, 2 * math.pi, 7)[:-1]
        ]
        canvas.polygon(corners, 255)
    return blend(picture, canvas.coverage() * np.float32(0.9), colour)


def smear(picture: FloatImage, rng: np.random.Generator, centre: Point, radius: Point, reach: Point) -> FloatImage:
    """Wipe wet ink: what lies about a place is dragged along one direction. Radius and reach are ranges."""
    size = picture.shape[0]
    length = max(3, int(rng.uniform(*reach) * size))
    angle = rng.uniform(0, 2 * math.pi)
    kernel = np.zeros((2 * length + 1, 2 * length + 1), dtype=np.float32)
    tip = (round(length + length * math.cos(angle)), round(length + length * math.sin(angle)))
    cv2.line(kernel, (length, length), tip, 1.0, max(1, size // 256))
    # The darkest of what passed, half mixed with the mean, is what a finger leaves of ink.
    mean = np.asarray(cv2.filter2D(picture, -1, kernel / kernel.sum()), dtype=np.float32)
    darkest = np.asarray(cv2.erode(picture, (kernel > 0).astype(np.uint8)), dtype=np.float32)
    dragged = np.float32(0.55) * mean + np.float32(0.45) * darkest
    coverage = blur(blot(rng, size, centre, rng.uniform(*radius), 0.25), 0.008)
    return blend(picture, coverage, dragged)
