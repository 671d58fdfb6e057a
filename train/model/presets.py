"""What a network consists of and how it is trained: presets, recipes, precision, and which image sizes fit. No torch.

The reference configuration is trained as published: Adam at a constant 2e-4, on full images, without further options.
`benchmarks/DETECTION.md` was measured with the defaults of the other presets.
"""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from vae_edge.errors import UsageError
from vae_edge.platform.machine import look_at_machine
from vae_edge.records import Record, make_record
from vae_edge.text_enum import TextEnum


class Schedule(TextEnum):
    """Schedule of the learning rate."""

    CONSTANT = "constant"
    ONE_CYCLE = "one-cycle"
    """Up linearly over the first tenth of the steps, then down to nothing along a cosine (Smith and Topin 2018)."""


class Augmentation(TextEnum):
    """What is changed at random in each window of an image."""

    NONE = "none"
    FLIPS = "flips"
    """Mirrored left to right and upside down, half of the time each: for surfaces without an orientation."""
    LIGHT = "light"
    """Brighter or darker, with more or less contrast, by about a tenth."""


class Recipe(Record):
    """How a network is trained."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Adam's; with `one-cycle` the largest."""
    schedule: Schedule = Schedule.CONSTANT
    kl_warmup: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps over which the weight of the Kullback-Leibler term grows from 0 (Bowman et al. 2016)."""
    averaging: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of the weights that is kept in place of the last ones, such as 0.999 (Polyak and
    Juditsky 1992); 0: none."""
    augmentation: tuple[Augmentation, ...] = ()

    def rate_at(self, step: int, n_steps: int) -> float:
        """Return the share of the learning rate at a step, 0 to 1."""
        if self.schedule is Schedule.CONSTANT:
            return 1.0
        rise = max(1, n_steps // 10)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min((step - rise) / max(n_steps - rise, 1), 1.0)))

    def kl_share_at(self, step: int, n_steps: int) -> float:
        """Return the share of the Kullback-Leibler term's weight at a step, 0 to 1."""
        if self.kl_warmup == 0:
            return 1.0
        return min((step + 1) / max(self.kl_warmup * n_steps, 1), 1.0)


REFERENCE_RECIPE = Recipe()
"""The published one."""

EDGE_RECIPE = Recipe(learning_rate=1e-3, schedule=Schedule.ONE_CYCLE)
"""A schedule that ends at zero needs only 1500 steps of tiles, or 700 of full images."""

AUTO_PRECISION = "auto"

SINGLE = "32-true"
MIXED = "bf16-mixed"

_SINGLE_NAMES, _MIXED_NAMES = (SINGLE, "32"), (MIXED, "bf16")
"""Lightning has two names for each."""

_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
"""Of processors that multiply bfloat16 faster than float32; without AMX, too, two networks on whole pictures trained
1.4 to 1.8 times as fast in it."""


def resolve_precision(asked: str, accelerator: str) -> str:
    """Return Lightning's precision; for `auto` the fastest one that trains as well as float32.

    bfloat16 has float32's range, so nothing has to be scaled; weights, optimizer and batch norms stay in float32. It is
    taken where the device multiplies it natively: on an NVIDIA GPU from Ampere on, and on a processor with AMX or the
    AVX-512 instructions for it.

    Args:
        asked: `auto`, or one of Lightning's precisions, which is returned as it is.
        accelerator: Lightning's accelerator.
    """
    if asked != AUTO_PRECISION:
        return asked
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return MIXED if torch.cuda.is_bf16_supported(including_emulation=False) else SINGLE
    is_fast = not _BFLOAT16_FLAGS.isdisjoint(look_at_machine().processor_flags)
    return MIXED if accelerator in ("auto", "cpu") and is_fast else SINGLE


def is_bfloat16(precision: str) -> bool:
    """Return whether a precision of Lightning's that `check_position_precision` takes multiplies in bfloat16."""
    return precision in _MIXED_NAMES


def check_position_precision(precision: str) -> None:
    """Refuse precisions that networks on features and on patches are not trained in.

    Raises:
        UsageError: it is neither float32 nor mixed with bfloat16.
    """
    if precision not in (AUTO_PRECISION, *_SINGLE_NAMES, *_MIXED_NAMES):
        raise UsageError(
            f"the precision {precision!r} is for networks that reconstruct whole pictures; expected {AUTO_PRECISION}, "
            f"{SINGLE} or {MIXED} for one on features: choose one of them, or take the preset {PIXEL_PRESET!r}"
        )


SMALLEST_SIDE = 32
LARGEST_SIDE = 4096

DEFAULT_PRESET = "auto"

PIXEL_PRESET = "nano"
"""Of the networks on pixels: on the image sets available it found as much as `edge`, with a quarter of the work
(`benchmarks/DETECTION.md`)."""


class Network(TextEnum):
    """What a network reconstructs."""

    PIXEL = "pixel"
    """The picture."""
    FEATURE = "feature"
    """What a frozen, pretrained backbone sees in the picture: see `vae_edge.train.features`."""
    BOTH = "both"
    """That, and small patches of pixels; the mean of their maps and scores is taken."""


def network_name(network: Network, by_place: bool) -> str:
    """Return the name of a kind of network, as in a ranking; by_place: whether features are compared by place."""
    return f"{network} and places" if by_place else str(network)


class Architecture(Record):
    """Everything that decides the shape of a `Vae` and its loss; written into the run."""

    preset: str | None = None
    """Name of the preset that the numbers started from; None: none."""
    n_features: int = Field(ge=1, le=4096)
    """Channels after the first convolution; they double with every further one."""
    latent_vec_size: int = Field(ge=1, le=65536)
    kl_weight: float = Field(default=0.00025, ge=0)
    """Weight of the Kullback-Leibler term in the loss."""
    max_features: int | None = Field(default=None, ge=1)
    """Channels at which the doubling stops; None: it does not."""
    extra_layers: int = Field(default=0, ge=0, le=16)
    """Convolutions with a 3 x 3 kernel at half the image's size, in the encoder and again in the decoder."""
    n_channels: int = Field(default=3, ge=1, le=16)
    height: int
    width: int

    @model_validator(mode="after")
    def _fits(self) -> Architecture:
        check_image_size(self.height, self.width)
        check_max_features(self.n_features, self.max_features)
        return self


class Preset(Record):
    """A size of the network that was tried."""

    purpose: str
    n_features: int = 16
    latent_vec_size: int = 128
    max_features: int | None = 128
    network: Network | None = Network.PIXEL
    """What is reconstructed; None: the data choose. The other numbers are those of a network on whole pictures."""
    recipe: Recipe = EDGE_RECIPE
    """How it is trained, unless told otherwise."""
    precision: str = AUTO_PRECISION
    """What is computed in, unless told otherwise: see `resolve_precision`."""
    chooses_size: bool = True
    """Whether image and tiles are as large as the data ask for, unless told otherwise; else full images of 256."""

    def architecture(self, name: str, height: int, width: int) -> Architecture:
        """Return the preset's architecture for images of height x width.

        Raises:
            InputError: see `check_image_size`.
        """
        check_image_size(height, width)
        return Architecture(
            preset=name,
            n_features=self.n_features,
            latent_vec_size=self.latent_vec_size,
            max_features=self.max_features,
            height=height,
            width=width,
        )


PRESETS: dict[str, Preset] = {
    "auto": Preset(purpose="the data choose", network=None),
    "feature": Preset(purpose="on features of a pretrained backbone", network=Network.FEATURE),
    "both": Preset(purpose="on features and on patches of pixels", network=Network.BOTH),
    "reference": Preset(
        purpose="as published, for a GPU",
        n_features=64,
        max_features=None,
        recipe=REFERENCE_RECIPE,
        precision=SINGLE,
        chooses_size=False,
    ),
    "edge": Preset(purpose="twice as wide, for a Jetson or a desktop CPU", n_features=32, max_features=256),
    "nano": Preset(purpose="for any device"),
}
"""The presets. Parameters in training, and multiply-adds times two for one image on the device (`count_flops`):

| preset    | n_features | max_features | latents | parameters@256 | GFLOP@256 | parameters@128 | GFLOP@128 |
|-----------|-----------:|-------------:|--------:|---------------:|----------:|---------------:|----------:|
| reference |         64 |         none |     128 |       102.00 M |     10.96 |        28.59 M |      2.21 |
| edge      |         32 |          256 |     128 |         7.15 M |      2.05 |         5.05 M |      0.50 |
| nano      |         16 |          128 |     128 |         2.18 M |      0.54 |         1.66 M |      0.13 |
"""


def preset_named(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def make_architecture(
    preset: str = PIXEL_PRESET,
    image_size: tuple[int, int] = (256, 256),
    *,
    n_features: int | None = None,
    latent_vec_size: int | None = None,
    kl_weight: float | None = None,
    max_features: int | None = None,
    extra_layers: int | None = None,
) -> Architecture:
    """Return a preset's architecture with some of its numbers replaced.

    Args:
        preset: a key of `PRESETS`.
        image_size: height and width; see `check_image_size`.
        n_features: instead of the preset's; None: the preset's. So for the following three.
        latent_vec_size: instead of the preset's.
        kl_weight: instead of 0.00025.
        max_features: instead of the preset's.
        extra_layers: instead of none.

    Raises:
        InputError: an unknown preset, an image size that does not fit, or a number out of range.
    """
    base = preset_named(preset).architecture(preset, *image_size)
    asked = {
        "n_features": n_features,
        "latent_vec_size": latent_vec_size,
        "kl_weight": kl_weight,
        "max_features": max_features,
        "extra_layers": extra_layers,
    }
    values = base.model_dump() | {name: value for name, value in asked.items() if value is not None}
    check_max_features(values["n_features"], values["max_features"])
    return make_record(Architecture, values)


def count_stages(height: int, width: int) -> int:
    """Return how often the encoder halves the image: floor(log2(shorter side / 4)), so that 4 to 7 pixels remain.

    Examples:
        >>> count_stages(256, 256), count_stages(64, 96)
        (6, 4)
    """
    return int(math.log2(min(height, width) // 4))


def channel_widths(n_features: int, max_features: int | None, n_stages: int) -> tuple[int, ...]:
    """Return the channels after each halving: n_features, doubled each time up to max_features.

    Examples:
        >>> channel_widths(16, 128, n_stages=5), channel_widths(64, None, n_stages=3)
        ((16, 32, 64, 128, 128), (64, 128, 256))
    """
    largest = max_features if max_features is not None else n_features << n_stages
    return tuple(min(n_features << stage, largest) for stage in range(n_stages))


def check_image_size(height: int, width: int) -> None:
    """Refuse image sizes that the network cannot halve down to its smallest map.

    Both sides must be 32 to 4096 and divisible by 2 ** `count_stages`: for square images that is any multiple of 8
    below 64, of 16 below 128, of 32 below 256, of 64 below 512 and so on.

    Raises:
        InputError: with the nearest sizes that fit.
    """
    if min(height, width) < SMALLEST_SIDE or max(height, width) > LARGEST_SIDE:
        raise UsageError(
            f"the image size is {height}x{width}; expected sides of {SMALLEST_SIDE} to {LARGEST_SIDE}, such as 256x256"
        )
    step = 2 ** count_stages(height, width)
    if height % step or width % step:
        smaller, larger = nearest_image_sizes(height, width)
        raise UsageError(
            f"the image size is {height}x{width}, the network halves it {count_stages(height, width)} times and needs "
            f"sides divisible by {step}; the nearest that fit are {_by(smaller)} and {_by(larger)} (height x width)"
        )


def nearest_image_sizes(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the nearest size that fits with no side larger, and the nearest with no side smaller.

    Args:
        height: 32 to 4096.
        width: 32 to 4096.

    Examples:
        >>> nearest_image_sizes(100, 130)
        ((96, 128), (112, 144))
    """
    step = 2 ** count_stages(height, width)
    smaller = (height // step * step, width // step * step)
    larger = (height, width)
    # Rounding up can pass a power of two, where the network gets one stage more and the step doubles.
    while any(side % (step := 2 ** count_stages(*larger)) for side in larger):
        larger = (-(-larger[0] // step) * step, -(-larger[1] // step) * step)
    return smaller, larger


def check_max_features(n_features: int, max_features: int | None) -> None:
    """Refuse a cap below the first convolution's channels.

    Raises:
        InputError: with both numbers.
    """
    if max_features is not None and max_features < n_features:
        raise UsageError(
            f"max_features is {max_features}, below n_features ({n_features}); expected {n_features} or more, or none"
        )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
