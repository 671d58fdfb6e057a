"""Weights of the VAE that circulates for anomalib, in the layout of its GANomaly, as weights of this package's network.

The two compute the same; they differ in names and in layers that can be folded without changing the result:

- after the encoder's first convolution is a batch norm, which is folded into it (Ioffe and Szegedy 2015, section 3.1);
- one convolution without a bias gives the latents' mean and log-variance; here there are two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_edge.errors import InputError
from vae_edge.records import make_record
from vae_edge.train.model.anomaly_graph import fold_batch_norms
from vae_edge.train.model.network import Vae
from vae_edge.train.model.presets import Architecture

_HEAD = "encoder.fc_mu_logvar.weight"


@dataclass(frozen=True)
class _Layer:
    """A layer of the circulated network, with the names that its tensors have there."""

    name: str
    channels: tuple[int, int] = (0, 0)
    """In the order of the weight's first two dimensions; a batch norm has none."""
    kernel: int = 0
    features: int = 0
    """Channels of a batch norm."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of its tensors."""
        if self.features:
            parts = ("weight", "bias", "running_mean", "running_var")
            return {f"{self.name}.{part}": (self.features,) for part in parts}
        return {f"{self.name}.weight": (*self.channels, self.kernel, self.kernel)}


def is_ganomaly_layout(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the head by which this layout is recognized."""
    return _prefix(state) is not None


def from_ganomaly_layout(state: Mapping[str, Tensor]) -> tuple[Architecture, Vae]:
    """Make the network from weights in the layout of anomalib's GANomaly, in evaluation mode.

    Args:
        state: tensors by name: `encoder.input_layers`, `.extra_layers`, `.pyramid_features`, `.fc_mu_logvar`, and
            `decoder.latent_input`, `.inverse_pyramid`, `.extra_layers`, `.final_layers`, behind any prefix such as
            `model.`. Tensors that do not belong to the network are ignored.

    Returns:
        The architecture and the network; its images are square, with the size given by the weights. The weights do not
        contain the weights of the parts of the loss.

    Raises:
        InputError: a tensor is missing, unexpected, or has the wrong shape: the message names it, its shape and the
            expected one. Or the network is smaller or larger than an `Architecture` may be.
    """
    prefix = _prefix(state)
    if prefix is None:
        raise InputError(f"the weights have no tensor {_HEAD}; expected the VAE in the layout of anomalib's GANomaly")
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith((f"{prefix}encoder.", f"{prefix}decoder."))
    }
    n_channels, n_features = _input_shape(own)
    latents = own[_HEAD].shape[0] // 2
    n_extra = sum(re.fullmatch(r"encoder\.extra_layers\..*-conv\.weight", name) is not None for name in own)
    n_pyramid = sum(re.fullmatch(r"encoder\.pyramid_features\..*-conv\.weight", name) is not None for name in own)
    encoder = _encoder_layers(n_channels, n_features, n_extra, n_pyramid)
    decoder = _decoder_layers(n_channels, n_features, n_extra, n_pyramid, latents)
    head = _Layer("encoder.fc_mu_logvar", (2 * latents, n_features << n_pyramid), 4)
    _check(own, (*encoder, head, *decoder))

    side = 8 << n_pyramid
    sizes = {
        "n_features": n_features,
        "latent_vec_size": latents,
        "extra_layers": n_extra,
        "n_channels": n_channels,
        "height": side,
        "width": side,
    }
    try:
        architecture = make_record(Architecture, sizes)
    except InputError as error:
        raise InputError(f"the weights belong to a network that is out of range: {error}") from error
    vae = Vae.from_architecture(architecture)
    with torch.no_grad():
        first = nn.Conv2d(n_channels, n_features, 4, 2, 1, bias=False)
        norm = nn.BatchNorm2d(n_features)
        _fill((first, norm), encoder[:2], own)
        (folded,) = fold_batch_norms(nn.Sequential(first, norm).eval())
        vae.features[0].load_state_dict(folded.state_dict())
        _fill(_filled(list(vae.features)[1:]), encoder[2:], own)
        mean, log_variance = own[_HEAD].float().chunk(2)
        for convolution, weight in ((vae.mean_head, mean), (vae.log_variance_head, log_variance)):
            convolution.weight.copy_(weight)
            nn.init.zeros_(_bias(convolution))
        layers = _filled(vae.decoder)
        _fill(layers, decoder, own)
        nn.init.zeros_(_bias(layers[-1]))
    return architecture, vae.eval().requires_grad_(False)


def _prefix(state: Mapping[str, Tensor]) -> str | None:
    found = [name.removesuffix(_HEAD) for name in state if name.endswith(_HEAD)]
    return found[0] if len(found) == 1 else None


def _input_shape(own: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the channels of the image and those of the first convolution."""
    for name, tensor in own.items():
        if re.fullmatch(r"encoder\.input_layers\..*-conv-.*\.weight", name) and tensor.ndim == 4:
            return tensor.shape[1], tensor.shape[0]
    raise InputError(
        "the tensor encoder.input_layers.initial-conv-*.weight is missing or does not have four dimensions; expected "
        "[n_features, channels, 4, 4]: give the whole state dict of the VAE"
    )


def _encoder_layers(n_channels: int, n_features: int, n_extra: int, n_pyramid: int) -> list[_Layer]:
    place = "encoder.input_layers.initial"
    layers = [
        _Layer(f"{place}-conv-{n_channels}-{n_features}", (n_features, n_channels), 4),
        _Layer(f"{place}-batchnorm-{n_features}", features=n_features),
    ]
    layers += _extra_layers("encoder", n_features, n_extra)
    for before in (n_features << i for i in range(n_pyramid)):
        after, place = 2 * before, "encoder.pyramid_features.pyramid"
        layers += [
            _Layer(f"{place}-{before}-{after}-conv", (after, before), 4),
            _Layer(f"{place}-{after}-batchnorm", features=after),
        ]
    return layers


def _decoder_layers(n_channels: int, n_features: int, n_extra: int, n_pyramid: int, latents: int) -> list[_Layer]:
    widest, place = n_features << n_pyramid, "decoder.latent_input.initial"
    layers = [
        _Layer(f"{place}-{latents}-{widest}-convt", (latents, widest), 4),
        _Layer(f"{place}-{widest}-batchnorm", features=widest),
    ]
    for before in (widest >> i for i in range(n_pyramid)):
        after, place = before // 2, "decoder.inverse_pyramid.pyramid"
        layers += [
            _Layer(f"{place}-{before}-{after}-convt", (before, after), 4),
            _Layer(f"{place}-{after}-batchnorm", features=after),
        ]
    layers += _extra_layers("decoder", n_features, n_extra)
    layers.append(_Layer(f"decoder.final_layers.final-{n_features}-{n_channels}-convt", (n_features, n_channels), 4))
    return layers


def _extra_layers(half: str, n_features: int, n_extra: int) -> list[_Layer]:
    layers = []
    for i in range(n_extra):
        place = f"{half}.extra_layers.extra-layers-{i}-{n_features}"
        layers += [
            _Layer(f"{place}-conv", (n_features, n_features), 3),
            _Layer(f"{place}-batchnorm", features=n_features),
        ]
    return layers


def _check(own: Mapping[str, Tensor], layers: Iterable[_Layer]) -> None:
    expected = {name: shape for layer in layers for name, shape in layer.tensors().items()}
    for name, shape in expected.items():
        if name not in own:
            raise InputError(
                f"the tensor {name} is missing; expected one with the shape {list(shape)}: give the whole state dict "
                "of the VAE, with batch norms and the same number of layers in encoder and decoder"
            )
        if tuple(own[name].shape) != shape:
            raise InputError(
                f"the tensor {name} has the shape {list(own[name].shape)}; expected {list(shape)}, to match the other "
                "tensors"
            )
    too_many = [name for name in own if name not in expected and not name.endswith(".num_batches_tracked")]
    if too_many:
        name = too_many[0]
        raise InputError(
            f"there is a tensor {name} with the shape {list(own[name].shape)}, for which the VAE in the layout of "
            "anomalib's GANomaly has no place; expected its own tensors only"
        )


def _filled(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the layers that have weights."""
    return [layer for layer in layers if any(True for _ in layer.parameters())]


def _fill(layers: Iterable[nn.Module], source: Iterable[_Layer], own: Mapping[str, Tensor]) -> None:
    for layer, named in zip(layers, source, strict=True):
        tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
        for name in named.tensors():
            tensors[name.rpartition(".")[2]].copy_(own[name])


def _bias(layer: nn.Module) -> Tensor:
    bias = layer.bias
    assert isinstance(bias, Tensor)
    return bias
