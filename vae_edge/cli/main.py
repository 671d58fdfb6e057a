"""The entry points of every command, and what they share: errors in one line, exit codes, `--debug`.

This is the composition root: the only module of the device's part that names training, export and benchmarks. It does
so as text, and a command's module is imported when that command is asked for, so that `vae-run` never loads torch.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a gate said no, 130 interrupted.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from typer.main import get_command

from vae_edge import __version__
from vae_edge.cli.console import decoders_silenced, escape_what_stdout_cannot_encode, print_error
from vae_edge.errors import MissingDependencyError, VaeEdgeError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_TIME_TO_END_S = 1.6
"""After Ctrl-C, for closing files and models; the promise is two seconds."""
_SAME_SIGNAL_S = 0.2

_EPILOG = "Every command takes --debug: it shows where an error came from."
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
        "vae_edge.benchmarks.demo_command:demo", "Sample images, training, export, benchmark: the whole road.", "all"
    ),
    "sample": Command("vae_edge.cli.sample:sample", "Draw a sample inspection set with defects and masks."),
    "train": Command(
        "vae_edge.train.command:train", "Train a detector on images of good parts.", "train", decodes_pictures=True
    ),
    "export": Command("vae_edge.export.command:export", "Turn a trained run into bundles for devices.", "export"),
    "run": Command("vae_edge.cli.run:run", "Inspect images, videos or a camera with a bundle.", decodes_pictures=True),
    "bench": Command(
        "vae_edge.benchmarks.command:bench",
        "Measure bundles on this device, and say which one to ship.",
        "bench",
        children=("compare",),
        decodes_pictures=True,
    ),
    "verify": Command(
        "vae_edge.cli.verify:verify", "Re-fit a bundle's thresholds on this device.", decodes_pictures=True
    ),
    "inspect": Command("vae_edge.cli.inspect:inspect", "Show what a bundle is and how far it can be trusted."),
    "cache": Command("vae_edge.cli.cache:cache", "List or clear what is kept here to start faster."),
    "doctor": Command("vae_edge.cli.doctor:doctor", "Show what works on this machine, and how to mend the rest."),
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
    escape_what_stdout_cannot_encode()
    try:
        with _ended_like_ctrl_c():
            app = _Apps(debug).all_commands(rest) if command is None else _Apps(debug).one_command(command, rest)
            get_command(app).main(args=rest, prog_name="vae-edge" if command is None else f"vae-{command}")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except VaeEdgeError as error:
        if debug:
            traceback.print_exception(error)
        print_error(str(error))
        return error.exit_code
    except OSError as error:
        # What no command foresaw: a full disk behind stdout, a stick that was pulled out.
        if debug:
            traceback.print_exception(error)
        print_error(f"{error.filename or 'the output'}: {error.strerror or error}; mend that and run the command again")
        return EXIT_FAILED
    except (KeyboardInterrupt, _InterruptedError):
        print_error("interrupted; nothing half-finished was left behind")
        return EXIT_INTERRUPTED
    return 0


def _end_soon_after_a_signal() -> None:
    """Let Ctrl-C or SIGTERM end this process within two seconds, whatever a decoder, a driver or a network share does.

    Python hears a signal only between two steps of its main thread, and waits for its other threads at its end. So a
    thread of its own is told of the signal by the system. A second signal ends at once. What is written by then is
    whole: a line is written in one piece, and other files get their names when they are.
    """
    import socket

    hears, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    ending = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}

    def watch(_kept_open: socket.socket) -> None:
        while not ending & set(hears.recv(1)):
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
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, args=(told,), name="vae-edge-signals", daemon=True).start()


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end a command as Ctrl-C does: with what it had begun cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Not where somebody had other plans for it, such as nohup.
    ours = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class _Apps:
    """Builds the typer program for one command line."""

    debug: bool

    def all_commands(self, arguments: list[str]) -> typer.Typer:
        """Build `vae-edge`: the command that was asked for is real, the others are their lines in the list only."""
        app = _new_app(no_args_is_help=True)

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
        """Build a program that is one command, or the command below it that was asked for."""
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
            epilog = (
                f"Below this command: {', '.join(entry.children)} (see {name} {entry.children[0]} --help). {epilog}"
            )
        function = _load(entry)
        # typer keeps a docstring's line ends, which are those of the source and not of the terminal.
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        app.command(name, help=text, epilog=epilog, context_settings=_CONTEXT)(self._guarded(function, entry))

    def _guarded(self, function: Callable[..., Any], entry: Command) -> Callable[..., Any]:
        """Wrap a command so that a package that is missing later, and Ctrl-C, end in a sentence."""
        silence = entry.decodes_pictures and not self.debug

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                with decoders_silenced() if silence else nullcontext():
                    return function(*args, **kwargs)
            except KeyboardInterrupt:
                raise _InterruptedError from None
            except ModuleNotFoundError as error:
                _explain_missing(error, entry.extra)
                raise

        return call


def _new_app(*, no_args_is_help: bool = False) -> typer.Typer:
    return typer.Typer(add_completion=False, no_args_is_help=no_args_is_help, context_settings=_CONTEXT)


def _load(entry: Command) -> Callable[..., Any]:
    module, _, attribute = entry.function.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        _explain_missing(error, entry.extra)
        raise
    return found


def _explain_missing(error: ModuleNotFoundError, extra: str | None) -> None:
    """Raise our error with the command that mends it; return where a module of our own is missing, which is a bug."""
    if extra is None or error.name is None or error.name.split(".")[0] == "vae_edge":
        return
    raise MissingDependencyError(
        f"this command needs the package {error.name!r}, which is not installed; run: pip install 'vae-edge[{extra}]'"
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
