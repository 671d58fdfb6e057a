from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.listener import Listener
from vae_edge.records import make_record
from vae_edge.train.choice.photometric_choice import (
    PhotometricRanking,
    choose_photometric,
    forget_pilots,
    pilot_settings,
)
from vae_edge.train.choice.scoring_choice import ChoiceSet, paste_on
from vae_edge.train.data.report import DataTraits
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.model.input_settings import Photometric
from vae_edge.train.model.presets import Architecture

KINDS = tuple(Photometric)


def ranking(none: list[float], image: list[float], local: list[float]) -> PhotometricRanking:
    return PhotometricRanking(np.array([none, image, local]), np.full((3, 8), 0.5), KINDS)


class TestTheRanking:
    def test_the_best_on_average_is_chosen(self) -> None:
        found = ranking([0.6, 0.7, 0.65], [0.62, 0.7, 0.66], [0.8, 0.9, 0.86])
        assert found.chosen is Photometric.LOCAL
        assert found.sentence() == (
            "light: brightness and contrast normalized by the surroundings', AUROC 0.853 after a short training (none "
            "0.650, image 0.660)"
        )

    def test_of_equals_light_as_it_is_stays(self) -> None:
        assert ranking([0.5, 1.0], [1.0, 0.5], [0.75, 0.75]).chosen is Photometric.NONE

    def test_what_the_exposures_speak_for_stays_unless_another_way_is_clearly_better(self) -> None:
        def chosen(none: list[float], image: list[float]) -> Photometric:
            found = ranking(none, image, [0.5] * len(none))
            return dataclasses.replace(found, default=Photometric.IMAGE).chosen

        assert chosen([0.71, 0.80, 0.75], [0.70, 0.80, 0.75]) is Photometric.IMAGE
        assert chosen([0.91, 0.95, 0.93], [0.70, 0.75, 0.72]) is Photometric.NONE

    def test_all_are_recorded_best_first(self) -> None:
        records = ranking([0.6, 0.7], [0.5, 0.5], [0.8, 0.9]).records()
        assert [each.name for each in records] == ["local", "none", "image"]
        assert [each.behind for each in records] == pytest.approx([0, 0.2, 0.35])


def surfaces_under_a_lamp(n: int, seed: int, *, moving: bool) -> NDArray[np.uint8]:
    """A faint texture, and a lamp that stands elsewhere for each picture."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32].astype(np.float64)
    made = []
    for _ in range(n):
        y, x = random.uniform(-20, 52, 2) if moving else (16.0, 16.0)
        strength = random.uniform(60, 160) if moving else 100
        lamp = strength * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 900)
        made.append(60 + lamp + 6 * np.sin(rows / 1.5) * np.cos(columns / 1.5) + random.normal(0, 1.5, (32, 32)))
    values = np.clip(np.rint(np.stack(made)), 0, 255).astype(np.uint8)
    return np.repeat(values[..., None], 3, axis=3)


def specks_on(normals: NDArray[np.uint8]) -> ChoiceSet:
    """Faint dark specks, six on each picture one by one."""
    random = np.random.default_rng(0)
    images, strata, folds = [normals], [*(None for _ in normals)], [np.arange(len(normals)) % 2]
    labels: list[str | None] = list(strata)
    for kind in range(6):
        made = normals.copy()
        for image in made:
            row, column = random.integers(3, 26, 2)
            image[row : row + 3, column : column + 3] = np.clip(
                image[row : row + 3, column : column + 3].astype(int) - 12, 0, 255
            )
        images.append(made)
        labels += [f"speck {kind}"] * len(normals)
        folds.append(np.arange(len(normals)) % 2)
    return ChoiceSet(normals, np.concatenate(images), tuple(labels), np.concatenate(folds), "specks")


def settings(seed: int = 0, *, labelled: bool = False) -> TrainSettings:
    values = {
        "source": {"root": "nowhere"},
        "architecture": Architecture(n_features=4, latent_vec_size=8, height=32, width=32),
        "epochs": 150,
        "batch_size": 16,
        "accelerator": "cpu",
        "recipe": {"learning_rate": 2e-3, "schedule": "one-cycle"},
        "seed": seed,
        "photometric": None,
        "scoring": None,
        "choose_on_labels": labelled,
    }
    return make_record(TrainSettings, values)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_lamp_that_moves_is_evened_out_whatever_the_seed(seed: int, tmp_path: Path) -> None:
    normals = surfaces_under_a_lamp(60, seed, moving=True)
    told = Listener()
    asked = settings(seed, labelled=True)
    found = choose_photometric(asked, normals[:40], normals[40:], specks_on(normals[40:]), tmp_path, told)
    assert found.chosen is Photometric.LOCAL
    means = dict(zip(found.kinds, found.aurocs.mean(axis=1), strict=True))
    assert means[Photometric.LOCAL] > means[Photometric.NONE] + 0.05
    assert [stage for stage in told.stages if stage.startswith("trying")] == [
        f"trying light {number} of 3 ({kind})" for number, kind in enumerate(KINDS, 1)
    ]


@pytest.mark.parametrize(("light_spread", "default"), [(0.2, Photometric.NONE), (0.9, Photometric.IMAGE)])
def test_very_unequal_light_speaks_for_evening_it_out(
    light_spread: float, default: Photometric, tmp_path: Path
) -> None:
    normals = surfaces_under_a_lamp(24, 0, moving=False)
    traits = DataTraits(alignment=0.0, light_spread=light_spread)
    brief = settings().model_copy(update={"epochs": 1, "traits": traits})
    found = choose_photometric(brief, normals[:16], normals[16:], paste_on(normals[16:], seed=0), tmp_path, Listener())
    assert found.default is default


def test_evening_out_by_the_surroundings_is_tried_only_where_labels_judge(tmp_path: Path) -> None:
    normals = surfaces_under_a_lamp(24, 0, moving=False)
    brief = settings().model_copy(update={"epochs": 1})
    found = choose_photometric(brief, normals[:16], normals[16:], paste_on(normals[16:], seed=0), tmp_path, Listener())
    assert found.kinds == (Photometric.NONE, Photometric.IMAGE)


@pytest.mark.parametrize(("epochs", "n_pilots", "expected"), [(150, 2, 45), (150, 3, 30), (1000, 2, 67), (1, 2, 1)])
def test_all_short_trainings_together_are_shorter_than_the_one_they_are_for(
    epochs: int, n_pilots: int, expected: int
) -> None:
    asked = settings().model_copy(update={"epochs": epochs})
    pilot = pilot_settings(asked, 40, n_pilots)
    assert pilot.epochs == expected  # Of three steps.
    assert n_pilots * expected <= 0.6 * epochs or expected == 1


def test_what_was_tried_is_not_tried_again_and_is_forgotten_when_told(tmp_path: Path) -> None:
    normals = surfaces_under_a_lamp(24, 0, moving=False)
    brief = settings(labelled=True).model_copy(update={"epochs": 1})
    choice_set = paste_on(normals[16:], seed=0)
    first = choose_photometric(brief, normals[:16], normals[16:], choice_set, tmp_path, Listener())
    again = Listener()
    second = choose_photometric(brief, normals[:16], normals[16:], choice_set, tmp_path, again)
    np.testing.assert_array_equal(first.aurocs, second.aurocs)
    assert not [stage for stage in again.stages if stage.startswith("trying")]
    pilots = tmp_path / "checkpoints" / "pilots"
    assert {path.name for path in pilots.iterdir()} == {str(kind) for kind in KINDS}
    forget_pilots(tmp_path)
    assert not pilots.exists()
