"""The one place that calls NNCF: its settings, and what keeps it from printing, logging and reporting its use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError, MissingDependencyError
from vae_edge.export.activation_ranges import PERCENTILE
from vae_edge.export.openvino_export import network_operations
from vae_edge.export.settings import Estimator
from vae_edge.machine import look_at_machine
from vae_edge.progress import Progress
from vae_edge.telemetry import openvino_telemetry_hidden


@dataclass(frozen=True)
class QuantizationSettings:
    """How the INT8 model is made."""

    estimator: Estimator = Estimator.MIN_MAX
    """NNCF knows no entropy: `entropy` takes its nearest, the range of least quantization error over a histogram."""
    fast_bias_correction: bool = False
    """False: NNCF corrects the biases layer after layer, each behind the rounding of those before, on a fifth of the
    images. On a trained network of 96 x 96 that left 0.6 of the fast correction's mean score drift (table in
    `quantize_network`); it takes up to twice the time."""
    halve_weight_range: bool | None = None
    """Use 7 of the weights' 8 bits, so that sums of products cannot saturate on x86 processors that add them up in
    16 bits; None: as this machine's processor needs it. Set it for a device that is not this machine."""


def quantize_network(
    model: Any, images: NDArray[np.uint8], settings: QuantizationSettings, progress: Progress | None
) -> Any:
    """Return a copy of an `openvino.Model` with the network's layers quantized and the scoring left in float32.

    Drift from the float model on a trained `nano` network of 96 x 96, calibrated on 100 normal images and measured on
    100 others, as a share of the largest score (or map value):

    | estimator  | bias correction | score, max | score, mean | map, max |
    |------------|-----------------|-----------:|------------:|---------:|
    | min-max    | fast            |      0.017 |      0.0030 |    0.038 |
    | min-max    | layer by layer  |      0.012 |      0.0017 |    0.021 |
    | percentile | fast            |      0.223 |      0.0239 |    0.577 |
    | entropy    | fast            |      0.014 |      0.0026 |    0.073 |

    Args:
        model: from `vae_edge.export.openvino_export.read_graph`.
        images: uint8 [n, H, W, 3].
        settings: how to quantize.
        progress: called with images done and in all while the ranges are measured.

    Raises:
        InputError: an estimator that NNCF lacks.
        MissingDependencyError: nncf is not installed.
    """
    nncf = _import_nncf()
    halve = settings.halve_weight_range
    if halve is None:
        # All layers and not only the first, as NNCF would by default: with AVX2 alone the scores of a trained network
        # of 96 x 96 drifted by up to 0.138 of the largest without the fix, by 0.055 with the first layer's and by 0.017
        # with all, the same as with VNNI, where the halving itself costs nothing measurable.
        halve = look_at_machine().saturates_int8_sums

    n_seen = 0

    def feed(position: int) -> dict[str, NDArray[np.uint8]]:
        nonlocal n_seen
        # The bias correction asks for some images again.
        if progress is not None and position >= n_seen:
            n_seen = position + 1
            progress(n_seen, len(images))
        return {"image": images[position : position + 1]}

    network = {op.get_friendly_name() for op in network_operations(model)}
    operations = (op for op in model.get_ordered_ops() if op.get_type_name() != "Constant")
    rest = [op.get_friendly_name() for op in operations if op.get_friendly_name() not in network]
    ranges = _range_estimator(nncf, settings.estimator)
    with _quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(range(len(images)), feed),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
            fast_bias_correction=settings.fast_bias_correction,
            # Not validated: NNCF's graph leaves operations out that compute nothing from the image.
            ignored_scope=nncf.IgnoredScope(names=rest, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if halve else nncf.OverflowFix.DISABLE,
                activations_range_estimator_params=ranges,
            ),
        )
    for key, value in (
        ("estimator", str(settings.estimator)),
        ("n_calibration_images", str(len(images))),
        ("halved_weight_range", str(halve).lower()),
    ):
        quantized.set_rt_info(value, ["vae_edge", key])
    return quantized


def _range_estimator(nncf: Any, estimator: Estimator) -> Any:
    from nncf.quantization import range_estimator as ranges

    if estimator is Estimator.MIN_MAX:
        return ranges.RangeEstimatorParametersSet.MINMAX
    if estimator is Estimator.PERCENTILE:

        def bound(kind: Any) -> Any:
            return ranges.StatisticsCollectorParameters(
                statistics_type=kind,
                aggregator_type=ranges.AggregatorType.MEAN,
                quantile_outlier_prob=1 - PERCENTILE / 100,
            )

        quantile = ranges.StatisticsType.QUANTILE
        return ranges.RangeEstimatorParameters(min=bound(quantile), max=bound(quantile))
    histogram = getattr(ranges.RangeEstimatorParametersSet, "HISTOGRAM", None)
    if histogram is None:
        raise InputError(
            f"nncf {nncf.__version__} has no estimator for {estimator}; "
            "run: pip install --upgrade nncf, or choose min-max or percentile"
        )
    return histogram


def _import_nncf() -> Any:
    """Import nncf and undo what its import does to the process.

    Raises:
        MissingDependencyError: it is not installed.
    """
    kind = logging.getLoggerClass()
    try:
        with openvino_telemetry_hidden():
            import nncf
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "int8 for target openvino needs the package 'nncf', which is not installed; "
            "run: pip install 'vae-edge[export]'"
        ) from error
    finally:
        logging.setLoggerClass(kind)
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's log and its progress bars, which go to rich's global console, off stdout."""
    import rich

    console, logger = rich.get_console(), logging.getLogger("nncf")
    was_quiet, level = console.quiet, logger.level
    console.quiet = True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        console.quiet = was_quiet
        logger.setLevel(level)
