"""The network, its loss and its scoring as a model of anomalib: `vae_edge.anomalib.Vae`.

One implementation: the networks are `vae_edge.train.model.network.Vae` and, with `network="feature"`,
`vae_edge.train.features.network.FeatureVae`, an image is scored by the same graph that is exported, its constants are
measured by the same functions, and the normals are divided into roles by the same split. anomalib provides the engine,
the data modules, the metrics, the callbacks and the pictures.

Differences from anomalib's other models, with reasons:

- Some of the training images do not train the network. As in `vae-train`, about a tenth sets the scale of the residual
  and about a fifth the thresholds; both must come from normals that the network has not seen.
- The thresholds are those of a stated false-alarm rate on normals (`ConformalPostProcessor`), not the best ones on
  labelled images: those need defects, and by default anomalib's data modules use the test images for this. anomalib's
  own `PostProcessor()` can be passed instead.
- Images are resized as on the device, with OpenCV, so that the bundle sees the same pixels.
- A network on features trains on positions of a table that the backbone has filled once, before the first step; the
  batches of the data module only count its steps. Its constants come only from the normals that set the scale, while
  `vae-train` measures every normal by a network that was trained without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib import LearningType
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize
from torchvision.tv_tensors import Mask, wrap

import vae_edge
from vae_edge.decision import (
    DEFAULT_FALSE_ALARM_RATE,
    DEFAULT_PIXEL_FALSE_POSITIVE_RATE,
    check_askable_rate,
)
from vae_edge.errors import InputError, UsageError
from vae_edge.image import Preparation, prepare, read_image
from vae_edge.manifest import Thresholds
from vae_edge.records import make_record
from vae_edge.train.anomalib.checkpoint import CHECKPOINT_KEY, CheckpointNotes, FeatureNotes, read_notes
from vae_edge.train.anomalib.graph_models import FeatureModel, VaeModel
from vae_edge.train.data.inspection_set import ImageFile, load_images, spread
from vae_edge.train.data.sources import list_images
from vae_edge.train.data.split import SplitSettings, split_normals
from vae_edge.train.features.graph import FeatureConstants
from vae_edge.train.features.settings import FeatureSettings
from vae_edge.train.loop.batches import crops_per_image, make_plan, places
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import ScoringConstants
from vae_edge.train.model.input_layers import AreaResizing
from vae_edge.train.model.input_settings import SYMMETRIC, InputRange, InputSettings, Photometric, Tiling
from vae_edge.train.model.network import Vae as PixelVae
from vae_edge.train.model.presets import Architecture, Network, make_architecture
from vae_edge.train.model.scoring import DEFAULT_SCORING, ScoringSettings, parse_scoring
from vae_edge.train.model.scoring_constants import MOST_FITTED
from vae_edge.train.run.calibration import Division, calibrate, group_images
from vae_edge.train.run.records import Role

_LIGHTNINGS_EPOCHS = 1000
"""Lightning's default number of epochs."""

_VALIDATIONS = 10
"""Number of validations in a training whose length this module chose: each measures residuals again."""

_LEARNING_RATES = {Network.PIXEL: 2e-4, Network.FEATURE: FeatureSettings().learning_rate}

_ON_PIXELS = {
    "n_features": 64,
    "latent_vec_size": 128,
    "kl_weight": 0.00025,
    "max_features": None,
    "extra_layers": 0,
    "tile_size": None,
    "scoring": "default",
}
"""Arguments of `Vae` that do not apply to a network on features, with their defaults."""


class DeviceResize(Resize):  # type: ignore[misc]  # anomalib and torchvision need not be here when types are checked
    """Resizes images as the device does (`vae_edge.image.prepare`), and masks as torchvision does."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image, float32 [..., 3, H, W] of 0 to 1, or a mask."""
        if isinstance(inpt, Mask) or not inpt.is_floating_point() or inpt.shape[-3] != 3:
            return super().transform(inpt, params)
        height, width = self.size
        if tuple(inpt.shape[-2:]) == (height, width):
            return inpt
        preparation = Preparation(height=height, width=width)
        pixels = (inpt.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8)
        flat = pixels.reshape(-1, *pixels.shape[-3:]).permute(0, 2, 3, 1).contiguous().numpy()
        made = np.stack([prepare(image, preparation) for image in flat]).astype(np.float32) / np.float32(255)
        resized = torch.from_numpy(made).permute(0, 3, 1, 2).reshape(*inpt.shape[:-2], height, width).to(inpt.device)
        return wrap(resized, like=inpt) if type(inpt) is not Tensor else resized


class DevicePreProcessor(PreProcessor):  # type: ignore[misc]  # as above
    """Turns images of any size into the network's input: resized as on the device, then -1 to 1.

    Args:
        image_size: height and width.
    """

    SIZE_KEY = "device_image_size"

    def __init__(self, image_size: tuple[int, int] = (256, 256)) -> None:
        super().__init__()
        self._set(image_size)

    def _set(self, image_size: tuple[int, int]) -> None:
        self.image_size = image_size
        resize = DeviceResize(image_size, antialias=True)
        self.transform = Compose([resize, Normalize(SYMMETRIC.mean, SYMMETRIC.deviation)])
        # anomalib exports without antialiasing, which is another image; this one averages areas as the device does.
        self.export_transform = nn.Sequential(AreaResizing(*image_size), _ToRange(SYMMETRIC))

    def checkpoint_config(self) -> dict[str, Any]:
        """Return what is needed to make an equal pre-processor, as plain data."""
        return {self.SIZE_KEY: list(self.image_size)}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Become the pre-processor that a checkpoint describes."""
        height, width = config[self.SIZE_KEY]
        self._set((int(height), int(width)))


class _ToRange(nn.Module):
    """Scale from 0 to 1 to the network's input range."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, wanted: InputRange) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(wanted.mean).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(wanted.deviation).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.deviation


class ConformalPostProcessor(PostProcessor):  # type: ignore[misc]  # as above
    """anomalib's post-processor with the thresholds of a stated false-alarm rate on held-out normals.

    Minimum and maximum, which only scale scores to 0 to 1, come from the validation images as usual. But anomalib puts
    the threshold at 0.5 and cuts off what lies more than half the range away from it, so different scores become equal
    and the AUROC changes; here the range is widened until it extends far enough on both sides.
    """

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Set minimum and maximum, and the thresholds of the model."""
        super().on_validation_epoch_end(trainer, pl_module)
        self.take(pl_module.thresholds)

    def take(self, thresholds: Thresholds | None) -> None:
        """Take thresholds."""
        if thresholds is None:
            return
        self._image_threshold.fill_(thresholds.image_threshold)
        self._pixel_threshold.fill_(thresholds.pixel_threshold)
        for middle, lowest, highest in (
            (self._image_threshold, self.image_min, self.image_max),
            (self._pixel_threshold, self.pixel_min, self.pixel_max),
        ):
            reach = torch.maximum(middle - lowest, highest - middle)
            lowest.copy_(middle - reach)
            highest.copy_(middle + reach)


class Vae(AnomalibModule):  # type: ignore[misc]  # as above
    """The variational autoencoder of vae-edge for anomalib's `Engine`.

    Args:
        n_features: channels after the first convolution; they double with each further one.
        latent_vec_size: number of latents.
        kl_weight: weight of the Kullback-Leibler term in the loss.
        max_features: channels at which the doubling stops; None: no limit. 128 to 256 suit an edge device.
        extra_layers: convolutions that leave the size as it is, in encoder and decoder.
        learning_rate: of Adam; None: 0.0002, or for a network on features 0.004 at the top of one cycle.
        tile_size: side of the square tiles that the image is cut into, for surfaces and small defects; None: the
            network sees the full image.
        photometric: "none"; "image" or "local" even out the light first, for exposures that differ.
        scoring: how a residual becomes a score: "default", "normalized", "mse", or maps as in `vae-train --scoring`.
        false_alarm_rate: share of normal images that may be called anomalous, 0.000001 to 0.5.
        pixel_false_positive_rate: share of normal pixels that may lie above the pixel threshold, 0 to 1.
        seed: of the division of the normals into roles.
        network: "pixel": the network reconstructs the picture; "feature": it reconstructs the features of a frozen,
            pretrained backbone. Then sizes of the network, tiles and scoring do not apply.
        backbone_weights: file with the weights of EfficientNet-Lite0; None: those of the extra `features`.
        pre_processor: True: `DevicePreProcessor`, 256 x 256; another size with `Vae.configure_pre_processor((h, w))`.
            A custom one may resize and normalize, but nothing else, because a device would not do it.
        post_processor: True: `ConformalPostProcessor`; anomalib's own thresholds with `PostProcessor()`.
        evaluator: as for any model of anomalib.
        visualizer: as for any model of anomalib.

    Raises:
        InputError: a number out of range, an image size that the network cannot use (the message names the nearest one
            that it can), an invalid scoring, or a pre-processor that does not set the size.
        UsageError: an argument that does not apply to the kind of network, or a size that the backbone cannot use.
    """

    pre_processor: Any
    post_processor: Any

    def __init__(
        self,
        n_features: int = 64,
        latent_vec_size: int = 128,
        kl_weight: float = 0.00025,
        max_features: int | None = None,
        extra_layers: int = 0,
        learning_rate: float | None = None,
        tile_size: int | None = None,
        photometric: str = "none",
        scoring: str = "default",
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        pixel_false_positive_rate: float = DEFAULT_PIXEL_FALSE_POSITIVE_RATE,
        seed: int = 0,
        network: str = "pixel",
        backbone_weights: str | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Any = True,
        visualizer: Any = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        check_askable_rate(false_alarm_rate, "false-alarm rate")
        check_askable_rate(pixel_false_positive_rate, "pixel false-positive rate")
        self.false_alarm_rate = false_alarm_rate
        self.pixel_false_positive_rate = pixel_false_positive_rate
        if photometric not in list(Photometric):
            raise UsageError(f"photometric is {photometric!r}; expected one of {', '.join(Photometric)}")
        if self.input_size is None:
            raise InputError(
                "the pre-processor does not set the size of the images; expected one that resizes, such as "
                "Vae.configure_pre_processor((256, 256))"
            )
        size = (int(self.input_size[0]), int(self.input_size[1]))
        on_pixels = {
            "n_features": n_features,
            "latent_vec_size": latent_vec_size,
            "kl_weight": kl_weight,
            "max_features": max_features,
            "extra_layers": extra_layers,
            "tile_size": tile_size,
            "scoring": scoring,
        }
        light, input_range = Photometric(photometric), input_range_of(self.pre_processor)
        self.network = _network_named(network)
        self.architecture: Architecture
        self.model: VaeModel | FeatureModel
        if self.network is Network.FEATURE:
            _refuse_on_features(on_pixels)
            self.architecture = make_architecture("feature")
            input_settings = InputSettings(Tiling.whole(*size), light, input_range)
            self.model = FeatureModel(FeatureSettings(), input_settings, backbone_weights)
        else:
            tile = size if tile_size is None else (tile_size, tile_size)
            self.architecture = make_architecture(
                "reference",
                tile,
                n_features=n_features,
                latent_vec_size=latent_vec_size,
                kl_weight=kl_weight,
                max_features=max_features,
                extra_layers=extra_layers,
            ).model_copy(update={"preset": None})
            sides = {"image_height": size[0], "image_width": size[1], "tile_height": tile[0], "tile_width": tile[1]}
            input_settings = InputSettings(make_record(Tiling, sides), light, input_range)
            self.model = VaeModel(PixelVae.from_architecture(self.architecture), _parsed(scoring), input_settings)
        self.learning_rate = _LEARNING_RATES[self.network] if learning_rate is None else learning_rate
        self._cycle: torch.optim.lr_scheduler.OneCycleLR | None = None
        self.seed = seed
        self.thresholds: Thresholds | None = None
        """From the normals that were held out for them, with the current weights; None: not fitted."""
        self._roles: dict[str, Role] = {}
        self._groups: dict[str, str] = {}
        self._held_back: frozenset[str] = frozenset()
        """Paths of training images that do not train the network."""
        self._normals: tuple[NDArray[np.uint8], ...] | None = None
        """Images to fit constants and thresholds on, uint8 [n, H, W, 3] each: some that train the network, those of the
        statistics, those of the thresholds. They are kept in memory because every validation needs them."""
        self._judges: tuple[ImageFile, ...] = ()
        """The files of the last of these, one of each part."""
        self._fitted_at: int | None = None
        self._batch_size = 1

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return the default pre-processor for images of height x width, 256 x 256 by default."""
        return DevicePreProcessor(image_size or (256, 256))

    def configure_post_processor(self) -> PostProcessor:
        """Return the default post-processor."""
        return ConformalPostProcessor()

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The arguments for Lightning's Trainer: no validation before there is anything to validate."""
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """Trained on normal images only."""
        return LearningType.ONE_CLASS

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with its usual betas."""
        return torch.optim.Adam(self.model.vae.parameters(), lr=self.learning_rate)

    def on_train_start(self) -> None:
        """Divide the normals into roles, and set the length of the training if it was not given.

        Raises:
            InputError: the data names no normal images, or too few; or one cannot be decoded.
        """
        loader = self.trainer.train_dataloader
        files = _normal_files(self.trainer.datamodule or _OneDataset(getattr(loader, "dataset", None)))
        settings = SplitSettings(seed=self.seed)
        grouping = group_images(files, (), settings, Watcher())
        split = split_normals(files, settings, grouping.part)
        division = Division(split, grouping)
        self._roles = {image.sha256: role for role, images in division.roles().items() for image in images}
        self._groups = dict(grouping.groups)
        self._held_back = frozenset(str(image.path) for image in (*split.statistics, *split.threshold))
        self._judges = division.judges
        self._batch_size = getattr(loader, "batch_size", None) or 1
        self._plan_length(len(split.fit))
        if isinstance(self.model, FeatureModel):
            # Every process of several that train together draws other positions.
            seed = self.seed * 1009 + int(self.global_rank)
            self.model.prepare(self._prepared(split.fit), self._prepared(split.statistics), seed)
            self._normals = (*(np.empty((0, 0, 0, 3), np.uint8) for _ in range(2)), self._prepared(self._judges))
            self._begin_cycle()
        else:
            of_use = (spread(split.fit, MOST_FITTED), split.statistics, self._judges)
            self._normals = tuple(self._prepared(images) for images in of_use)

    def _plan_length(self, n_images: int) -> None:
        loop = self.trainer.fit_loop
        if loop.max_epochs != _LIGHTNINGS_EPOCHS or loop.max_steps != -1:
            return
        if isinstance(self.model, FeatureModel):
            epochs, validations = math.ceil(self.model.settings.n_steps / (self._steps_per_epoch() or 1)), 1
        else:
            plan = make_plan(n_images, self._batch_size, None, crops_per_image(self.model.input_settings.tiling))
            epochs, validations = plan.epochs, _VALIDATIONS
        loop.max_epochs = epochs
        if self.trainer.check_val_every_n_epoch == 1:
            self.trainer.check_val_every_n_epoch = max(1, epochs // validations)

    def _steps_per_epoch(self) -> int | None:
        """Return how often the weights change in an epoch; None: the data are endless."""
        n_batches = self.trainer.num_training_batches
        return None if math.isinf(n_batches) else math.ceil(n_batches / self.trainer.accumulate_grad_batches)

    def _begin_cycle(self) -> None:
        """Let the learning rate rise and fall once over the training, if its length is known."""
        loop, per_epoch = self.trainer.fit_loop, self._steps_per_epoch()
        by_epochs = math.inf if per_epoch is None or (loop.max_epochs or -1) < 0 else per_epoch * loop.max_epochs
        n_steps = min(by_epochs, math.inf if loop.max_steps < 0 else loop.max_steps)
        if math.isinf(n_steps) or n_steps <= self.global_step:
            self._cycle = None
            return
        optimizer: Any = self.trainer.optimizers[0]
        self._cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, int(n_steps), last_epoch=self.global_step - 1
        )

    def on_train_batch_end(self, *_: Any) -> None:
        """Advance the learning rate's cycle after each step of the optimizer."""
        if self._cycle is not None and self._cycle.last_epoch < min(self.global_step, self._cycle.total_steps - 1):
            self._cycle.step()

    def on_train_epoch_start(self) -> None:
        """Forget what belongs to the previous weights."""
        self.model.set_constants(None)
        self.thresholds, self._fitted_at = None, None

    def training_step(self, batch: Any, batch_index: int) -> Tensor | None:
        """Return the loss of a batch with random latents; None if none of its images trains the network."""
        if isinstance(self.model, FeatureModel):
            loss = self.model.loss()
            self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=1, prog_bar=True, sync_dist=True)
            return loss
        kept = [i for i, path in enumerate(batch.image_path) if _absolute(path) not in self._held_back]
        if not kept:
            return None
        pixels = self._windows(self.model.light(batch.image[kept]))
        parts = self.model.vae.loss(self.model.vae(pixels), pixels)
        values = {"train_loss": parts.total, "train_reconstruction": parts.reconstruction, "train_kl": parts.kl}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(pixels), prog_bar=True, sync_dist=True)
        return parts.total

    def _windows(self, pixels: Tensor) -> Tensor:
        """Cut random windows of the network's size out of each image, as many per image as an epoch needs."""
        tiling = self.model.input_settings.tiling
        if tiling.n_tiles == 1:
            return pixels
        n, generator = crops_per_image(tiling) * len(pixels), torch.default_generator
        down = places(tiling.image_height - tiling.tile_height, n, generator).tolist()
        across = places(tiling.image_width - tiling.tile_width, n, generator).tolist()
        return torch.stack(
            [
                pixels[i % len(pixels), :, top : top + tiling.tile_height, left : left + tiling.tile_width]
                for i, (top, left) in enumerate(zip(down, across, strict=True))
            ]
        )

    def on_validation_start(self) -> None:
        """Measure the residuals of held-out normals with the current weights."""
        self.fit_constants()
        super().on_validation_start()

    def validation_step(self, batch: Any, *_: Any, **__: Any) -> Any:
        """Return the batch with maps and scores."""
        return batch.update(**self.model(batch.image)._asdict())

    def on_train_end(self) -> None:
        """Leave a model that can test, predict and export, even if there was no validation."""
        self.fit_constants()
        if isinstance(self.post_processor, ConformalPostProcessor):
            self.post_processor.take(self.thresholds)
        if isinstance(self.model, FeatureModel):
            self.model.forget_pictures()
            self._normals = None

    def fit_constants(self) -> None:
        """Measure on held-out normals what the scoring divides by, and fit the thresholds, unless that was done.

        This is only for a model in training: one from a checkpoint already has both.
        """
        if self._normals is None or self._fitted_at == self.global_step:
            return
        was_training = self.model.training
        self.model.eval()
        fit, statistics, threshold = self._normals
        # Of each kind of model the constants are its own.
        model: Any = self.model
        constants = model.measure(fit, statistics)
        model.set_constants(constants)
        self.thresholds = calibrate(
            model.graph_on_cpu(constants),
            self._judges,
            threshold,
            false_alarm_rate=self.false_alarm_rate,
            pixel_false_positive_rate=self.pixel_false_positive_rate,
        ).thresholds
        self._fitted_at = self.global_step
        self.model.train(was_training)

    def _prepared(self, files: tuple[ImageFile, ...]) -> NDArray[np.uint8]:
        tiling = self.model.input_settings.tiling
        preparation = Preparation(height=tiling.image_height, width=tiling.image_width)
        if isinstance(self.pre_processor, DevicePreProcessor):
            return load_images(files, preparation)
        return np.stack(
            [_through(self.pre_processor.transform, file, self.model.input_settings.input_range) for file in files]
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the exporter needs; see `CheckpointNotes`."""
        super().on_save_checkpoint(checkpoint)
        if self._normals is not None and self._is_last_epoch():
            self.fit_constants()
        input_settings = self.model.input_settings
        feature = None
        if isinstance(self.model, FeatureModel):
            feature = FeatureNotes(settings=self.model.settings, backbone=self.model.origin)
        notes = CheckpointNotes(
            format=1 if feature is None else 2,
            vae_edge_version=vae_edge.__version__,
            architecture=self.architecture,
            tiling=input_settings.tiling,
            photometric=input_settings.photometric,
            input_range=input_settings.input_range,
            scoring=DEFAULT_SCORING if isinstance(self.model, FeatureModel) else self.model.scoring,
            false_alarm_rate=self.false_alarm_rate,
            pixel_false_positive_rate=self.pixel_false_positive_rate,
            batch_size=self._batch_size,
            learning_rate=self.learning_rate,
            prepares_as_device=isinstance(self.pre_processor, DevicePreProcessor),
            roles=self._roles,
            groups={sha256: group for sha256, group in self._groups.items() if sha256 in self._roles},
            feature=feature,
        )
        constants = self.model.constants
        checkpoint[CHECKPOINT_KEY] = {
            "notes": notes.model_dump_json(),
            "conformal": isinstance(self.post_processor, ConformalPostProcessor),
            "constants": {} if constants is None else constants.tensors(),
        }

    def _is_last_epoch(self) -> bool:
        trainer = self.trainer
        return bool(trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0) > 0)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` wrote.

        Raises:
            InputError: it is from another model, damaged, or has an unknown format.
        """
        if CHECKPOINT_KEY not in checkpoint:
            raise InputError(
                "this is not a checkpoint of vae_edge.anomalib.Vae; expected one saved by this model. Weights of "
                "the VAE that circulates for anomalib become bundles with vae-export"
            )
        said = checkpoint[CHECKPOINT_KEY]
        notes = read_notes(said, "the checkpoint")
        # The components are those of the constructor's defaults, whatever the saved model had.
        saved = checkpoint.get("anomalib_pre_processor_config") or {}
        if isinstance(self.pre_processor, DevicePreProcessor) and DevicePreProcessor.SIZE_KEY not in saved:
            self.pre_processor = PreProcessor()
        if isinstance(self.post_processor, ConformalPostProcessor) and not said["conformal"]:
            self.post_processor = PostProcessor()
        super().on_load_checkpoint(checkpoint)
        self._roles, self._groups = dict(notes.roles), dict(notes.groups)
        feature, saved_constants = notes.feature, said["constants"]
        if feature is not None:
            model = FeatureModel(feature.settings, notes.input_settings)
            model.origin = feature.backbone
            model.set_constants(FeatureConstants.from_tensors(saved_constants) if saved_constants else None)
            self.architecture, self.network, self.model = notes.architecture, Network.FEATURE, model
            return
        if self.network is not Network.PIXEL or (
            notes.architecture != self.architecture or notes.input_settings != self.model.input_settings
        ):
            # A pre-processor given by hand is not among the hyper-parameters: its size comes back with its own notes.
            self.architecture, self.network = notes.architecture, Network.PIXEL
            self.model = VaeModel(PixelVae.from_architecture(notes.architecture), notes.scoring, notes.input_settings)
        assert isinstance(self.model, VaeModel)
        self.model.set_constants(ScoringConstants.from_tensors(saved_constants) if saved_constants else None)


class _OneDataset:
    """Wraps the data set of a loader in the part of a data module that its list of images needs."""

    def __init__(self, dataset: Any) -> None:
        self.train_data = dataset


def _normal_files(datamodule: Any) -> tuple[ImageFile, ...]:
    """Return the normal images that a data module trains on, with the hashes of their files."""
    listed = list_images(datamodule)
    names = {_absolute(row["image_path"]) for row in datamodule.train_data.samples.to_dict("records")}
    files = tuple(file for file in listed.open().train if str(file.path) in names)
    if not files:
        raise InputError(
            f"{listed.given_by} names no normal image to train on; expected images of good parts with label_index 0 in "
            "its train_data"
        )
    return files


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


def _network_named(text: str) -> Network:
    known = (Network.PIXEL, Network.FEATURE)
    if text not in known:
        raise UsageError(f"the network is {text!r}; expected one of {', '.join(known)}")
    return Network(text)


def _refuse_on_features(given: dict[str, Any]) -> None:
    others = [name for name, value in given.items() if value != _ON_PIXELS[name]]
    if others:
        raise UsageError(
            f"{others[0]} is {given[others[0]]!r}, but does not apply to network='feature': leave it out, or use "
            "network='pixel'"
        )


def _parsed(text: str) -> ScoringSettings:
    parsed = parse_scoring(text)
    if parsed is None:
        raise UsageError("the scoring is 'auto', which only vae-train supports; expected a name or maps")
    return parsed


def input_range_of(pre_processor: Any) -> InputRange:
    """Return the range to which a pre-processor maps 0 to 1.

    Raises:
        InputError: it does more than resize and normalize.
    """
    if pre_processor is None:
        raise InputError("there is no pre-processor; expected one that resizes, such as Vae.configure_pre_processor()")
    found, others = None, []
    for each in _flat(getattr(pre_processor, "transform", None)):
        if isinstance(each, Normalize):
            found = InputRange(mean=tuple(each.mean), deviation=tuple(each.std))
        elif not isinstance(each, Resize):
            others.append(type(each).__name__)
    if others:
        raise InputError(
            f"the pre-processor has a {others[0]}, which a device does not do; expected only Resize and Normalize: put "
            "augmentations into the data module"
        )
    return found or InputRange(mean=(0, 0, 0), deviation=(1, 1, 1))


def _flat(transform: Any) -> Sequence[Any]:
    if transform is None:
        return []
    return (
        [part for each in transform.transforms for part in _flat(each)]
        if isinstance(transform, Compose)
        else [transform]
    )


def _through(transform: Any, file: ImageFile, input_range: InputRange) -> NDArray[np.uint8]:
    """Pass an image through a user's pre-processor and convert it back to bytes."""
    image = torch.from_numpy(read_image(file.path)).permute(2, 0, 1).float() / 255
    made: NDArray[np.float32] = transform(image).permute(1, 2, 0).numpy()
    mean, deviation = (np.array(each, np.float32) for each in (input_range.mean, input_range.deviation))
    values: NDArray[np.uint8] = np.clip(np.rint((made * deviation + mean) * 255), 0, 255).astype(np.uint8)
    return values


__all__ = ["ConformalPostProcessor", "DevicePreProcessor", "Vae", "VaeModel"]
