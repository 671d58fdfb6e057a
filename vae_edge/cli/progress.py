"""Bars on stderr for work that takes a while; where stderr is not a terminal, lines or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from vae_edge.cli.console import notes_console
from vae_edge.platform.work import StepProgress


class MoveBar(Protocol):
    """Moves a bar: the number done, the number of all (None if unknown), and what is being done."""

    def __call__(self, done: int, total: int | None, /, *, doing: str | None = None) -> None:
        """Move the bar; `doing` replaces its description."""


def new_bars(console: Console, *more: ProgressColumn, transient: bool = True, count: bool = True) -> Progress:
    """Return bars in the one look that all commands have: description, bar, count or share, time, and `more`."""
    amount = MofNCompleteColumn() if count else TextColumn("{task.percentage:>3.0f} %")
    time = TimeRemainingColumn(elapsed_when_finished=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), amount, time, *more)
    return Progress(*columns, console=console, transient=transient)


@contextmanager
def progress_bar(description: str, *, visible: bool = True) -> Iterator[MoveBar]:
    """Show a bar while the block runs, where stderr is a terminal, and give the function that moves it."""
    console = notes_console()
    if not (visible and console.is_terminal):

        def ignore(done: int, total: int | None, /, *, doing: str | None = None) -> None:
            pass

        yield ignore
        return
    with new_bars(console) as bars:
        task = bars.add_task(description, total=None)

        def move(done: int, total: int | None, /, *, doing: str | None = None) -> None:
            bars.update(task, completed=done, total=total, description=doing)

        yield move


@contextmanager
def step_progress() -> Iterator[StepProgress]:
    """Show each step while the block runs: a bar on a terminal, else a line when a step begins."""
    console = notes_console()
    seen: dict[str, TaskID] = {}
    if not console.is_terminal:

        def note(step: str, done: int, total: int) -> None:
            if step not in seen:
                seen[step] = TaskID(0)
                console.print(f"  {step}")

        yield note
        return
    with new_bars(console, transient=False) as bars:

        def move(step: str, done: int, total: int) -> None:
            if step not in seen:
                seen[step] = bars.add_task(step, total=total)
            bars.update(seen[step], completed=done, total=total)

        yield move
