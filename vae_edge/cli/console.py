"""What the commands share on the terminal: results on stdout, everything else on stderr, untrusted text escaped.

File names and the strings in a bundle are untrusted. So no console takes text for markup, and control characters
are written as escapes, see `vae_edge.platform.outside.printable`; a caller has nothing to remember.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vae_edge.errors import InputError
from vae_edge.platform.outside import printable
from vae_edge.platform.windows import reader_left

_LEAST_COLUMNS = 40
"""`$COLUMNS` that says fewer is mistaken: nothing could be read."""

_Result = TypeVar("_Result")


class _PlainConsole(Console):
    """Takes no text for markup, and sends the terminal no control character but its own."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make text of a string; before its width is measured."""
        return super().render_str(printable(text, keep_lines=True), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render; what was text already when it came is examined here."""
        for segment in super().render(renderable, options):
            text = printable(segment.text, keep_lines=True)
            yield segment if segment.control or text == segment.text else segment._replace(text=text)


def results_console() -> Console:
    """Return a console on stdout, for what a command was asked for. It takes no markup: style with `rich.text.Text`."""
    return _PlainConsole()


def notes_console() -> Console:
    """Return a console on stderr, for progress, warnings and summaries. It takes no markup either."""
    return _PlainConsole(stderr=True)


class ReaderLeftError(BrokenPipeError):
    """The reader of stdout has closed it, as `head` does."""


@contextmanager
def standard_streams() -> Iterator[Callable[[int], int]]:
    """Make stdin, stdout and stderr safe to use while the block runs, whatever they are.

    * A closed one is opened on the null device, for otherwise the next file that is opened, a result perhaps, would get
      its number and everything that some library prints. Writing to a closed stdout fails.
    * What stdout's encoding lacks is written as an escape, as Python does on stderr.
    * A reader of stdout that has left is not an error: what is printed goes nowhere; for lines see `lines_stdout`. Any
      other failure to write there is an InputError.
    * Notes that stderr cannot take never stop a command.

    Gives the function that turns a command's exit code into the process's: 1 where results were lost.
    """
    if isinstance(sys.stdout, _Results):
        yield lambda code: code  # A command within a command.
        return
    open_closed_descriptors()
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = "80"
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    results, notes = _Results(sys.stdout), _Notes(sys.stderr)
    # What the two leave to the streams behind them is not declared, here and below.
    sys.stdout, sys.stderr = cast(TextIO, results), cast(TextIO, notes)

    def finish(code: int) -> int:
        try:
            results.flush()
        except InputError as error:
            print_error(str(error))
        notes.flush()
        return code or int(results.is_lost)

    try:
        yield finish
    finally:
        sys.stdout, sys.stderr = before


def lines_stdout() -> TextIO:
    """Return stdout for lines that are wanted one after the other.

    Writing raises `ReaderLeftError` once nobody reads any more, so that work without an end has one.
    """
    stream = sys.stdout
    return cast(TextIO, _Results(stream.stream, for_lines=True)) if isinstance(stream, _Results) else stream


class _Stream(ABC):
    """Stands for a text stream; everything but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text."""
        return self._attempt(lambda: self.stream.write(text), len(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what waits."""
        self._attempt(self.stream.flush, None)

    @abstractmethod
    def _attempt(self, call: Callable[[], _Result], otherwise: _Result) -> _Result: ...

    def _drop(self) -> None:
        """Let what still waits go nowhere: it would fail once more when Python ends, with an exit code of its own."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Results(_Stream):
    """Stdout."""

    def __init__(self, stream: TextIO, *, for_lines: bool = False) -> None:
        super().__init__(stream)
        self.is_lost = False
        """Something could not be written, and not because the reader had left."""
        self._for_lines = for_lines

    def _attempt(self, call: Callable[[], _Result], otherwise: _Result) -> _Result:
        try:
            return call()
        except OSError as error:
            self._drop()
            if reader_left(error):
                if self._for_lines:
                    raise ReaderLeftError from None
                return otherwise
            self.is_lost = True
            why = "is closed" if error.errno == errno.EBADF else f"could not be written ({error.strerror or error})"
            raise InputError(
                f"stdout {why}, so the output is lost; redirect it to a file or a pipe that accepts it"
            ) from error


class _Notes(_Stream):
    """Stderr."""

    def _attempt(self, call: Callable[[], _Result], otherwise: _Result) -> _Result:
        try:
            return call()
        except OSError as error:
            if reader_left(error):
                self._drop()
        except ValueError:
            pass  # It was closed.
        return otherwise


def open_closed_descriptors() -> None:
    """Open what is closed of stdin, stdout and stderr on the null device, see `standard_streams`."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):  # Stdout: so that writing fails.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # It gets the lowest number that is free.
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8")


def print_error(message: str) -> None:
    """Write `error: message` to stderr as one line, which no console wraps."""
    _print_line("error", "1;31", message)


def print_warning(message: str) -> None:
    """Write `warning: message` to stderr as one line."""
    _print_line("warning", "1;33", message)


class _AsWarnings(logging.Handler):
    """Writes what the library logs, such as a lost connection, as the command line's other warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        print_warning(record.getMessage())


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show what the library logs as warnings while the block runs."""
    logger = logging.getLogger("vae_edge")
    if any(isinstance(handler, _AsWarnings) for handler in logger.handlers):
        yield  # A command within a command.
        return
    handler = _AsWarnings(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


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
    from vae_edge.image import set_opencv_log_level

    set_opencv_log_level(0)
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
    copy = os.fdopen(os.dup(kept), "w", encoding=ours.encoding, errors=ours.errors, buffering=1)
    sys.stderr = cast(TextIO, _Notes(copy))
    try:
        yield
    finally:
        sys.stderr = ours
        with suppress(OSError):
            copy.close()
        os.dup2(kept, 2)
        os.close(kept)


def _print_line(label: str, colour: str, message: str) -> None:
    text = printable(" ".join(message.split()))
    styled = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    prefix = f"\x1b[{colour}m{label}:\x1b[0m" if styled else f"{label}:"
    print(f"{prefix} {text}", file=sys.stderr, flush=True)
