"""The pictures that travel with every bundle of an export, and what is written of them: see `vae_edge.references`.

They are the run's own, a folder's, or drawn. What the trained model gives for them is measured once; each bundle that
can run here adds what it gives itself, and how far a device may be from both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.agreement import Outputs
from vae_edge.errors import InputError, ParityError
from vae_edge.image import Preparation, load_prepared
from vae_edge.manifest import FP32_TOLERANCE
from vae_edge.picture_files.listing import list_images
from vae_edge.platform.machine import look_at_machine
from vae_edge.reference_file import (
    FEWEST_PICTURES,
    N_PICTURES,
    BlockOutputs,
    OwnOutputs,
    PicturesRecord,
    ReferenceFile,
    ReferenceKind,
    ReferencesRecord,
    Size,
    block_means,
    encode_pictures,
)
from vae_edge.references import (
    FP16_TOLERANCE,
    INT8_TOLERANCE,
    LOW_PRECISION_MARGIN,
    OWN_TOLERANCES,
    UNMEASURED,
    ReferenceCheck,
    Units,
    compare,
)
from vae_edge.targets import Precision
from vae_edge.wording import count, verb

_NOT_FINITE = "the model gives a reference picture a score or a map that is not a finite number: no bundle was written"


@dataclass(frozen=True)
class Pictures:
    """Pictures at the model's size, and where they come from."""

    record: PicturesRecord
    encoded: tuple[bytes, ...]
    """As PNG."""
    images: NDArray[np.uint8]
    """uint8 [n, H, W, 3], decoded."""

    @classmethod
    def of_file(cls, file: ReferenceFile, record: PicturesRecord) -> Pictures:
        """Return the pictures of a file, such as a run's.

        Raises:
            BundleError: one is damaged.
        """
        return cls(record, file.pictures, np.stack(list(file.images())))

    @classmethod
    def encode(cls, images: list[NDArray[np.uint8]], kind: ReferenceKind, description: str, size: Size) -> Pictures:
        """Encode as many of some pictures, uint8 [H, W, 3], as fit into a bundle; six of them do in any case.

        Args:
            images: six or more; the first ones are taken.
            kind: where they come from.
            description: what they are, in words, after their number.
            size: of the model's input, which is theirs.
        """
        encoded = encode_pictures(images)
        record = PicturesRecord(
            kind=kind,
            images=f"{len(encoded)} {description}",
            n_images=len(encoded),
            n_picture_bytes=sum(map(len, encoded)),
        )
        return cls.of_file(ReferenceFile(size, tuple(encoded)), record)


def given_pictures(folder: Path, preparation: Preparation) -> Pictures:
    """Prepare pictures of a folder, 16 at most, spread evenly over those there are.

    Raises:
        InputError: there is no such folder, it has fewer than six, or one cannot be read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(
            f"{folder}, given with --references, {what}; expected a folder of {FEWEST_PICTURES} or more pictures"
        )
    files = sorted(list_images(folder).images())
    if len(files) < FEWEST_PICTURES:
        raise InputError(
            f"there {verb(len(files), 'is', 'are')} {count(len(files), 'picture')} "
            f"in {folder}, given with --references; expected {FEWEST_PICTURES} or "
            "more: add some, or leave out --references for those of the run"
        )
    n = min(len(files), N_PICTURES)
    chosen = [files[i * len(files) // n] for i in range(n)]
    images = [load_prepared(path, preparation) for path in chosen]
    return Pictures.encode(images, ReferenceKind.GIVEN, f"pictures of the folder {folder.name}", size_of(preparation))


def drawn_pictures(preparation: Preparation) -> Pictures:
    """Draw pictures that show no part: soft spots of colour, of more and more contrast, with a little grain."""
    height, width = size_of(preparation)
    rows, columns = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    images = []
    for number in range(N_PICTURES):
        random = np.random.default_rng(number)
        values = np.full((height, width, 3), random.uniform(60, 190, 3))
        for _ in range(6):
            y, x, reach = random.uniform(0, 1, 3)
            spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (0.02 + 0.2 * reach) ** 2)
            values += spot[:, :, None] * random.uniform(-1, 1, 3) * (10 + 8 * number)
        values += random.normal(0, 2, values.shape)
        images.append(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return Pictures.encode(images, ReferenceKind.DRAWN, "drawn pictures, which show no part", size_of(preparation))


def size_of(preparation: Preparation) -> Size:
    """Return the size of a model."""
    return Size(preparation.height, preparation.width)


@dataclass(frozen=True)
class TrainedReferences:
    """The pictures and what the trained model gives for them."""

    pictures: Pictures
    size: Size
    outputs: Outputs
    """Scores, and block means of maps, float64 [n, rows, columns]."""
    threshold: float
    """The trained model's image threshold."""
    computed_by: str

    @classmethod
    def measure(
        cls,
        pictures: Pictures,
        run: Callable[[NDArray[np.uint8]], Outputs],
        *,
        threshold: float,
        computed_by: str,
    ) -> TrainedReferences:
        """Run the trained model over pictures.

        Args:
            pictures: the references.
            run: the model, from uint8 [n, H, W, 3] to its outputs.
            threshold: its image threshold.
            computed_by: what it runs with, for the record.

        Raises:
            ParityError: an output is not a finite number.
        """
        size = Size(*pictures.images.shape[1:3])
        outputs = run(pictures.images)
        blocks = Outputs(block_means(outputs.maps, size), outputs.scores)
        _check_finite(blocks)
        return cls(pictures, size, blocks, threshold, computed_by)

    def blocks(self, outputs: Outputs) -> Outputs:
        """Return a model's outputs for the pictures with block means in the place of maps."""
        return Outputs(block_means(outputs.maps, self.size), outputs.scores)

    def bundle_references(
        self,
        outputs: Outputs | None,
        *,
        image_threshold: float,
        precision: Precision,
        ran: tuple[str, str] | None,
    ) -> BundleReferences:
        """Describe the references of one bundle.

        Args:
            outputs: of the bundle or of its simulation, with block means (`blocks`); None: it could not run.
            image_threshold: the bundle's.
            precision: the bundle's.
            ran: runtime and device of the bundle itself; None: it could not run, or was simulated.

        Raises:
            ParityError: an output is not a finite number.
        """
        map_scale = float(np.abs(self.outputs.maps).max()) or 1.0
        trained = _stored(self.outputs, map_scale)
        score_tolerance, map_tolerance = self._tolerances(outputs, precision, trained, map_scale)
        record = ReferencesRecord(
            **self.pictures.record.model_dump(),
            computed_by=self.computed_by,
            trained_threshold=self.threshold,
            image_threshold=image_threshold,
            map_scale=map_scale,
            score_tolerance=score_tolerance,
            map_tolerance=map_tolerance,
        )
        file = ReferenceFile(self.size, self.pictures.encoded, trained)
        if outputs is not None and ran is not None:
            record, file = with_own(record, file, outputs, precision, ran)
        return BundleReferences(record, file, outputs, precision)

    def _tolerances(
        self, outputs: Outputs | None, precision: Precision, trained: BlockOutputs, map_scale: float
    ) -> tuple[float, float]:
        """Return how far scores and maps may be from the trained model's, in their units."""
        if precision is Precision.FP32:
            return FP32_TOLERANCE, FP32_TOLERANCE
        if outputs is None:
            return UNMEASURED[precision], UNMEASURED[precision]
        _check_finite(outputs)
        units = Units.of(trained, self.threshold)
        moved = units.moved(trained, outputs, map_scale)
        least = FP16_TOLERANCE if precision is Precision.FP16 else INT8_TOLERANCE
        score, block = (min(max(LOW_PRECISION_MARGIN * float(each.max()), least), 1.0) for each in moved)
        return score, block


@dataclass(frozen=True)
class BundleReferences:
    """The references of one bundle, as its manifest and its file have them."""

    record: ReferencesRecord
    file: ReferenceFile
    outputs: Outputs | None
    """Of the bundle or of its simulation."""
    precision: Precision

    def check(self) -> ReferenceCheck | None:
        """Compare the bundle's outputs with the trained model's; None where it could not run here."""
        own = self.record.own
        if own is None or self.outputs is None:
            return None
        return compare(
            self.record,
            self.file,
            self.outputs,
            precision=self.precision,
            ran_on=f"{own.runtime} on {own.device}",
            device=own.device,
            machine=look_at_machine(),
        )


def with_own(
    record: ReferencesRecord, file: ReferenceFile, outputs: Outputs, precision: Precision, ran: tuple[str, str]
) -> tuple[ReferencesRecord, ReferenceFile]:
    """Return references with what the bundle itself gives for them.

    Args:
        record: of the references.
        file: of the references.
        outputs: of the bundle, with block means.
        precision: the bundle's.
        ran: runtime and device that computed them.
    """
    score, maps = OWN_TOLERANCES[precision]
    machine = look_at_machine()
    # On other devices what a processor has does not matter; which of them round alike is not known.
    arithmetic = machine.int8_rounding if ran[1] == "cpu" else machine.int8_arithmetic
    own = OwnOutputs(
        runtime=ran[0],
        device=ran[1],
        score_tolerance=score,
        map_tolerance=maps,
        int8_arithmetic=arithmetic if precision is Precision.INT8 else None,
        architecture=machine.architecture if precision is Precision.FP16 else None,
    )
    return record.model_copy(update={"own": own}), replace(file, own=_stored(outputs, record.map_scale))


def _stored(outputs: Outputs, map_scale: float) -> BlockOutputs:
    return BlockOutputs(outputs.scores.astype(np.float32), (outputs.maps / map_scale).astype(np.float16))


def _check_finite(outputs: Outputs) -> None:
    if not (np.isfinite(outputs.scores).all() and np.isfinite(outputs.maps).all()):
        raise ParityError(_NOT_FINITE)
