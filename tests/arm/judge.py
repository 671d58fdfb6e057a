"""Judge pictures with every bundle of a folder: `python -m tests.arm.judge BUNDLES PICTURES OUT`.

It runs in the emulation as well as on this machine, so it needs what a device has and no more.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import numpy as np

from vae_edge import Detector
from vae_edge.errors import VaeEdgeError


def main(bundles: Path, pictures: Path, out: Path) -> int:
    """Write OUT/BUNDLE.npz for each bundle: scores, verdicts and anomaly maps, in the order of the sorted pictures."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(pictures.rglob("*.png"))
    for bundle in sorted(path.parent for path in bundles.glob("*/manifest.json")):
        start = time.perf_counter()
        try:
            # Without the cache: the second opening of a bundle would run what the first one has compiled.
            with Detector.open(bundle, device="cpu", hint="latency", threads=1, cache=False) as detector:
                opened = time.perf_counter()
                predictions = [detector.predict(file) for file in files]
                version = detector.backend.version
        except VaeEdgeError as error:
            sys.stderr.write(f"{bundle.name} cannot be run on {platform.machine()}: {error}\n")
            return 1
        np.savez(
            out / f"{bundle.name}.npz",
            names=np.array([file.relative_to(pictures).as_posix() for file in files]),
            scores=np.array([prediction.score for prediction in predictions], dtype=np.float64),
            verdicts=np.array([prediction.is_anomalous for prediction in predictions]),
            maps=np.stack([prediction.anomaly_map for prediction in predictions]),
            version=np.array(version),
        )
        took = (time.perf_counter() - opened) / len(files)
        sys.stdout.write(
            f"{platform.machine()}: {bundle.name} with {version}: opened in {opened - start:.1f} s, "
            f"{len(files)} pictures, {took:.3f} s each\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
