"""EfficientNet-Lite0 with random weights, named as in the files that users have."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Names = Literal["package", "timm"]

_STAGES = [[(32, 16, 3)], [(16, 24, 3), (24, 24, 3)], [(24, 40, 5), (40, 40, 5)]]
_STAGES += [[(40, 80, 3), (80, 80, 3), (80, 80, 3)], [(80, 112, 5), (112, 112, 5), (112, 112, 5)]]
"""Of each block: channels of its input and output, size of its depthwise kernel."""


def random_weights(names: Names = "package", seed: int = 0) -> dict[str, Tensor]:
    """All tensors up to block 10, and the head's, whose activations neither vanish nor grow."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def add(convolution: str, norm: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        tensors[f"{convolution}.weight"] = torch.randn(shape, generator=generator) * math.sqrt(2 / fan_in)
        tensors[f"{norm}.weight"] = 0.5 + torch.rand(shape[0], generator=generator)
        tensors[f"{norm}.bias"] = torch.randn(shape[0], generator=generator) * 0.3
        tensors[f"{norm}.running_mean"] = torch.randn(shape[0], generator=generator) * 0.3
        tensors[f"{norm}.running_var"] = 0.5 + torch.rand(shape[0], generator=generator)
        tensors[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    is_package = names == "package"
    add(*(("_conv_stem", "_bn0") if is_package else ("conv_stem", "bn1")), 32, 3, 3, 3)
    number = 0
    for i, stage in enumerate(_STAGES):
        for j, (n_in, n_out, kernel) in enumerate(stage):
            there = f"_blocks.{number}." if is_package else f"blocks.{i}.{j}."
            wide = n_in if number == 0 else n_in * 6
            parts = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            if not is_package:
                parts = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
            if number == 0:
                parts = parts[1:] if is_package else [("conv_dw", "bn1"), ("conv_pw", "bn2")]
            shapes = [(wide, n_in, 1, 1), (wide, 1, kernel, kernel), (n_out, wide, 1, 1)][-len(parts) :]
            for (convolution, norm), shape in zip(parts, shapes, strict=True):
                add(there + convolution, there + norm, *shape)
            number += 1
    add(*(("_conv_head", "_bn1") if is_package else ("conv_head", "bn2")), 1280, 320, 1, 1)
    return tensors
