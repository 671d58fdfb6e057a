"""The trained model, its outputs for the images that every bundle is compared on, and how thresholds follow from them.

A model's outputs for the run's normals become its thresholds by the `ThresholdRule` of the run's calibration.

Split-conformal: the normals were held out, so a bundle's own scores of them are its calibration scores.

Cross-conformal: the deployed model was trained on the normals, and its scores of them are too low to set a threshold.
The run has scores of these images by models that had not seen them. The change that an exported model's runtime and
precision make is measured on the same images, by the deployed model, and is added:

    calibration score = out-of-fold score + (bundle's score - trained model's score)
    pixel threshold = out-of-fold threshold + (threshold of the bundle's maps - threshold of the trained model's maps)

This assumes that the drift is the same on images that were trained on and on new ones. It is exact for an FP32 model,
whose drift is rounding. An INT8 model that was calibrated on these very images may drift a little less on them than on
new ones; `vae-edge verify` fits thresholds on new normals.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.agreement import Outputs
from vae_edge.decision import PixelTail, fit_thresholds_with_tail
from vae_edge.errors import InputError
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.platform.work import StepProgress
from vae_edge.train.data.inspection_set import load_images, spread
from vae_edge.train.model.anomaly_graph import AnomalyGraph, DeployedGraph, run_graph
from vae_edge.train.model.presets import Network
from vae_edge.train.model.scoring import ScoringSettings
from vae_edge.train.model.scoring_constants import fit_scoring_constants
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.run.records import CalibrationRecord

MAX_TEST_IMAGES = 200
"""Test images that parity is measured on, spread evenly over the test set, in addition to all normals of the
thresholds."""


@dataclass(frozen=True)
class ThresholdRule:
    """Turns a model's outputs for the run's normals into thresholds.

    A split-conformal rule adds nothing.
    """

    method: ThresholdMethod
    false_alarm_rate: float
    """Share of normal images that may be called anomalous."""
    pixel_false_positive_rate: float
    score_offsets: NDArray[np.float64]
    """float64 [n], what is added to the score of each normal, in the order of `calibration.json`."""
    pixel_offset: float = 0.0
    """What is added to the pixel threshold."""
    offsets_by: str | None = None
    """What computed the out-of-fold scores, for the record; None if there are none."""
    kept: NDArray[np.bool_] | None = None
    """bool [H, W], the pixels that count; None: all."""

    @classmethod
    def of_run(cls, calibration: CalibrationRecord, false_alarm_rate: float | None = None) -> ThresholdRule:
        """Return the rule of a run.

        Args:
            calibration: the run's.
            false_alarm_rate: None: the one that was requested for the run.
        """
        thresholds = calibration.thresholds
        offsets, pixel_offset, offsets_by = np.zeros(len(calibration.scores)), 0.0, None
        if thresholds.method is ThresholdMethod.CROSS_CONFORMAL:
            final_pixel_threshold = calibration.final_pixel_threshold
            assert final_pixel_threshold is not None  # The record checks that it is there, and the scores too.
            offsets = np.array([score.score - (score.final_score or 0.0) for score in calibration.scores])
            pixel_offset = thresholds.pixel_threshold - final_pixel_threshold
            offsets_by = thresholds.scored_by
        return cls(
            method=thresholds.method,
            false_alarm_rate=thresholds.false_alarm_rate_requested if false_alarm_rate is None else false_alarm_rate,
            pixel_false_positive_rate=thresholds.pixel_false_positive_rate,
            score_offsets=offsets,
            pixel_offset=pixel_offset,
            offsets_by=offsets_by,
        )

    @property
    def is_split(self) -> bool:
        """Whether the normals were kept for the thresholds alone; otherwise the network was trained on them."""
        return self.method is ThresholdMethod.SPLIT_CONFORMAL

    def describe_normals(self) -> str:
        """Describe the normals, as in `99 held-out normal images`."""
        n = self.score_offsets.size
        return f"{n} held-out normal images" if self.is_split else f"{n} normal images of the training"

    def fit(self, normals: Outputs, *, scored_by: str) -> Thresholds:
        """Fit thresholds.

        Args:
            normals: a model's outputs for the run's normals, in the order of `calibration.json`.
            scored_by: what computed them, for the record.

        Raises:
            InputError: see `fit_thresholds_with_tail`; or the number of outputs differs from the number of normals.
        """
        tail = PixelTail(normals.maps.size, self.pixel_false_positive_rate, self.kept)
        tail.add(normals.maps)
        fitted = fit_thresholds_with_tail(
            normals.scores.astype(np.float64) + self.score_offsets,
            tail,
            false_alarm_rate=self.false_alarm_rate,
            scored_by=scored_by if self.offsets_by is None else f"{self.offsets_by}; drift by {scored_by}",
            method=self.method,
        )
        return fitted.model_copy(update={"pixel_threshold": fitted.pixel_threshold + self.pixel_offset})


@dataclass(frozen=True)
class TrainedModel:
    """The trained model and its outputs in FP32."""

    run: RunFolder
    graph: DeployedGraph
    fingerprint: str
    """SHA-256 over the weights, the scoring and its constants."""
    images: NDArray[np.uint8]
    """uint8 [n, H, W, 3]."""
    names: tuple[str, ...]
    n_normals: int
    """This many images at the start are the normals that the thresholds are fitted on: held out from the training, or,
    in a cross-conformal run, all of them."""
    outputs: Outputs
    rule: ThresholdRule
    """How thresholds are computed from a model's outputs for the normals."""
    thresholds: Thresholds
    description: str
    """What the images are, in words."""


def measure_trained_model(
    run: RunFolder,
    *,
    scoring: ScoringSettings | None,
    data_root: Path | None,
    false_alarm_rate: float | None,
    progress: StepProgress,
) -> TrainedModel:
    """Run the trained model over the normals of its thresholds and some test images.

    Args:
        run: the trained model.
        scoring: to use in place of the run's own; its constants are then measured again on the normals that the run
            kept for that. None: the run's own.
        data_root: where the run's images are now; None: where they were.
        false_alarm_rate: None: the run's own.
        progress: receives every step.

    Raises:
        InputError: the run's images cannot be found; or another scoring was requested, and the run is cross-conformal.
        BundleError: the weights do not belong to the run.
    """
    ignored = run.record.ignored
    rule = replace(
        ThresholdRule.of_run(run.calibration, false_alarm_rate), kept=None if ignored is None else ignored.kept
    )
    graph, fingerprint = run.load_graph(), run.fingerprint
    preparation = run.record.preparation
    if scoring is not None and run.record.network is not Network.PIXEL:
        raise InputError(
            f"another scoring was requested, but the run {run.folder} has a network on features, whose scoring is "
            "fixed; leave out --scoring, or train with --preset nano, edge or reference"
        )
    if scoring is not None and scoring != run.record.scoring:
        if not rule.is_split:
            raise InputError(
                f"the thresholds of the run {run.folder} come from the networks of the folds, which were not kept, "
                f"with the scoring that it was trained with ({run.record.scoring.describe()}); to score otherwise, "
                "train with that --scoring, or with --calibration split"
            )
        statistics = load_images(run.find_images(("statistics",), data_root), preparation)
        constants = fit_scoring_constants(
            run.load_vae(),
            scoring,
            statistics,
            input_settings=run.record.input_settings,
            fitted=load_images(run.find_images(("fit",), data_root), preparation),
            progress=lambda done, total: progress("measuring normal residuals", done, total),
        )
        graph = AnomalyGraph(run.load_vae(), scoring, constants, run.record.input_settings)
        fingerprint = hashlib.sha256(f"{fingerprint} {scoring.model_dump_json()}".encode()).hexdigest()
    normals = run.find_calibration_images(data_root)
    tests = spread(run.find_images(("test",), data_root), MAX_TEST_IMAGES)
    files = (*normals, *tests)
    images = load_images(files, preparation, lambda done, total: progress("reading images", done, total))
    maps, scores = run_graph(graph, images, progress=lambda done, total: progress("scoring with torch", done, total))
    outputs = Outputs(maps, scores)
    thresholds = rule.fit(outputs.take(slice(len(normals))), scored_by=f"torch {torch.__version__} (the trained model)")
    return TrainedModel(
        run=run,
        graph=graph,
        fingerprint=fingerprint,
        images=images,
        names=tuple(file.name for file in files),
        n_normals=len(normals),
        outputs=outputs,
        rule=rule,
        thresholds=thresholds,
        description=rule.describe_normals() + (f" and {len(tests)} test images" if tests else ""),
    )
