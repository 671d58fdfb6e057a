"""An archive scored on a Ray cluster of three nodes, of which one is killed, as is the driver; and how fast it is.

    make bench-archive                                     # 20,000 drawn pictures
    make bench-archive PICTURES=2000 BUNDLE=bundles/tile-onnx-fp32

First with a node killed (SIGKILL, with all its processes) after a third of the parts and the driver after two thirds;
the same command then goes on. Counted are the rows that are owed, written, doubled and lost, and those that differ from
the lines of `vae-run --shard`. Then the rates, in rounds: `vae-run --threads 1`, one worker and two workers, each
process confined to a core. A rate of the archive is that from the first part written to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import ray

from tests.archive.nodes import Nodes
from tests.tiny_bundles import dark_image, make_bundle, spotted_image, write_image
from vae_edge import __version__
from vae_edge.targets import Target

ROOT = Path(__file__).parents[2]
SIZE = 192
"""Pixels of a side of the drawn pictures."""
_COMPARED = (
    *("is_anomalous", "score", "p_value", "threshold", "false_alarm_rate", "n_anomalous_pixels", "anomalous_area"),
    *("verdict", "not_inspectable_because", "error"),
)
"""What a row and a line of vae-run say about a picture."""
_PATIENCE_S = 3600.0
N_SHARDS = 3


def draw(folder: Path, n: int) -> int:
    """Draw pictures into folders of a thousand, one in five with a spot; one in a thousand is broken. Return n."""
    for number in range(n):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        if number % 1000 == 500:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        else:
            write_image(path, (spotted_image if number % 5 == 0 else dark_image)(number, SIZE))
    return n


class Run:
    """`vae-edge archive` in a process of its own.

    Args:
        words: of the command.
        out: the folder of results among them.
        environment: of the process.
    """

    def __init__(self, words: list[str], out: Path, environment: dict[str, str]) -> None:
        self.out = out
        command = [sys.executable, "-m", "vae_edge", "archive", *words, "--out", str(out)]
        self.begun_s = time.time()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def parts(self) -> list[Path]:
        """Return the files of the parts that are written."""
        return sorted(self.out.glob("bundle_sha256=*/part-*.parquet"))

    def wait_for(self, n_parts: int) -> None:
        """Wait until so many parts are there, or the run has ended."""
        end_s = time.monotonic() + _PATIENCE_S
        while len(self.parts()) < n_parts and self.process.poll() is None:
            assert time.monotonic() < end_s
            time.sleep(0.1)

    def finish(self) -> str:
        """Wait for its end; returns what it said."""
        _, said = self.process.communicate(timeout=_PATIENCE_S)
        assert self.process.returncode in (0, 1), said
        return said


class MemoryWatch(threading.Thread):
    """Notes the memory of every worker every two seconds."""

    def __init__(self, nodes: Nodes) -> None:
        super().__init__(name="memory", daemon=True)
        self._nodes = nodes
        self._ended = threading.Event()
        self.mb: dict[int, list[float]] = {}

    def run(self) -> None:
        while not self._ended.wait(2.0):
            for process in self._nodes.workers():
                try:
                    self.mb.setdefault(process.pid, []).append(round(process.memory_info().rss / 1e6, 1))
                except psutil.Error:
                    continue

    def end(self) -> list[dict[str, float]]:
        """Return for each worker how long it was seen and its memory after a fifth of that, at the end and at most."""
        self._ended.set()
        self.join()
        return [
            {"seconds": 2.0 * len(mb), "early_mb": mb[len(mb) // 5], "last_mb": mb[-1], "most_mb": max(mb)}
            for mb in self.mb.values()
            if len(mb) >= 5
        ]


def with_failures(bundle: Path, pictures: Path, folder: Path, n_owed: int, rows_per_part: int) -> dict[str, Any]:
    """Score everything while a node and the driver are killed; see above."""
    out = folder / "killed"
    n_parts = -(-n_owed // rows_per_part)
    with Nodes([1, 1, 1]) as nodes:
        memory = MemoryWatch(nodes)
        memory.start()
        words = [str(bundle), str(pictures), "--address", nodes.address, "--rows-per-part", str(rows_per_part)]
        begun_s = time.monotonic()
        first = Run([*words, "--workers", "3"], out, nodes.environment)
        first.wait_for(n_parts // 3)
        n_at_node = len(first.parts())
        nodes.kill(2)
        first.wait_for(2 * n_parts // 3)
        n_at_driver = len(first.parts())
        first.process.kill()
        _, said_first = first.process.communicate()
        n_left_by_driver = len(first.parts())
        second = Run([*words, "--workers", "2"], out, nodes.environment)
        said = second.finish()
        seconds = time.monotonic() - begun_s
        memory_mb = memory.end()
    table = pyarrow.parquet.read_table(out)
    found = {row["id"]: row for row in table.to_pylist()}
    written = table.num_rows
    differing = compared_with_shards(bundle, pictures, folder / "shards", found)
    return {
        "rows_owed": n_owed,
        "rows_written": written,
        "doubled": written - len(found),
        "lost": n_owed - len(found),
        "parts": n_parts,
        "parts_when_the_node_was_killed": n_at_node,
        "parts_when_the_driver_was_killed": n_at_driver,
        "parts_kept_by_the_second_run": n_left_by_driver,
        "error_rows": sum(row["error"] is not None for row in found.values()),
        "bundle_hashes": sorted(set(table.column("bundle_sha256").to_pylist())),
        "verdicts": dict(Counter(row["verdict"] or "error" for row in found.values())),
        "rows_that_differ_from_vae_run_shards": differing,
        "seconds": round(seconds, 1),
        "workers_memory": memory_mb,
        "said": [line.strip() for line in (*said_first.splitlines(), *said.splitlines()) if line.strip()],
    }


def compared_with_shards(bundle: Path, pictures: Path, folder: Path, rows: dict[str, dict[str, Any]]) -> int:
    """Score the same with `vae-run --shard` for every shard; returns how many rows differ or are missing on a side."""
    seen: set[str] = set()
    n_different = 0
    for number in range(1, N_SHARDS + 1):
        out = folder / str(number)
        words = [str(bundle), str(pictures), "--recursive", "--shard", f"{number}/{N_SHARDS}", "--overlays", "none"]
        _vae_run([*words, "--out", str(out)])
        with (out / "predictions.jsonl").open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                name = Path(line["source"]).relative_to(pictures).as_posix()
                seen.add(name)
                row = rows.get(name)
                if row is None or row["source"] != line["source"]:
                    n_different += 1
                else:
                    n_different += any(row[column] != line.get(column) for column in _COMPARED)
    return n_different + len(set(rows) - seen)


def rates(bundle: Path, pictures: Path, folder: Path, rows_per_part: int, n_rounds: int) -> dict[str, Any]:
    """Measure the rates in rounds; every process is confined to a core."""
    cores = sorted(os.sched_getaffinity(0))
    vae_run: list[float] = []
    one: list[float] = []
    two: list[float] = []
    with Nodes([0, 1, 1], [None, cores[0], cores[-1]]) as both, Nodes([0, 1], [None, cores[0]]) as single:
        for number in range(n_rounds):
            out = folder / f"vae-run-{number}"
            words = [str(bundle), str(pictures), "--recursive", "--threads", "1", "--overlays", "none"]
            said = _vae_run([*words, "--out", str(out)], cores[0])
            vae_run.append(float(said.split("/s)")[0].rpartition("(")[2]))
            for nodes, n_workers, found in ((single, 1, one), (both, 2, two)):
                out = folder / f"archive-{n_workers}-{number}"
                words = [str(bundle), str(pictures), "--rows-per-part", str(rows_per_part)]
                run = Run([*words, "--workers", str(n_workers), "--address", nodes.address], out, nodes.environment)
                run.finish()
                found.append(_rate(run, n_workers))
                shutil.rmtree(out)
    return {
        "vae_run_per_s": vae_run,
        "one_worker_per_s": one,
        "two_workers_per_s": two,
        "one_worker_of_vae_run": round(statistics.median(a / b for a, b in zip(one, vae_run, strict=True)), 3),
        "two_workers_of_one": round(statistics.median(a / b for a, b in zip(two, one, strict=True)), 3),
    }


def _rate(run: Run, n_workers: int) -> float:
    """Return pictures a second from when every worker had given a part to the last part."""
    written = sorted((path.stat().st_mtime, pyarrow.parquet.read_metadata(path).num_rows) for path in run.parts())
    begin_s = written[n_workers - 1][0]
    later = [n for when, n in written if when > begin_s]
    rate: float = round(sum(later) / (written[-1][0] - begin_s), 1)
    return rate


def _vae_run(words: list[str], core: int | None = None) -> str:
    def confine() -> None:
        if core is not None:
            os.sched_setaffinity(0, [core])

    done = subprocess.run(
        [sys.executable, "-m", "vae_edge", "run", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=confine,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stderr


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    killed, speed = result["with_failures"], result["rates"]
    rows = ["| rows owed | written | doubled | lost | unlike vae-run --shard |", "|---:|---:|---:|---:|---:|"]
    names = ("rows_owed", "rows_written", "doubled", "lost", "rows_that_differ_from_vae_run_shards")
    rows += ["| " + " | ".join(f"{killed[name]:,}" for name in names) + " |", ""]
    if speed is not None:
        rows += ["| pictures/s | median of rounds | |", "|---|---:|---|"]
        middle: Callable[[str], float] = lambda name: statistics.median(speed[name])  # noqa: E731
        rows.append(f"| vae-run, one thread | {middle('vae_run_per_s'):.1f} | |")
        rows.append(
            f"| one worker | {middle('one_worker_per_s'):.1f} | {speed['one_worker_of_vae_run']:.2f} x vae-run |"
        )
        rows.append(
            f"| two workers | {middle('two_workers_per_s'):.1f} | {speed['two_workers_of_one']:.2f} x one worker |"
        )
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    """Run it, print the tables and write `archive.json`; 1 if a row was lost, doubled or another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--rows-per-part", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=4, help="of the rates; 0: none")
    parser.add_argument("--rated-pictures", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = given.bundle or make_bundle(folder / "toy-onnx-fp32", Target.ONNX).folder
        bundle = bundle.resolve()
        n_owed = draw(folder / "pictures", given.pictures)
        begun = os.getloadavg()
        killed = with_failures(bundle, folder / "pictures", folder, n_owed, given.rows_per_part)
        speed = None
        if given.rounds:
            n_rated = draw(folder / "rated", min(given.rated_pictures, given.pictures))
            speed = rates(bundle, folder / "rated", folder, max(1, n_rated // 20), given.rounds)
    result = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"vae_edge": __version__, "ray": ray.__version__, "pyarrow": pyarrow.__version__},
        "bundle": bundle.name,
        "picture_side": SIZE,
        "cores": len(os.sched_getaffinity(0)),
        "load_before_and_after": [*begun, *os.getloadavg()],
        "with_failures": killed,
        "rates": speed,
    }
    print(table(result))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "archive.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    bad = killed["doubled"] + killed["lost"] + killed["rows_that_differ_from_vae_run_shards"]
    return int(bool(bad) or killed["rows_written"] != n_owed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
