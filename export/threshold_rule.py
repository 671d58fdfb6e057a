"""How a model's outputs for the run's normals become its thresholds, for either kind of calibration.

Split-conformal: the normals were held out, so a bundle's own scores of them are its calibration scores.

Cross-conformal: the deployed model was trained on the normals, and its scores of them are too low to set a threshold.
The run has scores by models that had not seen them. What an exported model's runtime and precision change is measured
on the same images, by the deployed model, and is added:

    calibration score = out-of-fold score + (bundle's score - trained model's score)
    pixel threshold = out-of-fold threshold + (threshold of the bundle's maps - threshold of the trained model's maps)

This takes the drift on an image that was trained on for the drift on one that was not. It is exact for an FP32 model,
whose drift is rounding. An INT8 model that was calibrated on these very images may drift a little less on them than on
new ones; `vae-edge verify` fits thresholds on new normals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae_edge.agreement import Outputs
from vae_edge.decision import PixelTail, fit_thresholds_with_tail
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.train.run.records import CalibrationRecord


@dataclass(frozen=True)
class ThresholdRule:
    """Turns a model's outputs for the run's normals into thresholds.

    A split-conformal rule is the one that adds nothing.
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
    """What computed the out-of-fold scores, for the record; None where there are none."""

    @classmethod
    def of_run(cls, calibration: CalibrationRecord, false_alarm_rate: float | None = None) -> ThresholdRule:
        """Return the rule of a run.

        Args:
            calibration: the run's.
            false_alarm_rate: None: the one that the run was asked for.
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
        """Whether the normals are for the thresholds alone; else the network was trained on them."""
        return self.method is ThresholdMethod.SPLIT_CONFORMAL

    def describe_normals(self) -> str:
        """Return what the normals are, in words: `99 held-out normal images`."""
        n = self.score_offsets.size
        return f"{n} held-out normal images" if self.is_split else f"{n} normal images of the training"

    def fit(self, normals: Outputs, *, scored_by: str) -> Thresholds:
        """Fit thresholds.

        Args:
            normals: a model's outputs for the run's normals, in the order of `calibration.json`.
            scored_by: what computed them, for the record.

        Raises:
            InputError: see `fit_thresholds_with_tail`; or there is not one output for each normal.
        """
        tail = PixelTail(normals.maps.size, self.pixel_false_positive_rate)
        tail.add(normals.maps)
        fitted = fit_thresholds_with_tail(
            normals.scores.astype(np.float64) + self.score_offsets,
            tail,
            false_alarm_rate=self.false_alarm_rate,
            scored_by=scored_by if self.offsets_by is None else f"{self.offsets_by}; drift by {scored_by}",
            method=self.method,
        )
        return fitted.model_copy(update={"pixel_threshold": fitted.pixel_threshold + self.pixel_offset})
