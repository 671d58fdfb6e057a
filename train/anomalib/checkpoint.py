"""Read the checkpoint of a network that was trained in anomalib, without executing code in the file.

Two kinds of files are read: a checkpoint of `vae_edge.anomalib.Vae`, which has everything needed besides the weights;
and weights of the VAE that circulates for anomalib, as a checkpoint of Lightning or as a bare state dict (see
`vae_edge.train.anomalib.ganomaly_layout`).

If torch's safe loader refuses a file, because anomalib used to save whole objects too, it is read by an unpickler that
knows only tensors and dictionaries and replaces every other class or function with something inert.
"""

from __future__ import annotations

import collections
import json
import pickle
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vae_edge.errors import InputError, UsageError
from vae_edge.manifest import BackboneOrigin
from vae_edge.records import Record, make_record
from vae_edge.train.anomalib.ganomaly_layout import from_ganomaly_layout, is_ganomaly_layout
from vae_edge.train.features.backbone import Backbone
from vae_edge.train.features.graph import N_CHANNELS, FeatureConstants, FeatureGraph, FeatureResidual
from vae_edge.train.features.network import FeatureVae
from vae_edge.train.features.settings import FeatureSettings
from vae_edge.train.model.anomaly_graph import Scorer, ScoringConstants
from vae_edge.train.model.input_settings import IMAGENET, InputRange, InputSettings, Photometric, Tiling
from vae_edge.train.model.network import Vae
from vae_edge.train.model.presets import Architecture
from vae_edge.train.model.scoring import ScoringSettings
from vae_edge.train.run.records import Role

CHECKPOINT_KEY = "vae_edge"
"""Key in a checkpoint of `vae_edge.anomalib.Vae` for its notes: its record of itself."""

MODEL_PREFIX = "model."
"""Prefix of the names of all its tensors in the state dict."""

WEIGHTS_PREFIX = f"{MODEL_PREFIX}vae."
"""Prefix of the tensors of its network."""

BACKBONE_PREFIX = f"{MODEL_PREFIX}backbone."
"""Prefix of the tensors of the backbone, if it has one."""

_FORMATS = (1, 2)
"""Versions of the notes. History: 1 (first), 2 (networks on features; others are still written as 1)."""


class FeatureNotes(Record):
    """Of a network on features."""

    settings: FeatureSettings
    backbone: BackboneOrigin | None
    """None: it was saved before its training."""


class CheckpointNotes(Record):
    """What `vae_edge.anomalib.Vae` writes into a checkpoint besides tensors."""

    format: int = 1
    """Of these notes."""
    vae_edge_version: str
    architecture: Architecture
    tiling: Tiling
    photometric: Photometric = Photometric.NONE
    input_range: InputRange
    scoring: ScoringSettings
    false_alarm_rate: float
    pixel_false_positive_rate: float
    batch_size: int
    learning_rate: float
    prepares_as_device: bool
    """Whether the images were resized as on the device."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """What each training image was used for, by the SHA-256 of its file."""
    groups: dict[str, str] = Field(default_factory=dict)
    """Which of them belong together, as in a run."""
    feature: FeatureNotes | None = None
    """Settings of a network on features; then architecture and scoring do not apply."""

    @property
    def input_settings(self) -> InputSettings:
        """How an image becomes the network's input."""
        return InputSettings(self.tiling, self.photometric, self.input_range)


@dataclass(frozen=True)
class TrainedFeatures:
    """A network on features."""

    backbone: Backbone
    residual: FeatureResidual
    """The network up to its residual."""
    settings: FeatureSettings
    origin: BackboneOrigin
    constants: FeatureConstants | None
    """None: they are still to be measured on normals."""


@dataclass(frozen=True)
class TrainedElsewhere:
    """A network that this package did not train, and what its checkpoint says about it."""

    path: Path
    vae: Vae | None
    """On pixels; None: the network is on features."""
    architecture: Architecture
    input_settings: InputSettings
    description: str
    """The kind of file, in words."""
    epochs: int = 1
    notes: CheckpointNotes | None = None
    """None: the file is not from `vae_edge.anomalib.Vae`."""
    constants: ScoringConstants | None = None
    """Constants of a network on pixels; None: they must still be measured on normals."""
    feature: TrainedFeatures | None = None
    """A network on features."""
    remarks: tuple[str, ...] = field(default=())
    """Sentences for the user."""

    def scores_as_device(self, scoring: ScoringSettings) -> bool:
        """Return whether this scoring gives an image the same score on a device as in training."""
        notes = self.notes
        if self.feature is not None:
            return notes is not None and notes.prepares_as_device and self.feature.constants is not None
        has_constants = self.constants is not None or not scoring.needs_normals
        return notes is not None and has_constants and notes.prepares_as_device and notes.scoring == scoring


def read_checkpoint(path: str | Path, *, input_range: InputRange | None = None) -> TrainedElsewhere:
    """Read a network that was trained in anomalib.

    Args:
        path: the checkpoint, or a bare state dict.
        input_range: the range of values that the network got for a pixel; None: what the file says, or otherwise the
            mean and deviation of ImageNet's images, as anomalib's models get them.

    Raises:
        InputError: the file does not exist, is not a checkpoint, is from another model or an unknown version, its
            tensors do not fit, or its images are not in colour: the message says which.
    """
    path = Path(path)
    content = load_inert(path)
    if CHECKPOINT_KEY in content:
        return _own(path, content, input_range)
    state = _state_dict(path, content)
    if is_ganomaly_layout(state):
        return _circulated(path, content, state, input_range)
    names = ", ".join(list(state)[:3]) or "none"
    raise InputError(
        f"{path} is a checkpoint of another model: its tensors are {names}, ...; expected one of "
        "vae_edge.anomalib.Vae, or the VAE in the layout of anomalib's GANomaly (encoder.fc_mu_logvar): train it with "
        "`from vae_edge.anomalib import Vae`"
    )


def _own(path: Path, content: Mapping[str, Any], input_range: InputRange | None) -> TrainedElsewhere:
    if input_range is not None:
        raise UsageError(f"{path} already records the range of its network's input values; leave out --input-range")
    said = content[CHECKPOINT_KEY]
    notes = read_notes(said, str(path))
    _check_channels(path, notes.architecture)
    state = _state_dict(path, content)
    vae, constants, feature = None, None, None
    try:
        if notes.feature is not None:
            feature = _features(path, notes.feature, notes.input_settings.image_size, state, said["constants"])
        else:
            vae = Vae.from_weights(notes.architecture, _below(state, WEIGHTS_PREFIX))
            constants = ScoringConstants.from_tensors(said["constants"]) if said["constants"] else None
            if constants is not None:
                Scorer(notes.scoring, constants, notes.input_settings)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the tensors in {path} do not fit its own notes ({reason}); save the checkpoint again"
        ) from error
    return TrainedElsewhere(
        path=path,
        vae=vae,
        architecture=notes.architecture,
        input_settings=notes.input_settings,
        description=f"an anomalib checkpoint of vae_edge.anomalib.Vae {notes.vae_edge_version}",
        epochs=_epochs(content),
        notes=notes,
        constants=constants,
        feature=feature,
    )


def _features(
    path: Path,
    notes: FeatureNotes,
    image_size: tuple[int, int],
    state: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
) -> TrainedFeatures:
    if notes.backbone is None:
        raise InputError(f"{path} was saved before its network was trained; expected one from after Engine.fit")
    backbone, network = Backbone(), FeatureVae(N_CHANNELS, notes.settings)
    backbone.load_state_dict(_below(state, BACKBONE_PREFIX))
    network.load_state_dict(_below(state, WEIGHTS_PREFIX))
    mean, deviation = (state[f"{MODEL_PREFIX}{name}"].float() for name in ("channel_mean", "channel_deviation"))
    residual = FeatureResidual(network.eval().convolutions(), mean, deviation).eval().requires_grad_(False)
    made = FeatureConstants.from_tensors(constants) if constants else None
    if made is not None:
        FeatureGraph(backbone, residual.vae, notes.settings, made, image_size)
    return TrainedFeatures(backbone, residual, notes.settings, notes.backbone, made)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names have this prefix, in float32, whatever the precision of the training."""
    return {
        name.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def read_notes(said: Any, name: str) -> CheckpointNotes:
    """Read what `vae_edge.anomalib.Vae` wrote besides its weights.

    Args:
        said: the value of `CHECKPOINT_KEY`.
        name: of the checkpoint, for an error.

    Raises:
        InputError: it is damaged, or has an unknown format.
    """
    try:
        raw = json.loads(said["notes"])
        version = raw["format"]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{name} is damaged: its notes cannot be read ({error}); save the checkpoint again") from error
    if version not in _FORMATS:
        raise InputError(
            f"{name} was written by vae-edge {raw.get('vae_edge_version', '?')} in the format {version}; expected the "
            f"format {' or '.join(map(str, _FORMATS))}: install that version of vae-edge, or train again with this one"
        )
    try:
        return make_record(CheckpointNotes, raw)
    except InputError as error:
        raise InputError(f"{name} is damaged: in its notes, {error}; save the checkpoint again") from error


def _circulated(
    path: Path, content: Mapping[str, Any], state: Mapping[str, Tensor], input_range: InputRange | None
) -> TrainedElsewhere:
    architecture, vae = from_ganomaly_layout(state)
    _check_channels(path, architecture)
    remarks = []
    if input_range is None:
        input_range = _saved_range(content)
        if input_range is None:
            input_range = IMAGENET
            remarks.append(
                f"{path.name} does not record the range of its network's input values; it is assumed to be the mean "
                "and deviation of ImageNet's images, as anomalib's models get them: if it was -1 to 1, pass "
                "--input-range symmetric"
            )
    return TrainedElsewhere(
        path=path,
        vae=vae,
        architecture=architecture,
        input_settings=InputSettings(Tiling.whole(*vae.image_size), Photometric.NONE, input_range),
        description="weights of the VAE that circulates for anomalib, in the layout of its GANomaly",
        epochs=_epochs(content),
        remarks=tuple(remarks),
    )


def _check_channels(path: Path, architecture: Architecture) -> None:
    if architecture.n_channels != 3:
        raise InputError(
            f"the network in {path} is for images of {architecture.n_channels} channel"
            f"{'s' if architecture.n_channels > 1 else ''}; expected 3, for RGB: train it on images in colour, a grey "
            "one may have three equal channels"
        )


def _epochs(content: Mapping[str, Any]) -> int:
    epoch = content.get("epoch")
    return epoch + 1 if isinstance(epoch, int) and epoch >= 0 else 1


def _saved_range(content: Mapping[str, Any]) -> InputRange | None:
    """Return the range of input values set by the pre-processor that anomalib 2.7 describes in a checkpoint."""
    config = content.get("anomalib_pre_processor_config")
    for each in _specs(config.get("transform") if isinstance(config, Mapping) else None):
        if str(each.get("class_path", "")).endswith(".Normalize"):
            arguments = each.get("init_args", {})
            try:
                return InputRange(mean=tuple(arguments["mean"]), deviation=tuple(arguments["std"]))
            except (KeyError, TypeError, ValueError):
                return None
    return None


def _specs(spec: Any) -> list[Mapping[str, Any]]:
    """Return a described transform and its parts."""
    if not isinstance(spec, Mapping):
        return []
    found = [spec]
    arguments = spec.get("init_args")
    inner = arguments.get("transforms") if isinstance(arguments, Mapping) else None
    for each in inner if isinstance(inner, (list, tuple)) else ():
        found += _specs(each)
    return found


def _state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = content.get("state_dict", content)
    tensors = (
        {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(f"{path} holds no tensors; expected a checkpoint of Lightning, or a state dict")
    return tensors


def load_inert(path: Path) -> dict[str, Any]:
    """Load what torch saved, as dictionaries and tensors on the CPU; no code in the file is executed.

    Raises:
        InputError: the file does not exist, or torch did not save it.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; expected a checkpoint or a state dict: check the name")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content = _load_with_placeholders(path)
    except Exception as error:  # a file of any kind may make the unpickler fail in any way
        raise _no_checkpoint(path, error) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}; expected a checkpoint of Lightning, or a state dict"
        )
    return content


def _load_with_placeholders(path: Path) -> Any:
    module: Any = types.ModuleType("inert_pickle")
    module.Unpickler = _InertUnpickler
    module.load = lambda file, **options: _InertUnpickler(file, **options).load()
    try:
        return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except Exception as error:  # as above
        raise _no_checkpoint(path, error) from error


def _no_checkpoint(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path} is not a checkpoint that torch saved ({reason}); copy it again or save it again")


class _Inert:
    """Replaces an object of a class, or the result of a function, that is not loaded."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Accept an item of a list."""

    def extend(self, values: Any) -> None:
        """Accept items of a list."""

    def add(self, value: Any) -> None:
        """Accept an item of a set."""


class _InertUnpickler(pickle.Unpickler):
    """Knows tensors and dictionaries; everything else becomes `_Inert`, so none of it is ever executed."""

    _KNOWN: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
        ("torch", "Size"): torch.Size,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few known classes and functions, or an inert one."""
        known = self._KNOWN.get((module, name))
        # A class of its own each time: nothing that the file does to one of them reaches another.
        return known if known is not None else type(name.rpartition(".")[2], (_Inert,), {})
