"""Is the uncertainty honest? One bundle against itself: `python -m vae_edge.benchmarks.self_comparison BUNDLE`.

The same bundle takes part under two names, so the true ratio of every figure is 1, and about 95 in 100 of the 95 %
intervals should contain it. Fewer: the machine changes in a way that the rounds do not see. All of a large number: the
intervals are wider than they need be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vae_edge.benchmarks.estimates import Ratio
from vae_edge.benchmarks.formats import percent
from vae_edge.benchmarks.images import choose_images
from vae_edge.benchmarks.measurement import Measurer, Row
from vae_edge.benchmarks.ratios import speed_ratios
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.benchmarks.statistics import binomial_interval
from vae_edge.benchmarks.suite import order_of_round
from vae_edge.bundle import Bundle
from vae_edge.errors import VaeEdgeError

METRICS = ("p50_ms", "p99_ms", "engine_p50_ms", "images_per_s", "first_result_s")


@dataclass(frozen=True)
class Agreement:
    """How often the interval of a ratio that is truly 1 contains 1."""

    metric: str
    n_containing: int
    n: int
    mean_width: float
    """Mean distance between the ends of the intervals."""

    def __str__(self) -> str:
        interval = binomial_interval(self.n_containing, self.n)
        share = f"{percent(self.n_containing / self.n)}; {percent(interval.low)} to {percent(interval.high)}"
        return (
            f"{self.metric}: {self.n_containing} of {self.n} intervals contain 1 ({share}), "
            f"mean width {self.mean_width:.3f}"
        )


def compare_with_itself(
    bundle: Path, times: int, settings: SuiteSettings, tell: Callable[[str], None] = lambda _: None
) -> list[dict[str, Ratio]]:
    """Measure a bundle under two names, again and again.

    Returns:
        The ratios of the second to the first, of each time.

    Raises:
        VaeEdgeError: the bundle cannot run.
    """
    manifest = Bundle.open(bundle, check_files=False).manifest
    images = choose_images(None, settings.n_timing_images)
    found = []
    with tempfile.TemporaryDirectory(prefix="vae-bench-self-") as scratch:
        for time in range(times):
            rows = [Row(name, bundle, manifest) for name in ("first", "second")]
            measurer = Measurer(images, settings, Path(scratch))
            for number in range(1, settings.rounds + 1):
                for row in order_of_round(rows, number):
                    measurer.measure_round(row, number)
            ratios = speed_ratios(rows[1].samples, rows[0].samples)
            found.append({name: ratios[name] for name in METRICS if name in ratios})
            ratio = ratios["p50_ms"]
            ends = "" if ratio.interval is None else f" ({ratio.interval.low:.3f} to {ratio.interval.high:.3f})"
            tell(f"{time + 1} of {times}: p50_ms {ratio.value:.3f}{ends}")
    return found


def agreements(ratios: Sequence[dict[str, Ratio]]) -> list[Agreement]:
    """Count, for each metric, the intervals that contain 1."""
    found = []
    for metric in METRICS:
        intervals = [each[metric].interval for each in ratios if metric in each]
        known = [interval for interval in intervals if interval is not None]
        if known:
            width = sum(interval.high - interval.low for interval in known) / len(known)
            found.append(Agreement(metric, sum(interval.contains(1.0) for interval in known), len(known), width))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vae_edge.benchmarks.self_comparison",
        description="Benchmark a bundle against itself and count the intervals of the ratio that contain 1.",
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round-time", type=float, default=0.3, help="seconds for each latency in each round")
    chosen = parser.parse_args(arguments)
    rules = replace(SuiteSettings().rules, round_s=chosen.round_time, warmup_s=chosen.round_time / 4)
    settings = SuiteSettings(
        rounds=chosen.rounds, rules=rules, throughput_s=chosen.round_time, cold_starts=0, n_memory_images=1
    )
    try:
        ratios = compare_with_itself(chosen.bundle, chosen.times, settings, _say)
    except VaeEdgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for agreement in agreements(ratios):
        _say(str(agreement))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
