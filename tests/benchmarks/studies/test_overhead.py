"""What the Detector adds to the bare runtimes: measured for real on a toy, and put into a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_bundles import make_bundle
from vae_edge.benchmarks.studies.peers.overhead import Ratio, overhead
from vae_edge.errors import InputError
from vae_edge.targets import Target


def test_a_ratio_is_taken_round_by_round() -> None:
    ratio = Ratio("a / b", "ms", [1.0, 4.0, 3.0], [1.0, 2.0, 4.0], "at most 1.05", "quiet")
    assert ratio.ratios == [1.0, 2.0, 0.75]
    assert ratio.row() == "| a / b | 3.000 | 2.000 | ms | **1.000** (0.750 to 2.000) | at most 1.05 | quiet |"


@pytest.mark.slow
def test_every_figure_is_measured_on_both_sides_of_every_runtime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for runtime in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(runtime)
    for target in (Target.ONNX, Target.OPENVINO):
        make_bundle(tmp_path / f"bundles/toy-{target}", target)
    overhead([tmp_path / "bundles"], out=tmp_path / "out", rounds=3, seconds=0.1, images=120)
    found = json.loads((tmp_path / "out/overhead.json").read_text(encoding="utf-8"))
    assert len(found["ratios"]) == 14
    for ratio in found["ratios"]:
        assert len(ratio["ours"]) == len(ratio["theirs"]) == 3, ratio["name"]
        assert min(*ratio["ours"], *ratio["theirs"]) > 0
    text = (tmp_path / "out/overhead.md").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out[: len(text)]
    ways = ("`stream`", "`stream` without asking whether pictures are inspectable", "`stream` in batches of 4")
    assert all(text.count(f": {way} / the runtime's own throughput") == 2 for way in ways)
    assert "best: throughput" in text
    assert "callers" in text or "sessions" in text
    assert "numpy" in text.partition("importtime")[2]
    assert text.count("| 100 images |") == 1


def test_bundles_for_neither_runtime_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    make_bundle(tmp_path / "toy", Target.TORCH)
    with pytest.raises(InputError, match="none of the bundles is for onnx or openvino"):
        overhead([tmp_path / "toy"], out=tmp_path / "out")
