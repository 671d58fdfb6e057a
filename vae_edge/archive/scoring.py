"""What a worker does: it opens a bundle once and scores parts, one after the other, on one core."""

from __future__ import annotations

import os
import socket
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import cv2
import numpy as np

from vae_edge import __version__
from vae_edge.archive.listing import Part, Source
from vae_edge.archive.pictures import pictures_of
from vae_edge.archive.places import GoneError
from vae_edge.archive.plan import ScoringSettings, bundle_sha256
from vae_edge.archive.rows import BUNDLE_HASH_KEY, BUNDLE_KEY, VERSION_KEY, row_of, to_parquet
from vae_edge.backends.base import Hint
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import BundleError, InputError, VaeEdgeError, said_by
from vae_edge.image import set_opencv_log_level
from vae_edge.signing.keys import TrustedKeys
from vae_edge.sinks.sink import record_of

_NO_PIXELS = np.empty((0, 0, 3), dtype=np.uint8)
"""What the detector gets instead of a picture that could not be read: it answers with an error, in order."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Work:
    """What every worker is told."""

    source: Source
    settings: ScoringSettings
    bundle: Path
    """Where the bundle lies on the machine that began."""
    bundle_sha256: str
    trusted: TrustedKeys | None = None
    """Keys, one of which has to have signed the bundle; None: what the policy of each machine says."""
    threads: int = 1
    batch_size: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    part: int
    content: bytes | None = None
    """Its Parquet file; None: it could not be scored."""
    counts: dict[str, int] = field(default_factory=dict)
    """Pictures by verdict, and `error`."""
    problem: str | None = None
    """Why it could not be scored."""
    is_fatal: bool = False
    """No part can be scored by this worker."""
    worker: str = ""
    """Its machine and the number of its process."""


class Scorer:
    """Scores parts. What is wrong with a part or with this machine is an outcome: a worker does not end by it.

    Args:
        work: what to do.
        bundle_files: the bundle's files by name, for a machine that does not have its folder.
    """

    def __init__(self, work: Work, bundle_files: dict[str, bytes] | None = None) -> None:
        self._work = work
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._detector: Detector | None = None
        self._problem: str | None = None
        set_opencv_log_level(0)  # Damaged pictures get a row.
        cv2.setNumThreads(work.threads)
        try:
            work.source.place.check_readable()
            self._detector = self._open(bundle_files)
        except VaeEdgeError as error:
            self._problem = str(error)

    def score(self, part: Part) -> Outcome:
        """Score all pictures of a part."""
        if self._detector is None:
            return Outcome(part.number, problem=self._problem, is_fatal=True, worker=self._worker)
        try:
            rows = list(self._rows(self._detector, part))
        except GoneError as error:
            return Outcome(part.number, problem=str(error), is_fatal=True, worker=self._worker)
        except Exception as error:  # noqa: BLE001 - whatever it is, another worker may be able to do this part
            said = str(error) if isinstance(error, VaeEdgeError) else f"{type(error).__name__}: {said_by(error)}"
            return Outcome(part.number, problem=said, worker=self._worker)
        bundle = self._detector.bundle
        metadata = {
            BUNDLE_KEY: self._work.bundle.name,
            BUNDLE_HASH_KEY: bundle_sha256(bundle),
            VERSION_KEY: __version__,
        }
        counts = Counter("error" if row["error"] is not None else row["verdict"] for row in rows)
        return Outcome(part.number, to_parquet(rows, metadata), dict(counts), worker=self._worker)

    def close(self) -> None:
        """Free the model."""
        if self._detector is not None:
            self._detector.close()

    def _rows(self, detector: Detector, part: Part) -> Iterator[dict[str, Any]]:
        settings = self._work.settings
        white_level = detector.bundle.manifest.preparation.white_level
        found = pictures_of(self._work.source, part, white_level=white_level, max_pixels=settings.max_pixels)
        for batch in _batches(found, self._work.batch_size):
            images = [_NO_PIXELS if isinstance(each.image, InputError) else each.image for _, each in batch]
            for (name, picture), result in zip(batch, detector.predict_together(images), strict=True):
                judged = picture.image if isinstance(picture.image, InputError) else result
                yield row_of(name, picture, record_of(picture, judged), part.number)

    def _open(self, bundle_files: dict[str, bytes] | None) -> Detector:
        work = self._work
        folder = work.bundle
        if bundle_files is not None and not _is_there(folder, work.bundle_sha256):
            copy = TemporaryDirectory(prefix="vae-edge-archive-", ignore_cleanup_errors=True)
            weakref.finalize(self, copy.cleanup)
            folder = Path(copy.name)
            for name, content in bundle_files.items():
                (folder / name).write_bytes(content)
        bundle = Bundle.open(folder, trusted_keys=work.trusted)
        if bundle_sha256(bundle) != work.bundle_sha256:
            raise BundleError(f"the bundle {folder} was changed since the archive was begun; put it back as it was")
        return Detector.open(
            bundle,
            hint=Hint.THROUGHPUT,
            threads=work.threads,
            arithmetic="auto" if work.settings.arithmetic == "auto" else "fp32",
            false_alarm_rate=work.settings.false_alarm_rate,
            gate=work.settings.gate,
            max_pixels=work.settings.max_pixels,
        )


def files_of(bundle: Bundle) -> dict[str, bytes]:
    """Return the files of a bundle by name, its signature among them, as a worker elsewhere gets them."""
    paths = [path for path in bundle.folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in sorted(paths)}


def _is_there(folder: Path, sha256: str) -> bool:
    try:
        return bundle_sha256(Bundle.open(folder)) == sha256
    except BundleError:
        return False


def _batches(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    while batch := list(islice(items, size)):
        yield batch
