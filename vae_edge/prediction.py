"""What a Detector says about one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.gate_measures import Look
from vae_edge.image import as_rgb

if TYPE_CHECKING:
    from vae_edge.drift import DriftVerdict

_STRIP_PIXELS = 1 << 20


@dataclass(frozen=True)
class Prediction:
    """The verdict on one image, with the numbers behind it."""

    score: float
    """Anomaly score; its scale is the model's own."""
    p_value: float
    """Conformal p-value among the n calibration normals, in [1 / (n + 1), 1]: small is anomalous. At most the
    false-alarm rate in force exactly where `is_anomalous`, by whichever method the threshold was chosen."""
    threshold: float
    """The image is anomalous when the score is above it."""
    is_anomalous: bool
    anomaly_map: NDArray[np.float32]
    """float32 [H, W] at the model's size: larger is more anomalous. 0 where the model ignores the picture."""
    pixel_threshold: float
    source: str | None = None
    """Path or name of the image, where there is one."""
    false_alarm_rate: float | None = None
    """The rate that the threshold stands for; None: not known."""
    drift: DriftVerdict | None = None
    """Whether the process has drifted, as far as is known with this image; None: that was not asked for."""
    not_inspectable_because: tuple[str, ...] = ()
    """Sentences that say what makes the picture unfit to be judged, such as `blurred: sharpness 0.2, expected 0.8 to
    1.3`. None: it is fit, or the bundle has no gate, or the detector was opened without. See `vae_edge.gate`."""
    look: Look | None = field(default=None, repr=False, compare=False)
    """What the gate saw; None without a gate."""

    @property
    def inspectable(self) -> bool:
        """Whether the picture is fit to be judged. Score, map and `is_anomalous` mean little where it is not."""
        return not self.not_inspectable_because

    @property
    def verdict(self) -> Literal["normal", "anomalous", "not inspectable"]:
        """The verdict in a word: `not inspectable`, whatever the score, where the picture is not fit to be judged."""
        if not self.inspectable:
            return "not inspectable"
        return "anomalous" if self.is_anomalous else "normal"

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels of the map above the pixel threshold, bool [H, W] at the model's size."""
        return np.asarray(self.anomaly_map > self.pixel_threshold)

    def overlay(
        self,
        image: NDArray[Any],
        *,
        opacity: float = 0.5,
        white_level: int = 65535,
        longest_side: int | None = None,
    ) -> NDArray[np.uint8]:
        """Draw the anomaly map, the outline of the mask and the verdict over an image.

        Args:
            image: uint8 or uint16, [H, W], [H, W, 3] RGB or [H, W, 4], of any size: usually the original picture.
            opacity: of the map where it is strongest, 0 to 1.
            white_level: the uint16 value that means white, as in the bundle's preparation.
            longest_side: shrink a larger picture so that its longer side has this many pixels; None: keep its size.

        Returns:
            uint8 [H, W, 3], RGB, of the image's size, or smaller. A cold pixel of the map (at most half the pixel
            threshold) leaves the picture as it is; the outline is red for an anomalous image and yellow otherwise. A
            picture that is not inspectable has the first reason in place of its p-value.
        """
        original = as_rgb(image, white_level=white_level)
        height, width = original.shape[:2]
        shrink = 1.0 if longest_side is None else min(1.0, longest_side / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        shrunk = original.copy() if shrink == 1 else cv2.resize(original, size, interpolation=cv2.INTER_AREA)
        canvas = np.asarray(shrunk, dtype=np.uint8)
        heat = cv2.resize(self.anomaly_map, size, interpolation=cv2.INTER_LINEAR)
        low, high = 0.5 * self.pixel_threshold, 2.0 * self.pixel_threshold
        # In strips: in floating point a large picture would take ten times its memory.
        rows = max(1, _STRIP_PIXELS // size[0])
        for y in range(0, size[1], rows):
            strip = slice(y, y + rows)
            level = np.clip((heat[strip] - low) / max(high - low, 1e-30), 0.0, 1.0)
            colours = cv2.cvtColor(
                cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB
            )
            weight = (level * opacity)[:, :, None]
            canvas[strip] = np.rint(canvas[strip] * (1 - weight) + colours * weight).astype(np.uint8)
        mask = cv2.resize(self.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        colour = (230, 40, 40) if self.is_anomalous else (240, 200, 40)
        cv2.drawContours(canvas, outlines, -1, colour, max(1, round(max(size) / 400)))
        if not self.inspectable:
            return _with_caption(canvas, f"NOT INSPECTABLE  {self.not_inspectable_because[0]}", (240, 200, 40))
        return _with_caption(canvas, f"{'ANOMALOUS' if self.is_anomalous else 'normal'}  p={self.p_value:.3g}", colour)


def _with_caption(canvas: NDArray[np.uint8], text: str, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Write the verdict on a dark strip in the upper left corner, as large as the picture allows."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    width = canvas.shape[1]
    (text_width, text_height), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(0.6 * max(width, 200) / 512 + 0.2, 0.95 * width / text_width)
    strip_height, strip_width = int(text_height * scale * 1.9) + 2, int(text_width * scale) + 6
    canvas[:strip_height, :strip_width] = canvas[:strip_height, :strip_width] // 4
    cv2.putText(canvas, text, (3, int(text_height * scale * 1.45) + 1), font, scale, colour, 1, cv2.LINE_AA)
    return canvas
