"""Training speed against a plain loop: `python -m vae_edge.benchmarks.studies.training_speed`.

The plain loop is the simplest one: float32, channels first, Adam, batches picked from an array in memory; nothing is
validated, logged or saved. The other side is `fit_vae` as `vae-train` calls it, with all of that, in channels-last
layout, and in bfloat16 if the device supports it. Both train the same network on the same random windows, alternately;
figures are windows (or full images) in a second, and the median of the rounds' ratios with their range.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from vae_edge.benchmarks.studies import run_study
from vae_edge.cli.console import notes_console, plain_table, results_console
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.batches import as_pixels
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.training import fit_vae
from vae_edge.train.model.network import Vae
from vae_edge.train.model.presets import AUTO_PRECISION, PRESETS, SINGLE, make_architecture, resolve_precision
from vae_edge.wording import count

_BATCH = 32

_HELD_OUT = 0.1


def training_speed(
    sides: Annotated[str, typer.Option(help="Comma-separated sides of windows in pixels.")] = "64,128,256",
    presets: Annotated[str, typer.Option(help="Comma-separated presets.")] = "nano,edge",
    steps: Annotated[int, typer.Option(help="Steps of each training.")] = 40,
    rounds: Annotated[int, typer.Option(help="Turns.")] = 3,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda: where both train.")] = "auto",
) -> None:
    """Measure windows/s of vae-train's loop and of a plain one, alternately."""
    table = plain_table()
    table.add_column("preset, side", style="cyan")
    for heading in ("plain loop", f"vae-train, {SINGLE}", "vae-train, auto", "auto / plain"):
        table.add_column(heading, justify="right")
    for preset in presets.split(","):
        for side in (int(word) for word in sides.split(",")):
            notes_console().print(f"{preset} at {side}: {count(rounds, 'round')}", markup=False)
            settings = _settings(preset.strip(), side, accelerator)
            images = np.random.default_rng(0).integers(0, 256, (steps * _BATCH, side, side, 3), dtype=np.uint8)
            plain, single, auto = [], [], []
            for _ in range(rounds):
                plain.append(_plain_loop(settings, images))
                single.append(_fit(settings.model_copy(update={"precision": SINGLE}), images))
                auto.append(_fit(settings, images))
            ratios = [mine / other for mine, other in zip(auto, plain, strict=True)]
            table.add_row(
                f"{preset.strip()}, {side}",
                f"{median(plain):.0f}",
                f"{median(single):.0f}",
                f"{median(auto):.0f} ({settings.precision})",
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            )
    results_console().print(table)


def _settings(preset: str, side: int, accelerator: str) -> TrainSettings:
    return TrainSettings(
        source=DataSource(root="."),
        architecture=make_architecture(preset, (side, side)),
        recipe=PRESETS[preset].recipe,
        accelerator=accelerator,
        precision=resolve_precision(AUTO_PRECISION, accelerator),
        epochs=1,
        batch_size=_BATCH,
    )


def _plain_loop(settings: TrainSettings, images: NDArray[np.uint8]) -> float:
    """Return images/s of an epoch of the plain loop."""
    device = _device(settings.accelerator)
    vae = Vae.from_architecture(settings.architecture).to(device).train()
    optimizer = torch.optim.Adam(vae.parameters(), settings.recipe.learning_rate)
    data = torch.from_numpy(images)
    started = time.perf_counter()
    order = torch.randperm(len(data))
    for start in range(0, len(data), _BATCH):
        pixels = as_pixels(data[order[start : start + _BATCH]].to(device)).contiguous()
        loss = vae.loss(vae(pixels), pixels).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return len(data) / (time.perf_counter() - started)


def _device(accelerator: str) -> torch.device:
    if accelerator == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(accelerator)


def _fit(settings: TrainSettings, images: NDArray[np.uint8]) -> float:
    """Return images/s of an epoch of vae-train's loop, validation and checkpoint included."""
    held_out = images[: max(2, round(_HELD_OUT * len(images)))]
    with tempfile.TemporaryDirectory(prefix="vae-edge-speed-") as folder:
        fitted = fit_vae(settings, images, held_out, Path(folder))
    assert fitted is not None
    return fitted[1].images_per_s


if __name__ == "__main__":
    run_study(training_speed)
