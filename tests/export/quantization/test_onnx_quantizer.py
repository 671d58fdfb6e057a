from __future__ import annotations

import numpy as np
import pytest

from tests.export.tiny_networks import make_images, make_network, run_model
from vae_edge.errors import InputError
from vae_edge.export.quantization.onnx_quantizer import N_BINS, activation_ranges, entropy_bins, percentile_bins
from vae_edge.export.settings import Estimator

pytest.importorskip("onnxruntime")


def test_min_max_is_what_the_tensors_take_with_zero_inside() -> None:
    model, images = make_network(), make_images(10)
    ranges = activation_ranges(model, images, Estimator.MIN_MAX)
    pixels = images.astype(np.float32) / 127.5 - 1
    assert ranges.of("pixels") == pytest.approx((min(pixels.min(), 0), pixels.max()), abs=1e-6)
    watched = make_network()
    watched.graph.output.add(name="up0")
    (values,) = run_model(watched, images, ["up0"])
    assert ranges.of("up0") == pytest.approx((values.min(), values.max()), abs=1e-5)
    assert ranges.of("grow.active")[0] == 0
    assert ranges.n_images == 10


@pytest.mark.parametrize("estimator", list(Estimator))
def test_neither_the_order_nor_a_second_run_changes_a_range(estimator: Estimator) -> None:
    model, images = make_network(), make_images(9)
    first = activation_ranges(model, images, estimator)
    assert activation_ranges(model, images, estimator) == first
    turned = activation_ranges(model, images[::-1], estimator)
    for name, bounds in first.bounds.items():
        assert turned.of(name) == pytest.approx(bounds, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("estimator", [Estimator.PERCENTILE, Estimator.ENTROPY])
def test_no_estimate_is_wider_than_the_values(estimator: Estimator) -> None:
    model, images = make_network(), make_images(8)
    widest = activation_ranges(model, images, Estimator.MIN_MAX)
    for name, (low, high) in activation_ranges(model, images, estimator).bounds.items():
        assert widest.of(name)[0] <= low <= 0 <= high <= widest.of(name)[1]


def test_the_percentile_cuts_the_rarest_values_only() -> None:
    counts = np.zeros(N_BINS, np.int64)
    counts[:100], counts[-1] = 1000, 1
    assert percentile_bins(counts) == 100
    assert percentile_bins(counts, 100) == N_BINS


def test_the_entropy_cuts_a_lone_outlier_and_keeps_an_even_spread() -> None:
    lone = np.zeros(N_BINS, np.int64)
    lone[:200], lone[-1] = np.arange(200, 0, -1) * 1000, 1
    assert entropy_bins(lone) < 400
    assert entropy_bins(np.full(N_BINS, 1000)) > 0.95 * N_BINS


def test_entropy_agrees_with_onnx_runtimes_own_where_that_has_bins_to_choose_from() -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = np.abs(np.random.default_rng(0).laplace(size=50_000)).astype(np.float32)
    theirs = HistogramCollector("entropy", False, 1001, 255, None, "same")
    theirs.collect({"x": np.concatenate([values, -values])})
    (_, high, *_) = theirs.compute_collection_result()["x"]
    counts, edges = np.histogram(values, N_BINS, range=(0, float(values.max())))
    ours = edges[entropy_bins(counts)]
    assert ours == pytest.approx(float(high), rel=0.3)


def test_progress_counts_the_images_of_all_passes() -> None:
    seen: list[tuple[int, int]] = []
    activation_ranges(make_network(), make_images(6), Estimator.ENTROPY, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 12), (6, 12), (10, 12), (12, 12)]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 16, 24, 3), np.uint8), r"uint8 \(0, 16, 24, 3\); expected uint8 \[n, H, W, 3\]"),
        (np.zeros((2, 16, 24, 3), np.float32), "float32"),
        (np.zeros((2, 24, 16, 3), np.uint8), r"\(24, 16, 3\); the model takes \(16, 24, 3\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        activation_ranges(make_network(), images, Estimator.MIN_MAX)


def test_a_range_that_was_not_measured_is_told() -> None:
    ranges = activation_ranges(make_network(), make_images(2), Estimator.MIN_MAX)
    with pytest.raises(InputError, match="no range for 'elsewhere'"):
        ranges.largest("elsewhere")
