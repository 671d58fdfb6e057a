"""Metadata of a single model file, read without its runtime.

| file | where its words are |
|---|---|
| `.onnx` | `metadata_props` of the ONNX model |
| `.xml` (OpenVINO IR) | `rt_info`, section `vae_edge` |
| `.engine` (TensorRT) | an engine cannot hold any: the `manifest.json` beside it; its header tells the version |
| `program.json`, `.safetensors` | the manifest beside it, and the safetensors header's `__metadata__` |

Files come from anywhere, so only what is needed is read, nothing is executed, and every length is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vae_edge.backends.tensorrt.module import read_plan_header
from vae_edge.errors import BundleError, DeviceError, InputError
from vae_edge.manifest import MANIFEST_FILE, Manifest
from vae_edge.manifest_file import read_manifest
from vae_edge.model_files.checks import PROGRAM_LIMITS, read_ir, read_safetensors_header
from vae_edge.model_files.onnx_header import read_onnx_header
from vae_edge.platform.atomic import sha256_file
from vae_edge.records import Record, open_regular, parse_json, read_bounded


class ModelFileDescription(Record):
    """What a model file is and says."""

    path: str
    format: str
    """`ONNX`, `OpenVINO IR`, `TensorRT engine`, `torch program` or `safetensors`."""
    size_bytes: int
    """Of this file alone; an IR's weights are in the `.bin` beside it."""
    details: dict[str, str]
    """What its format tells: versions, counts, companions."""
    metadata: dict[str, str]
    """What vae-edge wrote into it; empty for a file that vae-edge did not make."""
    bundle: str | None = None
    """Name of the bundle whose manifest is beside the file and lists it."""
    bundle_match: bool | None = None
    """Whether the file is, to the byte, the one that the manifest lists."""


def describe_model_file(path: str | Path) -> ModelFileDescription:
    """Tell what a model file is, from its own content and from the manifest beside it.

    Raises:
        InputError: there is no such file, it is not a model file, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the file {path} does not exist")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path} is not a model file that vae-edge recognizes; expected {', '.join(_READERS)}, or a bundle's folder"
        )
    try:
        kind, details, metadata = reader(path)
        size_bytes = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    manifest = _manifest_beside(path)
    record = None if manifest is None else next((file for file in manifest.files if file.name == path.name), None)
    if manifest is None or record is None:
        return ModelFileDescription(
            path=str(path), format=kind, size_bytes=size_bytes, details=details, metadata=metadata
        )
    return ModelFileDescription(
        path=str(path),
        format=kind,
        size_bytes=size_bytes,
        details=details,
        metadata=metadata or _manifest_metadata(manifest),
        bundle=manifest.name,
        bundle_match=size_bytes == record.size_bytes and sha256_file(path) == record.sha256,
    )


_Content = tuple[str, dict[str, str], dict[str, str]]
"""Format, details, metadata."""


def _read_onnx(path: Path) -> _Content:
    header = read_onnx_header(path)
    details = {"ir_version": str(header.ir_version)}
    details["opsets"] = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in header.opsets.items())
    if header.producer:
        details["producer"] = header.producer
    return "ONNX", details, header.metadata


def _read_ir(path: Path) -> _Content:
    listener = read_ir(path)
    details = {"ir_version": listener.version, "layers": str(listener.n_layers)}
    found = listener.values
    # The first is how OpenVINO's converter spells its version, the second how its reader and writer do.
    versions: dict[str, list[tuple[str, ...]]] = {
        "openvino": [("Runtime_version",), ("OpenVINO Runtime",)],
        "nncf": [("nncf", "version")],
    }
    for name, spellings in versions.items():
        for keys in spellings:
            if keys in found:
                details[name] = found[keys]
    weights = path.with_suffix(".bin")
    details["weights"] = f"{weights.name}, {weights.stat().st_size} bytes" if weights.is_file() else "missing"
    # OpenVINO puts an ONNX file's own metadata under `framework`.
    for section in ("vae_edge", "framework"):
        metadata = {keys[1]: value for keys, value in found.items() if len(keys) == 2 and keys[0] == section}
        if metadata:
            return "OpenVINO IR", details, metadata
    return "OpenVINO IR", details, {}


def _read_engine(path: Path) -> _Content:
    try:
        header = read_plan_header(path)
    except DeviceError as error:
        raise InputError(str(error)) from error
    version = "unknown" if header.version is None else ".".join(map(str, header.version))
    beside = path.with_suffix(".onnx")
    onnx = f"{beside.name}, from which any device can rebuild the engine" if beside.is_file() else "not beside it"
    details = {"built_by": f"{header.flavour.title} {version}", "onnx": onnx}
    return "TensorRT engine", details, read_onnx_header(beside).metadata if beside.is_file() else {}


def _read_program(path: Path) -> _Content:
    try:
        with open_regular(path) as file:
            content = parse_json(read_bounded(file, PROGRAM_LIMITS.size_bytes), PROGRAM_LIMITS)
    except ValueError as error:
        raise InputError(f"{path} is not JSON, or is damaged: {error}") from error
    if not isinstance(content, dict) or not {"format", "inputs", "outputs", "nodes"} <= set(content):
        advice = "; pass the bundle's folder to see a manifest" if path.name == MANIFEST_FILE else ""
        raise InputError(f"{path} is not a torch program of vae-edge{advice}")
    lists = [content[key] for key in ("inputs", "outputs", "nodes")]
    if not all(isinstance(values, list) for values in lists):
        raise InputError(f"{path} is damaged: inputs, outputs and nodes should be lists")
    inputs, outputs, nodes = lists
    details = {
        "program_format": str(content["format"]),
        "inputs": ", ".join(map(str, inputs)),
        "outputs": ", ".join(map(str, outputs)),
        "operations": str(sum(isinstance(node, dict) and "op" in node for node in nodes)),
    }
    tensors = path.with_suffix(".safetensors")
    details["weights"] = f"{tensors.name}, {tensors.stat().st_size} bytes" if tensors.is_file() else "missing"
    return "torch program", details, {}


def _read_safetensors(path: Path) -> _Content:
    header = read_safetensors_header(path)
    details = {"tensors": str(len(header.dtypes)), "types": ", ".join(sorted(set(header.dtypes)))}
    return "safetensors", details, header.metadata


def _manifest_beside(path: Path) -> Manifest | None:
    """Return the manifest in the file's folder; a damaged one is not a reason to say nothing about the file."""
    try:
        return read_manifest(path.parent)
    except BundleError:
        return None


def _manifest_metadata(manifest: Manifest) -> dict[str, str]:
    return {
        "vae_edge_version": manifest.provenance.vae_edge_version,
        "name": manifest.name,
        "precision": str(manifest.precision),
        "run_fingerprint": manifest.provenance.run_fingerprint,
        "preparation": manifest.preparation.model_dump_json(),
        "scoring": manifest.scoring,
        "image_threshold": repr(manifest.thresholds.image_threshold),
        "pixel_threshold": repr(manifest.thresholds.pixel_threshold),
        "false_alarm_rate": repr(manifest.thresholds.false_alarm_rate),
        "threshold_method": str(manifest.thresholds.method),
    }


_READERS: dict[str, Callable[[Path], _Content]] = {
    ".onnx": _read_onnx,
    ".xml": _read_ir,
    ".engine": _read_engine,
    ".json": _read_program,
    ".safetensors": _read_safetensors,
}
