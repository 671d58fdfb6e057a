"""The study of the gate on drawn parts."""

from __future__ import annotations

import pytest

from vae_edge.benchmarks.studies.gate import SPOILT, study_product


@pytest.mark.slow
def test_a_gate_of_60_dials_finds_what_is_spoilt_and_turns_no_part_away() -> None:
    (row,) = study_product("dial", [60], n_fresh=60, n_spoilt=10, n_per_defect=3, image_size=128)
    assert row.n_rejected <= 1
    assert row.n_defective_rejected <= 1
    assert set(row.found) == set(SPOILT)
    assert all(row.found[name] == 10 for name in SPOILT if "covered" in name or "moved" in name or "blur" in name)
    assert row.found["light 0.5"] == row.found["light 2.5"] == 10
