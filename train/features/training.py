"""Training networks on a table of features, and measuring the residual of pictures that a network has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from vae_edge.errors import InputError
from vae_edge.ignored_region import IgnoredRegion
from vae_edge.platform.work import Progress
from vae_edge.train.features.graph import FeatureConstants, FeatureMapMaker, FeatureResidual
from vae_edge.train.features.network import FeatureVae
from vae_edge.train.features.patches import PatchResidual, patch_convolutions, patch_vae
from vae_edge.train.features.places import PlaceDistance
from vae_edge.train.features.settings import FeatureSettings, MapSource
from vae_edge.train.features.table import FeatureTable, PatchTable
from vae_edge.train.model.anomaly_graph import n_pooled, pool_largest
from vae_edge.train.model.kept import KeptPlaces, kept_or_none
from vae_edge.train.model.residuals import Smoothing
from vae_edge.train.model.scoring_constants import center_and_unit

_FLOOR = 0.5
"""Share of the median deviation that is added to every position's: one that never moved in a few pictures must not
shout at the first speck of dust. Between 0.3 and 1 the image AUROC of four surfaces differed by less than 0.01; with
nothing added it was 0.01 lower on the magnetic tiles, which have few parts."""

_LOOK_EVERY = 10
"""Steps between two looks at the loss."""


Table: TypeAlias = FeatureTable | PatchTable
"""What there is at each position of many pictures."""

Residual: TypeAlias = FeatureResidual | PatchResidual
"""A trained network up to its squared residual."""

Measure: TypeAlias = Residual | PlaceDistance
"""What gives a value of each position of a table."""


def train_on_table(
    table: Table,
    rows: Sequence[int],
    settings: FeatureSettings,
    *,
    seed: int,
    in_bfloat16: bool = False,
    progress: Progress | None = None,
) -> Residual:
    """Train a network on the positions of some pictures; the same seed gives the same weights on the same machine.

    Torch's own random numbers are neither used nor changed, so that networks can be trained in several threads.

    Args:
        table: features of pictures, or their pixels.
        rows: which of them to train on, one or more.
        settings: of the networks and their training.
        seed: of weights, positions and latents.
        in_bfloat16: multiply in bfloat16; weights, optimizer, latents and loss stay in float32.
        progress: receives steps done and in all, every few steps; what it raises ends the training.

    Returns:
        The trained network up to its residual.

    Raises:
        InputError: the loss is not finite any more.
    """
    mean, deviation = table.channel_statistics(rows)
    random = torch.Generator().manual_seed(seed)
    vae = _new_vae(table, settings, random).train()
    # In one operation for each step instead of a dozen for each tensor.
    optimizer = torch.optim.Adam(vae.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.n_steps)
    for step in range(1, settings.n_steps + 1):
        x, target = table.draw(rows, vae.settings.batch_size, random, mean, deviation)
        # Each weight is used once in a step, so that nothing is gained by keeping its bfloat16 copy.
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16, cache_enabled=False):
            loss = vae.loss(x, target, random)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        optimizer.step()
        schedule.step()
        if (step % _LOOK_EVERY == 0 or step == settings.n_steps) and not torch.isfinite(loss):
            raise InputError(
                f"the training on {_what(table)} diverged: its loss is {loss.item()} after {step} steps; "
                "expected a number: look for damaged pictures, or train with another --seed"
            )
        if progress is not None:
            progress(step, settings.n_steps)
    made: Residual
    if isinstance(table, PatchTable):
        made = PatchResidual(patch_convolutions(vae.eval()), mean, deviation)
    else:
        made = FeatureResidual(vae.eval().convolutions(), mean, deviation)
    made.eval().requires_grad_(False)
    return made


def _new_vae(table: Table, settings: FeatureSettings, random: torch.Generator) -> FeatureVae:
    if isinstance(table, PatchTable):
        assert settings.pixels is not None  # There is no such table without it.
        return patch_vae(settings.pixels, table.n_colours, random)
    return FeatureVae(table.n_channels, settings, random=random)


def _what(table: Table) -> str:
    return "patches of pixels" if isinstance(table, PatchTable) else "features"


def residuals_of(model: Measure, table: Table, rows: Sequence[int], progress: Progress | None = None) -> Tensor:
    """Return the squared residuals of some pictures, or distances, float32 [rows, 1, h, w]."""
    made: list[Tensor] = []
    with torch.inference_mode():
        for batch in table.batches(rows):
            made.append(model(batch))
            if progress is not None:
                progress(sum(map(len, made)), len(rows))
    return torch.cat(made) if made else torch.empty(0, 1, *table.size)


def fit_constants(
    residuals: Mapping[MapSource, Tensor],
    settings: FeatureSettings,
    models: Mapping[MapSource, Measure],
    ignored: IgnoredRegion | None = None,
) -> FeatureConstants:
    """Measure on held-out normals what each map is normalized by.

    Per position: `mean_and_deviation`. Where there are several maps each is brought to one scale by two quantiles of
    its own scores, as in `vae_edge.train.model.scoring_constants.fit_scoring_constants`.

    Args:
        residuals: float32 [n, 1, h, w] of each source, n of 2 or more, by networks that were not trained on these
            pictures.
        settings: of the maps.
        models: the networks that the constants are for.
        ignored: the part of the picture that does not count; there the constants are 0 and 1.
    """
    means, scales = [], []
    for each in settings.maps:
        residual = residuals[each.source]
        size = int(residual.shape[2]), int(residual.shape[3])
        kept = kept_or_none(ignored, *size)
        with torch.inference_mode():
            made = FeatureMapMaker(each, size, kept)(residual)
        mean, scale = mean_and_deviation(made, each.smoothing_sigma, kept)
        if len(settings.maps) > 1:
            values = ((made - mean) / scale).flatten(1) if kept is None else kept.of((made - mean) / scale).flatten(1)
            scores = pool_largest(values, n_pooled(each.top_fraction, 1, values.shape[1]))
            center, unit = center_and_unit(scores.numpy())
            # ((m - mean) / scale - center) / unit in one step.
            mean, scale = mean + center * scale, scale * unit
        means.append(mean)
        scales.append(scale)
    features, pixels = models[MapSource.FEATURES], models.get(MapSource.PIXELS)
    places = models.get(MapSource.PLACES)
    assert isinstance(features, FeatureResidual)
    return FeatureConstants(
        features.channel_mean.clone(),
        features.channel_deviation.clone(),
        tuple(means),
        tuple(scales),
        pixels.channel_mean.clone() if isinstance(pixels, PatchResidual) and settings.pixels is not None else None,
        pixels.channel_deviation.clone() if isinstance(pixels, PatchResidual) and settings.pixels is not None else None,
        places.constants if isinstance(places, PlaceDistance) and settings.places is not None else None,
    )


def mean_and_deviation(maps: Tensor, sigma: float, kept: KeptPlaces | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of a map at each position over normals, float32 [1, 1, h, w], the deviation above 0.

    Args:
        maps: float32 [n, 1, h, w], n of 2 or more.
        sigma: standard deviation, in positions, of the Gaussian that both are blurred by: over a few dozen pictures
            they are noisy.
        kept: the positions that count; at others the mean is 0 and the deviation 1. None: all.
    """
    values = maps.double()
    blur = Smoothing(max(sigma, 0.5), *values.shape[2:]).double()
    mean = blur(values.mean(dim=0, keepdim=True))
    # The mean square of (value - mean), so that what the blur took from the mean is in the deviation.
    deviation = blur((values - mean).square().mean(dim=0, keepdim=True)).clamp_min(0).sqrt()
    median = deviation.median() if kept is None else kept.of(deviation).median()
    deviation = (deviation + _FLOOR * median).clamp_min(1e-6)
    if kept is not None:
        mean, deviation = mean.where(kept.places, 0), deviation.where(kept.places, 1)
    return mean.float(), deviation.float()
