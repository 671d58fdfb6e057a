"""What is ignored does not train: no gradient depends on it, nor does the network learn to reconstruct its paint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.train.tiny_models import surfaces
from vae_edge.ignored_region import IgnoredRegion
from vae_edge.train.loop.batches import even_light, with_mask
from vae_edge.train.loop.training import VaeTraining
from vae_edge.train.model.input_settings import InputSettings, Tiling
from vae_edge.train.model.network import Vae, VaeOutput
from vae_edge.train.model.presets import Augmentation, Recipe

SIZE = (48, 64)
WHOLE = Tiling.whole(*SIZE)
WINDOW = np.s_[:, 8:40, 20:52]
"""Of the size of a tile, with a part of the region in it."""


def region() -> IgnoredRegion:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[5:33, 3:40] = True
    return IgnoredRegion.of_mask(mask)


def batch_of(images: NDArray[np.uint8], window: tuple[slice, ...] | None = None) -> torch.Tensor:
    settings = InputSettings(WHOLE, ignored=region())
    batch = with_mask(even_light(images, settings), settings.ignored)
    return torch.from_numpy(batch if window is None else batch[window])


def training(side: tuple[int, int]) -> VaeTraining:
    torch.manual_seed(0)
    module = VaeTraining(
        Vae(4, 8, image_size=side).train(), Recipe(augmentation=(Augmentation.FLIPS, Augmentation.LIGHT)), 5, 10
    )
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]  # no Trainer logs here
    return module


@pytest.fixture(autouse=True)
def in_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step believe that it is one of a trainer's."""
    for name in ("current_epoch", "global_rank", "global_step"):
        monkeypatch.setattr(VaeTraining, name, property(lambda _: 0))


@pytest.mark.parametrize("window", [None, WINDOW], ids=["whole", "tile"])
def test_no_gradient_depends_on_what_lies_there(window: tuple[slice, ...] | None) -> None:
    images = surfaces(8, *SIZE)
    changed = images.copy()
    changed[:, region().mask] = np.random.default_rng(1).integers(0, 256, (8, int(region().mask.sum()), 3))
    beside = images.copy()
    beside[:, 40:46, 44:60] = 255 - beside[:, 40:46, 44:60]
    gradients = []
    for each in (images, changed, beside):
        batch = batch_of(each, window)
        module = training((batch.shape[1], batch.shape[2]))
        torch.autograd.backward(module.training_step(batch, 0))
        gradients.append([parameter.grad for parameter in module.parameters()])
    for first, second in zip(*gradients[:2], strict=True):
        assert first is not None
        assert second is not None
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    if window is None:
        assert any(not torch.equal(one, other) for one, other in zip(gradients[0], gradients[2], strict=True))  # type: ignore[arg-type]  # none is None


@pytest.mark.parametrize("window", [None, WINDOW], ids=["whole", "tile"])
def test_how_the_paint_is_reconstructed_is_not_in_the_loss(window: tuple[slice, ...] | None) -> None:
    batch = batch_of(surfaces(16, *SIZE), window)
    module = training((batch.shape[1], batch.shape[2]))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(_: object, inputs: tuple[torch.Tensor], output: VaeOutput) -> None:
        output.reconstruction.retain_grad()
        seen.append((inputs[0], output.reconstruction))

    module.vae.register_forward_hook(look)
    torch.autograd.backward(module.training_step(batch, 0))
    ((pixels, reconstruction),) = seen
    assert reconstruction.grad is not None
    counts = reconstruction.grad.abs().sum(dim=1) > 0
    n_kept = int((batch[0, :, :, 3] > 0).sum())
    assert 0 < n_kept < counts[0].numel()
    where = set()
    for picture, kept in zip(pixels, counts, strict=True):
        assert int(kept.sum()) == n_kept
        # Mirrored as the picture is: what does not count is the paint, of one colour.
        assert float(picture[:, ~kept].std(dim=1).max()) < 1e-6
        assert float(picture[:, kept].std(dim=1).max()) > 1e-2
        where.add(tuple(kept.flatten().tolist()))
    assert len(where) == 4


def test_the_held_out_loss_is_of_the_kept_pixels() -> None:
    vae, x = Vae(4, 8, image_size=(32, 32)), torch.rand(3, 3, 32, 32)
    kept = torch.rand(3, 1, 32, 32) < 0.3
    output = VaeOutput(torch.rand(3, 3, 32, 32), torch.randn(3, 8), torch.randn(3, 8))
    chosen = kept.expand_as(x)
    expected = (output.reconstruction[chosen] - x[chosen]).square().mean()
    torch.testing.assert_close(vae.loss(output, x, kept).reconstruction, expected)
    assert float(vae.loss(output, x, torch.zeros_like(kept)).reconstruction) == 0
    module, batch = training(SIZE), batch_of(surfaces(4, *SIZE))
    found: list[float] = []
    module.log_dict = lambda values, **_: found.append(values["held_out_reconstruction"].item())  # type: ignore[method-assign]  # no Trainer logs here
    module.validation_step(batch, 0)
    module.validation_step(batch[..., :3], 0)
    assert found[0] != found[1]


def test_without_a_region_batches_are_as_they_were() -> None:
    images = surfaces(3, *SIZE)
    assert with_mask(images, None) is images
