"""The measured processes of `vae_edge.benchmarks.overhead`: `python -m vae_edge.benchmarks.overhead_worker TASK JSON`.

Each task prints one line of JSON. Standard library only at the top: `first` is measured from the process's start.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def first(bundle: str, image: str, cache: bool) -> dict[str, Any]:
    """Open a bundle and give the first verdict."""
    begin = time.perf_counter()
    from vae_edge import Detector

    imported = time.perf_counter()
    with Detector.open(bundle, cache=cache) as detector:
        opened = time.perf_counter()
        detector.predict(image)
        sys.stdout.write("first-result\n")
        sys.stdout.flush()
        done = time.perf_counter()
    return {"import_s": imported - begin, "open_s": opened - imported, "predict_s": done - opened}


def overhead(bundle: str, images: list[str], rounds: int, calls: int) -> dict[str, list[float]]:
    """Time the Detector and the bare runtime in turns; seconds for a call, the median of each round."""
    import random

    import cv2
    import numpy as np

    from vae_edge import Detector
    from vae_edge.benchmarks.bare_runtime import open_onnxruntime, open_openvino
    from vae_edge.image import load_prepared

    with Detector.open(bundle, hint="latency") as detector:
        manifest = detector.bundle.manifest
        height, width = manifest.preparation.height, manifest.preparation.width
        model = str(detector.bundle.model_path)
        threads = detector.backend.layout.threads
        assert threads is not None
        run = open_openvino(model, height, width) if manifest.target == "openvino" else open_onnxruntime(model, threads)

        def bare_from_file(path: str) -> None:
            decoded: Any = cv2.imread(path)
            picture: Any = cv2.resize(decoded, (width, height), interpolation=cv2.INTER_AREA)
            run(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)[None])

        prepared = [load_prepared(path, manifest.preparation) for path in images]
        kinds: dict[str, tuple[Any, list[Any]]] = {
            "bare": (lambda image: run(image[None]), prepared),
            "predict": (detector.predict, prepared),
            "bare_file": (bare_from_file, images),
            "predict_file": (detector.predict, images),
        }
        medians: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(rounds + 2):
            order = list(kinds)
            random.shuffle(order)
            for kind in order:
                call, inputs = kinds[kind]
                samples = []
                for position in range(calls):
                    item = inputs[position % len(inputs)]
                    begin = time.perf_counter_ns()
                    call(item)
                    samples.append(time.perf_counter_ns() - begin)
                if number >= 2:  # The first two warm up.
                    medians[kind].append(float(np.median(samples)) / 1e9)
    return medians


def stream(bundle: str, images: list[str], seconds: float) -> dict[str, Any]:
    """Count the verdicts of `Detector.stream` on images that are prepared already."""
    from vae_edge import Detector
    from vae_edge.benchmarks.worker_streams import count_verdicts
    from vae_edge.image import load_prepared

    with Detector.open(bundle, hint="throughput") as detector:
        prepared = [load_prepared(path, detector.bundle.manifest.preparation) for path in images]
        counted = count_verdicts(detector, prepared, 1, seconds)
        images_per_s = 1e9 * counted["n_images"] / counted["elapsed_ns"]
        return {"images_per_s": images_per_s, "layout": str(detector.backend.layout)}


def onnxruntime_throughput(bundle: str, images: list[str], seconds: float) -> dict[str, float]:
    """Measure what ONNX Runtime can do by itself: images/s of each of its layouts."""
    from vae_edge.benchmarks.bare_runtime import onnxruntime_throughputs
    from vae_edge.bundle import Bundle
    from vae_edge.image import load_prepared
    from vae_edge.machine import usable_cores

    opened = Bundle.open(bundle)
    prepared = [load_prepared(path, opened.manifest.preparation) for path in images]
    return onnxruntime_throughputs(str(opened.model_path), prepared, usable_cores(), seconds)


def memory(bundle: str, images: list[str], counts: list[int]) -> dict[str, Any]:
    """Return the peak of resident memory, bytes, after so many image files have gone through one stream."""
    from itertools import cycle, islice

    from vae_edge import Detector
    from vae_edge.benchmarks.worker import peak_resident_bytes

    peaks: dict[str, int | None] = {}
    with Detector.open(bundle, hint="throughput") as detector:
        for number, _ in enumerate(detector.stream(islice(cycle(images), max(counts))), start=1):
            if number in counts:
                peaks[str(number)] = peak_resident_bytes()
    return {"peak_bytes": peaks}


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task for task in (first, overhead, stream, onnxruntime_throughput, memory)
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))) + "\n")
