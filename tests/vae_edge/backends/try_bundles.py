"""python -m tests.vae_edge.backends.try_bundles FOLDER: open every bundle in a folder, judge a picture, print a JSON
line for each: what came of it, and after how many seconds of processor time. Memory is limited."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
import warnings
from pathlib import Path

from tests.tiny_bundles import dark_image
from vae_edge import Detector

ROOM_BYTES = 1 << 30
"""How much more address space than after its imports a process gets."""


def main(folder: Path, module: str) -> None:
    """Try the bundles one after the other."""
    warnings.simplefilter("ignore")
    importlib.import_module(module)
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + ROOM_BYTES, resource.RLIM_INFINITY))
    for bundle in sorted(folder.iterdir()):
        start = time.process_time()
        kind, message = "verdict", ""
        try:
            with Detector.open(bundle, device="cpu", cache=False, threads=1) as detector:
                detector.predict(dark_image(1))
                list(detector.predict_batch([dark_image(seed) for seed in range(64)], batch_size=64))
        except Exception as error:  # noqa: BLE001 - what came is told by its name
            kind, message = type(error).__name__, str(error)
        result = {"case": bundle.name, "kind": kind, "message": message, "s": time.process_time() - start}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
