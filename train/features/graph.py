"""The whole model on features in one torch module: from the uint8 image to the anomaly map and the score.

    image -> light -> backbone -> taps on one grid        `FeatureMaps`
          -> units of the training pictures -> VAE at every position -> residual        `FeatureResidual`
          -> distance from good parts at the same place, where these lie at the same place      `PlaceDistance`
    image -> light -> units -> VAE on patches -> residual, where there is one on pixels     `PatchResidual`
          -> smoothing -> units of held-out normals -> pooling -> mean        `FeatureScorer`

Like `vae_edge.train.model.anomaly_graph.AnomalyGraph` deterministic, without data-dependent control flow, with a
dynamic batch only, and made of what ONNX Runtime, OpenVINO and TensorRT all have.

A residual in feature space instead of pixels: Shi, Yang and Qi, "Unsupervised anomaly segmentation via deep feature
reconstruction", Neurocomputing 424, 2021 (an autoencoder with 1 x 1 kernels on stacked features). Features of several
layers of a pretrained network, stacked on one grid: Defard et al., "PaDiM", ICPR 2021; smoothed by a 3 x 3 mean: Roth
et al., "PatchCore", CVPR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_edge.ignored_region import IgnoredRegion
from vae_edge.train.features.backbone import TAPS, Backbone, check_size
from vae_edge.train.features.network import PositionResidual
from vae_edge.train.features.patches import PATCH_STEP, PatchResidual
from vae_edge.train.features.places import PlaceConstants, PlaceDistance
from vae_edge.train.features.settings import FeatureMap, FeatureSettings, MapSource
from vae_edge.train.model.anomaly_graph import DeployedGraph, n_pooled, pool_largest
from vae_edge.train.model.input_layers import PhotometricNormalization
from vae_edge.train.model.input_settings import InputSettings, Photometric, Tiling
from vae_edge.train.model.kept import KeptPlaces, kept_or_none
from vae_edge.train.model.residuals import Enlarging, Smoothing

GRID = 8
"""Pixels from one position of the grid to the next."""

STEPS = {MapSource.FEATURES: GRID, MapSource.PIXELS: PATCH_STEP, MapSource.PLACES: GRID}
"""Pixels from one value of a residual to the next."""

N_CHANNELS = sum(tap.n_channels for tap in TAPS)

_SMALLEST = 1e-6

_BATCH_PIXELS = 256 * 256


def pictures_at_a_time(height: int, width: int) -> int:
    """Return how many pictures, 1 to 16, a core computes together: what it computes of more does not stay in its cache.

    Eight pictures of 256 x 256 together took a core twice as long for each as one.
    """
    return max(1, min(16, _BATCH_PIXELS // (height * width)))


class FeatureMaps(nn.Module):
    """The backbone's taps on one grid.

    Maps that are no coarser than the grid go through a mean over 3 x 3 positions, or 4 x 4 where the stride is
    halved as well; the coarser ones are interpolated.

    Args:
        backbone: frozen.
        height: of the picture, a multiple of 16.
        width: likewise.
        photometric: how light and contrast are evened out first.
        ignored: the part of the picture that does not count.
    """

    down: Tensor
    across: Tensor

    def __init__(
        self,
        backbone: Backbone,
        height: int,
        width: int,
        photometric: Photometric = Photometric.NONE,
        ignored: IgnoredRegion | None = None,
    ) -> None:
        super().__init__()
        check_size(height, width)
        self.ignored = ignored
        self.photometric = PhotometricNormalization(photometric, height, width, ignored)
        self.backbone = backbone
        rows, columns = height // GRID, width // GRID
        self.size: tuple[int, int] = (rows, columns)
        self.register_buffer("down", interpolation_matrix(rows // 2, rows))
        self.register_buffer("across", interpolation_matrix(columns // 2, columns).T.contiguous())

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 [N, 256, H / 8, W / 8] for uint8 [N, H, W, 3] RGB."""
        return self.of_lit(self.photometric(to_pixels(image)))

    def of_lit(self, pixels: Tensor) -> Tensor:
        """Return the same for float32 [N, 3, H, W] whose light is evened out."""
        parts = []
        for tap, features in zip(TAPS, self.backbone(pixels), strict=True):
            if tap.stride < GRID:
                parts.append(functional.avg_pool2d(features, 4, 2, 1, count_include_pad=False))
            elif tap.stride == GRID:
                parts.append(functional.avg_pool2d(features, 3, 1, 1, count_include_pad=False))
            else:
                parts.append(self.down @ (features @ self.across))
        return torch.cat(parts, dim=1)


def to_pixels(image: Tensor) -> Tensor:
    """Return float32 [N, 3, H, W], -1 to 1, for uint8 [N, H, W, 3] RGB."""
    # Cast before the transpose: TensorRT refuses to transpose uint8. The backbone was trained on (x - 127) / 128, which
    # is the same but for half a grey value.
    return (image.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class FeatureConstants:
    """What pictures of good parts say."""

    channel_mean: Tensor
    """float32 [1, C, 1, 1], of the features over the training pictures."""
    channel_deviation: Tensor
    """Of the same shape, above 0."""
    means: tuple[Tensor, ...]
    """For each map what is subtracted, float32 [1, 1, h, w] of its residual's size (`STEPS`), from normals held out
    from the training."""
    scales: tuple[Tensor, ...]
    """For each map what it is divided by, of the same shape, above 0."""
    pixel_mean: Tensor | None = None
    """float32 [1, 3, 1, 1], of the pixels over the training pictures; None: no network sees them."""
    pixel_deviation: Tensor | None = None
    """Of the same shape, above 0."""
    places: PlaceConstants | None = None
    """Of the features at each place; None: they are not compared by place."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the constants by name, as they are saved."""
        named = {"channel_mean": self.channel_mean, "channel_deviation": self.channel_deviation}
        named |= {f"mean.{i}": tensor for i, tensor in enumerate(self.means)}
        named |= {f"scale.{i}": tensor for i, tensor in enumerate(self.scales)}
        if self.pixel_mean is not None and self.pixel_deviation is not None:
            named |= {"pixel_mean": self.pixel_mean, "pixel_deviation": self.pixel_deviation}
        if self.places is not None:
            named |= {f"places.{name}": tensor for name, tensor in self.places.tensors().items()}
        return {f"feature.{name}": tensor.clone().contiguous() for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> FeatureConstants:
        """Make the constants from saved ones.

        Raises:
            KeyError: some are missing.
        """
        n = sum(name.startswith("feature.mean.") for name in tensors)
        start = "feature.places."
        places = {name.removeprefix(start): each for name, each in tensors.items() if name.startswith(start)}
        return cls(
            tensors["feature.channel_mean"],
            tensors["feature.channel_deviation"],
            tuple(tensors[f"feature.mean.{i}"] for i in range(n)),
            tuple(tensors[f"feature.scale.{i}"] for i in range(n)),
            tensors.get("feature.pixel_mean"),
            tensors.get("feature.pixel_deviation"),
            PlaceConstants(places["directions"], places["means"], places["whitening"]) if places else None,
        )


class FeatureResidual(PositionResidual):
    """From features to the squared residual of a position, float32 [N, 1, H / 8, W / 8], 0 or more.

    Args:
        vae: from `FeatureVae.convolutions`.
        channel_mean: see `FeatureConstants`.
        channel_deviation: likewise.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Compare float32 [N, C, H / 8, W / 8] with its reconstruction, in the channels' units."""
        x = self.in_units(features)
        difference = x - self.vae(x)
        residual: Tensor = (difference * difference).mean(dim=1, keepdim=True)
        return residual


class FeatureMapMaker(nn.Module):
    """One map before its normalization by held-out normals, float32 [N, 1, H / 8, W / 8].

    Args:
        settings: of the map.
        size: height and width of the grid.
        kept: the positions that count; None: all.
    """

    def __init__(self, settings: FeatureMap, size: tuple[int, int], kept: KeptPlaces | None = None) -> None:
        super().__init__()
        self.kept = kept
        self.by_level = settings.by_level
        self.smooth = Smoothing(settings.smoothing_sigma, *size)

    def forward(self, residual: Tensor) -> Tensor:
        """Smooth a squared residual and divide it by its level."""
        if self.kept is not None:
            return self._of_kept(residual, self.kept)
        made: Tensor = self.smooth(residual)
        if self.by_level:
            made = made / (made.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True) + _SMALLEST)
        return made

    def _of_kept(self, residual: Tensor, kept: KeptPlaces) -> Tensor:
        made: Tensor = self.smooth(kept.only(residual))
        return made / (kept.mean(made) + _SMALLEST) if self.by_level else made


class FeatureScorer(nn.Module):
    """From the squared residuals to the map and the score.

    Args:
        settings: of the maps.
        constants: of held-out normals.
        image_size: height and width of the picture.
        ignored: the part of it that does not count.
    """

    def __init__(
        self,
        settings: FeatureSettings,
        constants: FeatureConstants,
        image_size: tuple[int, int],
        ignored: IgnoredRegion | None = None,
    ) -> None:
        super().__init__()
        if not len(settings.maps) == len(constants.means) == len(constants.scales):
            raise KeyError(f"constants of {len(constants.means)} maps for a scoring of {len(settings.maps)}")
        height, width = image_size
        self.sources = [each.source for each in settings.maps]
        sizes = [(height // STEPS[source], width // STEPS[source]) for source in self.sources]
        self.kept = kept_or_none(ignored, height, width)
        places = [kept_or_none(ignored, *size) for size in sizes]
        self.makers = nn.ModuleList(
            FeatureMapMaker(each, size, kept) for each, size, kept in zip(settings.maps, sizes, places, strict=True)
        )
        self.counts = [
            n_pooled(each.top_fraction, *size) if kept is None else n_pooled(each.top_fraction, 1, kept.n)
            for each, size, kept in zip(settings.maps, sizes, places, strict=True)
        ]
        for i, (mean, scale) in enumerate(zip(constants.means, constants.scales, strict=True)):
            if not {mean.shape, scale.shape} <= {(1, 1, *sizes[i])}:
                raise KeyError(f"constants of {tuple(mean.shape)} for a grid of {sizes[i]}")
            self.register_buffer(f"mean_{i}", mean)
            self.register_buffer(f"unit_{i}", 1 / scale)
        # Maps of a source that are enlarged alike are added first.
        self.kinds = [(each.source, each.shown_sigma) for each in settings.maps]
        self.enlarge = nn.ModuleList(
            Enlarging(sigma * STEPS[source], height, width, STEPS[source])
            for source, sigma in dict.fromkeys(self.kinds)
        )

    def forward(self, residuals: Mapping[MapSource, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the map, float32 [N, H, W], and the score, float32 [N], for float32 [N, 1, h, w] of each source."""
        maps: dict[tuple[MapSource, float], list[Tensor]] = {kind: [] for kind in dict.fromkeys(self.kinds)}
        scores = []
        for i, (kind, maker) in enumerate(zip(self.kinds, self.makers, strict=True)):
            values = (maker(residuals[kind[0]]) - getattr(self, f"mean_{i}")) * getattr(self, f"unit_{i}")
            assert isinstance(maker, FeatureMapMaker)
            kept = maker.kept
            maps[kind].append(values if kept is None else kept.only(values))
            scores.append(pool_largest(values if kept is None else kept.to_pool(values), self.counts[i]))
        parts = [enlarge(reduce(add, values)) for enlarge, values in zip(self.enlarge, maps.values(), strict=True)]
        anomaly_map = reduce(add, parts) / len(scores)
        if self.kept is not None:
            anomaly_map = self.kept.only(anomaly_map)
        return anomaly_map.flatten(1, 2), reduce(add, scores) / len(scores)


class FeatureGraph(DeployedGraph):
    """`image` uint8 [N, H, W, 3] RGB to `anomaly_map` float32 [N, H, W] and `score` float32 [N].

    Args:
        backbone: frozen.
        vae: from `FeatureVae.convolutions`.
        settings: of the scoring.
        constants: from held-out normals.
        image_size: height and width of the picture, multiples of 16.
        photometric: how light and contrast are evened out.
        pixel_vae: from `patch_convolutions`, where the settings have a network on pixels.
        ignored: the part of the picture that does not count.
    """

    is_run_on_each_core = True

    def __init__(
        self,
        backbone: Backbone,
        vae: nn.Sequential,
        settings: FeatureSettings,
        constants: FeatureConstants,
        image_size: tuple[int, int],
        photometric: Photometric = Photometric.NONE,
        pixel_vae: nn.Sequential | None = None,
        ignored: IgnoredRegion | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.features = FeatureMaps(backbone, *image_size, photometric, ignored)
        self.residual = FeatureResidual(vae, constants.channel_mean, constants.channel_deviation)
        self.pixels: PatchResidual | None = None
        if settings.pixels is not None:
            if pixel_vae is None or constants.pixel_mean is None or constants.pixel_deviation is None:
                raise KeyError("the network on pixels is missing")
            self.pixels = PatchResidual(pixel_vae, constants.pixel_mean, constants.pixel_deviation)
        self.places: PlaceDistance | None = None
        if settings.places is not None:
            if constants.places is None or constants.places.whitening.shape[0] != math.prod(self.features.size):
                raise KeyError("the constants of each place are missing or of another size")
            self.places = PlaceDistance(constants.places, constants.channel_mean, constants.channel_deviation)
        self.score = FeatureScorer(settings, constants, image_size, ignored)
        self.settings = settings
        self.constants = constants
        height, width = image_size
        self.input_settings = InputSettings(
            Tiling(image_height=height, image_width=width, tile_height=height, tile_width=width),
            photometric,
            ignored=ignored,
        )
        self.eval().requires_grad_(False)

    @property
    def images_at_a_time(self) -> int:
        """See `pictures_at_a_time`."""
        return pictures_at_a_time(*self.image_size)

    def describe(self) -> str:
        """Return what the graph does, in words."""
        height, width = self.image_size
        on_pixels = "" if self.pixels is None else " and of one on patches of pixels"
        by_place = "" if self.places is None else ", with the distance from good parts at the same place"
        return (
            f"images of {height}x{width}; {self.input_settings.photometric.describe()}; squared residual of a VAE on "
            f"features of EfficientNet-Lite0{on_pixels}{by_place}, {self.settings.describe()}"
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the anomaly map and the score of a batch."""
        return self.of_pixels(to_pixels(image))

    def of_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for float32 [N, 3, H, W], -1 to 1."""
        anomaly_map, score = self.score(self.residuals(pixels))
        return anomaly_map, score

    def residuals(self, pixels: Tensor) -> dict[MapSource, Tensor]:
        """Return the squared residuals, float32 [N, 1, h, w] of each source, for float32 [N, 3, H, W], -1 to 1."""
        lit = self.features.photometric(pixels)
        features = self.features.of_lit(lit)
        made = {MapSource.FEATURES: self.residual(features)}
        if self.places is not None:
            made[MapSource.PLACES] = self.places(features)
        if self.pixels is not None:
            made[MapSource.PIXELS] = self.pixels(lit)
        return made


def count_feature_flops(graph: FeatureGraph) -> int:
    """Return the operations of one image: two for each multiply-add of a convolution."""
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        total += 2 * layer.weight.numel() * output.shape[2] * output.shape[3]

    hooks = [layer.register_forward_hook(count) for layer in graph.modules() if isinstance(layer, nn.Conv2d)]
    try:
        with torch.inference_mode():
            graph(torch.zeros(1, *graph.image_size, 3, dtype=torch.uint8))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def interpolation_matrix(before: int, after: int) -> Tensor:
    """Return the matrix, float32 [after, before], that resizes a column linearly; its rows sum to 1.

    Where it shrinks, the triangle is as wide as a pixel of the result, so that every pixel counts.
    """
    ratio = before / after
    places = (torch.arange(after, dtype=torch.float64) + 0.5) * ratio - 0.5
    distance = (torch.arange(before, dtype=torch.float64)[None] - places[:, None].clamp(0, before - 1)).abs()
    weights = (1 - distance / max(ratio, 1.0)).clamp_min(0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()
