from __future__ import annotations

from dataclasses import replace

import pytest

from vae_edge.platform.machine import look_at_machine


@pytest.mark.parametrize(
    ("architecture", "flags", "saturates"),
    [
        ("x86_64", ("avx2",), True),
        ("x86_64", ("avx2", "avx512f"), True),
        ("AMD64", (), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx512f", "avx512_vnni"), False),
        ("AMD64", ("avx512f", "avx512_vnni"), False),
        ("aarch64", ("asimd",), False),
    ],
)
def test_sums_of_8_bit_products_saturate_on_x86_without_vnni(
    architecture: str, flags: tuple[str, ...], saturates: bool
) -> None:
    machine = replace(look_at_machine(), architecture=architecture, processor_flags=flags)
    assert machine.saturates_int8_sums is saturates
