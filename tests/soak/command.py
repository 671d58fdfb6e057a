"""A soak: watch, stream and serve for hours while files are torn, disks fill, processes are killed and clocks jump.

    make soak                                         # two hours, into bench/soak
    make soak MINUTES=10
    python -m tests.soak.command --minutes 10 --out bench/soak

Pictures are given all the time, and a fault happens every few minutes. The first half has faults that end processes; in
the second half processes run through, and their memory, descriptors and threads must not grow. Exit code 1 if a verdict
is lost, wrong or given twice without a reason, if something grows, or if a process ends in another way than the fault
explains. `vae-edge selfcheck --soak` is something else: it repeats one bundle's verdicts on a device.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import vae_edge
from tests.line_receivers import MOSQUITTO, Broker, Subscriber
from tests.soak.clock import WallClock
from tests.soak.faults import Fault, Rig, faults
from tests.soak.growth import growths
from tests.soak.ledger import count_arrivals
from tests.soak.page import html
from tests.soak.places import Place
from tests.soak.record import Injected, Soak, as_json, markdown
from tests.soak.serve import Serve
from tests.soak.stream import Stream
from tests.soak.subject import Subject
from tests.soak.watch import Watch, arrivals
from tests.tiny_bundles import make_bundle
from vae_edge.platform.machine import look_at_machine
from vae_edge.targets import Target

SUBJECTS = ("watch", "stream", "serve")
RATES = {"watch": 10.0, "stream": 12.0, "serve": 4.0}
"""Pictures a second: well below what two busy cores judge."""
_TURN_S = 0.1
_SAMPLE_S = 1.0
_CALM_SHARE = 0.5
"""From this share of the time on no fault ends a process."""
_WARM_UP_SHARE = 0.15
"""Of the whole time, after the last process has started."""


class _Schedule:
    """Which fault is next, and when: one at a time, all of them again and again."""

    def __init__(self, rig: Rig, found: list[Fault], seconds: float, pause_s: float) -> None:
        self._rig = rig
        self._ending = list(found)
        self._calm = [fault for fault in found if not fault.ends_a_process]
        self._seconds = seconds
        self._pause_s = pause_s
        self._next_s = pause_s
        self._number = 0
        self._running: tuple[Fault, float, Iterator[float]] | None = None
        self.injected: list[Injected] = []

    @property
    def is_busy(self) -> bool:
        """Whether a fault is going on."""
        return self._running is not None

    def turn(self, now_s: float) -> None:
        """Go on with the current fault, or begin the next one if it is time."""
        if now_s < self._next_s:
            return
        if self._running is None:
            choice = self._ending if now_s < _CALM_SHARE * self._seconds else self._calm
            if now_s > 0.95 * self._seconds or not choice:
                return
            fault = choice[self._number % len(choice)]
            self._number += 1
            self._running = (fault, now_s, fault.act(self._rig))
        fault, begin_s, steps = self._running
        try:
            self._next_s = now_s + next(steps)
        except StopIteration:
            self.injected.append(Injected(fault.name, fault.subject, begin_s, now_s))
            self._running, self._next_s = None, now_s + self._pause_s


def run(
    minutes: float, folder: Path, *, subjects: tuple[str, ...] = SUBJECTS, serve_python: Path | None = None
) -> Soak:
    """Soak for that long in a folder, and return what was found; Ctrl-C ends it early.

    Args:
        minutes: how long pictures are given.
        folder: an empty one, for everything.
        subjects: which of `SUBJECTS`.
        serve_python: of the environment with MLServer; None: the server is left out.
    """
    seconds = 60 * minutes
    environment = {"VAE_EDGE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    machine = look_at_machine()
    soak = Soak(
        datetime.now().astimezone().isoformat(timespec="seconds"),
        vae_edge.__version__,
        minutes,
        f"{machine.processor}, {machine.n_cores} cores, {platform.system()}, Python {platform.python_version()}",
    )
    with ExitStack() as stack:
        clock = None
        try:
            clock = WallClock(folder)
            environment |= clock.environment
        except OSError as error:
            soak.left_out.append(str(error))
        rig = Rig([], cache=folder / "cache", clock=clock, pace=min(1.0, max(0.2, minutes / 10)))
        subscriber = None
        for name in subjects:
            subject: Subject
            if name == "watch":
                rig.results, rig.kept = (Place(folder / place, size) for place, size in (("results", 64), ("kept", 4)))
                stack.callback(rig.results.close)
                stack.callback(rig.kept.close)
                if MOSQUITTO is not None:
                    rig.broker = stack.enter_context(Broker(folder))
                    subscriber = stack.enter_context(Subscriber(rig.broker))
                rig.watch = subject = Watch(
                    make_bundle(folder / "toy-openvino-fp32", Target.OPENVINO).folder,
                    folder / name,
                    results=rig.results.folder,
                    kept=rig.kept.folder / "pictures",
                    mqtt=None if rig.broker is None else rig.broker.address,
                    environment=environment,
                    per_s=RATES[name],
                )
            elif name == "stream":
                bundle = make_bundle(folder / "stream-onnx-fp32", Target.ONNX).folder
                subject = Stream(bundle, folder / name, environment=environment, per_s=RATES[name])
            else:
                if serve_python is None or not serve_python.exists():
                    soak.left_out.append("serve, because MLServer is not installed; `make test-serve` installs it")
                    continue
                bundle = make_bundle(folder / "serve-onnx-fp32", Target.ONNX).folder
                python = str(serve_python)
                subject = Serve(bundle, folder / name, python=python, environment=environment, per_s=RATES[name])
            rig.subjects.append(subject)
            stack.callback(subject.drop)
        schedule = _Schedule(rig, faults(rig), seconds, pause_s=min(60.0, max(1.0, seconds / 60)))
        soak.left_out += rig.left_out
        try:
            _soak(rig, schedule, seconds)
            for subject in rig.subjects:
                subject.finish()
        except KeyboardInterrupt:
            soak.interrupted = True
        _collect(soak, rig, schedule, seconds)
        if rig.watch is not None and subscriber is not None:
            _collect_messages(soak, rig.watch, subscriber)
    return soak


def _soak(rig: Rig, schedule: _Schedule, seconds: float) -> None:
    begin_s = time.monotonic()
    for subject in rig.subjects:
        subject.start()
    next_sample_s = next_word_s = 0.0
    while (now_s := time.monotonic() - begin_s) < seconds or schedule.is_busy:
        if now_s >= next_sample_s:
            next_sample_s = now_s + _SAMPLE_S
            for subject in rig.subjects:
                subject.look(now_s)
        schedule.turn(now_s)
        if now_s >= next_word_s:
            next_word_s = now_s + 60
            counts = ", ".join(f"{each.name} {each.ledger.count().given}" for each in rig.subjects)
            print(f"{now_s / 60:4.0f} of {seconds / 60:g} min: {counts}; {len(schedule.injected)} faults", flush=True)
        time.sleep(_TURN_S)


def _collect(soak: Soak, rig: Rig, schedule: _Schedule, seconds: float) -> None:
    soak.injected = schedule.injected
    soak.problems_of_faults = rig.problems
    soak.judged_from_s = (_CALM_SHARE + _WARM_UP_SHARE) * seconds
    for subject in rig.subjects:
        soak.counts[subject.name] = subject.ledger.count()
        soak.torn[subject.name] = subject.n_torn
        soak.endings += subject.endings
        soak.samples[subject.name] = subject.samples
        found = growths(subject.name, subject.samples, from_s=soak.judged_from_s, to_s=seconds)
        soak.growths += found
        if not found:
            soak.left_out.append(f"growth of {subject.name}: too few samples of one process")
        if isinstance(subject, Stream) and subject.n_out_of_order:
            soak.problems_of_faults.append(f"stream: {subject.n_out_of_order} lines came out of order")
        if isinstance(subject, Serve) and subject.n_refused:
            soak.problems_of_faults.append(f"serve: {subject.n_refused} answers were neither a verdict nor 400")


def _collect_messages(soak: Soak, watch: Watch, subscriber: Subscriber) -> None:
    """Compare what the broker's subscriber got with the lines; it may still be on its way."""
    killed = {each.generation for each in watch.endings if each.code == -signal.SIGKILL}
    for _ in range(100):
        count = count_arrivals(watch.lines, arrivals(subscriber.verdicts), killed)
        if not count.lost:
            break
        time.sleep(0.1)
    soak.counts["mqtt"] = count


def main(arguments: list[str]) -> int:
    """Soak, print the tables, write `soak.json`, `soak.md`, `soak.html` and `logs`; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=Path("bench/soak"))
    parser.add_argument("--subjects", default=",".join(SUBJECTS), help="of watch, stream and serve")
    parser.add_argument("--serve-python", type=Path, default=Path(".venv-serve/bin/python"))
    given = parser.parse_args(arguments)
    subjects = tuple(given.subjects.split(","))
    if given.minutes <= 0 or not set(subjects) <= set(SUBJECTS):
        parser.error(
            f"minutes are {given.minutes:g} and subjects {given.subjects}; expected above 0, and of {SUBJECTS}"
        )
    # The programs are ended by it, and in the background of a shell they would inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(given.out / "logs", ignore_errors=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        soak = run(given.minutes, Path(folder), subjects=subjects, serve_python=given.serve_python.absolute())
        for log in Path(folder).glob("*/stderr-*.txt"):
            copy = given.out / "logs" / f"{log.parent.name}-{log.name.removeprefix('stderr-')}"
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(log, copy)
    (given.out / "soak.json").write_text(json.dumps(as_json(soak), indent=1) + "\n", encoding="utf-8")
    (given.out / "soak.md").write_text(markdown(soak), encoding="utf-8")
    (given.out / "soak.html").write_text(html(soak), encoding="utf-8")
    print(markdown(soak))
    print(f"{given.out / 'soak.html'} has the plots")
    return int(bool(soak.problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
