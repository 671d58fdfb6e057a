"""The quick look at usual arrays never accepts what the checks with messages refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vae_edge.backends.base import _n_images, _usual_forms, check_feeds, check_outputs
from vae_edge.errors import DeviceError, InputError
from vae_edge.manifest import TensorSpec

INPUTS = (TensorSpec(name="image", dtype="uint8", shape=(None, 4, 6, 3)),)
OUTPUTS = (
    TensorSpec(name="anomaly_map", dtype="float32", shape=(None, 4, 6)),
    TensorSpec(name="score", dtype="float32", shape=(None,)),
)


def feeds(*shape: int, dtype: str = "uint8") -> dict[str, Any]:
    return {"image": np.zeros(shape, dtype)}


def outputs(n_maps: int, n_scores: int, **changes: Any) -> dict[str, Any]:
    return {"anomaly_map": np.zeros((n_maps, 4, 6), "f4"), "score": np.zeros(n_scores, "f4"), **changes}


def test_usual_arrays_pass_the_quick_look_with_the_number_of_their_images() -> None:
    forms = _usual_forms(INPUTS)
    assert [_n_images(feeds(n, 4, 6, 3), forms, max_batch=8) for n in (1, 2, 8)] == [1, 2, 8]
    assert [_n_images(outputs(n, n), _usual_forms(OUTPUTS)) for n in (1, 5)] == [1, 5]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        feeds(9, 4, 6, 3),
        feeds(0, 4, 6, 3),
        feeds(1, 4, 6),
        feeds(1, 6, 4, 3),
        feeds(1, 4, 6, 3, dtype="float32"),
        feeds(1, 4, 6, 3, dtype="int8"),
        {"image": np.zeros((), "uint8")},
        {"image": np.zeros((1, 4, 6, 6), "uint8")[..., ::2]},
        {"picture": np.zeros((1, 4, 6, 3), "uint8")},
        {**feeds(1, 4, 6, 3), "other": np.zeros(1, "uint8")},
    ],
)
def test_inputs_that_are_refused_do_not_pass_the_quick_look(wrong: dict[str, Any]) -> None:
    assert _n_images(wrong, _usual_forms(INPUTS), max_batch=8) is None
    with pytest.raises(InputError):
        check_feeds(wrong, INPUTS, 8)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        outputs(1, 2),
        outputs(2, 1),
        outputs(2, 2),
        outputs(1, 1, score=np.zeros(1, ">f4")),
        outputs(1, 1, score=np.zeros(1)),
        outputs(1, 1, score=np.float32(0)),
        outputs(1, 1, score=np.zeros((), "f4")),
        outputs(1, 1, score=[0.0]),
        outputs(1, 1, anomaly_map=None),
        outputs(1, 1, anomaly_map=np.zeros((1, 6, 4), "f4")),
    ],
)
def test_outputs_that_are_refused_do_not_pass_the_quick_look(wrong: dict[str, Any]) -> None:
    assert _n_images(wrong, _usual_forms(OUTPUTS)) != 1
    with pytest.raises(DeviceError):
        check_outputs(wrong, OUTPUTS, 1)


def test_specs_without_a_free_batch_are_always_checked_closely() -> None:
    fixed = (TensorSpec(name="image", dtype="uint8", shape=(1, 4, 6, 3)),)
    assert _n_images(feeds(1, 4, 6, 3), _usual_forms(fixed)) is None
    check_feeds(feeds(1, 4, 6, 3), fixed, None)
