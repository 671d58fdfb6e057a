"""The entry points of every command, and what they share: errors in one line, exit codes, `--debug`.

This is the composition root: the only module of the device side that names training, export and benchmarks. It does
so as text, and a command's module is imported only when that command runs, so `vae-run` never loads torch.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a gate failed, 130 interrupted, 143 terminated. If the reader
of the output closes it early, as in `vae-run ... | head -1`, that is not a failure.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
import re
import signal
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.main import get_command

from vae_edge import __version__
from vae_edge.cli.console import (
    ReaderLeftError,
    decoders_silenced,
    open_closed_descriptors,
    print_error,
    standard_streams,
    warnings_shown,
)
from vae_edge.errors import MissingDependencyError, UsageError, VaeEdgeError
from vae_edge.platform.outside import check_current_folder, printable, user_path
from vae_edge.platform.windows import ENDING_SIGNALS

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_TIME_TO_END_S = 1.6
"""After Ctrl-C, for closing files and models; the promise is two seconds."""
_SAME_SIGNAL_S = 0.2

_LEAST, _MOST = 1e-9, 1e10
"""Sizes of the numbers that options take: from shares to seeds and bytes; each option has closer limits of its own."""

_EPILOG = "Every command takes --debug: it shows the traceback of an error."
_CONTEXT = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Command:
    """Where a command lives, its line in the list of commands, and the extra of this package that it needs."""

    function: str
    """`module:function`."""
    summary: str
    extra: str | None = None
    children: tuple[str, ...] = ()
    """Functions of the same module that are commands below this one."""
    decodes_pictures: bool = False
    """The user's own pictures, some of which may be damaged: the decoders' remarks are kept off stderr."""

    def child(self, name: str) -> Command:
        """Return the command of that name below this one."""
        return replace(self, function=f"{self.function.partition(':')[0]}:{name}", children=())


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "vae_edge.benchmarks.demo_command:demo", "Train, export and benchmark on sample images, end to end.", "all"
    ),
    "sample": Command("vae_edge.train.sample.command:sample", "Draw a sample inspection set with defects and masks."),
    "train": Command(
        "vae_edge.train.command:train", "Train a detector on images of good parts.", "train", decodes_pictures=True
    ),
    "export": Command("vae_edge.export.command:export", "Turn a trained run into bundles for devices.", "export"),
    "run": Command("vae_edge.cli.run:run", "Inspect images, videos or a camera with a bundle.", decodes_pictures=True),
    "serve": Command("vae_edge.cli.serve:serve", "Answer other programs' requests over HTTP and gRPC.", "serve"),
    "archive": Command(
        "vae_edge.cli.archive:archive",
        "Score millions of pictures on Ray Data, into Parquet.",
        "archive",
        decodes_pictures=True,
    ),
    "bench": Command(
        "vae_edge.benchmarks.command:bench",
        "Measure bundles on this device and recommend one.",
        "bench",
        children=("compare", "render"),
        decodes_pictures=True,
    ),
    "verify": Command(
        "vae_edge.cli.verify:verify",
        "Prove that a bundle computes what it should on this device; with --data, fit its thresholds here.",
        decodes_pictures=True,
    ),
    "sign": Command("vae_edge.cli.sign:sign", "Sign a bundle, so that devices can tell who made it.", "sign"),
    "inspect": Command("vae_edge.cli.inspect:inspect", "Show what a bundle is and how far it can be trusted."),
    "cache": Command("vae_edge.cli.cache:cache", "List or clear what is cached for faster starts."),
    "doctor": Command("vae_edge.cli.doctor:doctor", "Show what works on this machine, and how to fix the rest."),
    "selfcheck": Command(
        "vae_edge.cli.selfcheck:selfcheck", "Check this device against stored answers, and write a file to send."
    ),
}


class _InterruptedError(Exception):
    """Ctrl-C in a command. typer would turn KeyboardInterrupt into words and an exit code of its own."""


def main() -> None:
    """Run `vae-edge`."""
    if next((word for word in sys.argv[1:] if not word.startswith("-")), None) == "run":
        _end_soon_after_a_signal()
    sys.exit(invoke(sys.argv[1:]))


def train_main() -> None:
    """Run `vae-train`."""
    sys.exit(invoke(sys.argv[1:], command="train"))


def export_main() -> None:
    """Run `vae-export`."""
    sys.exit(invoke(sys.argv[1:], command="export"))


def run_main() -> None:
    """Run `vae-run`."""
    _end_soon_after_a_signal()
    sys.exit(invoke(sys.argv[1:], command="run"))


def bench_main() -> None:
    """Run `vae-bench`."""
    sys.exit(invoke(sys.argv[1:], command="bench"))


def invoke(arguments: Sequence[str], *, command: str | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: without the program's name.
        command: the command, where the program's name implies it (`vae-run`); None: the first argument names it.
    """
    rest, debug = _take_debug(arguments)
    with standard_streams() as finish, warnings_shown(), _ended_like_ctrl_c() as signals:
        code = _run(rest, debug, command)
        # The code of a signal that ends a process: 143 for SIGTERM.
        return finish(128 + signals[0] if code == EXIT_INTERRUPTED and signals else code)


def _run(arguments: list[str], debug: bool, command: str | None) -> int:
    """Run a command line and say in one line why it failed, if it did; return its exit code."""
    program = "vae-edge" if command is None else f"vae-{command}"
    try:
        _refuse_empty(arguments)
        app = _Apps(debug).all_commands(arguments) if command is None else _Apps(debug).one_command(command, arguments)
        run = functools.partial(get_command(app).main, prog_name=program, standalone_mode=False)
        if command is None and not arguments:
            run(args=["--help"])
            return UsageError.exit_code
        code = run(args=arguments)
        return code if isinstance(code, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ReaderLeftError:
        return 0
    except (KeyboardInterrupt, _InterruptedError, typer.Abort):
        print_error("interrupted; no partial results were left behind")
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - this is the end of the line
        if debug:
            print(printable("".join(traceback.format_exception(error)), keep_lines=True), end="", file=sys.stderr)
        if not isinstance(error, VaeEdgeError) and hasattr(error, "format_message"):  # typer's, about the usage.
            if (context := getattr(error, "ctx", None)) is not None:
                print(context.get_usage(), file=sys.stderr)
            print_error(f"{error.format_message().rstrip('.')}; {program} --help shows what is available")
            return UsageError.exit_code
        print_error(_sentence(error))
        return error.exit_code if isinstance(error, VaeEdgeError) else EXIT_FAILED


def _sentence(error: Exception) -> str:
    """Return what to say about an error: its own message, or of what no command foresaw, what can be done about it."""
    gone = "the current folder no longer exists; cd into another one and run the command again"
    try:
        Path.cwd()
    except OSError:
        return f"{error}: {gone}" if isinstance(error, VaeEdgeError) else gone
    if isinstance(error, VaeEdgeError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory; close other programs, or use smaller images or fewer at a time"
    if isinstance(error, ImportError) and (error.name == "cv2" or "multiarray" in str(error)):
        return (
            f"OpenCV cannot be imported ({error}); run pip install opencv-python-headless, or, to use a system's one "
            "that was compiled for NumPy 1, pip install 'numpy<2'"
        )
    if not isinstance(error, OSError):
        return (
            f"unexpected {type(error).__name__}: {error}; this is a bug in vae-edge: run the command again with "
            "--debug and report the output"
        )
    temporary = "set TMPDIR to a writable folder with free space"
    if "No usable temporary directory" in str(error):
        return f"no temporary folder is available ({error.strerror}); {temporary}"
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"the folder of the results, or the temporary folder {tempfile.gettempdir()}"
        return f"{where}, is full ({error.strerror}); make room, or {temporary}"
    return (
        f"{error.filename or 'a file or a connection'}: {error.strerror or error}; fix that and run the command again"
    )


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty argument: as a path it would mean the current folder.

    Raises:
        UsageError: there is one.
    """
    for position, argument in enumerate(arguments):
        if argument == "":
            after = f", after {arguments[position - 1]}," if position else ""
            raise UsageError(f"argument {position + 1}{after} is empty; is a shell variable unset?")
        if re.fullmatch(r"--[a-z][a-z\-]*=", argument):
            raise UsageError(f"{argument} has no value; is a shell variable unset?")


def _end_soon_after_a_signal() -> None:
    """Let Ctrl-C or SIGTERM end this process within two seconds, whatever a decoder, a driver or a network share does.

    Python hears a signal only between two steps of its main thread, and waits for its other threads at its end. So the
    system notifies a separate thread of the signal. A second signal ends at once. What is written by then is whole: a
    line is written in one piece, and other files get their names when they are.
    """
    import socket

    open_closed_descriptors()  # Or the socket would get the number of a closed stdout.
    hears, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    ending = {getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)}

    def watch(_kept_open: socket.socket) -> None:
        while not (came := ending & set(hears.recv(1))):
            pass
        # Both a terminal and a parent process may send one signal, one right after the other.
        time.sleep(_SAME_SIGNAL_S)
        hears.setblocking(False)
        with suppress(BlockingIOError):
            hears.recv(64)
        hears.settimeout(_TIME_TO_END_S - _SAME_SIGNAL_S)
        with suppress(TimeoutError):
            while not ending & set(hears.recv(1)):
                pass
        message = b"error: interrupted while something did not answer; what was written is whole\n"
        with suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), message)
        os._exit(128 + min(came))

    threading.Thread(target=watch, args=(told,), name="vae-edge-signals", daemon=True).start()


@contextmanager
def _ended_like_ctrl_c() -> Iterator[list[int]]:
    """Let SIGTERM, Ctrl-Break and a closed terminal end a command as Ctrl-C does: with what it had begun cleared away.

    Gives the list that gets their numbers.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    signals = [getattr(signal, name) for name in ENDING_SIGNALS if name != "SIGINT" and hasattr(signal, name)]
    # Not if it is handled otherwise, as by nohup.
    ours = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield came
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class _Apps:
    """Builds the typer program for one command line."""

    debug: bool

    def all_commands(self, arguments: list[str]) -> typer.Typer:
        """Build `vae-edge`: the command that was requested is real, the others are their lines in the list only."""
        app = _new_app()

        @app.callback(epilog=_EPILOG)
        def root(
            version: Annotated[
                bool,
                typer.Option("--version", help="Show the version and stop.", is_eager=True, callback=_show_version),
            ] = False,
        ) -> None:
            """Visual anomaly detection on edge devices: one verdict on ONNX Runtime, OpenVINO and TensorRT."""

        asked = next((argument for argument in arguments if not argument.startswith("-")), None)
        for name, entry in COMMANDS.items():
            if name != asked:
                app.command(name, help=entry.summary)(_listed_only)
                continue
            rest = arguments[arguments.index(name) + 1 :]
            if rest and rest[0] in entry.children:
                # `bench compare ...` and `bench BUNDLE ...`: the word decides. A bundle of that name is ./compare.
                app.add_typer(self._group_of_one(entry, rest[0]), name=name)
            else:
                self._add(app, name, entry)
        return app

    def one_command(self, name: str, arguments: list[str]) -> typer.Typer:
        """Build a program that is one command, or the command below it that was requested."""
        entry = COMMANDS[name]
        if arguments and arguments[0] in entry.children:
            return self._group_of_one(entry, arguments[0])
        app = _new_app()
        self._add(app, name, entry)
        return app

    def _group_of_one(self, entry: Command, child: str) -> typer.Typer:
        group = _new_app()
        group.callback()(_listed_only)  # Without it typer would take the one command for the whole program.
        self._add(group, child, entry.child(child))
        return group

    def _add(self, app: typer.Typer, name: str, entry: Command) -> None:
        epilog = _EPILOG
        if entry.children:
            epilog = f"Subcommands: {', '.join(entry.children)} (see {name} {entry.children[0]} --help). {epilog}"
        function = _load(entry)
        # typer keeps a docstring's line ends, which are those of the source and not of the terminal.
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        text = "\n\n".join(map(_as_shown, paragraphs))
        app.command(name, help=text, epilog=epilog, context_settings=_CONTEXT)(self._guarded(function, entry))

    def _guarded(self, function: Callable[..., Any], entry: Command) -> Callable[..., Any]:
        """Wrap a command so that a package that is missing later, and Ctrl-C, end in a sentence."""
        silence = entry.decodes_pictures and not self.debug

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                if entry.extra is not None:
                    check_current_folder()
                given = {name: _as_meant(name, value) for name, value in kwargs.items()}
                with decoders_silenced() if silence else nullcontext():
                    return function(*args, **given)
            except KeyboardInterrupt:
                raise _InterruptedError from None
            except ModuleNotFoundError as error:
                _explain_missing(error, entry.extra)
                raise

        return call


def _as_meant(name: str, value: Any) -> Any:
    """Return an option's value with the home folder instead of `~` where it is a path, or several.

    Raises:
        UsageError: there is no such home folder, or a number is one that no option can mean.
    """
    if isinstance(value, list):
        return [_as_meant(name, item) for item in value]
    if isinstance(value, Path):
        return user_path(value)
    if isinstance(value, int | float) and value != 0 and not _LEAST <= abs(value) <= _MOST:
        # Not a number, infinite, or so large or small that a sum or a division of it is.
        raise UsageError(f"--{name.replace('_', '-')} is {value}; expected 0 or a number from {_LEAST:g} to {_MOST:g}")
    return value


def _as_shown(paragraph: str) -> str:
    """Return a paragraph of a docstring for the help: examples, which are indented, keep their lines."""
    if not paragraph.startswith(" "):
        return " ".join(paragraph.split())
    # The backspace, which is not shown, tells older versions of typer to keep them.
    return "\b" + textwrap.dedent(paragraph)


def _new_app() -> typer.Typer:
    return typer.Typer(add_completion=False, context_settings=_CONTEXT)


def _load(entry: Command) -> Callable[..., Any]:
    module, _, attribute = entry.function.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        _explain_missing(error, entry.extra)
        raise
    return found


def _explain_missing(error: ModuleNotFoundError, extra: str | None) -> None:
    """Raise our error with the command that fixes it; return where a module of our own is missing, which is a bug."""
    if extra is None or error.name is None or error.name.split(".")[0] == "vae_edge":
        return
    raise MissingDependencyError(
        f'this command needs the package {error.name!r}, which is not installed; run: pip install "vae-edge[{extra}]"'
    ) from error


def _take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out, wherever it stands before a `--`."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end


def _show_version(asked: bool) -> None:
    if asked:
        print(f"vae-edge {__version__}")
        raise typer.Exit


def _listed_only() -> None:
    """Stand in for a command that was not asked for."""


if __name__ == "__main__":
    main()
