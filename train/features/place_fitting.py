"""Measuring the features of good parts at each place: see `vae_edge.train.features.places`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_edge.train.features.places import PlaceConstants, PlaceDistance
from vae_edge.train.features.table import FeatureTable

_SMALLEST_VARIANCE = 1e-3
"""Added to the variance of each direction, in units of its variance over all positions."""

_MOST_POSITIONS = 65536
"""Positions that the directions are measured on, at most."""

_AT_A_TIME = 8
"""Pictures whose products are summed together."""


def fit_places(table: FeatureTable, rows: Sequence[int], n_directions: int) -> PlaceDistance:
    """Measure the features of good parts at each position.

    The covariance of a position is mixed with the mean over all positions, which gets the weight K / (K + n): of n
    pictures not many more than K directions can be known.

    Args:
        table: features of pictures.
        rows: which of them, two or more.
        n_directions: K, at most the channels.
    """
    mean, deviation = table.channel_statistics(rows)
    directions = _main_directions(table, rows, n_directions, mean, deviation)
    n_positions = math.prod(table.size)
    total = torch.zeros(n_positions, n_directions, dtype=torch.float64)
    products = torch.zeros(n_positions, n_directions, n_directions, dtype=torch.float64)
    with torch.inference_mode():
        for batch in table.batches(rows, _AT_A_TIME):
            units = ((batch - mean) / deviation).flatten(2).permute(2, 0, 1)
            found = units @ directions.T  # float32 [h * w, N, K]
            total += found.sum(dim=1)
            products += found.transpose(1, 2) @ found
        n = len(rows)
        means = total / n
        covariance = products / n - means[:, :, None] * means[:, None, :]
        share = n_directions / (n_directions + n)
        everywhere = covariance if table.kept is None else covariance[torch.from_numpy(table.kept).flatten()]
        covariance = (1 - share) * covariance + share * everywhere.mean(dim=0)
        covariance += _SMALLEST_VARIANCE * torch.eye(n_directions, dtype=torch.float64)
        # With S = L L' the squared length of L^-1 x is x' S^-1 x.
        factor = torch.linalg.cholesky(covariance)
        inverse = torch.linalg.solve_triangular(factor, torch.eye(n_directions, dtype=torch.float64), upper=False)
        whitening = inverse.transpose(1, 2) / math.sqrt(n_directions)
    constants = PlaceConstants(
        directions[:, :, None, None].clone(),
        means.float()[None, :, None, :].clone(),
        whitening.float().contiguous().clone(),
    )
    return PlaceDistance(constants, mean, deviation)


def _main_directions(
    table: FeatureTable, rows: Sequence[int], n_directions: int, mean: Tensor, deviation: Tensor
) -> Tensor:
    """Return the principal components of some pictures' positions, each scaled to unit variance: float32 [K, C]."""
    step = max(1, len(rows) * math.prod(table.size) // _MOST_POSITIONS)
    n, products = 0, torch.zeros(table.n_channels, table.n_channels, dtype=torch.float64)
    with torch.inference_mode():
        for batch in table.batches(list(rows)[::step], _AT_A_TIME):
            units = ((batch - mean) / deviation).permute(0, 2, 3, 1)
            units = units.flatten(0, 2) if table.kept is None else units[:, torch.from_numpy(table.kept)].flatten(0, 1)
            products += units.T @ units
            n += len(units)
        variances, vectors = torch.linalg.eigh(products / n)
        largest = variances[-n_directions:].flip(0).clamp_min(_SMALLEST_VARIANCE)
        directions: Tensor = (vectors[:, -n_directions:].flip(1) / largest.sqrt()).T.float()
        return directions.contiguous()
