"""From good parts to thresholds: which pictures show the same part, what each is used for, and the rates they support.

A training, the taking over of a checkpoint and the model of anomalib all go this way: `group_images`, a `Division` of
the good parts into roles, `fit_scoring_constants` on the statistics, `calibrate` on one picture of each held-out part.
Where too few can be held out, `vae_edge.train.run.cross_conformal` takes the place of the last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae_edge.decision import fit_thresholds
from vae_edge.platform.machine import installed_version
from vae_edge.platform.work import Progress
from vae_edge.train.data.grouping import Grouping, few_parts, group_normals, group_test_normals
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.split import Fold, Split, SplitSettings, one_of_each_part
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import DeployedGraph, run_graph
from vae_edge.train.run.records import CalibrationRecord, CalibrationScore, Role, SplitRecord, split_images


@dataclass(frozen=True)
class Division:
    """What each good part is used for."""

    split: Split
    grouping: Grouping
    """Which pictures show the same part, good test images included."""
    folds: tuple[Fold, ...] = ()
    """Of cross-conformal calibration; none where the split has its own normals for the threshold."""

    @property
    def judges(self) -> tuple[ImageFile, ...]:
        """One picture of each part that is held out for the thresholds."""
        held_out = self.split.threshold
        return tuple(held_out[i] for i in one_of_each_part(held_out, self.grouping.part))

    @property
    def parts(self) -> tuple[ImageFile, ...]:
        """One picture of each good part, whatever it is used for."""
        files = (*self.split.fit, *self.split.statistics, *self.split.threshold)
        return tuple(files[i] for i in one_of_each_part(files, self.grouping.part))

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """The good parts that a fit reads: those that train, those that set the scale, and the judges."""
        return (*self.split.fit, *self.split.statistics, *self.judges)

    @property
    def setting_thresholds(self) -> tuple[ImageFile, ...]:
        """The pictures that thresholds are fitted on, several of a part among them; with folds all good parts."""
        return self.split.threshold or (*self.split.fit, *self.split.statistics)

    @property
    def n_parts(self) -> int:
        """How many parts the thresholds are fitted on."""
        return self.grouping.n_parts(self.setting_thresholds)

    def shortage(self, false_alarm_rate: float) -> str | None:
        """Return a sentence where these are much fewer than the pictures, and than the rate needs."""
        return few_parts(len(self.setting_thresholds), self.n_parts, false_alarm_rate)

    def roles(self) -> dict[Role, tuple[ImageFile, ...]]:
        """Return the good parts by role."""
        return {"fit": self.split.fit, "statistics": self.split.statistics, "threshold": self.split.threshold}

    def record(self, test: Sequence[ImageFile] = (), choice: Sequence[ImageFile] = ()) -> SplitRecord:
        """Return what `split.json` says.

        Args:
            test: the images to measure on.
            choice: labelled images that light and scoring are chosen by.
        """
        by_role: Mapping[Role, Sequence[ImageFile]] = {**self.roles(), "choice": choice, "test": test}
        groups = self.grouping.groups
        return SplitRecord(
            images=tuple(each for role, images in by_role.items() for each in split_images(images, role, groups))
        )


def group_images(
    normals: Sequence[ImageFile],
    test: Sequence[ImageFile],
    settings: SplitSettings,
    watcher: Watcher,
    *,
    white_level: int = 65535,
) -> Grouping:
    """Find which good parts belong together, and which good test images do, and say what was found.

    Raises:
        InputError: see `group_normals`.
    """
    found = group_normals(normals, settings, watcher.progress, white_level=white_level)
    if found.sentence:
        watcher.say(found.sentence)
    tested = group_test_normals(test, settings, watcher.progress, white_level=white_level)
    return Grouping({**tested.groups, **found.groups}, found.sentence)


def calibrate(
    graph: DeployedGraph,
    files: Sequence[ImageFile],
    images: NDArray[np.uint8],
    *,
    false_alarm_rate: float,
    pixel_false_positive_rate: float,
    progress: Progress | None = None,
) -> CalibrationRecord:
    """Score normals that were held out for it, and fit the thresholds.

    Args:
        graph: the whole model.
        files: the normals, one of each part: `Division.judges`.
        images: uint8 [n, H, W, 3], the same, prepared.
        false_alarm_rate: share of good images that may be called anomalous.
        pixel_false_positive_rate: share of their pixels that may be.
        progress: called with images scored and in all.

    Raises:
        InputError: see `fit_thresholds`.
    """
    maps, scores = run_graph(graph, images, progress=progress)
    ignored = graph.input_settings.ignored
    thresholds = fit_thresholds(
        scores,
        maps,
        false_alarm_rate=false_alarm_rate,
        pixel_false_positive_rate=pixel_false_positive_rate,
        scored_by=f"torch {installed_version('torch')}, fp32, CPU",
        kept=None if ignored is None else ignored.kept,
    )
    named = tuple(
        CalibrationScore(name=image.name, sha256=image.sha256, score=float(score))
        for image, score in zip(files, scores, strict=True)
    )
    return CalibrationRecord(scores=named, thresholds=thresholds)
