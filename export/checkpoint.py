"""A network that anomalib trained becomes a run, and is compared with anomalib's prediction if that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_edge.agreement import Outputs
from vae_edge.errors import InputError, MissingDependencyError, UsageError
from vae_edge.export.parity import check_parity, measure_parity
from vae_edge.export.trained_model import MAX_TEST_IMAGES
from vae_edge.manifest import FP32_TOLERANCE, ParityRecord
from vae_edge.platform.work import Progress
from vae_edge.train.anomalib.checkpoint import TrainedElsewhere, read_checkpoint
from vae_edge.train.anomalib.taking_over import take_over
from vae_edge.train.data.inspection_set import ImageFile, load_images, spread
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.watcher import TerminalWatcher, Watcher
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.input_settings import InputRange
from vae_edge.train.model.scoring import ScoringSettings
from vae_edge.train.run.folder import RECORD_FILE, RunFolder
from vae_edge.wording import count


def make_run(
    checkpoint: Path,
    data: Path | None,
    out: Path,
    *,
    scoring: ScoringSettings | None,
    false_alarm_rate: float | None,
    input_range: InputRange | None,
) -> RunFolder:
    """Make a run folder from a checkpoint, and compare it with anomalib if that is installed.

    Args:
        checkpoint: the file.
        data: normal images for the thresholds.
        out: the run folder.
        scoring: how a residual becomes a score; None: the checkpoint's own.
        false_alarm_rate: None: the default.
        input_range: the range of values that the network gets for a pixel; None: what the checkpoint says.

    Raises:
        UsageError: `data` is missing, or a range was given for a checkpoint that records its own.
        InputError: the file is not such a checkpoint, or `out` holds a run.
        ParityError: anomalib's own prediction differs.
    """
    if data is None:
        raise UsageError(
            f"{checkpoint} needs normal images for its thresholds; add --data NORMALS, images that the network was not "
            "trained on, or the folder that it was trained on if it is a checkpoint of vae_edge.anomalib.Vae"
        )
    if (out / RECORD_FILE).is_file():
        raise InputError(
            f"{out} holds a complete run from an earlier export; export it with: vae-export {out}, or choose "
            "another --name or --out"
        )
    with TerminalWatcher() as watcher:
        trained = read_checkpoint(checkpoint, input_range=input_range)
        run = take_over(
            trained,
            DataSource(root=str(data)),
            out,
            scoring=scoring,
            false_alarm_rate=false_alarm_rate,
            watcher=watcher,
        )
        if trained.notes is None:
            watcher.say("not compared with anomalib: no anomalib release has the model of these weights")
            return run
        if not trained.notes.prepares_as_device:
            watcher.say(
                "not compared with anomalib: a pre-processor of your own resized the images there, and a device "
                "resizes with OpenCV; what the scoring divides by was measured anew"
            )
            return run
        if not trained.scores_as_device(run.record.scoring):
            watcher.say("not compared with anomalib: its scoring is not the one that was requested")
            return run
        try:
            parity = compare_with_anomalib(run, trained, watcher)
        except MissingDependencyError as error:
            watcher.say(f"not compared with anomalib's own prediction: {error}")
            return run
        watcher.say(
            f"against anomalib's own prediction of {count(parity.n_images, 'image')}: "
            f"{count(parity.label_flips, 'verdict differs', 'verdicts differ')}, "
            f"scores by at most {parity.max_score_difference:.1e} and maps by {parity.max_map_difference:.1e}"
        )
    return run


def compare_with_anomalib(run: RunFolder, trained: TrainedElsewhere, watcher: Watcher) -> ParityRecord:
    """Compare the run's model with anomalib's prediction of the same files: the run's held-out normals and test images.

    anomalib reads, prepares and scores the files by itself, with the model that it restores from the checkpoint; both
    sides are compared before scores are normalized to 0 to 1.

    Args:
        run: made by `take_over`.
        trained: what it was made from, a checkpoint of `vae_edge.anomalib.Vae` that scores as a device does.
        watcher: receives progress and remarks.

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
        images=f"{count(len(files), 'image')} of the run, against anomalib's own prediction",
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
            f'anomalib is not installed ({error}); install it with: pip install "vae-edge[anomalib]"'
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
