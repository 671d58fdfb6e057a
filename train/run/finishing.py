"""The last steps of every run, however its network came about: metrics, and the files of the run."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from vae_edge import __version__
from vae_edge.gate import GateRecord
from vae_edge.gate_fitting import MAX_NORMALS, MIN_NORMALS, fit_gate
from vae_edge.gate_measures import Look, measure_picture
from vae_edge.ignored_region import paint_over
from vae_edge.image import load_prepared
from vae_edge.manifest import Thresholds
from vae_edge.platform.atomic import write_text
from vae_edge.platform.machine import installed_versions
from vae_edge.train.data.inspection_set import (
    ImageFile,
    InspectionSet,
    load_images,
    load_masks,
    map_in_threads,
    spread,
)
from vae_edge.train.data.report import DataReport
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import DeployedGraph, run_graph
from vae_edge.train.model.presets import Network
from vae_edge.train.run.detectability import MOST_NORMALS, measure_detectability, threshold_asked_for
from vae_edge.train.run.folder import (
    CALIBRATION_FILE,
    METRICS_FILE,
    MODEL_FILE,
    RECORD_FILE,
    SCORING_FILE,
    SPLIT_FILE,
    describe_files,
    fingerprint_of,
    write_record,
    write_tensors,
)
from vae_edge.train.run.metrics import Metrics, evaluate
from vae_edge.train.run.pixel_fitting import FittedGraph
from vae_edge.train.run.records import CalibrationRecord, RunRecord, SplitRecord
from vae_edge.train.run.references import MOST_NORMALS as MOST_REFERENCE_NORMALS
from vae_edge.train.run.references import RunPictures, choose_references

_PACKAGES = ("torch", "lightning", "safetensors", "numpy", "opencv-python-headless", "pydantic")


def measure(
    settings: TrainSettings,
    graph: DeployedGraph,
    images: InspectionSet,
    thresholds: Thresholds,
    normals: Sequence[ImageFile],
    watcher: Watcher,
) -> Metrics:
    """Measure what the model finds on the test images, and of defects pasted on normals.

    Args:
        settings: of the run.
        graph: the whole model.
        images: the set; what its test images would tell is absent where there are none.
        thresholds: in force.
        normals: those that were held out for the thresholds, or, where all train, these; at most 24 are looked at.
        watcher: receives progress.
    """
    some = load_images(spread(normals, MOST_NORMALS), settings.preparation)
    detectability = measure_detectability(
        lambda pictures: run_graph(graph, pictures)[1],
        some,
        thresholds,
        seed=settings.seed,
        ignored=settings.ignored,
        progress=watcher.progress_of("scoring pasted defects"),
    )
    test = images.test
    pixels = load_images(test, settings.preparation, watcher.progress_of("reading test images"))
    maps, scores = run_graph(graph, pixels, progress=watcher.progress_of("scoring test images"))
    masks = load_masks(test, settings.preparation) if any(image.mask is not None for image in test) else None
    is_anomalous = np.array([image.is_anomalous for image in test], dtype=np.bool_)
    metrics = evaluate(
        is_anomalous,
        scores,
        [image.defect for image in test],
        None if masks is None else maps,
        None if masks is None else masks.masks,
        None if masks is None else masks.has_mask,
        thresholds.image_threshold,
        kept=settings.kept,
    )
    if masks is not None and settings.ignored is not None:
        watcher.say(f"the pixel metrics leave out what is ignored, {settings.ignored.share:.1%} of the picture")
    asked = threshold_asked_for(thresholds)
    recall = float((scores[is_anomalous] > asked).mean()) if asked is not None and is_anomalous.any() else None
    return metrics.model_copy(update={"detectability": detectability, "recall_at_requested_rate": recall})


def keep_references(
    settings: TrainSettings,
    graph: DeployedGraph,
    thresholds: Thresholds,
    normals: Sequence[ImageFile],
    watcher: Watcher,
) -> RunPictures:
    """Choose the pictures that travel with every bundle, and say so.

    Args:
        settings: of the run.
        graph: the whole model.
        thresholds: in force.
        normals: as for `measure`.
        watcher: receives progress and the sentence.
    """
    kept = choose_references(
        lambda pictures: run_graph(graph, pictures)[1],
        load_images(spread(normals, MOST_REFERENCE_NORMALS), settings.preparation),
        thresholds,
        seed=settings.seed,
        ignored=settings.ignored,
        progress=watcher.progress_of("choosing references"),
    )
    watcher.say(
        f"{kept.record.n_images} pictures of parts stay in the run and travel with every bundle, for a device to prove "
        f"itself by: {kept.record.images}; vae-export --references none takes drawn ones instead"
    )
    return kept


def learn_gate(
    settings: TrainSettings, files: Sequence[ImageFile], *, is_aligned: bool, watcher: Watcher
) -> GateRecord | None:
    """Learn in which ranges a picture is inspectable, and say so; None: there are too few good parts.

    Nothing of the network is involved, so the good parts that trained it serve as well as the held-out ones.

    Args:
        settings: of the run.
        files: one picture of each good part; at most `MAX_NORMALS` are looked at.
        is_aligned: whether the parts lie at the same place.
        watcher: receives progress and the sentence.
    """
    some = spread(files, MAX_NORMALS)

    ignored = None if settings.ignored is None else settings.ignored.mask

    def look(path: Path) -> Look:
        image = load_prepared(path, settings.preparation)
        return measure_picture(image if ignored is None else paint_over(image, ignored))

    looks = map_in_threads(look, [image.path for image in some], watcher.progress_of("looking at light and sharpness"))
    gate = fit_gate(list(looks), is_aligned=is_aligned, seed=settings.seed)
    if gate is None:
        watcher.say(
            f"{len(some)} good parts are too few to learn when a picture is not inspectable, so every picture will be "
            f"judged; {MIN_NORMALS} or more are needed"
        )
    else:
        place = ", or parts that lie elsewhere" if is_aligned else ""
        watcher.say(
            f"blurred, dark, overexposed or covered pictures{place} will be called not inspectable, as will "
            f"{gate.promise}"
        )
    return gate


def finish_run(
    out: Path,
    settings: TrainSettings,
    fitted: FittedGraph,
    report: DataReport,
    split: SplitRecord,
    calibration: CalibrationRecord,
    metrics: Metrics,
    references: RunPictures,
    gate: GateRecord | None,
    *,
    taken_from: str | None = None,
) -> None:
    """Write the files of a run; `model.json`, which marks it as complete, last.

    Args:
        out: the run folder.
        settings: what was requested.
        fitted: the model.
        report: what the data are.
        split: which image was used for what.
        calibration: from `calibrate` or `cross_calibrate`.
        metrics: from `measure`.
        references: from `keep_references`.
        gate: from `learn_gate`.
        taken_from: where the network comes from, if this package did not train it here.

    Raises:
        InputError: the folder cannot be written.
    """
    write_tensors(out / MODEL_FILE, fitted.weights())
    write_tensors(out / SCORING_FILE, fitted.scoring_tensors())
    write_record(out / SPLIT_FILE, split)
    write_record(out / CALIBRATION_FILE, calibration)
    write_text(out / METRICS_FILE, metrics.to_json() + "\n")
    references.write(out)
    files = describe_files(out)
    record = RunRecord(
        name=out.absolute().name,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        network=settings.network or Network.PIXEL,
        feature=fitted.feature,
        architecture=settings.architecture,
        preparation=settings.preparation,
        tiling=fitted.graph.input_settings.tiling,
        photometric=fitted.graph.input_settings.photometric,
        ignored=fitted.graph.input_settings.ignored,
        input_range=fitted.graph.input_settings.input_range,
        scoring=fitted.settings.scoring,
        choice=fitted.choice,
        settings=settings,
        training=fitted.outcome,
        taken_from=taken_from,
        data=report,
        counts=split.counts(),
        references=references.record,
        gate=gate,
        library_versions={
            "python": platform.python_version(),
            "vae-edge": __version__,
            **installed_versions(_PACKAGES),
        },
        files=files,
        fingerprint=fingerprint_of(files),
    )
    write_record(out / RECORD_FILE, record)
