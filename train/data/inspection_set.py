"""An inspection set: images of good parts to train on, and good and defective ones to test on.

As files on disk (`open_inspection_set`; `vae_edge.train.data.layout` says how the folders are read), as a list in which
every file is named (`ListedFiles`: what somebody else's data module found, as a run records it, since what drew it up
may have divided the images at random and need not be there when the run continues or is exported), and as arrays
(`load_images`, `load_masks`), decoded by several threads, in order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import Preparation, load_prepared, max_pixels_in_force, most_bytes
from vae_edge.kept import NORMAL, UNLABELLED, is_kept_folder, read_kept
from vae_edge.picture_files.listing import IMAGE_SUFFIXES
from vae_edge.platform.atomic import sha256_file
from vae_edge.platform.work import Progress
from vae_edge.records import Record
from vae_edge.train.data.layout import FolderUse, Layout, describe_uses, existing_folder, find_below
from vae_edge.train.data.masks import Masks, read_masks, resize_mask
from vae_edge.train.data.named_folders import find_by_name

N_WORKERS = max(2, min(8, os.cpu_count() or 2))
"""Threads that read and decode; OpenCV and hashlib release the interpreter while they work."""


@dataclass(frozen=True)
class ImageFile:
    """One image of an inspection set."""

    path: Path
    name: str
    """Path relative to the set's root with forward slashes; unique in the set."""
    sha256: str
    """Of the file's bytes, 64 hexadecimal digits."""
    defect: str | None = None
    """Defect class, such as "scratch"; None for a good part."""
    mask: Path | None = None
    """Where the defect is, as an image that is black elsewhere."""
    further_masks: tuple[Path, ...] = ()
    """More of them, where each marks another defect."""

    @property
    def masks(self) -> tuple[Path, ...]:
        """All masks, to be united; see `vae_edge.train.data.masks.read_masks`."""
        return () if self.mask is None else (self.mask, *self.further_masks)

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect is not None


@dataclass(frozen=True)
class InspectionSet:
    """The images of one product, sorted by name."""

    root: Path
    layout: Layout
    train: tuple[ImageFile, ...]
    """Good parts to train on."""
    test: tuple[ImageFile, ...] = ()
    """Good and defective parts to measure on; empty where there is nothing to test on."""
    unmatched_masks: tuple[Path, ...] = ()
    """Masks that belong to no image."""
    n_ignored: int = 0
    """Files passed over because their names do not end like an image's."""
    uses: tuple[FolderUse, ...] = ()
    """What the images of each folder were taken for, and what was passed over."""
    dangling: tuple[Path, ...] = ()
    """Broken links, left out."""
    more_normals: frozenset[str] = frozenset()
    """SHA-256 of the images in `train` that only train the network, for they do not represent the others: see
    `with_more_normals`."""

    def describe(self) -> list[str]:
        """Describe in a line for each folder what its images were taken for, and what was passed over and why."""
        return describe_uses(self.uses)

    @property
    def defects(self) -> tuple[str, ...]:
        """Defect classes of the test images, sorted."""
        return tuple(sorted({image.defect for image in self.test if image.defect is not None}))


def open_inspection_set(
    root: str | Path | None = None,
    *,
    normal: str | Path | None = None,
    abnormal: str | Path | None = None,
    masks: str | Path | None = None,
    normal_test: str | Path | None = None,
    can_name_folders: bool = True,
    progress: Progress | None = None,
) -> InspectionSet:
    """List an inspection set's images and hash their bytes; nothing is decoded (see `check_inspection_set`).

    Args:
        root: a folder in the layout `mvtec` or `folder`; or else the following four.
        normal: folder of good parts to train on.
        abnormal: folder of defective parts, one sub-folder for each defect class.
        masks: folder of masks, arranged like `abnormal`.
        normal_test: folder of good parts to test on.
        can_name_folders: whether whoever gave `root` could give the four instead; messages then advise it.
        progress: called with files hashed so far and their total.

    Raises:
        InputError: a folder is missing, there is no image to train on, the layout cannot be told, or a file cannot
            be read.
    """
    if root is not None and normal is None:
        if abnormal is not None or masks is not None or normal_test is not None:
            raise InputError(
                f"abnormal, masks and normal_test cannot be combined with the folder {root}; they belong to "
                "normal=FOLDER"
            )
        folder = existing_folder(root, "a folder of images")
        if is_kept_folder(folder):
            raise InputError(
                f"{folder} is a folder of kept pictures, of which only some have a label; pass it with --more-normals "
                "(more_normals), and a folder of good parts with --data"
            )
        found = find_below(folder, can_name_folders=can_name_folders)
    elif normal is not None and root is None:
        found = find_by_name(
            existing_folder(normal, "a folder of good parts"),
            existing_folder(normal_test, "a folder of good parts to test on") if normal_test is not None else None,
            existing_folder(abnormal, "a folder of defective parts") if abnormal is not None else None,
            existing_folder(masks, "a folder of masks") if masks is not None else None,
        )
    else:
        raise InputError(
            f"the data was given as root={root}, normal={normal}; expected one of the two: a folder in the layout of "
            "MVTec AD or of good parts only, or a named folder of good parts (normal=...)"
        )
    if not found.train:
        passed_over = describe_uses(use for use in found.uses if not use.is_used)
        there_is = "; ".join([f"{found.n_ignored} other files", *passed_over])
        raise InputError(
            f"{found.train_folder} has no image ({there_is}); expected images of good parts "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}) to train on: put them there or pass another folder"
        )
    hashes = iter(hash_files([item.path for item in (*found.train, *found.test)], progress))
    train = tuple(ImageFile(item.path, item.name, next(hashes)) for item in found.train)
    test = tuple(
        ImageFile(
            item.path, item.name, next(hashes), item.defect, next(iter(item.masks), None), further_masks=item.masks[1:]
        )
        for item in found.test
    )
    return InspectionSet(
        found.root,
        found.layout,
        train,
        test,
        tuple(found.unmatched_masks),
        found.n_ignored,
        tuple(found.uses),
        tuple(found.dangling),
    )


def with_more_normals(inspection_set: InspectionSet, folder: Path, progress: Progress | None = None) -> InspectionSet:
    """Add the pictures of a folder that a person labelled as normal; their hashes are in `more_normals`.

    Those with the bytes of an image of the set are left out.

    Args:
        inspection_set: what was found already.
        folder: of kept pictures, see `vae_edge.kept`.
        progress: called with files hashed so far and their total.

    Raises:
        InputError: it is not such a folder, none of its pictures is labelled as normal, or one cannot be read.
    """
    if not is_kept_folder(folder):
        raise InputError(f"{folder} is not a folder of kept pictures; expected one that vae-run --keep-dir has filled")
    paths = read_kept(folder).normal
    if not paths:
        raise InputError(
            f"{folder} has no picture in {NORMAL}/; move good parts there from {UNLABELLED}/, or leave it out"
        )
    known = {image.sha256 for image in (*inspection_set.train, *inspection_set.test)}
    added = {
        sha256: ImageFile(path, f"{folder.name}/{NORMAL}/{path.name}", sha256)
        for path, sha256 in zip(paths, hash_files(paths, progress), strict=True)
        if sha256 not in known
    }
    return replace(inspection_set, train=(*inspection_set.train, *added.values()), more_normals=frozenset(added))


def fingerprint(images: Iterable[ImageFile]) -> str:
    """Return a SHA-256 over the images' contents that depends neither on their names nor on their order."""
    return hashlib.sha256("\n".join(sorted(image.sha256 for image in images)).encode()).hexdigest()


def spread(images: Sequence[_In], most: int) -> tuple[_In, ...]:
    """Return at most this many of the images, evenly spread over all of them, in order, the first one among them."""
    return tuple(images[place] for place in spread_places(len(images), most))


def spread_places(n: int, most: int) -> list[int]:
    """Return at most this many of 0 to n - 1, evenly spread over all of them, in order, 0 among them."""
    kept = min(n, most)
    return [i * n // kept for i in range(kept)]


def hash_files(paths: Sequence[Path], progress: Progress | None) -> list[str]:
    """Return the SHA-256 of each file, in order.

    Raises:
        InputError: a file cannot be read.
    """
    hashes = []
    with ThreadPoolExecutor(N_WORKERS) as pool:
        for done, value in enumerate(pool.map(_hash_file, paths), 1):
            hashes.append(value)
            if progress is not None:
                progress(done, len(paths))
    return hashes


def _hash_file(path: Path) -> str:
    """Return a file's SHA-256; of one that is too large for a picture only its name's, for it is left out unread."""
    try:
        if path.stat().st_size > most_bytes(max_pixels_in_force(None)):
            return hashlib.sha256(os.fsencode(path)).hexdigest()
        return sha256_file(path)
    except OSError as error:
        raise InputError(
            f"{path} could not be read ({error.strerror}); check its permissions and the target of a link, or remove it"
        ) from error


class ListedImage(Record):
    """One image."""

    path: str
    """From the list's root, with forward slashes; it is the image's name in the set."""
    defect: str | None = None
    """Defect class; None for a good part."""
    mask: str | None = None
    """Where the defect is, from the list's root."""
    further_masks: tuple[str, ...] = ()
    """More of them, where each marks another defect."""


class ListedFiles(Record):
    """The images of one product, sorted by folder and name."""

    root: str
    """The folder that all of them lie in or below."""
    train: tuple[ListedImage, ...]
    """Good parts to train on."""
    test: tuple[ListedImage, ...] = ()
    """Good and defective parts to measure on."""
    given_by: str
    """What named them, such as "MVTecAD"."""
    remarks: tuple[str, ...] = ()
    """What is to be said about how the list came about, in sentences."""

    def at(self, root: str | Path) -> ListedFiles:
        """Return the same list below another root."""
        return self.model_copy(update={"root": str(root)})

    @property
    def is_there(self) -> bool:
        """Whether the first image is where the list says."""
        return bool(self.train) and (Path(self.root) / self.train[0].path).is_file()

    def open(self, progress: Progress | None = None) -> InspectionSet:
        """Hash the images' bytes; nothing is decoded.

        Args:
            progress: called with files hashed so far and their total.

        Raises:
            InputError: there is no image to train on, the root is missing, or a file cannot be read.
        """
        if not self.train:
            raise InputError(f"{self.given_by} has no image to train on; expected images of good parts")
        root = existing_folder(self.root, f"the folder of the images that {self.given_by} named")
        both = (*self.train, *self.test)
        hashes = hash_files([root / image.path for image in both], progress)
        images = tuple(
            ImageFile(
                root / image.path,
                image.path,
                sha256,
                image.defect,
                None if image.mask is None else root / image.mask,
                tuple(root / mask for mask in image.further_masks),
            )
            for image, sha256 in zip(both, hashes, strict=True)
        )
        n = len(self.train)
        return InspectionSet(root, "listed", images[:n], images[n:])


def by_place(path: str) -> tuple[str, ...]:
    """Return a key that sorts paths folder by folder, as `open_inspection_set` lists them."""
    return PurePosixPath(path).parts


_In = TypeVar("_In")
_Out = TypeVar("_Out")


def load_images(
    files: Sequence[ImageFile], preparation: Preparation, progress: Progress | None = None
) -> NDArray[np.uint8]:
    """Decode and resize images, the way the device does.

    Returns:
        uint8 [N, H, W, 3] RGB, in the order of `files`.

    Raises:
        InputError: a file cannot be decoded; `check_inspection_set` finds those beforehand.
    """
    images = np.empty((len(files), preparation.height, preparation.width, 3), dtype=np.uint8)

    def load(path: Path) -> NDArray[np.uint8]:
        return load_prepared(path, preparation)

    for i, image in enumerate(map_in_threads(load, [file.path for file in files], progress)):
        images[i] = image
    return images


def load_masks(files: Sequence[ImageFile], preparation: Preparation) -> Masks:
    """Decode masks, unite those of one image, and bring them to the model's size without losing thin defects.

    Raises:
        InputError: a mask cannot be decoded.
    """
    size = (preparation.height, preparation.width)
    masks = np.zeros((len(files), *size), dtype=np.bool_)
    has_mask = np.array([file.mask is not None or not file.is_anomalous for file in files], dtype=np.bool_)
    chosen = [(i, file.masks) for i, file in enumerate(files) if file.is_anomalous and file.masks]

    def load(paths: Sequence[Path]) -> NDArray[np.bool_]:
        return resize_mask(read_masks(paths), *size)

    for (i, _), mask in zip(chosen, map_in_threads(load, [paths for _, paths in chosen]), strict=True):
        masks[i] = mask
    return Masks(masks, has_mask)


def map_in_threads(
    step: Callable[[_In], _Out], items: Sequence[_In], progress: Progress | None = None
) -> Iterator[_Out]:
    """Yield `step(item)` for each item in order; several run at once, and few results wait to be taken."""
    with ThreadPoolExecutor(N_WORKERS) as pool:
        # In blocks: all at once would hold every decoded image in memory while a slow consumer takes one by one.
        block = 8 * N_WORKERS
        done = 0
        for start in range(0, len(items), block):
            for result in pool.map(step, items[start : start + block]):
                done += 1
                yield result
                if progress is not None:
                    progress(done, len(items))
