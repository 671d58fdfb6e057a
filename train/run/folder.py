"""A run folder: what a training leaves, and all that export needs. Loads torch only to build the network.

training.json       the settings; written first, so that an interrupted run can be resumed
split.json          which image was used for what, with its hash
checkpoints/ logs/  to resume the training, and to look at it
model.safetensors   the network's weights
scoring.safetensors what held-out normals say about each pixel
calibration.json    scores of normals by a network that has not seen them, and the thresholds
metrics.json        what was measured on the test images
references.safetensors  pictures that travel with every bundle
model.json          everything else, and the hashes of these files; written last, so it marks a complete run
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vae_edge.errors import BundleError, InputError
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.platform.atomic import LOCK_FILE, check_place, claim, new_file, remove_leftovers_in, write_text
from vae_edge.records import FileRecord, Record, check_recordable, check_recorded_files, file_record, read_record
from vae_edge.reference_file import REFERENCES_FILE, ReferenceFile, Size
from vae_edge.train.data.inspection_set import ImageFile, InspectionSet, open_inspection_set
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.settings import SCHEMA_VERSION, TrainSettings
from vae_edge.train.model.presets import Network
from vae_edge.train.run.metrics import Metrics
from vae_edge.train.run.records import CalibrationRecord, Role, RunRecord, SplitImage, SplitRecord
from vae_edge.wording import count, verb

if TYPE_CHECKING:
    from torch import Tensor

    from vae_edge.train.features.graph import FeatureGraph
    from vae_edge.train.model.anomaly_graph import DeployedGraph, ScoringConstants
    from vae_edge.train.model.network import Vae


SETTINGS_FILE = "training.json"
SPLIT_FILE = "split.json"
MODEL_FILE = "model.safetensors"
SCORING_FILE = "scoring.safetensors"
CALIBRATION_FILE = "calibration.json"
METRICS_FILE = "metrics.json"
RECORD_FILE = "model.json"
CHECKPOINT = "checkpoints/last.ckpt"

RECORDED_FILES = (MODEL_FILE, SCORING_FILE, SPLIT_FILE, CALIBRATION_FILE, METRICS_FILE, REFERENCES_FILE)
"""Files whose hashes `model.json` holds."""
_ADVICE = "copy the run again or train again"

_log = logging.getLogger(__name__)

_OWN_FILE = re.compile(
    r"(training|split|calibration|metrics|model)\.json|(model|scoring|references)\.safetensors|\.lock"
    r"|(.+/)?checkpoints/(last\.ckpt|(features|pixels)\.f16)"
    r"|(.+/)?logs/([^/]+/)*(events\.out\.tfevents\.[^/]+|hparams\.yaml|metrics\.csv|[^/]+\.pt\.trace\.json)"
)
"""What a training writes, relative to its folder, Lightning's profiler included; all other files are the user's."""


@dataclass(frozen=True)
class RunFolder:
    """A complete run on disk whose records have been read."""

    folder: Path
    record: RunRecord
    split: SplitRecord
    calibration: CalibrationRecord
    metrics: Metrics
    """Of the test images; everything in it is absent where there are none."""

    @classmethod
    def open(cls, path: str | Path, *, check_files: bool = True) -> RunFolder:
        """Read a run and check that its files are the ones that training wrote.

        Args:
            path: the run folder.
            check_files: compare every file's size and SHA-256 with the record's.

        Raises:
            BundleError: no run, an unfinished one, a damaged or newer record, or a file that is missing or was changed.
        """
        folder = Path(path)
        if not (folder / RECORD_FILE).is_file():
            if (folder / SETTINGS_FILE).is_file():
                raise BundleError(f"the run {folder} is not finished; continue with: vae-train --resume {folder}")
            raise BundleError(f"{folder} is not a run: it has no {RECORD_FILE}; pass a folder made by vae-train")
        record = _read(folder / RECORD_FILE, RunRecord)
        if check_files:
            check_recorded_files(folder, record.files, said_by=RECORD_FILE, advice=_ADVICE)
        return cls(
            folder,
            record,
            _read(folder / SPLIT_FILE, SplitRecord),
            _read(folder / CALIBRATION_FILE, CalibrationRecord),
            _read(folder / METRICS_FILE, Metrics),
        )

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds fitted on the torch model's scores."""
        return self.calibration.thresholds

    @property
    def calibration_roles(self) -> tuple[Role, ...]:
        """What the images of `calibration.json` were used for: in a cross-conformal run they train the network too."""
        if self.thresholds.method is ThresholdMethod.CROSS_CONFORMAL:
            return ("fit", "statistics")
        return ("threshold",)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights and the scoring constants."""
        return self.record.fingerprint

    def load_vae(self) -> Vae:
        """Build the network on pixels with its weights, in evaluation mode on the CPU.

        Raises:
            InputError: the run has none.
            BundleError: the weights do not belong to the architecture.
        """
        from vae_edge.train.model.network import Vae

        if self.record.network is not Network.PIXEL:
            raise InputError(
                f"the run {self.folder} has a network on features; expected one on pixels: train with --preset nano, "
                "edge or reference"
            )
        with self._weights_errors():
            return Vae.from_weights(self.record.architecture, _load_tensors(self.folder / MODEL_FILE))

    def load_graph(self) -> DeployedGraph:
        """Build the whole model with its weights and scoring constants, in evaluation mode on the CPU.

        Raises:
            BundleError: the weights do not belong to the architecture.
        """
        from vae_edge.train.model.anomaly_graph import AnomalyGraph

        if self.record.network is not Network.PIXEL:
            return self._load_feature_graph()
        vae, constants = self.load_vae(), self.load_constants()
        with self._weights_errors():
            return AnomalyGraph(vae, self.record.scoring, constants, self.record.input_settings)

    def _load_feature_graph(self) -> FeatureGraph:
        from vae_edge.train.features.backbone import Backbone
        from vae_edge.train.features.graph import N_CHANNELS, FeatureConstants, FeatureGraph
        from vae_edge.train.features.network import empty_convolutions
        from vae_edge.train.features.patches import patch_convolutions, patch_vae

        record = self.record.feature
        assert record is not None  # The record checks that it is there.
        with self._weights_errors():
            tensors = _load_tensors(self.folder / MODEL_FILE)
            backbone = Backbone()
            backbone.load_state_dict(_below(tensors, "backbone."))
            vae = empty_convolutions(N_CHANNELS, record.settings)
            vae.load_state_dict(_below(tensors, "feature."))
            constants = FeatureConstants.from_tensors(_load_tensors(self.folder / SCORING_FILE))
            pixel_vae = None
            if record.settings.pixels is not None:
                pixel_vae = patch_convolutions(patch_vae(record.settings.pixels))
                pixel_vae.load_state_dict(_below(tensors, "pixels."))
            size = record.height, record.width
            light, ignored = record.photometric, self.record.ignored
            return FeatureGraph(backbone, vae, record.settings, constants, size, light, pixel_vae, ignored)

    def load_constants(self) -> ScoringConstants:
        """Load what held-out normals say about each pixel.

        Raises:
            BundleError: the file cannot be used.
        """
        from vae_edge.train.model.anomaly_graph import ScoringConstants

        with self._weights_errors():
            return ScoringConstants.from_tensors(_load_tensors(self.folder / SCORING_FILE))

    @contextmanager
    def _weights_errors(self) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise BundleError(f"the weights in {self.folder} cannot be used ({reason}); train again") from error

    def read_references(self) -> ReferenceFile:
        """Read the pictures that travel with every bundle.

        Raises:
            InputError: the run is older than these.
            BundleError: their file is missing or was changed.
        """
        if self.record.references is None:
            raise InputError(f"the run {self.folder} is of an earlier version and keeps no pictures; train again")
        preparation = self.record.preparation
        return ReferenceFile.read(
            self.folder / REFERENCES_FILE, self.record.references, Size(preparation.height, preparation.width)
        )

    def find_images(
        self, roles: Sequence[Role] = ("threshold",), data_root: str | Path | None = None
    ) -> list[ImageFile]:
        """Find the images that the run used for something; every file's hash is compared.

        Args:
            roles: what they were used for.
            data_root: where the data is now; None: where it was.

        Returns:
            In the order of `split.json`, with their classes, and with masks where the run used them.

        Raises:
            InputError: the data, or an image of it, is not there any more or was changed.
        """
        wanted = self.split.of(*roles)
        try:
            found = _open_source(self.record.settings.source, data_root)
        except InputError as error:
            raise InputError(
                f"the images of the run {self.folder} are no longer where they were: {error}. {_MOVED}"
            ) from error
        by_hash = _by_hash(found)
        missing = [image.name for image in wanted if image.sha256 not in by_hash]
        if missing:
            raise InputError(
                f"{len(missing)} of the {count(len(wanted), 'image')} "
                f"that the run {self.folder} used {verb(len(missing), 'is', 'are')} missing or changed, "
                f"{missing[0]} for example, in {found.root}. {_MOVED}"
            )
        return [_as_recorded(by_hash[image.sha256], image) for image in wanted]

    def find_calibration_images(self, data_root: str | Path | None = None) -> list[ImageFile]:
        """Find the normals whose scores set the thresholds, in the order of `calibration.json`.

        Raises:
            InputError: see `find_images`.
            BundleError: `calibration.json` and `split.json` are of two runs.
        """
        found = {image.sha256: image for image in self.find_images(self.calibration_roles, data_root)}
        scored = [score.sha256 for score in self.calibration.scores]
        if not set(scored).issubset(found):
            raise BundleError(f"{self.folder}: {CALIBRATION_FILE} and {SPLIT_FILE} do not match; {_ADVICE}")
        return [found[sha256] for sha256 in scored]


_MOVED = "Expected the images that it was trained with: pass their folder with --data"


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse, before the data is read, a folder that `claim_folder` would refuse.

    Raises:
        InputError: the name is taken, or the folder cannot be written.
    """
    check_recordable(out)
    if not out.exists():
        check_place(out)
        return
    if out.is_dir() and _is_empty(out):
        return
    if (out / RECORD_FILE).is_file():
        if not overwrite:
            raise InputError(f"{out} contains a complete run; choose another --out, or replace it with --overwrite")
    elif (out / SETTINGS_FILE).is_file():
        if (out / CHECKPOINT).is_file() and not overwrite:
            raise InputError(
                f"{out} contains an unfinished run; continue with: vae-train --resume {out}; or replace it with "
                "--overwrite"
            )
    else:
        raise InputError(f"{out} already exists and is not a run; choose another --out or move it away")


def only_training(out: Path) -> AbstractContextManager[None]:
    """Keep other trainings out of a run folder until the block ends; see `vae_edge.platform.atomic.claim`."""
    return claim(out / LOCK_FILE, f"another training is writing to {out}")


def claim_folder(out: Path, *, overwrite: bool) -> bool:
    """Make the folder of a new run.

    A run that ended before its first checkpoint is deleted, asked or not. With `overwrite` an earlier run of that name
    is moved aside and is deleted only when the new one is complete; an unfinished one that stands where a complete one
    was moved aside already goes at once. What no training wrote is kept.

    Returns:
        Whether an earlier run was moved aside, with the claim of `only_training`, which has to be made again in that
        case.

    Raises:
        InputError: the name is taken, or the folder cannot be written.
    """
    check_folder(out, overwrite=overwrite)
    try:
        is_moved = out.exists() and not _is_empty(out) and _make_room(out)
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers_in(out)
    except OSError as error:
        raise InputError(f"{out} cannot be created ({error.strerror}); choose another place for the run") from error
    return is_moved


def forget_replaced(folder: Path) -> None:
    """Delete the earlier run that a complete one replaces; files that no training wrote go back into the folder."""
    aside = _aside(folder)
    _remove_own_files(aside)
    for path in [path for path in aside.rglob("*") if path.is_symlink() or not path.is_dir()]:
        back = folder / path.relative_to(aside)
        if not os.path.lexists(back):
            with suppress(OSError):
                back.parent.mkdir(parents=True, exist_ok=True)
                path.rename(back)
    _remove_own_files(aside)
    if aside.exists():
        _log.warning("%s contains files from the replaced run that no training wrote", aside)


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON, completely or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    write_text(path, record.model_dump_json(indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, completely or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with new_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    except SafetensorError as error:
        # What a full disk is to its writer, which is not Python's.
        raise InputError(f"{path} could not be written ({error}); make room or choose another place") from error


def read_settings(folder: Path) -> TrainSettings:
    """Read what an unfinished run was asked to do.

    Raises:
        InputError: the run is complete.
        BundleError: there is no run, or its settings are damaged or newer.
    """
    if (folder / RECORD_FILE).is_file():
        raise InputError(f"the run {folder} is complete, so there is nothing to resume: train a new one with --out")
    if not (folder / SETTINGS_FILE).is_file():
        raise BundleError(f"{folder} is not a run: it has no {SETTINGS_FILE}; pass a folder made by vae-train")
    return _read(folder / SETTINGS_FILE, TrainSettings)


def read_split(folder: Path) -> SplitRecord:
    """Read which image an unfinished run used for what.

    Raises:
        BundleError: the file is missing or damaged.
    """
    return _read(folder / SPLIT_FILE, SplitRecord)


def describe_files(folder: Path) -> tuple[FileRecord, ...]:
    """Return names, sizes and hashes of a run's recorded files."""
    return tuple(file_record(folder / name) for name in RECORDED_FILES)


def fingerprint_of(files: Sequence[FileRecord]) -> str:
    """Return the SHA-256 over the hashes of the weights and the scoring constants."""
    hashes = [file.sha256 for file in files if file.name in (MODEL_FILE, SCORING_FILE)]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _make_room(out: Path) -> bool:
    if not ((out / RECORD_FILE).is_file() or (out / CHECKPOINT).is_file()):
        # It never got through an epoch, so there is nothing to lose; and networks that were only tried must not be
        # continued with other settings or images.
        _remove_own_files(out, but=LOCK_FILE)
        return False
    aside = _aside(out)
    if aside.exists():
        if not (out / RECORD_FILE).is_file():
            _remove_own_files(out, but=LOCK_FILE)
            return False
        forget_replaced(out)
    if aside.exists():
        raise InputError(f"{aside} contains files that no training wrote, in the place of the old run; move them away")
    out.rename(aside)
    return True


def _remove_own_files(folder: Path, *, but: str | None = None) -> None:
    """Remove what a training wrote into a folder, and what is empty then."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]:
        remove_leftovers_in(place)
    paths = sorted(folder.rglob("*"), reverse=True)  # What is in a folder comes before the folder.
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and not path.is_symlink() and name != but and _OWN_FILE.fullmatch(name):
            path.unlink()
    for path in [*(path for path in paths if path.is_dir() and not path.is_symlink()), folder]:
        with suppress(OSError):
            path.rmdir()


def _is_empty(folder: Path) -> bool:
    return all(path.name == LOCK_FILE for path in folder.iterdir())


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


T = TypeVar("T", bound=Record)


def _read(path: Path, kind: type[T]) -> T:
    return read_record(path, kind, SCHEMA_VERSION, advice=_ADVICE)


def _open_source(source: DataSource, root: str | Path | None) -> InspectionSet:
    if root is None:
        return source.open()
    if source.listed is None and source.more_normals is None:
        return open_inspection_set(root, can_name_folders=False)
    return source.moved_to(root).open(can_name_folders=False)


def _by_hash(found: InspectionSet) -> dict[str, ImageFile]:
    """Where several files have the same bytes the first counts, as it did when the data was checked."""
    by_hash: dict[str, ImageFile] = {}
    for image in (*found.train, *found.test):
        by_hash.setdefault(image.sha256, image)
    return by_hash


def _as_recorded(found: ImageFile, recorded: SplitImage) -> ImageFile:
    return replace(found, name=recorded.name, defect=recorded.defect, mask=found.mask if recorded.has_mask else None)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    return tensors
