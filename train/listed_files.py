"""An inspection set of which every file is named, as a record: what somebody else's data module found.

The list itself is what a run records. What drew it up may have divided the images at random and need not be there
when the run goes on or is exported.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from vae_edge.errors import InputError
from vae_edge.progress import Progress
from vae_edge.records import Record
from vae_edge.train.inspection_set import ImageFile, InspectionSet, hash_files
from vae_edge.train.layout import existing_folder


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
            raise InputError(f"{self.given_by} names no image to train on; expected images of good parts")
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
