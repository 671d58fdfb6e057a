"""Where verdicts go: one JSON line for each picture, and pictures with the anomaly drawn in."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.bundle import Bundle
from vae_edge.decision import too_few_normals
from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.manifest import Thresholds
from vae_edge.pictures import Picture
from vae_edge.prediction import Prediction

PREDICTIONS_FILE = "predictions.jsonl"
OVERLAYS_FOLDER = "overlays"

OverlayFormat = Literal["jpg", "png"]

_LONGEST_NAME = 150


def prediction_record(picture: Picture, prediction: Prediction, thresholds: Thresholds) -> dict[str, Any]:
    """Return what is written about a picture that got a verdict.

    `anomalous_area` is the share of the map's pixels above the pixel threshold, 0 to 1.
    """
    n_pixels = int(prediction.mask.sum())
    return {
        **_where(picture),
        "is_anomalous": prediction.is_anomalous,
        "score": prediction.score,
        "p_value": prediction.p_value,
        "threshold": prediction.threshold,
        "false_alarm_rate": thresholds.false_alarm_rate,
        "n_anomalous_pixels": n_pixels,
        "anomalous_area": n_pixels / prediction.mask.size,
    }


def error_record(picture: Picture, error: VaeEdgeError) -> dict[str, Any]:
    """Return what is written about a picture that got none."""
    return {**_where(picture), "error": str(error)}


class JsonLines:
    """Writes records as JSON lines, each flushed at once, so that a crash or a power cut loses no finished verdict.

    Args:
        file: an open text file, which is left open; or a path, which is created.
        overwrite: replace an older file of that path.

    Raises:
        InputError: the path is taken and may not be replaced, or cannot be written.
    """

    def __init__(self, file: Path | TextIO, *, overwrite: bool = False) -> None:
        self._owned = isinstance(file, Path)
        self._name = str(file) if isinstance(file, Path) else "the output"
        if not isinstance(file, Path):
            self._file = file
            return
        check_no_earlier_run(file.parent, overwrite=overwrite)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("w", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self._name, error) from error

    @property
    def on_terminal(self) -> bool:
        """Whether the lines appear in front of the user."""
        return self._file.isatty()

    def write(self, record: dict[str, Any]) -> None:
        """Write one record.

        Raises:
            InputError: the disk is full or was taken away; the records before this one are written.
        """
        try:
            self._file.write(_as_json(record, self._file.encoding) + "\n")
            self._file.flush()
        except BrokenPipeError:
            raise  # The reader of a pipe has seen enough: no failure.
        except OSError as error:
            raise _cannot_write(self._name, error) from error

    def close(self) -> None:
        """Close the file if it was opened here."""
        if self._owned:
            # What could not be written was reported, and closing would try and fail once more.
            with suppress(OSError):
                self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_no_earlier_run(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds an earlier run's verdicts.

    Raises:
        InputError: it does, and `overwrite` is not set; or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; expected the name of a folder for the results")
    if not overwrite and (folder / PREDICTIONS_FILE).exists():
        raise InputError(
            f"{folder} holds the {PREDICTIONS_FILE} of an earlier run; choose another --out, or pass --overwrite"
        )


class OverlayFolder:
    """Writes pictures with the anomaly map drawn in, each under a name of its own.

    Args:
        folder: made with the first picture.
        file_format: `jpg` is small, `png` exact.
        overwrite: remove the overlays of an earlier run first.
    """

    def __init__(self, folder: Path, *, file_format: OverlayFormat = "jpg", overwrite: bool = False) -> None:
        self.folder = folder
        self._format = file_format
        self._taken: set[str] = set()
        if overwrite and folder.is_dir():
            for old in [*folder.glob("*.jpg"), *folder.glob("*.png")]:
                old.unlink()

    def write(self, picture: Picture, image: NDArray[np.uint8], prediction: Prediction) -> Path:
        """Draw and write one overlay.

        Args:
            picture: gives the name.
            image: uint8 [H, W, 3] RGB, the original picture.
            prediction: gives the map and the verdict.

        Raises:
            InputError: it cannot be written.
        """
        path = self.folder / f"{self._free_name(picture.name)}.{self._format}"
        drawn = cv2.cvtColor(prediction.overlay(image), cv2.COLOR_RGB2BGR)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if self._format == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
        try:
            done, data = cv2.imencode(f".{self._format}", drawn, quality)
        except cv2.error as error:
            raise InputError(f"the overlay of {picture.source} could not be encoded ({error.err}); try png") from error
        if not done:
            raise InputError(f"the overlay of {picture.source} could not be encoded as {self._format}; try png")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Encoding and writing apart: imwrite fails without a word on a full disk.
            path.write_bytes(data.tobytes())
        except OSError as error:
            raise _cannot_write(str(path), error) from error
        return path

    def _free_name(self, wanted: str) -> str:
        base = re.sub(r"[^\w.\-]+", "_", wanted)[-_LONGEST_NAME:].lstrip(".") or "picture"
        name, number = base, 1
        # Upper and lower case are the same name on many memory cards.
        while name.casefold() in self._taken:
            number += 1
            name = f"{base}-{number}"
        self._taken.add(name.casefold())
        return name


def trust_warnings(bundle: Bundle) -> list[str]:
    """Return the sentences a user must see about a bundle whose verdicts rest on less than they should."""
    manifest = bundle.manifest
    warnings = []
    if not manifest.verified:
        because = f" ({manifest.not_verified_because})" if manifest.not_verified_because else ""
        warnings.append(
            f"this bundle was never run before its thresholds were written{because}; "
            f"run: vae-edge verify {bundle.folder} --data NORMALS"
        )
    few = too_few_normals(manifest.thresholds)
    return [*warnings, few] if few else warnings


def _where(picture: Picture) -> dict[str, Any]:
    where: dict[str, Any] = {"source": picture.source}
    if picture.frame is not None:
        where["frame"] = picture.frame
    if picture.time_s is not None:
        where["time_s"] = round(picture.time_s, 4)
    return where


def _as_json(record: dict[str, Any], encoding: str | None) -> str:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        # An ASCII terminal, or a file name that is no UTF-8: JSON has an escape for every character.
        return json.dumps(record, allow_nan=False)
    return text


def _cannot_write(name: str, error: OSError) -> InputError:
    return InputError(f"{name} could not be written ({error.strerror or error}); make room or choose another place")
