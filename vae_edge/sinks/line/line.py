"""The sink that hands every verdict to the machine beside the line."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vae_edge.errors import InputError
from vae_edge.sinks.line.backlog import MOST_BYTES
from vae_edge.sinks.line.channel import About, Channel, Messages
from vae_edge.sinks.line.delivery import Delivery
from vae_edge.sinks.sink import Inspected, Sink

_log = logging.getLogger(__name__)

DRAIN_S = 10.0
"""How long the end of a run waits for what is still to be delivered."""
_HURRIED_S = 0.5


class Line(Sink):
    """Hands every verdict to several channels; each has its own queue and thread, and none waits for another.

    A program of its own may use it without a source:

        with Line([Mqtt("mqtt://broker/line1"), Webhook("https://mes/verdicts")], About.of(manifest)) as line:
            line.send({"source": "part 17", "is_anomalous": False, "score": 0.1, "p_value": 0.4})

    Args:
        channels: where the verdicts go.
        about: what the receivers are told of the bundle.
        folder: for verdicts that could not be delivered, one folder for each channel in it; what lies there from an
            earlier run is delivered first. One process at a time may use it. None: what cannot be delivered is lost
            at the end.
        most_bytes: of the files of each channel; beyond it the oldest verdicts are dropped.
        is_optional: begin without a receiver that is not there, and keep trying.
        drain_s: how long `close` waits for what is not delivered yet; None: `DRAIN_S`.

    Raises:
        InputError: a receiver is not there, refuses, or a port is in use. The other channels are closed.
    """

    what = "verdicts for the line"
    is_by_product = True

    def __init__(
        self,
        channels: Sequence[Channel],
        about: About,
        *,
        folder: Path | None = None,
        most_bytes: int = MOST_BYTES,
        is_optional: bool = False,
        drain_s: float | None = None,
    ) -> None:
        self._messages = Messages()
        self._drain_s = DRAIN_S if drain_s is None else drain_s
        self._is_closed = False
        self.deliveries = [
            Delivery(channel, about, folder=_folder_of(channel, folder), most_bytes=most_bytes) for channel in channels
        ]
        opened: list[Delivery] = []
        try:
            for delivery in self.deliveries:
                try:
                    delivery.open()
                    opened.append(delivery)
                except InputError as error:
                    if not is_optional:
                        raise InputError(f"{error}; --sink-optional starts without it and keeps trying") from error
                    _log.warning("%s; trying again", error)
        except BaseException:
            for delivery in opened:
                delivery.channel.close()
            raise
        for delivery in self.deliveries:
            delivery.start()

    def send(self, record: Mapping[str, Any]) -> str:
        """Take a record, such as `sinks.sink.prediction_record` makes, and return its id; this never waits."""
        message = self._messages.make(record)
        for delivery in self.deliveries:
            delivery.put(message)
        return message.id

    def tell(self, about: About) -> None:
        """Let all receivers know that other thresholds are in force; this never waits."""
        for delivery in self.deliveries:
            delivery.tell(about)

    def write(self, inspected: Inspected) -> None:
        """Take one verdict, or the error in its place; this never waits."""
        self.send(inspected.record)

    @property
    def n_lost(self) -> int:
        """Verdicts that a receiver will never get, of all receivers together; final after `close`."""
        return sum(delivery.n_lost for delivery in self.deliveries)

    def hurry(self) -> None:
        """Let `close` wait no longer than half a second: the program was interrupted."""
        self._drain_s = min(self._drain_s, _HURRIED_S)

    def close(self) -> None:
        """Wait for what is on its way, all channels at the same time; what is left is kept in the folder."""
        if self._is_closed:
            return
        self._is_closed = True
        for delivery in self.deliveries:
            delivery.finish()
        until_s = time.monotonic() + self._drain_s
        try:
            for delivery in self.deliveries:
                delivery.wait(until_s)
        except BaseException:
            for delivery in self.deliveries:
                delivery.wait(0.0)
            raise

    def summary(self) -> list[tuple[str, str]]:
        """Return what each channel delivered, what waited and what was dropped."""
        return [row for delivery in self.deliveries for row in delivery.summary()]

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.hurry()
        self.close()


def _folder_of(channel: Channel, folder: Path | None) -> Path | None:
    """Return the channel's own folder; another address has another, so that nothing goes astray."""
    if folder is None:
        return None
    return folder / f"{channel.kind}-{hashlib.sha256(channel.shown.encode()).hexdigest()[:8]}"
