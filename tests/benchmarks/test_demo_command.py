from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vae_edge.benchmarks.demo_command import is_trained
from vae_edge.benchmarks.report.records.files import read_report
from vae_edge.bundle import bundles_in


@pytest.mark.slow
def test_the_demo_walks_the_whole_road_and_a_second_one_need_not_train(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    code, _, err = command("demo", "--out", out, "--epochs", 2, "--quick")
    assert code == 0, err
    for program in ("vae-edge sample", "vae-train", "vae-export", "vae-bench", "vae-run"):
        assert f"$ {program} " in err
    ran = [bundle for bundle in read_report(out / "report" / "dial").bundles if bundle.has_run]
    assert {bundle.name for bundle in ran} >= {"dial-onnx-fp32", "dial-openvino-fp32", "dial-torch-fp32"}
    assert all(bundle.accuracy is not None and bundle.accuracy.metrics.image_auroc is not None for bundle in ran)
    lines = (out / "predictions" / "dial" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(list((out / "predictions" / "dial" / "overlays").iterdir())) == 110
    assert not any("error" in json.loads(line) for line in lines)
    assert len(bundles_in(out / "bundles" / "dial")) >= 3
    run = out / "runs" / "dial"
    assert is_trained(run, epochs=2), "a second demo would train again"
    assert not is_trained(run, epochs=3)
    (run / "metrics.json").write_text("{}")
    assert not is_trained(run, epochs=2), "a damaged run would be taken for a good one"
