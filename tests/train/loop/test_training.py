"""Everything that a recipe adds is in the checkpoint, so that an interrupted training ends with the same weights."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.train.tiny_models import surfaces
from vae_edge.records import make_record
from vae_edge.train.loop.checkpoints import TrainingInterruptedError, load_checkpoint, read_state
from vae_edge.train.loop.settings import TrainingOutcome, TrainSettings
from vae_edge.train.loop.trainer import StepNotes
from vae_edge.train.loop.training import fit_vae
from vae_edge.train.model.input_settings import InputSettings, Photometric, Tiling
from vae_edge.train.model.network import Vae, count_flops
from vae_edge.train.model.presets import Architecture, Recipe

TILING = Tiling(image_height=48, image_width=56, tile_height=32, tile_width=32)
EVERYTHING = {
    "learning_rate": 2e-3,
    "schedule": "one-cycle",
    "averaging": 0.9,
    "kl_warmup": 0.5,
    "augmentation": ("flips", "light"),
}
EPOCHS = 4


def settings(**recipe: object) -> TrainSettings:
    given = {
        "source": {"root": "nowhere"},
        "architecture": Architecture(n_features=4, latent_vec_size=8, height=32, width=32),
        "tiling": TILING,
        "recipe": recipe,
        "epochs": EPOCHS,
        "batch_size": 16,
        "accelerator": "cpu",
    }
    return make_record(TrainSettings, given)


def images(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return surfaces(n, TILING.image_height, TILING.image_width, seed=seed, light=25)


def fit(
    folder: Path,
    recipe: dict[str, object],
    progress: StepNotes | None = None,
    input_settings: InputSettings | None = None,
) -> tuple[Vae, TrainingOutcome]:
    input_settings = input_settings or InputSettings(TILING, Photometric.LOCAL)
    fitted = fit_vae(settings(**recipe), images(12), images(4, seed=1), folder, progress, input_settings=input_settings)
    assert fitted is not None
    return fitted


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def equal(one: Vae, other: Vae) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("at_step", [1, 4, 7, 11])
def test_with_every_part_of_a_recipe_an_interrupted_training_ends_with_the_same_weights(
    at_step: int, tmp_path: Path
) -> None:
    whole, outcome = fit(tmp_path / "whole", EVERYTHING)

    def interrupt(done: int, total: int, note: str) -> None:
        assert total == 3 * EPOCHS
        if done == at_step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterruptedError):
        fit(tmp_path / "run", EVERYTHING, interrupt)
    steps: list[int] = []
    resumed, again = fit(tmp_path / "run", EVERYTHING, lambda done, total, note: steps.append(done))
    # It goes on with a whole epoch; the first one is always kept, later ones where saving takes little of the time.
    assert steps[0] % 3 == 1
    assert (4 if at_step > 3 else 1) <= steps[0] <= at_step
    assert equal(resumed, whole)
    assert again.best_held_out_loss == outcome.best_held_out_loss
    assert again.fit_loss == outcome.fit_loss


@pytest.mark.parametrize("name", list(EVERYTHING))
def test_every_part_of_the_recipe_has_a_part_in_the_weights(name: str, tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", {})
    with_it, _ = fit(tmp_path / "with", {name: EVERYTHING[name]})
    assert not equal(plain, with_it)


def test_the_running_average_is_in_the_checkpoint_and_its_weights_are_kept(tmp_path: Path) -> None:
    fit(tmp_path, {"averaging": 0.9})
    state = state_of(tmp_path)
    averages = {name.removeprefix("average.module."): t for name, t in state.items() if "average.module." in name}
    kept = read_state(tmp_path / "checkpoints" / "last.ckpt")["best_weights"]
    assert kept.keys() == averages.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in averages.items())
    assert not torch.equal(state["vae.mean_head.weight"], averages["mean_head.weight"])
    assert int(state["average.n_averaged"]) == 3 * EPOCHS


def test_without_an_average_the_weights_themselves_are_kept(tmp_path: Path) -> None:
    fit(tmp_path, {})
    state = state_of(tmp_path)
    assert not [name for name in state if name.startswith("average")]
    kept = read_state(tmp_path / "checkpoints" / "last.ckpt")["best_weights"]
    assert all(torch.equal(tensor, state[f"vae.{name}"]) for name, tensor in kept.items())


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_the_rate_follows_the_schedule_to_its_end(schedule: str, tmp_path: Path) -> None:
    recipe = {"schedule": schedule, "learning_rate": 1e-3}
    fit(tmp_path, recipe)
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    rate = checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]
    n_steps = 3 * EPOCHS
    assert rate == pytest.approx(1e-3 * make_record(Recipe, recipe).rate_at(n_steps, n_steps), abs=1e-9)
    assert (rate == pytest.approx(1e-3)) == (schedule == "constant")


def test_the_network_sees_light_as_the_graph_will_show_it(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "none", {}, input_settings=InputSettings(TILING))
    even, _ = fit(tmp_path / "local", {}, input_settings=InputSettings(TILING, Photometric.LOCAL))
    assert not equal(plain, even)


def test_an_image_costs_as_many_runs_of_the_network_as_it_has_tiles(tmp_path: Path) -> None:
    vae, outcome = fit(tmp_path, {})
    assert TILING.n_tiles == 4
    assert outcome.flops == 4 * count_flops(vae)
    assert vae.image_size == (32, 32)
    assert outcome.epochs_run == EPOCHS
