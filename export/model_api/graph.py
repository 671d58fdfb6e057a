"""From an exported OpenVINO graph to one that OpenVINO Model API opens as AnomalyDetection.

Read in the source of openvino-model-api 0.4.6 (`models/anomaly.py`, `models/image_model.py`):

* A model with `embedded_processing` gets the picture as it is, uint8 [1, H, W, 3], without resizing or scaling; the
  channels are in the order of `cv2.imread`, blue first.
* A model with the four outputs `pred_score`, `pred_label`, `pred_mask` and `anomaly_map` decides for itself. With a
  single output Model API takes the map's maximum as the score, which is not how this package pools, and thresholds a
  map that it has resized by other rules.
* Scores and maps are within 0 to 1, with 0.5 at the threshold. It turns the map and the mask into uint8 pictures of the
  original's size, the map multiplied by 255. The label is the text of the output's value: `True` is anomalous.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.export.model_api.opencv_resize import resize_as_opencv
from vae_edge.export.openvino_ir import import_openvino, name_plainly
from vae_edge.image import Preparation
from vae_edge.manifest import Thresholds

INPUT = "image"
OUTPUTS = ("pred_score", "pred_label", "pred_mask", "anomaly_map")

_LARGEST = float(np.finfo(np.float32).max)
_JUST_BELOW = float(np.nextafter(np.float32(0.5), np.float32(0)))
_JUST_ABOVE = float(np.nextafter(np.float32(0.5), np.float32(1)))


@dataclass(frozen=True)
class Scale:
    """How a score or a pixel becomes a verdict and a number from 0 to 1; all are values of float32.

    A value v above the threshold t becomes 1 - 0.5 c / (c + v - t), one below 0.5 c / (c + t - v), where c is the
    spread: 0.75 is one spread above the threshold, 0.25 one spread below. The order of values is kept everywhere; a
    straight line would be cut off at 1 and give all clear defects the same score. No value becomes exactly 0.5, so `>`
    and `>=` both give what the graph decided from the original value.
    """

    threshold: float
    """A value above it is anomalous; an equal value is not."""
    spread: float
    """Above 0."""

    def normalize(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Compute in NumPy what the graph computes, from float32 of any shape to float64 of the same shape."""
        distance = values.astype(np.float64) - self.threshold
        side = 0.5 * self.spread / (self.spread + np.abs(distance))
        return np.asarray(np.where(distance > 0, 1 - side, side), dtype=np.float64)


@dataclass(frozen=True)
class Scales:
    """The scales of a bundle's scores and of its pixels."""

    image: Scale
    pixel: Scale

    @classmethod
    def of(cls, thresholds: Thresholds) -> Scales:
        """Take them from a bundle's thresholds.

        The spread of the scores is the distance from the median of the held-out normals to the threshold. The
        distribution of the pixels is not recorded; their spread is the same distance or the size of the pixel
        threshold, whichever is larger.

        Raises:
            InputError: a threshold does not fit into float32.
        """
        # For float32 scores s: s > t exactly where s > the largest float32 that is not above t. Pixels are another
        # matter: a Detector's mask compares within float32, to which NumPy rounds the threshold.
        with np.errstate(over="ignore"):
            image = np.float32(thresholds.image_threshold)
            pixel = np.float32(thresholds.pixel_threshold)
        if not np.isfinite([image, pixel]).all():
            raise InputError(
                f"the thresholds are {thresholds.image_threshold} and {thresholds.pixel_threshold}; expected numbers "
                "that 32 bits can hold: export or verify the bundle again"
            )
        if float(image) > thresholds.image_threshold:
            image = np.nextafter(image, np.float32(-np.inf))
        median = float(np.median(thresholds.calibration_scores))
        smallest = max(1e-6 * abs(float(image)), 1e-30)
        image_spread = max(float(image) - median, smallest)
        pixel_spread = max(image_spread, abs(float(pixel)))
        return cls(
            Scale(float(image), float(np.float32(image_spread))), Scale(float(pixel), float(np.float32(pixel_spread)))
        )


def as_model_api(model: Any, preparation: Preparation, scales: Scales, information: Mapping[str, str]) -> Any:
    """Put the resizing before a graph and the decision after it.

    The thresholds become constants, and are compared with the scores and pixels themselves. A score that is not a
    finite number counts as anomalous: a broken model must not pass a part as good.

    Args:
        model: `openvino.Model` with the inputs and outputs of a bundle; it is taken apart.
        preparation: of the bundle.
        scales: from its thresholds.
        information: goes into the `rt_info` under `vae_edge`.

    Returns:
        `openvino.Model`. Input `image`: uint8 [1, H, W, 3], blue first, of any height and width. Outputs: `pred_score`
        float32 [1], `pred_label` bool [1], `pred_mask` bool [1, h, w] and `anomaly_map` float32 [1, h, w], of the size
        that the bundle's maps have.
    """
    openvino = import_openvino()
    from openvino import Layout, Type, layout_helpers, opset13

    height, width = preparation.height, preparation.width
    model.reshape({INPUT: [1, height, width, 3]})
    picture = opset13.parameter([1, -1, -1, 3], Type.u8, name=INPUT)
    picture.output(0).get_tensor().set_names({INPUT})
    layout_helpers.set_layout(picture.output(0), Layout("NHWC"))
    resized = resize_as_opencv(picture, height, width)
    red_first = opset13.gather(resized, np.array([2, 1, 0], dtype=np.int32), np.array(3, dtype=np.int32))
    before = model.input(INPUT)
    before.get_tensor().set_names(set())
    for reader in list(before.get_target_inputs()):
        reader.replace_source_output(red_first.output(0))
    score, anomaly_map = (
        model.output(name).get_node().input(0).get_source_output() for name in ("score", "anomaly_map")
    )
    label, normalized_score = _decide(score, scales.image)
    mask, normalized_map = _decide(anomaly_map, scales.pixel)
    results = []
    for name, value in zip(OUTPUTS, (normalized_score, label, mask, normalized_map), strict=True):
        value.output(0).get_tensor().set_names({name})
        results.append(opset13.result(value, name=f"{name}/result"))
    finished = openvino.Model(results, [picture], "vae-edge")
    name_plainly(finished)
    for key, text in _model_api_information(preparation).items():
        finished.set_rt_info(text, ["model_info", key])
    for key, text in sorted(information.items()):
        finished.set_rt_info(text, ["vae_edge", key])
    return finished


def _decide(values: Any, scale: Scale) -> tuple[Any, Any]:
    """Return what is anomalous, bool, and the values from 0 to 1, float32; both of the values' shape."""
    import_openvino()
    from openvino import opset13 as ops

    def number(value: float) -> Any:
        return ops.constant(np.array(value, dtype=np.float32))

    threshold, spread = number(scale.threshold), number(scale.spread)
    # Comparisons with NaN are false.
    is_number = ops.less_equal(ops.absolute(values), number(_LARGEST))
    anomalous = ops.logical_not(ops.logical_and(ops.less_equal(values, threshold), is_number))
    distance = ops.absolute(ops.subtract(values, threshold))
    side = ops.divide(number(0.5 * scale.spread), ops.add(distance, spread))
    above = ops.maximum(ops.subtract(number(1.0), side), number(_JUST_ABOVE))
    below = ops.minimum(side, number(_JUST_BELOW))
    return anomalous, ops.select(is_number, ops.select(anomalous, above, below), number(1.0))


def _model_api_information(preparation: Preparation) -> dict[str, str]:
    """Return the entries of `model_info` that Model API reads; those of other values are its defaults."""
    return {
        "model_type": "AnomalyDetection",
        "task": "segmentation",
        "labels": "normal anomalous",
        # In the units of the outputs, as Model API writes it for models that it has embedded its own processing into.
        "image_threshold": "0.5",
        "pixel_threshold": "0.5",
        "normalization_scale": "1.0",
        "embedded_processing": "True",
        "orig_height": str(preparation.height),
        "orig_width": str(preparation.width),
        "reverse_input_channels": "True",
    }
