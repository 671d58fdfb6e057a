"""The whole model on features in one torch module: from the uint8 image to the anomaly map and the score.

    image -> backbone -> taps on one grid -> units of the training pictures     `FeatureMaps`
          -> VAE at every position -> residual -> smoothing -> units of held-out normals -> pooling

and `FusedGraph`, in which a network on pixels looks at the same image. Like
`vae_edge.train.model.anomaly_graph.AnomalyGraph` deterministic, without data-dependent control flow, with a dynamic
batch only, and made of what ONNX Runtime, OpenVINO and TensorRT all have.

A residual in feature space instead of pixels: Shi, Yang and Qi, "Unsupervised anomaly segmentation via deep feature
reconstruction", Neurocomputing 424, 2021 (an autoencoder with 1 x 1 kernels on stacked features). Features of several
layers of a pretrained network, stacked on one grid: Defard et al., "PaDiM", ICPR 2021; smoothed by a 3 x 3 mean: Roth
et al., "PatchCore", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_edge.train.features.backbone import TAPS, Backbone, check_size
from vae_edge.train.features.settings import FeatureMap, FeatureSettings
from vae_edge.train.model.anomaly_graph import AnomalyGraph, DeployedGraph, n_pooled, pool_largest
from vae_edge.train.model.input_layers import PhotometricNormalization
from vae_edge.train.model.input_settings import InputSettings, Photometric, Tiling
from vae_edge.train.model.residuals import Smoothing, enlarging_matrix

GRID = 8
"""Pixels from one position of the grid to the next."""

N_CHANNELS = sum(tap.n_channels for tap in TAPS)

MAP_SIGMA = 0.5
"""Standard deviation, in positions, of the Gaussian that brings the map to the picture's pixels."""

_SMALLEST = 1e-6


class FeatureMaps(nn.Module):
    """The backbone's taps on one grid.

    Maps that are no coarser than the grid go through a mean over 3 x 3 positions, or 4 x 4 where the stride is
    halved as well; the coarser ones are interpolated.

    Args:
        backbone: frozen.
        height: of the picture, a multiple of 16.
        width: likewise.
        photometric: how light and contrast are evened out first.
    """

    down: Tensor
    across: Tensor

    def __init__(
        self, backbone: Backbone, height: int, width: int, photometric: Photometric = Photometric.NONE
    ) -> None:
        super().__init__()
        check_size(height, width)
        self.photometric = PhotometricNormalization(photometric, height, width)
        self.backbone = backbone
        rows, columns = height // GRID, width // GRID
        self.size: tuple[int, int] = (rows, columns)
        self.register_buffer("down", interpolation_matrix(rows // 2, rows))
        self.register_buffer("across", interpolation_matrix(columns // 2, columns).T.contiguous())

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 [N, 256, H / 8, W / 8] for uint8 [N, H, W, 3] RGB."""
        # Cast before the transpose: TensorRT refuses to transpose uint8. The backbone was trained on (x - 127) / 128,
        # which is the same but for half a grey value.
        return self.of_pixels((image.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2))

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Return the same for float32 [N, 3, H, W], -1 to 1."""
        parts = []
        for tap, features in zip(TAPS, self.backbone(self.photometric(pixels)), strict=True):
            if tap.stride < GRID:
                parts.append(functional.avg_pool2d(features, 4, 2, 1, count_include_pad=False))
            elif tap.stride == GRID:
                parts.append(functional.avg_pool2d(features, 3, 1, 1, count_include_pad=False))
            else:
                parts.append(self.down @ (features @ self.across))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class FeatureConstants:
    """What pictures of good parts say."""

    channel_mean: Tensor
    """float32 [1, C, 1, 1], of the features over the training pictures."""
    channel_deviation: Tensor
    """Of the same shape, above 0."""
    means: tuple[Tensor, ...]
    """For each map what is subtracted, float32 [1, 1, H / 8, W / 8], from normals held out from the training."""
    scales: tuple[Tensor, ...]
    """For each map what it is divided by, of the same shape, above 0."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the constants by name, as they are saved."""
        named = {"channel_mean": self.channel_mean, "channel_deviation": self.channel_deviation}
        named |= {f"mean.{i}": tensor for i, tensor in enumerate(self.means)}
        named |= {f"scale.{i}": tensor for i, tensor in enumerate(self.scales)}
        return {f"feature.{name}": tensor.clone().contiguous() for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> FeatureConstants:
        """Make the constants from saved ones.

        Raises:
            KeyError: some are missing.
        """
        n = sum(name.startswith("feature.mean.") for name in tensors)
        return cls(
            tensors["feature.channel_mean"],
            tensors["feature.channel_deviation"],
            tuple(tensors[f"feature.mean.{i}"] for i in range(n)),
            tuple(tensors[f"feature.scale.{i}"] for i in range(n)),
        )


class FeatureResidual(nn.Module):
    """From features to the squared residual of a position, float32 [N, 1, H / 8, W / 8], 0 or more.

    Args:
        vae: from `FeatureVae.convolutions`.
        channel_mean: see `FeatureConstants`.
        channel_deviation: likewise.
    """

    channel_mean: Tensor
    channel_unit: Tensor

    def __init__(self, vae: nn.Sequential, channel_mean: Tensor, channel_deviation: Tensor) -> None:
        super().__init__()
        self.vae = vae
        self.register_buffer("channel_mean", channel_mean)
        self.register_buffer("channel_unit", 1 / channel_deviation)

    @property
    def channel_deviation(self) -> Tensor:
        """See `FeatureConstants`."""
        deviation: Tensor = 1 / self.channel_unit
        return deviation

    def forward(self, features: Tensor) -> Tensor:
        """Compare float32 [N, C, H / 8, W / 8] with its reconstruction, in the channels' units."""
        x = (features - self.channel_mean) * self.channel_unit
        difference = x - self.vae(x)
        residual: Tensor = (difference * difference).mean(dim=1, keepdim=True)
        return residual


class FeatureMapMaker(nn.Module):
    """One map before its normalization by held-out normals, float32 [N, 1, H / 8, W / 8].

    Args:
        settings: of the map.
        size: height and width of the grid.
    """

    def __init__(self, settings: FeatureMap, size: tuple[int, int]) -> None:
        super().__init__()
        self.by_level = settings.by_level
        self.smooth = Smoothing(settings.smoothing_sigma, *size)

    def forward(self, residual: Tensor) -> Tensor:
        """Smooth a squared residual and divide it by its level."""
        made: Tensor = self.smooth(residual)
        if self.by_level:
            made = made / (made.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True) + _SMALLEST)
        return made


class FeatureScorer(nn.Module):
    """From the squared residual to the map and the score.

    Args:
        settings: of the maps.
        constants: of held-out normals.
        size: height and width of the grid.
    """

    down: Tensor
    across: Tensor

    def __init__(self, settings: FeatureSettings, constants: FeatureConstants, size: tuple[int, int]) -> None:
        super().__init__()
        if not len(settings.maps) == len(constants.means) == len(constants.scales):
            raise KeyError(f"constants of {len(constants.means)} maps for a scoring of {len(settings.maps)}")
        rows, columns = size
        self.makers = nn.ModuleList(FeatureMapMaker(each, size) for each in settings.maps)
        self.counts = [n_pooled(each.top_fraction, rows, columns) for each in settings.maps]
        for i, (mean, scale) in enumerate(zip(constants.means, constants.scales, strict=True)):
            if not {mean.shape, scale.shape} <= {(1, 1, *size)}:
                raise KeyError(f"constants of {tuple(mean.shape)} for a grid of {size}")
            self.register_buffer(f"mean_{i}", mean)
            self.register_buffer(f"unit_{i}", 1 / scale)
        self.register_buffer("down", enlarging_matrix(MAP_SIGMA * GRID, rows * GRID, GRID))
        self.register_buffer("across", enlarging_matrix(MAP_SIGMA * GRID, columns * GRID, GRID).T.contiguous())

    def forward(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map, float32 [N, H, W], and the score, float32 [N]."""
        maps, scores = [], []
        for i, maker in enumerate(self.makers):
            values = (maker(residual) - getattr(self, f"mean_{i}")) * getattr(self, f"unit_{i}")
            maps.append(values)
            scores.append(pool_largest(values, self.counts[i]))
        anomaly_map = self.down @ (_mean(maps) @ self.across)
        return anomaly_map.flatten(1, 2), _mean(scores)


def _mean(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts) if len(parts) > 1 else total


class FeatureGraph(DeployedGraph):
    """`image` uint8 [N, H, W, 3] RGB to `anomaly_map` float32 [N, H, W] and `score` float32 [N].

    Args:
        backbone: frozen.
        vae: from `FeatureVae.convolutions`.
        settings: of the scoring.
        constants: from held-out normals.
        image_size: height and width of the picture, multiples of 16.
        photometric: how light and contrast are evened out.
    """

    def __init__(
        self,
        backbone: Backbone,
        vae: nn.Sequential,
        settings: FeatureSettings,
        constants: FeatureConstants,
        image_size: tuple[int, int],
        photometric: Photometric = Photometric.NONE,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.features = FeatureMaps(backbone, *image_size, photometric)
        self.residual = FeatureResidual(vae, constants.channel_mean, constants.channel_deviation)
        self.score = FeatureScorer(settings, constants, self.features.size)
        self.settings = settings
        self.constants = constants
        height, width = image_size
        self.input_settings = InputSettings(
            Tiling(image_height=height, image_width=width, tile_height=height, tile_width=width), photometric
        )
        self.eval().requires_grad_(False)

    def describe(self) -> str:
        """Return what the graph does, in words."""
        height, width = self.image_size
        return (
            f"images of {height}x{width}; {self.input_settings.photometric.describe()}; squared residual of a VAE on "
            f"features of EfficientNet-Lite0, "
            f"{self.settings.describe()}"
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the anomaly map and the score of a batch."""
        anomaly_map, score = self.score(self.residual(self.features(image)))
        return anomaly_map, score

    def of_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for float32 [N, 3, H, W], -1 to 1."""
        anomaly_map, score = self.score(self.residual(self.features.of_pixels(pixels)))
        return anomaly_map, score


@dataclass(frozen=True)
class FusionConstants:
    """How the scores of two networks are brought to one scale.

    The median of held-out normals becomes 0 and their 0.9-quantile 1, as in
    `vae_edge.train.model.scoring_constants.fit_scoring_constants`.
    """

    pixel_center: float
    pixel_unit: float
    feature_center: float
    feature_unit: float

    def tensors(self) -> dict[str, Tensor]:
        """Return the constants by name, as they are saved."""
        return {"fusion.units": torch.tensor(list(vars(self).values()), dtype=torch.float32)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> FusionConstants:
        """Make the constants from saved ones.

        Raises:
            KeyError: they are missing.
        """
        values = tensors["fusion.units"].tolist()
        if len(values) != 4:
            raise KeyError(f"{len(values)} units for the fusion of two networks")
        return cls(*values)


class FusedGraph(DeployedGraph):
    """A network on features and one on pixels in one graph; map and score are the means of both, in units of normals.

    Args:
        feature: decides the size of the image.
        pixel: sees the same image, shrunk or enlarged to its own size.
        constants: the units.
    """

    def __init__(self, feature: FeatureGraph, pixel: AnomalyGraph, constants: FusionConstants) -> None:
        super().__init__()
        self.image_size = feature.image_size
        self.feature = feature
        self.pixel = pixel
        self.settings = feature.settings
        self.input_settings = pixel.input_settings
        self.constants = constants
        self.to_pixel = Resampling(feature.image_size, pixel.image_size)
        self.from_pixel = Resampling(pixel.image_size, feature.image_size)
        self.eval().requires_grad_(False)

    def describe(self) -> str:
        """Return what the graph does, in words."""
        return (
            f"mean of two networks in units of held-out normals: (1) {self.feature.describe()}; (2) "
            f"{self.pixel.describe()}"
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the anomaly map and the score of a batch."""
        feature_map, feature_score = self.feature(image)
        pixel_map, pixel_score = self.pixel_outputs(image)
        c = self.constants
        feature_share, pixel_share = 0.5 / c.feature_unit, 0.5 / c.pixel_unit
        offset = c.feature_center * feature_share + c.pixel_center * pixel_share
        anomaly_map = feature_map * feature_share + self.from_pixel(pixel_map[:, None])[:, 0] * pixel_share - offset
        return anomaly_map, feature_score * feature_share + pixel_score * pixel_share - offset

    def pixel_outputs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return map and score of the network on pixels, of its own size, for uint8 [N, H, W, 3]."""
        pixels = self.to_pixel((image.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2))
        reconstruct = self.pixel.reconstruct
        anomaly_map, score = self.pixel.score(reconstruct.of_pixels(reconstruct.range(pixels)))
        return anomaly_map, score


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


class Resampling(nn.Module):
    """Resizes float32 [N, C, H, W] linearly; where it shrinks, over all the pixels that become one.

    For maps as well as pictures, so that it does not round as `vae_edge.train.model.input_layers.AreaResizing` does.

    Args:
        before: height and width.
        after: height and width.
    """

    down: Tensor
    across: Tensor

    def __init__(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        super().__init__()
        self.is_identity = before == after
        if not self.is_identity:
            self.register_buffer("down", interpolation_matrix(before[0], after[0]))
            self.register_buffer("across", interpolation_matrix(before[1], after[1]).T.contiguous())

    def forward(self, values: Tensor) -> Tensor:
        """Resize a batch."""
        return values if self.is_identity else self.down @ (values @ self.across)


def interpolation_matrix(before: int, after: int) -> Tensor:
    """Return the matrix, float32 [after, before], that resizes a column linearly; its rows sum to 1.

    Where it shrinks, the triangle is as wide as a pixel of the result, so that every pixel counts.
    """
    ratio = before / after
    places = (torch.arange(after, dtype=torch.float64) + 0.5) * ratio - 0.5
    distance = (torch.arange(before, dtype=torch.float64)[None] - places[:, None].clamp(0, before - 1)).abs()
    weights = (1 - distance / max(ratio, 1.0)).clamp_min(0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()
