"""What is compared: trainings, and scorings of one trained network. Does not load torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vae_edge.decision import fit_image_threshold
from vae_edge.records import Record
from vae_edge.text_enum import TextEnum
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.settings import Calibration, SizeRequest, TrainSettings
from vae_edge.train.model.input_settings import Photometric
from vae_edge.train.model.presets import PRESETS, REFERENCE_RECIPE, SINGLE, make_architecture, resolve_precision
from vae_edge.train.model.scoring import MSE_SCORING, NORMALIZED_SCORING, Latent, Level, Pooling, ScoringSettings
from vae_edge.train.run.metrics import Metrics

PLAIN_SIDE = 128
"""Side of the full images that the plain network sees."""

PLAIN_EPOCHS = 60
"""Epochs of the plain network, as many as in the earlier figures of the plain scoring."""

TILE_SIDE = 64
"""Side of the tiles if the choice was against tiles."""


class Training(TextEnum):
    """The networks that are trained for each image set and seed."""

    AUTO = "auto"
    """The defaults of vae-train: everything is chosen."""
    PLAIN = "plain"
    """The plain VAE: full images of 128 x 128, the published recipe, light not normalized."""
    OTHER_SIZE = "other-size"
    """As chosen, but full images of 128 x 128 instead of tiles; or tiles if full images were chosen."""
    OTHER_LIGHT = "other-light"
    """As chosen, but light not normalized; if that was chosen, normalized by the image's own."""
    RECIPE = "recipe"
    """As chosen, but the published recipe: a constant learning rate of 2e-4."""


def settings_of(
    training: Training,
    data: Path,
    preset: str,
    seed: int,
    *,
    epochs: int | None,
    photometric: Photometric = Photometric.NONE,
    scoring: ScoringSettings | None = None,
    is_whole: bool = False,
) -> TrainSettings:
    """Return the settings of one training.

    Args:
        training: which one.
        data: the image set.
        preset: of the network.
        seed: of everything random, the split of the normals included.
        epochs: None: the default.
        photometric: what the automatic run chose; for the others.
        scoring: what the automatic run chose; for the others.
        is_whole: whether the automatic run chose full images; for the others.
    """
    chosen = PRESETS[preset]
    auto = TrainSettings(
        source=DataSource(root=str(data)),
        network=chosen.network,
        architecture=make_architecture(preset),
        size=SizeRequest(),
        photometric=None,
        scoring=None,
        recipe=chosen.recipe,
        seed=seed,
        epochs=epochs,
        calibration=Calibration.SPLIT,
        precision=resolve_precision(chosen.precision, "auto"),
    )
    tiles = SizeRequest(tiles=TILE_SIDE)
    whole = SizeRequest(image=(PLAIN_SIDE, PLAIN_SIDE), tiles="none")
    other = Photometric.IMAGE if photometric is Photometric.NONE else Photometric.NONE
    changes: dict[Training, dict[str, object]] = {
        Training.AUTO: {},
        Training.PLAIN: {
            "size": whole,
            "recipe": REFERENCE_RECIPE,
            "photometric": Photometric.NONE,
            "scoring": NORMALIZED_SCORING,
            "precision": SINGLE,
            "epochs": epochs or PLAIN_EPOCHS,
        },
        Training.OTHER_SIZE: {"size": tiles if is_whole else whole, "photometric": photometric, "scoring": scoring},
        Training.OTHER_LIGHT: {"photometric": other, "scoring": scoring},
        Training.RECIPE: {"recipe": REFERENCE_RECIPE, "photometric": photometric, "scoring": scoring},
    }
    return auto.model_copy(update=changes[training])


def scorings_of(chosen: ScoringSettings) -> dict[str, ScoringSettings]:
    """Return the scorings to measure the automatic run's network with, by name: the chosen one with parts off."""

    def with_maps(**change: object) -> ScoringSettings:
        maps = tuple(dict.fromkeys(each.model_copy(update=change) for each in chosen.maps))
        return chosen.model_copy(update={"maps": maps})

    result = {
        "chosen": chosen,
        "no smoothing": with_maps(smoothing_sigma=0.0),
        "no division by the image's own residual": with_maps(level=Level.NONE),
        "no normalization per pixel": with_maps(per_pixel=False),
        "mean instead of the largest values": with_maps(pooling=Pooling.MEAN),
    }
    if chosen.map_sigma:
        result["no smoothing of the map"] = chosen.model_copy(update={"map_sigma": 0.0})
    if len(chosen.maps) > 1:
        result |= {f"only {each}": chosen.model_copy(update={"maps": (each,)}) for each in chosen.maps}
    result |= {
        "with the latents' distance": chosen.model_copy(update={"latent": Latent.DISTANCE}),
        "with the KL term": chosen.model_copy(update={"latent": Latent.KL}),
        "normalized": NORMALIZED_SCORING,
        "mse (the plain scoring)": MSE_SCORING,
    }
    return result


RATES = (0.01, 0.05)
"""Shares of good images that a threshold may call anomalous."""


class AtRate(Record):
    """What a threshold from held-out normals finds in the test images."""

    rate: float
    """Asked for."""
    in_force: float
    """If there are too few normals for it, the smallest rate that they support."""
    recall: float
    """Share of the defective images above the threshold."""
    false_alarm_rate: float
    """Share of the good ones above it."""


def at_rates(held_out: NDArray[Any], labels: NDArray[np.bool_], scores: NDArray[Any]) -> tuple[AtRate, ...]:
    """Return what the conformal thresholds for `RATES` find.

    Args:
        held_out: float [n], scores of normals that the model was not trained on.
        labels: bool [m], whether each test image is defective; some are and some are not.
        scores: float [m], of the test images.
    """
    found = []
    for rate in RATES:
        threshold, in_force = fit_image_threshold(held_out, rate)
        above = scores > threshold
        found.append(
            AtRate(
                rate=rate,
                in_force=in_force,
                recall=float(above[labels].mean()),
                false_alarm_rate=float(above[~labels].mean()),
            )
        )
    return tuple(found)


class Row(Record):
    """One method's figures on one image set with one seed."""

    name: str
    metrics: Metrics
    at_rates: tuple[AtRate, ...] = ()
    """Figures that are compared with other tools."""


class CaseResult(Record):
    """Everything measured on one image set with one seed."""

    data: str
    preset: str
    seed: int
    model: str
    """The kind of network, and image and tile sizes, in words."""
    n_tiles: int
    gflop: float = Field(ge=0)
    n_parameters: int
    photometric: str
    scoring: str
    because: tuple[str, ...]
    """The explanations of the choices."""
    training_s: float
    wall_s: float | None = None
    """From image files to a complete run, calibrated and measured; None: its training was interrupted."""
    images_per_s: float
    """Training speed, in windows of images."""
    rows: tuple[Row, ...]
    hindsight: dict[str, float]
    """Image AUROC of every composition on the test images, with the same network."""
    versions: dict[str, str]
