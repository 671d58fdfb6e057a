"""Which files an inspection set is made of.

Three layouts are understood:

- `mvtec`, that of MVTec AD (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021): `ROOT/train/good`,
  `ROOT/test/good`, `ROOT/test/<defect>` and `ROOT/ground_truth/<defect>/<name>_mask.png`; a mask may also be called
  `<name>.png` and have any image suffix.
- `folder`, one folder of good parts: every image in it and below it is for training, there is nothing to test on.
- `folders`, given by name: `normal` for training; optionally `normal_test`, `abnormal` (its sub-folders are the defect
  classes; images directly in it belong to a class named after the folder) and `masks`, arranged like `abnormal`.

A fourth, `listed`, is no layout: each file was named; see `vae_edge.train.listed_files`.

Folders are searched with everything below them. Hidden files and folders are passed over; files that are not images by
their name are passed over and counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vae_edge.errors import InputError
from vae_edge.image import is_image_file
from vae_edge.outside import user_path
from vae_edge.records import check_recordable

Layout = Literal["mvtec", "folder", "folders", "listed"]


@dataclass(frozen=True)
class FoundImage:
    """An image, its name in the set, its defect class and its mask."""

    path: Path
    name: str
    defect: str | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class FoundFiles:
    """All files of a set."""

    root: Path
    layout: Layout
    train_folder: Path
    train: Sequence[FoundImage]
    test: Sequence[FoundImage]
    unmatched_masks: Sequence[Path]
    n_ignored: int


def find_below(root: Path) -> FoundFiles:
    """Find the files below one folder, in the layout `mvtec` or `folder`.

    Raises:
        InputError: the folder holds several products, or parts of another layout.
    """
    good = root / "train" / "good"
    if not good.is_dir():
        return _find_in_one_folder(root)
    train, n_ignored = _list_images(good)
    test: list[FoundImage] = []
    unmatched: list[Path] = []
    ground_truth = root / "ground_truth"
    for folder in _subfolders(root / "test"):
        images, n_other = _list_images(folder)
        n_ignored += n_other
        defect = None if folder.name == "good" else folder.name
        masks = _list_images(ground_truth / folder.name)[0] if defect else []
        items, left = _match_masks(images, folder, masks, ground_truth / folder.name, defect, root)
        test += items
        unmatched += left
    known = {folder.name for folder in _subfolders(root / "test")} | {"good"}
    for folder in _subfolders(ground_truth):
        if folder.name not in known:
            unmatched += _list_images(folder)[0]
    return FoundFiles(
        root, "mvtec", good, [FoundImage(path, _relative(path, root)) for path in train], test, unmatched, n_ignored
    )


def _find_in_one_folder(root: Path) -> FoundFiles:
    products = [folder.name for folder in _subfolders(root) if (folder / "train" / "good").is_dir()]
    if products:
        raise InputError(
            f"{root} holds one folder for each product ({', '.join(products)}); expected one product: "
            f"give {root / products[0]}, for example"
        )
    # Taking everything below for a good part would train on the defects.
    split = [name for name in ("train", "test", "ground_truth") if (root / name).is_dir()]
    if split:
        raise InputError(
            f"{root} has a folder {split[0]}/ but no train/good/; expected train/good, test/good, test/<defect> and "
            "ground_truth/<defect>, or a folder of good parts alone: rename the folders or name the one of good parts"
        )
    images, n_ignored = _list_images(root)
    return FoundFiles(
        root, "folder", root, [FoundImage(path, _relative(path, root)) for path in images], [], [], n_ignored
    )


def find_by_name(normal: Path, normal_test: Path | None, abnormal: Path | None, masks: Path | None) -> FoundFiles:
    """Find the files of folders given by name, the layout `folders`.

    Raises:
        InputError: masks without abnormal images, or one folder within another.
    """
    if masks is not None and abnormal is None:
        raise InputError(f"masks were given ({masks}) without abnormal images; give the folder of those too")
    named = [("normal", normal), ("normal_test", normal_test), ("abnormal", abnormal)]
    folders = [(role, folder, folder.resolve()) for role, folder in named if folder is not None]
    for i, (role, folder, place) in enumerate(folders):
        for other_role, other, other_place in folders[i + 1 :]:
            if place == other_place or place in other_place.parents or other_place in place.parents:
                raise InputError(
                    f"{role} ({folder}) and {other_role} ({other}) overlap; expected folders apart from each other"
                )
    images, n_ignored = _list_images(normal)
    train = [FoundImage(path, f"normal/{_relative(path, normal)}") for path in images]
    test: list[FoundImage] = []
    unmatched: list[Path] = []
    if normal_test is not None:
        images, n_other = _list_images(normal_test)
        n_ignored += n_other
        test += [FoundImage(path, f"normal_test/{_relative(path, normal_test)}") for path in images]
    if abnormal is not None:
        images, n_other = _list_images(abnormal)
        n_ignored += n_other
        mask_files = _list_images(masks)[0] if masks is not None else []
        items, unmatched = _match_masks(images, abnormal, mask_files, masks or abnormal, None, abnormal)
        for item in items:
            parts = Path(item.name).parts
            defect = parts[0] if len(parts) > 1 else abnormal.resolve().name
            test.append(FoundImage(item.path, f"abnormal/{item.name}", defect, item.mask))
    return FoundFiles(normal, "folders", normal, train, test, unmatched, n_ignored)


def _match_masks(
    images: Sequence[Path], folder: Path, masks: Sequence[Path], mask_folder: Path, defect: str | None, root: Path
) -> tuple[list[FoundImage], list[Path]]:
    """Give each image the mask of its name, `<stem>_mask` before `<stem>`; return also the masks left over."""
    by_stem: dict[str, Path] = {}
    for mask in masks:
        by_stem.setdefault(_relative(mask.with_suffix(""), mask_folder), mask)
    items = []
    used = set()
    for image in images:
        stem = _relative(image.with_suffix(""), folder)
        mask_file = by_stem.get(f"{stem}_mask", by_stem.get(stem))
        used.add(mask_file)
        items.append(FoundImage(image, _relative(image, root), defect, mask_file))
    return items, [mask for mask in masks if mask not in used]


def existing_folder(path: str | Path, what: str) -> Path:
    """Return a folder that is there.

    Raises:
        InputError: it is missing, a file or no UTF-8; `what` says what it should be.
    """
    folder = user_path(path)
    check_recordable(folder)
    if not folder.exists():
        raise InputError(f"{folder} does not exist; expected {what}: check the name")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; expected {what}: give the folder that holds it")
    return folder


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_images(folder: Path) -> tuple[list[Path], int]:
    """Return the images in a folder and below it, sorted by name, and the number of other files.

    Links to folders are followed, each folder is visited once: a link back up does not loop.
    """
    images: list[Path] = []
    n_other = 0
    seen = set()
    for current, names, files in os.walk(folder, followlinks=True):
        place = Path(current)
        if place.resolve() in seen:
            names.clear()
            continue
        seen.add(place.resolve())
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in files:
            path = place / file
            # A link to nowhere counts: an image that is missing must not go unnoticed.
            if file.startswith(".") or not (path.is_file() or path.is_symlink()):
                continue
            if is_image_file(path):
                check_recordable(path)
                images.append(path)
            else:
                n_other += 1
    return sorted(images, key=lambda path: _relative(path, folder)), n_other


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
