"""An inspection set: images of good parts to train on, and good and defective ones to test on, as files on disk.

`vae_edge.train.layout` says how the folders are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vae_edge.atomic import sha256_file
from vae_edge.cache import sample_cache_folder
from vae_edge.errors import InputError, UsageError
from vae_edge.image import IMAGE_SUFFIXES, max_pixels_in_force, most_bytes
from vae_edge.outside import user_path
from vae_edge.progress import Progress
from vae_edge.train.layout import FolderUse, Layout, describe_uses, existing_folder, find_below
from vae_edge.train.named_folders import find_by_name

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
        """All masks, to be united; see `vae_edge.train.masks.read_masks`."""
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
    """Links that lead nowhere, left out."""

    def describe(self) -> list[str]:
        """Say in a line for each folder what its images were taken for, and what was passed over and why."""
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
    progress: Progress | None = None,
) -> InspectionSet:
    """List an inspection set's images and hash their bytes; nothing is decoded (see `check_inspection_set`).

    Args:
        root: a folder in the layout `mvtec` or `folder`; or else the following four.
        normal: folder of good parts to train on.
        abnormal: folder of defective parts, one sub-folder for each defect class.
        masks: folder of masks, arranged like `abnormal`.
        normal_test: folder of good parts to test on.
        progress: called with files hashed so far and their total.

    Raises:
        InputError: a folder is missing, there is no image to train on, the layout cannot be told, or a file cannot
            be read.
    """
    if (root is None) == (normal is None):
        raise InputError(
            f"the data was given as root={root}, normal={normal}; expected one of the two: a folder in the layout of "
            "MVTec AD or of good parts only, or a folder of good parts by name (normal=...)"
        )
    if root is not None:
        if abnormal is not None or masks is not None or normal_test is not None:
            raise InputError(
                f"abnormal, masks and normal_test were given along with the folder {root}; they go with normal=FOLDER"
            )
        found = find_below(existing_folder(root, "a folder of images"))
    else:
        assert normal is not None
        found = find_by_name(
            existing_folder(normal, "a folder of good parts"),
            existing_folder(normal_test, "a folder of good parts to test on") if normal_test is not None else None,
            existing_folder(abnormal, "a folder of defective parts") if abnormal is not None else None,
            existing_folder(masks, "a folder of masks") if masks is not None else None,
        )
    if not found.train:
        passed_over = describe_uses(use for use in found.uses if not use.is_used)
        there_is = "; ".join([f"{found.n_ignored} other files", *passed_over])
        raise InputError(
            f"{found.train_folder} holds no image ({there_is}); expected images of good parts "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}) to train on: put them there or name another folder"
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


def resolve_data(text: str, cache_folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Turn what a user writes after `--data` into a folder.

    Args:
        text: a folder's path; or `sample` or `sample:PRODUCT` for a synthetic set that is written once into the cache
            (a folder of that name is reached as `./sample`).
        cache_folder: where sample sets are kept; default: `vae_edge.cache.sample_cache_folder()`.
        progress: called with sample images written and their total.

    Raises:
        InputError: the product is not known, or the cache cannot be written.
    """
    word, _, product = text.partition(":")
    if word != "sample":
        return user_path(text)
    from vae_edge.sample import DEFAULT_PRODUCT, PRODUCTS, SAMPLE_VERSION, write_sample_set  # only needed here

    product = product or DEFAULT_PRODUCT
    if product not in PRODUCTS:
        raise UsageError(f"there is no sample product {product!r}; expected one of {', '.join(PRODUCTS)}")
    # The version is in the name: a set that another version drew is not taken for this one's.
    folder = (cache_folder or sample_cache_folder()) / f"v{SAMPLE_VERSION}"
    return write_sample_set(folder, products=[product], progress=progress)[0]


def fingerprint(images: Iterable[ImageFile]) -> str:
    """Return a SHA-256 over the images' contents that depends neither on their names nor on their order."""
    return hashlib.sha256("\n".join(sorted(image.sha256 for image in images)).encode()).hexdigest()


def spread(images: Sequence[ImageFile], most: int) -> tuple[ImageFile, ...]:
    """Return at most so many of the images, evenly spread over all of them, in order, the first one among them."""
    n = min(most, len(images))
    return tuple(images[position * len(images) // n] for position in range(n))


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
            f"{path} could not be read ({error.strerror}); check its permissions and where a link leads, or remove it"
        ) from error
