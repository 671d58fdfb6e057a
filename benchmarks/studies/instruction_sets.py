"""Does OpenVINO give the same verdicts with every instruction set of x86?

`python -m vae_edge.benchmarks.studies.instruction_sets BUNDLE... --data PICTURES`

oneDNN, which OpenVINO computes with, keeps to the instructions that ONEDNN_MAX_CPU_ISA allows, so one processor stands
in for older ones. Each set has its own process, because the variable is read once. ONNX Runtime has no such limit; an
emulated processor without VNNI is in `tests/vae_edge/backends/test_without_vnni.py`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from vae_edge.benchmarks.measure.process import run_process
from vae_edge.benchmarks.studies import run_study
from vae_edge.bundle import Bundle, bundles_in
from vae_edge.cli.console import notes_console, plain_table, results_console
from vae_edge.detector import Detector
from vae_edge.errors import InputError
from vae_edge.export.model_api.folder import images_below
from vae_edge.targets import Target
from vae_edge.wording import count

LEVELS = {
    "AVX2": "AVX2",
    "AVX2_VNNI": "AVX2 with VNNI",
    "AVX512_CORE": "AVX-512 without VNNI",
    "AVX512_CORE_VNNI": "AVX-512 with VNNI",
    "AVX512_CORE_AMX": "AMX",
}
"""Values of ONEDNN_MAX_CPU_ISA, and their names. What the processor lacks is not used whatever is allowed."""

BASE = "AVX512_CORE_VNNI"
"""What the others are compared with."""

_LONGEST_S = 3600.0

_WORKER = "import sys; from vae_edge.benchmarks.studies.instruction_sets import judge; judge(*sys.argv[1:])"


@dataclass(frozen=True)
class Judged:
    """What a bundle gives for pictures with one instruction set."""

    scores: NDArray[np.float64]
    """float64 [n]"""
    anomalous: NDArray[np.bool_]
    """bool [n]"""
    maps: NDArray[np.float32]
    """float32 [n, H, W]"""


@dataclass(frozen=True)
class Row:
    """One bundle with one instruction set, against `BASE`."""

    bundle: str
    level: str
    n_images: int
    n_other_verdicts: int
    n_moved: int
    """Pictures whose map moves by more than 1e-5 of the largest value."""
    score: float
    """How far a score moves, of itself or of the threshold, whichever is larger."""
    block: float
    """How far a value of a map moves, of the largest of all maps."""


def judge(out: str, data: str, *bundles: str) -> None:
    """Judge all pictures of a folder with bundles, and keep scores, verdicts and maps as `OUT/<number>.npz`."""
    images = images_below(Path(data))
    for number, folder in enumerate(bundles):
        with Detector.open(folder, device="cpu", cache=False) as detector:
            found = list(detector.predict_batch(images))
        np.savez(
            Path(out) / f"{number}.npz",
            scores=np.array([each.score for each in found]),
            anomalous=np.array([each.is_anomalous for each in found]),
            maps=np.stack([each.anomaly_map for each in found]),
        )


def study(bundles: Sequence[Path], data: Path, levels: Sequence[str] = tuple(LEVELS)) -> Iterator[Row]:
    """Judge pictures with each instruction set and compare with `BASE`.

    Args:
        bundles: for target openvino.
        data: a folder of pictures.
        levels: some of `LEVELS`.

    Raises:
        InputError: there is no picture, or a bundle is for another target.
        BundleError: a bundle is damaged.
        DeviceError: a process failed, or took an hour.
    """
    images_below(data)
    opened = [Bundle.open(folder) for folder in bundles]
    if not opened or any(bundle.manifest.target is not Target.OPENVINO for bundle in opened):
        names = ", ".join(bundle.manifest.name for bundle in opened if bundle.manifest.target is not Target.OPENVINO)
        raise InputError(f"{names or 'no bundle'} was given; expected bundles for target openvino")
    with tempfile.TemporaryDirectory(prefix="vae-edge-") as scratch:
        found = {level: _judged(level, bundles, data, Path(scratch)) for level in (BASE, *levels)}
    for number, bundle in enumerate(opened):
        base = found[BASE][number]
        threshold = abs(bundle.manifest.thresholds.image_threshold)
        for level in levels:
            here = found[level][number]
            off = np.abs(here.maps - base.maps) / np.abs(base.maps).max()
            yield Row(
                bundle.manifest.name,
                level,
                len(base.scores),
                int((here.anomalous != base.anomalous).sum()),
                int((off.max(axis=(1, 2)) > 1e-5).sum()),
                float((np.abs(here.scores - base.scores) / np.maximum(np.abs(base.scores), threshold)).max()),
                float(off.max()),
            )


def _judged(level: str, bundles: Sequence[Path], data: Path, scratch: Path) -> list[Judged]:
    notes_console().print(f"{count(len(bundles), 'bundle')} with {LEVELS[level]}", markup=False)
    command = [sys.executable, "-c", _WORKER, str(scratch), str(data), *map(str, bundles)]
    run_process(command, _LONGEST_S, variables={"ONEDNN_MAX_CPU_ISA": level})
    files = (np.load(scratch / f"{number}.npz") for number in range(len(bundles)))
    return [Judged(file["scores"], file["anomalous"], file["maps"]) for file in files]


def main(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles for target openvino.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Pictures to judge, in any sub-folders.")],
) -> None:
    """Compare a bundle's outputs with the instruction sets that OpenVINO is kept to."""
    table = plain_table(title=f"Against {LEVELS[BASE]}")
    for heading in ("bundle", "instructions", "other verdicts", "pictures that move", "farthest score", "farthest map"):
        table.add_column(heading, justify="left" if heading in ("bundle", "instructions") else "right")
    for row in study([path for place in bundles for path in bundles_in(place)], data):
        verdicts = f"{row.n_other_verdicts} of {row.n_images}"
        table.add_row(row.bundle, LEVELS[row.level], verdicts, str(row.n_moved), f"{row.score:.2%}", f"{row.block:.2%}")
    results_console().print(table)


if __name__ == "__main__":
    run_study(main)
