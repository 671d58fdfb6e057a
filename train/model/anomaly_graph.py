"""All of the model in one torch module: from the uint8 image to the anomaly map and the score.

Every backend runs this graph, so that preparation and scoring cannot drift apart between them. It is deterministic, has
no data-dependent control flow and a dynamic batch only, and uses nothing that ONNX Runtime, OpenVINO or TensorRT lacks.

    image -> [-1, 1] -> photometric normalization -> tiles -> network -> stitching     `Reconstruction`
          -> residuals -> smoothing -> normalization -> pooling -> fusion              `Scorer`
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import fusion

from vae_edge.ignored_region import IgnoredRegion
from vae_edge.platform.work import Progress
from vae_edge.train.model.cores import on_each_core
from vae_edge.train.model.input_layers import PhotometricNormalization, RangeOfInput, Tiles
from vae_edge.train.model.input_settings import InputSettings
from vae_edge.train.model.kept import KeptPlaces, kept_or_none
from vae_edge.train.model.network import LOG_VARIANCE_LIMIT, Vae
from vae_edge.train.model.residuals import Enlarging, LevelNormalization, ResidualMap, Smoothing
from vae_edge.train.model.scoring import (
    MAX_POOLED_PIXELS,
    Fusion,
    Latent,
    MapSettings,
    Pooling,
    Residual,
    ScoringSettings,
)


@dataclass(frozen=True)
class ScoringConstants:
    """What held-out normals say; empty for a scoring that needs none. Made by `fit_scoring_constants`."""

    means: tuple[Tensor, ...] = ()
    """For each map what is subtracted, float32 of the map's size (see `MapMaker`) or [1, 1, 1, 1]."""
    scales: tuple[Tensor, ...] = ()
    """For each map what it is divided by, of the same shape, above 0."""
    latent: dict[str, Tensor] = field(default_factory=dict)
    """Of the latent term: `center` and `unit` (float32 [1]), and for the distance `mean` [1, L] and `whitening`."""

    @classmethod
    def neutral(cls, settings: ScoringSettings) -> ScoringConstants:
        """Return constants that change nothing."""
        one = torch.ones(1, 1, 1, 1)
        return cls((torch.zeros_like(one),) * len(settings.maps), (one,) * len(settings.maps))

    def tensors(self) -> dict[str, Tensor]:
        """Return the constants by name, as they are saved."""
        named = {f"mean.{i}": tensor for i, tensor in enumerate(self.means)}
        named |= {f"scale.{i}": tensor for i, tensor in enumerate(self.scales)}
        named |= {f"latent.{name}": tensor for name, tensor in self.latent.items()}
        # A file of tensors holds each of them once.
        return {name: tensor.clone().contiguous() for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ScoringConstants:
        """Make the constants from saved ones.

        Raises:
            KeyError: some are missing.
        """
        n = sum(name.startswith("mean.") for name in tensors)
        latent = {name.removeprefix("latent."): t for name, t in tensors.items() if name.startswith("latent.")}
        return cls(
            tuple(tensors[f"mean.{i}"] for i in range(n)), tuple(tensors[f"scale.{i}"] for i in range(n)), latent
        )


class Reconstructed(NamedTuple):
    """What the network makes of a batch."""

    pixels: Tensor
    """float32 [N, C, H, W], -1 to 1: what it saw."""
    reconstruction: Tensor
    """float32 [N, C, H, W], -1 to 1."""
    latents: Tensor | None
    """float32 [T * N, L], the latents' mean of each tile; None where no scoring asks for them."""
    log_variance: Tensor | None
    """float32 [T * N, L]; None where no scoring asks for it."""


class Reconstruction(nn.Module):
    """From the uint8 image to its reconstruction; the VAE's batch norms are folded into its convolutions.

    Args:
        vae: trained; it is copied and left as it is. Its size is that of a tile.
        input_settings: how an image becomes its input.
        latent: the latent term, which decides what else is computed.
    """

    def __init__(self, vae: Vae, input_settings: InputSettings, latent: Latent = Latent.NONE) -> None:
        super().__init__()
        self.range = RangeOfInput(input_settings.input_range)
        self.ignored = input_settings.ignored
        self.photometric = PhotometricNormalization(
            input_settings.photometric, *input_settings.image_size, input_settings.ignored
        )
        self.tiles = Tiles(input_settings.tiling)
        encoder, decoder = vae.reconstruction_halves()
        self.encode, self.decode = fold_batch_norms(encoder), fold_batch_norms(decoder)
        self.log_variance_head = deepcopy(vae.log_variance_head) if latent is Latent.KL else None
        self.keeps_latents = latent is not Latent.NONE
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Reconstructed:
        """Reconstruct uint8 [N, H, W, 3] RGB."""
        # Cast before the transpose: TensorRT refuses to transpose uint8.
        return self.of_pixels(self.range((image.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)))

    def of_pixels(self, pixels: Tensor) -> Reconstructed:
        """Reconstruct float32 [N, C, H, W] in the network's own range."""
        pixels = self.photometric(pixels)
        cut = self.tiles.cut(pixels)
        log_variance: Tensor | None = None
        if self.log_variance_head is not None:
            features = self.encode[:-1](cut)
            latents = self.encode[-1](features)
            log_variance = self.log_variance_head(features).clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT).flatten(1)
        else:
            latents = self.encode(cut)
        reconstruction = self.tiles.stitch(self.decode(latents))
        return Reconstructed(pixels, reconstruction, latents.flatten(1) if self.keeps_latents else None, log_variance)


class MapMaker(nn.Module):
    """One map before its normalization by held-out normals: residual, smoothing, level.

    The residuals of several maps are computed once: see `residuals`. What is ignored has none.
    """

    def __init__(
        self,
        settings: MapSettings,
        height: int,
        width: int,
        step: int = 1,
        ignored: IgnoredRegion | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.step = step
        self.size = (height // step, width // step)
        self.smooth = Smoothing(settings.smoothing_sigma * min(height, width), height, width, step)
        self.kept_pixels = kept_or_none(ignored, height, width)
        self.kept = kept_or_none(ignored, *self.size)
        self.level = LevelNormalization(settings.level, *self.size, self.kept)

    def forward(self, residual: Tensor) -> Tensor:
        """Turn a residual, float32 [N, 1, H, W], into a map, [N, 1, H / step, W / step]."""
        if self.kept_pixels is not None:
            residual = self.kept_pixels.only(residual)
        smoothed = self.level(self.smooth(residual))
        assert isinstance(smoothed, Tensor)
        return smoothed


class Scorer(nn.Module):
    """From pixels and reconstruction to the map and the score.

    Args:
        settings: the composition.
        constants: from `fit_scoring_constants`, or neutral ones.
        input_settings: the image's size and tiles.
    """

    latent_center: Tensor
    latent_unit: Tensor
    latent_mean: Tensor
    latent_whitening: Tensor

    def __init__(self, settings: ScoringSettings, constants: ScoringConstants, input_settings: InputSettings) -> None:
        super().__init__()
        if len(constants.means) != len(settings.maps) or len(constants.scales) != len(settings.maps):
            raise KeyError(f"constants of {len(constants.means)} maps for a scoring of {len(settings.maps)}")
        height, width = input_settings.image_size
        self.settings = settings
        self.residuals = nn.ModuleDict(
            {
                kind: ResidualMap(Residual(kind), height, width)
                for kind in sorted({m.residual.value for m in settings.maps})
            }
        )
        # The maximum of several maps needs all of them at the same pixels.
        map_sigma = 0.0 if settings.fusion is Fusion.MAX else settings.map_sigma
        ignored = input_settings.ignored
        self.kept = kept_or_none(ignored, height, width)
        makers = [
            MapMaker(each, height, width, map_step(each, map_sigma, height, width), ignored) for each in settings.maps
        ]
        self.makers = nn.ModuleList(makers)
        for i, (maker, mean, scale) in enumerate(zip(makers, constants.means, constants.scales, strict=True)):
            if not {mean.shape, scale.shape} <= {(1, 1, *maker.size), (1, 1, 1, 1)}:
                raise KeyError(f"constants of {tuple(mean.shape)} for a map of {maker.size}")
            self.register_buffer(f"mean_{i}", mean)
            self.register_buffer(f"scale_{i}", scale)
        sigma = settings.map_sigma * min(height, width)
        self.smooth_map = Smoothing(sigma, height, width)
        self.enlarge = Enlarging(sigma, height, width, COARSE_STEP) if map_sigma else None
        self.is_normalized = [settings.is_fused or each.per_pixel for each in settings.maps]
        self.tiles = Tiles(input_settings.tiling)
        for name, tensor in constants.latent.items():
            self.register_buffer(f"latent_{name}", tensor)
        self.eval().requires_grad_(False)

    def forward(self, seen: Reconstructed) -> tuple[Tensor, Tensor]:
        """Return the anomaly map, float32 [N, H, W], and the score, float32 [N]."""
        residuals = {kind: compare(seen.pixels, seen.reconstruction) for kind, compare in self.residuals.items()}
        maps: list[Tensor] = []
        coarse: list[Tensor] = []
        scores = []
        for i, maker in enumerate(self.makers):
            assert isinstance(maker, MapMaker)
            made = maker(residuals[maker.settings.residual.value])
            if self.is_normalized[i]:
                made = (made - getattr(self, f"mean_{i}")) / getattr(self, f"scale_{i}")
            scores.append(pool(made.flatten(1, 2), maker.settings, maker.kept))
            (maps if maker.step == 1 else coarse).append(made if maker.kept is None else maker.kept.only(made))
        if self.settings.latent is not Latent.NONE:
            term = (self.latent_term(seen) - self.latent_center) / self.latent_unit
            maps.append(self.tiles.spread(term))
            scores.append(term.reshape(self.tiles.tiling.n_tiles, -1).amax(dim=0))
        fused = self._fused_map(maps, coarse)
        if self.kept is not None:
            fused = self.kept.only(fused)
        return fused.flatten(1, 2), self._fuse(scores)

    def _fused_map(self, maps: list[Tensor], coarse: list[Tensor]) -> Tensor:
        """Fuse maps given at all pixels, and those given at blocks, and smooth them: float32 [N, 1, H, W]."""
        if not coarse:
            smoothed: Tensor = self.smooth_map(self._fuse(maps))
            return smoothed
        assert self.enlarge is not None
        total: Tensor = self.enlarge(reduce(add, coarse))
        if maps:
            total = total + self.smooth_map(reduce(add, maps))
        n = len(maps) + len(coarse)
        return total / n if n > 1 else total

    def latent_term(self, seen: Reconstructed) -> Tensor:
        """Return each tile's distance or divergence, float32 [T * N], before it is brought to the maps' scale."""
        assert seen.latents is not None
        if self.settings.latent is Latent.KL:
            assert seen.log_variance is not None
            return divergence(seen.latents, seen.log_variance)
        off = (seen.latents - self.latent_mean) @ self.latent_whitening
        return (off * off).sum(dim=1).sqrt()

    def _fuse(self, parts: list[Tensor]) -> Tensor:
        fused = parts[0]
        for part in parts[1:]:
            fused = torch.maximum(fused, part) if self.settings.fusion is Fusion.MAX else fused + part
        if len(parts) == 1 or self.settings.fusion is Fusion.MAX:
            return fused
        return fused / len(parts)


COARSE_STEP = 2
"""Pixels from one value of a coarse map to the next: see `map_step`."""

_WIDE_PIXELS = 1.9
"""Standard deviation in pixels from which a Gaussian leaves nothing that values at every second pixel do not show."""


def map_step(settings: MapSettings, map_sigma: float, height: int, width: int) -> int:
    """Return at every how many pixels a map is computed: 2 where it is smoothed widely enough, else 1.

    Args:
        settings: of the map.
        map_sigma: how the fused map is smoothed, which brings it back to all pixels; 0: every pixel is needed.
        height: of the image.
        width: of the image.
    """
    shorter = min(height, width)
    is_wide = min(settings.smoothing_sigma, map_sigma) * shorter >= _WIDE_PIXELS
    return COARSE_STEP if is_wide and height % COARSE_STEP == width % COARSE_STEP == 0 else 1


class DeployedGraph(nn.Module, ABC):
    """What every kind of network comes to: a module from `image` to `anomaly_map` and `score`, which is exported."""

    image_size: tuple[int, int]
    """Height and width of the image in pixels."""
    input_settings: InputSettings
    """How the image becomes what the network sees."""
    is_run_on_each_core: ClassVar[bool] = False
    """Whether a core runs a few images by itself, or all of them share the work on many; see `run_graph`."""

    @property
    def images_at_a_time(self) -> int:
        """Images that `run_graph` runs together."""
        return images_at_a_time(self.input_settings)

    @abstractmethod
    def describe(self) -> str:
        """Return what the graph does, in words."""


class AnomalyGraph(DeployedGraph):
    """`image` uint8 [N, H, W, 3] RGB to `anomaly_map` float32 [N, H, W] and `score` float32 [N].

    Args:
        vae: trained; it is copied and left as it is.
        settings: the scoring.
        constants: from `fit_scoring_constants`.
        input_settings: how an image becomes the input; None: the network sees full images as they are.
    """

    def __init__(
        self,
        vae: Vae,
        settings: ScoringSettings,
        constants: ScoringConstants,
        input_settings: InputSettings | None = None,
    ) -> None:
        super().__init__()
        input_settings = input_settings or InputSettings.of(vae)
        self.image_size = input_settings.image_size
        self.settings = settings
        self.input_settings = input_settings
        self.reconstruct = Reconstruction(vae, input_settings, settings.latent)
        self.score = Scorer(settings, constants, input_settings)
        self.eval().requires_grad_(False)

    def describe(self) -> str:
        """Return what the graph does, in words."""
        input_settings = self.input_settings
        return (
            f"{input_settings.tiling.describe()}; {input_settings.photometric.describe()}; {self.settings.describe()}"
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run all steps, from the image to the map and the score."""
        anomaly_map, score = self.score(self.reconstruct(image))
        return anomaly_map, score


def pool(values: Tensor, settings: MapSettings, kept: KeptPlaces | None = None) -> Tensor:
    """Return the score of each map, float32 [N], for float32 [N, H, W]; `kept` says which positions count."""
    if kept is not None:
        return _pool_kept(values.unsqueeze(1), settings, kept)
    if settings.pooling is Pooling.MEAN:
        return values.mean(dim=2).mean(dim=1)
    if settings.pooling is Pooling.MAX:
        return values.amax(dim=(1, 2))
    return pool_largest(values, n_pooled(settings.top_fraction, values.shape[1], values.shape[2]))


def _pool_kept(values: Tensor, settings: MapSettings, kept: KeptPlaces) -> Tensor:
    """Pool float32 [N, 1, H, W]; the share of the largest is of the kept positions."""
    if settings.pooling is Pooling.MEAN:
        return kept.mean(values).flatten()
    if settings.pooling is Pooling.MAX:
        return kept.to_pool(values).amax(dim=(1, 2, 3))
    return pool_largest(kept.to_pool(values), n_pooled(settings.top_fraction, 1, kept.n))


def pool_largest(values: Tensor, n: int) -> Tensor:
    """Return the mean of the n largest values of each map, float32 [N], for float32 [N, ...]."""
    # TensorRT takes sorted values only.
    return torch.topk(values.flatten(1), n, dim=1, sorted=True).values.mean(dim=1)


def n_pooled(fraction: float, height: int, width: int) -> int:
    """Return how many pixels a share of a map is: at least 1, at most what TensorRT can pool."""
    return min(max(round(fraction * height * width), 1), MAX_POOLED_PIXELS)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence from the standard normal, float32 [n], of latents' mean and log-variance [n, L].

    Kingma and Welling 2013, appendix B: -1/2 sum(1 + log variance - mean^2 - variance).
    """
    return -0.5 * (1 + log_variance - mean * mean - log_variance.exp()).sum(dim=1)


def run_graph(
    graph: DeployedGraph,
    images: NDArray[np.uint8],
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run the graph over uint8 [n, H, W, 3]; return the maps, float32 [n, H, W], and the scores, float32 [n].

    Args:
        graph: of the images' size.
        images: to run over.
        batch_size: images at a time; None: as many as suit the graph, 1 to 16.
        progress: called with images done and in all.
    """
    height, width = graph.image_size
    maps = np.empty((len(images), height, width), dtype=np.float32)
    scores = np.empty(len(images), dtype=np.float32)
    step = batch_size or graph.images_at_a_time
    batches = [slice(start, min(start + step, len(images))) for start in range(0, len(images), step)]

    @torch.inference_mode()
    def run(batch: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        anomaly_map, score = graph(torch.from_numpy(images[batch]))
        return anomaly_map.numpy(), score.numpy()

    results = on_each_core(run, batches) if graph.is_run_on_each_core else map(run, batches)
    for batch, found in zip(batches, results, strict=True):
        maps[batch], scores[batch] = found
        if progress is not None:
            progress(batch.stop, len(images))
    return maps, scores


def images_at_a_time(input_settings: InputSettings) -> int:
    """Return how many images make a batch whose activations fit a small machine's memory: 1 to 16."""
    tiling = input_settings.tiling
    pixels = tiling.n_tiles * tiling.tile_height * tiling.tile_width
    return max(1, min(16, 16 * 256 * 256 // pixels))


def fold_batch_norms(layers: nn.Sequential) -> nn.Sequential:
    """Return a copy of a chain of layers in evaluation mode, each batch norm folded into the convolution before it.

    w' = w * gamma / sqrt(var + eps) per output channel, b' in the same way (Ioffe and Szegedy 2015, section 3.1).
    """
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            before = folded[-1]
            if not isinstance(before, (nn.Conv2d, nn.ConvTranspose2d)):
                raise AssertionError(f"a batch norm follows a {type(before).__name__}, not a convolution")
            folded[-1] = _fold(before, layer)
        else:
            folded.append(layer)
    with torch.no_grad():
        return nn.Sequential(*[deepcopy(layer) for layer in folded]).eval()


def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> nn.Conv2d | nn.ConvTranspose2d:
    if norm.running_mean is None or norm.running_var is None:
        raise AssertionError("a batch norm without running statistics cannot be folded")
    result = deepcopy(convolution)
    result.weight, result.bias = fusion.fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )
    return result
