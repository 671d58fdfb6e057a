"""Real networks of a few thousand weights, and pictures for them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import ScoringSettings, parse_scoring


def make_vae(height: int = 32, width: int = 32, *, seed: int = 0) -> Vae:
    """Return a network whose batch norms have seen something, so that they are not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = Vae(4, 8, image_size=(height, width)).train()
        with torch.no_grad():
            for _ in range(10):
                vae(torch.rand(8, 3, height, width) * 2 - 1)
    return vae.eval()


def noise(n: int, height: int = 32, width: int = 32, *, seed: int = 0) -> NDArray[np.uint8]:
    """Draw pictures of noise, uint8 [n, height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def surfaces(n: int, height: int = 32, width: int = 32, *, seed: int = 0, light: float = 0.0) -> NDArray[np.uint8]:
    """Draw a regular texture with a little noise, uint8 [n, height, width, 3].

    Args:
        n: pictures.
        height: of each.
        width: of each.
        seed: another one gives other noise and light.
        light: standard deviation of the brightness from picture to picture, of 255.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    texture = 128 + 25 * np.sin(rows / 3) * np.cos(columns / 4)
    values = texture[None] + random.normal(0, 3, (n, height, width)) + random.normal(0, 1, (n, 1, 1)) * light
    return np.repeat(np.clip(np.rint(values), 0, 255).astype(np.uint8)[..., None], 3, axis=3)


def scoring_of(text: str) -> ScoringSettings:
    """Read a composition."""
    scoring = parse_scoring(text)
    assert scoring is not None
    return scoring


def as_pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn pictures into what a network takes, by arithmetic of its own: float32 [n, 3, H, W], -1 to 1."""
    return torch.from_numpy((images.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2).copy())


def write_set(folder: Path, *, n_good: int = 80, n_test: int = 6, side: tuple[int, int] = (48, 64)) -> Path:
    """Write a small set of surfaces under changing light in MVTec AD's layout, with two classes of defects."""
    height, width = side
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]

    def surface() -> NDArray[np.uint8]:
        # Lies somewhere else each time, so that it counts as a surface and not as a part.
        turned = columns * np.cos(angle := random.uniform(0, np.pi)) + rows * np.sin(angle)
        values = 120 + 30 * np.sin(turned / 2.5 + random.uniform(0, 6)) + random.normal(0, 3, (height, width))
        values = values * random.uniform(0.5, 1.3) + random.uniform(-30, 30)
        return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[..., None], 3, axis=2)

    def save(name: str, image: NDArray[np.uint8]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), image)

    for number in range(n_good):
        save(f"train/good/{number:03}.png", surface())
    for number in range(n_test):
        save(f"test/good/{number:03}.png", surface())
        for kind, size in (("hole", 8), ("speck", 4)):
            image, mask = surface(), np.zeros((height, width), dtype=np.uint8)
            top, left = int(random.integers(height - size)), int(random.integers(width - size))
            image[top : top + size, left : left + size] = 255
            mask[top : top + size, left : left + size] = 255
            save(f"test/{kind}/{number:03}.png", image)
            save(f"ground_truth/{kind}/{number:03}_mask.png", mask)
    return folder
