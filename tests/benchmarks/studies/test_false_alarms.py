"""The study keeps parts together, keeps the promise where it must, and finds where it is broken."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.exposures import write_exposures
from vae_edge.benchmarks.studies.false_alarms import divide, image_rates, main, parse_rates, pixel_rates, study_run
from vae_edge.errors import InputError
from vae_edge.records import make_record
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.model.presets import Architecture
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.run.folder import RunFolder


def divisions_of(parts: list[str], n: int, seed: int = 0) -> list[NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return [divide(parts, rng) for _ in range(n)]


def test_a_division_takes_whole_parts_and_about_half_of_the_images() -> None:
    parts = [f"part{i // 6}" for i in range(60)] + ["alone"]
    for calibrates in divisions_of(parts, 20):
        halves = [{part for part, c in zip(parts, calibrates, strict=True) if c == side} for side in (True, False)]
        assert not halves[0] & halves[1]
        assert len(halves[0] | halves[1]) == 11
        assert 30 <= calibrates.sum() <= 36
    # However unequal the parts, some are on either side.
    assert {int(calibrates.sum()) for calibrates in divisions_of(["a"] * 9 + ["b"], 20)} == {1, 9}
    with pytest.raises(InputError, match="show 1 part;"):
        divide(["a", "a"], np.random.default_rng(0))


@pytest.mark.parametrize("promised", [0.01, 0.05, 0.1])
def test_exchangeable_scores_keep_the_promise(promised: float) -> None:
    # Fresh scores each time: over one set of scores the mean depends on that set.
    parts = [str(i) for i in range(240)]
    means = []
    for seed in range(60):
        scores = np.random.default_rng(seed).exponential(size=240)
        rate = image_rates(scores, np.zeros(240, dtype=np.bool_), divisions_of(parts, 5, seed), promised)
        assert rate.expected == math.floor(promised * 121 + 1e-9) / 121
        assert rate.low <= rate.mean <= rate.high
        assert rate.on_test is None
        means.append(rate.mean)
    error = np.std(means) / math.sqrt(len(means))
    assert abs(np.mean(means) - math.floor(promised * 121 + 1e-9) / 121) < 4 * error


def test_parts_make_the_rate_vary_more_than_single_images_do() -> None:
    rng = np.random.default_rng(1)
    scores = np.repeat(rng.normal(size=40), 6) + 0.1 * rng.normal(size=240)
    own = np.zeros(240, dtype=np.bool_)
    together = image_rates(scores, own, divisions_of([str(i // 6) for i in range(240)], 100), 0.1)
    apart = image_rates(scores, own, divisions_of([str(i) for i in range(240)], 100), 0.1)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_held_out_normals_that_are_unlike_the_test_normals_show_in_their_own_column() -> None:
    rng = np.random.default_rng(2)
    is_threshold = np.arange(200) < 100
    scores = rng.normal(size=200) + np.where(is_threshold, 0.0, 1.0)
    rate = image_rates(scores, is_threshold, divisions_of([str(i) for i in range(200)], 50), 0.05)
    assert rate.on_test is not None
    assert rate.on_test > 0.15
    assert abs(rate.mean - 0.05) < 0.02


def test_as_many_pixels_are_marked_as_were_promised() -> None:
    maps = np.random.default_rng(3).random((40, 50, 40), dtype=np.float32)
    told: list[tuple[int, int]] = []
    rate = pixel_rates(
        maps,
        np.arange(40) < 20,
        divisions_of([str(i) for i in range(40)], 10),
        0.01,
        lambda *step: told.append(step),
    )
    assert abs(rate.mean - 0.01) < 0.002
    assert rate.on_test is not None
    assert abs(rate.on_test - 0.01) < 0.002
    assert told[-1] == (10, 10)


def test_rates_are_read_and_wrong_ones_refused() -> None:
    assert parse_rates("0.01, 0.1") == [0.01, 0.1]
    with pytest.raises(InputError, match="expected numbers separated by commas"):
        parse_rates("1 %")
    with pytest.raises(InputError, match="between 0 and 1"):
        parse_rates("0.1,5")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    data = tmp_path_factory.mktemp("data")
    write_exposures(data / "train" / "good", 16, 3)
    write_exposures(data / "test" / "good", 12, 2, first_part=16)
    write_exposures(data / "test" / "dent", 2, 1, first_part=40)
    values = {
        "source": {"root": str(data)},
        "architecture": Architecture(n_features=4, latent_vec_size=8, height=32, width=32),
        "epochs": 1,
        "accelerator": "cpu",
    }
    return fit_run(make_record(TrainSettings, values), out=tmp_path_factory.mktemp("runs") / "tiny")


def test_a_run_is_studied_on_the_normals_it_was_not_fitted_on(run: RunFolder) -> None:
    study = study_run(run, splits=6, rates=[0.1, 0.5])
    n_threshold = len(run.split.of("threshold"))
    assert (study.n_threshold, study.n_test) == (n_threshold, 24)
    assert study.n_parts == n_threshold // 3 + 12
    assert [rate.promised for rate in study.images] == [0.1, 0.5]
    assert study.pixels.promised == run.thresholds.pixel_false_positive_rate
    assert study_run(run, splits=6, rates=[0.1, 0.5]) == study
    assert study_run(run, splits=6, rates=[0.1, 0.5], group_by="none").n_parts == n_threshold + 24
    assert study_run(run, splits=6, rates=[0.1, 0.5], group_by=r"(part\d+)_").n_parts == study.n_parts


def test_the_command_prints_a_table_and_writes_the_figures(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(run.folder, splits=4, rates="0.1", out=tmp_path / "study.json")
    text = capsys.readouterr().out
    assert "promised" in text
    assert "10 % of images" in text
    assert "0.1 % of pixels" in text
    assert json.loads((tmp_path / "study.json").read_text())["splits"] == 4


def test_a_folder_that_is_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vae_edge.benchmarks.studies.false_alarms", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "is not a run" in done.stderr
