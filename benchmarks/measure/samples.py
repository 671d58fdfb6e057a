"""Raw samples of one bundle, round by round, as they are kept next to the report, and the ratios of two bundles.

Every figure of speed in a report is computed from them, and so are the intervals of `vae-bench compare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vae_edge.benchmarks.measure.jobs import SERIES
from vae_edge.benchmarks.measure.rounds import LatencyRounds, RateRounds, latency_ratios
from vae_edge.benchmarks.measure.statistics import Ratio
from vae_edge.errors import InputError

SAMPLES_VERSION = 2
"""Version of the samples' layout. History: 1 (no rounds), 2 (by round)."""

MS_PER_NS = 1e-6

RoundResults = dict[int, dict[str, Any]]
"""What a worker returned, by the number of the round."""


@dataclass
class RawSamples:
    """All that was measured of one bundle; durations are in nanoseconds if the name ends in _ns."""

    rounds: RoundResults = field(default_factory=dict)
    """Of `RoundJob`: start, memory, latencies, throughput, conditions."""
    cold: RoundResults = field(default_factory=dict)
    """Of `StartJob` with an empty cache of compiled models."""
    streams: dict[tuple[int | None, int], RoundResults] = field(default_factory=dict)
    """Of `StreamJob`, by requests and batch size."""
    loads: dict[float, RoundResults] = field(default_factory=dict)
    """Of `LoadJob`, by images a second."""

    def as_dict(self) -> dict[str, Any]:
        """Return the samples as a value for JSON."""
        return {
            "samples_version": SAMPLES_VERSION,
            "rounds": self.rounds,
            "cold": self.cold,
            "streams": [
                {"requests": requests, "batch_size": batch_size, "rounds": rounds}
                for (requests, batch_size), rounds in self.streams.items()
            ],
            "loads": [{"fps": fps, "rounds": rounds} for fps, rounds in self.loads.items()],
        }

    @classmethod
    def from_dict(cls, content: Any) -> RawSamples:
        """Read the samples from a file's JSON.

        Raises:
            InputError: it is not what this version writes.
        """
        try:
            if content["samples_version"] != SAMPLES_VERSION:
                raise InputError(
                    f"raw samples of version {content['samples_version']}; this vae-edge reads {SAMPLES_VERSION}: "
                    "run vae-bench again"
                )
            return cls(
                rounds=_by_number(content["rounds"]),
                cold=_by_number(content["cold"]),
                streams={
                    (stream["requests"], stream["batch_size"]): _by_number(stream["rounds"])
                    for stream in content["streams"]
                },
                loads={load["fps"]: _by_number(load["rounds"]) for load in content["loads"]},
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the raw samples are damaged ({error!r}); run vae-bench again") from error

    def latency(self, series: str) -> LatencyRounds:
        """Return the durations of one of `SERIES`, or of a stage that is timed alone, in milliseconds."""
        return _latency({number: result["series"][series]["measured_ns"] for number, result in self.rounds.items()})

    def latencies(self) -> dict[str, LatencyRounds]:
        """Return the durations of every series that is measured for its own sake."""
        return {series: self.latency(series) for series in SERIES}

    def first_results(self, *, cold: bool = False) -> LatencyRounds | None:
        """Return the time to the first result of each start, in milliseconds; None: there was none."""
        starts = self.cold if cold else self.rounds
        return _latency({number: [result["first_result_ns"]] for number, result in starts.items()}) if starts else None

    def throughput(self) -> RateRounds:
        """Return images by seconds of the stream opened with its defaults."""
        return images_by_seconds({number: result["throughput"] for number, result in self.rounds.items()})

    def energy(self) -> RateRounds | None:
        """Return joules by images; None if no counter could be read."""
        found = {
            number: (float(energy["joules"]), float(energy["n_images"]))
            for number, result in self.rounds.items()
            if (energy := result["energy"])["joules"] is not None
        }
        return RateRounds(found) if found else None

    def load_latency(self, fps: float) -> LatencyRounds:
        """Return the latencies from when an image was due, in milliseconds."""
        return _latency({number: result["latencies_ns"] for number, result in self.loads[fps].items()})


def images_by_seconds(rounds: Mapping[int, Mapping[str, Any]]) -> RateRounds:
    """Return the count of `count_verdicts` as a rate."""
    return RateRounds({n: (float(found["n_images"]), found["elapsed_ns"] / 1e9) for n, found in rounds.items()})


def _latency(rounds: Mapping[int, Any]) -> LatencyRounds:
    return LatencyRounds({n: [value * MS_PER_NS for value in values] for n, values in rounds.items()})


def _by_number(rounds: Mapping[str, Any]) -> RoundResults:
    return {int(number): dict(result) for number, result in rounds.items()}


_PREFIXES = {"file": "", "predict": "predict_", "engine": "engine_"}

_FIGURES = ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms")

RATIO_METRICS = (
    *(f"{prefix}{figure}" for prefix in _PREFIXES.values() for figure in _FIGURES),
    "images_per_s",
    "first_result_s",
    "cold_first_result_s",
    "joules_per_image",
)
"""Names of the metrics whose ratios can be computed from raw samples; `vae_edge.benchmarks.report.figures` explains
them."""


def speed_ratios(samples: RawSamples, baseline: RawSamples, *, paired: bool = True) -> dict[str, Ratio]:
    """Return every figure divided by the baseline's, by the metric's name; figures that only one side has are left out.

    Args:
        samples: of the bundle in question.
        baseline: samples of the bundle to divide by.
        paired: whether rounds of the same number were measured side by side, in one benchmark.
    """
    ratios = partial(latency_ratios, paired=paired)
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
