"""A short form of `make bench-archive`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed; `make test-archive` has it")
from tests.archive.acceptance import draw, with_failures
from tests.tiny_bundles import make_bundle
from vae_edge.targets import Target


@pytest.mark.slow
def test_no_row_is_lost_or_doubled_while_a_node_and_the_driver_are_killed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX).folder
    n_owed = draw(tmp_path / "pictures", 600)
    result = with_failures(bundle, tmp_path / "pictures", tmp_path, n_owed, 20)
    assert (result["rows_written"], result["doubled"], result["lost"]) == (600, 0, 0), result
    assert result["rows_that_differ_from_vae_run_shards"] == 0
    assert result["error_rows"] == 1
