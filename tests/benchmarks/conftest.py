"""A tiny inspection set of grey squares, for the tiny bundles that call bright what is anomalous."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import make_bundle as make_tiny_bundle
from tests.tiny_bundles import move_threshold, write_image
from vae_edge.benchmarks.measure.instruments import MeasuringRules
from vae_edge.benchmarks.measure.plan import SuiteSettings
from vae_edge.records import file_record
from vae_edge.targets import SUPPORTED, Target

DARK, BRIGHT, FAINT = 60, 200, 120
THRESHOLD = 0.5  # In the toy's scale, where 255 is 1: the faint spot lies below it.

MakeBundle = Callable[..., Path]

SHORT_RULES = MeasuringRules(
    warmup_s=0.01, warmup_iterations=3, round_s=1.0, most_iterations=20, fewest_iterations=5, longest_s=1.0
)


@pytest.fixture(scope="session")
def short_settings() -> SuiteSettings:
    return SuiteSettings(
        rounds=2,
        rules=SHORT_RULES,
        throughput_s=0.05,
        load_s=0.1,
        cold_starts=1,
        n_memory_images=4,
        n_timing_images=4,
        worker_timeout_s=120.0,
    )


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Makes a tiny bundle; one for TensorRT has an engine that no machine can load."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")

    def make(
        name: str,
        target: Target = Target.ONNX,
        *,
        folder: Path | None = None,
        threshold: float = THRESHOLD,
        run: str = "a",
    ) -> Path:
        engine = target is Target.TENSORRT
        path = (folder or tmp_path_factory.mktemp("bundles")) / name
        bundle = make_tiny_bundle(path, Target.ONNX if engine else target)
        manifest = bundle.manifest
        changes: dict[str, object] = {
            "thresholds": move_threshold(manifest.thresholds, threshold),
            "provenance": manifest.provenance.model_copy(update={"run": f"run-{run}", "run_fingerprint": run * 64}),
        }
        if engine:
            (path / "model.engine").write_bytes(b"no engine")
            files = (*manifest.files, file_record(path / "model.engine"))
            changes |= {"target": target, "model_file": SUPPORTED[target].model_file, "files": files}
        return bundle.with_manifest(manifest.model_copy(update=changes)).folder

    return make


@pytest.fixture(scope="session")
def inspection_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 train, 4 good and 4 defective test images of 48 x 40 pixels; one of the defects is faint."""
    root = tmp_path_factory.mktemp("data") / "squares"
    mask = np.zeros((40, 48), np.uint8)
    mask[10:22, 12:26] = 255
    for index in range(4):
        noise = np.random.default_rng(index).integers(DARK - 9, DARK + 9, (3, 40, 48, 3), dtype=np.uint8)
        noise[2, mask > 0] = FAINT if index == 0 else BRIGHT
        for folder, image in zip(("train/good", "test/good", "test/spot"), noise, strict=True):
            write_image(root / folder / f"{index}.png", image)
        write_image(root / "ground_truth/spot" / f"{index}_mask.png", mask)
    return root
