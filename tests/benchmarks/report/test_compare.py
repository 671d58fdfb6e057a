from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.example_report import example_report
from vae_edge.benchmarks.measure.samples import RawSamples
from vae_edge.benchmarks.measure.statistics import Interval, Ratio
from vae_edge.benchmarks.report.compare import Worsening, compare_reports, gate_lines
from vae_edge.benchmarks.report.records.files import read_report, samples_file, write_report
from vae_edge.benchmarks.report.records.report import Report
from vae_edge.errors import InputError, UsageError

Run = Callable[..., tuple[int, str, str]]


def raw_samples(ms: float, n_rounds: int = 8, seed: int = 0) -> RawSamples:
    """Samples of a bundle whose medians differ by a percent from round to round."""
    rng = np.random.default_rng(seed)

    def measured() -> list[int]:
        return [int(value) for value in 1e6 * ms * (1 + 0.01 * rng.normal()) * rng.uniform(0.95, 1.05, 40)]

    def round_() -> dict[str, Any]:
        series = {name: {"warmup_ns": [], "measured_ns": measured()} for name in ("engine", "predict", "file")}
        throughput = {"n_images": round(1000 / ms), "elapsed_ns": 1_000_000_000 + rng.integers(0, 1_000_000).item()}
        return {"series": series, "throughput": throughput, "energy": {"joules": None}, "first_result_ns": 10**9}

    return RawSamples(rounds={number: round_() for number in range(1, n_rounds + 1)})


def write(folder: Path, speeds_ms: dict[str, float], seed: int, n_rounds: int = 8, **changes: Any) -> Path:
    """Write a report of bundles with those speeds."""
    report = example_report()
    files: dict[str, bytes] = {}
    bundles = []
    for name, ms in speeds_ms.items():
        record, content = samples_file(f"samples/{name}.json", raw_samples(ms, n_rounds, seed).as_dict())
        files[record.name] = content
        bundles.append(report.bundles[0].model_copy(update={"name": name, "samples": record}))
    made: Report = report.model_copy(update={"bundles": tuple(bundles), "examples": (), **changes})
    write_report(folder, made, files)
    return folder


def test_a_slower_bundle_fails_the_gate_and_an_equal_one_passes(command: Run, tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": 10.0, "b": 10.0}, seed=1)
    new = write(tmp_path / "new", {"a": 10.0, "b": 13.0}, seed=2)
    code, out, err = command("compare", old / "report.json", new, "--fail-above", "1.10", program="bench")
    assert code == 3, err
    assert "b p50_ms: 1.30" in out
    assert out.count("certainly above 1.1") == 1
    assert "The gate fails" in out
    code, out, _ = command("compare", old, new, "--fail-above", "1.5", program="bench")
    assert code == 0
    assert "The gate passes" in out
    code, out, _ = command("bench", "compare", new, old)
    assert code == 0
    assert "b p50_ms: 0.76" in out
    assert "certainly better" in out


def test_fewer_images_a_second_are_worse_too(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", {"a": 10.0}, seed=1), write(tmp_path / "new", {"a": 20.0}, seed=2)
    (found,) = compare_reports(old, new, metrics=["images_per_s"]).worsenings
    assert found.ratio.value == pytest.approx(2.0, rel=0.01)
    assert found.verdict(1.5) == "worse"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.11, 1.3, "worse"), (1.05, 1.2, "uncertain"), (0.9, 1.09, "fine")]
)
def test_only_a_whole_interval_above_the_limit_is_worse(low: float, high: float, verdict: str) -> None:
    ratio = Ratio(value=(low + high) / 2, interval=Interval(low=low, high=high), n_rounds=5)
    assert Worsening("a", "p50_ms", ratio).verdict(1.10) == verdict


def test_without_an_interval_nothing_is_certain(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": 10.0}, seed=1, n_rounds=1)
    new = write(tmp_path / "new", {"a": 13.0}, seed=2, n_rounds=1)
    found = compare_reports(old, new)
    assert found.worsenings[0].ratio.interval is None
    assert not found.fails(1.1)
    assert "may be above 1.1, not certain" in gate_lines(found, 1.1)[0]


def test_a_bundle_that_runs_no_more_fails_the_gate_and_a_new_one_does_not(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": 10.0, "b": 10.0}, seed=1)
    new = write(tmp_path / "new", {"a": 10.0, "c": 10.0}, seed=2)
    found = compare_reports(old, new)
    assert found.lost == ("b",)
    assert "c is new" in found.notes
    assert found.fails(9.0)


def test_other_machines_and_other_models_are_refused_unless_told_to(tmp_path: Path) -> None:
    machine = example_report().machine.model_copy(update={"processor": "Another processor"})
    old = write(tmp_path / "old", {"a": 10.0}, seed=1)
    elsewhere = write(tmp_path / "elsewhere", {"a": 10.0}, seed=2, machine=machine)
    with pytest.raises(InputError, match=r"different machines .processor: An x86 processor and Another processor"):
        compare_reports(old, elsewhere)
    assert compare_reports(old, elsewhere, allow_different_machine=True).worsenings
    other = write(tmp_path / "other", {"a": 10.0}, seed=3)
    text = (other / "report.json").read_text()
    sha = example_report().bundles[0].model_sha256
    assert sha is not None
    (other / "report.json").write_text(text.replace(sha, "c" * 64))
    with pytest.raises(InputError, match="a holds different models"):
        compare_reports(old, other)
    assert compare_reports(old, other, allow_different_models=True).worsenings


def test_samples_that_were_changed_or_lost_are_refused(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", {"a": 10.0}, seed=1), write(tmp_path / "new", {"a": 13.0}, seed=2)
    shutil.copy(old / "samples/a.json", new / "samples/a.json")
    with pytest.raises(InputError, match="another SHA-256 for the raw samples of a"):
        compare_reports(old, new)
    (new / "samples/a.json").unlink()
    with pytest.raises(InputError, match="is missing; copy the report's whole folder"):
        compare_reports(old, new)


def test_no_common_bundle_and_no_such_metric_are_refused(command: Run, tmp_path: Path) -> None:
    old, new = write(tmp_path / "old", {"a": 10.0}, seed=1), write(tmp_path / "new", {"b": 13.0}, seed=2)
    with pytest.raises(InputError, match=r"no bundle ran in both reports: a in .* b in "):
        compare_reports(old, new)
    with pytest.raises(UsageError, match="no metric 'recall' to compare by; choose from mean_ms"):
        compare_reports(old, new, metrics=["recall"])
    assert command("compare", old, new, "--metric", "recall", program="bench")[0] == 2


def test_damaged_samples_are_refused() -> None:
    damaged: tuple[Any, ...] = ({}, [], {"samples_version": 2, "rounds": {"one": {}}}, {"samples_version": 9})
    for content in damaged:
        with pytest.raises(InputError, match="raw samples"):
            RawSamples.from_dict(content)


def test_samples_nested_too_deeply_are_refused_although_their_hash_is_right(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": 10.0}, seed=1)
    new = write(tmp_path / "new", {"a": 10.0}, seed=2)
    deep = b"[" * 200_000
    before = hashlib.sha256((new / "samples/a.json").read_bytes()).hexdigest()
    (new / "samples/a.json").write_bytes(deep)
    text = (new / "report.json").read_text().replace(before, hashlib.sha256(deep).hexdigest())
    (new / "report.json").write_text(text)
    with pytest.raises(InputError, match="the raw samples of a, cannot be read"):
        compare_reports(old, new)


def test_samples_that_lack_what_is_compared_are_refused(tmp_path: Path) -> None:
    old = write(tmp_path / "old", {"a": 10.0}, seed=1)
    new = write(tmp_path / "new", {"a": 10.0}, seed=2)
    empty = json.dumps({"samples_version": 2, "rounds": {"1": {}}, "cold": {}, "streams": [], "loads": []}).encode()
    before = hashlib.sha256((new / "samples/a.json").read_bytes()).hexdigest()
    (new / "samples/a.json").write_bytes(empty)
    text = (new / "report.json").read_text().replace(before, hashlib.sha256(empty).hexdigest())
    (new / "report.json").write_text(text)
    with pytest.raises(InputError, match="the raw samples of a are damaged"):
        compare_reports(old, new)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_in_the_place_of_a_report_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(InputError, match="cannot be read as a benchmark report"):
        read_report(tmp_path)
