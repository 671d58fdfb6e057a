"""Train from a program, with your own logger and callbacks: python train_from_program.py PICTURES RUN [EPOCHS]."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from vae_edge.train import fit


def train(pictures: Path, out: Path, max_epochs: int) -> None:
    """Train on a folder of good parts, or on an inspection set, and print what was found."""
    run = fit(
        pictures,
        out,
        logger=CSVLogger(out.with_name(f"{out.name}-experiments")),
        callbacks=[ModelCheckpoint(monitor="held_out_loss"), EarlyStopping("held_out_loss", patience=20)],
        max_epochs=max_epochs,
        gradient_clip_val=1.0,
    )
    auroc = run.metrics.image_auroc if run.metrics is not None else None
    print(f"{out}: {'no labelled pictures to test on' if auroc is None else f'image AUROC {auroc:.3f}'}")


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 40)
