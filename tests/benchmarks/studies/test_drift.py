from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from vae_edge.benchmarks.studies.drift import Case, watch


def test_it_prints_both_tables() -> None:
    command = [sys.executable, "-m", "vae_edge.benchmarks.studies.drift", "--runs", "2", "--parts", "50"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    assert "| 5 % defects | 0 | 0 | 0 |" in lines
    assert sum(line.startswith(("| -", "| +")) for line in lines) == 9


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case(200), Case(200, defects=0.05)])
def test_of_200_production_runs_at_most_the_stated_share_is_alarmed(case: Case) -> None:
    highest = np.array([watch(case, 2000, seed).highest for seed in range(200)])
    for rate in (0.01, 0.02, 0.05):
        assert (highest >= 1 / rate).mean() <= rate


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "parts"), [(-1, 80), (0.5, 400), (1, 120), (4, 40)])
def test_a_drift_is_noticed_in_nine_of_ten_production_runs(shift: float, parts: int) -> None:
    monitors = [watch(Case(200, shift, begins=1000, defects=0.05), parts, seed) for seed in range(50)]
    noticed = [each.alarm is not None and each.alarm.part > 1000 for each in monitors]
    assert np.mean(noticed) >= 0.9
