"""Verdicts over MQTT, OPC UA and a webhook at once, while broker, client and web service are killed and come back.

    make bench-line                                        # 5,000 verdicts, 100 a second: a minute and a half
    python -m tests.line_acceptance --verdicts 5000 --out bench/line

Each receiver is a process that is killed without a word (SIGKILL) and writes what arrives, with the time, into a file
that it finds again. Counted are: sent, arrived, doubled, lost, and the longest time from the verdict to its arrival.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.line_receivers import ABOUT, Broker, free_port, listens, record
from tests.threads import wait_until
from vae_edge.sinks.line.line import Line
from vae_edge.sinks.line.mqtt import Mqtt
from vae_edge.sinks.line.opcua import OpcUa
from vae_edge.sinks.line.settings import LineSettings
from vae_edge.sinks.line.webhook import Webhook

OUTAGES = (
    (0.20, ("mqtt",)),
    (0.35, ("opcua",)),
    (0.50, ("webhook",)),
    (0.65, ("mqtt", "opcua", "webhook")),
    (0.85, ("mqtt", "webhook")),
)
"""After which share of the verdicts which receivers are killed; for a tenth of the time each."""
_OUTAGE_SHARE = 0.1
_PATIENCE_S = 90.0


@dataclass
class Outcome:
    """What came through one channel."""

    channel: str
    sent: int
    arrived: int = 0
    doubled: int = 0
    lost: int = 0
    longest_s: float = 0.0
    """From the verdict to its arrival, outages of this receiver included."""
    longest_while_others_were_away_s: float = 0.0
    """The same, of verdicts given while other receivers were away and this one was not, nor catching up."""


@dataclass
class Result:
    """What the run showed."""

    verdicts: int
    per_second: float
    longest_call_s: float
    """How long the inspection was held up by one verdict, at most."""
    call_p999_s: float
    """999 of 1,000 verdicts took less."""
    outcomes: list[Outcome] = field(default_factory=list)
    summary: list[tuple[str, str]] = field(default_factory=list)


class Receiver:
    """A process that writes what arrives into a file."""

    def __init__(self, kind: str, address: str, file: Path, ready: Callable[[], bool]) -> None:
        self.kind = kind
        self._command = [sys.executable, "-m", "tests.line_receiver_process", kind, address, str(file)]
        self.file = file
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it finds what it had."""
        self._process = subprocess.Popen(self._command, cwd=Path(__file__).parents[1])

    def wait(self) -> None:
        """Wait until it receives."""
        wait_until(self._ready, 60)

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def arrivals(self) -> list[tuple[str, float]]:
        """Return (id, time) of everything that arrived; a line that the kill cut short is none."""
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        lines = (line.split() for line in text.split("\n")[:-1])
        return [(words[0], float(words[1])) for words in lines if len(words) == 3]


def run(n: int, per_s: float, folder: Path) -> Result:
    """Send verdicts while the receivers are killed and come back; return what came through."""
    broker = Broker(folder)
    ports = {kind: free_port() for kind in ("opcua", "webhook")}
    addresses = {
        "mqtt": broker.address,
        "opcua": f"opc.tcp://127.0.0.1:{ports['opcua']}",
        "webhook": f"http://127.0.0.1:{ports['webhook']}/verdicts",
    }
    marks = {kind: folder / f"{kind}.ready" for kind in addresses}
    receivers = {
        kind: Receiver(kind, address, folder / f"{kind}.txt", marks[kind].exists) for kind, address in addresses.items()
    }
    broker.start()
    for kind in ("mqtt", "webhook"):
        receivers[kind].start()
        receivers[kind].wait()
    wait_until(lambda: listens(ports["webhook"]), 30)
    nothing = LineSettings()
    channels = [
        Mqtt(addresses["mqtt"], nothing),
        OpcUa(addresses["opcua"], nothing),
        Webhook(addresses["webhook"], nothing),
    ]
    line = Line(channels, ABOUT, folder=folder / "undelivered", drain_s=_PATIENCE_S)
    receivers["opcua"].start()
    receivers["opcua"].wait()
    # What is killed of MQTT is the broker; its subscriber finds it again.
    kill = {"mqtt": broker.kill, "opcua": receivers["opcua"].kill, "webhook": receivers["webhook"].kill}
    start = {"mqtt": broker.start, "opcua": receivers["opcua"].start, "webhook": receivers["webhook"].start}
    try:
        sent, outages, calls_s = _send(line, n, per_s, kill, start)
        names = set(sent)
        end_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end_s and any(
            names - {name for name, _ in receiver.arrivals()} for receiver in receivers.values()
        ):
            time.sleep(0.5)
        line.close()
    finally:
        for receiver in receivers.values():
            receiver.kill()
        broker.kill()
    calls_s.sort()
    result = Result(n, per_s, calls_s[-1], calls_s[int(0.999 * (n - 1))], summary=line.summary())
    for kind, receiver in receivers.items():
        result.outcomes.append(_outcome(kind, receiver.arrivals(), sent, outages))
    return result


Outages = list[tuple[float, float, tuple[str, ...]]]
"""(begin, end, who) of each, by `time.time`."""


def _send(
    line: Line, n: int, per_s: float, kill: dict[str, Callable[[], None]], start: dict[str, Callable[[], Any]]
) -> tuple[dict[str, float], Outages, list[float]]:
    """Send the verdicts at their pace, kill and restart; return id to time, the outages, and what each call took."""
    sent: dict[str, float] = {}
    outages: Outages = []
    calls_s: list[float] = []
    begin_s = time.monotonic()
    due = list(OUTAGES)
    away: tuple[float, float, tuple[str, ...]] | None = None
    for number in range(n):
        time.sleep(max(0.0, begin_s + number / per_s - time.monotonic()))
        call_s = time.perf_counter()
        sent[line.send(record(number))] = time.time()
        calls_s.append(time.perf_counter() - call_s)
        if due and number >= due[0][0] * n:
            _, who = due.pop(0)
            away = (time.time(), number + _OUTAGE_SHARE * n, who)
            for kind in who:
                threading.Thread(target=kill[kind]).start()
        elif away is not None and number >= away[1]:
            for kind in away[2]:
                threading.Thread(target=start[kind]).start()
            outages.append((away[0], time.time(), away[2]))
            away = None
    if away is not None:
        for kind in away[2]:
            start[kind]()
        outages.append((away[0], time.time(), away[2]))
    return sent, outages, calls_s


def _outcome(kind: str, arrivals: list[tuple[str, float]], sent: dict[str, float], outages: Outages) -> Outcome:
    first: dict[str, float] = {}
    for name, when in arrivals:
        first.setdefault(name, when)
    delays = {name: first[name] - given for name, given in sent.items() if name in first}
    # A second before the kill something may have been on its way; caught up is who has a verdict given after the end.
    own = [
        (begin - 1, min((first[name] for name, given in sent.items() if given > end and name in first), default=end))
        for begin, end, who in outages
        if kind in who
    ]
    others = [
        delays.get(name, 0.0)
        for name, given in sent.items()
        if any(begin <= given < end for begin, end, _ in outages)
        and not any(begin <= given < end for begin, end in own)
    ]
    return Outcome(
        kind,
        sent=len(sent),
        arrived=len(delays),
        doubled=sum(name in sent for name, _ in arrivals) - len(delays),
        lost=len(sent) - len(delays),
        longest_s=max(delays.values(), default=0.0),
        longest_while_others_were_away_s=max(others, default=0.0),
    )


def table(result: Result) -> str:
    """Return the result as a table in Markdown."""
    rows = ["| | sent | arrived | doubled | lost | longest delay | longest while only others were away |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    rows += [
        f"| {each.channel} | {each.sent:,} | {each.arrived:,} | {each.doubled} | {each.lost} | "
        f"{each.longest_s:.1f} s | {each.longest_while_others_were_away_s:.2f} s |"
        for each in result.outcomes
    ]
    held = f"{1000 * result.call_p999_s:.1f} ms by 999 of 1,000 verdicts, {1000 * result.longest_call_s:.0f} ms at most"
    return "\n".join([*rows, "", f"The inspection was held up for less than {held}."])


def main(arguments: list[str]) -> int:
    """Run it, print the table and write `line.json`; 1 if a verdict was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=5000)
    parser.add_argument("--per-second", type=float, default=100.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = run(given.verdicts, given.per_second, Path(folder))
    print(table(result))
    for what, said in result.summary:
        print(f"{what:8} {said}")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        when = {"date": datetime.now().astimezone().isoformat(timespec="seconds")}
        (given.out / "line.json").write_text(json.dumps(when | asdict(result), indent=1) + "\n", encoding="utf-8")
    return int(any(outcome.lost for outcome in result.outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
