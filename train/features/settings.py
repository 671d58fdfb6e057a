"""What a VAE on features is asked to be, and the sizes of pictures that it takes. Loads no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from vae_edge.records import Record
from vae_edge.text_enum import TextEnum

SHORTER_SIDE = 256
"""Pixels that a picture's shorter side is resized to: what the backbone saw in its own training is of this size. 448
found no more on the surfaces tried, at three times the work."""

LONGER_SIDE = 640
"""Pixels that the longer side of an elongated picture has at most."""

_STEP = 32
"""Sides are multiples of it."""


class MapSource(TextEnum):
    """Whose residual a map shows."""

    FEATURES = "features"
    """Of the VAE on features, at every eighth pixel."""
    PIXELS = "pixels"
    """Of the VAE on patches of pixels, at every fourth pixel."""
    PLACES = "places"
    """Of features from those of good parts at the same place, at every eighth pixel."""


class FeatureMap(Record):
    """One map of the residual and its score; where there are several, map and score are their means."""

    source: MapSource = MapSource.FEATURES
    smoothing_sigma: float = Field(default=0.4, ge=0, le=8)
    """Standard deviation, in positions, of the Gaussian over the residual."""
    by_level: bool = False
    """Divide the residual by its mean over the picture: a rough or bright part has more of it everywhere."""
    top_fraction: float = Field(default=0.01, gt=0, le=1)
    """Share of the positions whose mean is the score."""
    shown_sigma: float = Field(default=0.5, gt=0, le=8)
    """Standard deviation, in positions, of the Gaussian that brings the normalized map to the picture's pixels, where
    it is shown; the score does not see it."""

    def describe(self) -> str:
        """Return the map in words."""
        whose = "" if self.source is MapSource.FEATURES else f"of {self.source}, "
        level = "divided by its mean over the picture, " if self.by_level else ""
        return f"{whose}{level}normalized per position by held-out normals, mean of the largest {self.top_fraction:.3%}"


class PositionVae(Record):
    """A VAE that sees one position of a picture at a time."""

    latent_vec_size: int = Field(default=16, ge=1, le=1024)
    """Latents of each position. Of features, 16 to 64 found the same."""
    n_hidden: int = Field(default=192, ge=1, le=4096)
    """Channels of the hidden layers, two before the latents and two after them."""
    kl_weight: float = Field(default=0.001, ge=0)
    """Weight of the Kullback-Leibler term, for each position; the other term is a mean over the channels."""
    batch_size: int = Field(default=4096, ge=2)
    """Positions in a step, drawn from all pictures."""


PIXEL_MAP = FeatureMap(source=MapSource.PIXELS, smoothing_sigma=0.5, by_level=True, top_fraction=0.005, shown_sigma=1.5)
"""Divided by the picture's level, without which rough pictures of good parts have the largest values. Shown
smoother than it is scored: its grain would put places of good surface above faint defects."""

FEATURE_MAPS = (FeatureMap(top_fraction=0.01), FeatureMap(by_level=True, top_fraction=0.1))

PLACE_MAPS = (
    FeatureMap(source=MapSource.PLACES, top_fraction=0.003),
    FeatureMap(source=MapSource.PLACES, by_level=True, top_fraction=0.003),
)
"""Three positions of a 256 x 256 picture: elsewhere, a distance that knows each place is as small as on good parts. On
the drawn board the largest 0.1, 0.3, 1 and 3 % reached an image AUROC of 0.980, 0.979, 0.975 and 0.967."""

N_DIRECTIONS = 32
"""Of features at a place. On the drawn board 16, 32 and 64 reached an image AUROC of 0.956, 0.966 and 0.966."""


class FeatureSettings(PositionVae):
    """The network on the features, what joins it, their training and their scoring."""

    pixels: PositionVae | None = None
    """The network on patches of pixels; None: there is none."""
    places: int | None = Field(default=None, ge=1, le=256)
    """Main directions of features that are compared with good parts at the same place
    (`vae_edge.train.features.places`); None: they are not."""
    n_steps: int = Field(default=300, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    """Of Adam, at the top of one cycle."""
    maps: tuple[FeatureMap, ...] = Field(default=FEATURE_MAPS, min_length=1, max_length=8)
    n_folds: int = Field(default=4, ge=2, le=20)
    """Networks that measure the residual of good parts that they were not trained on, for the constants of the one that
    is deployed. Cross-conformal calibration brings its own."""

    @model_validator(mode="after")
    def _check_sources(self) -> FeatureSettings:
        if (self.pixels is not None) != (MapSource.PIXELS in self.sources):
            raise ValueError("a network on pixels and a map of its residual come together; expected both or neither")
        if (self.places is not None) != (MapSource.PLACES in self.sources):
            raise ValueError("places and a map of their distance come together; expected both or neither")
        return self

    @property
    def sources(self) -> tuple[MapSource, ...]:
        """Whose residuals the maps show, each once."""
        return tuple(source for source in MapSource if any(each.source is source for each in self.maps))

    def with_pixels(self) -> FeatureSettings:
        """Return the settings with a network on patches of pixels and a map of its residual."""
        if self.pixels is not None:
            return self
        pixels = PositionVae(latent_vec_size=8, n_hidden=128, batch_size=2048)
        return self.model_copy(update={"pixels": pixels, "maps": (*self.maps, PIXEL_MAP)})

    def without_pixels(self) -> FeatureSettings:
        """Return the settings without them."""
        return self.model_copy(update={"pixels": None, "maps": self._maps_without(MapSource.PIXELS)})

    def with_places(self) -> FeatureSettings:
        """Return the settings with the distance from the features of good parts at the same place."""
        if self.places is not None:
            return self
        return self.model_copy(update={"places": N_DIRECTIONS, "maps": (*self.maps, *PLACE_MAPS)})

    def without_places(self) -> FeatureSettings:
        """Return the settings without it."""
        return self.model_copy(update={"places": None, "maps": self._maps_without(MapSource.PLACES)})

    def _maps_without(self, source: MapSource) -> tuple[FeatureMap, ...]:
        return tuple(each for each in self.maps if each.source is not source)

    def describe(self) -> str:
        """Return the scoring in words."""
        parts = [each.describe() for each in self.maps]
        if len(parts) == 1:
            return parts[0]
        numbered = "; ".join(f"({i}) {part}" for i, part in enumerate(parts, 1))
        return f"mean of {len(parts)} parts in units of held-out normals: {numbered}"


def choose_feature_size(typical: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width at which the backbone sees pictures of a typical height and width.

    The shorter side becomes 256 pixels, unless the longer one would pass 640; the aspect is kept but for rounding.

    Args:
        typical: height and width in pixels.

    >>> choose_feature_size((1024, 1024)), choose_feature_size((400, 1600))
    ((256, 256), (160, 640))
    """
    height, width = typical
    scale = min(SHORTER_SIDE / min(height, width), LONGER_SIDE / max(height, width))
    rows, columns = (max(_STEP, _STEP * round(side * scale / _STEP)) for side in typical)
    return rows, columns
