"""Does a network that was trained in anomalib give the verdict that anomalib itself gives? Asked where anomalib is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_edge.agreement import Outputs
from vae_edge.errors import MissingDependencyError
from vae_edge.export.parity import FP32_TOLERANCE, check_parity, measure_parity
from vae_edge.export.reference import MAX_TEST_IMAGES
from vae_edge.manifest import ParityRecord
from vae_edge.progress import Progress
from vae_edge.train.anomalib.checkpoint import TrainedElsewhere
from vae_edge.train.data.inspection_set import ImageFile, load_images, spread
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.run.folder import RunFolder


def compare_with_anomalib(run: RunFolder, trained: TrainedElsewhere, watcher: Watcher) -> ParityRecord:
    """Hold the run's model against anomalib's prediction of the same files: the run's held-out normals and test images.

    anomalib reads, prepares and scores the files by itself, with the model that it restores from the checkpoint; both
    sides are compared before scores are brought to 0 to 1.

    Args:
        run: made by `take_over`.
        trained: what it was made of, a checkpoint of `vae_edge.anomalib.Vae` that scores as a device does.
        watcher: is told how it goes.

    Returns:
        The differences.

    Raises:
        MissingDependencyError: anomalib is not installed.
        ParityError: a verdict differs, or a score or a map by more than rounding explains.
    """
    files = (*run.find_calibration_images(), *spread(run.find_images(("test",)), MAX_TEST_IMAGES))
    theirs = predict_with_anomalib(trained.path, files, watcher.progress_of("predicting with anomalib"))
    images = load_images(files, run.record.preparation)
    ours = Outputs(*run_graph(run.load_graph(), images, progress=watcher.progress_of("scoring with torch")))
    threshold = run.thresholds.image_threshold
    parity = measure_parity(
        theirs,
        threshold,
        ours,
        threshold,
        names=[file.name for file in files],
        images=f"{len(files)} images of the run, against anomalib's own prediction",
        tolerance=FP32_TOLERANCE,
    )
    check_parity(parity)
    return parity


def predict_with_anomalib(checkpoint: Path, files: Sequence[ImageFile], progress: Progress | None = None) -> Outputs:
    """Let anomalib read, prepare and score files with the model of a checkpoint of `vae_edge.anomalib.Vae`.

    Returns:
        Maps and scores as the model gives them, before post-processing.

    Raises:
        MissingDependencyError: anomalib is not installed.
    """
    try:
        from anomalib.data.utils import read_image

        from vae_edge.anomalib import Vae
    except MissingDependencyError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"anomalib is not installed ({error}); install it with: pip install 'vae-edge[anomalib]'"
        ) from error
    model: Any = Vae.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    maps, scores = [], []
    with torch.inference_mode():
        for done, file in enumerate(files, 1):
            image = model.pre_processor.transform(read_image(file.path, as_tensor=True)[None])
            predicted = model.model(image)
            maps.append(predicted.anomaly_map[0, 0].numpy())
            scores.append(float(predicted.pred_score[0]))
            if progress is not None:
                progress(done, len(files))
    return Outputs(np.stack(maps), np.array(scores, dtype=np.float32))
