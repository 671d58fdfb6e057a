"""What the servers have in common: an asyncio loop in a thread of its own, and where to listen."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from enum import IntEnum
from typing import Any, TypeVar

from vae_edge.errors import InputError, said_by
from vae_edge.sinks.line.addresses import shown_where
from vae_edge.sinks.line.channel import NotDelivered

_Result = TypeVar("_Result")


class Verdict(IntEnum):
    """The verdict as a number, for machines that know no texts."""

    NONE = 0
    """There was no picture yet."""
    NORMAL = 1
    ANOMALOUS = 2
    ERROR = 3
    """The picture got no verdict."""
    NOT_INSPECTABLE = 4
    """The picture is not fit to be judged."""

    @classmethod
    def of(cls, record: dict[str, Any]) -> Verdict:
        """Return the verdict of a record."""
        if "is_anomalous" not in record:
            return cls.ERROR
        if record.get("verdict") == "not inspectable":
            return cls.NOT_INSPECTABLE
        return cls.ANOMALOUS if record["is_anomalous"] else cls.NORMAL


class Loop:
    """An asyncio loop in a daemon thread, for a server that must not depend on what its channel's thread does."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result], timeout_s: float) -> _Result:
        """Run a coroutine there and return its result.

        Raises:
            NotDelivered: it takes longer; it is cancelled then.
        """
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise NotDelivered(f"the server does nothing for {timeout_s:g} s") from None

    def close(self) -> None:
        """Stop the loop with everything that runs in it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


def cannot_listen(what: str, host: str, port: int, error: Exception) -> InputError:
    """Return the error for a server that could not begin."""
    return InputError(
        f"{what} cannot listen on {shown_where(host, port)} ({said_by(error)}); choose an address of this "
        "machine and a port that no other program has"
    )
