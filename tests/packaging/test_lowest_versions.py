"""The versions that `make test-lowest` installs are the lowest that pyproject.toml allows."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_floor_is_what_is_tested() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    allowed = [
        *project["dependencies"],
        *extras["onnxruntime"],
        *extras["openvino"],
        *extras["line"],
        *extras["verify"],
    ]
    text = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    tested = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert tested == sorted(requirement.replace(">=", "==") for requirement in allowed)
    # The same runtime among the packages of the export is held by the same floor.
    assert extras["onnxruntime"][0] in extras["export"]
