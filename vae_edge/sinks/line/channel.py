"""What a way to the line can do: `Channel`, and the message that goes over it."""

from __future__ import annotations

import json
import socket
import ssl
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

from vae_edge.decision import smallest_settable_rate
from vae_edge.errors import InputError, MissingDependencyError, said_by
from vae_edge.manifest import Manifest, Thresholds
from vae_edge.sinks.lines import json_line


@dataclass(frozen=True)
class Message:
    """One verdict on its way."""

    id: str
    """Unique among all runs, so that a receiver can drop what comes twice."""
    line: str
    """The record as one line of JSON, with `id` and `judged_at` (UTC, RFC 3339) before what `vae-run` writes."""
    written_s: float | None = None
    """When it came from the detector, by `time.monotonic`; None: in an earlier run."""

    @cached_property
    def record(self) -> dict[str, Any]:
        """The line's content."""
        content: dict[str, Any] = json.loads(self.line)
        return content

    @property
    def payload(self) -> bytes:
        """The line in UTF-8, without a line end."""
        return self.line.encode()


class Messages:
    """Makes the messages of one run: `<12 hexadecimal digits of the run>-<number from 1>`."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex[:12]
        self._n = 0

    def make(self, record: Mapping[str, Any]) -> Message:
        """Return the next message."""
        self._n += 1
        name = f"{self._run}-{self._n}"
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Message(name, json_line({"id": name, "judged_at": now, **record}), time.monotonic())


@dataclass(frozen=True)
class About:
    """What the line is told: which bundle judges, and with which thresholds."""

    bundle: str
    """Name, target, precision and the first 12 digits of the manifest's digest."""
    image_threshold: float
    pixel_threshold: float
    false_alarm_rate: float
    n_normals: int
    verified: bool
    host: str = field(default_factory=socket.gethostname)
    smallest_false_alarm_rate: float | None = None
    """The smallest that the normals support; None: the threshold keeps no rate (F1-optimal), or it is not known."""

    @classmethod
    def of(cls, manifest: Manifest, thresholds: Thresholds | None = None) -> About:
        """Return what a bundle's manifest says, with other thresholds in force where they are given."""
        digest = "" if manifest.digest is None else f"@{manifest.digest[:12]}"
        thresholds = thresholds or manifest.thresholds
        return cls(
            f"{manifest.name}-{manifest.target}-{manifest.precision}{digest}",
            thresholds.image_threshold,
            thresholds.pixel_threshold,
            thresholds.false_alarm_rate,
            thresholds.n_normals,
            manifest.verified,
            smallest_false_alarm_rate=smallest_settable_rate(thresholds),
        )


class NotDelivered(Exception):  # noqa: N818 - no failure, only not yet
    """The receiver is not there or did not confirm; to be tried again.

    Args:
        why: a part of a sentence.
        n_delivered: how many of the messages, from the first, were delivered all the same.
        pause_s: how long the receiver wants to be left alone, where it said so.
    """

    def __init__(self, why: str, n_delivered: int = 0, pause_s: float | None = None) -> None:
        super().__init__(why)
        self.n_delivered = n_delivered
        self.pause_s = pause_s


class Refused(Exception):  # noqa: N818
    """The receiver will never take this message; the one at position `n_delivered`."""

    def __init__(self, why: str, n_delivered: int = 0) -> None:
        super().__init__(why)
        self.n_delivered = n_delivered


class Channel(ABC):
    """One way to the line. All methods but the constructor are called by one thread, `open` first."""

    kind: str
    """Its name in the summary and in the names of threads and files."""
    shown: str
    """Its address, for people; without a password."""
    at_once = 1
    """Most messages of one `send`."""
    keeps = True
    """Whether messages of an earlier run are to be delivered, too; False for what shows the present state."""

    @abstractmethod
    def open(self, about: About) -> None:
        """Connect, or begin to serve; within about 15 s. After a failure it may be called again.

        Raises:
            InputError: the receiver is not there, refuses, or the port is in use.
        """

    @abstractmethod
    def send(self, messages: Sequence[Message]) -> None:
        """Deliver messages in order; within about a minute.

        Raises:
            NotDelivered: not all of them were delivered; it is worth another try.
            Refused: one of them cannot be delivered.
        """

    def tell(self, about: About) -> None:  # noqa: B027 - some do not say it
        """Say that other thresholds are in force; only while it is open, before the first verdict by them.

        Raises:
            NotDelivered: it is worth another try.
        """

    @abstractmethod
    def close(self) -> None:
        """Say goodbye; never raises for a receiver that is gone."""

    def notes(self) -> list[str]:
        """Return what the summary says of it beside the counts."""
        return []


def missing(package: str, option: str) -> MissingDependencyError:
    """Return the error for a channel whose library is not installed."""
    return MissingDependencyError(
        f'{option} needs the package {package!r}, which is not installed; run: pip install "vae-edge[line]"'
    )


@contextmanager
def failures_named(where: str, authorities: str) -> Iterator[None]:
    """Say, of what is connected to in the block, what is wrong.

    Args:
        where: it, in words.
        authorities: the setting of the certificates that may have signed its own.

    Raises:
        InputError: it is not there, does not speak TLS, or its certificate does not fit.
    """
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"{where} has a certificate that does not fit ({error.verify_message}); expected one for this host, "
            f"signed by a certificate that the system or {authorities} has"
        ) from error
    except ssl.SSLError as error:
        raise InputError(f"{where} does not speak TLS as expected ({said_by(error)}); check the port") from error
    except OSError as error:
        raise InputError(f"{where} cannot be reached ({said_by(error)}); check address and network") from error
