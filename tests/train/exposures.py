"""Series of exposures of drawn textures, for tests that keep pictures of the same part together."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_exposures(folder: Path, n_parts: int, n_exposures: int, first_part: int = 0) -> list[Path]:
    """Write pictures of textures at several gains; part 3 at exposure 1 is `part3_1.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part in range(first_part, first_part + n_parts):
        rng = np.random.default_rng(part)
        texture = 110 + 30 * cv2.GaussianBlur(rng.normal(0, 4, (64, 64)), (0, 0), 1.5)
        for i in range(n_exposures):
            picture = texture * (0.6 + 0.3 * i) + rng.normal(0, 2, texture.shape)
            paths.append(folder / f"part{part}_{i}.png")
            cv2.imwrite(str(paths[-1]), np.clip(np.rint(picture), 0, 255).astype(np.uint8))
    return paths
