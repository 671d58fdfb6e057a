"""Trains and measures one image set with one seed, for `vae_edge.benchmarks.studies.detection.command`.

It runs in its own process, so that several can use a core each. What an earlier, interrupted study trained is not
trained again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.benchmarks.measure.instruments import Notes, serve
from vae_edge.benchmarks.studies.detection.cases import (
    AtRate,
    CaseResult,
    Row,
    Training,
    at_rates,
    scorings_of,
    settings_of,
)
from vae_edge.errors import VaeEdgeError
from vae_edge.image import Preparation
from vae_edge.platform.atomic import write_text
from vae_edge.records import Record
from vae_edge.train.choice.candidates import CANDIDATES
from vae_edge.train.choice.scoring_choice import candidate_units, score_candidates
from vae_edge.train.data.inspection_set import ImageFile, load_images, load_masks
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import Reconstructed, Reconstruction, Scorer, images_at_a_time, run_graph
from vae_edge.train.model.network import Vae
from vae_edge.train.model.presets import Network
from vae_edge.train.model.scoring import ScoringSettings
from vae_edge.train.model.scoring_constants import fit_scoring_constants, some_fitted
from vae_edge.train.run.baseline import TemplateBaseline
from vae_edge.train.run.fitting import fit_run, resume_run
from vae_edge.train.run.folder import RECORD_FILE, SETTINGS_FILE, RunFolder
from vae_edge.train.run.metrics import Metrics, evaluate, image_auroc
from vae_edge.train.run.records import RunRecord


class Job(Record):
    """The job of a worker."""

    data: str
    preset: str
    seed: int
    runs: str
    """Folder for the trained runs."""
    trainings: tuple[Training, ...]
    epochs: int | None = None
    ablate: bool = True
    """Also measure parts of the scoring, every composition in hindsight, and the template baseline."""


@dataclass(frozen=True)
class _Test:
    """The test images, prepared, with their labels and masks."""

    images: NDArray[np.uint8]
    labels: NDArray[np.bool_]
    defects: tuple[str | None, ...]
    masks: NDArray[np.bool_]
    has_mask: NDArray[np.bool_]

    @classmethod
    def load(cls, files: list[ImageFile], preparation: Preparation) -> _Test:
        masks = load_masks(files, preparation)
        return cls(
            load_images(files, preparation),
            np.array([file.is_anomalous for file in files]),
            tuple(file.defect for file in files),
            masks.masks,
            masks.has_mask,
        )

    def evaluate(self, scores: NDArray[np.float32], maps: NDArray[np.float32]) -> Metrics:
        return evaluate(self.labels, scores, self.defects, maps, self.masks, self.has_mask)


_NOTES = Notes()
"""Where the progress of the worker goes."""


class _RunNotes(Watcher):
    """Writes what a run says to the log, and reports how far it is."""

    def say(self, sentence: str) -> None:
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        _NOTES.progress(stage, done, total)


def run_job(job: Job) -> CaseResult:
    """Train and measure."""
    torch.set_num_threads(1)
    runs = Path(job.runs)
    auto = _run(
        runs, Training.AUTO, job, settings_of(Training.AUTO, Path(job.data), job.preset, job.seed, epochs=job.epochs)
    )
    record = auto.record
    test = _Test.load(auto.find_images(("test",)), record.preparation)
    rows = [Row(name="auto", metrics=auto.metrics, at_rates=_at_rates(auto, test))]
    hindsight: dict[str, float] = {}
    is_on_pixels = record.network is Network.PIXEL
    if job.ablate and is_on_pixels:
        statistics = load_images(auto.find_images(("statistics",)), record.preparation)
        fitted = load_images(auto.find_images(("fit",)), record.preparation)
        rows += _measure_scorings(auto, statistics, fitted, test)
        hindsight = _hindsight(auto, statistics, fitted, test)
        rows.append(Row(name="template baseline", metrics=_template(auto, test)))
    for training in job.trainings:
        if training is Training.AUTO or not is_on_pixels:
            continue
        if training is Training.OTHER_LIGHT and _has_steady_light(auto):
            continue  # Where the light is always the same there is nothing to even out.
        settings = settings_of(
            training,
            Path(job.data),
            job.preset,
            job.seed,
            epochs=job.epochs,
            photometric=record.photometric,
            scoring=record.scoring,
            is_whole=record.tiling.n_tiles == 1,
        )
        run = _run(runs, training, job, settings)
        rows.append(Row(name=f"training {training}", metrics=run.metrics))
        if training is Training.PLAIN:
            rows.append(Row(name="training plain, mse", metrics=_plain_mse(run)))
    return CaseResult(
        data=Path(job.data).name,
        preset=job.preset,
        seed=job.seed,
        model=_describe(record),
        n_tiles=record.tiling.n_tiles,
        gflop=record.training.flops / 1e9,
        n_parameters=record.training.n_parameters,
        photometric=str(record.photometric),
        scoring=_describe_scoring(record),
        because=() if record.choice is None else record.choice.because,
        training_s=record.training.seconds,
        wall_s=_wall_s(auto.folder),
        images_per_s=record.training.images_per_s,
        rows=tuple(rows),
        hindsight=hindsight,
        versions=record.library_versions,
    )


def _at_rates(run: RunFolder, test: _Test) -> tuple[AtRate, ...]:
    _, scores = run_graph(run.load_graph(), test.images)
    return at_rates(np.array(run.thresholds.calibration_scores), test.labels, scores)


def _describe(record: RunRecord) -> str:
    return record.tiling.describe() if record.feature is None else record.feature.describe()


def _describe_scoring(record: RunRecord) -> str:
    return str(record.scoring) if record.feature is None else record.feature.settings.describe()


def _has_steady_light(run: RunFolder) -> bool:
    traits = run.record.settings.traits
    return traits is not None and traits.has_steady_light


def _run(runs: Path, training: Training, job: Job, settings: TrainSettings) -> RunFolder:
    folder = runs / f"{Path(job.data).name}-{job.preset}-{job.seed}-{training}"
    if (folder / RECORD_FILE).is_file():
        return RunFolder.open(folder)
    _NOTES.note(f"training {folder.name}")
    if (folder / SETTINGS_FILE).is_file():
        return resume_run(folder, watcher=_RunNotes())
    begin = time.monotonic()
    run = fit_run(settings, out=folder, watcher=_RunNotes())
    write_text(_wall_file(folder), f"{time.monotonic() - begin:.1f}\n")
    return run


def _wall_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.seconds")


def _wall_s(folder: Path) -> float | None:
    file = _wall_file(folder)
    return float(file.read_text(encoding="utf-8")) if file.is_file() else None


def _measure_scorings(
    run: RunFolder, statistics: NDArray[np.uint8], fitted: NDArray[np.uint8], test: _Test
) -> Iterator[Row]:
    vae, input_settings = run.load_vae(), run.record.input_settings
    for name, scoring in scorings_of(run.record.scoring).items():
        _NOTES.note(f"measuring {name}")
        constants = fit_scoring_constants(vae, scoring, statistics, input_settings=input_settings, fitted=fitted)
        scorer = Scorer(scoring, constants, input_settings)
        maps = np.empty(test.images.shape[:3], dtype=np.float32)
        scores = np.empty(len(test.images), dtype=np.float32)
        for start, seen in _reconstructed(vae, run, scoring, test.images):
            made, score = scorer(seen)
            maps[start : start + len(made)], scores[start : start + len(made)] = made.numpy(), score.numpy()
        yield Row(name=name, metrics=test.evaluate(scores, maps))


@torch.inference_mode()
def _reconstructed(
    vae: Vae, run: RunFolder, scoring: ScoringSettings, images: NDArray[np.uint8]
) -> Iterator[tuple[int, Reconstructed]]:
    input_settings = run.record.input_settings
    reconstruct = Reconstruction(vae, input_settings, scoring.latent)
    step = images_at_a_time(input_settings)
    for start in range(0, len(images), step):
        yield start, reconstruct(torch.from_numpy(images[start : start + step]))


def _hindsight(
    run: RunFolder, statistics: NDArray[np.uint8], fitted: NDArray[np.uint8], test: _Test
) -> dict[str, float]:
    """Return the image AUROC on the test images of every composition that could be chosen."""
    _NOTES.note("measuring every composition in hindsight")
    maps = list(dict.fromkeys(each for scoring in CANDIDATES for each in scoring.maps))
    input_settings = run.record.input_settings
    # All normals in both folds: the test images are none of them.
    scores = score_candidates(
        Reconstruction(run.load_vae(), input_settings),
        input_settings.image_size,
        maps,
        np.repeat(statistics, 2, axis=0),
        np.concatenate([statistics, test.images]),
        np.zeros(len(statistics) + len(test.images), dtype=np.int64),
        fitted=some_fitted(fitted),
        batch_size=images_at_a_time(input_settings),
    )
    is_normal = np.arange(len(scores)) < len(statistics)
    units = {each: candidate_units(scores[:, column], is_normal) for column, each in enumerate(maps)}
    result = {}
    for scoring in CANDIDATES:
        fused = np.mean([units[each] for each in scoring.maps], axis=0)[len(statistics) :]
        value = image_auroc(test.labels, fused)
        assert value is not None
        result[str(scoring)] = value
    return result


def _template(run: RunFolder, test: _Test) -> Metrics:
    baseline = TemplateBaseline.fit(load_images(run.find_images(("fit", "statistics")), run.record.preparation))
    return test.evaluate(baseline.scores(test.images), baseline.anomaly_maps(test.images))


def _plain_mse(run: RunFolder) -> Metrics:
    from vae_edge.train.model.anomaly_graph import AnomalyGraph, ScoringConstants
    from vae_edge.train.model.scoring import MSE_SCORING

    test = _Test.load(run.find_images(("test",)), run.record.preparation)
    graph = AnomalyGraph(run.load_vae(), MSE_SCORING, ScoringConstants.neutral(MSE_SCORING), run.record.input_settings)
    maps, scores = run_graph(graph, test.images)
    return test.evaluate(scores, maps)


def do(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job and return the result as a value for JSON."""
    return run_job(Job.model_validate(job)).model_dump(mode="json", exclude_none=True)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:], do, (VaeEdgeError,)))
