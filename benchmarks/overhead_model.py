"""The model that `vae_edge.benchmarks.overhead` measures where none is given."""

from __future__ import annotations

from pathlib import Path

from vae_edge.bundle import bundles_in
from vae_edge.cli.main import invoke
from vae_edge.errors import DeviceError, InputError

_TRAIN = ("--data", "sample", "--preset", "edge", "--image-size", "256", "--epochs", "1", "--overwrite")
# Trained for a minute its verdicts are no good, and how fast it gives them does not depend on that.
_EXPORT = ("--target", "onnx,openvino", "--precision", "fp32,int8", "--max-auroc-drop", "1", "--max-flip-rate", "1")


def make_bundles(folder: Path) -> Path:
    """Train the preset `edge` at 256 x 256 for one pass over the sample set and export it; once.

    Returns:
        The folder of the bundles: onnx and openvino in FP32 and INT8.

    Raises:
        DeviceError: a step failed; it has said why.
    """
    bundles = folder / "bundles"
    try:
        if len(bundles_in(bundles)) == 4:
            return bundles
    except InputError:
        pass  # None yet.
    for program, arguments in (
        ("train", (*_TRAIN, "--out", str(folder / "run"))),
        ("export", (str(folder / "run"), *_EXPORT, "--name", "edge", "--out", str(bundles))),
    ):
        if invoke(arguments, command=program) != 0:
            raise DeviceError(f"vae-{program} failed; see above")
    return bundles
