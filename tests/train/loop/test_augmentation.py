from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.train.tiny_models import as_pixels, surfaces
from vae_edge.train.loop.batches import even_light, flipped, relit
from vae_edge.train.model.input_layers import PhotometricNormalization
from vae_edge.train.model.input_settings import InputSettings, Photometric, Tiling
from vae_edge.train.model.presets import Augmentation


@pytest.fixture
def pixels() -> torch.Tensor:
    return as_pixels(surfaces(64, 32, 40, light=30))


def augmented(pixels: torch.Tensor, kinds: tuple[Augmentation, ...]) -> torch.Tensor:
    return relit(flipped(pixels, kinds), kinds)


@pytest.mark.parametrize("kinds", [(), (Augmentation.NONE,)])
def test_nothing_asked_for_changes_nothing_and_draws_nothing(
    pixels: torch.Tensor, kinds: tuple[Augmentation, ...]
) -> None:
    state = torch.get_rng_state()
    assert torch.equal(augmented(pixels, kinds), pixels)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_picture_is_mirrored_by_itself_either_way_half_of_the_time(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    made = augmented(pixels, (Augmentation.FLIPS,))
    seen = {(): 0, (1,): 0, (2,): 0, (1, 2): 0}
    for before, after in zip(pixels, made, strict=True):
        found = [dims for dims in seen if torch.equal(before.flip(dims), after)]
        assert len(found) == 1
        seen[found[0]] += 1
    assert all(5 <= count <= 30 for count in seen.values())


def test_light_changes_brightness_and_contrast_of_each_picture_and_stays_in_range(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    made = augmented(pixels, (Augmentation.LIGHT,))
    assert float(made.abs().max()) <= 1
    inside = [(before, after) for before, after in zip(pixels, made, strict=True) if float(after.abs().max()) < 1]
    assert len(inside) > 32
    lines = []
    for before, after in inside:
        gain, offset = np.polyfit(before.flatten().double(), after.flatten().double(), 1)
        np.testing.assert_allclose(gain * before + offset, after, atol=1e-4)
        lines.append((gain, offset))
    gains, offsets = np.array(lines).T
    assert len(set(gains.round(4))) == len(inside)
    assert 0.05 < np.log(gains).std() < 0.2
    assert 0.05 < offsets.std() < 0.2


def test_the_same_random_numbers_give_the_same_batch(pixels: torch.Tensor) -> None:
    batches = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        batches.append(augmented(pixels, (Augmentation.LIGHT, Augmentation.FLIPS)))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


class TestEvenLight:
    TILING = Tiling(image_height=48, image_width=40, tile_height=32, tile_width=32)

    def test_without_normalization_the_images_are_passed_on(self) -> None:
        images = surfaces(3, 48, 40)
        assert even_light(images, InputSettings(self.TILING)) is images

    @pytest.mark.parametrize("kind", [Photometric.IMAGE, Photometric.LOCAL])
    def test_what_the_network_is_trained_on_is_what_it_sees_in_the_graph_up_to_rounding(
        self, kind: Photometric
    ) -> None:
        images = surfaces(19, 48, 40, light=40)
        before = images.copy()
        made = even_light(images, InputSettings(self.TILING, kind))
        assert made.dtype == np.uint8
        np.testing.assert_array_equal(images, before)
        expected = PhotometricNormalization(kind, 48, 40)(as_pixels(images)).numpy()
        assert np.abs(as_pixels(made).numpy() - expected).max() <= 0.5 / 127.5 + 1e-5
        assert np.ptp(made.mean(axis=(1, 2, 3))) < 3 < np.ptp(images.mean(axis=(1, 2, 3)))
