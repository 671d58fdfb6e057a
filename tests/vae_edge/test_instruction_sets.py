"""A bundle in INT8 gives its reference outputs with instructions other than those that it was exported with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vae_edge.platform.machine import look_at_machine
from vae_edge.selfcheck.shipped import unpack_bundles

pytest.importorskip("openvino")

CHECK = """
import sys
from dataclasses import replace
from vae_edge import Detector, references

if sys.argv[1] == "AVX512_CORE":  # The processor's flags do not tell what it is kept from.
    machine = replace(references.look_at_machine(), processor_flags=())
    references.look_at_machine = lambda: machine
for folder in sys.argv[2:]:
    with Detector.open(folder, device="cpu", cache=False) as detector:
        detector.check_references().require(folder)
"""

LEVELS = {
    "AVX2": "avx2",
    "AVX512_CORE": "avx512f",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_AMX": "amx_int8",
}
"""What ONEDNN_MAX_CPU_ISA allows at most, and the processor's flag for it."""


@pytest.mark.parametrize("level", LEVELS)
def test_int8_agrees_with_every_instruction_set(tmp_path: Path, level: str) -> None:
    if LEVELS[level] not in look_at_machine().processor_flags:
        # Nothing can stand in for instructions; the rule for them is tested in `test_references.py` on every processor.
        pytest.skip(f"this processor has no {LEVELS[level]}")
    folders = [folder for folder in unpack_bundles(tmp_path) if folder.name.endswith("-openvino-int8")]
    assert len(folders) == 3
    done = subprocess.run(
        [sys.executable, "-c", CHECK, level, *map(str, folders)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": level, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
