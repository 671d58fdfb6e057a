"""From a bundle's ONNX file to a TensorRT bundle, on the device itself. Loads neither torch nor training code."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from vae_edge.backends.base import Backend, RuntimeOptions, open_backend
from vae_edge.backends.tensorrt.build import EngineSettings, build_engine
from vae_edge.bundle import Bundle, new_bundle
from vae_edge.errors import DeviceError, InputError, MissingDependencyError
from vae_edge.export.provenance import write_provenance
from vae_edge.export.references import with_own
from vae_edge.manifest import MANIFEST_FILE, Manifest
from vae_edge.manifest_file import manifest_text
from vae_edge.platform.machine import look_at_machine
from vae_edge.platform.work import StepProgress
from vae_edge.records import file_record
from vae_edge.reference_file import ReferenceFile
from vae_edge.references import compare, run_blocks, size_of
from vae_edge.targets import SUPPORTED, Precision, Target

_ONNX_FILE = SUPPORTED[Target.ONNX].model_file


def rebuild_engine(
    source: Bundle,
    out: Path,
    settings: EngineSettings,
    *,
    name: str | None = None,
    progress: StepProgress | None = None,
) -> Bundle:
    """Build an engine for this device from a bundle's ONNX file and publish it as a bundle in `out`.

    The thresholds are the source's: there are no images here to fit new ones on. So are the references: where the
    engine runs, they are run, and the bundle is verified.

    Raises:
        ParityError: the engine does not give their outputs.
        InputError: the source has no ONNX file, or the name is taken.
        MissingDependencyError: TensorRT is not installed.
        DeviceError: TensorRT cannot build the engine.
    """
    if _ONNX_FILE not in {file.name for file in source.manifest.files}:
        raise InputError(
            f"{source.folder} is a {source.manifest.target} bundle without {_ONNX_FILE}; "
            "expected an onnx or a tensorrt bundle to build an engine from"
        )
    old = source.manifest
    if old.target is not Target.TENSORRT and old.precision is Precision.INT8:
        raise InputError(
            f"{source.folder} is quantized for {old.target}, whose INT8 graph TensorRT cannot use; "
            "expected a tensorrt bundle in int8, or one in fp32 or fp16"
        )
    stem = name or old.name.removesuffix(f"-{old.target}-{old.precision}")
    folder = out / f"{stem}-{Target.TENSORRT}-{old.precision}"
    with new_bundle(folder) as temporary:
        shutil.copyfile(source.folder / _ONNX_FILE, temporary / _ONNX_FILE)
        engine = temporary / SUPPORTED[Target.TENSORRT].model_file
        runtime = build_engine(temporary / _ONNX_FILE, engine, settings, progress)
        trust = _run_references(source, engine, temporary, settings.max_batch)
        manifest = old.model_copy(
            update={
                **trust,
                "name": folder.name,
                "target": Target.TENSORRT,
                "model_file": engine.name,
                "runtime": runtime,
                "max_batch": settings.max_batch,
                "parity": None,
                "files": tuple(file_record(path) for path in sorted(temporary.iterdir())),
            }
        )
        (temporary / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")
        write_provenance(temporary, manifest, source)
    return Bundle.open(folder, obeys_policy=False)


def _run_references(source: Bundle, engine: Path, folder: Path, max_batch: int) -> dict[str, Any]:
    """Run the source's references on the new engine where there is a GPU, and write their file.

    Args:
        source: the bundle whose references they are.
        engine: the plan file.
        folder: of the new bundle.
        max_batch: the largest batch of the engine.

    Returns:
        What the new manifest says about references and trust.

    Raises:
        ParityError: the engine does not give their outputs.
        BundleError: their file is damaged.
    """
    old = source.manifest
    if old.references is None:
        return {"verified": False, "not_verified_because": _opening_problem(engine, old, max_batch)}
    # What the source gave where it was exported, another runtime does not have to give.
    record = old.references.model_copy(update={"own": None})
    size = size_of(old)
    file = replace(ReferenceFile.read(source.folder / record.file, old.references, size), own=None)
    trust: dict[str, Any] = {"verified": False, "verified_by": None}
    try:
        with _open(engine, old, max_batch) as backend:
            ran_on = f"{backend.version} on {backend.device.name}"
            outputs = run_blocks(backend, file.images(), size, record.n_images)
            check = compare(
                record,
                file,
                outputs,
                precision=old.precision,
                ran_on=ran_on,
                device=backend.device.name,
                machine=look_at_machine(),
            )
            check.require("the new engine")
            record, file = with_own(record, file, outputs, old.precision, (backend.version, backend.device.name))
            trust = {"verified": True, "verified_by": ran_on, "not_verified_because": None}
    except (DeviceError, MissingDependencyError) as error:
        trust["not_verified_because"] = f"it was built from {old.name} and could not be opened here: {error}"
    file.write(folder / record.file)
    return {**trust, "references": record}


def _opening_problem(engine: Path, manifest: Manifest, max_batch: int) -> str:
    """Open the new engine where there is a GPU: one that cannot be opened is reported now, not in production."""
    try:
        _open(engine, manifest, max_batch).close()
    except (DeviceError, MissingDependencyError) as error:
        return f"it was built from {manifest.name} and could not be opened here: {error}"
    return f"it was built from {manifest.name}, whose thresholds it has"


def _open(engine: Path, manifest: Manifest, max_batch: int) -> Backend:
    """Open the very engine that was built: another one in its place would hide that it does not load."""
    options = RuntimeOptions(rebuild=False)
    return open_backend(
        Target.TENSORRT, engine, manifest.inputs, manifest.outputs, max_batch=max_batch, options=options
    )
