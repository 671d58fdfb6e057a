"""Steps on bundles: their references on one device, a second start from the cache, timed verdicts, and a soak."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import Backend
from vae_edge.backends.tensorrt.build import EngineSettings
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import DeviceError
from vae_edge.platform.conditions import memory_in_use_bytes
from vae_edge.prediction import Prediction
from vae_edge.reference_file import ReferenceFile
from vae_edge.references import record_of, size_of
from vae_edge.selfcheck.constructs import build
from vae_edge.selfcheck.machine import in_words, state
from vae_edge.selfcheck.record import StepResult, Verdict
from vae_edge.targets import Target
from vae_edge.wording import verb

N_VERDICTS = 1024
"""As many as MLPerf takes for one stream of single queries."""

_WARM_UP = 50
_TIMING_S = 90.0
"""After this time a slow device has given enough verdicts."""

_SAME = 1e-4
"""How far a score may move from one run to the next on the same device, as a share of it: some GPUs add up in an order
that changes."""

_SAMPLES = 200
"""Of a soak at most, so that the record stays small."""
_SHORTEST_SAMPLE_S = 5.0

Report = Callable[[StepResult], None]
"""Writes what was found so far."""


def check_references(arguments: dict[str, Any]) -> StepResult:
    """Run a bundle's references on one device and compare.

    Args:
        arguments: `folder` and `device`.

    Raises:
        BundleError: the bundle is damaged.
        ParityError: an engine that was built here does not give its reference outputs.
        MissingDependencyError, DeviceError: see `Detector.open`.
    """
    bundle = Bundle.open(arguments["folder"])
    if bundle.manifest.references is None:
        return StepResult(verdict=Verdict.SKIPPED, reason="it has no references: export it again with this version")
    started = time.perf_counter()
    with Detector.open(bundle, device=arguments["device"]) as detector:
        opened_s = time.perf_counter() - started
        check = detector.check_references()
        backend = detector.backend
        facts = {
            "ran_on": check.ran_on,
            "device_reason": backend.device.reason,
            "layout": str(backend.layout),
            "opened_s": opened_s,
            "notes": list(backend.notes),
            "n_images": check.n_images,
            "n_flipped": len(check.flipped),
            "measures": [
                {
                    "what": each.what,
                    "share": each.share if np.isfinite(each.share) else None,
                    "allowed": each.allowed,
                }
                for each in check.measures
            ],
        }
    lines = (f"{check.ran_on} ({backend.device.reason}), opened in {opened_s:.1f} s", *check.lines(), *backend.notes)
    problem = check.disagreement()
    verdict = Verdict.OK if problem is None else Verdict.DIFFERS
    return StepResult(verdict=verdict, reason=problem, lines=lines, facts=facts)


def build_only(arguments: dict[str, Any]) -> StepResult:
    """Build a bundle's engine where there is no GPU to run it on.

    Args:
        arguments: `folder`.
    """
    Bundle.open(arguments["folder"])  # TensorRT gets no file that was changed, or that nobody signed who should have.
    built, seconds, _ = build(Path(arguments["folder"], "model.onnx"), EngineSettings())
    reason = f"built in {seconds:.1f} s by {built.record.flavour} {built.record.version}; there is no GPU to run it on"
    return StepResult(verdict=Verdict.SKIPPED, reason=reason, facts={"build_s": seconds, **built.record.details})


def check_start(arguments: dict[str, Any]) -> StepResult:
    """Open a bundle and keep its outputs, or, once they are there, compare with them: the second start.

    Args:
        arguments: `folder`, `device`, and `state`, the file that the first start leaves.
    """
    bundle = Bundle.open(arguments["folder"])
    kept = Path(arguments["state"])
    started = time.perf_counter()
    with Detector.open(bundle, device=arguments["device"]) as detector:
        opened_s = time.perf_counter() - started
        outputs = _outputs(detector.backend, reference_images(bundle))
        backend = detector.backend
        from_cache = _is_from_cache(backend)
        own_engine = bundle.manifest.target is Target.TENSORRT and backend.rebuilt_sha256 is None
    facts = {"opened_s": opened_s, "is_from_cache": from_cache, "ran_on": backend.version}
    if not kept.is_file():
        arrays: dict[str, Any] = {"opened_s": opened_s, **outputs}
        np.savez(kept, **arrays)
        return StepResult(verdict=Verdict.OK, lines=(f"opened in {opened_s:.2f} s",), facts=facts)
    with np.load(kept, allow_pickle=False) as before:
        first_s = float(before["opened_s"])
        equal = all(np.array_equal(before[name], value) for name, value in outputs.items())
    facts |= {"first_s": first_s, "equal_outputs": equal}
    lines = (f"opened in {opened_s:.2f} s, the first time in {first_s:.2f} s; outputs are equal: {equal}",)
    if not equal:
        reason = "the outputs are not those of the first start"
        return StepResult(verdict=Verdict.DIFFERS, reason=reason, lines=lines, facts=facts)
    if own_engine:
        return StepResult(verdict=Verdict.OK, reason="the bundle's own engine fits here", lines=lines, facts=facts)
    if not from_cache:
        reason = "the second start did not use the cache"
        return StepResult(verdict=Verdict.FAILED, reason=reason, lines=lines, facts=facts)
    slower = None if opened_s < first_s else "the second start was not faster"
    return StepResult(verdict=Verdict.OK, reason=slower, lines=lines, facts=facts)


def time_verdicts(arguments: dict[str, Any]) -> StepResult:
    """Time single verdicts, array in and verdict out, one after the other, and compare each with the first.

    Args:
        arguments: `folder` and `device`.
    """
    bundle = Bundle.open(arguments["folder"])
    images = reference_images(bundle)
    before = state()
    with Detector.open(bundle, device=arguments["device"]) as detector:
        ran_on = f"{detector.backend.version} on {detector.backend.device.name}"
        firsts = [detector.predict(image) for image in images]
        for image, _ in zip(cycle(images), range(_WARM_UP), strict=False):
            detector.predict(image)
        steadiness, seconds = _Steadiness(), []
        end = time.monotonic() + _TIMING_S
        for position, _ in zip(cycle(range(len(images))), range(N_VERDICTS), strict=False):
            started = time.perf_counter()
            found = detector.predict(images[position])
            seconds.append(time.perf_counter() - started)
            steadiness.add(firsts[position], found)
            if time.monotonic() > end:
                break
    after = state()
    times_ms = np.array(seconds) * 1e3
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, [50, 90, 99], method="inverted_cdf"))
    facts = {
        "ran_on": ran_on,
        "n": len(seconds),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "mean_ms": float(times_ms.mean()),
        "largest_ms": float(times_ms.max()),
        "state_before": before,
        "state_after": after,
        **steadiness.facts(),
    }
    lines = (
        f"{ran_on}: {len(seconds)} verdicts, p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms",
        f"before: {in_words(before)}; after: {in_words(after)}",
    )
    problem = steadiness.problem()
    verdict = Verdict.OK if problem is None else Verdict.DIFFERS
    return StepResult(verdict=verdict, reason=problem or lines[0], lines=lines, facts=facts)


def soak(arguments: dict[str, Any], report: Report) -> StepResult:
    """Repeat verdicts for minutes, compare each with the first, and record heat, clocks and memory.

    Args:
        arguments: `folder`, `device` and `minutes`.
        report: called with every sample: what was found until then is kept if the device goes down.
    """
    bundle = Bundle.open(arguments["folder"])
    images = reference_images(bundle)
    total_s = 60.0 * float(arguments["minutes"])
    sample_s = max(total_s / _SAMPLES, min(_SHORTEST_SAMPLE_S, total_s / 4))
    samples: list[dict[str, Any]] = []
    steadiness = _Steadiness()
    with Detector.open(bundle, device=arguments["device"]) as detector:
        ran_on = f"{detector.backend.version} on {detector.backend.device.name}"
        firsts = [detector.predict(image) for image in images]
        begun = time.monotonic()
        position = 0
        while (now := time.monotonic()) < begun + total_s:
            times_s: list[float] = []
            while time.monotonic() < min(now + sample_s, begun + total_s):
                started = time.perf_counter()
                found = detector.predict(images[position])
                times_s.append(time.perf_counter() - started)
                steadiness.add(firsts[position], found)
                position = (position + 1) % len(images)
            samples.append(
                {
                    "at_s": time.monotonic() - begun,
                    "n": len(times_s),
                    "p50_ms": float(np.median(times_s)) * 1e3 if times_s else None,
                    "memory_bytes": memory_in_use_bytes(),
                    "state": state(),
                }
            )
            report(_soaked(ran_on, samples, steadiness, Verdict.RUNNING))
    return _soaked(ran_on, samples, steadiness, Verdict.OK)


def _soaked(ran_on: str, samples: list[dict[str, Any]], steadiness: _Steadiness, verdict: Verdict) -> StepResult:
    first, last = samples[0], samples[-1]
    lines = [
        f"{ran_on}: {steadiness.n} verdicts in {last['at_s'] / 60:.1f} minutes, {steadiness.n_not_equal} of them with "
        "another score than the first",
        f"first sample: {first['p50_ms']:.2f} ms, {in_words(first['state'])}",
        f"last sample: {last['p50_ms']:.2f} ms, {in_words(last['state'])}",
    ]
    if first["memory_bytes"] and last["memory_bytes"]:
        lines.append(f"memory: {first['memory_bytes'] / 2**20:.0f} MiB, then {last['memory_bytes'] / 2**20:.0f} MiB")
    problem = steadiness.problem()
    if problem is not None and verdict is Verdict.OK:
        verdict = Verdict.DIFFERS
    facts = {"ran_on": ran_on, "samples": list(samples), **steadiness.facts()}
    return StepResult(verdict=verdict, reason=problem, lines=tuple(lines), facts=facts)


class _Steadiness:
    """Compares verdicts with the first for the same picture."""

    def __init__(self) -> None:
        self.n = self.n_not_equal = self.n_flipped = 0
        self.largest_share = 0.0

    def add(self, first: Prediction, found: Prediction) -> None:
        self.n += 1
        if found.score == first.score:
            return
        self.n_not_equal += 1
        self.n_flipped += found.is_anomalous != first.is_anomalous
        share = abs(found.score - first.score) / max(abs(first.score), abs(first.threshold), 1e-30)
        self.largest_share = max(self.largest_share, share)

    def problem(self) -> str | None:
        """Return what is wrong; None: nothing is."""
        if self.n_flipped:
            return (
                f"{self.n_flipped} of {self.n} verdicts "
                f"{verb(self.n_flipped, 'is', 'are')} not the first one for the same picture"
            )
        if self.largest_share > _SAME:
            return f"scores move by up to {self.largest_share:.1e} of themselves for the same picture"
        return None

    def facts(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "n_verdicts": self.n,
            "n_scores_not_equal": self.n_not_equal,
            "n_verdicts_not_equal": self.n_flipped,
            "largest_score_change": self.largest_share,
        }


def reference_images(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """Return the pictures of a bundle's references, uint8 [H, W, 3] RGB, writable.

    Raises:
        BundleError: it has none, or they are damaged.
    """
    record = record_of(bundle)
    path = bundle.folder / record.file
    file = ReferenceFile.read(path, record, size_of(bundle.manifest))
    return [np.array(image) for image in file.images(f"{path}: picture")]


def _is_from_cache(backend: Backend) -> bool:
    """Return whether a model was compiled by an earlier start; of TensorRT's engines the note says so."""
    built_before = any("using the one that was built here" in note for note in backend.notes)
    return bool(getattr(backend, "is_from_cache", built_before))


def _outputs(backend: Backend, images: list[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
    found = [backend.run({"image": np.ascontiguousarray(image)[None]}) for image in images[:8]]
    outputs = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise DeviceError(f"{backend.version} gave values of {name} that are not finite numbers")
    return outputs
