"""Work for a team of two processes in tests: a function of a module, which the other process imports by its name."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from vae_edge.errors import InputError
from vae_edge.train.loop.batches import FixedCrops, StepPart, as_pixels, flipped, relit
from vae_edge.train.loop.team import Team
from vae_edge.train.loop.together import SharedBatchNorm2d, StepShares, total_of
from vae_edge.train.loop.training import VaeTraining
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.input_settings import Tiling
from vae_edge.train.model.network import Vae
from vae_edge.train.model.presets import Augmentation, Recipe


def gradients(team: Team, images: NDArray[np.uint8]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of one step over all images, in double precision, and the running averages after it."""
    size = images.shape[1]
    torch.manual_seed(3)
    vae = Vae(4, 8, image_size=(size, size)).double().train()
    of_step = StepPart(len(images))
    if team.size > 1:
        SharedBatchNorm2d.replace_in(vae)
        shares = StepShares(FixedCrops(len(images), Tiling.whole(size, size), 1), len(images), team.place)
        of_step = StepPart(shares.n_of(0), shares.part(0))
    torch.manual_seed(7)
    pixels = as_pixels(torch.from_numpy(images[of_step.part])).double()
    kinds = tuple(Augmentation)
    pixels = relit(flipped(pixels, kinds, of_step), kinds, of_step)
    loss = vae.loss(vae(pixels, of_step.noise_like), pixels)
    # The loss casts to float32 for autocast's sake; here nothing is rounded.
    reconstruction = (vae(pixels, of_step.noise_like).reconstruction - pixels).square().mean()
    total = (reconstruction + 0.01 * loss.kl.double()) * (len(pixels) * team.size / of_step.n)
    total.backward()
    found = [each.grad for each in vae.parameters() if each.grad is not None]
    if team.size > 1:
        for each in found:
            distributed.all_reduce(each)
            each /= team.size
    return found, [buffer for name, buffer in vae.named_buffers() if "running" in name]


def masked_loss(team: Team, images: NDArray[np.uint8], kept: NDArray[np.bool_]) -> Tensor:
    """Return the reconstruction loss of a step, of which every image has other pixels that count, float32 scalar."""
    torch.manual_seed(3)
    vae = Vae(4, 8, image_size=(images.shape[1], images.shape[2])).eval()
    shares, part = None, slice(None)
    if team.size > 1:
        tiling = Tiling.whole(images.shape[1], images.shape[2])
        shares = StepShares(FixedCrops(len(images), tiling, 1), len(images), team.place)
        part = shares.part(0)
    module = VaeTraining(vae, Recipe(), 0, 1, shares)
    pixels, counted = as_pixels(torch.from_numpy(images[part])), torch.from_numpy(kept[part])[:, None]
    with torch.no_grad():
        loss = module._in_step(vae.loss(vae(pixels), pixels, counted), counted)
    assert loss is not None
    weighted = loss.reconstruction * len(pixels) / len(images)
    return total_of(weighted) if team.size > 1 else weighted


def echo(team: Team, array: NDArray[np.float32], word: str) -> list[tuple[int, float, str, str]]:
    """Return what arrived in each process, with its id."""
    return team.collect((os.getpid(), float(array.sum()), str(array.dtype), word))


def squares(team: Team, n: int) -> list[tuple[int, int]]:
    """Return the squares of 0 to n - 1, and which process made each."""

    def work(number: int) -> tuple[int, int]:
        time.sleep(0.05)
        return number**2, team.place.rank

    return team.each(n, work, Watcher())


def fail(team: Team, how: str) -> list[None]:
    """Fail in the process that helps; the leader waits for it."""
    if team.place.rank == 1:
        if how == "raise":
            raise InputError("the second process has had enough")
        if how == "bug":
            raise KeyError("of the second process")
        os._exit(9)
    if how == "in torch":
        distributed.all_reduce(torch.zeros(1))
    return team.collect(None)
