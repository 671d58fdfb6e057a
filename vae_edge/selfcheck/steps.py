"""Which steps a self-check has: they follow from what the first ones find on this device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_edge.doctor import RUNTIME_PROBES
from vae_edge.manifest import Manifest
from vae_edge.selfcheck.constructs import construct_titles
from vae_edge.selfcheck.record import StepRecord
from vae_edge.targets import Precision, Target
from vae_edge.wording import count

_PROBE_S, _LOOK_S = 180.0, 60.0
_CUDA_S = 120.0
_CONSTRUCT_S = 90.0
# torch: its import from a slow memory card takes more than a minute.
_REFERENCES_S = {Target.TENSORRT: 180.0, Target.TORCH: 180.0}
_REFERENCES_OTHERS_S = 90.0
_TIMING_S = 210.0

ADAPTERS = ("driver", "pycuda", "cuda-bindings")
"""Ways to a GPU's memory."""

_NVIDIA = ("cuda", "tensorrt")
"""Devices of ONNX Runtime that need an NVIDIA GPU."""

FIRST_NETWORK = "tiles"
"""Begins the names of the shipped bundles that are checked first, timed and started twice."""

_RUNTIME_OF = {
    Target.ONNX: "onnxruntime",
    Target.OPENVINO: "openvino",
    Target.TENSORRT: "tensorrt",
    Target.TORCH: "torch",
}


@dataclass(frozen=True)
class Step:
    """One thing to find out, in a process of its own."""

    key: str
    title: str
    kind: str
    """One of those that `vae_edge.selfcheck.worker` knows."""
    arguments: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 60.0
    """After this time its process is killed."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Added to the process's environment."""
    skipped_because: str | None = None
    """Why it has no process."""
    is_soak: bool = False


@dataclass(frozen=True)
class BundleToCheck:
    """A bundle, and what it is called in the report."""

    name: str
    folder: Path
    manifest: Manifest
    is_given: bool
    """Whether the user named it; else it came with this package."""

    @property
    def kind(self) -> tuple[Target, Precision]:
        """Its target and precision."""
        return self.manifest.target, self.manifest.precision


def first_steps() -> list[Step]:
    """Return the steps that all others follow from: the machine and its runtimes."""
    steps = [Step("machine", "the machine", "machine", limit_s=_LOOK_S)]
    for runtime, (title, _, _) in RUNTIME_PROBES.items():
        steps.append(Step(f"runtime:{runtime}", title, "runtime", {"runtime": runtime}, _PROBE_S))
    return steps


class Plan:
    """The steps after the first ones.

    Args:
        found: the records of the first ones.
        bundles: to check, in this order.
        scratch: an empty folder: the steps' own cache of compiled models is there.
        soak_minutes: 0: no soak.
    """

    def __init__(
        self, found: Sequence[StepRecord], bundles: Sequence[BundleToCheck], scratch: Path, soak_minutes: float
    ) -> None:
        self._found = {record.key: record for record in found}
        self._bundles = list(bundles)
        self._scratch = scratch
        self._soak_minutes = soak_minutes
        self.has_gpu = self._status("cuda") not in ("missing", None)

    def steps(self) -> Iterator[Step]:
        """Yield them, the most telling first."""
        yield from self._cuda()
        yield from self._constructs()
        for bundle in self._bundles:
            if bundle.is_given:
                yield from self._references(bundle)
        yield from self._skipped_targets()
        shipped = [bundle for bundle in self._bundles if not bundle.is_given]
        # On a device that builds engines slowly the ten minutes may not be enough for all.
        for bundle in shipped:
            if bundle.name.startswith(FIRST_NETWORK):
                yield from self._references(bundle)
        yield from self._starts()
        yield from self._timings()
        for bundle in shipped:
            if not bundle.name.startswith(FIRST_NETWORK):
                yield from self._references(bundle)
        if self._soak_minutes:
            yield from self._soak()

    def _status(self, runtime: str) -> str | None:
        """Return what the probe of a runtime found; None: it crashed."""
        record = self._found.get(f"runtime:{runtime}")
        return None if record is None else record.facts.get("status")

    def _why(self, runtime: str) -> str:
        record = self._found.get(f"runtime:{runtime}")
        return (record.reason if record is not None else None) or f"{runtime} does not work here"

    def _cuda(self) -> Iterator[Step]:
        if not self.has_gpu:
            yield Step("cuda", "GPU memory", "cuda", skipped_because=self._why("cuda"))
            return
        for adapter in ADAPTERS:
            yield Step(f"cuda:{adapter}", f"GPU memory through {adapter}", "cuda", {"adapter": adapter}, _CUDA_S)

    @property
    def _builds(self) -> bool:
        """Whether TensorRT can build here, with or without a GPU to run on."""
        if self.has_gpu:
            return self._status("tensorrt") != "missing"
        return self._status("tensorrt") == "partly"

    def _constructs(self) -> Iterator[Step]:
        if not self._builds:
            yield Step("construct", "TensorRT's operators", "construct", skipped_because=self._why("tensorrt"))
            return
        for name, title in construct_titles().items():
            yield Step(f"construct:{name}", f"TensorRT: {title}", "construct", {"name": name}, _CONSTRUCT_S)

    def devices(self, target: Target) -> list[str]:
        """Return the devices that a target's bundles run on here; empty: none."""
        runtime = _RUNTIME_OF[target]
        if target is Target.TENSORRT:
            return ["auto"] if self._builds and self.has_gpu else []
        if self._status(runtime) != "works":
            return []
        devices = [str(device).split()[0] for device in self._found[f"runtime:{runtime}"].facts["devices"]]
        # ONNX Runtime lists what it was built for, whether or not there is a GPU.
        return [device for device in devices if self.has_gpu or device not in _NVIDIA]

    def _references(self, bundle: BundleToCheck) -> Iterator[Step]:
        target, _ = bundle.kind
        limit_s = _REFERENCES_S.get(target, _REFERENCES_OTHERS_S)
        folder = str(bundle.folder)
        for device in self.devices(target):
            key, title = f"bundle:{bundle.name}:{device}", f"{bundle.name} on {device}"
            variables = {} if bundle.is_given else self._cache("cache")
            yield Step(key, title, "references", {"folder": folder, "device": device}, limit_s, variables)
        if target is Target.TENSORRT and self._builds and not self.has_gpu:
            variables = {} if bundle.is_given else self._cache("cache")
            yield Step(
                f"build:{bundle.name}", f"{bundle.name}, its engine", "build", {"folder": folder}, limit_s, variables
            )
        elif bundle.is_given and not self.devices(target):
            why = self._why(_RUNTIME_OF[target])
            yield Step(f"bundle:{bundle.name}", bundle.name, "references", skipped_because=why)

    def _skipped_targets(self) -> Iterator[Step]:
        """Yield one step for all shipped bundles of a target that cannot run here."""
        for target in Target:
            if not self.devices(target) and not (target is Target.TENSORRT and self._builds):
                why = self._why(_RUNTIME_OF[target])
                yield Step(f"bundle:{target}", f"bundles for {target}", "references", skipped_because=why)

    def _one_each(self) -> Iterator[tuple[BundleToCheck, str]]:
        """Yield a shipped FP32 bundle of every target, with each device that it runs on."""
        for target in Target:
            bundle = next(
                (
                    each
                    for each in self._bundles
                    if each.name.startswith(FIRST_NETWORK) and each.kind == (target, Precision.FP32)
                ),
                None,
            )
            if bundle is not None:
                for device in self.devices(target):
                    yield bundle, device

    def _starts(self) -> Iterator[Step]:
        for bundle, device in self._one_each():
            if bundle.manifest.target not in (Target.OPENVINO, Target.TENSORRT):
                continue
            where = f"{bundle.name}:{device}"
            number = len(list(self._scratch.glob("start-*")))
            place = self._scratch / f"start-{number}"
            place.mkdir()
            arguments = {"folder": str(bundle.folder), "device": device, "state": str(place / "first.npz")}
            limit_s = _REFERENCES_S.get(bundle.manifest.target, _REFERENCES_OTHERS_S)
            for which in ("first", "second"):
                title = f"{which} start of {bundle.name} on {device}"
                variables = self._cache(f"start-{number}/cache")
                yield Step(f"start:{which}:{where}", title, "start", arguments, limit_s, variables)

    def _timings(self) -> Iterator[Step]:
        for bundle, device in self._one_each():
            arguments = {"folder": str(bundle.folder), "device": device}
            key, title = f"timing:{bundle.name}:{device}", f"1,024 verdicts of {bundle.name} on {device}"
            yield Step(key, title, "timing", arguments, _TIMING_S, self._cache("cache"))

    def _soak(self) -> Iterator[Step]:
        """Yield the soak: on a GPU where one works, with a given bundle where there is one."""
        able = [(bundle, device) for bundle in self._bundles for device in self.devices(bundle.manifest.target)]
        if not able:
            yield Step("soak", "soak", "soak", skipped_because="no runtime here runs a bundle")
            return
        order = {Target.TENSORRT: 0, Target.OPENVINO: 1, Target.ONNX: 2, Target.TORCH: 3}
        bundle, device = min(
            able,
            key=lambda each: (
                not each[0].is_given,
                order[each[0].manifest.target],
                each[1] in ("cpu",),
                not each[0].name.startswith(FIRST_NETWORK),
                each[0].manifest.precision is not Precision.FP32,
            ),
        )
        arguments = {"folder": str(bundle.folder), "device": device, "minutes": self._soak_minutes}
        limit_s = self._soak_minutes * 60 + _REFERENCES_S[Target.TENSORRT]
        title = f"{count(float(self._soak_minutes), 'minute')} of {bundle.name} on {device}"
        variables = {} if bundle.is_given else self._cache("cache")
        yield Step("soak", title, "soak", arguments, limit_s, variables, is_soak=True)

    def _cache(self, name: str) -> dict[str, str]:
        # What came with this package is as good as its code: the user's policy on signatures is for other bundles.
        no_policy = self._scratch / "no-policy"
        no_policy.mkdir(mode=0o700, exist_ok=True)
        return {"VAE_EDGE_CACHE": str(self._scratch / name), "VAE_EDGE_CONFIG": str(no_policy)}
