"""Draw one image of a product: the part, where it lies, its defect and its photograph.

Each image has random generators of its own, made from the seed, the product, the split and the index. So any image can
be drawn alone, in any order and on any thread, and comes out the same.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError, UsageError
from vae_edge.train.sample.board import BOARD
from vae_edge.train.sample.camera import Pose, expose, take
from vae_edge.train.sample.canvas import canvas_size
from vae_edge.train.sample.dial import DIAL
from vae_edge.train.sample.fabric import FABRIC
from vae_edge.train.sample.product import Product

SAMPLE_VERSION = 1
"""Raised whenever the same settings would draw other pixels, so that an older set is not taken for a current one.

1: dial, board and fabric.
"""

SMALLEST_IMAGE = 64
LARGEST_IMAGE = 1024
_MOST_IMAGES = 1_000_000


@dataclass(frozen=True)
class SampleSettings:
    """The settings of one sample set.

    Every image depends on the seed, its product, its split and its index alone: other counts give more or fewer
    images, never different ones.

    Attributes:
        seed: Where the random numbers start, 0 or more.
        image_size: Height and width of every image in pixels, 64 to 1024.
        n_train: Normal images for training in each product, 1 to 1,000,000.
        n_test_good: Normal images for testing in each product, 1 to 1,000,000.
        n_test_per_defect: Defective images of each kind in each product, 1 to 1,000,000.

    Raises:
        InputError: A value is not an integer or lies outside its range.
    """

    seed: int = 0
    image_size: int = 256
    n_train: int = 360
    n_test_good: int = 40
    n_test_per_defect: int = 10

    def __post_init__(self) -> None:
        """Refuse values that could not be drawn."""
        _check("seed", self.seed, 0, None)
        _check("image_size", self.image_size, SMALLEST_IMAGE, LARGEST_IMAGE)
        for name in ("n_train", "n_test_good", "n_test_per_defect"):
            _check(name, getattr(self, name), 1, _MOST_IMAGES)

    def as_dict(self) -> dict[str, int]:
        """Return the settings as plain values for JSON."""
        return asdict(self)


def _check(name: str, value: object, lowest: int, highest: int | None) -> None:
    expected = f"an integer from {lowest} to {highest}" if highest is not None else f"an integer of {lowest} or more"
    # bool is an int to Python, and True for a count is a mistake of the caller.
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {value!r}, expected {expected}; pass a whole number.")
    if value < lowest or (highest is not None and value > highest):
        raise UsageError(f"{name} is {value}, expected {expected}; choose a value in that range.")


_PRODUCTS: dict[str, Product] = {product.name: product for product in (DIAL, BOARD, FABRIC)}

PRODUCTS: tuple[str, ...] = tuple(_PRODUCTS)
"""The products, the easiest first."""

DEFAULT_PRODUCT = PRODUCTS[0]
"""The product that demonstrations take."""

GOOD_SPLITS: tuple[str, ...] = ("train", "test")

_LEAST_CHANGE = 5.0  # Of 255; less is lost in the sensor's noise, and no inspector could mark it.
_LEAST_AREA = 2e-4  # Of the image; 13 pixels of an image of 256.
_MOST_ATTEMPTS = 20


@dataclass(frozen=True)
class DefectiveDrawing:
    """A defective part, what is wrong with it, and the same photograph of the same part without the defect.

    Attributes:
        image: uint8 [S, S, 3] RGB.
        mask: uint8 [S, S], 255 where the defect shows and 0 elsewhere; never empty.
        clean: uint8 [S, S, 3] RGB. Outside the mask it equals ``image`` to the last bit.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    clean: NDArray[np.uint8]


def defect_kinds(product: str) -> tuple[str, ...]:
    """Return the kinds of defect of a product, sorted.

    Raises:
        InputError: There is no such product.
    """
    return _find(product).kinds


def draw_normal(
    product: str, index: int, settings: SampleSettings | None = None, split: str = "train"
) -> NDArray[np.uint8]:
    """Draw a good part.

    Args:
        product: One of ``PRODUCTS``.
        index: Which one, 0 or more.
        settings: The seed and the image's size S; the counts are of no effect. None stands for the defaults.
        split: "train" or "test".

    Returns:
        uint8 [S, S, 3] RGB.

    Raises:
        InputError: An unknown product or split, or a negative index.
    """
    settings = settings or SampleSettings()
    drawn = _find(product)
    if split not in GOOD_SPLITS:
        raise InputError(f"split is {split!r}, expected one of {', '.join(GOOD_SPLITS)}; choose one of them.")
    streams = _Streams(settings.seed, product, f"{split}/good", index)
    pose = Pose.draw(streams.generator("pose"), drawn.spread)
    picture = drawn.draw(streams.generator("part"), canvas_size(settings.image_size))
    seen = take(picture, pose, settings.image_size)
    return expose(seen, streams.generator("light"), streams.generator("sensor"), drawn.spread)


def draw_defective(product: str, kind: str, index: int, settings: SampleSettings | None = None) -> DefectiveDrawing:
    """Draw a defective part and its mask.

    The part is drawn with and without the defect in the same place under the same light. The mask holds the pixels that
    differ visibly before the sensor's noise; fainter differences are taken back, so the mask is exact.

    Args:
        product: One of ``PRODUCTS``.
        kind: One of ``defect_kinds(product)``.
        index: Which one, 0 or more.
        settings: The seed and the image's size; the counts are of no effect. None stands for the defaults.

    Returns:
        The image, its mask and its clean twin.

    Raises:
        InputError: An unknown product or kind, or a negative index.
    """
    settings = settings or SampleSettings()
    drawn = _find(product)
    if kind not in drawn.kinds:
        raise InputError(
            f"{product!r} has no defect {kind!r}, expected one of {', '.join(drawn.kinds)}; choose one of them."
        )
    streams = _Streams(settings.seed, product, f"test/{kind}", index)
    pose = Pose.draw(streams.generator("pose"), drawn.spread)
    size, canvas = settings.image_size, canvas_size(settings.image_size)
    clean = take(drawn.draw(streams.generator("part"), canvas), pose, size)
    for attempt in range(_MOST_ATTEMPTS):
        # A defect may hide, say a dark crumb on a dark chip. It is drawn again until it shows.
        flaw = streams.generator(f"defect {attempt}")
        spoilt = take(drawn.spoil(streams.generator("part"), flaw, canvas, kind), pose, size)
        changed = np.abs(spoilt - clean).max(axis=2) >= _LEAST_CHANGE
        if changed.sum() >= _LEAST_AREA * size * size:
            break
    else:
        raise RuntimeError(f"No visible {kind!r} of {product!r} in {_MOST_ATTEMPTS} attempts at index {index}.")
    spoilt = np.where(changed[:, :, None], spoilt, clean)
    image, twin = (
        expose(seen, streams.generator("light"), streams.generator("sensor"), drawn.spread) for seen in (spoilt, clean)
    )
    # The sensor's noise depends on the pixel's own light alone, so the twins differ within the mask only.
    return DefectiveDrawing(image=image, mask=changed.astype(np.uint8) * np.uint8(255), clean=twin)


def _find(product: str) -> Product:
    if product not in _PRODUCTS:
        raise UsageError(
            f"There is no sample product {product!r}, expected one of {', '.join(PRODUCTS)}; choose one of them."
        )
    return _PRODUCTS[product]


class _Streams:
    """The independent generators of one image, each named after what it draws."""

    def __init__(self, seed: int, product: str, split: str, index: int) -> None:
        if index < 0:
            raise InputError(f"index is {index}, expected 0 or more; count the images from 0.")
        self._key = (seed, zlib.crc32(f"{product}/{split}".encode()), index)

    def generator(self, name: str) -> np.random.Generator:
        """Return a new generator in its first state."""
        return np.random.default_rng((*self._key, zlib.crc32(name.encode())))
