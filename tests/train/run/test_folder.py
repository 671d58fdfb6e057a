"""A run folder is whole or refused, and leads back to its own images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from tests.record_differences import differences
from tests.train.random_backbones import random_weights
from vae_edge.errors import BundleError, InputError
from vae_edge.platform.atomic import LOCK_FILE
from vae_edge.platform.file_system import owner
from vae_edge.records import Record, make_record, read_record
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.data.sources import DataSource
from vae_edge.train.features.table import FEATURES_FILE
from vae_edge.train.loop.settings import SCHEMA_VERSION, Calibration, DecidedSettings, TrainSettings
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.input_settings import Photometric
from vae_edge.train.model.presets import Architecture, make_architecture
from vae_edge.train.model.scoring import MSE_SCORING, NORMALIZED_SCORING
from vae_edge.train.run.fitting import fit_run, resume_run
from vae_edge.train.run.folder import (
    CHECKPOINT,
    RECORD_FILE,
    SETTINGS_FILE,
    RunFolder,
    claim_folder,
    forget_replaced,
    only_training,
)
from vae_edge.train.run.metrics import Metrics
from vae_edge.train.run.records import RunRecord
from vae_edge.train.sample import SampleSettings, write_sample_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data/` and `run/`; tests copy it."""
    folder = tmp_path_factory.mktemp("trained")
    sizes = SampleSettings(image_size=64, n_train=16, n_test_good=2, n_test_per_defect=1)
    data = write_sample_set(folder, ["dial"], sizes)[0].rename(folder / "data")
    settings = TrainSettings(
        source=DataSource(root=str(data)),
        architecture=Architecture(n_features=4, latent_vec_size=8, height=32, width=64),
        epochs=1,
        accelerator="cpu",
        calibration=Calibration.SPLIT,
    )
    fit_run(settings, out=folder / "run")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def test_a_run_opens_with_all_its_records(trained: Path) -> None:
    run = RunFolder.open(trained / "run")
    assert run.record.architecture.width == 64
    assert run.record.preparation.height == 32
    assert run.record.scoring == NORMALIZED_SCORING
    assert run.record.data.n_train == 16
    assert "torch" in run.record.library_versions
    assert len(run.thresholds.calibration_scores) == run.record.counts["threshold"]
    assert run.fingerprint == run.record.fingerprint


def test_the_loaded_graph_gives_the_recorded_scores(trained: Path) -> None:
    run = RunFolder.open(trained / "run")
    images = load_images(run.find_images(["threshold"]), run.record.preparation)
    _, scores = run_graph(run.load_graph(), images)
    np.testing.assert_array_equal(scores, np.array([s.score for s in run.calibration.scores], dtype=np.float32))


def test_something_else_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a run: it has no model\.json"):
        RunFolder.open(tmp_path)


def test_an_unfinished_run_says_how_to_go_on(run: Path) -> None:
    (run / RECORD_FILE).unlink()
    with pytest.raises(BundleError, match="vae-train --resume"):
        RunFolder.open(run)


@pytest.mark.parametrize("name", ["model.safetensors", "scoring.safetensors", "calibration.json", "split.json"])
def test_a_changed_file_is_noticed(run: Path, name: str) -> None:
    content = bytearray((run / name).read_bytes())
    content[-20] ^= 1
    (run / name).write_bytes(bytes(content))
    with pytest.raises(BundleError, match=f"{name} was changed"):
        RunFolder.open(run)
    (run / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        RunFolder.open(run)


def test_weights_of_another_architecture_are_refused(run: Path) -> None:
    record = json.loads((run / RECORD_FILE).read_text())
    record["architecture"]["n_features"] = 8
    (run / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(BundleError, match="cannot be used"):
        RunFolder.open(run).load_graph()


def test_a_newer_run_asks_for_a_newer_program(run: Path) -> None:
    record = json.loads((run / RECORD_FILE).read_text())
    (run / RECORD_FILE).write_text(json.dumps(record | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(BundleError, match=rf"schema {SCHEMA_VERSION + 1}.*pip install --upgrade vae-edge"):
        RunFolder.open(run)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_record_is_refused(run: Path, text: str) -> None:
    (run / RECORD_FILE).write_text(text)
    with pytest.raises(BundleError, match=r"model\.json"):
        RunFolder.open(run)


def test_the_images_are_found_again_where_they_were_and_where_they_are_now(trained: Path, tmp_path: Path) -> None:
    run = RunFolder.open(trained / "run")
    there = run.find_images(["threshold", "test"])
    moved = Path(shutil.copytree(trained / "data", tmp_path / "moved"))
    now = run.find_images(["threshold", "test"], data_root=moved)
    assert [image.name for image in there] == [image.name for image in run.split.of("threshold", "test")]
    assert [image.sha256 for image in there] == [image.sha256 for image in now]
    assert [image.defect for image in there] == [image.defect for image in now]
    assert all(image.path.is_relative_to(moved) for image in now)
    assert all(image.mask is not None and image.mask.is_file() for image in now if image.is_anomalous)


def test_an_image_that_was_changed_is_named(trained: Path, tmp_path: Path) -> None:
    run = RunFolder.open(trained / "run")
    moved = Path(shutil.copytree(trained / "data", tmp_path / "moved"))
    changed = run.split.of("threshold")[0]
    (moved / changed.name).write_bytes((moved / changed.name).read_bytes() + b"\0")
    with pytest.raises(InputError, match=f"{changed.name}.*--data"):
        run.find_images(["threshold"], data_root=moved)
    assert run.find_images(["fit"], data_root=moved)


def test_data_that_is_gone_leads_to_the_option(trained: Path, tmp_path: Path) -> None:
    run = RunFolder.open(trained / "run")
    with pytest.raises(InputError, match=r"does not exist.*--data"):
        run.find_images(data_root=tmp_path / "nowhere")


def test_a_complete_run_is_replaced_only_on_request_and_only_by_a_complete_one(run: Path) -> None:
    with pytest.raises(InputError, match=r"contains a complete run.*--overwrite"):
        claim_folder(run, overwrite=False)
    claim_folder(run, overwrite=True)
    aside = run.with_name(".run.replaced")
    assert not any(run.iterdir())
    assert RunFolder.open(aside)
    (run / SETTINGS_FILE).write_text("{}")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_text("")
    with pytest.raises(InputError, match="unfinished run; continue with"):
        claim_folder(run, overwrite=False)
    claim_folder(run, overwrite=True)
    assert RunFolder.open(aside)
    forget_replaced(run)
    assert not aside.exists()


def test_files_that_no_training_wrote_outlive_the_run_that_is_replaced(run: Path) -> None:
    mine = [
        "notes.txt",
        "logs/notes.txt",
        "checkpoints/best.txt",
        "checkpoints/mine.ckpt",
        "pictures/part.png",
        "model.json.bak",
        ".hidden",
    ]
    for name in mine:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    own = ["logs/csv/version_0/metrics.csv", "logs/tensorboard/events.out.tfevents.1.host.2.0", "checkpoints/last.ckpt"]
    half = f"checkpoints/.last.ckpt.{owner().split('-')[0]}-999999999-0-abcdef01.tmp"  # of a process that was killed
    for name in (*own, half):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    assert claim_folder(run, overwrite=True)
    (run / "notes.txt").write_text("newer")
    forget_replaced(run)
    left = {path.relative_to(run).as_posix(): path.read_text() for path in run.rglob("*") if path.is_file()}
    assert left == {name: name for name in mine} | {"notes.txt": "newer"}
    aside = run.with_name(".run.replaced")
    assert [path.relative_to(aside).as_posix() for path in aside.rglob("*")] == ["notes.txt"]  # not lost either
    assert (aside / "notes.txt").read_text() == "notes.txt"


def test_an_unfinished_run_that_is_replaced_leaves_what_no_training_wrote(run: Path) -> None:
    claim_folder(run, overwrite=True)
    for name in (SETTINGS_FILE, "checkpoints/last.ckpt", "notes.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    assert not claim_folder(run, overwrite=True)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


class Looker(Watcher):
    """Remembers every file that is in a folder at some time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[str] = set()

    def look(self) -> None:
        files = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        self.seen |= {name for name in files if not name.endswith(".tmp")}

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.look()


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """All files that trainings had in their folders at some time: networks on features, pilots, folds."""
    folder = tmp_path_factory.mktemp("written")
    weights = folder / "backbone.safetensors"
    save_file(random_weights("timm", 0), weights)
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=2, n_test_per_defect=1)
    (unsteady,) = write_sample_set(
        folder / "data", ["fabric"], sizes
    )  # Its light differs: ways to even it out are tried.
    given = {
        "source": {"root": str(trained / "data")},
        "feature": {"n_hidden": 16, "latent_vec_size": 4, "n_steps": 20, "batch_size": 64},
        "backbone_weights": str(weights),
        "size": {"image": (64, 64), "tiles": "none"},
        "architecture": Architecture(n_features=4, latent_vec_size=8, height=32, width=32),
        "epochs": 1,
        "accelerator": "cpu",
        "photometric": None,
        "scoring": NORMALIZED_SCORING,
    }
    kinds: list[dict[str, object]] = [
        {"network": None, "calibration": "split"},
        {"network": "pixel", "calibration": "cross", "folds": 2, "trainer": {"profiler": "pytorch"}},
        {"network": "pixel", "calibration": "split", "source": {"root": str(unsteady)}},
    ]
    seen: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae_edge.train.features.table.MOST_BYTES_IN_MEMORY", 0)
        for module in ("feature_fitting", "pixel_fitting"):
            patch.setattr(f"vae_edge.train.run.{module}.FEWEST_NORMALS", 2)
        for number, kind in enumerate(kinds):
            looker = Looker(folder / f"run-{number}")
            fit_run(make_record(TrainSettings, given | kind), out=looker.folder, watcher=looker)
            looker.look()
            seen |= looker.seen
    return seen - {LOCK_FILE}


def leave(folder: Path, names: set[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_every_file_that_a_training_may_leave_is_known(written: set[str], tmp_path: Path) -> None:
    for part in (FEATURES_FILE, "pilots/", "fold-2/", ".pt.trace.json", "tfevents", "metrics.csv", CHECKPOINT):
        assert any(part in name for name in written), part
    leave(tmp_path / "run", written)
    assert claim_folder(tmp_path / "run", overwrite=True)
    # A second one is killed, too, and its place is taken.
    leave(tmp_path / "run", written - {RECORD_FILE})
    assert not claim_folder(tmp_path / "run", overwrite=True)
    forget_replaced(tmp_path / "run")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_nothing_to_the_next(
    written: set[str], tmp_path: Path
) -> None:
    leave(tmp_path, written - {RECORD_FILE, CHECKPOINT})
    (tmp_path / "notes.txt").touch()
    claim_folder(tmp_path, overwrite=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["notes.txt"]


def test_two_trainings_cannot_share_a_folder(run: Path, tmp_path: Path) -> None:
    settings = RunFolder.open(run).record.settings
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with only_training(run), pytest.raises(InputError, match="another training is writing to"):
        fit_run(settings, out=run, overwrite=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / SETTINGS_FILE).write_text(settings.model_dump_json())
    with only_training(tmp_path / "begun"), pytest.raises(InputError, match="another training is writing to"):
        resume_run(tmp_path / "begun")


def test_a_run_without_a_checkpoint_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text("{}")
    claim_folder(tmp_path, overwrite=False)


def test_a_taken_name_is_refused_before_the_data_is_looked_at(run: Path) -> None:
    settings = RunFolder.open(run).record.settings
    nowhere = settings.model_copy(update={"source": DataSource(root="nowhere")})
    with pytest.raises(InputError, match="contains a complete run"):
        fit_run(nowhere, out=run)


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(InputError, match="is not a run"):
        claim_folder(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is not a run"):
        claim_folder(tmp_path / "holiday.jpg", overwrite=True)


def test_reading_a_run_loads_no_torch() -> None:
    code = "import sys, vae_edge.train.run.folder, vae_edge.train.command; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_settings_in_which_everything_is_decided_are_written_like_others() -> None:
    asked = TrainSettings(
        source=DataSource(root="parts"), architecture=make_architecture("nano", (64, 64)), scoring=None
    )
    decided = asked.decide(Photometric.IMAGE, MSE_SCORING)
    assert list(DecidedSettings.model_fields) == list(TrainSettings.model_fields)
    assert TrainSettings.model_validate_json(decided.model_dump_json()) == asked.model_copy(
        update={"tiling": asked.tiling_in_force, "photometric": Photometric.IMAGE, "scoring": MSE_SCORING}
    )
    assert DecidedSettings.model_validate_json(decided.model_dump_json()) == decided


def test_the_records_of_a_run_that_version_0_1_wrote_still_open_with_all_that_they_say(tmp_path: Path) -> None:
    written = json.loads(Path(__file__).with_name("run_0_1.json").read_text(encoding="utf-8"))
    kinds: dict[str, type[Record]] = {"model.json": RunRecord, "training.json": TrainSettings, "metrics.json": Metrics}
    for name, kind in kinds.items():
        (tmp_path / name).write_text(json.dumps(written[name]), encoding="utf-8")
        found = read_record(tmp_path / name, kind, SCHEMA_VERSION, advice="train again").model_dump(mode="json")
        assert differences(written[name], found) == [], name
