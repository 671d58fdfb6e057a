"""One channel with its backlog and its thread: whatever happens to it, nothing else waits for it."""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path

from vae_edge.errors import VaeEdgeError, said_by
from vae_edge.sinks.line.backlog import MOST_BYTES, Backlog
from vae_edge.sinks.line.channel import About, Channel, Message, NotDelivered, Refused

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_TICK_S = 0.5
LATE_S = 1.0
"""From this age on a verdict counts as one that waited."""
_NAMED_REFUSALS = 5


class Delivery:
    """Delivers the messages of one channel, in order, in a thread of its own.

    Args:
        channel: what delivers.
        about: what the receiver is told of the bundle.
        folder: see `Backlog`.
        most_bytes: see `Backlog`.
    """

    def __init__(
        self, channel: Channel, about: About, *, folder: Path | None = None, most_bytes: int = MOST_BYTES
    ) -> None:
        self.channel = channel
        self._about = self._told = about
        self.backlog = Backlog(folder if channel.keeps else None, most_bytes=most_bytes)
        self._closing = threading.Event()
        self._given_up = False
        self._is_over = False
        self._is_open = False
        self._thread = threading.Thread(target=self._run, name=f"vae-edge-{channel.kind}", daemon=True)
        self.n_put = 0
        self.n_delivered = 0
        self.n_late = 0
        self.n_refused = 0
        self.n_kept = 0
        """Left in the folder for the next run."""
        self.n_failures = 0
        """Attempts that failed, to open or to deliver."""
        self.longest_s = 0.0
        """From the detector to the receiver's confirmation, of the verdict that took longest."""
        self.trouble: str | None = None
        """Why the latest attempt failed; None: it did not."""
        self.first_refusal: str | None = None

    @property
    def n_lost(self) -> int:
        """Verdicts that the receiver will never get: dropped or refused. Final once `wait` has returned."""
        return self.backlog.n_dropped + self.n_refused

    def open(self) -> None:
        """Open the channel, here and now.

        Raises:
            InputError: see `Channel.open`.
        """
        about = self._about
        self.channel.open(about)
        self._told = about
        self._is_open = True

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def put(self, message: Message) -> None:
        """Take a message; this never waits for the receiver."""
        self.n_put += 1
        self.backlog.put(message)

    def tell(self, about: About) -> None:
        """Let the receiver know that other thresholds are in force, before the verdicts by them; does not wait."""
        self._about = about

    def finish(self) -> None:
        """Ask the thread to end once everything is delivered; does not wait for it."""
        self._closing.set()
        self.backlog.finish()

    def wait(self, until_s: float) -> None:
        """Wait for its end until a time of `time.monotonic`, then give up, and keep what is left if possible."""
        if self._is_over:
            return
        self._is_over = True
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until_s - time.monotonic()))
            self._given_up = True
            # For the farewell, if nothing hangs.
            self._thread.join(0.3)
        self.n_kept = self.backlog.keep_rest()

    def summary(self) -> list[tuple[str, str]]:
        """Return what the summary of a run says."""
        late = f"; {self.n_late} waited, {self.longest_s:.1f} s at most" if self.n_late else ""
        earlier = f"; {self.backlog.n_earlier} of an earlier run among them" if self.backlog.n_earlier else ""
        spilled = f"; {self.backlog.n_spilled} by way of the disk" if self.backlog.n_spilled else ""
        lost = self.backlog.n_dropped
        rows = [
            (
                self.channel.kind,
                f"{self.n_delivered} delivered to {self.channel.shown}{earlier}{late}{spilled}; {lost} dropped"
                + (f"; {self.n_refused} refused" if self.n_refused else ""),
            )
        ]
        if self.n_kept:
            rows.append(("", f"{self.n_kept} wait in {self.backlog.folder} for the next run"))
        if self.trouble and self.trouble != self.first_refusal and (self.n_kept or lost):
            rows.append(("", self.trouble))
        if self.first_refusal:
            rows.append(("", self.first_refusal))
        return [*rows, *(("", note) for note in self.channel.notes())]

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._given_up:
            try:
                if not self._is_open:
                    self.open()
                    _log.info("%s is open", self.channel.shown)
                messages = self.backlog.peek(self.channel.at_once, _TICK_S)
                if (about := self._about) is not self._told:
                    self.channel.tell(about)
                    self._told = about
                if not messages:
                    if self._closing.is_set():
                        break
                    continue
                self.channel.send(messages)
                self._delivered(messages, len(messages))
                self.trouble, pause_s = None, _FIRST_PAUSE_S
            except Refused as refusal:
                self._delivered(messages, refusal.n_delivered)
                self._refused(messages[refusal.n_delivered], refusal)
            except NotDelivered as error:
                self._delivered(messages, error.n_delivered)
                pause_s = _FIRST_PAUSE_S if error.n_delivered else pause_s
                pause_s = self._rest(error, pause_s, error.pause_s)
            except Exception as error:  # noqa: BLE001 - whatever a library raises, the next attempt may succeed
                pause_s = self._rest(error, pause_s, None)
        try:
            self.channel.close()
        except Exception as error:  # noqa: BLE001
            _log.debug("%s did not close well: %s", self.channel.shown, error)

    def _delivered(self, messages: list[Message], n: int) -> None:
        now = time.monotonic()
        for message in messages[:n]:
            if message.written_s is not None:
                age_s = now - message.written_s
                self.longest_s = max(self.longest_s, age_s)
                self.n_late += age_s > LATE_S
        self.n_delivered += n
        self.backlog.remove(n)

    def _refused(self, message: Message, why: Refused) -> None:
        self.n_refused += 1
        self.trouble = f"{self.channel.shown} refused {message.id}: {why}"
        self.first_refusal = self.first_refusal or self.trouble
        if self.n_refused <= _NAMED_REFUSALS:
            _log.warning("%s", self.trouble)
        self.backlog.remove(1)

    def _rest(self, error: Exception, pause_s: float, wanted_s: float | None) -> float:
        """Note a failure and pause; return the next pause."""
        said = str(error) if isinstance(error, VaeEdgeError | NotDelivered) else said_by(error)
        trouble = f"{self.channel.shown}: {said}"
        if self.trouble is None:
            _log.warning("%s; trying again", trouble)
        self.trouble = trouble
        self.n_failures += 1
        # At the end there is little time left, and nothing new comes.
        longest_s = 0.5 if self._closing.is_set() else _LONGEST_PAUSE_S
        rest_s = min(pause_s, longest_s) * random.uniform(0.8, 1.2) if wanted_s is None else wanted_s
        end_s = time.monotonic() + rest_s
        while not self._given_up and (left_s := end_s - time.monotonic()) > 0:
            if self._closing.is_set():
                time.sleep(min(left_s, 0.1))
            elif self._closing.wait(left_s):
                end_s = min(end_s, time.monotonic() + 0.1)
        return min(2 * pause_s, _LONGEST_PAUSE_S)
