"""Defects pasted on pictures of good parts: to choose a scoring by, and to judge a model by, without labelled ones.

Eleven kinds, of sizes from a speck to half the picture and of several contrasts, some easy and some near the limit of
what can be seen: a judge with only easy ones would find nothing wrong with a coarse model, and one with only small ones
would choose a scoring that is blind to large faint ones. `blob` is a filled irregular shape, `scratch` a thin bent
line, `stain` a soft tint shaped by smooth noise (Zavrtanik et al., "DRAEM", ICCV 2021), `patch` a rectangle cut out of
another picture (Li et al., "CutPaste", CVPR 2021), `smear` a place where the texture is blurred away and `grain` one
where it is stronger. Five change the structure (`vae_edge.train.choice.structural_defects`): `texture` is another
material, `break` a displacement along a line, `warp` a local deformation, `missing` and `extra` a piece gone or too
many. They are not a model of real defects, so an AUROC on them says nothing about a product: only how it changes with
the scoring or the precision does.

These drawings have nothing in common with those of the sample sets: a scoring chosen by the former is tested on the
latter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.ignored_region import IgnoredRegion
from vae_edge.train.choice.defect_shapes import blob, scratch, softened, stain
from vae_edge.train.choice.structural_defects import STRUCTURAL, draw_structural
from vae_edge.train.data.inspection_set import map_in_threads

KINDS = ("blob", "scratch", "patch", "stain", "smear", "grain", *STRUCTURAL)

SIZES = (0.04, 0.1, 0.2, 0.45)
"""Extent of a defect as a share of the image's shorter side."""

CONTRASTS = (0.125, 0.25, 0.5)
"""Change where a defect is strongest, as a share of the light that comes from that place: what a defect changes is how
much light comes back, so under half the light it changes the picture by half as much. A defect of a fixed number of
grey values would be glaring in dark pictures and faint in bright ones. Of a change of structure the largest is
complete; half of it is half as far, or half transparent."""

_DARKEST = 32.0
"""Grey value that a darker place counts as: even black shows a defect."""

_LEAST_CHANGE = 3
"""Of 255 in any channel, from which a pixel belongs to the defect."""

_RETEXTURED_FROM = 0.25
"""Strength from which a pixel of another texture belongs to the defect."""

_RESTRUCTURED_FROM = 0.1
"""The same of another structure."""

_LEAST_SEEN = 0.2
"""Share of the contrast by which a place of another structure has to differ from what was there, fine grain aside:
grain on grain is not a defect."""

_ATTEMPTS = 8
_ATTEMPTS_BESIDE, _MOVED = 48, 16
"""Beside an ignored region: that many in all, and in the last ones a blob is moved to where the picture counts."""


@dataclass(frozen=True)
class Pasted:
    """Pictures with defects."""

    images: NDArray[np.uint8]
    """uint8 [n, H, W, 3]; outside the masks they equal their sources."""
    masks: NDArray[np.bool_]
    """bool [n, H, W], true at the defect; never empty."""
    sources: tuple[int, ...]
    """Which image each one is made from."""
    kinds: tuple[str, ...]
    """What each one shows, and which of them it is: `scratch-2`."""
    strata: tuple[str, ...]
    """Kind and size of each one as its turn was, `scratch 0.1`: what an average over defects is to be taken over."""


def paste_defects(
    images: NDArray[np.uint8], n_variants: int, *, seed: int = 0, ignored: IgnoredRegion | None = None
) -> Pasted:
    """Make so many defective versions of each picture.

    The random numbers of each one come from the seed, the picture's pixels and the variant's number alone, and kinds,
    sizes and contrasts take turns, so that a few pictures show all of them.

    Args:
        images: uint8 [n, H, W, 3], n of 1 or more, sides of 32 or more.
        n_variants: 1 or more.
        seed: another one gives other defects.
        ignored: where there are none.
    """
    n, height, width, _ = images.shape
    made = np.repeat(images, n_variants, axis=0)
    masks = np.zeros((n * n_variants, height, width), dtype=np.bool_)
    kinds, strata = [], []

    def paste(position: int) -> PastedDefect:
        source, variant = divmod(position, n_variants)
        return paste_defect(images, source, *turn(position), seed=seed, variant=variant, ignored=ignored)

    for position, found in enumerate(map_in_threads(paste, range(n * n_variants))):
        made[position], masks[position] = found.image, found.mask
        kind, share, _ = turn(position)
        kinds.append(f"{kind}-{position % n_variants}")
        strata.append(f"{kind} {share}")
    sources = tuple(position // n_variants for position in range(n * n_variants))
    return Pasted(made, masks, sources, tuple(kinds), tuple(strata))


def turn(position: int) -> tuple[str, float, float]:
    """Return kind, size and contrast of the defect whose turn it is.

    The numbers of kinds, sizes and contrasts have no common divisor, so of as many defects as their product every
    combination occurs once, and any shorter row has about as many of each kind, of each size and of each contrast.
    """
    return KINDS[position % len(KINDS)], SIZES[position % len(SIZES)], CONTRASTS[position % len(CONTRASTS)]


@dataclass(frozen=True)
class PastedDefect:
    """One picture with a defect."""

    image: NDArray[np.uint8]
    """uint8 [H, W, 3]; outside the mask it equals its source."""
    mask: NDArray[np.bool_]
    """bool [H, W], true at the defect; never empty."""
    kind: str
    """What it shows: a blob where the kind that was asked for would show nothing."""


def paste_defect(
    images: NDArray[np.uint8],
    source: int,
    kind: str,
    share: float,
    contrast: float,
    *,
    seed: int = 0,
    variant: int = 0,
    ignored: IgnoredRegion | None = None,
) -> PastedDefect:
    """Make one defective version of a picture.

    Args:
        images: uint8 [n, H, W, 3], n of 1 or more, sides of 32 or more; others of them lend pieces.
        source: which one it is pasted on.
        kind: of `KINDS`.
        share: extent as a share of the shorter side.
        contrast: in (0, 1]; see `CONTRASTS`.
        seed: another one gives another defect.
        variant: so does another one of these.
        ignored: where there is none of it; at least half of it has to be beside it, or it is tried again.
    """
    digest = hashlib.sha256(f"{seed}:{variant}:".encode() + images[source].tobytes()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    n, height, width, _ = images.shape
    other = images[(source + 1 + int(random.random() * max(n - 1, 1))) % n]
    return _paste(images[source], other, kind, share * min(height, width), contrast, random, ignored)


def _paste(
    image: NDArray[np.uint8],
    other: NDArray[np.uint8],
    kind: str,
    size: float,
    contrast: float,
    random: np.random.Generator,
    ignored: IgnoredRegion | None = None,
) -> PastedDefect:
    kept = None if ignored is None else ignored.kept
    n_attempts = _ATTEMPTS if kept is None else _ATTEMPTS_BESIDE
    for attempt in range(n_attempts):
        # A patch of a uniform surface shows nothing wherever it is pasted: in the end a blob takes its place.
        chosen = "blob" if attempt >= n_attempts // 2 else kind
        belongs_from = 0.0
        if chosen in STRUCTURAL:
            result, shape = draw_structural(chosen, image, other, size, contrast, random)
            if not _shows(image, result, shape, contrast):
                continue
            belongs_from = _RESTRUCTURED_FROM
        elif chosen == "patch":
            result, shape = _cut_and_paste(image, other, size, random)
        elif chosen in _RETEXTURE:
            shape = softened(blob(image.shape[0], image.shape[1], size, random), max(size / 12, 0.6))
            result = _RETEXTURE[chosen](image, shape, contrast, random)
            belongs_from = _RETEXTURED_FROM
        else:
            shape = _DRAW[chosen](image.shape[0], image.shape[1], size, random)
            if kept is not None and attempt >= n_attempts - _MOVED:
                shape = _moved_to(shape, kept, random)
            result = _tint(image, shape, contrast, random)
        changed = _largest(np.abs(result.astype(np.int16) - image)) >= _LEAST_CHANGE
        if belongs_from and np.count_nonzero(changed & (shape >= belongs_from)) >= 4:
            changed = shape >= belongs_from  # All of the place, not only the pixels that happen to differ.
        if kept is not None:
            whole, changed = changed, changed & kept
            if 2 * np.count_nonzero(changed) < np.count_nonzero(whole) and attempt < n_attempts - _MOVED:
                continue
        if np.count_nonzero(changed) >= 4:
            return PastedDefect(np.where(changed[:, :, None], result, image), changed, chosen)
    raise AssertionError(f"no visible {kind} in {n_attempts} attempts")


def _moved_to(shape: NDArray[np.float32], kept: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.float32]:
    """Move a shape, float32 [H, W], so that its strongest place lies on a kept one."""
    places = np.flatnonzero(kept)
    to = np.unravel_index(places[int(random.random() * len(places))], kept.shape)
    at = np.unravel_index(int(shape.argmax()), kept.shape)
    return np.roll(shape, (int(to[0] - at[0]), int(to[1] - at[1])), axis=(0, 1))


def _shows(image: NDArray[np.uint8], result: NDArray[np.uint8], strength: NDArray[np.float32], contrast: float) -> bool:
    """Return whether a place of another structure looks different, fine grain aside."""
    rows, columns = np.flatnonzero(strength.any(axis=1)), np.flatnonzero(strength.any(axis=0))
    if not rows.size:
        return False
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    before, after = image[window].astype(np.float32), result[window].astype(np.float32)
    difference = cv2.GaussianBlur(after - before, (0, 0), 0.8)
    weight = np.minimum(strength[window] / max(float(strength.max()), 1e-6), 1.0)
    seen = float((np.abs(difference).max(axis=2) * weight).sum() / max(float(weight.sum()), 1e-6))
    level = max(float((before.mean(axis=2) * weight).sum() / max(float(weight.sum()), 1e-6)), _DARKEST)
    return seen >= _LEAST_SEEN * contrast * level


def _largest(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the largest of three channels, [H, W]; NumPy takes much longer over an axis as short as that."""
    return np.maximum(np.maximum(values[:, :, 0], values[:, :, 1]), values[:, :, 2])


def _light_of(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean of three channels, float64 [H, W]; likewise."""
    return np.asarray((image[:, :, 0].astype(np.float64) + image[:, :, 1] + image[:, :, 2]) / 3)


def _tint(
    image: NDArray[np.uint8], strength: NDArray[np.float32], contrast: float, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Make the picture lighter or darker by `contrast` of its light times a strength of 0 to 1, float32 [H, W]."""
    level = float((_light_of(image) * strength).sum() / max(float(strength.sum()), 1e-6))
    # Away from black and white where the change would be clipped away.
    change = contrast * max(level, _DARKEST)
    lighter = random.random() < 0.5
    lighter = (lighter or level < change) and level <= 255 - change
    colour = change * (0.7 + 0.6 * random.random(3)) * (1 if lighter else -1)
    if (image == image[:, :, :1]).all():
        colour[:] = colour.mean()  # A grey camera sees no colour.
    changed = image + strength[:, :, None] * colour
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def _smear(
    image: NDArray[np.uint8], strength: NDArray[np.float32], contrast: float, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Blur the picture along a direction where the strength is, the wider the larger the contrast."""
    reach = max(round(min(image.shape[:2]) * contrast / 8), 2)
    line = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    angle = np.pi * random.random()
    across, along = reach * np.cos(angle), reach * np.sin(angle)
    ends = [(round(reach - across), round(reach - along)), (round(reach + across), round(reach + along))]
    cv2.line(line, ends[0], ends[1], 1.0)
    blurred = cv2.filter2D(image, cv2.CV_32F, line / line.sum(), borderType=cv2.BORDER_REFLECT_101)
    return _blended(image, np.asarray(blurred, dtype=np.float32), strength)


def _grain(
    image: NDArray[np.uint8], strength: NDArray[np.float32], contrast: float, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Make the texture stronger where the strength is; where there is none, make some."""
    values = image.astype(np.float32)
    coarse = np.asarray(cv2.GaussianBlur(values, (0, 0), max(min(image.shape[:2]) / 50, 1.0)), dtype=np.float32)
    speckle = softened(random.standard_normal(image.shape[:2]).astype(np.float32), 0.3 + random.random())
    level = float((_light_of(image) * strength).sum() / max(float(strength.sum()), 1e-6))
    speckle *= 0.2 * contrast * max(level, _DARKEST) / max(float(speckle.std()), 1e-6)
    return _blended(image, coarse + (1 + 2.5 * contrast) * (values - coarse) + speckle[:, :, None], strength)


def _blended(
    image: NDArray[np.uint8], changed: NDArray[np.float32], strength: NDArray[np.float32]
) -> NDArray[np.uint8]:
    mixed = image + strength[:, :, None] * (changed - image)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


_RETEXTURE = {"smear": _smear, "grain": _grain}

_DRAW = {"blob": blob, "scratch": scratch, "stain": stain}


def _cut_and_paste(
    image: NDArray[np.uint8], other: NDArray[np.uint8], size: float, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Paste a rectangle of another picture (or of another place of this one), turned by a half, in this one's light."""
    height, width = image.shape[:2]
    stretch = 0.6 + 0.8 * random.random()
    rows = min(max(round(size * stretch), 3), height // 2)
    columns = min(max(round(size / stretch), 3), width // 2)
    from_row, to_row = (int(random.random() * (height - rows + 1)) for _ in range(2))
    from_column, to_column = (int(random.random() * (width - columns + 1)) for _ in range(2))
    result = image.copy()
    piece = other[from_row : from_row + rows, from_column : from_column + columns]
    # Another exposure would give it away, whatever it shows.
    gain = max(float(image.mean()), 1.0) / max(float(other.mean()), 1.0)
    lit = np.clip(np.rint(piece[::-1, ::-1] * gain), 0, 255).astype(np.uint8)
    result[to_row : to_row + rows, to_column : to_column + columns] = lit
    shape = np.zeros((height, width), dtype=np.float32)
    shape[to_row : to_row + rows, to_column : to_column + columns] = 1
    return result, shape
