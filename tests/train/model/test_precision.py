from __future__ import annotations

from dataclasses import replace

import pytest

from vae_edge.machine import look_at_machine
from vae_edge.train.model import presets
from vae_edge.train.model.presets import MIXED, PRESETS, SINGLE, resolve_precision


@pytest.mark.parametrize("asked", [SINGLE, MIXED, "64-true"])
def test_what_was_asked_for_is_taken(asked: str) -> None:
    assert resolve_precision(asked, "cpu") == asked


@pytest.mark.parametrize(("flags", "expected"), [((), SINGLE), (("avx512_bf16",), SINGLE), (("amx_bf16",), MIXED)])
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
