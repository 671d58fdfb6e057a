"""A variational autoencoder on small patches of pixels, for what a backbone's features are too coarse to see.

At every eighth pixel in both directions it sees a square of 16 x 16 pixels, of which it keeps eight latents, and
reconstructs the 8 x 8 in its middle: what is regular there can be told by so few numbers, a hair crack or a broken
thread cannot. Squares overlap, so that what happens at the seams is seen from both sides. Autoencoders on patches find
defects of textures: Bergmann et al., "Improving unsupervised defect segmentation by applying structural similarity to
autoencoders", VISAPP 2019. As `vae_edge.train.features.network` it is trained on single positions, in seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from vae_edge.train.features.network import FeatureVae, PositionResidual
from vae_edge.train.features.settings import PositionVae

PATCH = 8
"""Pixels from one patch to the next, and the side of what is reconstructed of each."""

MARGIN = 4
"""Pixels around it that the network sees."""

PATCH_STEP = 4
"""Pixels from one value of the residual to the next."""

PATCH_SIDE = PATCH + 2 * MARGIN
"""Pixels that the network sees in each direction."""


def patch_vae(settings: PositionVae, n_colours: int = 3, random: torch.Generator | None = None) -> FeatureVae:
    """Return a network that is to be trained; arguments as for `FeatureVae`."""
    return FeatureVae(n_colours * PATCH_SIDE**2, settings, n_colours * PATCH**2, random=random)


def patch_convolutions(vae: FeatureVae) -> nn.Sequential:
    """Return the network as convolutions, the first of which cuts the patches out of float32 [N, 3, H, W]."""
    first, *others = vae.convolutions()
    assert isinstance(first, nn.Conv2d)
    n_colours = first.in_channels // PATCH_SIDE**2
    cutting = skip_init(nn.Conv2d, n_colours, first.out_channels, PATCH_SIDE, stride=PATCH, padding=MARGIN)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    weight = first.weight.reshape(first.out_channels, n_colours, PATCH_SIDE, PATCH_SIDE)
    cutting.load_state_dict({"weight": weight, "bias": first.bias})
    return nn.Sequential(cutting, *others).eval().requires_grad_(False)


class PatchResidual(PositionResidual):
    """From pixels to the squared residual, float32 [N, 1, H / 4, W / 4], 0 or more.

    Args:
        vae: from `patch_convolutions`.
        channel_mean: float32 [1, 3, 1, 1], of the pixels over the training pictures.
        channel_deviation: of the same shape, above 0.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        """Compare float32 [N, 3, H, W], H and W multiples of 8, with its reconstruction, in units of the deviation."""
        x = self.in_units(pixels)
        difference = x - functional.pixel_shuffle(self.vae(x), PATCH)
        residual: Tensor = functional.avg_pool2d(difference * difference, PATCH_STEP).mean(dim=1, keepdim=True)
        return residual
