"""The variational autoencoder (Kingma and Welling, "Auto-Encoding Variational Bayes", 2013) and its loss.

Encoder and decoder are those of DCGAN (Radford et al. 2015) and GANomaly (Akcay et al. 2018): convolutions with a 4 x 4
kernel, stride 2 and padding 1 instead of pooling, batch norm after all but the encoder's first and the decoder's last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_edge.errors import UsageError
from vae_edge.train.model.presets import (
    Architecture,
    channel_widths,
    check_image_size,
    check_max_features,
    count_stages,
)

LOG_VARIANCE_LIMIT = 20.0
"""exp(20) is far from float32's end; without a limit one bad batch makes the loss infinite."""


class VaeOutput(NamedTuple):
    """What the network says about a batch."""

    reconstruction: Tensor
    """float32 [N, C, H, W], values -1 to 1."""
    mean: Tensor
    """float32 [N, latent_vec_size], mean of the latents' normal distribution."""
    log_variance: Tensor
    """float32 [N, latent_vec_size], natural logarithm of its variance, -20 to 20."""


class VaeLoss(NamedTuple):
    """The loss of a batch and its parts, float32 scalars."""

    total: Tensor
    reconstruction: Tensor
    """Mean squared error over all elements, images in -1 to 1."""
    kl: Tensor
    """Kullback-Leibler divergence from the standard normal: sum over the latents, mean over the batch."""


class Vae(nn.Module):
    """The network. Defaults are the reference's: 102 M parameters at 256 x 256.

    The image is halved floor(log2(shorter side / 4)) times, to 4 to 7 pixels at the shorter side; a convolution over
    all that remains makes the latents' mean, another one their log-variance. The decoder is the mirror image.

    Args:
        n_features: channels after the first convolution; they double with each further one.
        latent_vec_size: number of latents.
        kl_weight: weight of the Kullback-Leibler term in the loss.
        image_size: height and width; see `check_image_size` for the sizes that fit.
        max_features: channels at which the doubling stops; None: it does not.
        extra_layers: convolutions with a 3 x 3 kernel, a batch norm each, after the encoder's first convolution and
            before the decoder's last, as in GANomaly.
        n_channels: channels of the image.

    Raises:
        InputError: an image size that does not fit (the message names the nearest that do), or a number out of range.
    """

    def __init__(
        self,
        n_features: int = 64,
        latent_vec_size: int = 128,
        kl_weight: float = 0.00025,
        *,
        image_size: tuple[int, int] = (256, 256),
        max_features: int | None = None,
        extra_layers: int = 0,
        n_channels: int = 3,
    ) -> None:
        super().__init__()
        for name, value in (("n_features", n_features), ("latent_vec_size", latent_vec_size)):
            if value < 1:
                raise UsageError(f"{name} is {value}; expected 1 or more")
        if extra_layers < 0:
            raise UsageError(f"extra_layers is {extra_layers}; expected 0 or more")
        if not kl_weight >= 0:
            raise UsageError(f"kl_weight is {kl_weight}; expected 0 or more, such as 0.00025")
        check_max_features(n_features, max_features)
        height, width = image_size
        check_image_size(height, width)
        self.image_size = (height, width)
        self.latent_vec_size = latent_vec_size
        self.kl_weight = kl_weight
        self.n_channels = n_channels

        n_stages = count_stages(height, width)
        widths = channel_widths(n_features, max_features, n_stages)
        remaining = (height >> n_stages, width >> n_stages)
        self.features = _encoder(n_channels, widths, extra_layers)
        self.mean_head = nn.Conv2d(widths[-1], latent_vec_size, remaining)
        self.log_variance_head = nn.Conv2d(widths[-1], latent_vec_size, remaining)
        self.decoder = _decoder(latent_vec_size, remaining, widths, n_channels, extra_layers)

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> Vae:
        """Make the network that a run's record describes."""
        return cls(
            architecture.n_features,
            architecture.latent_vec_size,
            architecture.kl_weight,
            image_size=(architecture.height, architecture.width),
            max_features=architecture.max_features,
            extra_layers=architecture.extra_layers,
            n_channels=architecture.n_channels,
        )

    @classmethod
    def from_weights(cls, architecture: Architecture, weights: Mapping[str, Tensor]) -> Vae:
        """Make the network around trained weights, without drawing random ones first; in evaluation mode.

        Raises:
            RuntimeError: the weights do not belong to the architecture.
        """
        with torch.device("meta"):
            vae = cls.from_architecture(architecture)
        vae.load_state_dict(weights, assign=True)
        return vae.eval().requires_grad_(False)

    def forward(self, x: Tensor, noise_like: Callable[[Tensor], Tensor] = torch.randn_like) -> VaeOutput:
        """Encode and decode a batch.

        Args:
            x: float32 [N, C, H, W], values -1 to 1.
            noise_like: draws the latents' noise, of the shape of what it is called with; not called in evaluation.

        Returns:
            In training the latents are drawn, z = mean + exp(log_variance / 2) * noise (the reparameterisation of
            Kingma and Welling 2013, section 2.4); in evaluation z = mean.
        """
        features = self.features(x)
        mean: Tensor = self.mean_head(features).flatten(1)
        log_variance: Tensor = self.log_variance_head(features).flatten(1)
        log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        z = mean
        if self.training:
            z = mean + torch.exp(0.5 * log_variance) * noise_like(mean)
        return VaeOutput(self.decoder(z[:, :, None, None]), mean, log_variance)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the reconstruction at z = mean; nothing is drawn and the log-variance is not computed.

        Args:
            x: float32 [N, C, H, W], values -1 to 1.

        Returns:
            float32 [N, C, H, W], values -1 to 1. Batch norms follow the module's mode: call `eval` first.
        """
        reconstruction: Tensor = self.decoder(self.mean_head(self.features(x)))
        return reconstruction

    def reconstruction_halves(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Return the layers of `reconstruct` up to the latents and those after them: the same modules, no copies."""
        return nn.Sequential(*self.features, self.mean_head), nn.Sequential(*self.decoder)

    def reconstruction_layers(self) -> nn.Sequential:
        """Return the layers of `reconstruct` as one chain: the same modules, not copies."""
        encoder, decoder = self.reconstruction_halves()
        return nn.Sequential(*encoder, *decoder)

    def loss(self, output: VaeOutput, x: Tensor, kept: Tensor | None = None) -> VaeLoss:
        """Return reconstruction error + kl_weight * divergence.

        The divergence of N(mean, variance) from N(0, 1) is -1/2 sum(1 + log variance - mean^2 - variance) (Kingma and
        Welling 2013, equation 10 and appendix B).

        Args:
            output: from `forward`.
            x: float32 [N, C, H, W], the images that went in.
            kept: bool [N, 1, H, W], the pixels whose reconstruction counts; None: all.
        """
        if kept is None:
            reconstruction = functional.mse_loss(output.reconstruction.float(), x.float())
        else:
            squares = (output.reconstruction.float() - x.float()).square().mean(dim=1, keepdim=True)
            # Not by indexing, whose size the device would have to tell; without a kept pixel it is 0.
            reconstruction = squares.where(kept, 0.0).sum() / kept.sum().clamp(min=1)
        # In float32 whatever the precision of the training: exp() leaves float16's range at 11.
        mean, log_variance = output.mean.float(), output.log_variance.float()
        kl = (-0.5 * (1 + log_variance - mean.square() - log_variance.exp())).sum(dim=1).mean()
        return VaeLoss(reconstruction + self.kl_weight * kl, reconstruction, kl)


def count_parameters(vae: nn.Module) -> int:
    """Return the number of trained parameters, batch norms and the log-variance head included."""
    return sum(parameter.numel() for parameter in vae.parameters())


def count_flops(vae: Vae) -> int:
    """Return the operations of one image's `reconstruct`: two for each multiply-add of a convolution.

    Activations and batch norms, which are folded into the convolutions on a device, are not counted.
    """
    height, width = vae.image_size
    total = 0
    for layer in vae.reconstruction_layers():
        if isinstance(layer, nn.Conv2d):
            height, width = _convolved(height, layer, 0), _convolved(width, layer, 1)
            total += 2 * layer.weight.numel() * height * width
        elif isinstance(layer, nn.ConvTranspose2d):
            total += 2 * layer.weight.numel() * height * width
            height, width = _unconvolved(height, layer, 0), _unconvolved(width, layer, 1)
    return total


def _encoder(n_channels: int, widths: tuple[int, ...], extra_layers: int) -> nn.Sequential:
    # The first convolution has no batch norm, as in DCGAN and GANomaly: the normalization would take the image's
    # contrast away. A convolution before a batch norm needs no bias, the norm has its own.
    layers: list[nn.Module] = [nn.Conv2d(n_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for _ in range(extra_layers):
        layers += [nn.Conv2d(widths[0], widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.LeakyReLU(0.2)]
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def _decoder(
    latent_vec_size: int, remaining: tuple[int, int], widths: tuple[int, ...], n_channels: int, extra_layers: int
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(latent_vec_size, widths[-1], remaining, bias=False),
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
    ]
    for before, after in pairwise(widths[::-1]):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    for _ in range(extra_layers):
        layers += [nn.Conv2d(widths[0], widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    layers += [nn.ConvTranspose2d(widths[0], n_channels, 4, 2, 1), nn.Tanh()]
    return nn.Sequential(*layers)


def _convolved(side: int, layer: nn.Conv2d, axis: int) -> int:
    padding = layer.padding[axis]
    assert isinstance(padding, int)
    return (side + 2 * padding - layer.kernel_size[axis]) // layer.stride[axis] + 1


def _unconvolved(side: int, layer: nn.ConvTranspose2d, axis: int) -> int:
    padding = layer.padding[axis]
    assert isinstance(padding, int)
    return (side - 1) * layer.stride[axis] - 2 * padding + layer.kernel_size[axis]
