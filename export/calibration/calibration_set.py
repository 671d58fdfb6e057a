"""The images that a quantizer measures its ranges on: one set for all targets, drawn reproducibly and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.export.calibration.checks import MIN_IMAGES, check_number, check_pictures, check_scores
from vae_edge.export.calibration.judging import JudgingSet, content_hashes
from vae_edge.export.settings import DEFAULT_N_IMAGES
from vae_edge.export.trained_model import TrainedModel
from vae_edge.ignored_region import IgnoredRegion
from vae_edge.image import load_prepared
from vae_edge.manifest import CalibrationSetRecord
from vae_edge.picture_files.listing import list_images
from vae_edge.platform.work import StepProgress
from vae_edge.train.choice.synthetic_defects import paste_defects
from vae_edge.train.data.inspection_set import ImageFile, map_in_threads, open_inspection_set
from vae_edge.train.data.layout import existing_folder
from vae_edge.train.data.sources import resolve_data
from vae_edge.train.features.graph import FeatureGraph
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.run.folder import RunFolder
from vae_edge.wording import verb

NORMALS_A_DEFECT = 4
"""So many normals are in the set for each one with a defect."""

_SEED = 1
"""Seed of the pasted defects; different from that of the judging images."""


@dataclass(frozen=True)
class CalibrationSet:
    """Normal images that do not judge the result and, except in a cross-conformal run, did not fit a threshold.

    For a pretrained backbone some of them are included a second time, with defects pasted on. Such a network reacts to
    what it learned to see in photographs: a defect causes activations that no normal image causes. Ranges of normals
    alone would cut them off, and the defect with them (arXiv 2407.02968 measures it: STFPM's AUROC of 0.94 became
    0.75). A network that was trained on the normals has no such activations, and is calibrated on them alone.
    """

    images: NDArray[np.uint8]
    """uint8 [n, H, W, 3], prepared; those with pasted defects come last."""
    names: tuple[str, ...]
    source: str
    """Where the images come from, in words."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user: the set can be used, but not without a doubt."""
    n_with_defects: int = 0
    """How many of the images have pasted defects."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the shape and the pixels in their order: equal for equal images, whatever files they were in."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for image in self.images:
            digest.update(image.tobytes())
        return digest.hexdigest()

    @property
    def record(self) -> CalibrationSetRecord:
        """What the manifest says about the set."""
        return CalibrationSetRecord(sha256=self.sha256, n_images=len(self.images), n_with_defects=self.n_with_defects)


def draw_calibration_set(
    trained: TrainedModel,
    judging: JudgingSet,
    *,
    n_images: int = DEFAULT_N_IMAGES,
    data: Path | None = None,
    data_root: Path | None = None,
    progress: StepProgress | None = None,
) -> CalibrationSet:
    """Draw the calibration set and refuse images that would spoil a quantized model.

    An image's rank is a hash of its bytes: the same images give the same set on every machine, whatever their names and
    order. Equal images count once.

    Args:
        trained: the model, with the normals that the thresholds are fitted on.
        judging: the images that will judge the result.
        n_images: take this many normals, or as many as there are; the images with pasted defects are extra.
        data: a folder in any layout of an inspection set, whose good training images are taken, or `sample:PRODUCT`;
            None: the images that the run's network was fitted on.
        data_root: where the run's images are now; None: where they were.
        progress: receives every step.

    Raises:
        InputError: `n_images` is below 32; the images cannot be found, are fewer than 32, are held out for the
            thresholds or for judging, are not pictures, or do not look like the run's.
    """
    if n_images < MIN_IMAGES:
        raise InputError(f"{n_images} calibration images were asked for; expected {MIN_IMAGES} or more, better 300")
    report = progress or _no_progress
    run = trained.run
    normals = trained.images[: trained.n_normals]
    # Of a cross-conformal run all normals fit the thresholds, those that the network was fitted on too.
    alone = normals if trained.rule.is_split else normals[:0]
    held_out = {*content_hashes(alone), *content_hashes(judging.images)}
    if data is None:
        source = f"the training images of the run {run.folder.resolve().name}"
        files = tuple(run.find_images(("fit",), data_root))
    else:
        source = str(data)
        files = _good_parts(data, report)
        _check_not_held_out(files, run, source)
    pool = _read(_ranked(files), n_images, run, held_out, report)
    if data is not None and pool.held_out:
        raise _held_out_error(pool.held_out, len(files), source)
    warnings = pool.describe(source)
    try:
        warnings += check_number(len(pool.names), source)
    except InputError as error:
        raise InputError("; ".join([str(error), *warnings])) from None
    images = np.stack(pool.images)
    warnings += check_pictures(images, pool.names, normals, source)
    _, scores = run_graph(
        trained.graph, images, progress=lambda done, total: report("scoring calibration images", done, total)
    )
    # By models that had not seen them, in either kind of run: new images are like those.
    warnings += check_scores(scores, np.array(trained.thresholds.calibration_scores, np.float32), source)
    result = CalibrationSet(images, tuple(pool.names), source, tuple(warnings))
    if isinstance(trained.graph, FeatureGraph):
        result = with_pasted_defects(result, trained.run.record.ignored)
    check_disjoint(thresholds=alone, calibration=result, judging=judging)
    return result


def with_pasted_defects(normals: CalibrationSet, ignored: IgnoredRegion | None = None) -> CalibrationSet:
    """Add versions with a pasted defect of every `NORMALS_A_DEFECT`-th normal, and of at least one."""
    chosen = slice(0, None, NORMALS_A_DEFECT)
    pasted = paste_defects(normals.images[chosen], 1, seed=_SEED, ignored=ignored)
    names = (f"{name}+{kind}" for name, kind in zip(normals.names[chosen], pasted.kinds, strict=True))
    return replace(
        normals,
        images=np.concatenate([normals.images, pasted.images]),
        names=(*normals.names, *names),
        n_with_defects=len(pasted.images),
    )


def check_disjoint(*, thresholds: NDArray[np.uint8], calibration: CalibrationSet, judging: JudgingSet) -> None:
    """Check that no image is in two of the three sets, by its pixels.

    Args:
        thresholds: uint8 [n, H, W, 3], the normals that the thresholds are fitted on.
        calibration: calibrates.
        judging: judges.

    Raises:
        InputError: two sets share images; the message names the sets, how many images they share and one of them.
    """
    fits, judges = set(content_hashes(thresholds)), set(content_hashes(judging.images))
    named = list(zip(content_hashes(calibration.images), calibration.names, strict=True))
    for hashes, what in ((fits, "fit the thresholds"), (judges, "judge the accuracy")):
        shared = [name for value, name in named if value in hashes]
        if shared:
            raise InputError(
                f"{len(shared)} of the {len(named)} calibration images from {calibration.source} also {what} "
                f"({shared[0]}, for example); {_OTHERS}"
            )
    shared = [name for value, name in zip(content_hashes(judging.images), judging.names, strict=True) if value in fits]
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(judging.names)} images that judge the "
            f"accuracy also {verb(len(shared), 'fits', 'fit')} the thresholds "
            f"({shared[0]}, for example); expected images that are in one set only: remove the copies and train again"
        )


_OTHERS = (
    "expected other good parts: give pictures that the run has not seen, or leave out --calibration-data to take the "
    "run's own training images"
)


@dataclass(frozen=True)
class _Pool:
    """What happened to the files, in the order of their ranks."""

    images: list[NDArray[np.uint8]]
    names: list[str]
    unreadable: list[str]
    held_out: list[str]
    copies: list[str]

    def describe(self, source: str) -> list[str]:
        """Say what was left out."""
        return [
            f"{len(names)} of the calibration images from {source} were left out because they {why} "
            f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
            for names, why in (
                (self.unreadable, "cannot be decoded"),
                (self.copies, "are copies of another image"),
                (self.held_out, "equal an image that fits the thresholds or judges the accuracy"),
            )
            if names
        ]


def _good_parts(data: Path, report: StepProgress) -> tuple[ImageFile, ...]:
    def progress(done: int, total: int) -> None:
        report("listing calibration images", done, total)

    try:
        root = existing_folder(resolve_data(str(data)), "a folder of images")
        # Of a folder with nothing below it, it was said that the images are normal; `check_pictures` finds those that
        # are not. Where there are folders, they say which are.
        is_flat = all(path.parent == root for path in list_images(root).images())
        if is_flat:
            found = open_inspection_set(normal=root, progress=progress)
            return tuple(replace(file, name=file.path.name) for file in found.train)
        return open_inspection_set(root, can_name_folders=False, progress=progress).train
    except InputError as error:
        raise InputError(f"there are no calibration images: {error}") from error


def _check_not_held_out(files: Sequence[ImageFile], run: RunFolder, source: str) -> None:
    """Refuse files that the run holds out, before any of them is drawn."""
    held_out = {image.sha256 for image in run.split.of("threshold", "test")}
    shared = [file.name for file in files if file.sha256 in held_out]
    if shared:
        raise _held_out_error(shared, len(files), source)


def _held_out_error(names: Sequence[str], n_files: int, source: str) -> InputError:
    return InputError(
        f"{len(names)} of the {n_files} images from {source} {verb(len(names), 'is', 'are')} "
        "held out by the run to fit its thresholds or to judge "
        f"accuracy ({names[0]}, for example), and would flatter the quantized model; {_OTHERS}"
    )


def _ranked(files: Sequence[ImageFile]) -> list[ImageFile]:
    # Not the rank of the split: its first images went to the thresholds, and what is left of it is no random draw.
    return sorted(files, key=lambda file: (hashlib.sha256(f"calibration:{file.sha256}".encode()).digest(), file.name))


def _read(files: Sequence[ImageFile], n_images: int, run: RunFolder, held_out: set[str], report: StepProgress) -> _Pool:
    """Decode files until there are enough different images."""
    preparation = run.record.preparation

    def load(file: ImageFile) -> NDArray[np.uint8] | InputError:
        try:
            return load_prepared(file.path, preparation)
        except InputError as error:
            return error

    pool = _Pool([], [], [], [], [])
    seen: set[str] = set()
    wanted = min(n_images, len(files))
    for file, image in zip(files, map_in_threads(load, files), strict=False):
        if isinstance(image, InputError):
            pool.unreadable.append(file.name)
            continue
        (value,) = content_hashes(image[None])
        if value in held_out:
            pool.held_out.append(file.name)
        elif value in seen:
            pool.copies.append(file.name)
        else:
            seen.add(value)
            pool.images.append(image)
            pool.names.append(file.name)
            report("reading calibration images", len(pool.images), wanted)
            if len(pool.images) == n_images:
                break
    return pool


def _no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""
