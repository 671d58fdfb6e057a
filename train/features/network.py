"""A variational autoencoder on what there is at one position of a picture: features, or a patch of pixels.

The encoder and the decoder of Kingma and Welling 2013 on a vector instead of an image: convolutions with a 1 x 1 kernel
over a map of features. It is trained on single positions, as linear layers over a table of them, which on a CPU are
several times faster than the equal convolutions; `convolutions` makes those for the graph, with the batch norms folded
in.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fusion, skip_init

from vae_edge.train.features.settings import PositionVae
from vae_edge.train.model.network import LOG_VARIANCE_LIMIT


class FeatureVaeOutput(NamedTuple):
    """What the network makes of a table of positions."""

    reconstruction: Tensor
    """float32 [n, outputs]."""
    mean: Tensor
    """float32 [n, latents]."""
    log_variance: Tensor
    """float32 [n, latents], -20 to 20."""


class FeatureVae(nn.Module):
    """The network for training.

    Args:
        n_channels: values of a position.
        settings: its size and the weight of the Kullback-Leibler term.
        n_outputs: values to reconstruct; None: all that it sees.
        random: what the weights are drawn from; None: torch's own random numbers.
    """

    def __init__(
        self,
        n_channels: int,
        settings: PositionVae,
        n_outputs: int | None = None,
        *,
        random: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.latent_vec_size = settings.latent_vec_size
        self.encoder = _perceptron(n_channels, settings.n_hidden, 2 * settings.latent_vec_size, random)
        self.decoder = _perceptron(settings.latent_vec_size, settings.n_hidden, n_outputs or n_channels, random)

    def forward(self, x: Tensor, random: torch.Generator | None = None) -> FeatureVaeOutput:
        """Encode and decode float32 [n, C]: z is drawn in training and the mean in evaluation.

        Latents are in float32 where autocast computes the layers in bfloat16.
        """
        mean, log_variance = self.encoder(x).float().split(self.latent_vec_size, dim=1)
        log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        z = mean
        if self.training:
            noise = torch.randn(mean.shape, generator=random, dtype=mean.dtype, device=mean.device)
            z = mean + torch.exp(0.5 * log_variance) * noise
        return FeatureVaeOutput(self.decoder(z).float(), mean, log_variance)

    def loss(self, x: Tensor, target: Tensor | None = None, random: torch.Generator | None = None) -> Tensor:
        """Return mean squared error + kl_weight * divergence, both averaged over positions.

        Args:
            x: float32 [n, C].
            target: float32 [n, outputs], what it is to reconstruct; None: x.
            random: what the latents are drawn from; None: torch's own random numbers.

        The divergence is that of `vae_edge.train.model.network.Vae.loss`.
        """
        output = self(x, random)
        mean, log_variance = output.mean, output.log_variance
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1).mean()
        reconstruction: Tensor = functional.mse_loss(output.reconstruction, x if target is None else target)
        loss: Tensor = reconstruction + self.settings.kl_weight * kl
        return loss

    def convolutions(self) -> nn.Sequential:
        """Return the same network with z = mean, as convolutions over float32 [N, C, H, W]; in evaluation mode."""
        size = self.latent_vec_size
        layers = [*_convolutions(self.encoder), *_convolutions(self.decoder)]
        place = len(_convolutions(self.encoder)) - 1
        heads = layers[place]
        assert isinstance(heads, nn.Conv2d)
        assert heads.bias is not None
        mean_head = skip_init(nn.Conv2d, heads.in_channels, size, 1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        mean_head.load_state_dict({"weight": heads.weight[:size], "bias": heads.bias[:size]})
        layers[place] = mean_head
        return nn.Sequential(*layers).eval().requires_grad_(False)


class InChannelUnits(nn.Module):
    """What sees values in units of the channels' deviations.

    Args:
        channel_mean: float32 [1, C, 1, 1], of what it sees of the training pictures.
        channel_deviation: of the same shape, above 0.
    """

    channel_mean: Tensor
    channel_unit: Tensor

    def __init__(self, channel_mean: Tensor, channel_deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("channel_mean", channel_mean)
        self.register_buffer("channel_unit", 1 / channel_deviation)

    @property
    def channel_deviation(self) -> Tensor:
        """See the arguments."""
        deviation: Tensor = 1 / self.channel_unit
        return deviation

    def in_units(self, values: Tensor) -> Tensor:
        """Return float32 [N, C, H, W] less the channels' means, in units of their deviations."""
        return (values - self.channel_mean) * self.channel_unit


class PositionResidual(InChannelUnits):
    """A trained network up to its squared residual, in units of the channels' deviations.

    Args:
        vae: the network's convolutions.
        channel_mean: see `InChannelUnits`.
        channel_deviation: likewise.
    """

    def __init__(self, vae: nn.Sequential, channel_mean: Tensor, channel_deviation: Tensor) -> None:
        super().__init__(channel_mean, channel_deviation)
        self.vae = vae


def empty_convolutions(n_channels: int, settings: PositionVae) -> nn.Sequential:
    """Return what `FeatureVae.convolutions` gives, for weights that are loaded afterwards."""
    return FeatureVae(n_channels, settings).convolutions()


def _perceptron(n_in: int, n_hidden: int, n_out: int, random: torch.Generator | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (n_in, n_hidden):
        layers += [_linear(before, n_hidden, random, bias=False), nn.BatchNorm1d(n_hidden), nn.ReLU()]
    return nn.Sequential(*layers, _linear(n_hidden, n_out, random))


def _linear(n_in: int, n_out: int, random: torch.Generator | None, *, bias: bool = True) -> nn.Linear:
    """Return a layer with the weights that torch would draw, from a generator of one's own."""
    layer = skip_init(nn.Linear, n_in, n_out, bias=bias)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert isinstance(layer, nn.Linear)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=random)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=random)
    return layer


def _convolutions(layers: nn.Sequential) -> list[nn.Module]:
    """Return linear layers as convolutions with a 1 x 1 kernel, the batch norms after them folded in."""
    made: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            convolution = skip_init(nn.Conv2d, layer.in_features, layer.out_features, 1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
            convolution.load_state_dict({"weight": layer.weight[:, :, None, None], "bias": bias})
            made.append(convolution)
        elif isinstance(layer, nn.BatchNorm1d):
            made[-1] = _folded(made[-1], layer)
        else:
            made.append(nn.ReLU())
    return made


def _folded(convolution: nn.Module, norm: nn.BatchNorm1d) -> nn.Conv2d:
    assert isinstance(convolution, nn.Conv2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fusion.fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    folded = skip_init(nn.Conv2d, convolution.in_channels, convolution.out_channels, 1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    folded.load_state_dict({"weight": weight, "bias": bias})
    assert isinstance(folded, nn.Conv2d)
    return folded
