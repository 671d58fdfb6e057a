"""From a bundle's ONNX file to a TensorRT bundle, on the device itself. Loads neither torch nor training code."""

from __future__ import annotations

import shutil
from pathlib import Path

from vae_edge.backends.base import RuntimeOptions, open_backend
from vae_edge.backends.tensorrt.build import EngineSettings, build_engine
from vae_edge.bundle import Bundle, manifest_text, new_bundle
from vae_edge.errors import DeviceError, InputError, MissingDependencyError
from vae_edge.manifest import MANIFEST_FILE, Manifest
from vae_edge.platform.work import StepProgress
from vae_edge.records import file_record
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

    The thresholds are the source's: there are no images here to fit new ones on. The new bundle is therefore not
    verified; to verify it, run `vae-edge verify` on normal images.

    Raises:
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
        manifest = old.model_copy(
            update={
                "name": folder.name,
                "target": Target.TENSORRT,
                "model_file": engine.name,
                "runtime": runtime,
                "max_batch": settings.max_batch,
                "parity": None,
                "verified": False,
                "not_verified_because": _why_not_verified(engine, old, settings.max_batch),
                "files": tuple(file_record(path) for path in sorted(temporary.iterdir())),
            }
        )
        (temporary / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")
    return Bundle.open(folder)


def _why_not_verified(engine: Path, manifest: Manifest, max_batch: int) -> str:
    """Open the new engine if there is a GPU: one that cannot be opened is reported now, not in production."""
    try:
        # The very engine that was built: another one in its place would hide that it does not load.
        options = RuntimeOptions(rebuild=False)
        open_backend(
            Target.TENSORRT, engine, manifest.inputs, manifest.outputs, max_batch=max_batch, options=options
        ).close()
    except (DeviceError, MissingDependencyError) as error:
        return f"it was built from {manifest.name} and could not be opened here: {error}"
    return f"it was built from {manifest.name}, whose thresholds it has; run vae-edge verify with normal images"
