"""The VAE that circulates for anomalib, as its users have it, to make weights with: layers and names are GANomaly's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class _Encoder(nn.Module):
    def __init__(self, n_channels: int, n_features: int, extra_layers: int, n_pyramid: int, latents: int) -> None:
        super().__init__()
        n = n_features
        self.input_layers = nn.Sequential()
        self.input_layers.add_module(f"initial-conv-{n_channels}-{n}", nn.Conv2d(n_channels, n, 4, 2, 1, bias=False))
        self.input_layers.add_module(f"initial-batchnorm-{n}", nn.BatchNorm2d(n))
        self.input_layers.add_module(f"initial-relu-{n}", nn.LeakyReLU(0.2))
        self.extra_layers = nn.Sequential()
        for i in range(extra_layers):
            self.extra_layers.add_module(f"extra-layers-{i}-{n}-conv", nn.Conv2d(n, n, 3, 1, 1, bias=False))
            self.extra_layers.add_module(f"extra-layers-{i}-{n}-batchnorm", nn.BatchNorm2d(n))
            self.extra_layers.add_module(f"extra-layers-{i}-{n}-relu", nn.LeakyReLU(0.2))
        self.pyramid_features = nn.Sequential()
        for _ in range(n_pyramid):
            self.pyramid_features.add_module(f"pyramid-{n}-{2 * n}-conv", nn.Conv2d(n, 2 * n, 4, 2, 1, bias=False))
            self.pyramid_features.add_module(f"pyramid-{2 * n}-batchnorm", nn.BatchNorm2d(2 * n))
            self.pyramid_features.add_module(f"pyramid-{2 * n}-relu", nn.LeakyReLU(0.2))
            n *= 2
        self.fc_mu_logvar = nn.Conv2d(n, 2 * latents, 4, 1, 0, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.pyramid_features(self.extra_layers(self.input_layers(x)))
        mean, log_variance = self.fc_mu_logvar(features).chunk(2, dim=1)
        return mean, log_variance


class _Decoder(nn.Module):
    def __init__(self, n_channels: int, n_features: int, extra_layers: int, n_pyramid: int, latents: int) -> None:
        super().__init__()
        n = n_features << n_pyramid
        self.latent_input = nn.Sequential()
        self.latent_input.add_module(
            f"initial-{latents}-{n}-convt", nn.ConvTranspose2d(latents, n, 4, 1, 0, bias=False)
        )
        self.latent_input.add_module(f"initial-{n}-batchnorm", nn.BatchNorm2d(n))
        self.latent_input.add_module(f"initial-{n}-relu", nn.ReLU())
        self.inverse_pyramid = nn.Sequential()
        for _ in range(n_pyramid):
            layer = nn.ConvTranspose2d(n, n // 2, 4, 2, 1, bias=False)
            self.inverse_pyramid.add_module(f"pyramid-{n}-{n // 2}-convt", layer)
            self.inverse_pyramid.add_module(f"pyramid-{n // 2}-batchnorm", nn.BatchNorm2d(n // 2))
            self.inverse_pyramid.add_module(f"pyramid-{n // 2}-relu", nn.ReLU())
            n //= 2
        self.extra_layers = nn.Sequential()
        for i in range(extra_layers):
            self.extra_layers.add_module(f"extra-layers-{i}-{n}-conv", nn.Conv2d(n, n, 3, 1, 1, bias=False))
            self.extra_layers.add_module(f"extra-layers-{i}-{n}-batchnorm", nn.BatchNorm2d(n))
            self.extra_layers.add_module(f"extra-layers-{i}-{n}-relu", nn.ReLU())
        self.final_layers = nn.Sequential()
        layer = nn.ConvTranspose2d(n, n_channels, 4, 2, 1, bias=False)
        self.final_layers.add_module(f"final-{n}-{n_channels}-convt", layer)
        self.final_layers.add_module(f"final-{n_channels}-tanh", nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.final_layers(self.extra_layers(self.inverse_pyramid(self.latent_input(z))))
        return image


class CirculatedVae(nn.Module):
    """Random weights and batch-norm statistics, in evaluation mode."""

    def __init__(
        self, *, n_channels: int = 3, n_features: int = 4, extra_layers: int = 0, n_pyramid: int = 2, latents: int = 6
    ) -> None:
        super().__init__()
        sizes = (n_channels, n_features, extra_layers, n_pyramid, latents)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = _Encoder(*sizes)
            self.decoder = _Decoder(*sizes)
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    assert layer.running_mean is not None
                    assert layer.running_var is not None
                    nn.init.normal_(layer.running_mean, std=0.2)
                    nn.init.uniform_(layer.running_var, 0.3, 2)
                    nn.init.uniform_(layer.weight, 0.5, 1.5)
                    nn.init.normal_(layer.bias, std=0.2)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstruction at z = mean, mean and log-variance, for float32 [N, C, H, W]."""
        mean, log_variance = self.encoder(x)
        return self.decoder(mean), mean.flatten(1), log_variance.flatten(1)


def save_circulated(path: Path, model: CirculatedVae | None = None, **beside: Any) -> Path:
    """Save the weights as a checkpoint of Lightning, with whatever stands beside them."""
    state = {f"model.{name}": tensor for name, tensor in (model or CirculatedVae()).state_dict().items()}
    torch.save({"state_dict": state, **beside}, path)
    return path
