"""What the server costs: 2,000 pictures from 8 clients over REST, beside `Detector.stream` on the same files.

    make bench-serve [BUNDLE=bundles/tile-openvino-fp32] [PICTURES=2000]

In rounds, one after the other: the files through `Detector.stream` in this process, then their contents through
`tritonclient` to a server in another. Clients and server share the processor, as on a device. Without a bundle it is a
toy that takes no time, which shows the server alone; a network makes its share smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import psutil
import tritonclient.http

from tests.serve.running import RunningServer
from tests.tiny_bundles import dark_image, make_bundle, spotted_image, write_image
from vae_edge.detector import Detector
from vae_edge.prediction import Prediction
from vae_edge.targets import Target

N_CLIENTS = 8
N_ROUNDS = 4
_SIZE = 256

Verdict = tuple[bool, float, float]


def ask(address: str, name: str, contents: Sequence[bytes]) -> list[Verdict]:
    """Send pictures, one in a request, by 8 clients at the same time; return the verdicts in their order."""
    found: list[Verdict | None] = [None] * len(contents)

    def work(first: int) -> None:
        with tritonclient.http.InferenceServerClient(address) as client:
            for place in range(first, len(contents), N_CLIENTS):
                given = tritonclient.http.InferInput("encoded", [1], "BYTES")
                given.set_data_from_numpy(np.array([contents[place]], dtype=object))
                got = client.infer(name, [given])
                is_anomalous, score, p_value = (
                    got.as_numpy(output)[0] for output in ("is_anomalous", "score", "p_value")
                )
                found[place] = (bool(is_anomalous), float(score), float(p_value))

    clients = [threading.Thread(target=work, args=(first,)) for first in range(N_CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return [verdict for verdict in found if verdict is not None]


def verdict_of(prediction: Prediction) -> Verdict:
    """Return a verdict as the protocol has it, in FP32."""
    return prediction.is_anomalous, float(np.float32(prediction.score)), float(np.float32(prediction.p_value))


def counted(address: str, name: str) -> float:
    """Return how many pictures the server's metrics count."""
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith(f'vae_edge_pictures_total{{model="{name}"')
    )


def measure(bundle: Path, folder: Path, n_pictures: int) -> dict[str, Any]:
    """Draw pictures into a folder and measure; see above."""
    paths = [
        write_image(folder / f"{seed}.png", (spotted_image if seed % 5 == 0 else dark_image)(seed, _SIZE))
        for seed in range(n_pictures // N_ROUNDS)
    ]
    contents = [path.read_bytes() for path in paths]
    n_different = 0
    shares, streamed, served, rss_mb = [], [], [], []
    with Detector.open(bundle, hint="throughput") as detector, RunningServer(bundle) as server:
        process = psutil.Process(server.process.pid)
        ask(server.address, bundle.name, contents[:50])
        rss_mb.append(process.memory_info().rss / 1e6)
        for _ in range(N_ROUNDS):
            begun = time.perf_counter()
            expected = [verdict_of(prediction) for prediction in detector.stream(paths)]
            between = time.perf_counter()
            found = ask(server.address, bundle.name, contents)
            ended = time.perf_counter()
            n_different += sum(one != other for one, other in zip(found, expected, strict=True))
            streamed.append(len(paths) / (between - begun))
            served.append(len(paths) / (ended - between))
            shares.append(served[-1] / streamed[-1])
            rss_mb.append(process.memory_info().rss / 1e6)
        n_counted = counted(server.address, bundle.name)
    return {
        "bundle": bundle.name,
        "pictures": len(paths) * N_ROUNDS,
        "anomalous_share": statistics.fmean(verdict for verdict, *_ in expected),
        "different": n_different,
        "counted_by_metrics": n_counted - 50,
        "streamed_per_s": [round(rate, 1) for rate in streamed],
        "served_per_s": [round(rate, 1) for rate in served],
        "share": [round(share, 3) for share in shares],
        "median_share": round(statistics.median(shares), 3),
        "rss_mb_after_each_round": [round(size, 1) for size in rss_mb],
        "load": [round(load, 1) for load in os.getloadavg()],
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = given.bundle or make_bundle(folder / "toy-onnx-fp32", Target.ONNX).folder
        print(json.dumps(measure(bundle.resolve(), folder / "pictures", given.pictures), indent=1))


if __name__ == "__main__":
    main()
