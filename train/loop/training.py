"""Training one network in Lightning's loop, made repeatable and quiet.

Everything random follows from the seed and the step alone, so an interrupted training that continues from its
checkpoint ends with the same weights, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vae_edge.errors import InputError
from vae_edge.train.loop.batches import (
    CONSTANT_STEPS,
    ONE_CYCLE_STEPS,
    WHOLE_ONE_CYCLE_STEPS,
    EpochSampler,
    FixedCrops,
    Plan,
    StepPart,
    apart,
    as_pixels,
    crops_per_image,
    even_light,
    flipped,
    make_loader,
    make_plan,
    relit,
    seed_of,
    with_mask,
)
from vae_edge.train.loop.checkpoints import (
    LAST_CHECKPOINT,
    RunCheckpoint,
    as_the_first,
    interruptible,
    quiet,
    read_state,
    repeatable,
    stopped_by,
)
from vae_edge.train.loop.launch import Place
from vae_edge.train.loop.settings import TrainingOutcome, TrainSettings
from vae_edge.train.loop.team import ALONE, Team
from vae_edge.train.loop.together import SharedBatchNorm2d, StepShares, check_shares, total_of
from vae_edge.train.loop.trainer import StepNotes, make_trainer
from vae_edge.train.loop.trainer_arguments import (
    NOTHING_ATTACHED,
    Attached,
    count_optimizer_steps,
    limited,
)
from vae_edge.train.model.input_settings import InputSettings, Tiling
from vae_edge.train.model.network import Vae, VaeLoss, count_flops, count_parameters
from vae_edge.train.model.presets import Recipe, Schedule


class VaeTraining(LightningModule):
    """The network with its loss and optimizer; batches are uint8 [N, H, W, 3] and become float on the device.

    A fourth channel says what counts, see `with_mask`: the reconstruction of the rest is not in the loss.

    Args:
        vae: to train.
        recipe: how.
        seed: of everything random.
        n_steps: that are planned, for what changes in their course.
        shares: of several processes, which of a step's images this one has; None: it has all.
    """

    def __init__(self, vae: Vae, recipe: Recipe, seed: int, n_steps: int, shares: StepShares | None = None) -> None:
        super().__init__()
        self.vae = vae
        self.recipe = recipe
        self.seed = seed
        self.n_steps = n_steps
        self.shares = shares
        # A part of the module, so that it is in the checkpoint and an interrupted training continues with it.
        # torch leaves `get_ema_multi_avg_fn` untyped, and of `AveragedModel.module` and of what a callback is called
        # with says no more than that they are modules.
        self.average = (
            AveragedModel(vae, multi_avg_fn=cast(Any, get_ema_multi_avg_fn)(recipe.averaging), use_buffers=True)
            if recipe.averaging
            else None
        )
        if self.average is not None:
            self.average.requires_grad_(False)  # Several processes would wait for its gradient.

    @property
    def kept(self) -> Vae:
        """The network whose weights count: the running average where there is one."""
        return self.vae if self.average is None else cast(Vae, self.average.module)

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """Return the loss of a batch with random latents."""
        # Here and not once an epoch: in between, a data loader draws a number, at another time after an interruption.
        torch.manual_seed(seed_of(self.seed, self.current_epoch, batch_index, 0))
        of_step = StepPart(len(batch))
        if self.shares is not None:
            of_step = StepPart(self.shares.n_of(batch_index), self.shares.part(batch_index))
        kinds = self.recipe.augmentation
        pixels, kept = apart(flipped(as_pixels(batch), kinds, of_step), self.vae.n_channels)
        pixels = relit(pixels, kinds, of_step)
        loss = self._in_step(self.vae.loss(self.vae(pixels, of_step.noise_like), pixels, kept), kept)
        assert loss is not None
        values = {"fit_loss": loss.total, "fit_reconstruction": loss.reconstruction, "fit_kl": loss.kl}
        self._log_mean(values, len(batch))
        share = self.recipe.kl_share_at(self.global_step, self.n_steps)
        total = loss.total - (1 - share) * self.vae.kl_weight * loss.kl
        if self.shares is None:
            return total
        # Of the processes' gradients the mean is taken, whatever their shares: with this it is that over the images.
        return total * (len(batch) * self.shares.place.size / of_step.n)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Take the new weights into the average."""
        if self.average is not None:
            self.average.update_parameters(self.vae)

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """Log the loss of held-out normals with z = mean."""
        values: dict[str, Any] = {"held_out_loss": 0.0, "held_out_reconstruction": 0.0, "held_out_kl": 0.0}
        pixels, kept = apart(as_pixels(batch), self.vae.n_channels)
        # Of the last few images a process may have none.
        found = self.kept.loss(self.kept(pixels), pixels, kept) if len(batch) else None
        found = self._in_step(found, kept)
        if found is not None:
            values = dict(zip(values, found, strict=True))
        self._log_mean(values, len(batch))

    def _in_step(self, loss: VaeLoss | None, kept: Tensor | None) -> VaeLoss | None:
        """Return a process's loss so that the mean over all images of a step, each with its process's, is the step's.

        The divergence is a mean over images and needs nothing; the reconstruction is one over the pixels that count.
        """
        if self.shares is None or kept is None:
            return loss
        n = torch.tensor([0.0, len(kept)], device=kept.device)
        n[0] = kept.sum()
        everywhere = total_of(n)
        if loss is None:
            return loss
        reconstruction = loss.reconstruction * n[0] * everywhere[1] / (everywhere[0].clamp(min=1) * n[1])
        return VaeLoss(reconstruction + self.vae.kl_weight * loss.kl, reconstruction, loss.kl)

    def _log_mean(self, values: dict[str, Any], n: int) -> None:
        """Log means over n images, of which an epoch's mean over all images becomes."""
        # Lightning divides the number of images by that of processes and drops the remainder.
        n *= 1 if self.shares is None else self.shares.place.size
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=n, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return Adam with its usual betas, and the schedule where there is one."""
        optimizer = torch.optim.Adam(self.vae.parameters(), lr=self.recipe.learning_rate)
        if self.recipe.schedule is Schedule.CONSTANT:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.recipe.rate_at(step, self.n_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def plan_of(settings: TrainSettings, n_images: int) -> Plan:
    """Return how a training on this many images is cut into epochs and steps."""
    tiling = settings.tiling_in_force
    steps = CONSTANT_STEPS
    if settings.recipe.schedule is Schedule.ONE_CYCLE:
        steps = WHOLE_ONE_CYCLE_STEPS if tiling.n_tiles == 1 else ONE_CYCLE_STEPS
    plan = make_plan(
        n_images,
        settings.batch_size,
        settings.epochs,
        crops_per_image(tiling),
        steps=steps,
    )
    return limited(plan, settings.trainer)


def fit_vae(
    settings: TrainSettings,
    fit_images: NDArray[np.uint8],
    held_out_images: NDArray[np.uint8],
    folder: Path,
    progress: StepNotes | None = None,
    *,
    input_settings: InputSettings | None = None,
    attached: Attached = NOTHING_ATTACHED,
    team: Team = ALONE,
) -> tuple[Vae, TrainingOutcome]:
    """Train a network, or continue with its training where `folder` holds a checkpoint.

    Args:
        settings: what to do.
        fit_images: uint8 [n, H, W, 3], the normals to train on.
        held_out_images: uint8 [m, H, W, 3], other normals; the weights with the smallest loss on them are kept. They
            may scale the residual later, but must not set a threshold: a choice made on them flatters their scores.
        folder: gets `checkpoints/` and `logs/`.
        progress: called after each step.
        input_settings: how images become what the network sees: their light is evened out beforehand, and where they
            are cut it sees random windows of them, not only the tiles. None: full images as they are.
        attached: a user's loggers, callbacks and other objects for this training.
        team: processes of which each takes a share of every step; the weights are the same but for rounding.

    Returns:
        The network with the best weights, in evaluation mode on the CPU, and what happened.

    Raises:
        InputError: the settings do not suit this machine, or the training diverged.
        BundleError: the checkpoint is damaged.
        TrainingInterruptedError: Ctrl-C or a termination signal; the message says how to resume.
        Exception: whatever a user's callback or logger raises. What was saved before is kept, and the training can be
        resumed.
    """
    path = folder / "checkpoints" / LAST_CHECKPOINT
    architecture = settings.architecture
    input_settings = input_settings or InputSettings(Tiling.whole(architecture.height, architecture.width))
    plan = plan_of(settings, len(fit_images))
    keeper = RunCheckpoint(path, lambda module: cast(VaeTraining, module).kept.state_dict())
    if path.is_file():
        keeper.load_state_dict(read_state(path))
    if keeper.ended_by is None:
        with torch.random.fork_rng(devices=[]), repeatable(), quiet(), interruptible(folder, attached.needed):
            trainer = make_trainer(settings, plan, keeper, folder, progress, attached, team)
            start = path if path.is_file() else None
            data = (settings, plan, fit_images, held_out_images, input_settings)
            if team.shares_steps:
                team.run(
                    _train_together,
                    data,
                    start.read_bytes() if start is not None else None,
                    bool(attached.needed),
                    here={"trainer": trainer, "start": start, "attached": attached},
                )
            else:
                with as_the_first():
                    _train(trainer, *data, attached, start)
        if not path.is_file():
            raise InputError(
                "a callback stopped the training before the end of its first epoch, so there is no network; expected "
                "one epoch or more: train again without that callback"
            )
        # From the file, not from memory: where the training ran in other processes, this one's copy is stale.
        keeper.load_state_dict(read_state(path))
        if keeper.ended_by is None:  # Stopped between two epochs, or before it went on.
            keeper.ended_by = stopped_by(trainer)
    weights = {name: value.contiguous() for name, value in keeper.best_weights.items()}
    vae = Vae.from_weights(architecture, weights)
    return vae, TrainingOutcome(
        epochs_run=keeper.epochs_run,
        epochs_planned=plan.epochs,
        ended_by=keeper.ended_by,
        best_epoch=keeper.best_epoch,
        best_held_out_loss=keeper.best_loss,
        fit_loss=keeper.fit_loss,
        batch_size=plan.batch_size,
        n_processes=team.size if team.shares_steps else 1,
        seconds=keeper.seconds,
        images_per_s=plan.images_per_epoch * keeper.epochs_run / max(keeper.seconds, 1e-9),
        n_parameters=count_parameters(vae),
        flops=count_flops(vae) * input_settings.tiling.n_tiles,
    )


def _train(
    trainer: Trainer,
    settings: TrainSettings,
    plan: Plan,
    fit_images: NDArray[np.uint8],
    held_out_images: NDArray[np.uint8],
    input_settings: InputSettings,
    attached: Attached,
    start: Path | None,
    place: Place | None = None,
) -> None:
    """Run the loop, from a checkpoint on where there is one; with a place, this process's share of each step."""
    torch.manual_seed(settings.seed)
    architecture, tiling = settings.architecture, input_settings.tiling
    n_steps = count_optimizer_steps(plan, settings.trainer, attached)
    size, per_image = (architecture.height, architecture.width), crops_per_image(tiling)
    room = (tiling.image_height - tiling.tile_height, tiling.image_width - tiling.tile_width)
    crops = EpochSampler(len(fit_images), settings.seed, per_image, room)
    held_out_crops = FixedCrops(len(held_out_images), tiling, per_image)
    vae, shares, held_out_shares = Vae.from_architecture(architecture), None, None
    if place is not None:
        shares = StepShares(crops, plan.batch_size, place, drop_last=plan.drop_last)
        check_shares(shares)
        held_out_shares = StepShares(held_out_crops, settings.batch_size, place)
        SharedBatchNorm2d.replace_in(vae)
    module = VaeTraining(vae, settings.recipe, settings.seed, n_steps, shares)
    # A tenth to a quarter faster on a CPU than channels first. Lightning's annotation leaves the argument out.
    cast(Any, module).to(memory_format=torch.channels_last)
    fit_images, held_out_images = (
        with_mask(even_light(each, input_settings), input_settings.ignored) for each in (fit_images, held_out_images)
    )
    trainer.fit(
        module,
        make_loader(fit_images, size, plan.batch_size, crops, drop_last=plan.drop_last, shares=shares),
        make_loader(held_out_images, size, settings.batch_size, held_out_crops, shares=held_out_shares),
        ckpt_path=start,
    )


def _train_together(
    team: Team,
    data: tuple[TrainSettings, Plan, NDArray[np.uint8], NDArray[np.uint8], InputSettings],
    state: bytes | None,
    is_attached: bool,
    *,
    trainer: Trainer | None = None,
    start: Path | None = None,
    attached: Attached | None = None,
) -> None:
    """Take part in a training: work of a team.

    Args:
        team: whose work it is.
        data: as for `_train`.
        state: the checkpoint's content.
        is_attached: callbacks or other objects of the user take part, in every process its own.
        trainer: the leader's.
        start: the leader's checkpoint.
        attached: the leader's.
    """
    if trainer is not None and attached is not None:
        _train(trainer, *data, attached, start, team.place)
        return
    own = team.attached if is_attached else NOTHING_ATTACHED
    settings, plan = data[:2]
    with tempfile.TemporaryDirectory(dir=team.folder) as name, quiet():
        # For Lightning reads it; nothing is written here.
        path = Path(name) / LAST_CHECKPOINT
        if state is not None:
            path.write_bytes(state)
        keeper = RunCheckpoint(path, lambda module: cast(VaeTraining, module).kept.state_dict())
        trainer = make_trainer(settings, plan, keeper, None, None, own, team)
        _train(trainer, *data, own, path if state is not None else None, team.place)
