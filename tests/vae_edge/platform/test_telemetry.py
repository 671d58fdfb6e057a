"""How the runtimes' telemetry is kept off; tests/test_nothing_leaves.py shows that nothing is sent."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vae_edge.platform.telemetry import openvino_telemetry_hidden

ROOT = Path(__file__).resolve().parents[3]

QUIET = {
    "vae_edge/platform/telemetry.py",
    # A stand-alone script, which imports nothing of this package and does the same itself.
    "benchmarks/studies/peers/measured_process.py",
}
"""Modules that may write `import onnxruntime` or `import openvino`."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "1"),
        ("", "1"),
        (" ", "1"),
        ("1", "1"),
        ("yes, please", "1"),
        ("0", "0"),
        ("false", "false"),
        ("Off", "Off"),
    ],
)
def test_importing_the_package_sets_the_variable_unless_the_user_wants_the_reports(
    before: str | None, after: str
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    if before is not None:
        environment["ORT_DISABLE_TELEMETRY"] = before
    code = "import os, vae_edge; print(os.environ['ORT_DISABLE_TELEMETRY'], end='')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == after


def test_every_import_of_a_runtime_goes_through_one_module() -> None:
    found = set()
    for top in ("vae_edge", "train", "export", "benchmarks"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if {"onnxruntime", "openvino"} & set(names):
                    found.add(path.resolve().relative_to(ROOT).as_posix())
    assert found <= QUIET
    assert "vae_edge/platform/telemetry.py" in found
    for name in QUIET - {"vae_edge/platform/telemetry.py"}:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "ORT_DISABLE_TELEMETRY" in text, name
        assert "openvino_telemetry" in text, name


def test_the_telemetry_package_is_there_again_after_imports_in_several_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", package)
    missing = []

    def hide() -> None:
        with openvino_telemetry_hidden():
            missing.append(sys.modules["openvino_telemetry"] is None)

    threads = [threading.Thread(target=hide) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == [True] * 8
    assert sys.modules["openvino_telemetry"] is package
