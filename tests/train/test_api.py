"""`vae_edge.train.fit`: a user's loggers, callbacks and Trainer arguments work, and watching changes no bit."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy

import vae_edge.train
from tests.train.listener import Listener
from vae_edge.cli.main import invoke
from vae_edge.errors import BundleError, InputError, UsageError
from vae_edge.platform.atomic import sha256_file
from vae_edge.train import DataSource, RunFolder, TrainSettings, fit, resume_run
from vae_edge.train.loop.checkpoints import TrainingInterruptedError, load_checkpoint, read_state
from vae_edge.train.loop.settings import SizeRequest
from vae_edge.train.model.presets import Architecture, Network
from vae_edge.train.model.scoring import parse_scoring
from vae_edge.train.run.folder import CHECKPOINT, MODEL_FILE, SCORING_FILE, SETTINGS_FILE
from vae_edge.train.sample import SampleSettings, write_sample_set
from vae_edge.train.summary import print_result

TINY: dict[str, Any] = {
    "architecture": Architecture(n_features=4, latent_vec_size=8, height=32, width=32),
    "batch_size": 8,
    "accelerator": "cpu",
    "calibration": "split",
    "photometric": "none",
    "scoring": "normalized",
    "precision": "32-true",
}
EPOCHS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=2, n_test_per_defect=1)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run to which nothing was attached."""
    return fit(data, tmp_path_factory.mktemp("runs") / "plain", max_epochs=EPOCHS, **TINY)


def weights_of(run: RunFolder) -> tuple[str, str]:
    return sha256_file(run.folder / MODEL_FILE), sha256_file(run.folder / SCORING_FILE)


class Memory(Logger):
    """A logger of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.append((step, dict(metrics)))

    def log_hyperparams(self, params: dict[str, Any] | argparse.Namespace, *args: Any, **kwargs: Any) -> None:
        pass

    def values(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.seen if name in metrics]


class Counter(Callback):
    """Counts epochs, remembers the smallest loss as NumPy gives it, and draws random numbers all the while."""

    def __init__(self) -> None:
        self.epochs = 0
        self.fits = 0
        self.best: Any = np.float64(np.inf)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fits += 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.rand(7)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs += 1
        self.best = np.minimum(self.best, float(trainer.callback_metrics["held_out_loss"]))

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs, self.best = state_dict["epochs"], state_dict["best"]


class Stop(Callback):
    """Wants the training to stop at a step."""

    def __init__(self, at_step: int) -> None:
        self.at_step = at_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.at_step


def test_loggers_and_callbacks_that_watch_change_no_bit(plain: RunFolder, data: Path, tmp_path: Path) -> None:
    memory, counter = Memory(), Counter()
    keeper = ModelCheckpoint(tmp_path / "kept", monitor="held_out_loss", save_top_k=2, save_last=True)
    run = fit(
        data,
        tmp_path / "run",
        logger=[memory, CSVLogger(tmp_path / "mine", name="csv"), TensorBoardLogger(tmp_path / "mine", name="tb")],
        callbacks=[counter, keeper, LearningRateMonitor(), EarlyStopping("held_out_loss", patience=100)],
        max_epochs=EPOCHS,
        log_every_n_steps=1,
        num_sanity_val_steps=1,
        profiler="simple",
        default_root_dir=tmp_path,
        **TINY,
    )
    assert weights_of(run) == weights_of(plain)
    assert run.metrics == plain.metrics
    assert run.record.training.ended_by == "epochs"
    # What the run logs goes to the user's loggers too, and what the user's callbacks log.
    assert len(memory.values("held_out_loss")) == len(memory.values("fit_loss")) == EPOCHS
    assert len(memory.values("lr-Adam")) == EPOCHS * 2
    assert memory.values("lr-Adam")[0] > memory.values("lr-Adam")[-1]
    assert "held_out_loss" in (tmp_path / "mine" / "csv" / "version_0" / "metrics.csv").read_text()
    assert list((tmp_path / "mine" / "tb" / "version_0").glob("events.*"))
    assert "held_out_loss" in (run.folder / "logs" / "csv" / "version_0" / "metrics.csv").read_text()
    assert (counter.fits, counter.epochs) == (1, EPOCHS)
    assert counter.best <= run.record.training.best_held_out_loss
    # ModelCheckpoint's own files are whole checkpoints, and no code runs when they are read.
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert len(kept) == 3
    assert "last.ckpt" in kept
    content = load_checkpoint(Path(keeper.best_model_path))
    assert {"ModelCheckpoint", "Counter", "EarlyStopping"} <= {name.split("{")[0] for name in content["callbacks"]}
    recorded = run.record.settings
    assert recorded.attached == {
        "logger": "Memory, CSVLogger, TensorBoardLogger",
        "callbacks": "Counter, ModelCheckpoint, LearningRateMonitor, EarlyStopping",
    }
    assert recorded.trainer["log_every_n_steps"] == 1


def test_a_callback_finds_the_users_logger_first_and_checkpoints_lie_beside_its_files(
    data: Path, tmp_path: Path
) -> None:
    found: list[Logger | None] = []

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found.append(trainer.logger)

    mine = CSVLogger(tmp_path / "mine", name="csv")
    fit(data, tmp_path / "run", logger=mine, callbacks=[Look(), ModelCheckpoint()], max_epochs=1, **TINY)
    assert found == [mine]
    assert list((tmp_path / "mine" / "csv" / "version_0" / "checkpoints").glob("*.ckpt"))


def test_logger_false_writes_no_logs(plain: RunFolder, data: Path, tmp_path: Path) -> None:
    run = fit(data, tmp_path / "run", logger=False, max_epochs=EPOCHS, **TINY)
    assert not (run.folder / "logs").exists()
    assert weights_of(run) == weights_of(plain)


def test_early_stopping_ends_the_run_and_it_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No loss is this small, so the second epoch without an improvement is the last.
    stopping = EarlyStopping("held_out_loss", min_delta=1e6, patience=2)
    run = fit(data, tmp_path / "run", callbacks=stopping, max_epochs=50, **TINY)
    outcome = run.record.training
    assert (outcome.ended_by, outcome.epochs_run, outcome.epochs_planned) == ("callback", 3, 50)
    assert RunFolder.open(run.folder).record.training.ended_by == "callback"
    print_result(run)
    assert "3 epochs (stopped by a callback)" in capsys.readouterr().out


def test_what_stops_in_the_middle_of_an_epoch_leaves_a_whole_run(data: Path, tmp_path: Path) -> None:
    run = fit(data, tmp_path / "run", callbacks=Stop(3), max_epochs=50, **TINY)
    assert (run.record.training.ended_by, run.record.training.epochs_run) == ("callback", 2)
    later = fit(data, tmp_path / "later", callbacks=Stop(3), max_epochs=50, min_epochs=5, **TINY)
    assert (later.record.training.ended_by, later.record.training.epochs_run) == ("callback", 5)
    clock = fit(data, tmp_path / "clock", callbacks=Timer(timedelta(milliseconds=20)), max_epochs=1000, **TINY)
    assert clock.record.training.ended_by == "callback"


def test_a_time_of_the_trainer_is_the_settings_and_ends_the_run_by_time(data: Path, tmp_path: Path) -> None:
    run = fit(data, tmp_path / "run", max_time=timedelta(milliseconds=5), callbacks=Counter(), max_epochs=1000, **TINY)
    assert run.record.training.ended_by == "time"
    assert run.record.settings.max_time_minutes == pytest.approx(5e-3 / 60)


def test_a_callback_that_raises_leaves_an_unfinished_run_that_can_go_on(
    plain: RunFolder, data: Path, tmp_path: Path
) -> None:
    class Broken(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fit(data, tmp_path / "run", callbacks=Broken(), max_epochs=EPOCHS, **TINY)
    with pytest.raises(BundleError, match="not finished"):
        RunFolder.open(tmp_path / "run")
    with pytest.raises(UsageError, match=r"with callbacks \(Broken\).*callbacks=\.\.\.\), or with callbacks=\[\]"):
        resume_run(tmp_path / "run")
    assert invoke(["--resume", str(tmp_path / "run")], command="train") == 2
    assert weights_of(resume_run(tmp_path / "run", callbacks=[])) == weights_of(plain)


def test_a_training_that_a_callback_stops_before_it_begins_says_so(data: Path, tmp_path: Path) -> None:
    class Never(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = True

    with pytest.raises(InputError, match="stopped the training before the end of its first epoch"):
        fit(data, tmp_path / "run", callbacks=Never(), max_epochs=EPOCHS, **TINY)


def test_an_interrupted_run_goes_on_with_its_callbacks_state_and_its_arguments(data: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"max_epochs": 6, "gradient_clip_val": 0.05, "accumulate_grad_batches": 2}

    def callbacks(folder: str) -> list[Any]:
        return [Counter(), ModelCheckpoint(tmp_path / folder, monitor="held_out_loss", save_top_k=-1)]

    whole = fit(data, tmp_path / "whole", callbacks=callbacks("kept"), **values, **TINY)
    without = fit(data, tmp_path / "without", max_epochs=6, **TINY)
    assert weights_of(whole) != weights_of(without)
    with pytest.raises(TrainingInterruptedError, match=r"to continue: vae_edge\.train\.resume_run\(.*, callbacks="):
        fit(data, tmp_path / "run", callbacks=callbacks("again"), watcher=Listener("training", 10), **values, **TINY)
    done = int(read_state(tmp_path / "run" / CHECKPOINT)["epochs_run"])
    assert 1 <= done <= 4
    with pytest.raises(UsageError, match=r"gradient_clip_val is 1\.0, but the run was started with 0\.05"):
        resume_run(tmp_path / "run", callbacks=callbacks("again"), gradient_clip_val=1.0)
    with pytest.raises(UsageError, match="epochs is 9, but the run was started with 6"):
        resume_run(tmp_path / "run", callbacks=callbacks("again"), max_epochs=9)
    counter, keeper = callbacks("again")
    memory = Memory()
    resumed = resume_run(tmp_path / "run", callbacks=[counter, keeper], logger=memory, log_every_n_steps=1)
    assert weights_of(resumed) == weights_of(whole)
    assert counter.epochs == 6
    assert type(counter.best) is not float or counter.best < np.inf
    assert len(keeper.best_k_models) == 6
    assert len(memory.values("held_out_loss")) == 6 - done
    assert resumed.record.settings.trainer == {
        "gradient_clip_val": 0.05,
        "accumulate_grad_batches": 2,
        "log_every_n_steps": 1,
    }
    assert resumed.record.settings.attached["logger"] == "Memory"


def test_a_state_that_could_run_code_when_read_is_refused_before_it_is_written(data: Path, tmp_path: Path) -> None:
    class Keeps(Callback):
        def __init__(self, value: object) -> None:
            self.value = value

        def state_dict(self) -> dict[str, Any]:
            return {"inside": [self.value]}

    with pytest.raises(InputError, match=r"callbacks\.\S*Keeps\.inside .* is a pathlib\.\S*Path; expected numbers"):
        fit(data, tmp_path / "run", callbacks=Keeps(Path("x")), max_epochs=1, **TINY)
    with pytest.raises(BundleError, match="not finished"):
        RunFolder.open(tmp_path / "run")


def test_a_checkpoint_plugin_writes_all_checkpoints_but_the_runs_own(
    plain: RunFolder, data: Path, tmp_path: Path
) -> None:
    class Own(TorchCheckpointIO):
        written: list[str] = []  # noqa: RUF012 - one for all, as the test wants it

        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
            self.written.append(Path(path).name)
            super().save_checkpoint(checkpoint, path, storage_options)

    keeper = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    run = fit(data, tmp_path / "run", callbacks=keeper, plugins=[Own()], max_epochs=EPOCHS, **TINY)
    assert Own.written == [f"epoch={epoch}.ckpt" for epoch in range(EPOCHS)]
    assert weights_of(run) == weights_of(plain)
    assert run.record.settings.attached["plugins"] == "Own"
    later = ModelCheckpoint(tmp_path / "later", filename="{epoch}", save_top_k=-1)
    fit(data, tmp_path / "background", callbacks=later, plugins=AsyncCheckpointIO(), max_epochs=2, **TINY)
    assert load_checkpoint(tmp_path / "later" / "epoch=1.ckpt")["epoch"] == 1


def test_the_learning_rate_ends_at_nothing_whatever_an_epoch_is_cut_to(data: Path, tmp_path: Path) -> None:
    for name, n_steps, arguments in (
        ("limited", 6, {"limit_train_batches": 1}),
        ("share", 6, {"limit_train_batches": 0.5}),
        ("accumulated", 6, {"accumulate_grad_batches": 2}),
        ("scheduled", 2 * 2 + 4, {"callbacks": GradientAccumulationScheduler({0: 1, 2: 2})}),
    ):
        fit(data, tmp_path / name, max_epochs=6, **arguments, **TINY)
        content = load_checkpoint(tmp_path / name / CHECKPOINT)
        assert content["global_step"] == n_steps, name
        assert content["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9), name


def test_callbacks_are_for_the_deployed_network_and_what_decides_the_weights_for_all(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[dict[str, Any]] = []

    class Remembering(Trainer):
        def __init__(self, **arguments: Any) -> None:
            trainers.append(arguments)
            super().__init__(**arguments)

    monkeypatch.setattr("vae_edge.train.loop.trainer.Trainer", Remembering)
    counter, listener = Counter(), Listener()
    values = TINY | {"calibration": "cross", "folds": 2}
    fit(
        data,
        tmp_path / "run",
        callbacks=counter,
        watcher=listener,
        max_epochs=1,
        gradient_clip_val=0.5,
        num_sanity_val_steps=1,
        **values,
    )
    assert counter.fits == 1
    assert [each["gradient_clip_val"] for each in trainers] == [0.5] * 3
    assert [each["num_sanity_val_steps"] for each in trainers] == [1, 0, 0]
    assert listener.heard("Counter: used for the training of the deployed network, not")


def test_a_progress_bar_among_the_callbacks_is_shown(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(data, tmp_path / "run", callbacks=TQDMProgressBar(), max_epochs=1, **TINY)
    captured = capsys.readouterr()
    assert "Epoch 0" in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        ({"max_epochs": 7}, {"epochs": 7}),
        ({"max_epochs": None}, {"epochs": None}),
        ({"max_time": "00:00:30:00"}, {"max_time_minutes": 30}),
        ({"max_time": {"hours": 1}}, {"max_time_minutes": 60}),
        ({"devices": [1]}, {"devices": "1,"}),
        ({"devices": [0, 1], "num_nodes": 2}, {"devices": "0,1", "num_nodes": 2}),
        ({"precision": 32}, {"precision": "32"}),
        ({"precision": "auto", "accelerator": "mps", "preset": "reference"}, {"precision": "auto"}),
        ({"precision": "bf16-mixed"}, {"precision": "bf16-mixed", "network": None}),
        ({"precision": "bf16-mixed", "preset": "both"}, {"precision": "bf16-mixed", "network": Network.BOTH}),
        ({"scoring": "mse"}, {"scoring": parse_scoring("mse")}),
        ({"scoring": "auto", "photometric": "auto"}, {"scoring": None, "photometric": None}),
        ({"size": {"image": (64, 96), "tiles": 32}}, {"size": SizeRequest(image=(64, 96), tiles=32)}),
        ({"architecture": TINY["architecture"]}, {"size": None, "architecture": TINY["architecture"]}),
        ({"limit_train_batches": np.int64(3)}, {"trainer": {"limit_train_batches": 3}}),
        ({"default_root_dir": Path("x")}, {"trainer": {"default_root_dir": "x"}}),
        ({"deterministic": "warn"}, {"trainer": {"deterministic": "warn"}}),
        ({"strategy": SingleDeviceStrategy("cpu")}, {"trainer": {}, "attached": {"strategy": "SingleDeviceStrategy"}}),
    ],
)
def test_an_argument_becomes_the_setting_that_is_recorded(
    arguments: dict[str, Any], recorded: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = captured(monkeypatch, lambda: fit("x", "y", **arguments))
    assert {name: getattr(settings, name) for name in recorded} == recorded
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


def captured(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> TrainSettings:
    """Return the settings that a call would train with."""

    class Captured(BaseException):  # The command line explains every Exception.
        pass

    def catch(settings: TrainSettings, **arguments: object) -> None:
        raise Captured(settings)

    monkeypatch.setattr("vae_edge.train.api.fit_run", catch)
    monkeypatch.setattr("vae_edge.train.run.fitting.fit_run", catch)
    with pytest.raises(Captured) as caught:
        call()
    settings: TrainSettings = caught.value.args[0]
    return settings


@pytest.mark.parametrize("preset", ["nano", "edge", "reference"])
def test_the_defaults_are_those_of_the_command(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_command = captured(
        monkeypatch,
        lambda: invoke(["--data", "x", "--out", "y", "--preset", preset, "--seed", "3", "--debug"], command="train"),
    )
    assert captured(monkeypatch, lambda: fit("x", "y", preset=preset, seed=3)) == by_command


def test_settings_are_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(source=DataSource(root="elsewhere"), architecture=TINY["architecture"], seed=5)
    taken = captured(monkeypatch, lambda: fit("here", "y", settings=settings, max_epochs=2, gradient_clip_val=1.0))
    assert taken == settings.model_copy(
        update={"source": DataSource(root="here"), "epochs": 2, "trainer": {"gradient_clip_val": 1.0}}
    )
    with pytest.raises(UsageError, match=r"settings and seed, preset were both given; .*model_copy"):
        fit("here", "y", settings=settings, seed=1, preset="nano")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fast_dev_run": True}, "fast_dev_run is True; expected off"),
        ({"barebones": True}, "barebones is True"),
        ({"max_steps": 100}, "max_steps is 100; .*use max_epochs"),
        ({"max_epochs": -1}, "max_epochs is -1; .*max_time"),
        ({"max_epochs": 0}, "epochs is 0"),
        ({"overfit_batches": 0.1}, "overfit_batches is 0.1"),
        ({"enable_checkpointing": False}, "enable_checkpointing is False"),
        ({"check_val_every_n_epoch": 5}, "check_val_every_n_epoch is 5"),
        ({"val_check_interval": 0.5}, "val_check_interval is 0.5"),
        ({"val_check_interval": 1}, "val_check_interval is 1;"),
        ({"limit_val_batches": 0}, "limit_val_batches is 0"),
        ({"limit_train_batches": 0.0}, "limit_train_batches is 0.0"),
        ({"deterministic": False}, "deterministic is False; .*same seed"),
        ({"benchmark": True}, "benchmark is True"),
        ({"strategy": "ddp_spawn"}, "strategy is 'ddp_spawn'; expected auto or ddp, because vae-train itself starts"),
        ({"strategy": "fsdp"}, "strategy is 'fsdp'; expected auto or ddp, .* each holds all weights"),
        ({"use_distributed_sampler": True}, "use_distributed_sampler is True; expected off"),
        ({"devices": 2, "callbacks": Counter()}, "callbacks cannot be passed on .* torchrun --nproc-per-node 2"),
        ({"devices": [0, 0]}, "devices is '0,0', which names a device twice"),
        ({"max_time": "soon"}, "max_time is 'soon'; expected a timedelta"),
        ({"max_epoch": 3}, "argument 'max_epoch' does not exist; .*such as max_epochs"),
        ({"patiense": 3}, "argument 'patiense' does not exist; .*such as patience"),
        ({"epochs": 3, "max_epochs": 3}, "epochs and the Trainer's name for it were both given"),
        (
            {"callbacks": [StochasticWeightAveraging(1e-3)]},
            "WeightAveraging .* cannot work here: .*averaging",
        ),
        ({"callbacks": [print]}, "the callback is a builtins.builtin_function_or_method; expected a lightning.pytorch"),
        ({"logger": "tensorboard"}, "the logger is a builtins.str; expected a lightning.pytorch Logger"),
        ({"callbacks": Timer("00:01:00:00"), "max_time": {"hours": 1}}, "a Timer among the callbacks, .* 60 minutes"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    arguments: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fit(data, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_what_lightning_refuses_names_what_was_given(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gradient_clip_algorithm 'sideways'.* do not work on this machine"):
        fit(data, tmp_path / "run", max_epochs=1, gradient_clip_algorithm="sideways", **TINY)
    with pytest.raises(InputError, match=r"Counter, Counter.* do not work on this machine.*stateful callback"):
        fit(data, tmp_path / "two", max_epochs=1, callbacks=[Counter(), Counter()], **TINY)
    with pytest.raises(UsageError, match=r"limit_train_batches is 0\.01 of the 2 batches of an epoch, less than one"):
        fit(data, tmp_path / "few", max_epochs=1, limit_train_batches=0.01, **TINY)


def test_settings_of_a_run_without_these_fields_are_read(plain: RunFolder, tmp_path: Path) -> None:
    run = Path(shutil.copytree(plain.folder, tmp_path / "run"))
    for name, place in ((SETTINGS_FILE, ()), ("model.json", ("settings",))):
        content = json.loads((run / name).read_text())
        inner = content
        for key in place:
            inner = inner[key]
        del inner["trainer"], inner["attached"], inner["source"]["listed"]
        (run / name).write_text(json.dumps(content))
    assert RunFolder.open(run).find_images(["test"])


def test_the_public_names_are_these() -> None:
    assert vae_edge.train.__all__ == ["fit", "resume_run", "RunFolder", "TrainSettings", "DataSource", "Watcher"]
    assert all(getattr(vae_edge.train, name) is not None for name in vae_edge.train.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        vae_edge.train.fitt  # noqa: B018 - that is the test


def test_arguments_that_only_networks_on_pixels_have_choose_one_or_are_refused(data: Path, tmp_path: Path) -> None:
    assert fit(data, tmp_path / "run", max_epochs=1, **TINY).record.network is Network.PIXEL
    with pytest.raises(
        UsageError, match="epochs: for networks that reconstruct whole pictures, and the preset 'feature' trains none"
    ):
        fit(data, tmp_path / "other", preset="feature", max_epochs=1)
