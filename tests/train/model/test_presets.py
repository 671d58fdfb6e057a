from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vae_edge.errors import UsageError
from vae_edge.platform.machine import look_at_machine
from vae_edge.records import make_record
from vae_edge.train.model import presets
from vae_edge.train.model.presets import (
    MIXED,
    PRESETS,
    REFERENCE_RECIPE,
    SINGLE,
    Augmentation,
    Recipe,
    Schedule,
    resolve_precision,
)

ONE_CYCLE = Recipe(schedule=Schedule.ONE_CYCLE)


def test_the_reference_is_trained_as_published() -> None:
    assert PRESETS["reference"].recipe == REFERENCE_RECIPE
    assert REFERENCE_RECIPE.learning_rate == 2e-4
    assert REFERENCE_RECIPE.augmentation == ()
    assert (REFERENCE_RECIPE.averaging, REFERENCE_RECIPE.kl_warmup) == (0, 0)
    assert {REFERENCE_RECIPE.rate_at(step, 100) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (55, 0.5),
        (40, 0.5 * (1 + math.cos(math.pi / 3))),
        (70, 0.25),
        (100, 0.0),
        (101, 0.0),
    ],
)
def test_one_cycle_rises_over_a_tenth_and_falls_along_a_cosine(step: int, expected: float) -> None:
    assert ONE_CYCLE.rate_at(step, 100) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n_steps", [1, 2, 5, 9, 10, 1234])
def test_one_cycle_is_never_at_rest_nor_above_its_height_however_short_the_training(n_steps: int) -> None:
    rates = [ONE_CYCLE.rate_at(step, n_steps) for step in range(n_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1
    top = rates.index(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize(
    ("warmup", "step", "expected"),
    [(0.0, 0, 1.0), (0.5, 0, 0.02), (0.5, 24, 0.5), (0.5, 49, 1.0), (0.5, 99, 1.0), (1.0, 49, 0.5), (0.001, 0, 1.0)],
)
def test_the_divergence_grows_to_its_full_weight(warmup: float, step: int, expected: float) -> None:
    assert Recipe(kl_warmup=warmup).kl_share_at(step, 100) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"averaging": 1}, "averaging is 1"),
        ({"kl_warmup": 1.5}, "kl_warmup is 1.5"),
        ({"schedule": "triangle"}, "schedule is 'triangle'"),
        ({"augmentation": ("rotate",)}, "augmentation.0 is 'rotate'"),
        ({"momentum": 0.9}, "momentum is 0.9"),
    ],
)
def test_a_recipe_out_of_range_is_refused_with_its_value(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_record(Recipe, values)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(learning_rate=3e-4, schedule=Schedule.ONE_CYCLE, averaging=0.99, augmentation=(Augmentation.FLIPS,))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("asked", [SINGLE, MIXED, "64-true"])
def test_what_was_asked_for_is_taken(asked: str) -> None:
    assert resolve_precision(asked, "cpu") == asked


@pytest.mark.parametrize(
    ("flags", "expected"), [((), SINGLE), (("avx512f",), SINGLE), (("avx512_bf16",), MIXED), (("amx_bf16",), MIXED)]
)
def test_a_processor_trains_in_bfloat16_where_it_multiplies_it(
    flags: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = look_at_machine()
    monkeypatch.setattr(
        presets, "look_at_machine", lambda: replace(machine, processor_flags=type(machine.processor_flags)(flags))
    )
    assert resolve_precision("auto", "cpu") == expected


def test_the_reference_is_trained_in_float32_everywhere() -> None:
    assert PRESETS["reference"].precision == SINGLE
