"""What anomalib calls a torch model: the network during training, and the whole graph otherwise.

One for each kind of network: `VaeModel` reconstructs pictures, `FeatureModel` the features of a frozen backbone.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from copy import deepcopy
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from anomalib.data import InferenceBatch
from numpy.typing import NDArray
from torch import Tensor, nn

from vae_edge.errors import InputError
from vae_edge.manifest import BackboneOrigin
from vae_edge.train.features.backbone import Backbone, check_size
from vae_edge.train.features.backbone_weights import load_backbone
from vae_edge.train.features.graph import N_CHANNELS, FeatureConstants, FeatureGraph, FeatureMaps, FeatureResidual
from vae_edge.train.features.network import FeatureVae
from vae_edge.train.features.settings import FeatureSettings, MapSource
from vae_edge.train.features.table import FeatureTable, make_table
from vae_edge.train.features.training import fit_constants, residuals_of
from vae_edge.train.model.anomaly_graph import AnomalyGraph, DeployedGraph, ScoringConstants
from vae_edge.train.model.input_layers import PhotometricNormalization
from vae_edge.train.model.input_settings import InputSettings
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import ScoringSettings
from vae_edge.train.model.scoring_constants import fit_scoring_constants

C = TypeVar("C", ScoringConstants, FeatureConstants)


class GraphModel(nn.Module, ABC, Generic[C]):
    """A network, and the graph that is made from it and from constants measured on held-out normals.

    Args:
        vae: the network.
        input_settings: how an image becomes its input.
    """

    def __init__(self, vae: nn.Module, input_settings: InputSettings) -> None:
        super().__init__()
        self.vae = vae
        self.input_settings = input_settings
        self.constants: C | None = None
        self.graph: DeployedGraph | None = None
        # It is made of the network and the constants, and would be in a checkpoint a second time.
        hooks: Any = self
        hooks.register_state_dict_post_hook(_leave_out_graph)
        hooks.register_load_state_dict_post_hook(_forget_graph)

    def forward(self, image: Tensor) -> Any:
        """Score a batch, float32 [N, 3, H, W] as the pre-processor leaves it.

        Returns:
            An `InferenceBatch` with `anomaly_map` [N, 1, H, W] and `pred_score` [N], before any normalization.

        Raises:
            InputError: see `ready_graph`.
        """
        anomaly_map, score = self.outputs(self.ready_graph(), image)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map[:, None])

    @abstractmethod
    def outputs(self, graph: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run the graph from where the pre-processor ends; return maps, [N, H, W], and scores, [N]."""

    @abstractmethod
    def measure(self, fit: NDArray[np.uint8], statistics: NDArray[np.uint8]) -> C:
        """Measure what the scoring divides by, with the current weights.

        Args:
            fit: uint8 [n, H, W, 3], normals that train the network.
            statistics: uint8 [m, H, W, 3], normals that do not.
        """

    @abstractmethod
    def graph_on_cpu(self, constants: C) -> DeployedGraph:
        """Return the graph with the current weights, on the CPU."""

    def ready_graph(self) -> DeployedGraph:
        """Return the graph with the current weights, on the network's device.

        Raises:
            InputError: the scoring has no constants yet.
        """
        if self.graph is None:
            if self.constants is None:
                raise InputError(
                    "the model has not been fitted: the residuals of normal images are not known; expected "
                    "Engine.fit first, or a checkpoint of a fitted model"
                )
            self.graph = self.graph_on_cpu(self.constants).to(next(self.vae.parameters()).device)
        return self.graph

    def set_constants(self, constants: C | None) -> None:
        """Set the constants that belong to the current weights; None: there are none."""
        self.constants, self.graph = constants, None


class VaeModel(GraphModel[ScoringConstants]):
    """On pixels.

    Args:
        vae: the network.
        scoring: how a residual becomes a score.
        input_settings: how an image becomes its input.
    """

    vae: Vae

    def __init__(self, vae: Vae, scoring: ScoringSettings, input_settings: InputSettings) -> None:
        super().__init__(vae, input_settings)
        self.scoring = scoring
        self.light = PhotometricNormalization(input_settings.photometric, *input_settings.image_size)

    def forward(self, image: Tensor) -> Any:
        """In training return the network's `VaeOutput`; otherwise see `GraphModel.forward`."""
        return self.vae(image) if self.training else super().forward(image)

    def outputs(self, graph: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `GraphModel.outputs`."""
        anomaly_map, score = graph.score(graph.reconstruct.of_pixels(image))
        return anomaly_map, score

    def measure(self, fit: NDArray[np.uint8], statistics: NDArray[np.uint8]) -> ScoringConstants:
        """See `GraphModel.measure`."""
        return fit_scoring_constants(
            self.network_on_cpu(), self.scoring, statistics, input_settings=self.input_settings, fitted=fit
        )

    def graph_on_cpu(self, constants: ScoringConstants) -> AnomalyGraph:
        """See `GraphModel.graph_on_cpu`."""
        return AnomalyGraph(self.network_on_cpu(), self.scoring, constants, self.input_settings)

    def network_on_cpu(self) -> Vae:
        """Return a copy of the network."""
        return deepcopy(self.vae).cpu().float().eval()


class FeatureModel(GraphModel[FeatureConstants]):
    """On features of a frozen backbone, which runs once over each training picture: see `prepare`.

    Args:
        settings: of the network and its scoring.
        input_settings: how an image becomes the backbone's input; the image is not cut.
        backbone_weights: a file; None: what the extra `features` installs.

    Raises:
        UsageError: the size of the image does not fit the backbone.
    """

    vae: FeatureVae
    channel_mean: Tensor
    channel_deviation: Tensor

    def __init__(
        self, settings: FeatureSettings, input_settings: InputSettings, backbone_weights: str | None = None
    ) -> None:
        check_size(*input_settings.image_size)
        super().__init__(FeatureVae(N_CHANNELS, settings), input_settings)
        self.settings = settings
        self.backbone = Backbone()
        self.origin: BackboneOrigin | None = None
        """Where the backbone's weights come from; None: they are still random."""
        self.backbone_weights = backbone_weights
        self.register_buffer("channel_mean", torch.zeros(1, N_CHANNELS, 1, 1))
        self.register_buffer("channel_deviation", torch.ones(1, N_CHANNELS, 1, 1))
        self._table: FeatureTable | None = None
        self._n_fit = 0
        self._random = torch.Generator()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def prepare(self, fit: NDArray[np.uint8], statistics: NDArray[np.uint8], seed: int) -> None:
        """Run the backbone over the pictures of a training, and keep their features until `forget_pictures`.

        Args:
            fit: uint8 [n, H, W, 3], that train the network.
            statistics: uint8 [m, H, W, 3], that set the scale of the residual.
            seed: of the positions that are drawn.

        Raises:
            MissingDependencyError, InputError: the backbone's weights are missing, or cannot be used.
        """
        self.forget_pictures()
        if self.origin is None:
            loaded = load_backbone(self.backbone_weights)
            self.backbone.load_state_dict(loaded.module.state_dict())
            self.origin = loaded.origin
        maps = FeatureMaps(self._backbone_on_cpu(), *self.input_settings.image_size, self.input_settings.photometric)
        self._folder = tempfile.TemporaryDirectory(prefix="vae-edge-features-", ignore_cleanup_errors=True)
        self._table = make_table(maps.eval(), np.concatenate([fit, statistics]), Path(self._folder.name))
        self._n_fit = len(fit)
        self._random.manual_seed(seed)
        mean, deviation = self._table.channel_statistics(range(self._n_fit))
        self.channel_mean.copy_(mean)
        self.channel_deviation.copy_(deviation)

    def forget_pictures(self) -> None:
        """Free the memory and the file that `prepare` took."""
        self._table = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def loss(self) -> Tensor:
        """Return the loss of positions drawn from all pictures that train the network."""
        assert self._table is not None  # `prepare` was called.
        device, size = self.channel_mean.device, self.settings.batch_size
        units = self.channel_mean.cpu(), self.channel_deviation.cpu()
        x, target = self._table.draw(range(self._n_fit), size, self._random, *units)
        return self.vae.loss(x.to(device), target.to(device))

    def outputs(self, graph: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `GraphModel.outputs`."""
        got = self.input_settings.input_range
        mean, deviation = (image.new_tensor(each).reshape(1, 3, 1, 1) for each in (got.mean, got.deviation))
        anomaly_map, score = graph.of_pixels((image * deviation + mean) * 2 - 1)
        return anomaly_map, score

    def measure(self, fit: NDArray[np.uint8], statistics: NDArray[np.uint8]) -> FeatureConstants:
        """Measure on the pictures that `prepare` received; they are not needed again."""
        assert self._table is not None  # `prepare` was called.
        residual = self.residual_on_cpu()
        held_out = residuals_of(residual, self._table, range(self._n_fit, len(self._table)))
        source = MapSource.FEATURES
        return fit_constants({source: held_out}, self.settings, {source: residual})

    def residual_on_cpu(self) -> FeatureResidual:
        """Return a copy of the network up to its residual."""
        network = deepcopy(self.vae).cpu().float().eval().convolutions()
        residual = FeatureResidual(network, self.channel_mean.cpu().clone(), self.channel_deviation.cpu().clone())
        return residual.eval().requires_grad_(False)

    def graph_on_cpu(self, constants: FeatureConstants) -> FeatureGraph:
        """See `GraphModel.graph_on_cpu`."""
        return FeatureGraph(
            self._backbone_on_cpu(),
            self.residual_on_cpu().vae,
            self.settings,
            constants,
            self.input_settings.image_size,
            self.input_settings.photometric,
        )

    def _backbone_on_cpu(self) -> Backbone:
        return deepcopy(self.backbone).cpu().float()


def _leave_out_graph(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}graph.")]:
        del state[name]


def _forget_graph(module: nn.Module, incompatible: Any) -> None:
    assert isinstance(module, GraphModel)
    if module.graph is not None:
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if ".graph." not in f".{name}"]
    module.graph = None
