"""How a residual becomes a map and a score: a composition of documented parts, as settings. Loads no torch.

`vae_edge.train.model.anomaly_graph` computes it. A composition is one or several maps, each made by four parts in this
order

    residual    what differs between the image and its reconstruction
    smoothing   a Gaussian
    level       division by the image's own residual, and normalization by held-out normals, pixel by pixel
    pooling     which pixels make the score

and, where there are several, their fusion. As text, which `--scoring` takes:

    l2/0.016/image+pixel/top0.5% , gradient/0.008/local+pixel/top0.5% , latent , map=0.025
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TypeVar

from pydantic import Field, model_validator

from vae_edge.errors import UsageError
from vae_edge.records import Record, make_record
from vae_edge.text_enum import TextEnum
from vae_edge.wording import count

MAX_POOLED_PIXELS = 3839
"""The largest K of TopK that TensorRT's ONNX parser promises to take."""

MAX_MAPS = 8

SSIM_SIGMA = 0.008
"""Standard deviation of the window of the structural similarity, as a share of the image's shorter side: 2 pixels of
256, near the 1.5 of Wang et al. 2004, but growing with the image."""

LOCAL_SIGMA = 0.1
"""Standard deviation of the surroundings that `local` divides by, as a share of the image's shorter side."""


class Residual(TextEnum):
    """What is compared between image and reconstruction, values -1 to 1, averaged over the channels."""

    L1 = "l1"
    """Absolute difference."""
    L2 = "l2"
    """Squared difference: the reconstruction term of a VAE with normal noise (Kingma and Welling 2013)."""
    SSIM = "ssim"
    """1 - structural similarity (Wang et al., "Image quality assessment: from error visibility to structural
    similarity", 2004) of the grey images; for autoencoders: Bergmann et al., VISAPP 2019."""
    GRADIENT = "gradient"
    """Length of the gradient of the grey difference: thin lines and edges, blind to slow changes of light (gradient
    magnitude similarity, Xue et al. 2014, is its relative; for autoencoders: Zavrtanik et al., RIAD, 2021)."""


class Level(TextEnum):
    """What of the image itself a smoothed residual is divided by."""

    NONE = "none"
    IMAGE = "image"
    """Its mean over the image: a rough or bright part has more of it everywhere."""
    LOCAL = "local"
    """Half that mean and half the mean of the surroundings (a Gaussian of `LOCAL_SIGMA`): contrast normalization
    (Heeger 1992) of the residual."""


class Pooling(TextEnum):
    """Which pixels of the map make its score."""

    MEAN = "mean"
    MAX = "max"
    TOP = "top"
    """The mean of the largest, a share of all (top-k: Roth et al. 2022 take the maximum, Bergmann et al. 2020 the
    mean; a share is between the two)."""


class Fusion(TextEnum):
    """How several maps, in units of what normals show (see `MapConstants`), become one."""

    MEAN = "mean"
    MAX = "max"


class Latent(TextEnum):
    """A term of the score, and of the map where the image is cut, from the latents of each tile."""

    NONE = "none"
    DISTANCE = "latent"
    """Mahalanobis distance of the latents' mean from that of normals (Lee et al. 2018, "A simple unified framework for
    detecting out-of-distribution samples")."""
    KL = "kl"
    """The divergence of the latents from the standard normal, the other term of the VAE's loss."""


class MapSettings(Record):
    """One map and its score."""

    residual: Residual = Residual.L1
    smoothing_sigma: float = Field(default=0.008, ge=0, le=0.1)
    """Standard deviation of the Gaussian, as a share of the image's shorter side; 0: no smoothing."""
    level: Level = Level.NONE
    per_pixel: bool = True
    """Subtract each pixel's mean and divide by its standard deviation over held-out normals."""
    pooling: Pooling = Pooling.TOP
    top_fraction: float = Field(default=0.0005, gt=0, le=1)
    """With `top`: share of the map's pixels whose mean is the score, at most 3839 pixels."""

    def __str__(self) -> str:
        parts = [level.value for level in (self.level,) if level is not Level.NONE] + ["pixel"] * self.per_pixel
        pooling = f"top{self.top_fraction * 100:.6g}%" if self.pooling is Pooling.TOP else self.pooling.value
        return f"{self.residual}/{self.smoothing_sigma:.6g}/{'+'.join(parts) or 'none'}/{pooling}"

    def describe(self) -> str:
        """Return the map in words."""
        names = {
            Residual.L1: "absolute residual",
            Residual.L2: "squared residual",
            Residual.SSIM: "structural dissimilarity",
            Residual.GRADIENT: "gradient of the residual",
        }
        words = [names[self.residual]]
        if self.smoothing_sigma:
            words.append(f"smoothed by a Gaussian of {self.smoothing_sigma:.3g} of the shorter side")
        if self.level is not Level.NONE:
            whose = "its mean over the image" if self.level is Level.IMAGE else "its mean around the pixel"
            words.append(f"divided by {whose}")
        if self.per_pixel:
            words.append("normalized per pixel by held-out normals")
        words.append(
            {
                Pooling.MEAN: "averaged over the image",
                Pooling.MAX: "its maximum",
                Pooling.TOP: f"mean of the largest {self.top_fraction:.3%}",
            }[self.pooling]
        )
        return ", ".join(words)


class ScoringSettings(Record):
    """How a residual becomes a map and a score: one or several maps, fused, and perhaps a term from the latents."""

    maps: tuple[MapSettings, ...] = Field(default=(MapSettings(),), min_length=1, max_length=MAX_MAPS)
    fusion: Fusion = Fusion.MEAN
    latent: Latent = Latent.NONE
    map_sigma: float = Field(default=0.0, ge=0, le=0.1)
    """Standard deviation of a Gaussian over the anomaly map, as a share of the image's shorter side; the score is taken
    before it. A narrow map finds small defects best, a wide one shows best how far a defect reaches."""

    @model_validator(mode="after")
    def _differ(self) -> ScoringSettings:
        if len({str(each) for each in self.maps}) < len(self.maps):
            raise UsageError(f"the scoring {self} names a map twice; expected different ones")
        return self

    @property
    def is_fused(self) -> bool:
        """Whether there is more than one part, so that they have to be brought to one scale."""
        return len(self.maps) > 1 or self.latent is not Latent.NONE

    @property
    def needs_normals(self) -> bool:
        """Whether anything is measured on held-out normals."""
        return self.is_fused or any(each.per_pixel for each in self.maps)

    def __str__(self) -> str:
        parts = [str(each) for each in self.maps]
        parts += [] if self.latent is Latent.NONE else [self.latent.value]
        parts += [] if self.fusion is Fusion.MEAN else [f"fusion={self.fusion}"]
        parts += [f"map={self.map_sigma:.6g}"] if self.map_sigma else []
        return ",".join(parts)

    def describe(self) -> str:
        """Return the scoring in words."""
        if self == MSE_SCORING:
            return "squared residual, averaged over the image"
        parts = [each.describe() for each in self.maps]
        if self.latent is not Latent.NONE:
            parts.append("distance of the latents from those of normals" if self.latent is Latent.DISTANCE else "KL")
        shown = f"; shown smoothed by a Gaussian of {self.map_sigma:.3g}" if self.map_sigma else ""
        if len(parts) == 1:
            return parts[0] + shown
        numbered = "; ".join(f"({i}) {part}" for i, part in enumerate(parts, 1))
        how = "mean" if self.fusion is Fusion.MEAN else "maximum"
        return f"{how} of {len(parts)} parts in units of held-out normals: {numbered}{shown}"


MSE_SCORING = ScoringSettings(
    maps=(MapSettings(residual=Residual.L2, smoothing_sigma=0, per_pixel=False, pooling=Pooling.MEAN),)
)
"""The plain VAE: the squared residual is the map and its mean is the score."""

NORMALIZED_SCORING = ScoringSettings()
"""The absolute residual, smoothed, normalized per pixel; the mean of the largest values."""

MAP_SIGMA = 0.025
"""Of the anomaly map in all that `auto` chooses from: on every image set available pixel AUROC and AUPRO were best, or
nearly, with 0.02 to 0.03 (`benchmarks/DETECTION.md`)."""

DEFAULT_SCORING = ScoringSettings(
    map_sigma=MAP_SIGMA,
    maps=(
        MapSettings(residual=Residual.GRADIENT, smoothing_sigma=0.008, level=Level.LOCAL, top_fraction=0.005),
        MapSettings(residual=Residual.L2, smoothing_sigma=0.016, level=Level.IMAGE, top_fraction=0.005),
        MapSettings(residual=Residual.L1, smoothing_sigma=0.008, level=Level.IMAGE, top_fraction=0.0005),
    ),
)
"""Fine lines, spots of some size and small ones, each in units of what normals show: near the best on every image set
available. `auto` leaves it only for what is clearly better on the images it chooses by."""

NAMED_SCORINGS = {"mse": MSE_SCORING, "normalized": NORMALIZED_SCORING, "default": DEFAULT_SCORING}
"""Compositions with a name of their own."""

AUTO = "auto"


def parse_scoring(text: str) -> ScoringSettings | None:
    """Read what `--scoring` takes: `auto`, a name, or a composition as this module's description shows.

    Returns:
        None for `auto`: the data choose.

    Raises:
        UsageError: it is not one of these; the message says which word is wrong and what it may be.

    Examples:
        >>> parse_scoring("l2/0.016/none/top0.5%").describe()
        'squared residual, smoothed by a Gaussian of 0.016 of the shorter side, mean of the largest 0.500%'
        >>> print(parse_scoring("auto"))
        None
    """
    words = [word.strip() for word in text.lower().split(",")]
    if words == [AUTO]:
        return None
    if len(words) == 1 and words[0] in NAMED_SCORINGS:
        return NAMED_SCORINGS[words[0]]
    maps: list[MapSettings] = []
    fusion, latent, map_sigma = Fusion.MEAN, Latent.NONE, 0.0
    terms = [word for word in words if word in (Latent.DISTANCE.value, Latent.KL.value)]
    if len(terms) > 1:
        raise UsageError(f"the scoring {text!r} has two terms from the latents; expected one or none")
    for start, what in (("fusion=", "how its parts are fused"), ("map=", "how the map is smoothed")):
        if sum(word.startswith(start) for word in words) > 1:
            raise UsageError(f"the scoring {text!r} says more than once {what}; expected it once")
    for word in words:
        if word in terms:
            latent = Latent(word)
        elif word.startswith("map="):
            map_sigma = _number(word.removeprefix("map="), "smoothing of the map", text)
        elif word.startswith("fusion="):
            fusion = _one_of(Fusion, word.removeprefix("fusion="), "fusion", text)
        else:
            maps.append(_parse_map(word, text))
    if not maps:
        raise UsageError(f"the scoring {text!r} has no map; {_EXPECTED}")
    values = {"maps": tuple(maps), "fusion": fusion, "latent": latent, "map_sigma": map_sigma}
    return make_record(ScoringSettings, values)


_EXPECTED = (
    f"expected auto, {', '.join(NAMED_SCORINGS)}, or maps such as l2/0.016/image+pixel/top0.5%,gradient/0.008/local/max"
    " (residual/smoothing/normalization/pooling)"
)

_POOLING = re.compile(r"top(\d+(?:\.\d+)?(?:e-?\d+)?)%")


def _parse_map(word: str, text: str) -> MapSettings:
    parts = word.split("/")
    if len(parts) != 4:
        raise UsageError(
            f"{word!r} of the scoring {text!r} has {count(len(parts), 'part')} between slashes; {_EXPECTED}"
        )
    residual, sigma, normalization, pooling = parts
    values: dict[str, object] = {"residual": _one_of(Residual, residual, "residual", text), "per_pixel": False}
    values["smoothing_sigma"] = _number(sigma, "smoothing", text)
    names = normalization.split("+")
    if names.count("pixel") > 1 or len(names) - names.count("pixel") > 1:
        raise UsageError(
            f"the normalization {normalization!r} of the scoring {text!r} repeats a part; expected one of none, "
            "image, local, pixel, image+pixel and local+pixel"
        )
    for name in names:
        if name == "pixel":
            values["per_pixel"] = True
        else:
            values["level"] = _one_of(Level, name, "normalization", text, "pixel")
    if (match := _POOLING.fullmatch(pooling)) is not None:
        values |= {"pooling": Pooling.TOP, "top_fraction": float(match.group(1)) / 100}
    elif pooling in (Pooling.MEAN.value, Pooling.MAX.value):
        values["pooling"] = Pooling(pooling)
    else:
        raise UsageError(f"the pooling {pooling!r} of the scoring {text!r} is not known; expected mean, max or top0.5%")
    return make_record(MapSettings, values)


def _number(word: str, what: str, text: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"the {what} {word!r} of the scoring {text!r} is not a number; {_EXPECTED}") from None


_Kind = TypeVar("_Kind", bound=Enum)


def _one_of(kind: type[_Kind], word: str, what: str, text: str, *more: str) -> _Kind:
    try:
        return kind(word)
    except ValueError:
        known = ", ".join([*(str(each.value) for each in kind), *more])
        raise UsageError(f"the {what} {word!r} of the scoring {text!r} is not known; expected one of {known}") from None
