"""Progress of work that goes through several named steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vae_edge.cli.console import notes_console

ReportStep = Callable[[str, int, int], None]
"""Takes what is being done, how much of it is done and how much there is."""


@contextmanager
def step_progress() -> Iterator[ReportStep]:
    """Show each step on stderr while the block runs: a bar on a terminal, else a line when a step begins."""
    console = notes_console()
    seen: dict[str, TaskID] = {}
    if not console.is_terminal:

        def note(step: str, done: int, total: int) -> None:
            if step not in seen:
                seen[step] = TaskID(0)
                console.print(f"  {step}", markup=False)

        yield note
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def move(step: str, done: int, total: int) -> None:
            if step not in seen:
                seen[step] = progress.add_task(escape(step), total=total)
            progress.update(seen[step], completed=done, total=total)

        yield move
