"""The one trained model that all candidates get: its run, its bundles, made where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vae_edge.benchmarks.peers.candidates import MEASURED, Models
from vae_edge.bundle import Bundle, bundles_in
from vae_edge.cli.main import invoke
from vae_edge.errors import DeviceError, InputError, VaeEdgeError
from vae_edge.train.run_folder import RunFolder

EPOCHS = 12
IMAGE_SIZE = 128

Tell = Callable[[str], None]


def train_small(folder: Path, data: str, tell: Tell) -> RunFolder:
    """Train a small model (nano, 128 x 128, a few epochs) on the data, or take the one that is there.

    Raises:
        DeviceError: training failed; it has said why.
    """
    try:
        return RunFolder.open(folder)
    except VaeEdgeError:
        tell(f"no --run: training a small model into {folder}")
    words = ["--data", data, "--out", str(folder), "--overwrite", "--preset", "nano", "--image-size", str(IMAGE_SIZE)]
    # Of the thresholds nothing is measured: one training will do, however few the images.
    words += ["--epochs", str(EPOCHS), "--learning-rate", "0.001", "--batch-size", "16", "--calibration", "split"]
    if invoke(words, command="train") != 0:
        raise DeviceError("the small model could not be trained; see above, or give a trained one with --run")
    return RunFolder.open(folder)


def export_missing(run: RunFolder, folder: Path, tell: Tell) -> None:
    """Export the run to the bundles that are not in the folder.

    What the export refuses (INT8 that costs too much) stays missing.
    """
    present = {_kind(bundle) for bundle in _open_all(folder)} if folder.is_dir() else set()
    for target, precision in MEASURED:
        if (target, precision) in present:
            continue
        tell(f"exporting {target} {precision} into {folder}")
        kind = ["--target", target.value, "--precision", precision.value]
        if invoke([str(run.folder), *kind, "--out", str(folder)], command="export") != 0:
            tell(f"{target} {precision} was not exported and is left out; see above")


def find_models(folder: Path, run: RunFolder | None) -> Models:
    """Return the bundles of a folder that are measured, by kind.

    Raises:
        InputError: there is none, two are of the same kind, or they are not of the run.
    """
    found: dict[tuple[object, object], Bundle] = {}
    for bundle in _open_all(folder):
        kind = _kind(bundle)
        if kind not in MEASURED:
            continue
        if kind in found:
            raise InputError(
                f"{found[kind].folder} and {bundle.folder} are both {kind[0]} {kind[1]}; "
                "give a folder with the bundles of one run"
            )
        if run is not None and bundle.manifest.provenance.run_fingerprint != run.fingerprint:
            raise InputError(f"{bundle.folder} was not exported from {run.folder}; all candidates get the same weights")
        found[kind] = bundle
    if not found:
        raise InputError(f"{folder} holds no bundle for ONNX Runtime or OpenVINO in FP32 or INT8; export some")
    if len({bundle.manifest.provenance.run_fingerprint for bundle in found.values()}) > 1:
        raise InputError(f"the bundles in {folder} are of several runs; all candidates get the same weights")
    return {kind: found[kind] for kind in MEASURED if kind in found}


def _open_all(folder: Path) -> Sequence[Bundle]:
    return [Bundle.open(path) for path in bundles_in(folder)]


def _kind(bundle: Bundle) -> tuple[object, object]:
    return bundle.manifest.target, bundle.manifest.precision
