"""The baseline without a network."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.train.run.baseline import TemplateBaseline
from vae_edge.train.sample import SampleSettings, defect_kinds, draw_defective, draw_normal


def noisy(n: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(120, 10, (n, 32, 48, 3)), 0, 255).astype(np.uint8)


def area_under_roc(normal: NDArray[np.float32], defective: NDArray[np.float32]) -> float:
    """Share of the pairs in which the defective part has the higher score; a tie counts half."""
    higher = (defective[:, None] > normal[None, :]).mean()
    return float(higher + 0.5 * (defective[:, None] == normal[None, :]).mean())


def test_mean_and_deviation_are_those_of_numpy() -> None:
    images = noisy(20)
    baseline = TemplateBaseline.fit(images)
    np.testing.assert_allclose(baseline.mean, images.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(baseline.deviation, np.maximum(images.std(axis=0), 2), rtol=1e-4)


def test_maps_and_scores_have_the_promised_shapes_and_dtypes() -> None:
    baseline = TemplateBaseline.fit(noisy(20))
    images = noisy(3, seed=1)
    maps, scores = baseline.anomaly_maps(images), baseline.scores(images)
    assert maps.shape == (3, 32, 48)
    assert scores.shape == (3,)
    assert maps.dtype == scores.dtype == np.float32
    assert (maps >= 0).all()


def test_a_spot_raises_the_map_where_it_lies_and_the_score() -> None:
    baseline = TemplateBaseline.fit(noisy(40))
    spotted = noisy(1, seed=2)
    clean_score = baseline.scores(spotted)[0]
    spotted[0, 20:24, 30:34] = 255
    row, column = np.unravel_index(baseline.anomaly_maps(spotted)[0].argmax(), (32, 48))
    assert 19 <= row <= 24
    assert 29 <= column <= 34
    assert baseline.scores(spotted)[0] > 1.5 * clean_score


def test_normals_without_any_spread_give_finite_scores() -> None:
    same = np.full((3, 32, 32, 3), 90, dtype=np.uint8)
    assert TemplateBaseline.fit(same).scores(same).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(32, 48, 3), (2, 32, 48), (2, 32, 48, 4)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected uint8 of shape \[N, H, W, 3\]"):
        TemplateBaseline.fit(np.zeros(shape, dtype=np.uint8))


def test_one_image_another_dtype_or_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="got 1 normal images, expected 2 or more"):
        TemplateBaseline.fit(noisy(1))
    with pytest.raises(InputError, match="got float64"):
        TemplateBaseline.fit(noisy(2).astype(np.float64))
    with pytest.raises(InputError, match=r"shape \(32, 32, 3\), expected \(32, 48, 3\)"):
        TemplateBaseline.fit(noisy(2)).scores(np.zeros((1, 32, 32, 3), dtype=np.uint8))


def test_the_sample_set_is_not_solved_by_a_template() -> None:
    settings = SampleSettings(image_size=64)
    product = "fabric"
    baseline = TemplateBaseline.fit(np.stack([draw_normal(product, i, settings) for i in range(30)]))
    normal = baseline.scores(np.stack([draw_normal(product, i, settings, split="test") for i in range(10)]))
    defective = baseline.scores(
        np.stack([draw_defective(product, kind, i, settings).image for kind in defect_kinds(product) for i in range(3)])
    )
    assert area_under_roc(normal, defective) < 0.9
