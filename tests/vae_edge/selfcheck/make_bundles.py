"""Make the bundles that `vae-edge selfcheck` runs: `python -m tests.vae_edge.selfcheck.make_bundles`.

Four small networks are trained on the drawn sample set and exported to every target and precision: tiles of pixels,
whole pictures of pixels, and features of a backbone that is narrowed and has random weights, so that no one else's
weights are shipped: alone, and joined with patches of pixels and compared by place, as by default. What matters here is
that every operator of a real bundle is there, not what it detects.

It takes some minutes, needs everything of the extra `all`, and has to be run again where a bundle's schema or the
graph changes.
"""

from __future__ import annotations

import io
import logging
import math
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from vae_edge.selfcheck.shipped import BUNDLES_FILES, MOST_BYTES
from vae_edge.train.features import backbone

PRODUCT = "sample:dial"
EPOCHS = 15
N_DIRECTIONS = 4
"""Of features at a place: an eighth of what a training takes, for the file's size."""

NOT_IN_INT8 = "joined"
"""Distances by place of a few features with random weights are off by more than the score itself in INT8 (134 %), so
that no check would mean anything; what the backbone computes in INT8 is checked by `features`."""

ENGINES_FOR = ("8.6",)
"""Compute capability: elsewhere they are rebuilt, which is to be seen, too."""


def narrow_backbone() -> None:
    """Take about a tenth of the backbone's channels; has to come before anything else imports their numbers."""
    stage = backbone.Stage
    backbone.STEM_CHANNELS = 8
    backbone.STAGES = (
        stage(1, 3, 1, 1, 8),
        stage(2, 3, 2, 2, 8),
        stage(2, 5, 2, 2, 12),
        stage(3, 3, 2, 2, 16),
        stage(3, 5, 1, 2, 16),
    )
    widths = {2: 8, 4: 12, 7: 16, 10: 16}
    first, second, third, fourth = (tap._replace(n_channels=widths[tap.block]) for tap in backbone.TAPS)
    backbone.TAPS = first, second, third, fourth


def random_weights(path: Path) -> None:
    """Write random weights of the narrowed backbone, as a file for `--backbone-weights`."""
    from vae_edge.train.features.backbone_weights import _package_layout

    generator = torch.Generator().manual_seed(0)
    state, tensors = backbone.Backbone().state_dict(), {}

    def add(convolution: str, norm: str, shape: tuple[int, ...]) -> None:
        tensors[f"{convolution}.weight"] = torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        tensors[f"{norm}.weight"] = 0.5 + torch.rand(shape[0], generator=generator)
        tensors[f"{norm}.bias"] = torch.randn(shape[0], generator=generator) * 0.3
        tensors[f"{norm}.running_mean"] = torch.randn(shape[0], generator=generator) * 0.3
        tensors[f"{norm}.running_var"] = 0.5 + torch.rand(shape[0], generator=generator)

    for own, theirs in _package_layout().layers.items():
        add(theirs.convolution, theirs.norm, tuple(state[f"{own}.weight"].shape))
    add("_conv_head", "_bn1", (1280, 320, 1, 1))
    save_file(tensors, path)


def runs(work: Path) -> list[Path]:
    """Train the four networks, but those that are there already."""
    from vae_edge.train import fit
    from vae_edge.train.features.settings import FeatureSettings
    from vae_edge.train.model.presets import make_architecture

    weights = work / "narrow.safetensors"
    random_weights(weights)
    pixels: dict[str, Any] = {"epochs": EPOCHS, "seed": 0, "accelerator": "cpu", "precision": "32-true"}
    features = FeatureSettings(n_hidden=24, latent_vec_size=8, n_steps=200).with_pixels()
    assert features.pixels is not None
    pixel_vae = features.pixels.model_copy(update={"n_hidden": 16, "latent_vec_size": 4})
    joined = features.with_places().model_copy(update={"pixels": pixel_vae, "places": N_DIRECTIONS})
    on_features: dict[str, Any] = {"backbone_weights": str(weights), "size": {"image": (64, 64)}, "seed": 0}
    small = {"n_features": 4, "max_features": 16, "latent_vec_size": 16}
    settings: dict[str, dict[str, Any]] = {
        "pixels": pixels
        | {"architecture": make_architecture("nano", (64, 64), **small), "size": {"image": (64, 64), "tiles": "none"}},
        "tiles": pixels
        | {"architecture": make_architecture("nano", (32, 32), **small), "size": {"image": (64, 64), "tiles": 32}},
        "features": on_features | {"preset": "feature", "feature": features.without_pixels()},
        "joined": on_features | {"preset": "both", "feature": joined},
    }
    for name, arguments in settings.items():
        if not (work / name).exists():
            fit(PRODUCT, work / name, **arguments)
    return [work / name for name in settings]


def export(run: Path, out: Path) -> None:
    """Export a run to everything."""
    from vae_edge.backends.tensorrt.build import EngineSettings
    from vae_edge.export.pipeline import ExportSettings, export_run
    from vae_edge.export.settings import Budget, LowPrecisionSettings
    from vae_edge.targets import Precision, Target
    from vae_edge.train.run.folder import RunFolder

    free = Budget(max_auroc_drop=None, max_pixel_auroc_drop=None, max_flip_rate=None)
    settings = ExportSettings(
        targets=tuple(Target),
        precisions=tuple(each for each in Precision if run.name != NOT_IN_INT8 or each is not Precision.INT8),
        only_supported=True,
        engine=EngineSettings(compute_capabilities=ENGINES_FOR),
        low_precision=LowPrecisionSettings(n_calibration_images=32, budget=free),
    )
    for result in export_run(RunFolder.open(run), out, settings):
        if result.error is not None:
            raise result.error
        print(run.name, result.target, result.precision, result.bundle is not None, result.warnings)  # noqa: T201 - a program


def pack(bundles: Path) -> None:
    """Write the bundles of a folder into the files; equal bundles make an equal file."""
    shared, joined = BUNDLES_FILES
    _pack(shared, [path for path in bundles.glob("[!.]*/*") if not path.parent.name.startswith("joined-")])
    _pack(joined, list(bundles.glob("joined-*/*")))
    size = sum(file.stat().st_size for file in BUNDLES_FILES)
    print(f"{size} bytes")  # noqa: T201 - a program
    if size > MOST_BYTES:
        raise SystemExit(f"expected at most {MOST_BYTES}")


def _pack(file: Path, paths: list[Path]) -> None:
    with tarfile.open(file, "w:xz", preset=9) as archive:
        for path in sorted(paths):
            content = path.read_bytes()
            entry = tarfile.TarInfo(f"{path.parent.name}/{path.name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def main() -> None:
    """Make the files; a folder to work in may be given, whose runs are taken if they are there."""
    logging.getLogger("lightning").setLevel(logging.ERROR)
    narrow_backbone()
    with TemporaryDirectory() as name:
        work = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(name)
        (work / "runs").mkdir(parents=True, exist_ok=True)
        for run in runs(work / "runs"):
            export(run, work / "bundles")
        pack(work / "bundles")


if __name__ == "__main__":
    main()
