"""One checkpoint measured in anomalib and as bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from vae_edge.train.sample import SampleSettings, write_sample_set

pytest.importorskip("anomalib", reason="anomalib is not installed")


@pytest.mark.slow
def test_every_way_of_measuring_is_in_the_table(tmp_path: Path) -> None:
    from vae_edge.benchmarks.studies.anomalib_comparison import compare

    sizes = SampleSettings(image_size=64, n_train=60, n_test_good=6, n_test_per_defect=2)
    data = write_sample_set(tmp_path, ["dial"], sizes)[0]
    compare(data, tmp_path / "out", image_size="64x64", n_features=8, max_features=16, epochs=2, rounds=0)
    lines = (tmp_path / "out" / "anomalib.md").read_text(encoding="utf-8").splitlines()
    cells = {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    theirs, ours = cells["anomalib's evaluator"], cells["this project's metrics, torch"]
    assert float(theirs[0]) == pytest.approx(float(ours[0]), abs=2e-4)
    assert float(cells["openvino fp32"][0]) == pytest.approx(float(ours[0]), abs=2e-4)
    assert cells["openvino fp32"][3] == cells["onnx fp32"][3] == "0 of 20"
    assert 0 <= float(cells["openvino int8"][0]) <= 1
