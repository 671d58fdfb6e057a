"""What happens to pixels before the network sees them in training."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.train.anomaly_graph import Frame
from vae_edge.train.batches import as_pixels
from vae_edge.train.photometric import Photometric
from vae_edge.train.photometric_normalization import PhotometricNormalization
from vae_edge.train.recipe import Augmentation

_LIGHT = 0.1
"""Standard deviation of the change of brightness (of -1 to 1) and of the logarithm of contrast."""

_AT_A_TIME = 16


def augmented(pixels: Tensor, kinds: Collection[Augmentation]) -> Tensor:
    """Change a batch at random, by torch's own random numbers.

    Args:
        pixels: float32 [N, C, H, W], -1 to 1.
        kinds: what to change.

    Returns:
        float32 [N, C, H, W], -1 to 1.
    """
    if Augmentation.FLIPS in kinds:
        for dim in (2, 3):
            flip = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
            pixels = torch.where(flip, pixels.flip(dim), pixels)
    if Augmentation.LIGHT in kinds:
        gain, offset = torch.randn(2, len(pixels), 1, 1, 1, device=pixels.device) * _LIGHT
        pixels = (pixels * gain.exp() + offset).clamp(-1.0, 1.0)
    return pixels


def even_light(images: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """Even out the light of whole images once, before windows are cut from them.

    The result is rounded to 8 bits, so that it takes no more memory than the images; in the graph it is not rounded.

    Args:
        images: uint8 [n, H, W, 3].
        frame: what will stand around the network.
    """
    if frame.photometric is Photometric.NONE:
        return images
    normalize = PhotometricNormalization(frame.photometric, *frame.image_size)
    result = np.empty_like(images)
    for start in range(0, len(images), _AT_A_TIME):
        pixels = normalize(as_pixels(torch.from_numpy(images[start : start + _AT_A_TIME])))
        values = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        result[start : start + _AT_A_TIME] = values.permute(0, 2, 3, 1).numpy()
    return result
