from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vae_edge.manifest import ThresholdMethod
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.model.presets import make_architecture
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.sample import SampleSettings, write_sample_set


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set with defects and masks; tests leave it as it is."""
    settings = SampleSettings(image_size=64, n_train=40, n_test_good=4, n_test_per_defect=1)
    (folder,) = write_sample_set(tmp_path_factory.mktemp("sample"), ["dial"], settings)
    return folder


def train(data: Path, out: Path, **values: object) -> RunFolder:
    """Train a real, tiny network for two epochs on the CPU."""
    settings = TrainSettings(
        source=DataSource(root=str(data)),
        architecture=make_architecture("nano", (32, 32), n_features=4, latent_vec_size=8),
        epochs=2,
        batch_size=8,
        accelerator="cpu",
        false_alarm_rate=0.1,
    )
    return fit_run(settings.model_copy(update=values), out=out)


@pytest.fixture(scope="session")
def trained_run(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on the small sample set; tests leave it as it is."""
    return train(sample_data, tmp_path_factory.mktemp("runs") / "dial")


@pytest.fixture(scope="session")
def larger_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on twice the images, so that enough of them are there to calibrate on."""
    images = SampleSettings(image_size=64, n_train=80, n_test_good=6, n_test_per_defect=1)
    (folder,) = write_sample_set(tmp_path_factory.mktemp("larger-sample"), ["dial"], images)
    return train(folder, tmp_path_factory.mktemp("larger-runs") / "dial")


@pytest.fixture(scope="session")
def cross_run(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose thresholds come from three folds of all 40 good parts; tests leave it as it is."""
    out = tmp_path_factory.mktemp("cross-runs") / "dial"
    run = train(sample_data, out, false_alarm_rate=0.05, folds=3)
    assert run.thresholds.method is ThresholdMethod.CROSS_CONFORMAL
    return run


@pytest.fixture
def own_run(trained_run: RunFolder, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(trained_run.folder, tmp_path / "own" / "dial"))
