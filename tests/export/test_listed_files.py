"""A run on files that a data module named is exported when the data module is gone."""

from __future__ import annotations

from pathlib import Path

from tests.train.fake_datamodule import FakeDataModule, rows_of
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.targets import Target
from vae_edge.train import fit
from vae_edge.train.model.presets import make_architecture


def test_a_run_on_listed_files_is_exported(sample_data: Path, tmp_path: Path) -> None:
    run = fit(
        FakeDataModule(**rows_of(sample_data)),
        tmp_path / "run",
        architecture=make_architecture("nano", (32, 32), n_features=4, latent_vec_size=8),
        max_epochs=1,
        batch_size=8,
        accelerator="cpu",
        calibration="split",
        scoring="normalized",
        photometric="none",
    )
    (result,) = export_run(run, tmp_path / "bundles", ExportSettings(targets=(Target.TORCH,)))
    assert result.error is None
    assert result.bundle is not None
