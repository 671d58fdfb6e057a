"""anomalib's models on the split of a run: trained in anomalib's environment, measured by this project's metrics.

They are trained on the normals that fit the run's network and set its scale, at the input size of its preset; their
thresholds come from the same held-out normals.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

from vae_edge.benchmarks.measure.process import run_job
from vae_edge.benchmarks.studies.detection import anomalib_peer
from vae_edge.benchmarks.studies.detection.cases import AtRate, at_rates
from vae_edge.benchmarks.studies.detection.tasks import Work
from vae_edge.benchmarks.studies.peers.environments import Environment
from vae_edge.image import read_image
from vae_edge.records import Record
from vae_edge.train.data.inspection_set import load_masks
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.run.metrics import Metrics, evaluate

PEERS = tuple(anomalib_peer.MODELS)
"""Names of the models."""


class PeerJob(Record):
    """What to measure."""

    model: str
    run: str
    """Folder of the run whose split, seed and size are used."""
    fingerprint: str
    """Of that run."""
    out: str
    """Folder for the exported model."""
    epochs: int
    """Epochs of models that are trained by gradient descent."""
    coreset: float
    """Share of the patches that PatchCore keeps."""


class PeerResult(Record):
    """What was measured of one model on one image set."""

    model: str
    settings: str
    """In words."""
    seed: int
    image_size: tuple[int, int]
    train_s: float
    metrics: Metrics
    at_rates: tuple[AtRate, ...]
    exported: str
    """The OpenVINO model."""
    versions: dict[str, str]


def measure_peer(job: PeerJob, environment: Environment, work: Work) -> PeerResult:
    """Train one of anomalib's models and measure it.

    Raises:
        DeviceError: it failed; the message is the reason in anomalib's words.
    """
    run = RunFolder.open(job.run)
    record = run.record
    held_out, test = run.find_calibration_images(), run.find_images(("test",))
    preparation, out = record.preparation, Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    sizes = {read_image(file.path).shape[:2] for file in test}
    seed = record.settings.seed
    with tempfile.TemporaryDirectory(prefix="vae-edge-peer-") as scratch:
        found = run_job(
            [*environment.command, str(Path(anomalib_peer.__file__).resolve())],
            {
                "model": job.model,
                "size": (preparation.height, preparation.width),
                "train": [str(file.path) for file in run.find_images(("fit", "statistics"))],
                "calibration": [str(file.path) for file in held_out],
                "test": [str(file.path) for file in test],
                "seed": seed,
                "threads": 1,
                "out": str(out),
                "scratch": scratch,
                # Of one size: then that is the size that a line's camera has, and the model is exported for it.
                "input_size": next(iter(sizes)) if len(sizes) == 1 else None,
                "declare_operators": environment.declare_operators,
                "epochs": job.epochs,
                "coreset": job.coreset,
            },
            math.inf,
            folder=Path(scratch),
            cancel=work.cancel,
            log=work.log,
            hear=work.hear,
        )
        maps = np.load(Path(scratch) / "maps.npy")
    labels = np.array([file.is_anomalous for file in test])
    scores = np.array(found["scores"], np.float32)
    masks = load_masks(test, preparation)
    return PeerResult(
        model=job.model,
        settings=found["settings"],
        seed=seed,
        image_size=(preparation.height, preparation.width),
        train_s=found["train_s"],
        metrics=evaluate(labels, scores, [file.defect for file in test], maps, masks.masks, masks.has_mask),
        at_rates=at_rates(np.array(found["calibration_scores"], np.float32), labels, scores),
        exported=found["exported"],
        versions=found["versions"],
    )
