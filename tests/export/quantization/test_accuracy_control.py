from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vae_edge.agreement import Outputs
from vae_edge.errors import InputError, ParityError
from vae_edge.export.calibration.judging import with_synthetic_defects
from vae_edge.export.quantization.accuracy_control import Baseline, ControlResult, keep_accuracy, measure_harm
from vae_edge.export.settings import Budget
from vae_edge.export.trained_model import measure_trained_model
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.model.anomaly_graph import AnomalyGraph, run_graph
from vae_edge.train.model.presets import Recipe, make_architecture
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.run.folder import RunFolder

TIGHT = Budget(max_auroc_drop=0.01, max_pixel_auroc_drop=0.01, max_flip_rate=0.03)


@dataclass
class RoundingQuantizer:
    """Rounds each convolution's weights to so many bits, as a quantizer does: a real one, only without a runtime."""

    graph: AnomalyGraph
    bits: dict[str, int]
    calls: list[frozenset[str]] = field(default_factory=list)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.bits)

    def outputs(
        self,
        images: NDArray[np.uint8],
        keep_float: frozenset[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> Outputs:
        self.calls.append(keep_float)
        graph = deepcopy(self.graph)
        for name, bits in self.bits.items():
            if name not in keep_float:
                weight = graph.reconstruct.get_submodule(name).weight
                assert isinstance(weight, nn.Parameter)
                levels = 2 ** (bits - 1) - 1
                scale = weight.abs().max() / levels
                weight.data = torch.round(weight / scale) * scale
        return Outputs(*run_graph(graph, images, progress=progress))


class OverflowingQuantizer(RoundingQuantizer):
    """Gives NaN while the first layer is quantized, as FP16 does where a value leaves its range."""

    def outputs(
        self,
        images: NDArray[np.uint8],
        keep_float: frozenset[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> Outputs:
        outputs = super().outputs(images, keep_float, progress)
        if self.layers[0] not in keep_float:
            outputs.scores[::3] = np.nan
        return outputs


class DriftingQuantizer(RoundingQuantizer):
    """Has a runtime that is wrong whatever is quantized: the order of all scores is turned round."""

    def outputs(
        self,
        images: NDArray[np.uint8],
        keep_float: frozenset[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> Outputs:
        outputs = super().outputs(images, keep_float, progress)
        return Outputs(-outputs.maps, -outputs.scores)


@pytest.fixture(scope="module")
def run(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Trained for long enough that what each layer computes matters."""
    settings = TrainSettings(
        source=DataSource(root=str(sample_data)),
        architecture=make_architecture("nano", (32, 32), n_features=8, latent_vec_size=16),
        epochs=40,
        batch_size=8,
        recipe=Recipe(learning_rate=2e-3),
        accelerator="cpu",
        false_alarm_rate=0.1,
    )
    return fit_run(settings, out=tmp_path_factory.mktemp("control") / "dial")


@pytest.fixture(scope="module")
def graph(run: RunFolder) -> AnomalyGraph:
    graph = run.load_graph()
    assert isinstance(graph, AnomalyGraph)
    return graph


@pytest.fixture(scope="module")
def baseline(run: RunFolder) -> Baseline:
    trained = measure_trained_model(run, scoring=None, data_root=None, false_alarm_rate=None, progress=lambda *_: None)
    normals = run.find_images(("statistics",))
    images = load_images(normals, run.record.preparation)
    return Baseline.measure(trained, with_synthetic_defects(images, [file.name for file in normals]))


def bits_of(graph: AnomalyGraph, bits: int, **spoilt: int) -> dict[str, int]:
    names = [
        name for name, layer in graph.reconstruct.named_modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    result = dict.fromkeys(names, bits)
    for position, few in spoilt.items():
        result[names[int(position.removeprefix("at"))]] = few
    return result


def control(quantizer: RoundingQuantizer, baseline: Baseline, budget: Budget = TIGHT) -> ControlResult:
    return keep_accuracy(quantizer, baseline, budget, scored_by="rounding")


def test_a_model_that_holds_the_budget_is_judged_once_and_gives_nothing_back(
    graph: AnomalyGraph, baseline: Baseline
) -> None:
    quantizer = RoundingQuantizer(graph, bits_of(graph, 12))
    result = control(quantizer, baseline)
    assert quantizer.calls == [frozenset()]
    assert result.given_back == ()
    assert result.passes[0].holds
    assert result.judgement.accuracy.image_auroc_drop <= 0.01


@pytest.mark.parametrize("position", [3, 6])
def test_the_one_spoilt_layer_is_given_back_and_no_other(
    graph: AnomalyGraph, baseline: Baseline, position: int
) -> None:
    bits = bits_of(graph, 12, **{f"at{position}": 2})
    result = control(RoundingQuantizer(graph, bits), baseline)
    assert result.given_back == (tuple(bits)[position],)
    assert result.passes[0].broken_limits
    assert result.passes[-1].keep_float == result.given_back
    assert result.passes[-1].holds
    assert TIGHT.exceeded_by(result.judgement.accuracy) == ()


def test_of_two_spoilt_layers_that_hide_each_other_both_are_given_back_the_worse_one_first(
    graph: AnomalyGraph, baseline: Baseline
) -> None:
    bits = bits_of(graph, 12, at1=2, at5=2)
    result = control(RoundingQuantizer(graph, bits), baseline)
    names = tuple(bits)
    assert set(result.given_back) == {names[1], names[5]}
    assert set(result.harms) == set(names)
    harms = [result.harms[layer] for layer in result.given_back]
    assert harms == sorted(harms, reverse=True)


def test_the_number_of_passes_is_bounded_and_no_model_is_run_twice(graph: AnomalyGraph, baseline: Baseline) -> None:
    quantizer = RoundingQuantizer(graph, bits_of(graph, 2))
    with pytest.raises(ParityError, match=r"the budget cannot be kept: with all \d+ layers quantized .* in float"):
        control(quantizer, baseline, Budget(max_auroc_drop=0, max_pixel_auroc_drop=0, max_flip_rate=0))
    n_layers = len(quantizer.layers)
    # All, none, each alone, and 1, 2, 4, ... back in float; of eight layers seven at last, which is one alone again.
    assert len(quantizer.calls) == 2 + n_layers + 4
    assert len(set(quantizer.calls)) == len(quantizer.calls) - 1
    assert frozenset(quantizer.layers) in quantizer.calls


@pytest.mark.parametrize("n_spoilt", [2, 3, 5])
def test_no_more_layers_are_given_back_than_are_needed(graph: AnomalyGraph, baseline: Baseline, n_spoilt: int) -> None:
    bits = bits_of(graph, 12, **{f"at{position}": 2 for position in range(n_spoilt)})
    result = control(RoundingQuantizer(graph, bits), baseline)
    assert result.given_back
    assert set(result.given_back) <= set(tuple(bits)[:n_spoilt])
    kept = {one.keep_float: one.holds for one in result.passes}
    fewer = tuple(name for name in result.layers if name in result.given_back[:-1])
    assert kept[fewer] is False


def test_a_runtime_that_is_wrong_even_in_float_is_refused_after_two_passes(
    graph: AnomalyGraph, baseline: Baseline
) -> None:
    quantizer = DriftingQuantizer(graph, bits_of(graph, 12))
    with pytest.raises(ParityError, match=r"cannot help: with every layer back in float the image AUROC falls by"):
        control(quantizer, baseline)
    assert len(quantizer.calls) == 2


def test_a_layer_that_overflows_is_given_back(graph: AnomalyGraph, baseline: Baseline) -> None:
    bits = bits_of(graph, 12)
    result = control(OverflowingQuantizer(graph, bits), baseline)
    assert result.given_back == (next(iter(bits)),)
    assert result.passes[0].judgement is None
    assert result.passes[0].harm == np.inf
    assert "not finite numbers" in result.passes[0].broken_limits[0]


def test_the_only_layer_is_not_given_back(graph: AnomalyGraph, baseline: Baseline) -> None:
    name, *_ = bits_of(graph, 1)
    with pytest.raises(ParityError, match=r"with all 1 layers quantized .* \(2 models were tried\)"):
        control(RoundingQuantizer(graph, {name: 2}), baseline, Budget(0, 0, 0))


def test_two_runs_of_the_control_say_the_same(graph: AnomalyGraph, baseline: Baseline) -> None:
    quantizer = RoundingQuantizer(graph, bits_of(graph, 12, at3=2))
    assert control(quantizer, baseline) == control(quantizer, baseline)


def test_thresholds_are_fitted_on_each_models_own_scores(graph: AnomalyGraph, baseline: Baseline) -> None:
    quantizer = RoundingQuantizer(graph, bits_of(graph, 12, at3=2))
    result = control(quantizer, baseline, Budget(None, None, None))
    own = quantizer.outputs(baseline.normals, frozenset()).scores
    assert result.judgement.thresholds.calibration_scores == tuple(sorted(map(float, own)))
    assert result.judgement.thresholds.scored_by == "rounding"
    assert result.judgement.thresholds != baseline.thresholds


def test_progress_tells_every_pass(graph: AnomalyGraph, baseline: Baseline) -> None:
    told = []
    quantizer = RoundingQuantizer(graph, bits_of(graph, 12, at3=2))
    result = keep_accuracy(
        quantizer, baseline, TIGHT, scored_by="rounding", progress=lambda what, done, total: told.append(what)
    )
    assert len(dict.fromkeys(told)) == len(result.passes) + len(quantizer.layers)
    assert all(what.startswith("accuracy control: ") for what in told)


def test_harm_ignores_what_a_new_threshold_mends_and_sees_what_it_does_not() -> None:
    random = np.random.default_rng(0)
    maps, scores = random.random((5, 4, 4), dtype=np.float32), random.random(5, dtype=np.float32)
    reference = Outputs(maps, scores)
    assert measure_harm(reference, reference) < 1e-3
    assert measure_harm(reference, Outputs(2 * maps + 3, 5 * scores - 1)) < 1e-3
    assert measure_harm(reference, Outputs(maps, scores[::-1])) > 0.3
    assert measure_harm(reference, Outputs(np.zeros_like(maps), scores)) == 1.0
    assert measure_harm(reference, Outputs(maps * np.float32(np.nan), scores)) == np.inf


def test_a_limit_outside_its_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"max_flip_rate is 2; expected 0 to 1"):
        Budget(max_flip_rate=2)
    with pytest.raises(InputError, match="max_auroc_drop is nan"):
        Budget(max_auroc_drop=float("nan"))


def test_a_model_without_layers_to_quantize_is_refused(graph: AnomalyGraph, baseline: Baseline) -> None:
    with pytest.raises(InputError, match="no layer of this model can be quantized"):
        control(RoundingQuantizer(graph, {}), baseline)
