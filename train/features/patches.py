"""A variational autoencoder on small patches of pixels, for what a backbone's features are too coarse to see.

At every eighth pixel in both directions it sees a square of 16 x 16 pixels, of which it keeps eight latents, and
reconstructs the 8 x 8 in its middle: what is regular there can be told by so few numbers, a hair crack or a broken
thread cannot. Squares overlap, so that what happens at the seams is seen from both sides. Autoencoders on patches find
defects of textures: Bergmann et al., "Improving unsupervised defect segmentation by applying structural similarity to
autoencoders", VISAPP 2019. As `vae_edge.train.features.network` it is trained on single positions, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vae_edge.train.features.network import FeatureVae
from vae_edge.train.features.settings import PositionVae
from vae_edge.train.model.input_layers import PhotometricNormalization

PATCH = 8
"""Pixels from one patch to the next, and the side of what is reconstructed of each."""

MARGIN = 4
"""Pixels around it that the network sees."""

PATCH_STEP = 4
"""Pixels from one value of the residual to the next."""

_SIDE = PATCH + 2 * MARGIN

_BATCH = 8

_PICTURES_A_STEP = 8
"""Pictures that a step draws patches from: light is evened out over a whole one."""

_SMALLEST_DEVIATION = 1e-3
"""On a scale from -1 to 1: pictures of one colour have no deviation to divide by."""


def patch_vae(settings: PositionVae, n_colours: int = 3) -> FeatureVae:
    """Return a network that is to be trained."""
    return FeatureVae(n_colours * _SIDE**2, settings, n_colours * PATCH**2)


def patch_convolutions(vae: FeatureVae) -> nn.Sequential:
    """Return the network as convolutions, the first of which cuts the patches out of float32 [N, 3, H, W]."""
    first, *others = vae.convolutions()
    assert isinstance(first, nn.Conv2d)
    n_colours = first.in_channels // _SIDE**2
    cutting = nn.Conv2d(n_colours, first.out_channels, _SIDE, stride=PATCH, padding=MARGIN)
    weight = first.weight.reshape(first.out_channels, n_colours, _SIDE, _SIDE)
    cutting.load_state_dict({"weight": weight, "bias": first.bias})
    return nn.Sequential(cutting, *others).eval().requires_grad_(False)


class PatchResidual(nn.Module):
    """From pixels to the squared residual, float32 [N, 1, H / 4, W / 4], 0 or more.

    Args:
        vae: from `patch_convolutions`.
        channel_mean: float32 [1, 3, 1, 1], of the pixels over the training pictures.
        channel_deviation: of the same shape, above 0.
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
        """See the arguments."""
        deviation: Tensor = 1 / self.channel_unit
        return deviation

    def forward(self, pixels: Tensor) -> Tensor:
        """Compare float32 [N, 3, H, W], H and W multiples of 8, with its reconstruction, in units of the deviation."""
        x = (pixels - self.channel_mean) * self.channel_unit
        difference = x - functional.pixel_shuffle(self.vae(x), PATCH)
        residual: Tensor = functional.avg_pool2d(difference * difference, PATCH_STEP).mean(dim=1, keepdim=True)
        return residual


class PatchTable:
    """Pixels of pictures as the network on patches sees them; the counterpart of `FeatureTable`.

    Args:
        images: uint8 [n, H, W, 3], H and W multiples of 8.
        light: how light is evened out.
    """

    def __init__(self, images: NDArray[np.uint8], light: PhotometricNormalization) -> None:
        self.images = images
        self.light = light
        self._sums = np.empty((2, len(images), images.shape[3]))
        for start in range(0, len(images), _BATCH):
            pixels = self._lit(range(start, min(start + _BATCH, len(images)))).double()
            place = slice(start, start + len(pixels))
            self._sums[0, place] = pixels.sum(dim=(2, 3)).numpy()
            self._sums[1, place] = pixels.square().sum(dim=(2, 3)).numpy()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def n_colours(self) -> int:
        """Channels of a picture."""
        return int(self.images.shape[3])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the residual."""
        return self.images.shape[1] // PATCH_STEP, self.images.shape[2] // PATCH_STEP

    def channel_statistics(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the mean of each colour and one deviation for all, float32 [1, 3, 1, 1]; the latter above 0."""
        total, squares = self._sums[:, list(rows)].sum(axis=1)
        n = len(rows) * self.images.shape[1] * self.images.shape[2]
        mean = total / n
        deviation = np.sqrt(np.maximum(squares / n - mean * mean, 0).mean())
        unit = np.full_like(mean, max(float(deviation), _SMALLEST_DEVIATION))
        first, second = (torch.from_numpy(each.astype(np.float32))[None, :, None, None] for each in (mean, unit))
        return first, second

    def draw(
        self, rows: Sequence[int], n: int, random: torch.Generator, mean: Tensor, deviation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return so many patches drawn from some pictures and what is to be reconstructed of them, in units.

        The patches are float32 [n, 3 * 16 * 16], and what is to be reconstructed is [n, 3 * 8 * 8].
        """
        n_pictures = min(len(rows), _PICTURES_A_STEP)
        chosen = np.asarray(rows)[torch.randperm(len(rows), generator=random)[:n_pictures].numpy()]
        x = functional.pad((self._lit(chosen.tolist()) - mean) / deviation, (MARGIN,) * 4)
        patches = x.unfold(2, _SIDE, 1).unfold(3, _SIDE, 1)
        which = torch.randint(n_pictures, (n,), generator=random)
        down = torch.randint(patches.shape[2], (n,), generator=random)
        across = torch.randint(patches.shape[3], (n,), generator=random)
        drawn = patches[which, :, down, across]
        middle = slice(MARGIN, MARGIN + PATCH)
        return drawn.flatten(1), drawn[:, :, middle, middle].flatten(1)

    def batches(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """Give float32 [N, 3, H, W] of some pictures, in their order, a few at a time."""
        for start in range(0, len(rows), _BATCH):
            yield self._lit(rows[start : start + _BATCH])

    def _lit(self, rows: Sequence[int]) -> Tensor:
        pixels = torch.from_numpy(self.images[list(rows)]).to(torch.float32) / 127.5 - 1.0
        with torch.no_grad():
            made: Tensor = self.light(pixels.permute(0, 3, 1, 2))
        return made
