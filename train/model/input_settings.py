"""How an image becomes what the network sees, as records: the range of values, the evening out of light, the tiles.

Loads no torch; `vae_edge.train.model.input_layers` computes all of it, inside the graph.

Light and contrast: exposures differ from part to part, and a network that has to reproduce the exposure spends its
residual on it. Where brightness itself tells good from bad, normalizing it away is wrong: so it is offered, chosen like
the scoring, and never assumed.

Tiles: a network that sees a tile at a time spends its latents on what a small defect changes, is smaller than one for
the full image, and is trained on random crops, of which a few images give thousands. Others (anomalib's tiler, SAHI)
cut images outside the model; here the grid is part of the graph: static slices, one batch of tiles, and a weighted sum
whose weights are constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from vae_edge.errors import UsageError
from vae_edge.ignored_region import IgnoredRegion
from vae_edge.records import Record, make_record
from vae_edge.text_enum import TextEnum

if TYPE_CHECKING:
    from vae_edge.train.model.network import Vae
from vae_edge.train.model.presets import check_image_size
from vae_edge.train.model.scoring import AUTO


class InputRange(Record):
    """(x - mean) / deviation for each channel of RGB, where x is 0 to 1."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Above 0."""

    @model_validator(mode="after")
    def _is_above_zero(self) -> InputRange:
        if not all(value > 0 for value in self.deviation):
            raise UsageError(f"images are divided by {self.deviation}; expected three numbers above 0")
        return self


SYMMETRIC = InputRange()
"""-1 to 1."""

IMAGENET = InputRange(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's images: what anomalib's models get unless they are told otherwise."""


class KnownRange(TextEnum):
    """Names of ranges, for the command line."""

    IMAGENET = "imagenet"
    SYMMETRIC = "symmetric"


RANGES = {KnownRange.IMAGENET: IMAGENET, KnownRange.SYMMETRIC: SYMMETRIC}


class Photometric(TextEnum):
    """How light and contrast are evened out."""

    NONE = "none"
    IMAGE = "image"
    """Each image less its mean brightness, divided by three standard deviations of its brightness."""
    LOCAL = "local"
    """Each pixel less the mean brightness around it, divided by three times the average of the standard deviation
    around it and that of the image (local contrast normalization, Jarrett et al., ICCV 2009)."""

    def describe(self) -> str:
        """Return it in words."""
        return {
            Photometric.NONE: "brightness as it is",
            Photometric.IMAGE: "brightness and contrast normalized by the image's own",
            Photometric.LOCAL: "brightness and contrast normalized by the surroundings'",
        }[self]


def parse_photometric(text: str) -> Photometric | None:
    """Read how light is to be evened out; None for `auto`.

    Raises:
        UsageError: it is another word.
    """
    word = text.strip().lower()
    if word == AUTO:
        return None
    if word not in [kind.value for kind in Photometric]:
        known = ", ".join([AUTO, *(kind.value for kind in Photometric)])
        raise UsageError(f"the photometric normalization is {text!r}; expected one of {known}")
    return Photometric(word)


DEFAULT_OVERLAP = 0.25
"""Share of a tile that its neighbour sees as well, at least."""

MOST_TILES = 256


class Tiling(Record):
    """The size of an image and of the tiles it is cut into; tiles of the image's size: it is not cut."""

    image_height: int = Field(ge=32, le=4096)
    image_width: int = Field(ge=32, le=4096)
    tile_height: int = Field(ge=32, le=4096)
    tile_width: int = Field(ge=32, le=4096)
    overlap: float = Field(default=DEFAULT_OVERLAP, ge=0, le=0.75)
    """Share of a tile's side that two neighbours have in common, at least; the grid is spread evenly."""

    @model_validator(mode="after")
    def _fits(self) -> Tiling:
        if (self.tile_height, self.tile_width) != (self.image_height, self.image_width):
            # Of a whole image `whole` does it: networks on features take other sizes.
            check_image_size(self.tile_height, self.tile_width)
        if self.tile_height > self.image_height or self.tile_width > self.image_width:
            raise UsageError(
                f"the tiles are {self.tile_height}x{self.tile_width} and the image is "
                f"{self.image_height}x{self.image_width}; expected tiles that are not larger: choose a smaller "
                "--tile-size or a larger --image-size"
            )
        if self.n_tiles > MOST_TILES:
            raise UsageError(
                f"an image of {self.image_height}x{self.image_width} has {self.n_tiles} tiles of "
                f"{self.tile_height}x{self.tile_width}; expected at most {MOST_TILES}: choose larger tiles"
            )
        return self

    @classmethod
    def whole(cls, height: int, width: int) -> Tiling:
        """Return the tiling that does not cut.

        Raises:
            UsageError: the size does not fit into the network.
        """
        check_image_size(height, width)
        return make_record(
            cls, {"image_height": height, "image_width": width, "tile_height": height, "tile_width": width}
        )

    @property
    def rows(self) -> tuple[int, ...]:
        """First row of each row of tiles."""
        return starts(self.image_height, self.tile_height, self.overlap)

    @property
    def columns(self) -> tuple[int, ...]:
        """First column of each column of tiles."""
        return starts(self.image_width, self.tile_width, self.overlap)

    @property
    def n_tiles(self) -> int:
        """Tiles in an image: what an image costs is so many runs of the network."""
        return len(self.rows) * len(self.columns)

    def describe(self) -> str:
        """Return the tiling in words."""
        image, tile = f"{self.image_height}x{self.image_width}", f"{self.tile_height}x{self.tile_width}"
        if self.n_tiles == 1:
            return f"images of {image}, without tiles"
        return f"images of {image}, cut into {self.n_tiles} tiles of {tile} ({len(self.rows)} x {len(self.columns)})"


def starts(length: int, tile: int, overlap: float) -> tuple[int, ...]:
    """Return where the tiles of one axis begin: the fewest that overlap by the share, spread evenly from edge to edge.

    Args:
        length: of the image, at least `tile`.
        tile: length of a tile.
        overlap: least share of a tile that it has in common with the next one, 0 to below 1.

    Examples:
        >>> starts(128, 64, 0.25)
        (0, 32, 64)
        >>> starts(64, 64, 0.25)
        (0,)
    """
    if length == tile:
        return (0,)
    n = 1 + math.ceil((length - tile) / max(tile * (1 - overlap), 1))
    return tuple(round(position * (length - tile) / (n - 1)) for position in range(n))


@dataclass(frozen=True)
class InputSettings:
    """How an image becomes what the network sees, for an image size; the output is stitched by the same tiles."""

    tiling: Tiling
    photometric: Photometric = Photometric.NONE
    input_range: InputRange = SYMMETRIC
    """What a pixel's value is where it enters the network."""
    ignored: IgnoredRegion | None = None
    """The part of the image that does not count."""

    @classmethod
    def of(cls, vae: Vae) -> InputSettings:
        """Return those of a network that sees full images as they are."""
        return cls(Tiling.whole(*vae.image_size))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.tiling.image_height, self.tiling.image_width
