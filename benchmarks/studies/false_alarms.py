"""How often fresh good parts are called anomalous: `make bench-false-alarms RUN=...`.

The normals of a run that neither trained its network nor set the scale of its residual (roles `threshold` and `test`)
are divided many times: one half calibrates, the other is fresh. Pictures of the same part stay in one half.

Only the division is random, and the seed determines it. Network, scoring constants, images and their scores are the
same in every division, so the range shows how much a threshold depends on which of these normals it was fitted on, and
how much a measured rate depends on which of them are fresh. The divisions share images: it is not a confidence interval
for another training or for parts that are not among these. The `statistics` normals are left out, because the scale of
the residual was fitted to them and their scores are too good.

A random division makes both halves alike, whatever the run's own split is. Another column shows whether its held-out
normals are like the test images: the threshold fitted on all the `threshold` normals, applied to the normals in `test`.

Where all images are exchangeable, the mean rate of n calibrating images is k / (n + 1), the largest such value that is
no more than the promised one, or 1 / (n + 1) where n cannot support it (`vae_edge.decision`). Of the pictures of a part
only one calibrates, as in training; the rate then holds on average for fresh parts, and varies as much as so few parts
allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from vae_edge.benchmarks.studies import run_study
from vae_edge.cli.console import notes_console, plain_table, results_console
from vae_edge.cli.progress import step_progress
from vae_edge.decision import PixelTail, check_rate, fit_image_threshold
from vae_edge.errors import InputError, UsageError
from vae_edge.platform.atomic import write_text
from vae_edge.platform.work import Progress, StepProgress
from vae_edge.records import Record
from vae_edge.train.data.grouping import group_test_normals
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.data.split import SplitSettings
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.run.folder import RunFolder
from vae_edge.wording import count

RECORDED = "recorded"

_PERCENTILES = (2.5, 97.5)


class AchievedRate(Record):
    """The result for one promised rate."""

    promised: float
    mean: float
    """Mean over the divisions of the share of fresh images called anomalous, or of their pixels marked."""
    low: float
    """2.5 % of the divisions have at most this rate."""
    high: float
    """2.5 % of the divisions have at least this rate."""
    expected: float | None
    """Mean over the divisions of k / (n + 1), what exchangeable images give; None for pixels."""
    on_test: float | None
    """The rate on the test normals with the threshold from all the `threshold` normals; None without test normals."""


class FalseAlarmStudy(Record):
    """What the study of one run found."""

    run: str
    run_fingerprint: str
    n_threshold: int
    n_test: int
    n_parts: int
    """Different parts that these images show."""
    splits: int
    seed: int
    mean_n_calibrating: float
    images: tuple[AchievedRate, ...]
    pixels: AchievedRate


def divide(parts: Sequence[str], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw the images that calibrate: whole parts in random order, until they are half of the images or more.

    At least one part is left.

    Args:
        parts: the part that each image shows.
        rng: draws the order of the parts.

    Returns:
        bool [n], true for an image that calibrates.

    Raises:
        InputError: there are fewer than 2 parts.
    """
    names, part_of = np.unique(np.asarray(parts, dtype=np.str_), return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"the held-out normals show {count(len(names), 'part')}; expected at least 2, better 200: take more"
        )
    order = rng.permutation(len(names))
    counts = np.bincount(part_of)[order].cumsum()
    n_taken = min(int(np.searchsorted(counts, len(parts) / 2)) + 1, len(names) - 1)
    return np.isin(part_of, order[:n_taken])


def image_rates(
    scores: NDArray[np.float64],
    is_threshold: NDArray[np.bool_],
    divisions: Sequence[NDArray[np.bool_]],
    promised: float,
    *,
    parts: Sequence[str] | None = None,
    is_test: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> AchievedRate:
    """Measure the false-alarm rate on fresh images.

    Args:
        scores: float64 [n], of normals.
        is_threshold: bool [n], whether the run's own threshold was fitted on the image.
        divisions: bool [n] each, from `divide`.
        promised: false-alarm rate that the thresholds are fitted for, in (0, 1).
        parts: n keys, equal for pictures of the same part, of which a random one calibrates, as in a training (see
            `vae_edge.train.data.split.one_of_each_part`); None: each picture is a part.
        is_test: bool [n], the test images; None: all that the threshold was not fitted on.
        seed: of which pictures calibrate.

    Raises:
        InputError: see `fit_image_threshold`.
    """
    achieved, expected = [], []
    rng = np.random.default_rng(seed)
    keys = np.arange(len(scores)) if parts is None else np.unique(np.asarray(parts), return_inverse=True)[1]
    tests = ~is_threshold if is_test is None else is_test
    for calibrates in divisions:
        order = rng.permutation(len(scores))
        counted = order[np.unique(keys[order], return_index=True)[1]]
        counted = counted[calibrates[counted]]
        threshold, rate = fit_image_threshold(scores[counted], promised)
        achieved.append(float((scores[~calibrates] > threshold).mean()))
        n = len(counted)
        expected.append(math.floor(rate * (n + 1) + 1e-9) / (n + 1))
    on_test = None
    if is_threshold.any() and tests.any():
        threshold, _ = fit_image_threshold(scores[is_threshold], promised)
        on_test = float((scores[tests] > threshold).mean())
    return _summary(promised, achieved, float(np.mean(expected)), on_test)


def pixel_rates(
    maps: NDArray[np.float32],
    is_threshold: NDArray[np.bool_],
    divisions: Sequence[NDArray[np.bool_]],
    promised: float,
    progress: Progress | None = None,
) -> AchievedRate:
    """Measure the share of pixels that are marked on fresh images; arguments as in `image_rates`.

    Args:
        maps: float32 [n, H, W], anomaly maps of normals.
        is_threshold: see there.
        divisions: see there.
        promised: share of normal pixels that may be marked, in (0, 1).
        progress: called with the number of divisions done and their total.

    Raises:
        InputError: see `vae_edge.decision.PixelTail`.
    """

    def marked(calibrates: NDArray[np.bool_]) -> float:
        tail = PixelTail(int(calibrates.sum()) * maps[0].size, promised)
        for i in np.flatnonzero(calibrates):
            tail.add(maps[i])
        threshold = tail.threshold()
        return float(
            np.mean([np.count_nonzero(maps[i] > threshold) / maps[i].size for i in np.flatnonzero(~calibrates)])
        )

    achieved = []
    for done, calibrates in enumerate(divisions, 1):
        achieved.append(marked(calibrates))
        if progress is not None:
            progress(done, len(divisions))
    on_test = marked(is_threshold) if is_threshold.any() and not is_threshold.all() else None
    return _summary(promised, achieved, None, on_test)


def _summary(promised: float, achieved: Sequence[float], expected: float | None, on_test: float | None) -> AchievedRate:
    low, high = np.percentile(achieved, _PERCENTILES)
    return AchievedRate(
        promised=promised,
        mean=float(np.mean(achieved)),
        low=float(low),
        high=float(high),
        expected=expected,
        on_test=on_test,
    )


def study_run(
    run: RunFolder,
    *,
    rates: Sequence[float] = (0.01, 0.05, 0.1),
    splits: int = 50,
    seed: int = 0,
    group_by: str = RECORDED,
    data: str | Path | None = None,
    progress: StepProgress | None = None,
) -> FalseAlarmStudy:
    """Study the false alarms of a run.

    Args:
        run: a complete run.
        rates: promised false-alarm rates, each in (0, 1).
        splits: number of divisions.
        seed: of the divisions.
        group_by: which images show the same part: as the run recorded it, or again by `auto`, `none` or an expression,
            see `vae_edge.train.data.split.SplitSettings`.
        data: where the images are now; None: where they were.
        progress: called with the current step, how much of it is done and its total.

    Raises:
        InputError: the images are missing, are too few, or a rate is outside (0, 1).
    """
    for rate in rates:
        check_rate(rate, "false-alarm rate")
    recorded = run.split.of("threshold", "test")
    found = run.find_images(("threshold", "test"), data)
    chosen = [(image, file) for image, file in zip(recorded, found, strict=True) if image.defect is None]
    files = [file for _, file in chosen]
    if group_by == RECORDED:
        parts = [image.part for image, _ in chosen]
    else:
        white_level = run.record.preparation.white_level
        grouping = group_test_normals(files, SplitSettings(group_by=group_by), progress, white_level=white_level)
        parts = [grouping.part(file) for file in files]
    is_threshold = np.array([image.role == "threshold" for image, _ in chosen], dtype=np.bool_)
    by_run = {score.sha256 for score in run.calibration.scores}
    calibrated = np.array([image.sha256 in by_run for image, _ in chosen], dtype=np.bool_)
    rng = np.random.default_rng(seed)
    divisions = [divide(parts, rng) for _ in range(splits)]

    pixels = load_images(files, run.record.preparation, _stage(progress, "reading images"))
    maps, scores = run_graph(run.load_graph(), pixels, progress=_stage(progress, "scoring"))
    del pixels
    exact = scores.astype(np.float64)
    pixel_rate = run.thresholds.pixel_false_positive_rate
    return FalseAlarmStudy(
        run=run.record.name,
        run_fingerprint=run.fingerprint,
        n_threshold=int(is_threshold.sum()),
        n_test=int((~is_threshold).sum()),
        n_parts=len(set(parts)),
        splits=splits,
        seed=seed,
        mean_n_calibrating=float(np.mean([calibrates.sum() for calibrates in divisions])),
        images=tuple(
            image_rates(exact, calibrated, divisions, rate, parts=parts, is_test=~is_threshold, seed=seed)
            for rate in rates
        ),
        pixels=pixel_rates(maps, is_threshold, divisions, pixel_rate, _stage(progress, "dividing")),
    )


def _stage(progress: StepProgress | None, stage: str) -> Progress | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)


def parse_rates(text: str) -> list[float]:
    """Read `0.01,0.05` as rates.

    Raises:
        InputError: one is not a number in (0, 1).
    """
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"the rates are {text!r}; expected numbers separated by commas, such as 0.01,0.05") from error
    for rate in rates:
        check_rate(rate, "false-alarm rate")
    return rates


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that vae-train made.")],
    splits: Annotated[int, typer.Option(min=2, help="Random divisions of the held-out normals.")] = 50,
    rates: Annotated[str, typer.Option(help="Promised false-alarm rates.")] = "0.01,0.05,0.1",
    seed: Annotated[int, typer.Option(help="Of the divisions.")] = 0,
    group_by: Annotated[
        str,
        typer.Option(
            metavar="recorded|auto|none|REGEX", help="Pictures of the same part: as the run recorded, or found anew."
        ),
    ] = RECORDED,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the run's images are now.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures there as JSON.")] = None,
) -> None:
    """Measure the false-alarm rate on fresh normals, over random divisions of a run's threshold and test normals."""
    opened, promised = RunFolder.open(run), parse_rates(rates)
    with step_progress() as progress:
        study = study_run(
            opened, rates=promised, splits=splits, seed=seed, group_by=group_by, data=data, progress=progress
        )
    print_study(study)
    if out is not None:
        write_text(out, study.model_dump_json(indent=2) + "\n")
        notes_console().print(f"Written: {out}")


def print_study(study: FalseAlarmStudy) -> None:
    """Print a study as a table."""
    n_images = study.n_threshold + study.n_test
    table = plain_table(
        title=f"false alarms on fresh normals, run {study.run}: {study.splits} divisions of {n_images} images "
        f"of {study.n_parts} parts, {study.mean_n_calibrating:.0f} of which calibrate"
    )
    table.add_column("promised", style="cyan", no_wrap=True)
    for heading in ("mean", "95 % of divisions", "exchangeable", f"{study.n_test} test normals"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, rate in (*(("images", rate) for rate in study.images), ("pixels", study.pixels)):
        table.add_row(
            f"{_percent(rate.promised)} of {kind}",
            _percent(rate.mean),
            f"{_percent(rate.low)} to {_percent(rate.high)}",
            "" if rate.expected is None else _percent(rate.expected),
            "" if rate.on_test is None else _percent(rate.on_test),
        )
    results_console().print(table)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


if __name__ == "__main__":
    run_study(main)
