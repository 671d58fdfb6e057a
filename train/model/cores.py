"""Independent pieces of torch's work, one on each core.

For what takes milliseconds the cores wait for each other longer than they compute if they share every operation, and
much longer beside other programs. Torch leaves Python free while it computes, so a thread for each core will do, in
which torch computes with one. Results do not depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from vae_edge.platform.work import InOrder

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def one_thread_for_each_operation() -> Iterator[None]:
    """Let torch compute with one thread, in this thread and in those that are started inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_each_core(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result, None, None]:
    """Yield `work(item)` of each item, in their order; as many are computed at a time as torch has threads.

    Args:
        work: called in several threads at once; whether torch keeps gradients there is its own affair.
        items: taken as they are needed; few are ahead of what was yielded.

    Raises:
        Exception: whatever `work` or the items raise, in its place in the order.
    """
    n_workers = torch.get_num_threads()
    with one_thread_for_each_operation():
        yield from InOrder(items, lambda taken: [work(item) for item in taken], n_workers=n_workers)
