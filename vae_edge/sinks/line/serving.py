"""What the servers have in common: an asyncio loop in a thread of its own, and where to listen."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from abc import abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from enum import IntEnum
from typing import Any, TypeVar

from vae_edge.errors import InputError, VaeEdgeError, said_by
from vae_edge.sinks.line.addresses import Address, shown_where
from vae_edge.sinks.line.channel import Channel, NotDelivered

_Result = TypeVar("_Result")

_STOP_S = 5.0


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


class ServedChannel(Channel):
    """A channel that clients read: its server has a loop of its own from `serve` to `close`."""

    _address: Address
    _loop: Loop | None = None

    def serve(self, name: str, what: str, start: Coroutine[Any, Any, None], within_s: float) -> None:
        """Begin to serve; to be called when it is closed.

        Args:
            name: of the loop's thread.
            what: the server, for a message.
            start: begins to listen.
            within_s: the time that it has.

        Raises:
            InputError: the address cannot be listened on.
        """
        self._loop = Loop(name)
        try:
            self._loop.run(start, within_s)
        except VaeEdgeError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise cannot_listen(what, self._address.host, self._address.port, error) from error

    def close(self) -> None:
        """Stop serving."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        with suppress(Exception):
            loop.run(self._stop(), _STOP_S)
        loop.close()

    @abstractmethod
    async def _stop(self) -> None:
        """End the server."""


def cannot_listen(what: str, host: str, port: int, error: Exception) -> InputError:
    """Return the error for a server that could not begin."""
    return InputError(
        f"{what} cannot listen on {shown_where(host, port)} ({said_by(error)}); choose an address of this "
        "machine and a port that no other program has"
    )
