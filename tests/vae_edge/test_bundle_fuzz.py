"""Bundles with something in them changed at random: each is refused in a sentence, or gives proper verdicts.

Half of them have their sizes, hashes and digest corrected, as an attacker's would. `VAE_EDGE_FUZZ_TRIES=5000 pytest
tests/vae_edge/test_bundle_fuzz.py` tries so many of each; a failure names the number that makes the same bundle again.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_bundles import change_manifest, read_content, with_digest
from tests.tiny_bundles import dark_image, make_bundle, spotted_image
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import BundleError, DeviceError, VaeEdgeError
from vae_edge.manifest import MANIFEST_FILE
from vae_edge.targets import Target

TRIES = int(os.environ.get("VAE_EDGE_FUZZ_TRIES", "40"))

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e-300, 1e308, "", "x", "..", "../x", "/etc/passwd",
    "a\0b", "\x1b[31m", "\ud800", "é" * 300, "y" * 70_000, [], [None], [[]], {}, {"a": {}}, [0] * 3000, "1", "NaN",
    "onnx",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Target, Bundle]:
    for module in ("onnx", "onnxruntime", "openvino", "torch"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("whole")
    return {each: make_bundle(folder / each, each) for each in (Target.ONNX, Target.OPENVINO, Target.TORCH)}


def change_json(rng: random.Random, content: Any) -> None:
    """Replace, remove, repeat or add something at a random place."""
    place: Any = None
    key: Any = None
    while isinstance(content, (dict, list)) and content:
        place, key = content, rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        content = place[key]
        if rng.random() < 0.3:
            break
    assert place is not None
    what = rng.randrange(5)
    if what == 0:
        del place[key]
    elif what == 1 and isinstance(place, list):
        place.extend(place[:] * rng.choice((1, 3, 50)))
    elif what == 2 and isinstance(content, (int, float)) and not isinstance(content, bool):
        place[key] = rng.choice((content + 1, -content, content * 2, content / 3, content * 1e10, float(content)))
    elif what == 3 and isinstance(place, dict):
        place[f"{key}2"] = content
    else:
        place[key] = rng.choice(ODD_VALUES)


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or overwrite bytes at random places."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        place = rng.randrange(len(changed) + 1)
        what = rng.randrange(6)
        if what < 2 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif what == 2:
            del changed[place : place + rng.choice((1, 4, 100, len(data)))]
        elif what == 3:
            changed[place:place] = rng.randbytes(rng.choice((1, 4, 300)))
        elif what == 4:
            changed[place:place] = changed[place : place + rng.choice((8, 200))] * rng.choice((1, 20))
        else:
            changed[place : place + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\x80" * 8, b'"nodes":'))
    return bytes(changed)


def change_bundle(rng: random.Random, folder: Path, *, correct: bool) -> None:
    """Change a bundle's manifest or one of its files, and correct its hashes or leave them."""
    name = rng.choice((MANIFEST_FILE, *(path.name for path in folder.iterdir())))
    path = folder / name
    if name != MANIFEST_FILE:
        if path.suffix == ".json" and rng.random() < 0.7:
            program = json.loads(path.read_text())
            change_json(rng, program)
            path.write_text(json.dumps(program))
        else:
            path.write_bytes(change_bytes(rng, path.read_bytes()))
        if correct:
            change_manifest(folder)
        return
    content = read_content(folder)
    if rng.random() < 0.3:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
        return
    for _ in range(rng.choice((1, 1, 2))):
        change_json(rng, content)
    path.write_text(json.dumps(with_digest(content) if correct else content))


def judge(folder: Path) -> None:
    """Open a bundle and judge two pictures; their verdicts have to follow from the scores."""
    with Detector.open(folder, cache=False, hint="latency", threads=1) as detector:
        threshold = detector.bundle.manifest.thresholds.image_threshold
        for image in (dark_image(0), spotted_image(0)):
            prediction = detector.predict(image)
            assert math.isfinite(prediction.score)
            assert prediction.is_anomalous == (prediction.score > threshold)
            assert prediction.anomaly_map.shape == (32, 32)
        if detector.bundle.manifest.references is not None:
            check = detector.check_references()
            assert len(check.lines()) >= 3


def refusal_of(folder: Path, number: int) -> VaeEdgeError | None:
    """Return why a bundle cannot be used; None: it can.

    Raises:
        AssertionError: an error came through that is not one of the package.
    """
    try:
        judge(folder)
    except AssertionError:
        raise
    except VaeEdgeError as error:
        return error
    except Exception as error:
        raise AssertionError(f"number {number} raised {type(error).__name__}: {error}") from error
    return None


@pytest.mark.parametrize("correct", [True, False], ids=["hashes corrected", "hashes left"])
@pytest.mark.parametrize("target", [Target.ONNX, Target.OPENVINO, Target.TORCH], ids=str)
def test_a_bundle_that_was_changed_is_refused_or_gives_proper_verdicts(
    bundles: dict[Target, Bundle], tmp_path: Path, target: Target, correct: bool
) -> None:
    n_opened = 0
    for number in range(TRIES):
        folder = tmp_path / str(number)
        shutil.copytree(bundles[target].folder, folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        change_bundle(random.Random(f"{target} {correct} {number}"), folder, correct=correct)
        is_same = before == {path.name: path.read_bytes() for path in folder.iterdir()}
        refused = refusal_of(folder, number)
        n_opened += refused is None
        if refused is not None:
            assert not is_same, (number, refused)
            assert isinstance(refused, (BundleError, DeviceError)), (number, refused)
            assert str(refused).strip(), number
        elif not correct:
            # Only what does not alter the content: another space, or the same number in other words.
            assert Bundle.open(folder).manifest == bundles[target].manifest, number
        shutil.rmtree(folder)
    assert n_opened < TRIES
