"""What a sample set is drawn from: its size, its counts and its seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vae_edge.errors import UsageError

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
        InputError: A value is no integer or lies outside its range.
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
