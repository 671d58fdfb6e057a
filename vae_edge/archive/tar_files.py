"""Pictures in WebDataset files: tar files whose members are samples; every picture of a sample is judged."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from vae_edge.archive.listing import is_picture_name
from vae_edge.archive.places import Place
from vae_edge.errors import InputError
from vae_edge.image import most_bytes


def members_of(place: Place, name: str, max_pixels: int) -> Iterator[tuple[str, bytes | InputError]]:
    """Yield (member's name, bytes) of the pictures of a tar file, compressed or not, in its order.

    The file is read once from its beginning, and one member is held at a time. One that is larger than the file of a
    picture could be is an error in its place.

    Raises:
        OSError: the file cannot be read.
        tarfile.TarError, EOFError: it is damaged or breaks off; what came before was given.
    """
    most = most_bytes(max_pixels)
    with place.open(name) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if not member.isreg() or not is_picture_name(member.name) or member.name.rpartition("/")[2].startswith("."):
                continue
            if member.size > most:
                yield (
                    member.name,
                    InputError(
                        f"{place.path_of(name)}/{member.name} has {member.size / 1e6:.0f} MB; expected at most "
                        f"{most / 1e6:.0f} MB"
                    ),
                )
                continue
            content = archive.extractfile(member)
            if content is not None:
                yield member.name, content.read()
