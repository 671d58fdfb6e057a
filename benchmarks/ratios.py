"""Two bundles' speed, or one bundle's in two benchmarks, as ratios with intervals, from their raw samples."""

from __future__ import annotations

from vae_edge.benchmarks.estimates import Ratio
from vae_edge.benchmarks.raw_samples import RawSamples
from vae_edge.benchmarks.rounds import LatencyRounds, RateRounds, latency_ratios, unpaired_ratios

_PREFIXES = {"file": "", "predict": "predict_", "engine": "engine_"}
_FIGURES = ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms")

RATIO_METRICS = (
    *(f"{prefix}{figure}" for prefix in _PREFIXES.values() for figure in _FIGURES),
    "images_per_s",
    "first_result_s",
    "cold_first_result_s",
    "joules_per_image",
)
"""Names of the metrics that raw samples give a ratio of; see `vae_edge.benchmarks.metric_names` for what they are."""


def speed_ratios(samples: RawSamples, baseline: RawSamples, *, paired: bool = True) -> dict[str, Ratio]:
    """Return every figure divided by the baseline's, by the metric's name; what only one side has is left out.

    Args:
        samples: of the bundle in question.
        baseline: of what to divide by.
        paired: whether rounds of the same number were measured side by side, in one benchmark.
    """

    def ratios(mine: LatencyRounds, other: LatencyRounds, figures: tuple[str, ...]) -> dict[str, Ratio]:
        return (latency_ratios if paired else unpaired_ratios)(mine, other, figures)

    found: dict[str, Ratio] = {}
    others = baseline.latencies()
    for series, mine in samples.latencies().items():
        found |= {
            f"{_PREFIXES[series]}{figure}": ratio for figure, ratio in ratios(mine, others[series], _FIGURES).items()
        }
    rates: dict[str, tuple[RateRounds | None, RateRounds | None]] = {
        "images_per_s": (samples.throughput(), baseline.throughput()),
        "joules_per_image": (samples.energy(), baseline.energy()),
    }
    for name, (rate, other_rate) in rates.items():
        if rate is not None and other_rate is not None and (ratio := rate.ratio_to(other_rate, paired=paired)):
            found[name] = ratio
    for name, cold in (("first_result_s", False), ("cold_first_result_s", True)):
        start, other_start = samples.first_results(cold=cold), baseline.first_results(cold=cold)
        if start is not None and other_start is not None:
            first = ratios(start, other_start, ("p50_ms",)).get("p50_ms")
            found |= {} if first is None else {name: first}
    return found
