"""What the commands share on the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table


def results_console() -> Console:
    """Return a console on stdout, for what a command was asked for."""
    return Console(soft_wrap=False, highlight=False)


def notes_console() -> Console:
    """Return a console on stderr, for progress, warnings and summaries."""
    return Console(stderr=True, highlight=False)


def escape_what_stdout_cannot_encode() -> None:
    """Write an escape for a character that stdout's encoding lacks, as Python does on stderr, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_error(message: str) -> None:
    """Write `error: message` to stderr as one line, which no console wraps."""
    _print_line("error", "1;31", message)


def print_warning(message: str) -> None:
    """Write `warning: message` to stderr as one line."""
    _print_line("warning", "1;33", message)


def plain_table(*, title: str | None = None, headers: bool = True) -> Table:
    """Return a table without frame lines, which stays readable in a log file."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=headers,
        header_style="bold",
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )


def size_text(size_bytes: int) -> str:
    """Return a file's size as people read it: `4.2 kB` below a megabyte, else `28.6 MB`; powers of ten."""
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:.1f} MB"


@contextmanager
def decoders_silenced() -> Iterator[None]:
    """Keep the remarks of OpenCV, libpng, libjpeg and FFmpeg about damaged files off stderr while the block runs.

    They name no file, and the command says the same in one line that does. Two of the libraries write to file
    descriptor 2 themselves, so that goes nowhere meanwhile and Python's own stderr to a copy of it. `--debug` does
    without this.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # Loaded here and not at the top: the list of commands does not need it.
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    ours = sys.stderr
    try:
        direct = ours.fileno() == 2
    except (OSError, ValueError, AttributeError):
        direct = False  # Something stands in for stderr already, such as a test.
    if not direct:
        yield
        return
    ours.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        with os.fdopen(os.dup(kept), "w", encoding=ours.encoding, errors=ours.errors, buffering=1) as copy:
            sys.stderr = copy
            yield
    finally:
        sys.stderr = ours
        os.dup2(kept, 2)
        os.close(kept)


def _print_line(label: str, colour: str, message: str) -> None:
    text = " ".join(message.split())
    styled = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    prefix = f"\x1b[{colour}m{label}:\x1b[0m" if styled else f"{label}:"
    print(f"{prefix} {text}", file=sys.stderr, flush=True)
