"""All of the model in one torch module: from the uint8 image to the anomaly map and the score.

Every backend runs this graph, so that preparation and scoring cannot drift apart between them. It is deterministic, has
no data-dependent control flow and a dynamic batch only, and uses nothing that ONNX Runtime, OpenVINO or TensorRT lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fusion

from vae_edge.errors import InputError
from vae_edge.progress import Progress
from vae_edge.train.network import Vae
from vae_edge.train.scoring import MAX_POOLED_PIXELS, ScoringMethod, ScoringSettings

_SCALE_FLOOR = 0.3
"""Share of the median scale that is added to every pixel's: see `fit_scoring_constants`."""


class ScoringConstants(nn.Module):
    """What held-out normals say about each pixel: mean and scale of the smoothed residual, float32 [1, H, W] each."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @classmethod
    def neutral(cls, height: int, width: int) -> ScoringConstants:
        """Return constants that change nothing: mean 0, scale 1."""
        return cls(torch.zeros(1, height, width), torch.ones(1, height, width))

    def tensors(self) -> dict[str, Tensor]:
        """Return the constants by name, as they are saved."""
        return {"mean": self.mean.contiguous(), "scale": self.scale.contiguous()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ScoringConstants:
        """Make the constants from saved ones."""
        return cls(tensors["mean"], tensors["scale"])


class AnomalyGraph(nn.Module):
    """`image` uint8 [N, H, W, 3] RGB to `anomaly_map` float32 [N, H, W] and `score` float32 [N].

    The VAE's batch norms are folded into its convolutions, so that every runtime gets the same, plain network.

    Args:
        vae: trained; it is copied and left as it is.
        settings: the scoring.
        constants: from `fit_scoring_constants`; used by the `normalized` method only.
    """

    kernel: Tensor

    def __init__(self, vae: Vae, settings: ScoringSettings, constants: ScoringConstants) -> None:
        super().__init__()
        self.image_size: tuple[int, int] = vae.image_size
        self.settings = settings
        self.reconstruct = fold_batch_norms(vae.reconstruction_layers())
        self.constants = constants
        height, width = self.image_size
        self.register_buffer("kernel", gaussian_kernel(settings.smoothing_sigma * min(height, width)))
        self.n_pooled = min(max(round(settings.top_fraction * height * width), 1), MAX_POOLED_PIXELS)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run the whole road."""
        if self.settings.method is ScoringMethod.MSE:
            difference = self.difference(image)
            squared = (difference * difference).mean(dim=1)
            return squared, squared.mean(dim=(1, 2))
        anomaly_map = (self.smoothed_residual(image) - self.constants.mean) / self.constants.scale
        largest = torch.topk(anomaly_map.flatten(1), self.n_pooled, dim=1, sorted=False).values
        return anomaly_map, largest.mean(dim=1)

    def smoothed_residual(self, image: Tensor) -> Tensor:
        """Return the residual before normalization, float32 [N, H, W], for uint8 [N, H, W, 3]."""
        return self.smooth(self.difference(image).abs().mean(dim=1, keepdim=True)).flatten(1, 2)

    def difference(self, image: Tensor) -> Tensor:
        """Return the image, scaled to [-1, 1], less its reconstruction: float32 [N, 3, H, W]."""
        # Cast before the transpose: TensorRT refuses to transpose uint8.
        pixels = (image.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)
        reconstruction: Tensor = self.reconstruct(pixels)
        return pixels - reconstruction

    def smooth(self, values: Tensor) -> Tensor:
        """Blur [N, 1, H, W] by the Gaussian, in two passes, with the border repeated outwards."""
        reach = self.kernel.numel() // 2
        if reach == 0:
            return values
        values = functional.pad(values, (reach, reach, reach, reach), mode="replicate")
        values = functional.conv2d(values, self.kernel.view(1, 1, -1, 1))
        return functional.conv2d(values, self.kernel.view(1, 1, 1, -1))


def gaussian_kernel(sigma: float) -> Tensor:
    """Return a normalized Gaussian, float32 [2 r + 1], cut at r = 3 sigma pixels; [1] for sigma 0."""
    reach = int(np.ceil(3 * sigma)) if sigma > 0 else 0
    distance = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (distance / max(sigma, 1e-9)) ** 2)
    return (weights / weights.sum()).to(torch.float32)


def fit_scoring_constants(
    vae: Vae,
    settings: ScoringSettings,
    images: NDArray[np.uint8],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ScoringConstants:
    """Measure each pixel's residual over held-out normals.

    The mean and the spread over a few dozen images are noisy, so both are blurred as widely as the residual was, and
    0.3 of the median scale is added to the scale: a pixel that never moved in a few images must not shout at the first
    speck of dust. Both numbers are those that did well on three image sets at once.

    Args:
        vae: trained, in any mode.
        settings: the scoring.
        images: uint8 [n, H, W, 3], normal images that the network was not fitted on and that set no threshold.
        batch_size: images at a time.
        progress: called with images done and in all.

    Raises:
        InputError: fewer than 2 images.
    """
    height, width = vae.image_size
    neutral = ScoringConstants.neutral(height, width)
    if settings.method is ScoringMethod.MSE:
        return neutral
    if len(images) < 2:
        raise InputError(f"the residual is to be normalized by {len(images)} held-out normals; expected at least 2")
    graph = AnomalyGraph(vae, settings, neutral)
    total = torch.zeros(height, width, dtype=torch.float64)
    total_squares = torch.zeros(height, width, dtype=torch.float64)
    for start in range(0, len(images), batch_size):
        with torch.inference_mode():
            residual = graph.smoothed_residual(torch.from_numpy(images[start : start + batch_size])).double()
        total += residual.sum(dim=0)
        total_squares += residual.square().sum(dim=0)
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    kernel = gaussian_kernel(max(settings.smoothing_sigma * min(height, width), 0.5)).double()
    mean = _blur(total / len(images), kernel)
    # The mean square of (residual - mean), so that what the blur took from the mean is in the scale.
    spread = (total_squares - 2 * mean * total) / len(images) + mean.square()
    scale = _blur(spread.clamp_min(0), kernel).sqrt()
    scale = (scale + _SCALE_FLOOR * scale.median()).clamp_min(1e-6)
    return ScoringConstants(mean.float()[None], scale.float()[None])


def run_graph(
    graph: AnomalyGraph,
    images: NDArray[np.uint8],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run the graph over uint8 [n, H, W, 3]; return the maps, float32 [n, H, W], and the scores, float32 [n]."""
    height, width = graph.image_size
    maps = np.empty((len(images), height, width), dtype=np.float32)
    scores = np.empty(len(images), dtype=np.float32)
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        with torch.inference_mode():
            anomaly_map, score = graph(torch.from_numpy(images[start:stop]))
        maps[start:stop], scores[start:stop] = anomaly_map.numpy(), score.numpy()
        if progress is not None:
            progress(stop, len(images))
    return maps, scores


def fold_batch_norms(layers: nn.Sequential) -> nn.Sequential:
    """Return a copy of a chain of layers in evaluation mode, each batch norm folded into the convolution before it.

    w' = w * gamma / sqrt(var + eps) per output channel, b' likewise (Ioffe and Szegedy 2015, section 3.1).
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


def _blur(values: Tensor, kernel: Tensor) -> Tensor:
    reach = min(kernel.numel() // 2, values.shape[0] - 1, values.shape[1] - 1)
    middle = kernel.numel() // 2
    kernel = kernel[middle - reach : middle + reach + 1]
    kernel = kernel / kernel.sum()
    padded = functional.pad(values[None, None], (reach, reach, reach, reach), mode="replicate")
    blurred = functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return blurred[0, 0]
