"""A bundle in INT8 gives the same with every instruction set of x86, and what it gave where it was made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vae_edge.platform.machine import look_at_machine
from vae_edge.selfcheck.shipped import unpack_bundles

pytest.importorskip("openvino")

CHECK = """
import json, sys
import numpy as np
from vae_edge import Bundle, Detector
from vae_edge.selfcheck.bundle_check import reference_images

found = {}
for folder in sys.argv[1:]:
    images = reference_images(Bundle.open(folder))
    noise = np.random.default_rng(0).integers(-20, 21, (4, *images[0].shape))
    images = [*images, *(np.clip(each + some, 0, 255).astype(np.uint8) for each, some in zip(images, noise))]
    with Detector.open(folder, device="cpu", cache=False) as detector:
        detector.check_references().require(folder)
        judged = [detector.predict(image) for image in images]
        found[folder] = [[each.score, bool(each.is_anomalous), float(each.anomaly_map.sum())] for each in judged]
print(json.dumps(found))
"""

LEVELS = {
    "AVX2": "avx2",
    "AVX2_VNNI": "avx_vnni",
    "AVX512_CORE": "avx512f",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_AMX": "amx_int8",
}
"""What ONEDNN_MAX_CPU_ISA allows at most, and the processor's flag for it."""


def judged_with(level: str | None, folders: list[Path]) -> dict[str, np.ndarray]:
    """Return score, verdict and sum of the map for each reference and some noisy ones, by bundle: float64 [n, 3]."""
    limit = {} if level is None else {"ONEDNN_MAX_CPU_ISA": level}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *map(str, folders)],
        env={**os.environ, **limit, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {Path(folder).name: np.array(found) for folder, found in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    unpacked = unpack_bundles(tmp_path_factory.mktemp("shipped"))
    folders = [folder for folder in unpacked if folder.name.endswith("-openvino-int8")]
    assert len(folders) == 3
    return folders


@pytest.fixture(scope="module")
def unlimited(folders: list[Path]) -> dict[str, np.ndarray]:
    return judged_with(None, folders)


@pytest.mark.parametrize("level", LEVELS)
def test_int8_is_the_same_with_every_instruction_set(
    level: str, folders: list[Path], unlimited: dict[str, np.ndarray]
) -> None:
    if LEVELS[level] not in look_at_machine().processor_flags:
        # Nothing can stand in for instructions; the export's part is tested in `test_nncf_quantizer.py` everywhere.
        pytest.skip(f"this processor has no {LEVELS[level]}")
    for name, found in judged_with(level, folders).items():
        np.testing.assert_allclose(found, unlimited[name], rtol=1e-5, atol=1e-5, err_msg=f"{name} with {level}")
