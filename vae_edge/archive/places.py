"""Folders on disk and in object stores: what they hold, and how their files are read and written.

A path is a folder on disk. A URI is opened by `pyarrow.fs.FileSystem.from_uri`: S3, Google Cloud Storage, Azure, HDFS.
Names of files are relative to the place, with `/`. What is shown and recorded of a URI has no passwords or keys.
"""

from __future__ import annotations

import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vae_edge.errors import InputError, UsageError, said_by
from vae_edge.picture_files.listing import cannot_read, is_left_out
from vae_edge.platform.atomic import check_place, new_file, remove_leftovers_in
from vae_edge.platform.file_system import sync_file
from vae_edge.platform.outside import user_path
from vae_edge.records import open_regular
from vae_edge.sources.addresses import file_of_url, without_password

_READ_ADVICE = "check the address, the permissions and the network"
_WRITE_ADVICE = "check the address and the permissions, or choose another place"


class GoneError(InputError):
    """A place is not there, or does not answer, on this machine: no fault of one of its files."""


class Place(ABC):
    """A folder.

    Args:
        shown: what it is called in messages, records and rows.
    """

    def __init__(self, shown: str) -> None:
        self.shown = shown

    def path_of(self, name: str) -> str:
        """Return what a file in it is called in messages and rows."""
        return f"{self.shown.rstrip('/')}/{name}"

    @abstractmethod
    def check_readable(self) -> None:
        """Make sure that the place is there, from this machine.

        Raises:
            GoneError: it is not, or does not answer.
        """

    @abstractmethod
    def files(self) -> list[str]:
        """Return the names of all files in and below it, sorted; hidden ones and leftovers are left out.

        Raises:
            InputError: it cannot be listed.
        """

    @abstractmethod
    def names_in(self, folder: str) -> set[str]:
        """Return the names of the files and folders in one folder of the place; none if it is not there.

        Raises:
            InputError: it cannot be listed.
        """

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[Any]:
        """Open a file for reading, with `read` and `seek`; failures to read are OSErrors."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file, completely or not at all.

        Raises:
            InputError: it cannot be written.
        """

    def check_writable(self) -> None:  # noqa: B027 - a store says it when something is written
        """Refuse, before any work, a place that cannot be written.

        Raises:
            InputError: it is one.
        """

    def clear_leftovers(self, folder: str) -> None:  # noqa: B027 - a store keeps nothing that was not finished
        """Remove what killed processes left in a folder of the place."""

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with self.open(name) as file:
                content: bytes = file.read()
                return content
        except OSError as error:
            raise self.cannot_read(name, error) from error

    def cannot_read(self, name: str, error: BaseException, advice: str = _READ_ADVICE) -> InputError:
        """Return the error for a file that cannot be read."""
        return InputError(f"{self.path_of(name)} could not be read ({_reason(error)}); {advice}")


class LocalPlace(Place):
    """A folder on disk, or on what is mounted like one."""

    def __init__(self, folder: Path) -> None:
        # Not resolved: a link may lead elsewhere on another machine.
        self.folder = folder.absolute()
        super().__init__(str(self.folder))

    def path_of(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.folder / name)

    def check_readable(self) -> None:
        """Make sure that the folder is there, on this machine."""
        if not self.folder.is_dir():
            raise GoneError(
                f"{self.folder} is not a folder on the machine {socket.gethostname()}; expected one that every machine "
                "of the cluster has, at the same path"
            )

    def files(self) -> list[str]:
        """Return the names of all files in and below it; links to folders are not followed."""

        def fail(error: OSError) -> None:
            raise cannot_read(Path(error.filename or self.folder), error) from error

        found: list[str] = []
        for folder, below, names in os.walk(self.folder, onerror=fail):
            below[:] = [name for name in below if not is_left_out(name)]
            relative = Path(folder).relative_to(self.folder)
            found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
        return sorted(found)

    def names_in(self, folder: str) -> set[str]:
        """Return the names of the files and folders in one folder of the place."""
        path = self.folder / folder
        try:
            return {entry.name for entry in path.iterdir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise cannot_read(path, error) from error

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a regular file."""
        return open_regular(self.folder / name)

    def check_writable(self) -> None:
        """Refuse, before any work, a place that cannot be written; see `check_place`."""
        check_place(self.folder)

    def write(self, name: str, content: bytes) -> None:
        """Write a file: under another name, then flushed to disk, then renamed."""
        # Flushed here: `new_file` would also look for leftovers, among thousands of files, each time.
        with new_file(self.folder / name, is_flushed=False) as temporary:
            temporary.write_bytes(content)
            sync_file(temporary)

    def clear_leftovers(self, folder: str) -> None:
        """Remove the temporary files that killed processes left in a folder of the place."""
        remove_leftovers_in(self.folder / folder)


class RemotePlace(Place):
    """A folder in an object store or another file system that pyarrow knows.

    Args:
        uri: may hold keys, which are neither shown nor recorded.

    Raises:
        UsageError: pyarrow does not know such addresses.
        InputError: it cannot be opened.
    """

    def __init__(self, uri: str) -> None:
        import pyarrow as pa
        from pyarrow.fs import FileSystem

        self.uri = uri
        super().__init__(without_keys(uri))
        try:
            self._files, self._root = FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError) as error:
            why = _reason(error).replace(uri, self.shown)
            raise UsageError(
                f"{self.shown} is not an address that pyarrow can open ({why}); expected a folder, or a URI such as "
                "s3://bucket/pictures, gs://, abfs:// or hdfs://"
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.shown} could not be opened ({_reason(error)}); {_READ_ADVICE}") from error

    def __reduce__(self) -> tuple[type[RemotePlace], tuple[str]]:
        """Pickle the address: the place is opened again where it is needed."""
        return type(self), (self.uri,)

    def check_readable(self) -> None:
        """Make sure that the place is there."""
        from pyarrow.fs import FileType

        try:
            kind = self._files.get_file_info(self._root).type
        except OSError as error:
            raise GoneError(f"{self.shown} could not be read ({_reason(error)}); {_READ_ADVICE}") from error
        if kind != FileType.Directory:
            what = "does not exist" if kind == FileType.NotFound else "is a file"
            raise GoneError(f"{self.shown} {what}; expected a folder of pictures, Parquet or WebDataset files")

    def is_file(self) -> bool:
        """Return whether the address is that of a file.

        Raises:
            InputError: the place does not answer.
        """
        try:
            return bool(self._files.get_file_info(self._root).is_file)
        except OSError as error:
            raise InputError(f"{self.shown} could not be read ({_reason(error)}); {_READ_ADVICE}") from error

    def files(self) -> list[str]:
        """Return the names of all files in and below it."""
        names = (name for name, is_file in self._listed("", recursive=True) if is_file)
        return sorted(name for name in names if not any(map(_is_passed_over, name.split("/"))))

    def names_in(self, folder: str) -> set[str]:
        """Return the names of the files and folders in one folder of the place."""
        return {name.rpartition("/")[2] for name, _ in self._listed(folder, recursive=False)}

    def _listed(self, folder: str, *, recursive: bool) -> Iterator[tuple[str, bool]]:
        from pyarrow.fs import FileSelector

        path = self._path(folder)
        try:
            found = self._files.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))
        except OSError as error:
            raise InputError(
                f"{self.path_of(folder)} could not be listed ({_reason(error)}); {_READ_ADVICE}"
            ) from error
        begin = len(self._root.rstrip("/")) + 1
        return ((info.path[begin:], info.is_file) for info in found)

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open a file."""
        with self._files.open_input_file(self._path(name)) as file:
            yield file

    def write(self, name: str, content: bytes) -> None:
        """Write a file: with one put, or where a file can be seen while it is written, under another name first."""
        path = self._path(name)
        in_steps = self._files.type_name in ("hdfs", "local")
        try:
            if in_steps:
                self._files.create_dir(path.rpartition("/")[0], recursive=True)
            temporary = f"{path}.part" if in_steps else path
            # Without `compression` pyarrow would pack a file once more whose name ends in .gz.
            with self._files.open_output_stream(temporary, compression=None) as file:
                file.write(content)
            if in_steps:
                self._files.move(temporary, path)
        except OSError as error:
            raise InputError(
                f"{self.path_of(name)} could not be written ({_reason(error)}); {_WRITE_ADVICE}"
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")


def open_place(text: str | Path) -> Place:
    """Return the place that a word of the command line names: a path, a `file:` address, or a URI for pyarrow.

    Raises:
        UsageError: it is an address that nobody knows.
        InputError: it cannot be opened.
    """
    written = file_of_url(str(text))
    if is_uri(written):
        return RemotePlace(written)
    return LocalPlace(user_path(written))


def without_keys(uri: str) -> str:
    """Return a URI as it may be shown and recorded: without keys, passwords and options.

    The user of HDFS and the container of Azure stay, which stand in the place of a user.

    Examples:
        >>> without_keys("s3://KEY:SECRET@bucket/pictures?region=eu-central-1")
        's3://bucket/pictures'
        >>> without_keys("abfs://pictures@account.dfs.core.windows.net/2026")
        'abfs://pictures@account.dfs.core.windows.net/2026'
    """
    scheme, _, rest = uri.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user = authority.rpartition("@")[0].partition(":")[0] if scheme.lower() != "s3" else ""
    safe = re.split(r"[?#]", without_password(uri), maxsplit=1)[0].rstrip("/")
    return safe.replace("://", f"://{user}@", 1) if user else safe


def is_uri(text: str) -> bool:
    """Return whether a word is a URI: `s3://bucket`, but not `C:/pictures`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.\-]+://", text) is not None


def _is_passed_over(part: str) -> bool:
    return part.startswith(".") or is_left_out(part)


def _reason(error: BaseException) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return without_password(strerror or said_by(error))
