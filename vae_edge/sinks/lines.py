"""Verdicts as text: one JSON line for each picture, or one line of a CSV table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from vae_edge.errors import InputError
from vae_edge.platform.outside import printable, printable_json
from vae_edge.sinks.sink import Inspected, Sink, cannot_write

COLUMNS = (
    "source",
    "frame",
    "time_s",
    "skipped",
    "is_anomalous",
    "score",
    "p_value",
    "threshold",
    "false_alarm_rate",
    "n_anomalous_pixels",
    "anomalous_area",
    "overlay",
    "error",
    "note",
    "verdict",
    "not_inspectable_because",
)
"""Of the CSV table, always all of them and in this order; new ones are added at the end."""

_FORMULA_STARTS = ("=", "+", "-", "@", "\t")


class _TextLines(Sink):
    """Writes lines, each flushed at once, so that a crash or a power cut loses no finished verdict.

    Args:
        file: an open text file, which is left open; or a path, which is created.
        overwrite: replace an older file of that path.

    Raises:
        InputError: the path is taken and may not be replaced, or cannot be written.
    """

    def __init__(self, file: Path | TextIO, *, overwrite: bool = False) -> None:
        self._path = file if isinstance(file, Path) else None
        if not isinstance(file, Path):
            self._shown = file
            return
        if file.is_file() and not overwrite:
            raise InputError(f"{file} exists from an earlier run; choose another --out, or pass --overwrite")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("wb", buffering=0)
        except OSError as error:
            raise cannot_write(str(file), error) from error

    def summary(self) -> list[tuple[str, str]]:
        """Return where the lines are, unless they were shown."""
        return [] if self._path is None else [("results", str(self._path))]

    def close(self) -> None:
        """Close the file if it was opened here."""
        if self._path is not None:
            with suppress(OSError):
                self._file.close()

    def _write_line(self, line: str) -> None:
        try:
            if self._path is None:
                self._shown.write(line + "\n")
                self._shown.flush()
            else:
                # A file name that is not UTF-8 is escaped.
                self._write_whole((line + "\n").encode("utf-8", "backslashreplace"))
        except BrokenPipeError:
            raise  # The reader of a pipe has seen enough: no failure.
        except OSError as error:
            raise cannot_write("the output" if self._path is None else str(self._path), error) from error

    def _write_whole(self, line: bytes) -> None:
        """Write a line, or nothing of it: half a line would spoil the next one, too."""
        begin = self._file.tell() if self._file.seekable() else None
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            if begin is not None:
                with suppress(OSError):
                    self._file.truncate(begin)
                    self._file.seek(begin)
            raise


class JsonLines(_TextLines):
    """Writes each record as one line of JSON."""

    def write(self, inspected: Inspected) -> None:
        """Write one record.

        Raises:
            InputError: the disk is full or was taken away; the records before this one are written.
        """
        self._write_line(json_line(inspected.record, "utf-8" if self._path else self._shown.encoding))


class CsvLines(_TextLines):
    """Writes a table with a header and the columns `COLUMNS`; what a picture does not have is an empty cell.

    The cells are text that a terminal and a spreadsheet can show without harm: control characters other than line ends
    and tabs are escapes, see `vae_edge.platform.outside.printable`, and `./` stands before a name that begins with =,
    +, - or @, which a spreadsheet would compute. The lines of JSON have every name exactly.
    """

    what = "rows of the table"

    def __init__(self, file: Path | TextIO, *, overwrite: bool = False) -> None:
        super().__init__(file, overwrite=overwrite)
        self._write_line(_as_csv(COLUMNS))

    def write(self, inspected: Inspected) -> None:
        """Write one row.

        Raises:
            InputError: the disk is full or was taken away; the rows before this one are written.
        """
        self._write_line(_as_csv([_cell(inspected.record.get(column)) for column in COLUMNS]))


def json_line(record: Mapping[str, Any], encoding: str | None = "utf-8") -> str:
    """Return a record as one line of JSON, without a line end, that an encoding has and a terminal can show."""
    text = printable_json(json.dumps(record, ensure_ascii=False, allow_nan=False))
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        # An ASCII terminal: JSON has an escape for every character.
        return json.dumps(record, allow_nan=False)
    return text


def _as_csv(cells: tuple[str, ...] | list[str]) -> str:
    text = io.StringIO()
    # With this end both characters of it are quoted within a cell, in every version of Python.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = "; ".join(value)
    if not isinstance(value, str):
        # As JSON has it: Python's True means nothing to a spreadsheet in another program.
        return str(value).lower() if isinstance(value, bool) else str(value)
    text = printable(value, keep_lines=True)
    return f"./{text}" if text.startswith(_FORMULA_STARTS) else text
