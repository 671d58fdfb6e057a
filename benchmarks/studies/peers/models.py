"""The one trained model that all candidates use: its run, its bundles, and anomalib's export of its weights.

The network and its scoring reach anomalib's environment as a torch program, which any torch reads without vae-edge;
there `anomalib_export.py` puts it between anomalib's pre-processor and post-processor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vae_edge.benchmarks.measure.process import run_job
from vae_edge.benchmarks.studies.peers.candidates import Models
from vae_edge.benchmarks.studies.peers.environments import Environment
from vae_edge.bundle import Bundle, bundles_in
from vae_edge.cli.main import invoke
from vae_edge.errors import DeviceError, InputError, VaeEdgeError
from vae_edge.export.targets.onnx_target import export_program
from vae_edge.targets import Precision, Target
from vae_edge.train.model.anomaly_graph import AnomalyGraph
from vae_edge.train.run.folder import RunFolder

MEASURED = (
    (Target.ONNX, Precision.FP32),
    (Target.ONNX, Precision.INT8),
    (Target.OPENVINO, Precision.FP32),
    (Target.OPENVINO, Precision.INT8),
)

# The thresholds are not measured: one training is enough, however few the images.
SMALL = ("--preset", "nano", "--image-size", "128", "--epochs", "12", "--learning-rate", "0.001", "--batch-size", "16",
         "--calibration", "split")  # fmt: skip
"""Options of `vae-train` for the model of `make bench-peers`."""

LARGE = ("--preset", "edge", "--image-size", "256", "--epochs", "1")
"""Options for the model of `make bench-runtime`: trained for a minute, its verdicts mean nothing, but its speed does
not depend on training."""

_EXPORT_TIMEOUT_S = 1200.0

Tell = Callable[[str], None]


def train(folder: Path, data: str, options: Sequence[str], tell: Tell) -> RunFolder:
    """Train on the data with these options of `vae-train`, or use the existing run.

    Raises:
        DeviceError: training failed; it has printed the reason.
    """
    try:
        return RunFolder.open(folder)
    except VaeEdgeError:
        tell(f"no --run: training a model into {folder}")
    if invoke(["--data", data, "--out", str(folder), "--overwrite", *options], command="train") != 0:
        raise DeviceError("the model could not be trained; see above, or give a trained one with --run")
    return RunFolder.open(folder)


def export_missing(run: RunFolder, folder: Path, tell: Tell, options: Sequence[str] = ()) -> None:
    """Export the run to the bundles that are missing in the folder, with these options of `vae-export`.

    Bundles that the export refuses (INT8 that costs too much accuracy) stay missing.
    """
    present = {_kind(bundle) for bundle in _open_all(folder)} if folder.is_dir() else set()
    for target, precision in MEASURED:
        if (target, precision) in present:
            continue
        tell(f"exporting {target} {precision} into {folder}")
        kind = ["--target", target.value, "--precision", precision.value]
        if invoke([str(run.folder), *kind, "--out", str(folder), *options], command="export") != 0:
            tell(f"{target} {precision} was not exported and is left out; see above")


def find_models(folder: Path, run: RunFolder | None) -> Models:
    """Return the bundles of a folder that are measured, by kind.

    Raises:
        InputError: there is none, two are of the same kind, or one was not made from the run.
    """
    found: dict[tuple[Target, Precision], Bundle] = {}
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
            raise InputError(
                f"{bundle.folder} was not exported from {run.folder}; all candidates must have the same weights"
            )
        found[kind] = bundle
    if not found:
        raise InputError(f"{folder} contains no bundle for ONNX Runtime or OpenVINO in FP32 or INT8; export some")
    if len({bundle.manifest.provenance.run_fingerprint for bundle in found.values()}) > 1:
        raise InputError(f"the bundles in {folder} come from several runs; all candidates must have the same weights")
    return {kind: found[kind] for kind in MEASURED if kind in found}


def _open_all(folder: Path) -> Sequence[Bundle]:
    return [Bundle.open(path) for path in bundles_in(folder)]


def _kind(bundle: Bundle) -> tuple[Target, Precision]:
    return bundle.manifest.target, bundle.manifest.precision


class PixelGraph(AnomalyGraph):
    """The anomaly graph after a pre-processor: float32 [N, 3, H, W] in [-1, 1] instead of uint8 [N, H, W, 3]."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run everything except the scaling of the image's values."""
        anomaly_map, score = self.score(self.reconstruct.of_pixels(image))
        return anomaly_map, score


def save_program(run: RunFolder, path: Path) -> None:
    """Write a run's network and scoring as a torch program with a dynamic batch."""
    graph = PixelGraph(run.load_vae(), run.record.scoring, run.load_constants(), run.record.input_settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(export_program(graph, torch.zeros(2, 3, *graph.image_size)), path)


def export_with_anomalib(
    run: RunFolder,
    environment: Environment,
    files: Sequence[Path],
    input_size: tuple[int, int] | None,
    out: Path,
    *,
    calibration: Sequence[Path] = (),
) -> Path:
    """Let anomalib export a run; the result of an earlier call for the same weights is reused.

    Args:
        run: the trained network.
        environment: anomalib's.
        files: images to fit its normalization to.
        input_size: height and width of all images that it will get; None: any, which is anomalib's default.
        out: folder for it.
        calibration: images to quantize it to INT8 with; none: it stays in FP32.

    Returns:
        The `model.xml`.

    Raises:
        DeviceError: the export failed; the message is the reason.
    """
    model, marker = out / "weights/openvino/model.xml", out / "exported.json"
    job = {
        "program": str(out / "program.pt2"),
        "size": [run.record.preparation.height, run.record.preparation.width],
        "input_size": input_size,
        "image_threshold": run.thresholds.image_threshold,
        "pixel_threshold": run.thresholds.pixel_threshold,
        "files": [str(file) for file in files],
        "calibration": [str(file) for file in calibration],
        "out": str(out),
        "declare_operators": environment.declare_operators,
    }
    state = json.dumps([run.fingerprint, environment.versions, job])
    if model.is_file() and marker.is_file() and marker.read_text(encoding="utf-8") == state:
        return model
    save_program(run, out / "program.pt2")
    script = Path(__file__).with_name("anomalib_export.py").resolve()
    try:
        run_job([*environment.command, str(script)], job, _EXPORT_TIMEOUT_S, folder=out)
    except DeviceError as error:
        raise DeviceError(f"its export failed: {error}") from error
    if not model.is_file():
        raise DeviceError(f"its export left no {model.name}")
    marker.write_text(state, encoding="utf-8")
    return model
