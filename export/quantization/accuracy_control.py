"""Keep a quantized model's accuracy: layers go back to float, the most harmful first, until the loss is within budget.

There are two common ways to find the layers that do the harm. OpenVINO reverts each layer alone and measures the gain
(AccuracyAwareQuantization and "Quantizing with Accuracy Control" in its documentation); others quantize each layer
alone and measure the loss (sensitivity analysis; DAMO-YOLO's partial quantization does so with TensorRT). This module
uses the second: where two layers are bad, reverting one gains nothing measurable, because the other still spoils every
output. Quantized alone, each shows its own harm. Both ways cost one run for each layer; here over a few dozen images,
because an order needs less than a verdict does. How many go back is then found by doubling and halving.

Layers are ordered by a harm that every layer has, not by the AUROC, which most layers leave unchanged: how far scores
and maps move relative to each other, which is what changes a ranking. A shift or a stretch common to all does not
change it, and the thresholds of every pass are fitted on that pass's own scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vae_edge.agreement import Outputs
from vae_edge.errors import InputError, ParityError
from vae_edge.export.calibration.judging import JudgingSet, check_finite, judge
from vae_edge.export.settings import Budget
from vae_edge.export.trained_model import ThresholdRule, TrainedModel
from vae_edge.manifest import AccuracyRecord, Thresholds
from vae_edge.platform.work import StepProgress
from vae_edge.train.data.inspection_set import spread_places
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.wording import verb

RANKED_ON = 64
"""Judging images, at most, that the harm of a single layer is measured on."""


class LayerQuantizer(Protocol):
    """A model that can be partly quantized."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it quantizes, in the order of the graph."""

    def outputs(
        self,
        images: NDArray[np.uint8],
        keep_float: frozenset[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> Outputs:
        """Quantize all layers but these and run the model over images, uint8 [n, H, W, 3].

        It keeps nothing from one call to the next that would change an output.
        """


@dataclass(frozen=True)
class Baseline:
    """The trained model's outputs in FP32 for all images that a pass needs."""

    normals: NDArray[np.uint8]
    """uint8 [m, H, W, 3], the normals that thresholds are fitted on."""
    judging: JudgingSet
    outputs: Outputs
    """For the normals first, then for the judging images."""
    thresholds: Thresholds
    rule: ThresholdRule
    """How thresholds are computed from outputs for the normals."""

    @classmethod
    def measure(cls, trained: TrainedModel, judging: JudgingSet, progress: StepProgress | None = None) -> Baseline:
        """Run the trained model over the judging images; for the normals this is already done."""
        maps, scores = run_graph(
            trained.graph,
            judging.images,
            progress=None if progress is None else lambda done, total: progress("judging with torch", done, total),
        )
        normals = trained.outputs.take(slice(trained.n_normals))
        return cls(
            trained.images[: trained.n_normals],
            judging,
            Outputs(np.concatenate([normals.maps, maps]), np.concatenate([normals.scores, scores])),
            trained.thresholds,
            trained.rule,
        )

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """uint8 [m + n, H, W, 3], the images to run a model over to judge it: the normals, then the judging images."""
        return np.concatenate([self.normals, self.judging.images])

    def judge(self, outputs: Outputs, *, scored_by: str) -> Judgement:
        """Fit the model's own thresholds on its normals' scores, and judge it by them.

        Args:
            outputs: of the model, for `images`.
            scored_by: what computed them, for the record.

        Raises:
            ParityError: an output is not a finite number.
        """
        m = len(self.normals)
        check_finite(outputs)
        thresholds = self.rule.fit(outputs.take(slice(m)), scored_by=scored_by)
        rest = slice(m, None)
        accuracy = judge(self.outputs.take(rest), outputs.take(rest), self.judging, self.thresholds, thresholds)
        return Judgement(thresholds, accuracy)


@dataclass(frozen=True)
class Judgement:
    """A model's own thresholds and how much accuracy its precision costs."""

    thresholds: Thresholds
    accuracy: AccuracyRecord


@dataclass(frozen=True)
class Pass:
    """One judged model."""

    keep_float: tuple[str, ...]
    """Layers that were in float, in the order of the graph."""
    judgement: Judgement | None
    """None: an output was not a finite number."""
    harm: float
    """See `measure_harm`; infinite where an output was not a finite number."""
    broken_limits: tuple[str, ...]
    """Parts of a sentence; empty if the budget is kept."""

    @property
    def holds(self) -> bool:
        """Whether the budget is kept."""
        return not self.broken_limits


@dataclass(frozen=True)
class ControlResult:
    """A quantized model that keeps to its budget, and how it was found."""

    layers: tuple[str, ...]
    """All layers that can be quantized."""
    given_back: tuple[str, ...]
    """Layers that are in float, the most harmful first; empty if everything is quantized."""
    judgement: Judgement
    """Of the model with these layers in float."""
    passes: tuple[Pass, ...]
    """Every model that was run over all images, in order."""
    harms: dict[str, float]
    """What each layer, quantized alone, does to some images: see `measure_harm`. Empty if the budget was kept at
    once."""

    @property
    def keep_float(self) -> frozenset[str]:
        """The layers put back to float, as a quantizer takes them."""
        return frozenset(self.given_back)


def keep_accuracy(
    quantizer: LayerQuantizer,
    baseline: Baseline,
    budget: Budget,
    *,
    scored_by: str,
    progress: StepProgress | None = None,
) -> ControlResult:
    """Quantize as many layers as the budget allows.

    Everything is quantized first. If that exceeds the budget, the model with every layer in float is run: if that
    exceeds the budget too, nothing will help. Then each layer is quantized alone and run over `RANKED_ON` images, to
    rank them. Then 1, 2, 4, ... of them go back to float, the most harmful first, until the budget is kept, and the
    number is halved back to the smallest that keeps it. With n layers that is 1 pass over all images at best and about
    2 + 2 log2(n) at most. At least one layer stays quantized.

    Args:
        quantizer: the model.
        baseline: the trained model's outputs.
        budget: how much accuracy it may cost.
        scored_by: what runs the model, for the thresholds' record.
        progress: receives every pass and the images done in it.

    Raises:
        ParityError: the budget cannot be kept.
        InputError: the quantizer has no layers.
    """
    layers = tuple(quantizer.layers)
    if not layers:
        raise InputError("no layer of this model can be quantized; export it in fp16 or fp32")
    runner = _Runner(quantizer, baseline, budget, scored_by, progress, layers, [])
    full = runner.run(frozenset(), f"quantized, all of {len(layers)} layers")
    if full.holds:
        return runner.result(full, (), {})
    whole = runner.run(frozenset(layers), "all layers in float")
    if not whole.holds:
        raise ParityError(
            f"accuracy control cannot help: with every layer back in float {' and '.join(whole.broken_limits)}, judged "
            f"on {baseline.judging.description}; this runtime does not give the trained model's outputs: check its "
            "fp32 bundle, or allow more with --max-auroc-drop or --max-flip-rate; no bundle was made"
        )
    harms = {
        layer: runner.harm(frozenset(layers) - {layer}, f"only layer {position} of {len(layers)} quantized")
        for position, layer in enumerate(layers, start=1)
    }
    # Of equals the first in the graph: what it spoils goes through all others.
    ranked = sorted(layers, key=lambda layer: -harms[layer])

    def give_back(count: int) -> Pass:
        return runner.run(frozenset(ranked[:count]), f"layers back in float: {count} of {len(layers)}")

    best: Pass | None = None
    too_few, count = 0, 1
    while count < len(layers):
        tried = give_back(count)
        if tried.holds:
            found, fewest = _fewest(give_back, too_few, count, tried)
            return runner.result(found, tuple(ranked[:fewest]), harms)
        best = tried if best is None or tried.harm < best.harm else best
        # All but one is tried last.
        too_few, count = count, min(2 * count, len(layers) - 1) if count < len(layers) - 1 else len(layers)
    reached = (
        ""
        if best is None
        else (f", and at best, with {len(best.keep_float)} of them back in float, {' and '.join(best.broken_limits)}")
    )
    raise ParityError(
        f"the budget cannot be kept: with all {len(layers)} layers quantized {' and '.join(full.broken_limits)}, "
        f"judged on {baseline.judging.description}{reached} "
        f"({len(runner.passes)} {verb(len(runner.passes), 'model was', 'models were')} tried); export in fp16 "
        "or fp32, or allow more with --max-auroc-drop or --max-flip-rate; no bundle was made"
    )


def _fewest(give_back: Callable[[int], Pass], too_few: int, enough: int, found: Pass) -> tuple[Pass, int]:
    """Return the pass with the fewest layers back in float that keeps the budget, by halving, and their number."""
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        tried = give_back(middle)
        if tried.holds:
            enough, found = middle, tried
        else:
            too_few = middle
    return found, enough


def measure_harm(reference: Outputs, outputs: Outputs) -> float:
    """Return how far scores and maps move relative to each other: 0 if not at all, up to 1.

    For scores and for maps: the standard deviation of the residual of a straight line fitted through (reference,
    model), divided by that of the reference; it is sqrt(1 - r^2) with Pearson's r. The larger of the two is returned.
    Shifts and stretches do not count, because the thresholds are fitted again.

    Returns:
        In [0, 1]; infinite where an output is not a finite number.
    """
    return max(_unexplained(reference.scores, outputs.scores), _unexplained(reference.maps, outputs.maps))


def _unexplained(reference: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    if not np.isfinite(values).all():
        return math.inf
    first = reference.astype(np.float64).ravel() - reference.mean(dtype=np.float64)
    second = values.astype(np.float64).ravel() - values.mean(dtype=np.float64)
    squares = float(first @ first) * float(second @ second)
    if squares == 0:
        # Equal scores for all images tell nothing apart, unless the reference's are equal too.
        return 0.0 if not first.any() and not second.any() else 1.0
    return math.sqrt(max(0.0, 1.0 - float(first @ second) ** 2 / squares))


@dataclass(frozen=True)
class _Runner:
    """Runs and judges one model after another; it keeps nothing but the list of passes."""

    quantizer: LayerQuantizer
    baseline: Baseline
    budget: Budget
    scored_by: str
    progress: StepProgress | None
    layers: tuple[str, ...]
    passes: list[Pass]

    def run(self, keep_float: frozenset[str], what: str) -> Pass:
        """Run one model, unless it was run before: of two layers, one is quantized alone if the other is in float."""
        kept = tuple(layer for layer in self.layers if layer in keep_float)
        for earlier in self.passes:
            if earlier.keep_float == kept:
                return earlier
        progress = self.progress
        outputs = self.quantizer.outputs(
            self.baseline.images,
            keep_float,
            None if progress is None else lambda done, total: progress(f"accuracy control: {what}", done, total),
        )
        rest = slice(len(self.baseline.normals), None)
        harm = measure_harm(self.baseline.outputs.take(rest), outputs.take(rest))
        try:
            judgement = self.baseline.judge(outputs, scored_by=self.scored_by)
        except ParityError as error:
            one = Pass(kept, None, math.inf, (str(error),))
        else:
            one = Pass(kept, judgement, harm, self.budget.exceeded_by(judgement.accuracy))
        self.passes.append(one)
        return one

    def harm(self, keep_float: frozenset[str], what: str) -> float:
        """Run one model over a few of the judging images, spread evenly, and return its harm."""
        first = len(self.baseline.normals)
        places = [first + place for place in spread_places(len(self.baseline.images) - first, RANKED_ON)]
        progress = self.progress
        outputs = self.quantizer.outputs(
            self.baseline.images[places],
            keep_float,
            None if progress is None else lambda done, total: progress(f"accuracy control: {what}", done, total),
        )
        reference = Outputs(self.baseline.outputs.maps[places], self.baseline.outputs.scores[places])
        return measure_harm(reference, outputs)

    def result(self, last: Pass, given_back: tuple[str, ...], harms: dict[str, float]) -> ControlResult:
        """Describe what was found."""
        assert last.judgement is not None  # a model without one breaks every budget
        return ControlResult(self.layers, given_back, last.judgement, tuple(self.passes), harms)
