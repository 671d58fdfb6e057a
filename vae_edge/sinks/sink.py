"""Where verdicts go: what is written about a picture, what every sink can do, and the folder that a run writes into."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from vae_edge.bundle import Bundle
from vae_edge.decision import too_few_normals
from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.manifest import NEVER_VERIFIED, Thresholds
from vae_edge.platform.atomic import remove_leftovers_in
from vae_edge.prediction import Prediction
from vae_edge.references import has_failed
from vae_edge.sources.pictures import Picture
from vae_edge.sources.video import video_name

PREDICTIONS_FILE = "predictions.jsonl"
TABLE_FILE = "predictions.csv"
OVERLAYS_FOLDER = "overlays"
VIDEOS_FOLDER = "annotated"

_RESULT_FILES = (PREDICTIONS_FILE, TABLE_FILE)
_OVERLAY = re.compile(rf"{OVERLAYS_FOLDER}/[^/\\]+\.(jpg|png)")
_LONGEST_NAME_BYTES = 100
"""Of 255 in most file systems, and of 259 characters in a whole path on Windows, where the folder needs some too."""
_RESERVED_NAME = re.compile(r"(con|prn|aux|nul|conin|conout|(com|lpt)[\d¹²³])(\..*)?", re.IGNORECASE)
"""Devices on Windows, whatever the ending."""


@dataclass(eq=False)
class Inspected:
    """A picture, what the detector says about it, and what is written about it."""

    picture: Picture
    result: Prediction | VaeEdgeError
    record: dict[str, Any] = field(default_factory=dict)
    """What the lines hold; a sink that makes a file of the picture adds the file's name."""


class Sink(ABC):
    """Something that verdicts go to, one after the other. It is a context manager, and `close` twice is fine."""

    what = "results"
    """What it writes, for people."""
    is_by_product = False
    """Whether a run continues without it: an overlay that cannot be written must not cost the verdicts behind it."""

    @abstractmethod
    def write(self, inspected: Inspected) -> None:
        """Take one verdict, or the error in its place.

        Raises:
            InputError: it cannot be written: the disk is full or was taken away.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to do here
        """Finish what was begun."""

    def summary(self) -> list[tuple[str, str]]:
        """Return (what, how much and where) of what was written, for people."""
        return []

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def record_of(picture: Picture, result: Prediction | VaeEdgeError) -> dict[str, Any]:
    """Return what is written about a picture: see `prediction_record` and `error_record`."""
    if isinstance(result, VaeEdgeError):
        return error_record(picture, result)
    return prediction_record(picture, result)


def prediction_record(picture: Picture, prediction: Prediction) -> dict[str, Any]:
    """Return what is written about a picture that got a verdict.

    `anomalous_area` is the share of the map's pixels above the pixel threshold, 0 to 1. `not_inspectable_because` is
    there only where the verdict is `not inspectable`, and `drift` only if the detector watches for it.
    """
    n_pixels = int(prediction.mask.sum())
    drift = {} if prediction.drift is None else {"drift": prediction.drift.as_record()}
    return {
        **_where(picture),
        "is_anomalous": prediction.is_anomalous,
        "score": prediction.score,
        "p_value": prediction.p_value,
        "threshold": prediction.threshold,
        "false_alarm_rate": prediction.false_alarm_rate,
        "n_anomalous_pixels": n_pixels,
        "anomalous_area": n_pixels / prediction.mask.size,
        "verdict": prediction.verdict,
        **({} if prediction.inspectable else {"not_inspectable_because": list(prediction.not_inspectable_because)}),
        **drift,
    }


def error_record(picture: Picture, error: VaeEdgeError) -> dict[str, Any]:
    """Return what is written about a picture that got none."""
    return {**_where(picture), "error": str(error)}


def check_no_earlier_run(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds an earlier run's verdicts.

    Raises:
        InputError: it does, and `overwrite` is not set; or it is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; expected a folder for the results")
    for name in () if overwrite else _RESULT_FILES:
        if (folder / name).exists():
            raise InputError(
                f"{folder} contains the {name} of an earlier run; choose another --out, or pass --overwrite"
            )


def clear_earlier_run(folder: Path) -> None:
    """Remove what an earlier run wrote, whatever its options were: its pictures must not stay beside new verdicts.

    Only the lines go, and the pictures and videos that they record.

    Raises:
        InputError: something cannot be removed, or what has the name of the lines was not written by a run.
    """
    overlays: set[str] = set()
    videos: set[str] = set()
    for name in _RESULT_FILES:
        if (folder / name).exists() and not _is_of_a_run(folder / name):
            raise InputError(f"{folder / name} was not written by vae-run; move it away, or choose another --out")
        for record in _records(folder / name):
            overlay, source = record.get("overlay"), record.get("source")
            if isinstance(overlay, str) and _OVERLAY.fullmatch(overlay):
                overlays.add(overlay)
            if record.get("frame") not in (None, "") and isinstance(source, str):
                videos.add(FreeNames().take(video_name(source)))
    try:
        for place in (OVERLAYS_FOLDER, VIDEOS_FOLDER):
            remove_leftovers_in(folder / place)
        for name in overlays:
            (folder / name).unlink(missing_ok=True)
        for path in [path for ending in ("*.mp4", "*.avi") for path in (folder / VIDEOS_FOLDER).glob(ending)]:
            name = path.stem.removesuffix(".part").removeprefix(".") if path.stem.endswith(".part") else path.stem
            if name in videos or re.sub(r"-\d+$", "", name) in videos:
                path.unlink()
        for name in _RESULT_FILES:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename} of an earlier run could not be removed ({error.strerror})") from error


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what an earlier run's lines say, as far as they can be read."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        if path.name == TABLE_FILE:
            yield from csv.DictReader(file)
            return
        for line in file:
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


def _is_of_a_run(path: Path) -> bool:
    """Return whether a file holds lines of vae-run, or nothing."""
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 20)
    except OSError:
        return False
    if not first or path.name == TABLE_FILE:
        return not first or first.startswith(b"source,frame,")
    try:
        record = json.loads(first)
    except ValueError:
        return not first.endswith(b"\n")  # A line that a crash cut short.
    return isinstance(record, dict) and "source" in record


class FreeNames:
    """Gives files unique names that are valid on every system."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}
        """How often each name was taken."""

    def spare(self, folder: Path) -> None:
        """Never give a name, without its ending, that already exists in a folder."""
        with suppress(OSError):
            for path in folder.iterdir():
                self._taken.setdefault(_same_name(path.stem), 1)

    def take(self, wanted: str) -> str:
        """Return a name like the one that is wanted, without an ending: at most 110 bytes of UTF-8.

        A longer one keeps its end and gets a hash of the whole, so that it is the same in every run.
        """
        base = re.sub(r"[^\w.\-]+", "_", wanted).strip(".") or "picture"
        if len(base.encode()) > _LONGEST_NAME_BYTES:
            mark = hashlib.sha256(wanted.encode("utf-8", "surrogatepass")).hexdigest()[:10]
            base = base.encode()[len(mark) + 1 - _LONGEST_NAME_BYTES :].decode(errors="ignore").lstrip(".") + "-" + mark
        if _RESERVED_NAME.fullmatch(base):
            base = f"_{base}"
        name = base
        while (key := _same_name(name)) in self._taken:
            self._taken[_same_name(base)] += 1
            name = f"{base}-{self._taken[_same_name(base)]}"
        self._taken[key] = 1
        return name


def _same_name(name: str) -> str:
    """Return what is equal for names that are one on some disk: upper and lower case, composed letters and others."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def cannot_write(name: str, error: OSError) -> InputError:
    """Return the error for a file that could not be written."""
    return InputError(f"{name} could not be written ({error.strerror or error}); make room or choose another place")


def trust_warnings(bundle: Bundle, thresholds: Thresholds | None = None) -> list[str]:
    """Return warnings about a bundle whose verdicts are less reliable than they should be.

    Args:
        bundle: in use.
        thresholds: in force; None: the bundle's.
    """
    manifest = bundle.manifest
    warnings = []
    # Of a bundle of an older schema, which cannot be verified here, that was said when it was opened.
    if not manifest.verified and manifest.schema_version not in NEVER_VERIFIED:
        because = f" ({manifest.not_verified_because})" if manifest.not_verified_because else ""
        if has_failed(manifest):
            warnings.append(
                f"this bundle failed verification{because}: do not rely on its verdicts; export it again, or use "
                f"another device or version of the runtime, and run there: vae-edge verify {bundle.folder}"
            )
        else:
            warnings.append(f"this bundle is not verified{because}; run: vae-edge verify {bundle.folder}")
    if manifest.gate is not None and not manifest.gate.is_current:
        warnings.append(
            "this bundle's gate, which says when a picture is not inspectable, is of another version of vae-edge, so "
            f"every picture is judged; learn it again: vae-edge verify {bundle.folder} --data NORMALS"
        )
    few = too_few_normals(thresholds or manifest.thresholds)
    return [*warnings, few] if few else warnings


def _where(picture: Picture) -> dict[str, Any]:
    where: dict[str, Any] = {"source": picture.source}
    if picture.frame is not None:
        where["frame"] = picture.frame
    if picture.time_s is not None:
        where["time_s"] = round(picture.time_s, 4)
    if picture.skipped is not None:
        where["skipped"] = picture.skipped
    return where
