"""A bundle: the folder that export leaves and a device gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vae_edge.atomic import check_replaceable, new_folder, write_text
from vae_edge.errors import BundleError, InputError
from vae_edge.manifest import MANIFEST_FILE, SCHEMA_VERSION, Manifest
from vae_edge.records import check_recordable, check_recorded_files, read_record
from vae_edge.targets import Target

_ADVICE = "copy or export the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read."""

    folder: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The file that the backend opens."""
        return self.folder / self.manifest.model_file

    @property
    def size_bytes(self) -> int:
        """Size of all files that the manifest names."""
        return sum(file.size_bytes for file in self.manifest.files)

    @property
    def model_sha256(self) -> str:
        """Hash of the files that are compiled on a device, by their hashes in the manifest.

        A TensorRT engine is compiled itself; what counts there is the ONNX it is made of.
        """
        compiled = self.manifest.model_file if self.manifest.target is Target.TENSORRT else None
        lines = sorted(f"{file.sha256} {file.name}" for file in self.manifest.files if file.name != compiled)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @classmethod
    def open(cls, folder: str | Path, *, check_files: bool = True) -> Bundle:
        """Read a bundle and check that its files are the ones that were exported.

        Args:
            folder: the bundle.
            check_files: compare every file's size and SHA-256 with the manifest's.

        Raises:
            BundleError: no bundle, a damaged or newer manifest, or a file that is missing or was changed.
        """
        folder = Path(folder)
        bundle = cls(folder, _read_manifest(folder))
        if check_files:
            check_recorded_files(folder, bundle.manifest.files, said_by="the manifest", advice=_ADVICE)
        return bundle

    def with_manifest(self, manifest: Manifest) -> Bundle:
        """Write a changed manifest in place of the old one, whole or not at all, and return the bundle with it.

        Raises:
            InputError: the folder cannot be written.
        """
        write_text(self.folder / MANIFEST_FILE, manifest_text(manifest))
        return Bundle(self.folder, manifest)


@contextmanager
def new_bundle(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes the bundle `folder` when the block ends without an error.

    An older bundle of that name is replaced. The block writes the model files and the manifest.

    Raises:
        InputError: the name is taken by something else, or the disk is full. No half-written bundle gets the name.
    """
    with new_folder(folder, replaces=MANIFEST_FILE) as temporary:
        yield temporary
        if not (temporary / MANIFEST_FILE).is_file():
            raise AssertionError("a bundle was to be published without its manifest")


def check_bundle_name_is_free(folder: Path) -> None:
    """Refuse, before the work starts, a name that is taken by something other than a bundle.

    Raises:
        InputError: with the name.
    """
    check_recordable(folder)
    check_replaceable(folder, MANIFEST_FILE)


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest as it is written: JSON with a line for each value."""
    return manifest.model_dump_json(indent=2) + "\n"


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: there is no {MANIFEST_FILE} in it; pass a folder that export made"
        )
    return read_record(path, Manifest, SCHEMA_VERSION, advice=_ADVICE)


def bundles_in(folder: Path) -> list[Path]:
    """Return the bundles in a folder (or the folder itself if it is one), by name.

    Raises:
        InputError: there is none.
    """
    if (folder / MANIFEST_FILE).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}") if not path.parent.name.startswith("."))
    if not found:
        raise InputError(f"{folder} is no bundle and holds none; pass a folder that export made")
    return found
