"""Checkpoints in the form that `vae_edge.anomalib.Vae` writes, made without anomalib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.train.random_backbones import random_weights
from tests.train.tiny_models import make_vae, noise
from vae_edge.manifest import BackboneOrigin
from vae_edge.train.anomalib.checkpoint import (
    BACKBONE_PREFIX,
    CHECKPOINT_KEY,
    MODEL_PREFIX,
    WEIGHTS_PREFIX,
    CheckpointNotes,
    FeatureNotes,
)
from vae_edge.train.features.backbone_weights import backbone_from
from vae_edge.train.features.graph import N_CHANNELS, FeatureGraph, FeatureMaps, FeatureResidual
from vae_edge.train.features.network import FeatureVae
from vae_edge.train.features.settings import FeatureSettings, MapSource
from vae_edge.train.features.table import make_table
from vae_edge.train.features.training import fit_constants, residuals_of
from vae_edge.train.model.anomaly_graph import ScoringConstants
from vae_edge.train.model.input_settings import IMAGENET, SYMMETRIC, InputSettings, Photometric, Tiling
from vae_edge.train.model.network import Vae
from vae_edge.train.model.presets import Architecture
from vae_edge.train.model.scoring import NORMALIZED_SCORING
from vae_edge.train.model.scoring_constants import fit_scoring_constants
from vae_edge.train.run.records import Role

ARCHITECTURE = Architecture(n_features=4, latent_vec_size=8, height=32, width=32)
"""Of `make_vae`."""


ORIGIN = BackboneOrigin(
    name="efficientnet-lite0", source="lite0.pth", licence="unknown", sha256="0" * 64, size_bytes=100
)
"""Of a backbone with random weights."""


def make_notes(**values: Any) -> CheckpointNotes:
    """Return the notes of a tiny network that gets ImageNet's range and evened light."""
    given: dict[str, Any] = {
        "vae_edge_version": "0.1.0",
        "architecture": ARCHITECTURE,
        "tiling": Tiling.whole(32, 32),
        "photometric": Photometric.IMAGE,
        "input_range": IMAGENET,
        "scoring": NORMALIZED_SCORING,
        "false_alarm_rate": 0.1,
        "pixel_false_positive_rate": 0.002,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "prepares_as_device": True,
    }
    return CheckpointNotes(**given | values)


def make_constants(notes: CheckpointNotes, vae: Vae | None = None) -> ScoringConstants:
    """Measure constants on noise."""
    input_settings = InputSettings(notes.tiling, notes.photometric, notes.input_range)
    return fit_scoring_constants(
        vae or make_vae(), notes.scoring, noise(6, *input_settings.image_size, seed=5), input_settings=input_settings
    )


def save_own(
    path: Path,
    notes: CheckpointNotes | None = None,
    *,
    vae: Vae | None = None,
    constants: ScoringConstants | None = None,
    roles: Mapping[str, Role] | None = None,
    beside: Mapping[str, object] | None = None,
) -> Path:
    """Save a checkpoint as Lightning and the model's hook leave it.

    Args:
        path: of the file.
        notes: None: those of `make_notes`.
        vae: None: that of `make_vae`.
        constants: None: there are none in the checkpoint.
        roles: into the notes, what the images were used for.
        beside: further keys, such as `epoch`, or other values of those that are there anyway.
    """
    notes = notes or make_notes()
    if roles is not None:
        notes = notes.model_copy(update={"roles": dict(roles)})
    state = {f"{WEIGHTS_PREFIX}{name}": tensor for name, tensor in (vae or make_vae()).state_dict().items()}
    said = {"notes": notes.model_dump_json(), "constants": {} if constants is None else constants.tensors()}
    torch.save({"epoch": 4, "state_dict": state, CHECKPOINT_KEY: said, **(beside or {})}, path)
    return path


def save_features(
    path: Path,
    *,
    n_constants: int = 6,
    origin: BackboneOrigin | None = ORIGIN,
    roles: Mapping[str, Role] | None = None,
) -> tuple[Path, FeatureGraph | None]:
    """Save a checkpoint of a network on features, 64 x 64, as Lightning and the model's hook leave it.

    Args:
        path: of the file.
        n_constants: pictures of noise that constants are measured on; 0: there are none in the checkpoint.
        origin: of the backbone; None: the network was not trained.
        roles: what the images were used for.

    Returns:
        The file, and the graph that it is of where it has constants.
    """
    size, settings = (64, 64), FeatureSettings(n_hidden=16, latent_vec_size=4)
    backbone = backbone_from(random_weights(), "random")
    torch.manual_seed(1)
    network = FeatureVae(N_CHANNELS, settings).eval()
    table = make_table(FeatureMaps(backbone, *size).eval(), noise(max(n_constants, 2), *size, seed=5))
    mean, deviation = table.channel_statistics(range(len(table)))
    residual = FeatureResidual(network.convolutions(), mean, deviation).eval()
    source = MapSource.FEATURES
    residuals = {source: residuals_of(residual, table, range(len(table)))}
    constants = fit_constants(residuals, settings, {source: residual})
    notes = make_notes(
        format=2,
        tiling=Tiling.whole(*size),
        photometric=Photometric.NONE,
        input_range=SYMMETRIC,
        feature=FeatureNotes(settings=settings, backbone=origin),
        roles=dict(roles or {}),
    )
    state = {f"{WEIGHTS_PREFIX}{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {f"{BACKBONE_PREFIX}{name}": tensor for name, tensor in backbone.state_dict().items()}
    state |= {f"{MODEL_PREFIX}channel_mean": mean, f"{MODEL_PREFIX}channel_deviation": deviation}
    said = {"notes": notes.model_dump_json(), "constants": constants.tensors() if n_constants else {}}
    torch.save({"epoch": 4, "state_dict": state, CHECKPOINT_KEY: said}, path)
    return path, FeatureGraph(backbone, residual.vae, settings, constants, size) if n_constants else None
