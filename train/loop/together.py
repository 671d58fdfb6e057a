"""One training by several processes that ends as it would in one: what each does of a step, and what they exchange.

A step's images are the same ones as in one process, and each process takes its share of them. Everything that is drawn
for an image, its augmentation and its latents, is drawn for the whole step by every process, which then uses its part.
Batch norms normalize by all images of the step; torch's own `SyncBatchNorm` does this on GPUs only. The gradient is the
mean over the images, however many each process has. What is left are the roundings of sums in another order.

No image is counted twice to fill a process's share, in training or in the held-out loss, as
`torch.utils.data.DistributedSampler` would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor, distributed, nn
from torch.utils.data import Sampler

from vae_edge.errors import UsageError
from vae_edge.train.loop.batches import Crop
from vae_edge.train.loop.launch import Place
from vae_edge.wording import count


class StepShares(Sampler[list[Crop]]):
    """A process's share of each step's windows.

    Args:
        sampler: gives the windows of an epoch; Lightning calls its `set_epoch`, which it finds by this name.
        batch_size: windows in a step, of all processes.
        place: of this process.
        drop_last: whether a last, smaller step is left out.
    """

    def __init__(self, sampler: Sampler[Crop], batch_size: int, place: Place, *, drop_last: bool = False) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.place = place
        self.drop_last = drop_last

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]  # all of ours have a length
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[list[Crop]]:
        crops = list(self.sampler)
        for step in range(len(self)):
            of_step = crops[step * self.batch_size : (step + 1) * self.batch_size]
            yield of_step[self.part(step)]

    def n_of(self, step: int) -> int:
        """Return how many windows a step of an epoch has in all processes."""
        n = len(self.sampler)  # type: ignore[arg-type]  # as above
        return min(self.batch_size, n - step * self.batch_size)

    def part(self, step: int) -> slice:
        """Return which of them are this process's: as many as others have, or one more or less."""
        n, rank, size = self.n_of(step), self.place.rank, self.place.size
        return slice(n * rank // size, n * (rank + 1) // size)


def check_shares(shares: StepShares) -> None:
    """Refuse a training in which a step has no image for some process.

    Raises:
        UsageError: with both numbers.
    """
    fewest = min(shares.n_of(0), shares.n_of(len(shares) - 1))
    if fewest < shares.place.size:
        raise UsageError(
            f"{shares.place.size} processes are to train together, but some step has only {count(fewest, 'image')}; "
            "expected one for each process: use fewer --devices, or a larger --batch-size"
        )


class SharedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that in training normalizes by the images of all processes, on any device.

    Its weights and running averages have the names and values of the batch norm that it replaces.
    """

    @classmethod
    def replace_in(cls, module: nn.Module) -> None:
        """Replace the batch norms of a network."""
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = cls(child.num_features, child.eps, child.momentum).to(child.weight)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)
            else:
                cls.replace_in(child)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize float [N, C, H, W]."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        values = x if x.dtype is torch.float64 else x.float()  # Under autocast, as torch's own batch norm.
        mean, variance, n = _moments(values.detach())
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1).clamp_min(1), self.momentum)
        normalize: Any = _Normalize
        made: Tensor = normalize.apply(values, self.weight, self.bias, mean, (variance + self.eps).rsqrt(), n)
        return made.to(x.dtype)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance of each channel over all processes, float32 [C], and of how many values, float32 [1].

    Merged from those of each process (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979): sums of squares would lose what is small beside the mean.
    """
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
    n = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype, device=x.device)
    own = torch.cat([mean, variance, n])
    all_of_them = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(all_of_them, own)
    found = torch.stack(all_of_them)
    means, variances, counts = found[:, : len(mean)], found[:, len(mean) : -1], found[:, -1:]
    shares = counts / counts.sum()
    mean = (means * shares).sum(dim=0)
    variance = ((variances + (means - mean).square()) * shares).sum(dim=0)
    return mean, variance, counts.sum(dim=0)


class _Normalize(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, whose gradient knows that mean and deviation are those of all processes.

    The gradient is that of batch normalization (Ioffe and Szegedy 2015, section 3), its sums over all processes.
    """

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, n: Tensor
    ) -> Tensor:
        units = (x - _as_channels(mean)) * _as_channels(inverse)
        context.save_for_backward(units, weight, inverse, n)
        return units * _as_channels(weight) + _as_channels(bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        units, weight, inverse, n = context.saved_tensors
        of_bias = gradient.sum(dim=(0, 2, 3))
        of_weight = (gradient * units).sum(dim=(0, 2, 3))
        sums = torch.stack([of_bias, of_weight])
        distributed.all_reduce(sums)
        means = sums / n
        of_x = gradient - _as_channels(means[0]) - units * _as_channels(means[1])
        return of_x * _as_channels(weight * inverse), of_weight, of_bias, None, None, None


def _as_channels(values: Tensor) -> Tensor:
    return values[None, :, None, None]


def total_of(values: Tensor) -> Tensor:
    """Return the sums of a tensor's values over all processes."""
    total = values.clone()
    distributed.all_reduce(total)
    return total


class PlacedEnvironment(ClusterEnvironment):
    """Tells Lightning which process this is; the connection between them is there already.

    Args:
        place: of this process.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        """Whether Lightning need not start any."""
        return True

    @property
    def main_address(self) -> str:
        """Not used: see the class."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Not used: see the class."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Return whether the environment names such a cluster; it is given, never detected."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return self.place.size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the place is fixed."""

    def global_rank(self) -> int:
        """Return which of all processes this is."""
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the place is fixed."""

    def local_rank(self) -> int:
        """Return which of this machine's processes this is."""
        return self.place.local_rank

    def node_rank(self) -> int:
        """Return which of the machines this is."""
        return self.place.rank // self.place.local_size
