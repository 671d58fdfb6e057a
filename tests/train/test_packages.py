"""What serves `--help`, the reading of a run and an export on a device loads no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[2] / "train"
WITHOUT_TORCH = ["choice.candidates", "choice.image_size", "command", "features.backbone_weights", "loop.settings"]
WITHOUT_TORCH += [
    "loop.watcher",
    "options",
    "summary",
    "model.input_settings",
    "model.presets",
    "model.scoring",
    "run.folder",
    "run.metrics",
    "run.records",
]


def test_what_serves_help_and_reading_loads_no_torch() -> None:
    whole = [
        f"{path.parent.name}.{path.stem}" for package in ("sample", "data") for path in (TRAIN / package).glob("*.py")
    ]
    names = ", ".join(f"vae_edge.train.{name}" for name in (*whole, *WITHOUT_TORCH))
    code = f"import sys, {names}; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
