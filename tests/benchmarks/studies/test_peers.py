"""The comparison with other tools, as far as it goes without their environments."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tiny_bundles import SIZE, dark_image, make_bundle, spotted_image, write_image
from vae_edge.benchmarks.measure.process import run_process
from vae_edge.benchmarks.studies.peers import environments, measured_process
from vae_edge.benchmarks.studies.peers.candidates import (
    Candidate,
    anomalib_candidates,
    bare_candidates,
    own_candidates,
    trtexec_candidates,
)
from vae_edge.benchmarks.studies.peers.environments import Environment, size_of, source_fingerprint
from vae_edge.benchmarks.studies.peers.models import find_models
from vae_edge.benchmarks.studies.peers.rounds import Measured, Plan, read_benchmark_app, read_trtexec, run_rounds
from vae_edge.benchmarks.studies.peers.table import make_rows, to_markdown
from vae_edge.bundle import Bundle
from vae_edge.errors import DeviceError, InputError
from vae_edge.targets import Precision, Target

BENCHMARK_APP = """\
[Step 10/11] Measuring performance (Start inference synchronously, limits: 2000 ms duration)
[ INFO ] First inference took 3.58 ms
[Step 11/11] Dumping statistics report
[ INFO ] Count:            2155 iterations
[ INFO ] Latency:
[ INFO ]    Median:        868.28 us
[ INFO ]    Average:       886.66 us
[ INFO ] Throughput:   1077.21 FPS
"""

TRTEXEC = """\
[11/23/2026-05:00:00] [I] Throughput: 812.5 qps
[11/23/2026-05:00:00] [I] Latency: min = 1.1 ms, max = 2.0 ms, mean = 1.3 ms, median = 1.25 ms, percentile(99%) = 1.9 ms
"""


HERE = Environment("here", (sys.executable,), 123_000_000, {})
ENVIRONMENTS = {Target.ONNX: HERE, Target.OPENVINO: HERE}


@pytest.fixture
def onnx_bundle(tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return make_bundle(tmp_path / "bundles/toy", Target.ONNX)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[str, ...]:
    dark = [write_image(tmp_path / f"{seed}.png", dark_image(seed, 48)) for seed in range(3)]
    return (*map(str, dark), str(write_image(tmp_path / "spot.png", spotted_image(9, 48))))


def _plan(tmp_path: Path, pictures: tuple[str, ...], rounds: int = 1) -> Plan:
    return Plan(pictures, pictures, rounds, seconds=0.05, n_start=2, timeout_s=60.0, scratch=tmp_path)


def _entry(row: str, variant: str, *samples: dict[str, float], scores: list[float] | None = None) -> Measured:
    candidate = Candidate(row, variant, HERE, "process", Path("model"), "onnxruntime")
    return Measured(candidate, list(samples), scores or [])


def test_the_output_of_benchmark_app_is_read_in_milliseconds() -> None:
    assert read_benchmark_app(BENCHMARK_APP) == {"p50_ms": pytest.approx(0.86828), "per_s": 1077.21}
    slow = BENCHMARK_APP.replace("868.28 us", "12.5 ms")
    assert read_benchmark_app(slow)["p50_ms"] == 12.5


def test_the_output_of_trtexec_is_read() -> None:
    assert read_trtexec(TRTEXEC) == {"p50_ms": 1.25, "per_s": 812.5}


def test_output_without_figures_is_an_error_with_its_last_line() -> None:
    with pytest.raises(DeviceError, match="last line: it broke"):
        read_benchmark_app("[Step 1/11]\nit broke\n")


def test_benchmark_app_is_told_the_shape_and_the_arithmetic() -> None:
    def command(precision: str | None) -> list[str]:
        options = {"hint": "latency", "precision": precision}
        shape = (1, 128, 128, 3)
        return Candidate("app", "", HERE, "benchmark_app", Path("model.xml"), options=options, shape=shape).command(2.0)

    assert "[1,128,128,3]" in command("f32")
    assert command("f32")[-2:] == ["-infer_precision", "f32"]
    assert "-infer_precision" not in command(None)


def test_each_metric_takes_the_best_layout_and_start_and_memory_the_quickest_ones() -> None:
    one = {"files_per_s": 100.0, "file_p50_ms": 5.0, "first_result_s": 1.0, "peak_bytes": 50e6}
    many = {"files_per_s": 180.0, "file_p50_ms": 8.0, "first_result_s": 0.5, "peak_bytes": 40e6}
    rows = make_rows([_entry("loop", "1 caller", one), _entry("loop", "2 callers", many)], [])
    assert len(rows) == 1
    chosen = {name: (cell.median, cell.variant) for name, cell in rows[0].cells.items()}
    assert chosen["files_per_s"] == (180.0, "2 callers")
    assert chosen["file_p50_ms"] == (5.0, "1 caller")
    assert chosen["first_result_s"] == (1.0, "1 caller")
    assert chosen["peak_bytes"] == (50e6, "1 caller")


def test_a_cell_is_the_median_over_the_rounds_with_half_their_range() -> None:
    rounds = [{"files_per_s": value} for value in (90.0, 100.0, 130.0)]
    cell = make_rows([_entry("tool", "", *rounds)], [])[0].cells["files_per_s"]
    assert cell.median == 100.0
    assert cell.half_range == pytest.approx(0.2)


def test_the_table_has_the_auroc_the_layouts_and_what_was_not_measured() -> None:
    measured = [_entry("loop", "1 caller", {"files_per_s": 100.0, "file_p50_ms": 5.0}, scores=[0.1, 0.2, 0.9])]
    broken = _entry("other", "")
    broken.failed_because = "it ended with status 1: no such device"
    text = to_markdown(
        make_rows([*measured, broken], [False, False, True]), ["Model: toy."], ["trtexec: not present on this machine"]
    )
    assert "* Model: toy." in text
    assert "| loop | 100 ±0% | - | 5.00 ±0% | - | - | - | - | 1.000 |" in text
    assert "| other | - | - | - | - | - | - | - | - |" in text
    assert "* loop: images/s from files: 1 caller; p50 of a file: 1 caller" in text
    assert "* trtexec: not present on this machine" in text
    assert "* other: it ended with status 1: no such device" in text


def test_trtexec_is_not_present_where_it_is_not(onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {(Target.ONNX, Precision.FP32): onnx_bundle}
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert trtexec_candidates(models) == "not present on this machine"
    monkeypatch.setattr("shutil.which", lambda name: f"/opt/{name}")
    found = trtexec_candidates(models)
    assert not isinstance(found, str)
    assert found[0].shape == (1, SIZE, SIZE, 3)


def test_anomalib_is_measured_as_it_comes_in_fp32_and_quantized() -> None:
    first, second, third = anomalib_candidates(HERE, Path("any.xml"), Path("fixed.xml"), Path("int8.xml"))
    assert (first.model, first.options["arguments"]) == (Path("any.xml"), {})
    assert (second.model, second.options["arguments"]["device"]) == (Path("fixed.xml"), "CPU")
    assert third.model == Path("int8.xml")
    assert [each.row for each in (first, second, third)] == [
        "anomalib, its defaults",
        "anomalib, fp32",
        "anomalib, int8",
    ]
    assert len(anomalib_candidates(HERE, Path("any.xml"), Path("any.xml"), None)) == 2


def test_bundles_of_two_runs_are_refused(tmp_path: Path, onnx_bundle: Bundle) -> None:
    assert list(find_models(onnx_bundle.folder.parent, None)) == [(Target.ONNX, Precision.FP32)]
    make_bundle(tmp_path / "bundles/again", Target.ONNX)
    with pytest.raises(InputError, match="are both onnx fp32"):
        find_models(tmp_path / "bundles", None)


def test_the_size_of_an_environment_leaves_bytecode_out(tmp_path: Path) -> None:
    (tmp_path / "package/__pycache__").mkdir(parents=True)
    (tmp_path / "package/code.py").write_bytes(b"12345")
    (tmp_path / "package/__pycache__/code.pyc").write_bytes(b"1234567890")
    assert size_of(tmp_path) == 5


def test_the_sources_have_one_fingerprint_until_they_change(tmp_path: Path) -> None:
    for name in ("vae_edge", "train", "export", "benchmarks"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    before = source_fingerprint(tmp_path)
    assert source_fingerprint(tmp_path) == before
    (tmp_path / "train/new.py").write_text("a = 1\n")
    assert source_fingerprint(tmp_path) != before


def test_an_environment_is_made_once_and_gets_a_changed_package_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[Sequence[str]] = []
    made: list[Path] = []

    def make_empty(folder: Path) -> None:
        made.append(folder)
        (folder / "bin").mkdir(parents=True)
        (folder / "Scripts").mkdir()
        environments.python_of(folder).touch()

    monkeypatch.setattr(environments, "_make_empty", make_empty)
    monkeypatch.setattr(environments, "_install", lambda folder, arguments: installed.append(arguments))
    monkeypatch.setattr(environments, "_versions", lambda folder: {"openvino": "1.0"})
    place, told = tmp_path / "place", list[str]()
    assert environments.make_own(place, "openvino", told.append).versions == {"openvino": "1.0"}
    assert environments.make_own(place, "openvino", told.append).name == "vae-edge[openvino]"
    assert (len(made), len(installed)) == (1, 1)
    assert installed[0][-1].startswith("vae-edge[openvino] @ file:")
    monkeypatch.setattr(environments, "source_fingerprint", lambda root: "another")
    environments.make_own(place, "openvino", told.append)
    assert (len(made), len(installed)) == (1, 2)
    assert "--no-deps" in installed[1]
    assert [line.split(": ")[1][:6] for line in told] == ["making", "the pa"]


def test_a_failed_installation_is_told_by_pips_own_words(tmp_path: Path) -> None:
    script = "import sys; sys.exit('ERROR: No matching distribution found for anomalib==99')"
    with pytest.raises(DeviceError, match=r"ERROR: No matching distribution found for anomalib==99$"):
        run_process([sys.executable, "-c", script], 60.0)


def test_detector_and_bare_loop_are_measured_in_turn_and_give_the_same_scores(
    tmp_path: Path, onnx_bundle: Bundle, pictures: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    models = {(Target.ONNX, Precision.FP32): onnx_bundle}
    candidates = own_candidates(models, ENVIRONMENTS) + bare_candidates(models, ENVIRONMENTS)
    told: list[str] = []
    measured = run_rounds(candidates, _plan(tmp_path, pictures, rounds=2), told.append)
    assert [entry.failed_because for entry in measured] == [None] * 4
    assert all(len(entry.samples) == 2 and len(entry.scores) == 4 for entry in measured)
    assert all(sample["first_result_s"] > 0 for entry in measured for sample in entry.samples)
    assert measured[0].scores == pytest.approx(measured[1].scores, abs=1e-6)
    rounds = [line.split(":")[0] for line in told]
    assert len(rounds) == 12
    assert make_rows(measured, [False, False, False, True])[0].auroc == 1.0


def test_a_candidate_that_fails_is_left_out_and_says_why(tmp_path: Path, pictures: tuple[str, ...]) -> None:
    candidate = Candidate("broken", "", HERE, "process", tmp_path / "no-model.onnx", "no-tool")
    told: list[str] = []
    (entry,) = run_rounds([candidate], _plan(tmp_path, pictures, rounds=3), told.append)
    assert entry.failed_because is not None
    assert "KeyError: 'no-tool'" in entry.failed_because
    assert len(told) == 2


def test_the_measured_script_needs_the_standard_library_only() -> None:
    text = Path(str(measured_process.__file__)).read_text(encoding="utf-8")
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= sys.stdlib_module_names
    assert json.dumps(sorted(measured_process.TOOLS)) == '["anomalib", "onnxruntime", "openvino", "vae-edge"]'
