"""A still picture behind a URL, such as the snapshot that most network cameras offer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import decode_image, max_pixels_in_force, most_bytes
from vae_edge.picture_files.header import HEAD_BYTES, format_of
from vae_edge.sources.addresses import RedirectError, open_address, without_password
from vae_edge.sources.live import LiveOptions
from vae_edge.sources.pictures import Picture, Source
from vae_edge.sources.video import video_name

_TIME_LIMIT_S = 30.0
"""For the complete picture: a server that sends one byte per second never exceeds a limit per read."""

_CHUNK_BYTES = 1 << 16


def open_still(
    address: str, *, live: LiveOptions | None = None, white_level: int = 65535, max_pixels: int | None = None
) -> StillPicture | None:
    """Ask an address whether a still picture is there, by its kind and its first bytes; None: it is something else.

    Raises:
        RedirectError: it leads to another host, and that was not allowed.
    """
    options = LiveOptions() if live is None else live
    if address.partition("://")[0].lower() not in ("http", "https"):
        return None
    try:
        with open_address(address, timeout_s=options.timeout_s, other_hosts=options.other_hosts) as answer:
            kind = answer.headers.get_content_maintype()
            is_still = kind == "image" or (kind != "multipart" and format_of(answer.read(HEAD_BYTES)) is not None)
    except RedirectError:
        raise
    except (InputError, OSError):
        return None  # FFmpeg knows more ways to log in, and says the rest.
    return StillPicture(address, options, white_level=white_level, max_pixels=max_pixels) if is_still else None


class StillPicture(Source):
    """One picture behind an `http` address, fetched when it is requested.

    Args:
        address: may hold a name and a password.
        options: patience, and whether a redirect to another host is followed.
        white_level: the 16-bit value that means white.
        max_pixels: a larger picture is an error, as is a file larger than it could need.
    """

    def __init__(
        self, address: str, options: LiveOptions, *, white_level: int = 65535, max_pixels: int | None = None
    ) -> None:
        super().__init__()
        self._address = address
        self.address = without_password(address)
        self._options = options
        self._white_level = white_level
        self._max_pixels = max_pixels_in_force(max_pixels)

    @property
    def n_pictures(self) -> int:
        """1."""
        return 1

    def __iter__(self) -> Iterator[Picture]:
        """Yield the picture, or the error in its place."""
        if self._stopped.is_set():
            return
        try:
            image: NDArray[np.uint8] | InputError = decode_image(
                self._fetch(), name=self.address, white_level=self._white_level, max_pixels=self._max_pixels
            )
        except InputError as error:
            image = error
        yield Picture(self.address, video_name(self.address), image)

    def _fetch(self) -> NDArray[np.uint8]:
        content = bytearray()
        most, end_s = most_bytes(self._max_pixels), time.monotonic() + _TIME_LIMIT_S
        options = self._options
        try:
            with open_address(self._address, timeout_s=options.timeout_s, other_hosts=options.other_hosts) as answer:
                # `read1` gives what is there: the limits hold for a server that sends very slowly, too.
                while chunk := answer.read1(_CHUNK_BYTES):
                    content += chunk
                    if len(content) > most:
                        raise InputError(f"{self.address} sent more than {most / 1e6:.0f} MB; expected one image")
                    if time.monotonic() > end_s or self._stopped.is_set():
                        raise InputError(
                            f"{self.address} was not received within {_TIME_LIMIT_S:g} s; check the network"
                        )
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"{self.address} could not be read ({reason}); check the network") from error
        return np.frombuffer(content, dtype=np.uint8)
