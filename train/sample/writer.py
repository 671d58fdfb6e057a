"""Write the sample set to disk, in the folder layout of MVTec AD."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError, UsageError
from vae_edge.platform.atomic import claim_name, new_folder
from vae_edge.platform.work import Progress, as_they_end
from vae_edge.train.sample.drawing import (
    PRODUCTS,
    SAMPLE_VERSION,
    SampleSettings,
    defect_kinds,
    draw_defective,
    draw_normal,
)

MARKER = "sample.json"
"""Lies in the folder of each product and says what it was drawn from."""

_MOST_THREADS = 4  # OpenCV and NumPy release the interpreter for long enough to feed about this many.


@dataclass(frozen=True)
class _Task:
    """One image to draw: a good one of a split, or a defective one of a kind."""

    product: str
    split: str
    kind: str
    index: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it gives, relative to the product's folder: the image, and the mask if there is one."""
        image = Path(self.split, self.kind, f"{self.index:03d}.png")
        if self.kind == "good":
            return (image,)
        return image, Path("ground_truth", self.kind, f"{self.index:03d}_mask.png")


def write_sample_set(
    folder: Path,
    products: Sequence[str] = PRODUCTS,
    settings: SampleSettings | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write ``folder/<product>/`` for each product, or reuse it where it is there already.

    A product's folder appears under its name only when it is complete. Its files::

        train/good/000.png ...            uint8 RGB, S x S
        test/good/000.png ...
        test/<kind>/000.png ...
        ground_truth/<kind>/000_mask.png  uint8 grey, S x S: 255 on the defect, 0 elsewhere
        sample.json                       the settings it was drawn from

    Args:
        folder: Where the products' folders go; made if it is missing.
        products: Which products, of ``PRODUCTS``.
        settings: Seed, size and counts; None stands for the defaults.
        progress: Called from this thread after each image with the number done and the number of all images to draw.
            It is not called for what is reused.

    Returns:
        The products' folders, in the order of ``products``.

    Raises:
        InputError: An unknown product or none; a product's folder that holds anything but the same sample set, which
            is not changed; or a folder that cannot be written.
    """
    folder, settings = Path(folder), settings or SampleSettings()
    chosen = list(dict.fromkeys([products] if isinstance(products, str) else products))
    if not chosen:
        raise UsageError(f"No product was given, expected some of {', '.join(PRODUCTS)}; name at least one.")
    tasks = {product: _tasks(product, settings) for product in chosen}
    # Everything is examined before anything is drawn: a refusal must not come after a minute of work.
    missing = [product for product in chosen if not _is_complete(folder / product, product, settings, tasks[product])]
    done, total = 0, sum(len(tasks[product]) for product in missing)
    for product in missing:
        # Another training may be drawing the same set at this moment.
        with claim_name(folder / product, wait=True):
            if _is_complete(folder / product, product, settings, tasks[product]):
                continue
            with new_folder(folder / product, is_claimed=True) as unfinished:
                for parent in {path.parent for task in tasks[product] for path in task.files}:
                    (unfinished / parent).mkdir(parents=True, exist_ok=True)
                with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
                    futures = [pool.submit(_draw_to, unfinished, task, settings) for task in tasks[product]]
                    try:
                        for future in as_they_end(futures):
                            future.result()
                            done += 1
                            if progress is not None:
                                progress(done, total)
                    except BaseException:
                        pool.shutdown(cancel_futures=True)
                        raise
                (unfinished / MARKER).write_text(
                    json.dumps(_marker(product, settings), indent=2) + "\n", encoding="utf-8"
                )
    return [folder / product for product in chosen]


def _tasks(product: str, settings: SampleSettings) -> list[_Task]:
    kinds = defect_kinds(product)
    tasks = [_Task(product, "train", "good", index) for index in range(settings.n_train)]
    tasks += [_Task(product, "test", "good", index) for index in range(settings.n_test_good)]
    tasks += [_Task(product, "test", kind, index) for kind in kinds for index in range(settings.n_test_per_defect)]
    return tasks


def _draw_to(folder: Path, task: _Task, settings: SampleSettings) -> None:
    if task.kind == "good":
        _write_png(folder / task.files[0], draw_normal(task.product, task.index, settings, task.split))
        return
    drawing = draw_defective(task.product, task.kind, task.index, settings)
    image, mask = task.files
    _write_png(folder / image, drawing.image)
    _write_png(folder / mask, drawing.mask)


def _write_png(path: Path, image: NDArray[np.uint8]) -> None:
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    # The sensor's noise never repeats: to look for repetitions costs time and makes the files a tenth larger.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    ok, data = cv2.imencode(".png", pixels, options)
    if not ok:
        raise InputError(f"{path} could not be encoded as PNG; check the installation of OpenCV.")
    # Encoding and writing apart: imwrite fails silently on a full disk and on some names.
    path.write_bytes(data.tobytes())


def _marker(product: str, settings: SampleSettings) -> dict[str, Any]:
    return {"sample_version": SAMPLE_VERSION, "product": product, "settings": settings.as_dict()}


def _difference(found: Any, expected: dict[str, Any]) -> str:
    """Name what differs between two markers: `seed 0 where 1 was requested`."""
    flat_found, flat_expected = (
        {**marker, **marker["settings"]}
        if isinstance(marker, dict) and isinstance(marker.get("settings"), dict)
        else {}
        for marker in (found, expected)
    )
    names = [name for name in flat_expected if name != "settings" and flat_found.get(name) != flat_expected[name]]
    return " and ".join(f"{name} {flat_found.get(name)} instead of {flat_expected[name]}" for name in names)


def _is_complete(folder: Path, product: str, settings: SampleSettings, tasks: list[_Task]) -> bool:
    """Say whether the folder holds this set; False means that it is free, anything else is refused."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{folder} already exists and is not a sample set (no readable {MARKER}), expected an unused name; "
            "choose another folder or move this one away."
        ) from None
    expected = _marker(product, settings)
    if found != expected:
        raise InputError(
            f"{folder} contains a sample set drawn with {_difference(found, expected)}; choose another folder, or "
            "delete this one to draw it again."
        )
    lost = [path for task in tasks for path in task.files if not (folder / path).is_file()]
    if lost:
        raise InputError(
            f"{folder} lacks {len(lost)} of its files, {lost[0]} among them, expected a complete sample set; delete "
            "the folder to draw it again."
        )
    return True
