"""From an OpenVINO bundle to a folder that OpenVINO Model API opens as AnomalyDetection, with the bundle's verdicts.

It holds `model.xml`, `model.bin` and `model_api.json`, which says what they are. It is not a bundle: the thresholds are
in the graph, and so is everything between the decoded picture and the verdict. Loads neither torch nor training code.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import vae_edge
from vae_edge.agreement import compare_scores
from vae_edge.backends.openvino_module import check_can_load, openvino_core
from vae_edge.bundle import Bundle
from vae_edge.decision import check_thresholds
from vae_edge.detector import Detector
from vae_edge.errors import BundleError, InputError, ParityError, UsageError
from vae_edge.export.model_api.graph import OUTPUTS, Scale, Scales, as_model_api
from vae_edge.export.openvino_ir import PRECISION_KEY, import_openvino, write_ir
from vae_edge.image import Preparation, as_rgb, read_image
from vae_edge.manifest import MANIFEST_LIMITS, Manifest, Provenance, Thresholds
from vae_edge.model_files.checks import check_model_files
from vae_edge.picture_files.listing import list_images
from vae_edge.platform.atomic import check_replaceable, new_folder
from vae_edge.platform.machine import installed_versions
from vae_edge.platform.work import Progress, StepProgress
from vae_edge.records import (
    FileName,
    FileRecord,
    Record,
    Sha256,
    check_recordable,
    check_recorded_files,
    file_record,
    read_record,
    recorded_names,
)
from vae_edge.targets import SUPPORTED, Precision, Target
from vae_edge.train.data.inspection_set import spread
from vae_edge.wording import verb

RECORD_FILE = "model_api.json"
MODEL_FILE = SUPPORTED[Target.OPENVINO].model_file

MAX_IMAGES = 400
"""The verdicts are compared on at most this many pictures, spread evenly over those available."""

_TOLERANCE = 1e-4
"""Largest difference allowed between a score from 0 to 1 and the bundle's own score converted to that scale."""
_SCHEMA_VERSION: Final = 2
"""History: 1 (first), 2 (`bundle_not_verified_because`; vae-edge 0.2)."""
_ADVICE = "copy or export the folder again"

Source = str | Path | NDArray[np.uint8]


class VerdictCheck(Record):
    """How the verdicts compare with those of the bundle, each from the same decoded pictures of their own size."""

    images: str
    """What the images were, in words."""
    n_images: int = Field(ge=1)
    n_anomalous: int = Field(ge=0)
    label_differences: int = Field(ge=0)
    differing_images: tuple[str, ...] = ()
    max_score_difference: float = Field(ge=0)
    """On the scale from 0 to 1."""
    mask_differences: int = Field(ge=0)
    """Pixels, of all masks, that one marks and the other does not."""


class ScaleRecord(Record):
    """Threshold and spread of `vae_edge.export.model_api.graph.Scale`."""

    threshold: float
    spread: float = Field(gt=0)


class ModelApiRecord(Record):
    """What a Model API folder is and what it was made from."""

    schema_version: Literal[1, 2] = _SCHEMA_VERSION
    kind: Literal["openvino-model-api"] = "openvino-model-api"
    name: str
    bundle: str
    """Name of the bundle that it was made from and agrees with."""
    bundle_model_sha256: Sha256
    """Hash over that bundle's model files."""
    bundle_not_verified_because: str | None = None
    """Why that bundle did not count as verified; None: it did, or an older version did not record it."""
    precision: Precision
    model_file: FileName
    input_colours: Literal["BGR"] = "BGR"
    preparation: Preparation
    scoring: str
    thresholds: Thresholds
    image_scale: ScaleRecord
    pixel_scale: ScaleRecord
    check: VerdictCheck
    files: tuple[FileRecord, ...]
    provenance: Provenance
    """The bundle's, with the time and the versions of this export."""


def read_model_api_record(folder: Path) -> ModelApiRecord:
    """Read `model_api.json` and check that the model files are the ones that were exported.

    Raises:
        BundleError: the folder does not exist, its record is damaged or newer, its scales do not follow from its
            thresholds, or a file is missing or was changed.
    """
    path = folder / RECORD_FILE
    record = read_record(path, ModelApiRecord, _SCHEMA_VERSION, advice=_ADVICE, limits=MANIFEST_LIMITS)
    try:
        check_thresholds(record.thresholds)
    except ValueError as error:
        raise BundleError(f"{path} was changed: {error}; {_ADVICE}") from error
    scales = Scales.of(record.thresholds)
    if (record.image_scale, record.pixel_scale) != (_recorded(scales.image), _recorded(scales.pixel)):
        raise BundleError(f"{path} was changed: its scales do not follow from its thresholds; {_ADVICE}")
    check_recorded_files(folder, record.files, said_by=RECORD_FILE, advice=_ADVICE, links=False)
    check_model_files(folder, [file.name for file in record.files], advice=_ADVICE)
    return record


def model_api_folder(out: Path, bundle_name: str, precision: Precision, name: str | None = None) -> Path:
    """Return where the export of a bundle goes: `out/NAME-openvino-model-api-PRECISION`."""
    stem = name or bundle_name.removesuffix(f"-{Target.OPENVINO}-{precision}")
    return out / f"{stem}-{Target.OPENVINO}-model-api-{precision}"


def check_folder_is_free(folder: Path) -> None:
    """Refuse, before the work starts, a name that something other than a Model API folder already has.

    Raises:
        InputError: the name is taken.
    """
    check_recordable(folder)
    check_replaceable(folder, RECORD_FILE, _own_files)


def _own_files(folder: Path) -> set[str]:
    return recorded_names(folder, RECORD_FILE)


def export_model_api(
    bundle: Bundle,
    folder: Path,
    images: Sequence[Source] = (),
    *,
    description: str | None = None,
    progress: StepProgress | None = None,
) -> ModelApiRecord:
    """Write the folder, unless a picture gets a different verdict from the bundle's.

    Args:
        bundle: for target openvino, in any precision; its thresholds go into the graph.
        folder: gets the name once it is complete; an older one of the same kind is replaced.
        images: what the verdicts are compared on: paths, or uint8 [H, W, 3] RGB of any size; at most `MAX_IMAGES` of
            them are used. Empty: synthetic ones of several sizes.
        description: what the images are, in words.
        progress: receives the number of pictures done and the total.

    Raises:
        UsageError: a bundle for another target.
        InputError: the name is taken by something else, or a picture cannot be read.
        MissingDependencyError: openvino is not installed.
        DeviceError: OpenVINO cannot run the bundle.
        ParityError: a verdict differs. Nothing was written.
    """
    manifest = bundle.manifest
    if manifest.target is not Target.OPENVINO:
        raise UsageError(
            f"{bundle.folder} is a bundle for target {manifest.target}; the layout model-api needs one for "
            f"{Target.OPENVINO}: export the run with --target {Target.OPENVINO} --layout model-api"
        )
    check_folder_is_free(folder)
    import_openvino()
    compared = spread(images, MAX_IMAGES) or drawn_images(manifest.preparation)
    scales = Scales.of(manifest.thresholds)
    with new_folder(folder, replaces=RECORD_FILE, own=_own_files) as temporary:
        graph = openvino_core().read_model(bundle.model_path)
        graph = as_model_api(graph, manifest.preparation, scales, _information(manifest, folder.name, scales))
        write_ir(graph, temporary / MODEL_FILE)
        check = compare_verdicts(
            bundle,
            temporary / MODEL_FILE,
            compared,
            scales,
            description=description or ("drawn pictures" if not images else "pictures"),
            progress=None if progress is None else lambda done, total: progress("comparing verdicts", done, total),
        )
        _refuse_other_verdicts(check, manifest.name)
        record = _record(bundle, folder.name, scales, check, temporary)
        (temporary / RECORD_FILE).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record


def _information(manifest: Manifest, name: str, scales: Scales) -> dict[str, str]:
    """Return what the graph records about itself besides what Model API reads."""
    return {
        "vae_edge_version": vae_edge.__version__,
        "name": name,
        PRECISION_KEY: str(manifest.precision),
        "bundle": manifest.name,
        "run_fingerprint": manifest.provenance.run_fingerprint,
        "preparation": manifest.preparation.model_dump_json(),
        "scoring": manifest.scoring,
        "image_threshold": repr(scales.image.threshold),
        "pixel_threshold": repr(scales.pixel.threshold),
    }


def _record(bundle: Bundle, name: str, scales: Scales, check: VerdictCheck, folder: Path) -> ModelApiRecord:
    """Return the record of an export whose model files are in `folder`."""
    manifest = bundle.manifest
    return ModelApiRecord(
        name=name,
        bundle=manifest.name,
        bundle_model_sha256=bundle.model_sha256,
        bundle_not_verified_because=None if manifest.verified else manifest.not_verified_because or "not verified",
        precision=manifest.precision,
        model_file=MODEL_FILE,
        preparation=manifest.preparation,
        scoring=manifest.scoring,
        thresholds=manifest.thresholds,
        image_scale=_recorded(scales.image),
        pixel_scale=_recorded(scales.pixel),
        check=check,
        files=tuple(file_record(path) for path in sorted(folder.iterdir())),
        provenance=manifest.provenance.model_copy(
            update={
                "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "vae_edge_version": vae_edge.__version__,
                "library_versions": {
                    **manifest.provenance.library_versions,
                    **installed_versions(("openvino", "numpy")),
                },
            }
        ),
    )


def compare_verdicts(
    bundle: Bundle,
    model: Path,
    images: Sequence[Source],
    scales: Scales,
    *,
    description: str,
    progress: Progress | None = None,
) -> VerdictCheck:
    """Run a bundle and the model made from it over the same pictures, in the same arithmetic on the CPU.

    Raises:
        InputError: there is no picture, or one cannot be read.
    """
    if not images:
        raise InputError("there is no picture to compare verdicts on; expected at least 1")
    run = open_model(model)
    ours: list[tuple[float, bool]] = []
    scores, labels, masks = [], [], 0
    with Detector.open(bundle, device="cpu", hint="latency") as detector:
        for position, image in enumerate(images):
            rgb = _decoded(image, detector.bundle.manifest.preparation.white_level)
            prediction = detector.predict(rgb)
            found = run(rgb[:, :, ::-1])
            ours.append((prediction.score, prediction.is_anomalous))
            scores.append(found["pred_score"].item())
            labels.append(bool(found["pred_label"].item()))
            masks += int((found["pred_mask"][0] != prediction.mask).sum())
            if progress is not None:
                progress(position + 1, len(images))
    agreement = compare_scores(
        scales.image.normalize(np.array([score for score, _ in ours], dtype=np.float32)),
        np.array(scores),
        reference_verdicts=np.array([is_anomalous for _, is_anomalous in ours]),
        verdicts=np.array(labels),
    )
    names = [str(image) if isinstance(image, (str, Path)) else f"picture {i}" for i, image in enumerate(images)]
    return VerdictCheck(
        images=description,
        n_images=len(images),
        n_anomalous=sum(is_anomalous for _, is_anomalous in ours),
        label_differences=len(agreement.flipped),
        differing_images=agreement.names(names),
        max_score_difference=agreement.scores.largest,
        mask_differences=masks,
    )


def open_model(model: Path) -> Any:
    """Compile a Model API graph for the CPU, computing in FP32 as a Detector does.

    Returns:
        A function from uint8 [H, W, 3], blue first, to the outputs by name; they are copies.
    """
    check_can_load()
    core = openvino_core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()

    def run(picture: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        request.infer({0: np.ascontiguousarray(picture)[None]})
        return {name: request.get_tensor(name).data.copy() for name in OUTPUTS}

    return run


def drawn_images(preparation: Preparation) -> list[Source]:
    """Draw smooth noise with edges, uint8 [H, W, 3], of sizes that are reduced, enlarged, both, and neither."""
    height, width = preparation.height, preparation.width
    sizes = [(1, 1), (2, 2), (1.5, 1.25), (2.37, 1.91), (0.5, 0.5), (0.83, 0.71), (1.6, 0.7), (0.9, 1)]
    images: list[Source] = []
    for seed, (tall, wide) in enumerate(sizes):
        shape = (max(round(height * tall), 1), max(round(width * wide), 1))
        generator = np.random.default_rng(seed)
        coarse = generator.integers(0, 200, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3), dtype=np.uint8)
        blocks = np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)[: shape[0], : shape[1]]
        images.append(blocks + generator.integers(0, 56, (*shape, 3), dtype=np.uint8))
    return images


def images_below(folder: Path) -> list[Path]:
    """Return the image files of a folder and its sub-folders, in order.

    Raises:
        InputError: there is none, or a folder cannot be read.
    """
    found = sorted(list_images(folder).images())
    if not found:
        raise InputError(f"there is no image in {folder}; expected a folder of pictures to compare verdicts on")
    return found


def _decoded(image: Source, white_level: int) -> NDArray[np.uint8]:
    if isinstance(image, (str, Path)):
        return read_image(image, white_level=white_level)
    return as_rgb(image, white_level=white_level)


def _refuse_other_verdicts(check: VerdictCheck, bundle: str) -> None:
    if check.label_differences:
        more = ", ..." if check.label_differences > 5 else ""
        raise ParityError(
            f"{check.label_differences} of {check.n_images} images "
            f"{verb(check.label_differences, 'gets', 'get')} a different verdict from that of {bundle} "
            f"({', '.join(check.differing_images[:5])}{more}): the Model API folder was not written"
        )
    if not check.max_score_difference <= _TOLERANCE:
        raise ParityError(
            f"the score differs from that of {bundle} by up to {check.max_score_difference:.3g} on the scale from 0 to "
            f"1; at most {_TOLERANCE:.3g} is allowed: the Model API folder was not written"
        )


def _recorded(scale: Scale) -> ScaleRecord:
    return ScaleRecord(threshold=scale.threshold, spread=scale.spread)
