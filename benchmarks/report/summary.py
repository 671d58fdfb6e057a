"""From a bundle's raw samples to the records of the report, and whether they can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vae_edge.benchmarks.measure.plan import SuiteSettings
from vae_edge.benchmarks.measure.rounds import LatencyRounds, RateRounds, latency_intervals, median, nearest_rank
from vae_edge.benchmarks.measure.samples import MS_PER_NS, RawSamples, images_by_seconds
from vae_edge.benchmarks.measure.statistics import Floats
from vae_edge.benchmarks.report.records.speed import (
    EnergyRecord,
    Histogram,
    LatencyRecord,
    LatencyStatistics,
    LoadRecord,
    MemoryRecord,
    RoundRecord,
    Stage,
    StageName,
    StageRecord,
    StartFigures,
    StartRecord,
    StreamRecord,
    ThroughputRecord,
)

WIDE_SPREAD = 0.10
"""Standard deviation, as a share of the mean, from which a result is called unstable; pyperf has the same limit."""

WIDE_DRIFT = 0.05
"""Change of the median from the first half of the rounds to the second from which a result is called unstable: a
processor that heats up or a machine that became busy."""

_BINS = 40

_TAIL_PERCENT = 99.5


def summarize(samples: LatencyRounds) -> LatencyStatistics:
    """Return the statistics of durations that were taken in rounds, with their intervals."""
    values = samples.values()
    figures = {name: float(estimates[0]) for name, estimates in samples.figures().items()}
    reasons = _why_unstable(samples, figures["mean_ms"], figures["std_ms"])
    return LatencyStatistics(
        n=values.size,
        n_rounds=len(samples.rounds),
        min_ms=float(values.min()),
        max_ms=float(values.max()),
        **figures,
        intervals=latency_intervals(samples),
        round_p50_ms=tuple(median(list(part)) for part in samples.rounds.values()),
        histogram=_histogram(values),
        elapsed_s=float(values.sum()) / 1e3,
        is_stable=not reasons,
        unstable_because=reasons,
    )


def _histogram(values: Floats) -> Histogram:
    low, high = float(values.min()), nearest_rank(np.sort(values), _TAIL_PERCENT)
    counts, edges = np.histogram(np.minimum(values, high), _BINS, (low, high) if high > low else (low, low + 1e-6))
    return Histogram(edges=tuple(map(float, edges)), counts=tuple(map(int, counts)))


def _why_unstable(samples: LatencyRounds, mean: float, std: float) -> tuple[str, ...]:
    reasons = []
    if std >= WIDE_SPREAD * mean:
        reasons.append(f"the standard deviation is {std / mean:.0%} of the mean")
    rounds = list(samples.rounds.values())
    half = len(rounds) // 2
    if half >= 2:
        early, late = (
            float(np.median([np.median(part) for part in parts])) for parts in (rounds[:half], rounds[-half:])
        )
        if abs(late - early) >= WIDE_DRIFT * early:
            reasons.append(f"the second half's median is {late / early - 1:+.0%} from the first half's")
    return tuple(reasons)


_STAGES: tuple[tuple[StageName, str], ...] = (
    ("decode", "reading and decoding the file"),
    ("resize", "resizing to the model's size"),
    ("engine", "`Backend.run`: prepared image on the host in, map and score on the host out"),
    ("decision", "`Detector.predict` of a prepared image with the engine's outputs given: checks, p-value, verdict"),
)

_WAITING_SHARE = 0.1

_FEW_WAITING = 4


def measured_fields(samples: RawSamples, settings: SuiteSettings) -> dict[str, Any]:
    """Return the fields of `BundleResult` that come from at least one round."""
    latest = samples.rounds[max(samples.rounds)]
    latency = LatencyRecord(**{name: summarize(series) for name, series in samples.latencies().items()})
    return {
        **{name: latest[name] for name in ("device", "device_reason", "runtime", "layout")},
        "arithmetic": latest["reduced_to"],
        "notes": tuple(dict.fromkeys(note for result in samples.rounds.values() for note in result["notes"])),
        "start": _start(samples),
        "memory": _memory(samples, latest["n_memory_images"]),
        "latency": latency,
        "stages": _stages(samples, latency, latest["device"]),
        "throughput": _throughput(samples),
        "load": tuple(_load(samples, fps, settings.deadline_ms or 1000.0 / fps) for fps in samples.loads),
        "energy": _energy(samples),
        "rounds": _rounds(samples),
    }


def _start(samples: RawSamples) -> StartRecord:
    return StartRecord(
        warm=_start_figures(samples, samples.rounds, cold=False),
        cold=_start_figures(samples, samples.cold, cold=True) if samples.cold else None,
    )


def _start_figures(samples: RawSamples, starts: Mapping[int, Mapping[str, Any]], *, cold: bool) -> StartFigures:
    parts = ("import_s", "runtime_import_s", "open_s", "first_predict_s")
    inside = {name: median([start[name] for start in starts.values()]) for name in parts}
    first = samples.first_results(cold=cold)
    assert first is not None
    interval = latency_intervals(first).get("p50_ms")
    return StartFigures(
        n_starts=len(starts),
        first_result_s=float(first.figures()["p50_ms"][0]) / 1e3,
        interval=None if interval is None else interval.scaled(1e-3),
        process_s=median(
            [start["first_result_ns"] / 1e9 - sum(start[name] for name in parts) for start in starts.values()]
        ),
        **inside,
    )


def _memory(samples: RawSamples, n_images: int) -> MemoryRecord | None:
    starts = samples.rounds.values()
    peaks = [start["peak_resident_bytes"] for start in starts if start["peak_resident_bytes"] is not None]
    before = [start["before_open_bytes"] for start in starts if start["before_open_bytes"] is not None]
    if not peaks:
        return None
    return MemoryRecord(
        peak_resident_bytes=max(peaks), before_open_bytes=max(before) if before else None, n_images=n_images
    )


def _stages(samples: RawSamples, latency: LatencyRecord, device: str) -> StageRecord:
    stages = []
    for name, what in _STAGES:
        rounds = samples.latency(name)
        interval = latency_intervals(rounds).get("p50_ms")
        stages.append(Stage(name=name, what=what, p50_ms=float(rounds.figures()["p50_ms"][0]), interval=interval))
    why = (
        "on a CPU the input is used in place, and the outputs are small"
        if device == "cpu"
        else f"the call to the runtime on {device} returns only when the outputs are on the host"
    )
    return StageRecord(
        stages=tuple(stages),
        sum_ms=sum(stage.p50_ms for stage in stages),
        end_to_end_ms=latency.file.p50_ms,
        note=f"`engine` includes copying in, computing and copying out: {why}",
    )


def _throughput(samples: RawSamples) -> ThroughputRecord:
    default = {number: result["throughput"] for number, result in samples.rounds.items()}
    layout = samples.rounds[max(samples.rounds)]["stream_layout"]
    return ThroughputRecord(
        default=_stream(default, layout, None, 1),
        sweep=tuple(
            _stream(rounds, rounds[max(rounds)]["layout"], requests, batch_size)
            for (requests, batch_size), rounds in samples.streams.items()
            if rounds
        ),
    )


def _stream(
    rounds: Mapping[int, Mapping[str, Any]], layout: str, requests: int | None, batch_size: int
) -> StreamRecord:
    rate = images_by_seconds(rounds)
    return StreamRecord(
        requests=requests,
        batch_size=batch_size,
        layout=layout,
        images_per_s=rate.value(),
        interval=rate.interval(),
        round_images_per_s=tuple(n_images / elapsed_s for n_images, elapsed_s in rate.rounds.values()),
        n_images=int(sum(n_images for n_images, _ in rate.rounds.values())),
    )


def _load(samples: RawSamples, fps: float, deadline_ms: float) -> LoadRecord:
    latency = samples.load_latency(fps)
    missed = missed_rate(latency, deadline_ms)
    interval = missed.interval()
    results = samples.loads[fps].values()
    return LoadRecord(
        fps=fps,
        deadline_ms=deadline_ms,
        latency=summarize(latency),
        missed_share=missed.value(),
        # All rounds alike, such as none missed: the resamples are too, and say nothing of how uncertain that is.
        missed_interval=None if interval is None or interval.low == interval.high else interval,
        n_without_verdict=sum(found["n_without_verdict"] for found in results),
        keeps_up=all(
            found["n_waiting"] <= max(_WAITING_SHARE * len(found["latencies_ns"]), _FEW_WAITING) for found in results
        ),
    )


def missed_rate(latency: LatencyRounds, deadline_ms: float) -> RateRounds:
    """Return the share of images that were later than the deadline."""
    return RateRounds(
        {number: (float((values > deadline_ms).sum()), float(values.size)) for number, values in latency.rounds.items()}
    )


def _energy(samples: RawSamples) -> EnergyRecord:
    rate = samples.energy()
    readings = [result["energy"] for result in samples.rounds.values()]
    if rate is None:
        return EnergyRecord(
            not_available_because=readings[-1]["not_available_because"] or "the counter did not advance"
        )
    read = [reading for reading in readings if reading["joules"] is not None]
    return EnergyRecord(
        joules_per_image=rate.value(),
        interval=rate.interval(),
        mean_watts=sum(reading["joules"] for reading in read) / (sum(reading["elapsed_ns"] for reading in read) / 1e9),
        source=read[-1]["source"],
    )


def _rounds(samples: RawSamples) -> tuple[RoundRecord, ...]:
    return tuple(
        RoundRecord(
            number=number,
            begin_s=result["begin_s"],
            engine_p50_ms=median(result["series"]["engine"]["measured_ns"]) * MS_PER_NS,
            spin_before_ms=result["spin_before_ns"] * MS_PER_NS,
            spin_after_ms=result["spin_after_ns"] * MS_PER_NS,
            **{
                name: result[name]
                for name in ("frequency_mhz", "temperature_c", "n_throttled", "foreign_cores", "stolen_share")
            },
        )
        for number, result in samples.rounds.items()
    )
