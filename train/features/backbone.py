"""EfficientNet-Lite0 up to its eleventh block, frozen: a picture becomes maps of features at four strides.

EfficientNet's B0 (Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
arXiv 1905.11946, table 1), made of the inverted residual blocks of MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381),
in its Lite variant (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite): ReLU6 in place of
swish and no squeeze-and-excitation, so that it can be quantized; the stem has 32 channels whatever the width.

Two things differ from the definition that the network was trained with, and neither changes its values:

* Batch norms are folded into the convolutions before them, for nothing is trained here: see `folded`.
* TensorFlow pads a convolution of stride 2 as little as it can, which for an even size means one row less at the top
  and on the left than at the bottom and on the right. Sizes are multiples of 16 here, so that every such convolution
  sees an even size and its padding is a constant: 0 and 1 around a kernel of 3, 1 and 2 around one of 5. torch knows no
  uneven padding of a convolution, so it is a layer of its own in the graph. ONNX has it (`pads`), and torch's exporter
  moves it there; what is left is moved by ONNX Runtime and OpenVINO.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fusion

from vae_edge.errors import UsageError

NAME = "efficientnet-lite0"

NORM_EPSILON = 1e-3
"""Of every batch norm; TensorFlow's, torch's own default is 1e-5."""

STEM_CHANNELS = 32


class Stage(NamedTuple):
    """Blocks of equal width; the first has the stride and changes the number of channels."""

    n_blocks: int
    kernel_size: int
    stride: int
    expansion: int
    """Channels of the depthwise convolution for each channel of the block's input."""
    n_channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
)
"""The first five of seven: blocks 0 to 10 of 16."""


class Tap(NamedTuple):
    """A place where features are taken."""

    block: int
    """Whose output it is; the first one is 0."""
    n_channels: int
    stride: int
    """Pixels from one position to the next."""


TAPS = (Tap(2, 24, 4), Tap(4, 40, 8), Tap(7, 80, 16), Tap(10, 112, 16))
"""The last blocks of the stages but the first."""

SIDE_MULTIPLE = 16
"""The largest stride: each side of a picture is a multiple of it."""

SMALLEST_SIDE = 32
"""Two positions of the largest stride; a picture with one would be judged without any surroundings."""


def check_size(height: int, width: int) -> None:
    """Refuse a size that the strides do not fit.

    Args:
        height: of the picture in pixels.
        width: the same.

    Raises:
        UsageError: with the size, and one that would do.
    """
    if min(height, width) < SMALLEST_SIDE:
        raise UsageError(
            f"a picture of {height}x{width} pixels (height x width) is too small for the backbone, which processes "
            f"it in steps of {SIDE_MULTIPLE}; expected {SMALLEST_SIDE} or more on each side"
        )
    if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
        fitting = "x".join(str(nearest_side(side)) for side in (height, width))
        raise UsageError(
            f"a picture of {height}x{width} pixels (height x width) does not fit the backbone, which processes it in "
            f"steps of {SIDE_MULTIPLE}; expected multiples of {SIDE_MULTIPLE} on both sides, such as {fitting}"
        )


def nearest_side(side: float) -> int:
    """Return the side nearest to one in pixels that the backbone takes."""
    return max(SMALLEST_SIDE, SIDE_MULTIPLE * int(side / SIDE_MULTIPLE + 0.5))


class SameConv(nn.Conv2d):
    """A convolution with bias that leaves the size as it is, or halves an even one as TensorFlow's "SAME" does."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            n_in, n_out, kernel_size, stride, padding=kernel_size // 2 if stride == 1 else 0, groups=groups, bias=True
        )
        before = (kernel_size - stride) // 2
        after = kernel_size - stride - before
        self.uneven = (before, after, before, after) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve float32 [N, C, H, W]."""
        return super().forward(x if self.uneven is None else functional.pad(x, self.uneven))


class Block(nn.Module):
    """An inverted residual: widen, convolve each channel, project; plus the input where size and channels are equal.

    Args:
        n_in: channels of the input.
        n_out: channels of the output.
        kernel_size: of the depthwise convolution.
        stride: the same.
        expansion: how much it is widened; 1: not at all.
    """

    def __init__(self, n_in: int, n_out: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = n_in * expansion
        self.expand = SameConv(n_in, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel_size, stride, groups=wide)
        self.project = SameConv(wide, n_out, 1)
        self.is_residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """Turn float32 [N, n_in, H, W] into [N, n_out, H / stride, W / stride]."""
        wide = x if self.expand is None else functional.relu6(self.expand(x))
        made: Tensor = self.project(functional.relu6(self.depthwise(wide)))
        return x + made if self.is_residual else made


class Backbone(nn.Module):
    """The network, in evaluation mode and without gradients of its weights.

    Its weights are random until some are loaded: see `vae_edge.train.features.backbone_weights.load_backbone`, and
    `load_state_dict` for those that `state_dict` gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, 2)
        blocks = []
        n_in = STEM_CHANNELS
        for stage in STAGES:
            for i in range(stage.n_blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(Block(n_in, stage.n_channels, stage.kernel_size, stride, stage.expansion))
                n_in = stage.n_channels
        self.blocks = nn.ModuleList(blocks)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the features at each of `TAPS`.

        Args:
            pixels: float32 [N, 3, H, W] RGB, about -1 to 1; it was trained on (x - 127) / 128 for x of 0 to 255.

        Returns:
            float32 [N, 24, H/4, W/4], [N, 40, H/8, W/8], [N, 80, H/16, W/16] and [N, 112, H/16, W/16], without bounds.

        Raises:
            UsageError: the size does not fit; see `check_size`.
        """
        check_size(pixels.shape[2], pixels.shape[3])
        at = {tap.block for tap in TAPS}
        found = []
        x = functional.relu6(self.stem(pixels))
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in at:
                found.append(x)
        return tuple(found)


class Norm(NamedTuple):
    """A batch norm's tensors, each [C]."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


def folded(weight: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the convolution without bias before it, in float64.

    w' = w * gamma / sqrt(var + eps) per output channel, b' = beta - mean * gamma / sqrt(var + eps) (Ioffe and Szegedy
    2015, section 3.1).

    Args:
        weight: of the convolution, [C, ...].
        norm: what follows it.

    Returns:
        Weight and bias, float32.
    """
    gamma, beta, mean, variance = (tensor.double() for tensor in norm)
    folded_weight, bias = fusion.fuse_conv_bn_weights(weight.double(), None, mean, variance, NORM_EPSILON, gamma, beta)
    return folded_weight.detach().float(), bias.detach().float()
