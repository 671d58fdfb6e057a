"""A network that was trained elsewhere becomes a run like any other, and no image sets two things."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.anomalib_checkpoints import ORIGIN, make_constants, make_notes, save_features, save_own
from tests.train.circulated_vae import save_circulated
from tests.train.listener import Listener
from tests.train.tiny_models import make_vae, scoring_of, write_set
from vae_edge.errors import InputError, UsageError
from vae_edge.train.anomalib.checkpoint import read_checkpoint
from vae_edge.train.anomalib.taking_over import take_over
from vae_edge.train.data.inspection_set import ImageFile, load_images
from vae_edge.train.data.sources import DataSource
from vae_edge.train.model.anomaly_graph import AnomalyGraph, run_graph
from vae_edge.train.model.input_settings import IMAGENET, Photometric
from vae_edge.train.model.presets import Network
from vae_edge.train.model.scoring import DEFAULT_SCORING, NORMALIZED_SCORING
from vae_edge.train.model.scoring_constants import fit_scoring_constants
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.run.records import Role

N_GOOD = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Surfaces with a few defects; tests leave them as they are."""
    return write_set(tmp_path_factory.mktemp("surfaces"), n_good=N_GOOD, n_test=2)


@pytest.fixture(scope="module")
def source(data: Path) -> DataSource:
    return DataSource(root=str(data))


@pytest.fixture(scope="module")
def normals(source: DataSource) -> tuple[ImageFile, ...]:
    """The normals in the order of their names."""
    return tuple(sorted(source.open().train, key=lambda image: image.name))


def roles_of(normals: tuple[ImageFile, ...]) -> dict[str, Role]:
    """Divide the first 24: 10 fit, 6 statistics, 8 threshold; 6 are not known."""
    divided: tuple[tuple[Role, int, int], ...] = (("fit", 0, 10), ("statistics", 10, 16), ("threshold", 16, 24))
    return {image.sha256: role for role, first, end in divided for image in normals[first:end]}


def only(normals: tuple[ImageFile, ...], keep: Callable[[int], bool], folder: Path) -> DataSource:
    """Copy some of the normals, by their place, into a folder of their own."""
    folder.mkdir()
    for i, image in enumerate(normals):
        if keep(i):
            shutil.copy(image.path, folder)
    return DataSource(normal=str(folder))


def hashes(run: RunFolder, role: Role) -> set[str]:
    return {image.sha256 for image in run.split.of(role)}


@pytest.fixture(scope="module")
def own(normals: tuple[ImageFile, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with roles and constants; tests leave it as it is."""
    notes = make_notes()
    path = tmp_path_factory.mktemp("checkpoints") / "tile.ckpt"
    return save_own(path, notes, constants=make_constants(notes), roles=roles_of(normals))


@pytest.fixture(scope="module")
def own_run(own: Path, source: DataSource, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return take_over(read_checkpoint(own), source, tmp_path_factory.mktemp("runs") / "tile")


@pytest.fixture(scope="module")
def circulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_circulated(tmp_path_factory.mktemp("weights") / "last.ckpt", epoch=6)


class TestAnOwnCheckpoint:
    def test_known_images_keep_their_roles_and_new_ones_go_to_the_threshold(
        self, own_run: RunFolder, normals: tuple[ImageFile, ...]
    ) -> None:
        names = [image.sha256 for image in normals]
        assert hashes(own_run, "fit") == set(names[:10])
        assert hashes(own_run, "statistics") == set(names[10:16])
        assert hashes(own_run, "threshold") == set(names[16:])
        assert own_run.record.counts["test"] == 6

    def test_the_record_says_where_it_comes_from_and_what_it_was(self, own_run: RunFolder) -> None:
        record = own_run.record
        assert record.name == "tile"
        assert record.taken_from == "tile.ckpt: an anomalib checkpoint of vae_edge.anomalib.Vae 0.1.0"
        assert (record.photometric, record.input_range) == (Photometric.IMAGE, IMAGENET)
        assert record.scoring == NORMALIZED_SCORING
        assert (record.training.epochs_run, record.settings.batch_size) == (5, 16)
        assert record.settings.recipe.learning_rate == 1e-3
        assert record.settings.false_alarm_rate == own_run.thresholds.false_alarm_rate == 0.1
        assert own_run.thresholds.pixel_false_positive_rate == 0.002

    def test_it_opens_and_scores_with_the_checkpoints_weights_and_constants(
        self, own_run: RunFolder, normals: tuple[ImageFile, ...]
    ) -> None:
        run, notes = RunFolder.open(own_run.folder), make_notes()
        expected = AnomalyGraph(make_vae(), notes.scoring, make_constants(notes), notes.input_settings)
        images = load_images(normals, run.record.preparation)
        for ours, theirs in zip(run_graph(run.load_graph(), images), run_graph(expected, images), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_the_thresholds_are_of_the_held_out_scores_alone(self, own_run: RunFolder) -> None:
        held_out = own_run.find_images(["threshold"])
        assert {score.sha256 for score in own_run.calibration.scores} <= {image.sha256 for image in held_out}
        images = load_images(held_out, own_run.record.preparation)
        _, scores = run_graph(own_run.load_graph(), images)
        by_hash = {image.sha256: score for image, score in zip(held_out, scores, strict=True)}
        for score in own_run.calibration.scores:
            assert score.score == pytest.approx(by_hash[score.sha256])
        # At most a tenth of the normals that set it lies above the threshold.
        n = len(own_run.calibration.scores)
        assert sum(score.score > own_run.thresholds.image_threshold for score in own_run.calibration.scores) <= 0.1 * n

    def test_a_false_alarm_rate_that_is_asked_for_goes_before_the_checkpoints(
        self, own: Path, own_run: RunFolder, source: DataSource, tmp_path: Path
    ) -> None:
        run = take_over(read_checkpoint(own), source, tmp_path / "run", false_alarm_rate=0.4)
        assert run.thresholds.false_alarm_rate == run.record.settings.false_alarm_rate == 0.4
        assert run.thresholds.image_threshold < own_run.thresholds.image_threshold

    @pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
    def test_a_rate_that_is_none_is_refused(self, rate: float, own: Path, source: DataSource, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="false_alarm_rate is"):
            take_over(read_checkpoint(own), source, tmp_path / "run", false_alarm_rate=rate)
        assert not (tmp_path / "run").exists()

    def test_another_scoring_is_measured_anew(
        self, own: Path, own_run: RunFolder, source: DataSource, tmp_path: Path
    ) -> None:
        scoring = scoring_of("l1/0.05/image+pixel/top1%,l2/0.03/image/max")
        run = take_over(read_checkpoint(own), source, tmp_path / "run", scoring=scoring)
        assert run.record.scoring == scoring
        images = [load_images(run.find_images([role]), run.record.preparation) for role in ("statistics", "fit")]
        expected = fit_scoring_constants(
            make_vae(), scoring, images[0], input_settings=own_run.record.input_settings, fitted=images[1]
        ).tensors()
        found = run.load_constants().tensors()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)

    def test_a_checkpoint_without_constants_gets_them(
        self, normals: tuple[ImageFile, ...], source: DataSource, tmp_path: Path
    ) -> None:
        path = save_own(tmp_path / "early.ckpt", roles=roles_of(normals))
        run = take_over(read_checkpoint(path), source, tmp_path / "run")
        (mean,) = run.load_constants().means
        assert mean.std() > 0

    def test_pictures_of_one_part_count_once(
        self, normals: tuple[ImageFile, ...], source: DataSource, tmp_path: Path
    ) -> None:
        together = {image.sha256: "one part" for image in normals[16:20]}
        notes = make_notes(roles=roles_of(normals), groups=together)
        path = save_own(tmp_path / "tile.ckpt", notes, constants=make_constants(notes))
        run = take_over(read_checkpoint(path), source, tmp_path / "run")
        assert len(run.split.of("threshold")) == 14
        assert len(run.calibration.scores) == 11
        assert sum(image.group == "one part" for image in run.split.images) == 4

    def test_only_images_that_it_was_trained_on_are_refused(
        self, own: Path, normals: tuple[ImageFile, ...], tmp_path: Path
    ) -> None:
        source = only(normals, lambda i: i < 16, tmp_path / "seen")
        with pytest.raises(
            InputError, match=r"all 16 given normal images trained the network of tile\.ckpt; expected some"
        ):
            take_over(read_checkpoint(own), source, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_only_images_that_it_has_not_seen_are_divided(
        self, own: Path, normals: tuple[ImageFile, ...], tmp_path: Path
    ) -> None:
        early = save_own(tmp_path / "tile.ckpt", roles=roles_of(normals[:6]))
        source = only(normals, lambda i: i >= 6, tmp_path / "new")
        listener = Listener()
        run = take_over(read_checkpoint(early), source, tmp_path / "run", watcher=listener)
        assert all(hashes(run, role) for role in ("fit", "statistics", "threshold"))
        assert sum(run.record.counts.values()) == N_GOOD - 6
        assert listener.heard("are left for INT8 calibration")
        assert not listener.heard("does not say which images")

    def test_its_held_out_images_alone_are_enough(
        self, own: Path, normals: tuple[ImageFile, ...], tmp_path: Path
    ) -> None:
        source = only(normals, lambda i: i >= 16, tmp_path / "held-out")
        run = take_over(read_checkpoint(own), source, tmp_path / "run")
        assert (run.record.counts["fit"], run.record.counts["statistics"], run.record.counts["threshold"]) == (0, 0, 14)
        assert RunFolder.open(tmp_path / "run").thresholds.n_normals == 14

    def test_another_scoring_needs_images_for_its_scale(
        self, own: Path, normals: tuple[ImageFile, ...], tmp_path: Path
    ) -> None:
        source = only(normals, lambda i: i >= 16, tmp_path / "held-out")
        with pytest.raises(InputError, match="there are 0 held-out normals to normalize"):
            take_over(read_checkpoint(own), source, tmp_path / "run", scoring=DEFAULT_SCORING)


class TestCirculatedWeights:
    def test_nobody_knows_what_it_was_trained_on_so_the_images_are_divided(
        self, circulated: Path, source: DataSource, tmp_path: Path
    ) -> None:
        listener = Listener()
        run = take_over(read_checkpoint(circulated), source, tmp_path / "run", watcher=listener)
        assert listener.heard("last.ckpt does not record the range of its network's input values")
        assert listener.heard("last.ckpt does not say which images the network was trained on")
        counts = run.record.counts
        assert counts["fit"] + counts["statistics"] + counts["threshold"] == N_GOOD
        assert min(counts["fit"], counts["statistics"], counts["threshold"]) >= 2
        assert counts["test"] == 6
        record = run.record
        assert (record.input_range, record.photometric, record.scoring) == (IMAGENET, Photometric.NONE, DEFAULT_SCORING)
        assert (record.preparation.height, record.preparation.width) == (32, 32)
        assert record.training.epochs_run == 7
        assert record.taken_from is not None
        assert record.taken_from.startswith("last.ckpt: weights of the VAE that circulates")
        images = [load_images(run.find_images([role]), record.preparation) for role in ("statistics", "fit")]
        vae = read_checkpoint(circulated).vae
        assert vae is not None
        expected = fit_scoring_constants(
            vae,
            DEFAULT_SCORING,
            images[0],
            input_settings=record.input_settings,
            fitted=images[1],
        )
        for name, tensor in run.load_constants().tensors().items():
            torch.testing.assert_close(tensor, expected.tensors()[name], rtol=1e-4, atol=1e-6)

    def test_another_seed_divides_otherwise(self, circulated: Path, source: DataSource, tmp_path: Path) -> None:
        first, second = (
            take_over(read_checkpoint(circulated), source, tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)
        )
        assert hashes(first, "threshold") != hashes(second, "threshold")

    def test_too_few_normals_are_refused(
        self, circulated: Path, normals: tuple[ImageFile, ...], tmp_path: Path
    ) -> None:
        source = only(normals, lambda i: i < 5, tmp_path / "few")
        with pytest.raises(InputError, match="there are 5 images of good parts"):
            take_over(read_checkpoint(circulated), source, tmp_path / "run")


def test_a_taken_name_is_refused_before_the_data_is_looked_at(own: Path, own_run: RunFolder, tmp_path: Path) -> None:
    nowhere = DataSource(root=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="contains a complete run"):
        take_over(read_checkpoint(own), nowhere, own_run.folder)
    assert RunFolder.open(own_run.folder)
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(InputError, match="is not a run"):
        take_over(read_checkpoint(own), nowhere, tmp_path)


class TestFeatures:
    def test_the_run_has_the_networks_and_constants_of_the_checkpoint(self, source: DataSource, tmp_path: Path) -> None:
        path, expected = save_features(tmp_path / "model.ckpt")
        assert expected is not None
        run = take_over(read_checkpoint(path), source, tmp_path / "run")
        assert run.record.network is Network.FEATURE
        assert run.record.feature is not None
        assert (run.record.feature.height, run.record.feature.width) == (64, 64)
        assert run.record.feature.backbone == ORIGIN
        images = load_images(run.find_images(("test",)), run.record.preparation)
        maps, scores = run_graph(run.load_graph(), images)
        own_maps, own_scores = run_graph(expected, images)
        np.testing.assert_allclose(scores, own_scores, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(maps, own_maps, rtol=1e-3, atol=1e-3)
        assert len(run.thresholds.calibration_scores) > 2

    def test_constants_that_are_not_in_it_are_measured(
        self, source: DataSource, normals: tuple[ImageFile, ...], tmp_path: Path
    ) -> None:
        roles: dict[str, Role] = {image.sha256: "fit" for image in normals[:10]}
        roles |= {image.sha256: "statistics" for image in normals[10:20]}
        path, _ = save_features(tmp_path / "model.ckpt", n_constants=0, roles=roles)
        run = take_over(read_checkpoint(path), source, tmp_path / "run")
        assert run.record.counts["statistics"] == 10
        _, scores = run_graph(run.load_graph(), load_images(run.find_images(("statistics",)), run.record.preparation))
        # In units of their own median and upper quantile.
        assert abs(float(np.median(scores))) < 1

    def test_another_scoring_is_refused(self, source: DataSource, tmp_path: Path) -> None:
        path, _ = save_features(tmp_path / "model.ckpt")
        with pytest.raises(UsageError, match="is on features, which has its own"):
            take_over(read_checkpoint(path), source, tmp_path / "run", scoring=NORMALIZED_SCORING)

    def test_one_that_was_saved_before_its_training_is_refused(self, tmp_path: Path) -> None:
        path, _ = save_features(tmp_path / "model.ckpt", origin=None)
        with pytest.raises(InputError, match="was saved before its network was trained"):
            read_checkpoint(path)
