"""Judge pictures in several processes, each with a Detector of its own: python worker_pool.py BUNDLE PICTURE..."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from vae_edge import Detector

_detector: Detector | None = None


def open_detector(bundle: Path) -> None:
    """Open the bundle once in each worker: a Detector that was opened before a fork cannot be used after it."""
    global _detector
    _detector = Detector.open(bundle, hint="latency", threads=1)


def judge(picture: Path) -> tuple[Path, bool, float]:
    """Return a picture's path, verdict and score."""
    assert _detector is not None
    prediction = _detector.predict(picture)
    return picture, prediction.is_anomalous, prediction.score


def judge_all(bundle: Path, pictures: list[Path], workers: int = 2) -> list[tuple[Path, bool, float]]:
    """Judge pictures in `workers` processes; the results have the pictures' order."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=open_detector, initargs=(bundle,)) as pool:
        return list(pool.map(judge, pictures, chunksize=8))


if __name__ == "__main__":
    for path, is_anomalous, score in judge_all(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]]):
        print(f"{path}\t{'anomalous' if is_anomalous else 'normal'}\t{score:.4f}")
