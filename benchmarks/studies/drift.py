"""How often drift is alarmed without and with a drift: `python -m vae_edge.benchmarks.studies.drift`.

Scores are simulated: those of held-out normals and of the parts of many production runs, normally distributed, which is
no restriction, for only their ranks count. In some, a share of parts is defective and scores 6 standard deviations
higher; in others the parts change by some standard deviations from a certain part on. The last line without drift makes
the same bets on ranks among the held-out normals alone, as `Prediction.p_value` is one: it shows why the monitor also
ranks among earlier parts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from vae_edge.benchmarks.studies import run_study
from vae_edge.cli.console import results_console
from vae_edge.cli.progress import progress_bar
from vae_edge.drift import DriftMonitor
from vae_edge.errors import UsageError

RATES = (0.01, 0.02, 0.05)
SHIFTS = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0, 4.0)
DEFECT_SCORE = 6.0
_RATE_WITH_DRIFT = 0.01


@dataclass(frozen=True)
class Case:
    """Production runs of one kind."""

    n_normals: int
    shift: float = 0.0
    """In standard deviations of the normals."""
    begins: int = 0
    """Parts before the change."""
    defects: float = 0.0
    """Share of defective parts."""
    ranks_among_normals_alone: bool = False


class _AmongNormalsAlone(DriftMonitor):
    def _rank(self, score: float) -> float:
        rank = super()._rank(score)
        self._scores.remove(score)
        return rank


def watch(case: Case, n_parts: int, seed: int, *, rate: float = _RATE_WITH_DRIFT) -> DriftMonitor:
    """Return the monitor after one production run, or at its alarm where the parts change."""
    rng = np.random.default_rng([seed, case.n_normals])
    monitor = DriftMonitor.for_scores(rng.normal(size=case.n_normals), alarm_rate=rate, seed=seed)
    if case.ranks_among_normals_alone:
        monitor = _AmongNormalsAlone(monitor.record())
    scores: NDArray[np.float64] = rng.normal(size=case.begins + n_parts)
    scores[case.begins :] += case.shift
    scores[rng.random(scores.size) < case.defects] += DEFECT_SCORE
    for score in scores.tolist():
        if monitor.add(score).alarm and case.shift:
            break
    return monitor


def drift(
    runs: Annotated[int, typer.Option(help="Simulated production runs of each kind.")] = 200,
    parts: Annotated[int, typer.Option(help="Parts of a production run; with a drift, after it.")] = 5000,
    normals: Annotated[int, typer.Option(help="Held-out normals of the bundle.")] = 200,
) -> None:
    """Print two tables in Markdown: alarms without drift, and parts until the alarm with it."""
    if min(runs, parts, normals) < 1:
        raise UsageError(f"runs, parts and normals are {runs}, {parts} and {normals}; expected 1 or more")
    logging.getLogger("vae_edge.drift").setLevel(logging.ERROR)
    _say(f"Production runs of {parts} parts without drift in which an alarm was raised, of {runs}:\n")
    _say(f"| production runs | {' | '.join(f'rate {rate}' for rate in RATES)} |\n|---|{'---:|' * len(RATES)}")
    quiet = {
        f"{normals} held-out normals": Case(normals),
        "20 held-out normals": Case(20),
        "5 % defects": Case(normals, defects=0.05),
        "10 % defects": Case(normals, defects=0.1),
        "for comparison: ranks among the normals alone": Case(normals, ranks_among_normals_alone=True),
    }
    with progress_bar("simulating") as report:
        done, total = 0, len(quiet) + 2 * len(SHIFTS)
        for name, case in quiet.items():
            highest = np.array([watch(case, parts, seed).highest for seed in range(runs)])
            _say(f"| {name} | {' | '.join(str(int((highest >= 1 / rate).sum())) for rate in RATES)} |")
            done += 1
            report(done, total)
        _say(
            f"\nParts until the alarm, median and 90 % of {runs} production runs, "
            f"rate {_RATE_WITH_DRIFT}, 5 % defects:\n"
        )
        _say("| scores move by | at the first part | after 2,000 parts |\n|---:|---:|---:|")
        for shift in SHIFTS:
            cells = []
            for begins in (0, 2000):
                case = Case(normals, shift, begins, defects=0.05)
                cells.append(_delays([watch(case, parts, seed) for seed in range(runs)], begins))
                done += 1
                report(done, total)
            _say(f"| {shift:+g} | {cells[0]} | {cells[1]} |")


def _say(line: str) -> None:
    results_console().print(line, markup=False, highlight=False, soft_wrap=True)


def _delays(monitors: list[DriftMonitor], begins: int) -> str:
    """Return median and 90 % of the parts from a change to its alarm; false alarms before it count as missed."""
    delays = [
        np.inf if monitor.alarm is None or monitor.alarm.part <= begins else monitor.alarm.part - begins
        for monitor in monitors
    ]
    middle, most = (float(value) for value in np.quantile(delays, [0.5, 0.9], method="higher"))
    n_missed = int(np.isinf(delays).sum())
    texts = ["never" if np.isinf(value) else f"{value:.0f}" for value in (middle, most)]
    return f"{texts[0]}, {texts[1]}" + (f" ({n_missed} missed)" if n_missed else "")


if __name__ == "__main__":
    run_study(drift)
