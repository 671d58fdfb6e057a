"""The network on patches of pixels: where it looks, what it is trained on, and what it says about a defect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vae_edge.train.features import table as table_module
from vae_edge.train.features.patches import MARGIN, PATCH, PatchResidual, patch_convolutions, patch_vae
from vae_edge.train.features.settings import FeatureSettings, PositionVae
from vae_edge.train.features.table import PIXELS_FILE, PatchTable, make_patch_table
from vae_edge.train.features.training import residuals_of, train_on_table
from vae_edge.train.model.input_layers import PhotometricNormalization
from vae_edge.train.model.input_settings import Photometric

SIDE = PATCH + 2 * MARGIN
SMALL = PositionVae(n_hidden=32, latent_vec_size=4, batch_size=512)
SIZE = (48, 64)


_EXACT = "donot_use_mm_for_euclid_dist"


def stripes(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures of a regular weave with noise, uint8 [n, *SIZE, 3]."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[: SIZE[0], : SIZE[1]]
    weave = 120 + 50 * np.sin(down * 0.8) * np.sin(across * 0.8)
    pictures = weave[None, :, :, None] + random.normal(scale=4, size=(n, *SIZE, 3))
    return np.asarray(np.clip(pictures, 0, 255), np.uint8)


def table_of(images: NDArray[np.uint8], photometric: Photometric = Photometric.NONE) -> PatchTable:
    return make_patch_table(PhotometricNormalization(photometric, *SIZE), images)


def test_the_convolutions_see_what_the_trained_layers_were_drawn() -> None:
    torch.manual_seed(0)
    vae = patch_vae(SMALL)
    table = table_of(stripes(4))
    mean, deviation = table.channel_statistics(range(4))
    for _ in range(3):
        vae(table.draw(range(4), 64, torch.Generator().manual_seed(1), mean, deviation)[0])
    vae.eval()
    (pixels,) = table.batches([0])
    x = (pixels - mean) / deviation
    made = patch_convolutions(vae)(x)
    padded = torch.nn.functional.pad(x, (MARGIN,) * 4)
    for row, column in ((0, 0), (2, 5), (5, 7)):
        patch = padded[:, :, row * PATCH : row * PATCH + SIDE, column * PATCH : column * PATCH + SIDE]
        expected = vae(patch.flatten(1)).reconstruction[0]
        assert torch.allclose(made[0, :, row, column], expected, atol=1e-4)


def test_what_is_drawn_is_a_patch_and_its_middle() -> None:
    table = table_of(stripes(3))
    mean, deviation = table.channel_statistics(range(3))
    x, target = table.draw(range(3), 50, torch.Generator().manual_seed(0), mean, deviation)
    middle = x.reshape(50, 3, SIDE, SIDE)[:, :, MARGIN : MARGIN + PATCH, MARGIN : MARGIN + PATCH]
    assert torch.equal(target.reshape(50, 3, PATCH, PATCH), middle)


def test_every_patch_that_is_drawn_is_in_the_chosen_picture() -> None:
    table = table_of(np.random.default_rng(2).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8))
    mean, deviation = table.channel_statistics([1])
    x, _ = table.draw([1], 40, torch.Generator().manual_seed(0), mean, deviation)
    lit = (torch.from_numpy(table.values[1].astype(np.float32)).permute(2, 0, 1)[None] - mean) / deviation
    patches = torch.nn.functional.unfold(lit.nan_to_num(0.0), SIDE)[0].T
    assert torch.cdist(x, patches, compute_mode=_EXACT).min(dim=1).values.max() < 1e-2


def test_only_the_chosen_pictures_are_drawn_and_measured() -> None:
    images = np.concatenate([stripes(2), np.full((1, *SIZE, 3), 255, np.uint8)])
    table = table_of(images)
    mean, deviation = table.channel_statistics([0, 1])
    pixels = images[:2].astype(np.float64) / 127.5 - 1
    assert np.allclose(mean.flatten(), pixels.mean(axis=(0, 1, 2)), atol=1e-5)
    spread = np.sqrt(pixels.reshape(-1, 3).var(axis=0).mean())
    assert deviation.flatten().tolist() == pytest.approx([spread] * 3, rel=1e-4)
    x, _ = table.draw([0, 1], 200, torch.Generator().manual_seed(0), mean, deviation)
    white = float(((1 - mean) / deviation).min())
    assert x.max() < white


def test_the_residual_is_that_of_the_reconstruction_at_every_fourth_pixel() -> None:
    vae = patch_convolutions(patch_vae(SMALL).eval())
    mean, deviation = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    residual = PatchResidual(vae, mean, deviation)
    pixels = torch.rand(2, 3, *SIZE)
    made = residual(pixels)
    assert made.shape == (2, 1, SIZE[0] // 4, SIZE[1] // 4)
    blocks = vae(pixels).reshape(2, 3, PATCH, PATCH, SIZE[0] // PATCH, SIZE[1] // PATCH)
    reconstruction = blocks.permute(0, 1, 4, 2, 5, 3).reshape(2, 3, *SIZE)
    squared = (pixels - reconstruction).square().mean(dim=1)
    assert torch.allclose(made[1, 0, 3, 2], squared[1, 12:16, 8:12].mean(), atol=1e-5)


@pytest.mark.parametrize("photometric", [Photometric.NONE, Photometric.IMAGE])
def test_it_finds_a_broken_thread(photometric: Photometric) -> None:
    images = stripes(12)
    images[11, 20:36, 30:32] = 200
    table = table_of(images, photometric)
    settings = FeatureSettings(n_steps=80).with_pixels().model_copy(update={"pixels": SMALL})
    model = train_on_table(table, range(8), settings, seed=0)
    normal, strange = residuals_of(model, table, [8, 9, 10]), residuals_of(model, table, [11])
    assert strange[0, 0, 5:9, 7].mean() > 3 * normal.mean()
    assert strange[0, 0, :, :6].mean() < 1.5 * normal.mean()


def test_pictures_of_one_colour_have_a_finite_residual() -> None:
    table = table_of(np.full((4, *SIZE, 3), 90, np.uint8))
    settings = FeatureSettings(n_steps=5).with_pixels().model_copy(update={"pixels": SMALL})
    model = train_on_table(table, range(3), settings, seed=0)
    assert torch.isfinite(residuals_of(model, table, [3])).all()


def test_a_large_table_is_a_file_and_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light, images = PhotometricNormalization(Photometric.IMAGE, *SIZE), stripes(9)
    in_memory = make_patch_table(light, images, tmp_path)
    assert not (tmp_path / PIXELS_FILE).exists()
    monkeypatch.setattr(table_module, "MOST_BYTES_IN_MEMORY", 1000)
    on_disk = make_patch_table(light, images, tmp_path)
    assert (tmp_path / PIXELS_FILE).stat().st_size == on_disk.values.nbytes
    assert np.array_equal(in_memory.values, on_disk.values, equal_nan=True)
    first = [batch for table in (in_memory, on_disk) for batch in table.batches([2, 7])]
    assert torch.equal(first[0], first[1])


def test_beyond_the_edges_there_is_the_mean() -> None:
    table = table_of(np.full((2, *SIZE, 3), 200, np.uint8))
    mean, deviation = table.channel_statistics([0, 1])
    x, _ = table.draw([0, 1], 300, torch.Generator().manual_seed(0), mean, deviation)
    assert x.abs().max() < 0.5
