"""The study of detection: what its cases are, what its tables say, and one case from beginning to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from tests.train.random_backbones import random_weights
from vae_edge.benchmarks.studies.detection import anomalib_peer
from vae_edge.benchmarks.studies.detection.cases import (
    AtRate,
    CaseResult,
    Row,
    Training,
    at_rates,
    scorings_of,
    settings_of,
)
from vae_edge.benchmarks.studies.detection.command import detection
from vae_edge.benchmarks.studies.detection.peers import PeerResult
from vae_edge.benchmarks.studies.detection.tables import networks_table, peers_table, spread, times_table, write_tables
from vae_edge.benchmarks.studies.detection.tasks import Kind, Work, run_all
from vae_edge.benchmarks.studies.detection.timing import TimingResult
from vae_edge.errors import UsageError
from vae_edge.records import Record
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.model.input_settings import Photometric
from vae_edge.train.model.presets import REFERENCE_RECIPE
from vae_edge.train.model.scoring import DEFAULT_SCORING, MSE_SCORING, Level, parse_scoring
from vae_edge.train.run.metrics import DefectMetrics, Metrics
from vae_edge.train.sample import SampleSettings, write_sample_set


def settings(
    training: Training, *, photometric: Photometric = Photometric.IMAGE, is_whole: bool = False
) -> TrainSettings:
    return settings_of(
        training,
        Path("set"),
        "nano",
        3,
        epochs=None,
        photometric=photometric,
        scoring=DEFAULT_SCORING,
        is_whole=is_whole,
    )


def test_the_automatic_training_leaves_everything_to_be_chosen() -> None:
    auto = settings(Training.AUTO)
    assert auto.photometric is None
    assert auto.scoring is None
    assert auto.size is not None
    assert (auto.size.image, auto.size.tiles) == (None, "auto")
    assert auto.seed == auto.split.seed == 3


def test_the_plain_training_is_the_published_one_on_whole_images() -> None:
    plain = settings(Training.PLAIN)
    assert plain.recipe == REFERENCE_RECIPE
    assert plain.photometric is Photometric.NONE
    assert plain.precision == "32-true"
    assert plain.size is not None
    assert (plain.size.image, plain.size.tiles) == ((128, 128), "none")


@pytest.mark.parametrize(("is_whole", "tiles"), [(False, "none"), (True, 64)])
def test_the_other_size_is_what_was_not_chosen(is_whole: bool, tiles: object) -> None:
    other = settings(Training.OTHER_SIZE, is_whole=is_whole)
    assert other.size is not None
    assert other.size.tiles == tiles
    assert (other.photometric, other.scoring) == (Photometric.IMAGE, DEFAULT_SCORING)


@pytest.mark.parametrize(
    ("chosen", "other"), [(Photometric.IMAGE, Photometric.NONE), (Photometric.NONE, Photometric.IMAGE)]
)
def test_the_other_light_is_what_was_not_chosen(chosen: Photometric, other: Photometric) -> None:
    assert settings(Training.OTHER_LIGHT, photometric=chosen).photometric is other


def test_every_part_of_the_chosen_scoring_is_switched_off_in_turn() -> None:
    off = scorings_of(DEFAULT_SCORING)
    assert off["chosen"] == DEFAULT_SCORING
    assert all(each.smoothing_sigma == 0 for each in off["no smoothing"].maps)
    assert all(each.level is Level.NONE for each in off["no division by the image's own residual"].maps)
    assert not any(each.per_pixel for each in off["no normalization per pixel"].maps)
    assert [each for name, each in off.items() if name.startswith("only ")] == [
        DEFAULT_SCORING.model_copy(update={"maps": (each,)}) for each in DEFAULT_SCORING.maps
    ]
    assert off["mse (the plain scoring)"] == MSE_SCORING


def test_maps_that_become_equal_with_a_part_off_are_counted_once() -> None:
    two = parse_scoring("l1/0.008/image+pixel/max,l1/0.008/local+pixel/max")
    assert two is not None
    assert len(scorings_of(two)["no division by the image's own residual"].maps) == 1


def result(data: str, seed: int, auroc: float, hindsight: dict[str, float]) -> CaseResult:
    metrics = Metrics(
        n_normal=2,
        n_anomalous=2,
        image_auroc=auroc,
        pixel_auroc=0.5,
        aupro=0.25,
        per_defect={"hole": DefectMetrics(n=2, image_auroc=auroc, pixel_auroc=0.5)},
    )
    return CaseResult(
        data=data,
        preset="nano",
        seed=seed,
        model="images of 64x64, not cut",
        n_tiles=1,
        gflop=0.5,
        n_parameters=1_500_000,
        photometric="none",
        scoring="a",
        because=(),
        training_s=1.0,
        images_per_s=10.0,
        rows=(Row(name="auto", metrics=metrics),),
        hindsight=hindsight,
        versions={},
    )


def test_a_spread_is_a_mean_and_a_standard_deviation() -> None:
    assert spread([0.5, 0.7, 0.9]) == "0.700 ± 0.200"
    assert spread([0.5]) == "0.500"
    assert spread([None]) == ""


def test_hindsight_takes_the_best_of_each_set_and_the_best_for_all() -> None:
    text = write_tables(
        [
            result("one", 0, 0.7, {"default": 0.6, "a": 0.7, "b": 0.9}),
            result("one", 1, 0.8, {"default": 0.6, "a": 0.8, "b": 0.9}),
            result("two", 0, 0.9, {"default": 0.6, "a": 0.9, "b": 0.5}),
        ]
    )
    assert "| one | 0.750 ± 0.071 | 0.600 ± 0.000 | 0.750 ± 0.071 | 0.900 ± 0.000 | `b` |" in text
    assert "| two | 0.900 | 0.600 | 0.900 | 0.900 | `a` |" in text
    assert "found with the labels of all sets: `a`" in text
    assert "| auto | 0.750 ± 0.071 | 0.500 ± 0.000 | 0.250 ± 0.000 |" in text
    assert "| hole | 0.750 ± 0.071 / 0.500 ± 0.000 |" in text


@pytest.fixture
def run_command() -> CliRunner:
    return CliRunner()


def application() -> Typer:
    app = Typer()
    app.command()(detection)
    return app


@pytest.mark.slow
def test_a_case_is_trained_measured_and_not_measured_again(run_command: CliRunner, tmp_path: Path) -> None:
    sizes = SampleSettings(image_size=64, n_train=40, n_test_good=4, n_test_per_defect=1)
    data = write_sample_set(tmp_path, ["fabric"], sizes)[0]
    out = tmp_path / "study"
    arguments = [
        str(data),
        "--out",
        str(out),
        "--seeds",
        "0",
        "--trainings",
        "auto,plain",
        "--epochs",
        "1",
        "--rounds",
        "1",
    ]
    first = run_command.invoke(application(), arguments)
    assert first.exit_code == 0, first.output
    measured = CaseResult.model_validate(json.loads((out / "results" / "fabric-nano-0.json").read_text()))
    names = [row.name for row in measured.rows]
    assert names[:2] == ["auto", "chosen"]
    assert {"template baseline", "training plain", "training plain, mse"} <= set(names)
    by_name = {row.name: row.metrics for row in measured.rows}
    assert by_name["auto"].image_auroc == pytest.approx(by_name["chosen"].image_auroc)
    assert by_name["auto"].aupro == pytest.approx(by_name["chosen"].aupro, abs=1e-3)
    assert measured.hindsight[measured.scoring] == pytest.approx(by_name["chosen"].image_auroc, abs=0.05)
    tables = (out / "detection.md").read_text()
    assert "### fabric, `nano`, seeds 0" in tables
    assert "| fabric | `nano` | 1 |" in tables
    (timed,) = (line for line in tables.splitlines() if line.startswith("| `nano`, "))
    assert len(re.findall(r"\d\.\d / \d\.\d", timed)) == 2
    assert len(re.findall(r"nano, \w+ int8 could not be exported: 22 different images", tables)) == 2
    stamps = {file.name: file.stat().st_mtime_ns for file in (out / "results").glob("*.json")}
    assert {"fabric-nano-0.json", "fabric-timing-0.json"} <= set(stamps)
    again = run_command.invoke(application(), arguments)
    assert again.exit_code == 0
    assert {file.name: file.stat().st_mtime_ns for file in (out / "results").glob("*.json")} == stamps


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "a"], "whole numbers"),
        (["--trainings", "best"], "there is no training 'best'"),
        (["--preset", "huge"], "there is no preset 'huge'"),
        (["--peers", "ganomaly"], "there is no model 'ganomaly'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    run_command: CliRunner, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = run_command.invoke(application(), [str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_a_threshold_from_held_out_normals_has_its_recall_and_false_alarms() -> None:
    held_out = np.arange(99.0)
    labels = np.array([False, False, True, True, True])
    one, five = at_rates(held_out, labels, np.array([97.5, 10.0, 99.0, 95.5, 3.0]))
    assert (one.rate, one.in_force, five.in_force) == (0.01, 0.01, 0.05)
    assert [one.recall, five.recall] == pytest.approx([1 / 3, 2 / 3])
    assert [one.false_alarm_rate, five.false_alarm_rate] == [0.0, 0.5]


def test_few_held_out_normals_support_no_small_rate() -> None:
    one, _ = at_rates(np.arange(21.0), np.array([False, True]), np.array([0.0, 30.0]))
    assert one.in_force == pytest.approx(1 / 22)


def test_the_backbones_tensors_get_timms_names() -> None:
    ours, theirs = random_weights("package"), random_weights("timm")
    named = anomalib_peer._named_as_in_timm(ours)
    expected = {name for name in theirs if not name.startswith(("conv_head.", "bn2."))}
    assert set(named) == expected
    assert all(torch.equal(named[name], theirs[name]) for name in expected)


def peer_of(
    metrics: Metrics,
    found: tuple[AtRate, ...] = (),
    *,
    model: str = "padim",
    settings: str = "strides 4, 8 and 16",
    image_size: tuple[int, int] = (64, 64),
    train_s: float = 1.0,
) -> PeerResult:
    return PeerResult(
        model=model,
        settings=settings,
        seed=0,
        image_size=image_size,
        train_s=train_s,
        metrics=metrics,
        at_rates=found,
        exported="model.xml",
        versions={},
    )


def test_other_tools_stand_beside_ours_in_one_table() -> None:
    found = (
        AtRate(rate=0.01, in_force=1 / 22, recall=0.25, false_alarm_rate=0.0),
        AtRate(rate=0.05, in_force=0.05, recall=0.5, false_alarm_rate=0.125),
    )
    own = result("one", 0, 0.7, {})
    own = own.model_copy(update={"rows": (own.rows[0].model_copy(update={"at_rates": found}),), "wall_s": 12.4})
    peer = peer_of(own.rows[0].metrics, found, image_size=(288, 256), train_s=30.6)
    text = peers_table(
        "one",
        [own],
        [peer],
        TimingResult(models={"padim": {"file_p50_ms": 20.04, "engine_p50_ms": 9.0}}),
    )
    assert "### one: other tools on the same split, seed 0" in text
    assert "The others at 288x256" in text
    assert "| vae-edge, `nano` | 0.700 | 0.500 | 0.250 | 0.250 | 0.500 | 0.000 | 0.125 | 12 |  |  |" in text
    assert "| anomalib, padim | 0.700 | 0.500 | 0.250 | 0.250 | 0.500 | 0.000 | 0.125 | 31 | 20.0 | 9.0 |" in text
    assert "For 1% the held-out normals support no rate below 4.5%." in text


def test_times_stand_by_runtime_and_precision() -> None:
    own = result("one", 0, 0.7, {})
    peer = peer_of(own.rows[0].metrics)
    times = {
        "nano, onnx fp32": {"file_p50_ms": 5.04, "engine_p50_ms": 3.0},
        "nano, openvino int8": {"file_p50_ms": 2.0, "engine_p50_ms": 1.0},
        "padim": {"file_p50_ms": 20.0, "engine_p50_ms": 9.0},
    }
    timing = TimingResult(
        models=times, failed={"nano, onnx int8": "it ended"}, not_exported={"nano, openvino fp32": "no room"}
    )
    text = times_table("one", [own], [peer], timing)
    assert "|  | onnx fp32 | onnx int8 | openvino fp32 | openvino int8 |" in text
    assert f"| `nano`, {own.model} | 5.0 / 3.0 |  |  | 2.0 / 1.0 |" in text
    assert "| anomalib, padim |  |  | 20.0 / 9.0 |  |" in text
    assert "nano, onnx int8 could not be timed: it ended" in text
    assert "nano, openvino fp32 could not be exported: no room" in text


def test_all_networks_and_other_tools_stand_in_one_table() -> None:
    def at(recall: float) -> AtRate:
        return AtRate(rate=0.01, in_force=0.01, recall=recall, false_alarm_rate=0.25)

    def own(seed: int, auroc: float, recall: float) -> CaseResult:
        made = result("one", seed, auroc, {})
        return made.model_copy(update={"rows": (made.rows[0].model_copy(update={"at_rates": (at(recall),)}),)})

    peer = peer_of(own(0, 0.75, 0.0).rows[0].metrics, (at(0.125),), model="stfpm", settings="12 epochs")
    text = networks_table([own(0, 0.7, 0.4), own(1, 0.8, 0.6), result("two", 0, 0.5, {})], {"one": [peer]})
    assert text.splitlines()[4:] == [
        "| one | `nano` | 2 | 0.750 ± 0.071 | 0.500 ± 0.000 | 0.250 ± 0.000 | 0.500 ± 0.141 |  | 0.250 ± 0.000 /  |",
        "| one | anomalib, stfpm: 12 epochs | 1 | 0.750 | 0.500 | 0.250 | 0.125 |  | 0.250 /  |",
        "| two | `nano` | 1 | 0.500 | 0.500 | 0.250 |  |  |  /  |",
    ]


class Number(Record):
    value: int


def test_a_task_is_done_once_unless_it_changes(tmp_path: Path) -> None:
    done: list[int] = []

    def double(job: Number, work: Work) -> Number:
        done.append(job.value)
        return Number(value=2 * job.value)

    kind = Kind(Number, Number, double)
    first = run_all(kind, {"a": Number(value=1), "b": Number(value=2)}, tmp_path, 1)
    again = run_all(kind, {"a": Number(value=1), "b": Number(value=5)}, tmp_path, 1)
    assert ([first["b"].value, again["a"].value, again["b"].value], done) == ([4, 2, 10], [1, 2, 5])


def test_a_result_that_is_not_whole_is_measured_again(tmp_path: Path) -> None:
    done: list[int] = []

    def count(job: Number, work: Work) -> Number:
        done.append(job.value)
        return Number(value=len(done))

    kind = Kind(Number, Number, count, is_whole=lambda result: result.value > 1)
    found = [run_all(kind, {"a": Number(value=7)}, tmp_path, 1)["a"].value for _ in range(3)]
    assert (found, done) == ([1, 2, 2], [7, 7])


def test_a_task_tells_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(job: Number, work: Work) -> Number:
        work.hear("training: 1 of 2")
        return job

    run_all(Kind(Number, Number, tell), {"a": Number(value=1)}, tmp_path, 1)
    assert "a: training: 1 of 2" in capsys.readouterr().err


def test_an_interrupted_study_says_how_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(job: Number, work: Work) -> Number:
        if job.value == 2:
            raise KeyboardInterrupt
        return job

    kind, jobs = Kind(Number, Number, interrupt), {"a": Number(value=1), "b": Number(value=2)}
    with pytest.raises(KeyboardInterrupt):
        run_all(kind, jobs, tmp_path, 1)
    assert "the same command continues" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.json") if not path.name.endswith(".job.json")} == {"a.json"}


def test_only_what_differs_between_images_is_open_in_an_exported_model() -> None:
    assert anomalib_peer._dynamic_axes((128, 96)) == {}
    assert anomalib_peer._dynamic_axes(None) == {"input": {2: "height", 3: "width"}}
