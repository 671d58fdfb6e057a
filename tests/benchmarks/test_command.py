from __future__ import annotations

import json
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.benchmarks.conftest import MakeBundle
from tests.tiny_bundles import make_bundle as make_tiny_bundle
from vae_edge.benchmarks.command import make_settings
from vae_edge.benchmarks.measure.plan import SuiteSettings, command_line
from vae_edge.benchmarks.report.choosing import options, parse_objective, parse_requirement
from vae_edge.benchmarks.report.pages.terminal import result_table
from vae_edge.benchmarks.report.records.files import read_report, sample_file_name, write_report
from vae_edge.benchmarks.report.records.report import Report
from vae_edge.benchmarks.suite import run_suite
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError, UsageError
from vae_edge.targets import Target

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def report_folder(
    make_bundle: MakeBundle, inspection_folder: Path, short_settings: SuiteSettings, tmp_path: Path
) -> Path:
    """A short benchmark's report."""
    folder = tmp_path / "report"
    run_suite([make_bundle("earlier")], inspection_folder, short_settings, report_folder=folder)
    return folder


def test_a_benchmark_prints_a_table_and_writes_a_report_over_an_earlier_one(
    report_folder: Path, command: Run, make_bundle: MakeBundle, inspection_folder: Path, tmp_path: Path
) -> None:
    (report_folder / "notes.txt").write_text("mine")
    make_bundle("squares-onnx-fp32", folder=tmp_path / "bundles")
    make_bundle("squares-tensorrt-fp32", Target.TENSORRT, folder=tmp_path / "bundles")
    arguments = (
        "--data",
        inspection_folder,
        "--report",
        report_folder,
        "--quick",
        "--rounds",
        1,
        "--round-time",
        "0.05",
    )
    code, out, err = command(tmp_path / "bundles", *arguments, program="bench")
    assert code == 0, err
    assert "squares-onnx-fp32" in out
    assert "squares-tensorrt-fp32 did not run: " in out
    assert "round 1 of 1" in err
    assert "Put squares-onnx-fp32 on this device." in out
    assert "there are no intervals" in err
    report = read_report(report_folder)
    assert report.settings.quick
    assert any("quick run" in warning for warning in report.warnings)
    assert [path.name for path in (report_folder / "samples").iterdir()] == ["squares-onnx-fp32.json"]
    assert (report_folder / "notes.txt").read_text() == "mine"
    for width in (80, 120):
        console = Console(width=width, file=StringIO())
        with console.capture() as capture:
            console.print(result_table(report, width))
        lines = capture.get().rstrip().splitlines()
        assert max(len(line) for line in lines) <= width
        # The names stay on one line each: a heading of two lines, a rule, two bundles.
        assert len(lines) == 5


def test_it_fails_where_no_bundle_could_run_and_the_report_says_why(
    command: Run, make_bundle: MakeBundle, inspection_folder: Path, tmp_path: Path
) -> None:
    bundle = make_bundle("squares-tensorrt-fp32", Target.TENSORRT)
    code, out, _ = command(
        bundle, "--data", inspection_folder, "--report", tmp_path / "report", "--quick", program="bench"
    )
    assert code == 1
    assert "did not run" in out
    report = read_report(tmp_path / "report")
    assert report.bundles[0].not_run_because
    assert report.reference_notes == ()
    assert "No bundle ran." in (tmp_path / "report/report.md").read_text()


def test_a_folder_without_a_bundle_is_refused_in_one_line(command: Run, tmp_path: Path) -> None:
    code, out, err = command(tmp_path, program="bench")
    assert code == 1
    assert out == ""
    assert "is not a bundle and contains none" in err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_no_report_can_hold_is_refused_before_anything_is_measured(command: Run, tmp_path: Path) -> None:
    for arguments in ((tmp_path / "\udcff",), (tmp_path, "--data", tmp_path / "\udcff")):
        code, out, err = command(*arguments, program="bench")
        assert (code, out) == (1, "")
        assert "is not UTF-8; rename the file" in err


def test_options_become_settings_and_the_command_line_that_reproduces_them() -> None:
    settings = make_settings(
        rounds=7,
        round_s=2.0,
        load_fps="30, 60",
        requests="1,4",
        batch_sizes="2",
        baseline="b",
        device="cuda:1",
        arithmetic="auto",
    )
    assert (settings.rounds, settings.rules.round_s, settings.throughput_s) == (7, 2.0, 2.0)
    assert (settings.load_fps, settings.requests, settings.batch_sizes) == ((30.0, 60.0), (1, 4), (2,))
    assert make_settings() == SuiteSettings()
    asked = options([parse_requirement("p99_ms <= 40")], parse_objective(None, "recall"))
    line = command_line(settings, "parts", ["a", "b"], asked)
    assert line == (
        "vae-bench a b --data parts --report REPORT --device cuda:1 --arithmetic auto --rounds 7 --round-time 2 "
        "--baseline b --requests 1,4 --batch-sizes 2 --load-fps 30,60 --require 'p99_ms<=40' --maximize recall"
    )


@pytest.mark.parametrize(
    "given",
    [{"load_fps": "0"}, {"load_fps": "fast"}, {"requests": "1.5"}, {"batch_sizes": ""}, {"deadline_ms": -1.0}],
)
def test_an_option_that_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_settings(**given)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--deadline-ms", "20"], "--deadline-ms is for images that arrive at a rate: add --load-fps"),
        (["--simple-method"], "--simple-method is for test images: add --data"),
    ],
)
def test_an_option_without_effect_is_refused_before_anything_is_measured(
    command: Run, tmp_path: Path, words: list[str], reason: str
) -> None:
    code, out, err = command(tmp_path, *words, program="bench")
    assert (code, out, err) == (2, "", f"error: {reason}\n")


def test_an_option_that_no_bundle_has_a_use_for_is_refused(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    only_torch = make_tiny_bundle(tmp_path / "toy-torch-fp32", Target.TORCH).folder
    code, out, err = command(only_torch, "--requests", 2, program="bench")
    assert (code, out) == (2, "")
    assert err == (
        "error: --requests is for bundles for onnx, openvino and tensorrt, but this one is for torch: leave it out\n"
    )
    code, out, err = command(only_torch, onnx_bundle.folder, "--requests", 2, "--reference", "gone", program="bench")
    assert (code, out) == (2, "")
    assert "the reference 'gone' is not one of the bundles" in err  # One of them has a use for it.


def test_nothing_that_keeps_the_requirements_is_exit_code_3(
    command: Run, make_bundle: MakeBundle, inspection_folder: Path, tmp_path: Path
) -> None:
    arguments: tuple[object, ...] = (make_bundle("a"), "--data", inspection_folder, "--report", tmp_path / "report")
    arguments += ("--quick", "--rounds", 1, "--round-time", "0.02")
    code, out, _ = command(*arguments, "--require", "p50_ms<=0.000001", program="bench")
    assert code == 3
    assert "No bundle fits." in out
    assert "the requirement is p50_ms <= 1e-06" in out
    found = read_report(tmp_path / "report").recommendation
    assert found is not None
    assert found.chosen is None


def test_an_unknown_metric_is_wrong_usage_and_lists_the_known_ones(command: Run, tmp_path: Path) -> None:
    code, _, err = command(tmp_path, "--require", "speed>=3", program="bench")
    assert code == 2
    assert "choose from mean_ms" in err


def test_a_report_that_is_newer_damaged_or_none_is_refused(report_folder: Path) -> None:
    file = report_folder / "report.json"
    content = json.loads(file.read_text())
    for change, message in (
        ({"schema_version": 3}, "reads up to 2"),
        ({"schema_version": 1}, "were not taken in rounds"),
        ({"bundles": 3}, "is damaged: bundles"),
        ({"format": "another"}, "not a benchmark report"),
    ):
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError, match=message):
            read_report(file)
    file.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_report(file)
    report = Report.model_validate_json(json.dumps(content))
    with pytest.raises(InputError, match="not a benchmark report"):
        write_report(report_folder, report, {})


def test_sample_files_are_plain_names_that_differ() -> None:
    assert sample_file_name("a/b c", []) == "samples/a-b-c.json"
    assert sample_file_name("a-b c", ["samples/a-b-c.json"]) == "samples/a-b-c-2.json"
    assert sample_file_name("..", []) == "samples/bundle.json"
