"""Does a bundle give here what it is known to give? Its references, run on this device and compared.

Two comparisons, each of scores and of block means of maps, with tolerances that the export wrote into the manifest:

- With the trained model in FP32: what an FP32 model may be off is fixed (`FP32_TOLERANCE`, the tolerance of every
  export); what FP16 or INT8 is off was measured by the export on these very pictures, and twice that is allowed.
- With the bundle's own outputs where it was exported, on a device of the same kind. Correct implementations of one
  graph differ by rounding alone, whatever the processor, so this is far tighter: `OWN_TOLERANCES`. In INT8 rounding can
  move a picture by a whole level; so where the processor rounds otherwise, half of the pictures are held to it.

Both are relative to each picture (`Units`): next to a glaring defect, whose score is thirty times the threshold, what
spoils the score of every good part would not be seen.

A verdict counts as another one only where the trained model's score is farther from its threshold than a score may be
off. Thresholds are those of the export: a re-fit for another line changes the verdicts, and not the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae_edge.agreement import Outputs
from vae_edge.backends.base import Backend
from vae_edge.bundle import Bundle
from vae_edge.cache import compiled
from vae_edge.cache.compiled import CompiledKey
from vae_edge.errors import BundleError, ParityError
from vae_edge.manifest import FP32_TOLERANCE, Manifest
from vae_edge.platform.machine import Machine, look_at_machine
from vae_edge.platform.work import Progress
from vae_edge.reference_file import (
    REFERENCES_FILE,
    BlockOutputs,
    OwnOutputs,
    ReferenceFile,
    ReferencesRecord,
    Size,
    block_means,
)
from vae_edge.targets import Precision
from vae_edge.wording import verb

FP16_TOLERANCE = 1e-2
"""The least that is allowed of FP16, wherever it was measured: some devices round every value to it, and others only
the weights."""

INT8_TOLERANCE = 2e-2
"""The same of INT8."""

LOW_PRECISION_MARGIN = 2.0
"""How many times the drift that the export measured of an FP16 or INT8 bundle is allowed."""

UNMEASURED = {Precision.FP32: FP32_TOLERANCE, Precision.FP16: 0.02, Precision.INT8: 0.2}
"""What is allowed where a bundle could be neither run nor simulated at export."""

OWN_TOLERANCES = {
    Precision.FP32: (2e-4, 6e-4),
    Precision.FP16: (3e-3, 3e-3),
    Precision.INT8: (5e-3, 5e-3),
}
"""Of a score and of a block of a map: how far a bundle may be from its own outputs at export on a device of the same
kind, by precision.

FP32: processors and versions round in another order, which moved scores by 5e-6 between runtimes and by 1e-6 between
ONNX Runtime 1.32 with AVX-512 and 1.23 on an emulated Cortex-A72; of maps the rounding to float16 takes 5e-4.
FP16: equal to 1e-6 there too, where both convert; Arm processors that compute in it are not held to x86's.

INT8: sums are exact. With ONNX Runtime, and on processors that compute it as the one at export does, each picture is
held to this; on others half of the pictures are, or to `ROUNDING_SHARE` if that is more."""

ROUNDING_SHARE = 0.5
"""How far half of the pictures may be from an INT8 bundle's own outputs at export, as a share of how far half of those
were from the trained model's.

Which level a value half-way between two is rounded to depends on its last bit, and so on how a processor computes it.
Bundles of earlier versions have signed activations for OpenVINO, which it stores in int8 with AMX, and elsewhere in
uint8 around 128: of 1.4 million rounded values of 16 pictures one differed. Bundles that are exported now have unsigned
ones and are equal on all of x86 with AVX2; on Arm they are off by as little.

In networks on 64 x 64 pixels that moved 2 to 4 % of 260 pictures, one by three quarters of what INT8 was off at most.
In two on features of 256 x 256 it moved most pictures, and half of the references by shares of up to 0.21. So each
picture is held to the trained model's outputs, and half of them to the bundle's own: another model moves them all."""

SATURATING_TOLERANCE = 3e-2
"""The same of INT8 bundles of earlier versions, where one of the two processors adds 8-bit products up in 16 bits: with
AVX-512 without VNNI OpenVINO halves the weights of the transposed convolution that reads the latent values, and rounds
them to 6 bits. In bundles that are exported now it reads them in float32."""


@dataclass(frozen=True)
class Measure:
    """One quantity of a comparison, in the unit of each picture."""

    what: str
    share: float
    """Of the picture where it is largest, or such that half of the pictures have it or less; `what` says which."""
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is allowed; what is not finite never is."""
        return bool(np.isfinite(self.share)) and self.share <= self.allowed

    def __str__(self) -> str:
        return f"{self.what}: {_percent(self.share)} (at most {_percent(self.allowed)})"


@dataclass(frozen=True)
class ReferenceCheck:
    """How a bundle's outputs for its references compare, on one device."""

    images: str
    """What the pictures are, in words."""
    n_images: int
    flipped: tuple[int, ...]
    """Positions of the pictures that get another verdict, and not only by a score at the threshold."""
    measures: tuple[Measure, ...]
    ran_on: str
    """Runtime and device."""

    @property
    def agrees(self) -> bool:
        """Whether the bundle gives here what it is known to give."""
        return not self.flipped and all(measure.holds for measure in self.measures)

    def lines(self) -> list[str]:
        """Return a line for each measure."""
        same = self.n_images - len(self.flipped)
        verdicts = f"verdicts: {same} of {self.n_images} are the trained model's"
        return [verdicts, *(str(measure) for measure in self.measures)]

    def disagreement(self) -> str | None:
        """Return what does not agree, as a part of a sentence; None: everything does."""
        if self.agrees:
            return None
        found = [str(measure) for measure in self.measures if not measure.holds]
        if self.flipped:
            found.insert(
                0,
                f"{len(self.flipped)} of {self.n_images} verdicts "
                f"{verb(len(self.flipped), 'is', 'are')} not the trained model's",
            )
        return "; ".join(found)

    def require(self, bundle: str) -> None:
        """Refuse a bundle that does not agree.

        Args:
            bundle: what it is called in the message.

        Raises:
            ParityError: with what differs.
        """
        problem = self.disagreement()
        if problem is not None:
            raise ParityError(
                f"{bundle} does {_NOT_GIVEN} {self.ran_on}: {problem}; its model was "
                "changed, or this runtime or device computes something else: export it again, or use "
                "another version of the runtime"
            )


def check_references(bundle: Bundle, backend: Backend, *, progress: Progress | None = None) -> ReferenceCheck:
    """Run a bundle's references and compare.

    Args:
        bundle: whose references they are.
        backend: its model, loaded on the device in question.
        progress: called with pictures done and in all.

    Raises:
        BundleError: it has none, or their file does not fit the manifest, or was changed since it was opened.
        DeviceError: the runtime failed.
    """
    record = record_of(bundle)
    size = size_of(bundle.manifest)
    file = ReferenceFile.read(bundle.folder / record.file, record, size)
    bundle.check_unchanged()
    outputs = run_blocks(
        backend, file.images(f"{bundle.folder / record.file}: picture"), size, len(file.pictures), progress
    )
    return compare(
        record,
        file,
        outputs,
        precision=bundle.manifest.precision,
        ran_on=f"{backend.version} on {backend.device.name}",
        device=backend.device.name,
        machine=look_at_machine(),
    )


def check_rebuilt(bundle: Bundle, backend: Backend, *, keep: bool, progress: Progress | None = None) -> None:
    """Check an engine that was built on this device, once: that it agrees is kept in the cache of compiled models.

    Args:
        bundle: whose references they are; one that is older than references is not checked.
        backend: with `rebuilt_sha256`.
        keep: whether to look for an earlier check, and to keep this one.
        progress: called with pictures done and in all.

    Raises:
        BundleError, DeviceError: see `check_references`.
        ParityError: it does not agree.
    """
    if bundle.manifest.references is None:
        return
    key = CompiledKey(
        "reference-checks",
        bundle.model_sha256,
        backend.version,
        backend.device.name,
        (
            ("engine", str(backend.rebuilt_sha256)),
            ("references", next(file.sha256 for file in bundle.manifest.files if file.name == REFERENCES_FILE)),
            ("tolerances", bundle.manifest.references.model_dump_json()),
        ),
    )
    if keep and compiled.find(key) is not None:
        return
    check = check_references(bundle, backend, progress=progress)
    check.require(f"the engine that was built here from {bundle.folder}")
    if keep:
        text = "\n".join(check.lines()) + "\n"
        compiled.keep(key, lambda path: path.write_text(text, encoding="utf-8"))


_NOT_GIVEN = "not give its reference outputs with"
"""Part of every reason for which a bundle is not verified after its references were run."""


def has_failed(manifest: Manifest) -> bool:
    """Return whether a bundle is not verified because its references were run, and did not agree."""
    return not manifest.verified and _NOT_GIVEN in (manifest.not_verified_because or "")


def recorded(manifest: Manifest, check: ReferenceCheck) -> Manifest:
    """Return a bundle's manifest with what a check of its references says about it: verified, or not any more."""
    problem = check.disagreement()
    if problem is None:
        return manifest.model_copy(update={"verified": True, "verified_by": check.ran_on, "not_verified_because": None})
    return not_verified(manifest, f"it did {_NOT_GIVEN} {check.ran_on}: {problem}")


def not_verified(manifest: Manifest, reason: str) -> Manifest:
    """Return a bundle's manifest as that of one that is not verified, or not any more."""
    return manifest.model_copy(update={"verified": False, "verified_by": None, "not_verified_because": reason})


def record_of(bundle: Bundle) -> ReferencesRecord:
    """Return the record of a bundle's references.

    Raises:
        BundleError: the bundle is older than references.
    """
    record = bundle.manifest.references
    if record is None:
        raise BundleError(
            f"{bundle.folder} has no references (its manifest has schema {bundle.manifest.schema_version}): export it "
            "again with this version of vae-edge"
        )
    return record


def size_of(manifest: Manifest) -> Size:
    """Return the size of a bundle's model."""
    return Size(manifest.preparation.height, manifest.preparation.width)


def run_blocks(
    backend: Backend,
    images: Iterable[NDArray[np.uint8]],
    size: Size,
    n_images: int,
    progress: Progress | None = None,
) -> Outputs:
    """Run a model over prepared pictures, uint8 [H, W, 3], one at a time, and keep block means of its maps.

    Returns:
        Maps float64 [n, rows, columns], not yet divided, and scores float32 [n].

    Raises:
        DeviceError: the runtime failed.
    """

    def results() -> Iterator[tuple[NDArray[np.float64], float]]:
        for number, image in enumerate(images, 1):
            outputs = backend.run({"image": np.ascontiguousarray(image)[None]})
            yield block_means(outputs["anomaly_map"], size)[0], float(outputs["score"][0])
            if progress is not None:
                progress(number, n_images)

    maps, scores = zip(*results(), strict=True)
    return Outputs(np.stack(maps), np.array(scores, dtype=np.float32))


def compare(
    record: ReferencesRecord,
    file: ReferenceFile,
    outputs: Outputs,
    *,
    precision: Precision,
    ran_on: str,
    device: str,
    machine: Machine,
) -> ReferenceCheck:
    """Compare a bundle's outputs for its references.

    Args:
        record: from the manifest.
        file: the file that it describes.
        outputs: of the bundle: scores, and block means as `run_blocks` gives them.
        precision: the bundle's.
        ran_on: runtime and device, for people.
        device: such as `cpu` or `cuda:0`.
        machine: this one.
    """
    assert file.trained is not None  # The record of a bundle has outputs.
    units = Units.of(file.trained, record.trained_threshold)
    moved = units.moved(file.trained, outputs, record.map_scale)
    own = record.own
    is_apart = own is not None and _loses_bits(own, machine)
    apart = SATURATING_TOLERANCE if is_apart else 0.0
    # An NPU computes in FP16 whatever the bundle says: see `vae_edge.backends.openvino_backend`.
    at_least = FP16_TOLERANCE if _kind(device) == "npu" else 0.0
    allowed = [max(each, at_least) + apart for each in (record.score_tolerance, record.map_tolerance)]
    measures = _measures("from the trained model's", [float(each.max()) for each in moved], allowed)
    if own is not None and file.own is not None and _computes_alike(own, device, machine):
        what = f"from its own at export ({own.runtime} on {own.device})"
        moved_from_own = units.moved(file.own, outputs, record.map_scale)
        least = [own.score_tolerance, own.map_tolerance]
        if precision is Precision.INT8 and not _rounds_alike(own, machine):
            what += ", of half the pictures"
            shares = [_of_half(each) for each in moved_from_own]
            own_outputs = Outputs(file.own.maps.astype(np.float64) * record.map_scale, file.own.scores)
            off = units.moved(file.trained, own_outputs, record.map_scale)
            least = [max(pair[0], ROUNDING_SHARE * _of_half(pair[1])) for pair in zip(least, off, strict=True)]
        else:
            shares = [float(each.max()) for each in moved_from_own]
        measures += _measures(what, shares, [max(each, apart) for each in least])
    trained_verdicts = Outputs(file.trained.maps, file.trained.scores).verdicts(record.trained_threshold)
    others = np.flatnonzero(trained_verdicts != outputs.verdicts(record.image_threshold))
    margins = np.abs(file.trained.scores.astype(np.float64) - record.trained_threshold)
    clear = margins > allowed[0] * units.scores
    flipped = tuple(int(position) for position in others if clear[position])
    return ReferenceCheck(record.images, record.n_images, flipped, tuple(measures), ran_on)


def _rounds_alike(own: OwnOutputs, machine: Machine) -> bool:
    """Return whether INT8 values are rounded to the same levels here as where the bundle was exported."""
    if own.runtime.startswith("ONNX Runtime "):  # Its outputs were equal with AVX2, VNNI, AMX and on Arm.
        return True
    return own.int8_arithmetic in (machine.int8_arithmetic, machine.int8_rounding)


def _loses_bits(own: OwnOutputs, machine: Machine) -> bool:
    """Return whether `SATURATING_TOLERANCE` applies; bundles that are exported now do not say what it depends on."""
    return own.saturating_sums is not None and (own.saturating_sums or machine.saturates_int8_sums)


def _of_half(values: NDArray[np.float64]) -> float:
    """Return the least number that half of some values do not exceed; those that are not finite come last."""
    return float(np.sort(values)[(len(values) - 1) // 2])


@dataclass(frozen=True)
class Units:
    """What a difference is a share of, for each picture."""

    scores: NDArray[np.float64]
    """float64 [n], the trained model's absolute score, or its threshold where that is larger."""
    maps: NDArray[np.float64]
    """float64 [n, 1, 1], the largest absolute block mean of the trained model's map, divided by `map_scale`."""

    @classmethod
    def of(cls, trained: BlockOutputs, threshold: float) -> Units:
        """Return the units of references; none is below a hundredth of the largest score or block.

        Examples:
            >>> maps = np.array([[[0.5, 1.0]], [[0.001, 0.001]]], np.float16)
            >>> units = Units.of(BlockOutputs(np.array([50.0, 0.2], np.float32), maps), 2.5)
            >>> units.scores.tolist(), units.maps.ravel().tolist()
            ([50.0, 2.5], [1.0, 0.01])
        """
        scores = np.abs(trained.scores.astype(np.float64))
        maps = np.abs(trained.maps.astype(np.float64)).max(axis=(1, 2), keepdims=True)
        least = max(abs(threshold), 0.01 * float(scores.max())) or 1.0
        return cls(np.maximum(scores, least), np.maximum(maps, 0.01))

    def moved(
        self, known: BlockOutputs, outputs: Outputs, map_scale: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how far outputs are from known ones, for each picture: of scores, and of maps where it is farthest.

        Args:
            known: as a file of references has them.
            outputs: with block means of maps that are not yet divided by `map_scale`.
            map_scale: see `ReferencesRecord.map_scale`.

        Returns:
            Both float64 [n], 0 or more; not finite where an output is not.
        """
        with np.errstate(all="ignore"):  # What a broken model gives may be anything.
            scores = np.abs(outputs.scores.astype(np.float64) - known.scores) / self.scores
            maps = np.abs(outputs.maps / map_scale - known.maps) / self.maps
        return scores, maps.max(axis=(1, 2))


def _measures(what: str, shares: Sequence[float], allowed: Sequence[float]) -> list[Measure]:
    return [Measure(f"{name} {what}", *each) for name, *each in zip(("scores", "maps"), shares, allowed, strict=True)]


def _computes_alike(own: OwnOutputs, device: str, machine: Machine) -> bool:
    """Return whether this machine computes with a device as the one does that own outputs are of."""
    return _kind(own.device) == _kind(device) and own.architecture in (None, machine.architecture)


def _kind(device: str) -> str:
    """Return the kind of a device: `cuda` for `cuda:1`, `gpu` for `gpu.0`."""
    return device.lower().partition(":")[0].partition(".")[0]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
