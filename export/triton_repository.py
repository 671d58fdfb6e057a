"""From a bundle to a model of a Triton model repository: a configuration, the model and what is left to clients.

The layout: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html;
the configuration: model_config.proto in https://github.com/triton-inference-server/common. Loads neither torch nor a
runtime.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from vae_edge.bundle import Bundle
from vae_edge.errors import BundleError, InputError, UsageError
from vae_edge.manifest import Manifest, TensorSpec
from vae_edge.platform.atomic import check_replaceable, new_folder
from vae_edge.targets import SUPPORTED, Precision, Target

CONFIG_FILE = "config.pbtxt"
PAGE_FILE = "README.md"
VERSION = "1"
DEFAULT_MAX_BATCH = 8

_BACKENDS = {Target.ONNX: "onnxruntime", Target.OPENVINO: "openvino", Target.TENSORRT: "tensorrt"}
"""Triton's names of the backends that open a bundle's model."""

_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_PAGE = """# {name}: {bundle} for Triton

`{name}/` is a model of a Triton model repository
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html).
It was made from the bundle `{bundle}` and has that bundle's model, byte for byte. It has not been tried in Triton.

Triton runs the network alone. What `vae-edge` does around it is left to the client:

* **Decoding and resizing.** The input `image` is UINT8 [N, {height}, {width}, 3], RGB. A picture of another size has to
  be resized to a height of {height} and a width of {width} without keeping its aspect: by pixel area where it shrinks,
  bilinearly where it grows. Of a 16-bit picture, {white_level} becomes 255. Another way to resize gives other scores.
* **The verdict.** A picture is anomalous if its `score` is above {image_threshold!r}, and a pixel if its value in
  `anomaly_map` is above {pixel_threshold!r}. Both numbers are parameters in `config.pbtxt`, too. They were fitted for a
  false-alarm rate of {rate:g}. If they are fitted again (`vae-edge verify --data`), export the bundle again.
{exact_sums}* **Everything else**: p-values, pictures that are not fit to be judged, drift, references on the device.

`vae-edge serve` does all of it, with the same protocol.
"""


_EXACT_SUMS = """\
* **Exact sums in INT8.** On an x86 processor without VNNI ONNX Runtime gives other scores unless the session's entry
  `session.x64quantprecision` is 1. `vae-edge` sets it there; Triton is not known to. There, use the FP32 bundle.
"""


def export_triton(bundle: Bundle, repository: Path, name: str | None = None, *, max_batch: int | None = None) -> Path:
    """Write a bundle's model into a model repository, unless the name is taken.

    Args:
        bundle: for target onnx, openvino or tensorrt.
        repository: the folder with all models; is made if there is none.
        name: of the model; None: the bundle's.
        max_batch: pictures in one run of the model; None: the bundle's limit, or 8.

    Returns:
        The model's folder.

    Raises:
        UsageError: Triton has no backend for the target, or the name or the batch is not possible.
        InputError: the name is taken, or the folder cannot be written.
        BundleError: the bundle was changed meanwhile.
    """
    manifest = bundle.manifest
    if manifest.target not in _BACKENDS:
        raise UsageError(
            f"{bundle.folder} is a bundle for target {manifest.target}; the layout triton needs one for "
            f"{', '.join(_BACKENDS)}"
        )
    if manifest.runtime.flavour == "tensorrt_rtx":
        raise UsageError(
            f"{bundle.folder} was built with TensorRT-RTX, which Triton does not load; build it on the server's GPU "
            "with TensorRT, or export the onnx bundle"
        )
    name = bundle.folder.resolve().name if name is None else name
    if not _NAME.fullmatch(name):
        raise UsageError(f"the model's name is {name!r}; expected letters, digits, '.', '_' and '-': pass --name")
    batch = _batch(manifest, max_batch)
    folder = repository / name
    check_replaceable(folder, None, None)
    repository.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as temporary:
        version = temporary / VERSION
        version.mkdir()
        for source, copy in _files(manifest):
            try:
                shutil.copyfile(bundle.folder / source, version / copy)
            except OSError as error:
                raise InputError(f"{source} could not be copied to {folder} ({error.strerror or error})") from error
        bundle.check_unchanged()
        (temporary / CONFIG_FILE).write_text(config_text(manifest, name, batch), encoding="utf-8")
        (temporary / PAGE_FILE).write_text(_page(manifest, bundle.folder.resolve().name, name), encoding="utf-8")
    return folder


def _batch(manifest: Manifest, asked: int | None) -> int:
    limit = manifest.max_batch
    if asked is not None and (asked < 1 or (limit is not None and asked > limit)):
        raise UsageError(f"--max-batch is {asked}; expected {'1 or more' if limit is None else f'1 to {limit}'}")
    return asked or limit or DEFAULT_MAX_BATCH


def _files(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the names of the model's files, in the bundle and in the repository."""
    row = SUPPORTED[manifest.target]
    if manifest.target is Target.TENSORRT:
        return [(row.model_file, "model.plan")]  # The ONNX beside it is for building another engine.
    return [(file, file) for file in (row.model_file, *row.other_files)]


def config_text(manifest: Manifest, name: str, max_batch: int) -> str:
    """Return a model's configuration in the text format of protocol buffers."""
    thresholds = manifest.thresholds
    parameters = {
        "image_threshold": repr(thresholds.image_threshold),
        "pixel_threshold": repr(thresholds.pixel_threshold),
        "false_alarm_rate": repr(thresholds.false_alarm_rate),
        "white_level": str(manifest.preparation.white_level),
        "vae_edge_bundle": manifest.name,
    }
    blocks = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(_BACKENDS[manifest.target])}",
        f"max_batch_size: {max_batch}",
        *(_tensor("input", spec) for spec in manifest.inputs),
        *(_tensor("output", spec) for spec in manifest.outputs),
        "dynamic_batching { }",
        *(
            f"parameters {{\n  key: {_quoted(key)}\n  value {{ string_value: {_quoted(value)} }}\n}}"
            for key, value in parameters.items()
        ),
    ]
    if manifest.target is Target.TENSORRT:
        blocks.insert(2, 'default_model_filename: "model.plan"')
    return "\n".join(blocks) + "\n"


def _tensor(kind: str, spec: TensorSpec) -> str:
    """Return one tensor: without the batch, which Triton adds, and of at least one dimension, as it requires."""
    batch, *rest = spec.shape
    if batch is not None or None in rest:
        raise BundleError(f"{spec.name} has the shape {list(spec.shape)}; expected a batch and fixed sizes")
    dims = ", ".join(str(size) for size in rest) or "1"
    reshape = "" if rest else "\n  reshape { }"
    return (
        f"{kind} {{\n  name: {_quoted(spec.name)}\n  data_type: {_TYPES[spec.dtype]}\n  dims: [ {dims} ]{reshape}\n}}"
    )


def _quoted(text: str) -> str:
    return json.dumps(text)  # Escapes as the text format does.


def _page(manifest: Manifest, bundle: str, name: str) -> str:
    preparation, thresholds = manifest.preparation, manifest.thresholds
    adds_in_16_bits = manifest.target is Target.ONNX and manifest.precision is Precision.INT8
    return _PAGE.format(
        exact_sums=_EXACT_SUMS if adds_in_16_bits else "",
        name=name,
        bundle=bundle,
        height=preparation.height,
        width=preparation.width,
        white_level=preparation.white_level,
        image_threshold=thresholds.image_threshold,
        pixel_threshold=thresholds.pixel_threshold,
        rate=thresholds.false_alarm_rate,
    )
