from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.export.calibration.calibration_set import CalibrationSet, check_disjoint, draw_calibration_set
from vae_edge.export.calibration.checks import (
    check_pictures,
    check_scores,
    contrasts,
    neighbour_correlations,
    probability_beyond,
)
from vae_edge.export.calibration.judging import JudgingSet, content_hashes, draw_judging_set
from vae_edge.export.trained_model import TrainedModel, measure_trained_model
from vae_edge.image import read_image
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.settings import Calibration, TrainSettings
from vae_edge.train.model.presets import Recipe, make_architecture
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.sample import SampleSettings, write_sample_set

RANDOM = np.random.default_rng(11)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough good parts that 32 are left to train on; tests leave it as it is."""
    settings = SampleSettings(image_size=64, n_train=80, n_test_good=3, n_test_per_defect=1)
    return write_sample_set(tmp_path_factory.mktemp("calibration"), ["dial"], settings)[0]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    settings = TrainSettings(
        source=DataSource(root=str(data)),
        architecture=make_architecture("nano", (32, 32), n_features=8, latent_vec_size=16),
        epochs=20,
        batch_size=8,
        recipe=Recipe(learning_rate=2e-3),
        accelerator="cpu",
        calibration=Calibration.SPLIT,
    )
    run = fit_run(settings, out=tmp_path_factory.mktemp("runs") / "dial")
    return measure_trained_model(run, scoring=None, data_root=None, false_alarm_rate=None, progress=lambda *_: None)


@pytest.fixture(scope="module")
def judging(trained: TrainedModel) -> JudgingSet:
    return draw_judging_set(trained.run)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good parts that the run has not seen."""
    settings = SampleSettings(seed=1, image_size=64, n_train=40, n_test_good=1, n_test_per_defect=1)
    folder = write_sample_set(tmp_path_factory.mktemp("fresh"), ["dial"], settings)[0]
    return folder / "train" / "good"


@pytest.fixture
def own(fresh: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may spoil."""
    return Path(shutil.copytree(fresh, tmp_path / "good"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def save(folder: Path, images: NDArray[np.uint8]) -> None:
    for position, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"{position:03}.png"), image[..., ::-1])


def refusal(trained: TrainedModel, judging: JudgingSet, data: Path) -> str:
    with pytest.raises(InputError) as caught:
        draw_calibration_set(trained, judging, data=data)
    return str(caught.value)


def test_the_runs_own_training_images_are_drawn_and_the_set_is_recorded(
    trained: TrainedModel, judging: JudgingSet
) -> None:
    drawn = draw_calibration_set(trained, judging)
    fit = {image.name for image in trained.run.split.of("fit")}
    assert set(drawn.names) == fit
    assert drawn.images.shape == (len(fit), 32, 32, 3)
    assert drawn.record.sha256 == drawn.sha256
    assert drawn.record.n_images == len(fit)
    assert drawn.source == "the training images of the run dial"
    assert len(drawn.warnings) == 1
    assert f"calibrated on only {len(fit)} images" in drawn.warnings[0]


def test_a_smaller_set_is_the_beginning_of_a_larger_one_and_two_draws_are_equal(
    trained: TrainedModel, judging: JudgingSet
) -> None:
    all_of_them, some = (draw_calibration_set(trained, judging, n_images=n) for n in (300, 32))
    assert some.names == all_of_them.names[:32]
    assert some.sha256 != all_of_them.sha256
    assert some.sha256 == draw_calibration_set(trained, judging, n_images=32).sha256


def test_the_draw_goes_by_content_and_not_by_names(
    trained: TrainedModel, judging: JudgingSet, fresh: Path, tmp_path: Path
) -> None:
    for position, path in enumerate(sorted(fresh.iterdir(), reverse=True)):
        (tmp_path / "renamed").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "renamed" / f"{position:03}.png")
    first, second = (
        draw_calibration_set(trained, judging, data=folder, n_images=33) for folder in (fresh, tmp_path / "renamed")
    )
    assert first.sha256 == second.sha256
    assert first.names != second.names


def test_the_hash_is_of_pixels_and_their_order() -> None:
    images = RANDOM.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    one = CalibrationSet(images, ("a", "b", "c"), "here")
    assert one.sha256 == CalibrationSet(images.copy(), ("d", "e", "f"), "there").sha256
    assert one.sha256 != CalibrationSet(images[::-1], ("a", "b", "c"), "here").sha256


def test_honest_good_parts_of_another_day_are_taken(trained: TrainedModel, judging: JudgingSet, fresh: Path) -> None:
    drawn = draw_calibration_set(trained, judging, data=fresh)
    assert len(drawn.names) == 40
    assert [warning for warning in drawn.warnings if "calibrated on only" not in warning] == []


def test_an_empty_folder_is_refused(trained: TrainedModel, judging: JudgingSet, folder: Path) -> None:
    assert "there are no calibration images" in refusal(trained, judging, folder)


def test_fewer_than_32_are_refused(trained: TrainedModel, judging: JudgingSet, own: Path) -> None:
    for path in sorted(own.iterdir())[31:]:
        path.unlink()
    message = refusal(trained, judging, own)
    assert message.startswith(f"31 different images can be used for calibration, from {own}; expected at least 32")
    with pytest.raises(InputError, match="31 calibration images were asked for; expected 32 or more"):
        draw_calibration_set(trained, judging, n_images=31)


def test_a_file_that_cannot_be_decoded_is_left_out_and_named(
    trained: TrainedModel, judging: JudgingSet, own: Path
) -> None:
    (own / "broken.png").write_bytes(b"no picture")
    drawn = draw_calibration_set(trained, judging, data=own)
    assert "1 of the calibration images" in drawn.warnings[0]
    assert drawn.warnings[0].endswith("were left out because they cannot be decoded (broken.png)")
    for path in sorted(own.glob("0*.png"))[:10]:
        path.write_bytes(b"no picture either " + path.name.encode())
    message = refusal(trained, judging, own)
    assert message.startswith("30 different images")
    assert "11 of the calibration images" in message


def test_copies_of_one_image_count_once(trained: TrainedModel, judging: JudgingSet, own: Path) -> None:
    first, *others = sorted(own.iterdir())
    picture = read_image(first)[..., ::-1]
    for position, path in enumerate(others):
        # Other bytes, the same picture.
        assert cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, position % 10])
    message = refusal(trained, judging, own)
    assert message.startswith("1 different images can be used")
    assert "copies of another image" in message


def test_one_picture_with_a_cameras_noise_is_refused(
    trained: TrainedModel, judging: JudgingSet, own: Path, folder: Path
) -> None:
    image = read_image(min(own.iterdir()))
    noise = RANDOM.normal(0, 0.5, (40, *image.shape))
    save(folder, np.clip(np.rint(image + noise), 0, 255).astype(np.uint8))
    assert "are the same picture repeated" in refusal(trained, judging, folder)


def test_constant_images_are_refused(trained: TrainedModel, judging: JudgingSet, folder: Path) -> None:
    save(folder, np.stack([np.full((64, 64, 3), 60 + i, np.uint8) for i in range(40)]))
    message = refusal(trained, judging, folder)
    assert message.startswith(f"40 of the 40 calibration images from {folder} are constant")
    assert "expected pictures of good parts" in message


@pytest.mark.parametrize("size", [32, 128])
def test_random_numbers_are_refused(trained: TrainedModel, judging: JudgingSet, folder: Path, size: int) -> None:
    save(folder, RANDOM.integers(0, 256, (40, size, size, 3), dtype=np.uint8))
    assert "look like random numbers" in refusal(trained, judging, folder)


def test_other_products_are_refused_by_their_scores(trained: TrainedModel, judging: JudgingSet, tmp_path: Path) -> None:
    settings = SampleSettings(image_size=64, n_train=40, n_test_good=1, n_test_per_defect=1)
    (other,) = write_sample_set(tmp_path, ["board"], settings)
    message = refusal(trained, judging, other)
    assert "of the 40 calibration images" in message
    assert "not like the images that it was trained on; expected good parts of the same product" in message


def test_defective_parts_are_refused_by_their_scores(
    trained: TrainedModel, judging: JudgingSet, data: Path, folder: Path
) -> None:
    settings = SampleSettings(seed=2, image_size=64, n_train=1, n_test_good=1, n_test_per_defect=5)
    (other,) = write_sample_set(folder, ["dial"], settings)
    shutil.rmtree(other / "test" / "good")
    (folder / "parts").mkdir()
    for path in (other / "test").rglob("*.png"):
        path.rename(folder / "parts" / f"{path.parent.name}-{path.name}")
    assert "not like the images" in refusal(trained, judging, folder / "parts")


def test_images_that_the_run_holds_out_are_refused(trained: TrainedModel, judging: JudgingSet, data: Path) -> None:
    message = refusal(trained, judging, data)
    n = len(trained.run.split.of("threshold"))
    assert message.startswith(f"{n} of the 80 images from {data} are held out by the run")
    assert "leave out --calibration-data" in message


def test_held_out_images_are_known_by_their_pixels_too(trained: TrainedModel, judging: JudgingSet, own: Path) -> None:
    # The prepared image itself, in a file that the run has never seen.
    save(own, trained.images[:1])
    assert refusal(trained, judging, own).startswith("1 of the 40 images")


def test_sets_that_share_an_image_are_refused(trained: TrainedModel, judging: JudgingSet) -> None:
    drawn = draw_calibration_set(trained, judging)
    normals = trained.images[: trained.n_normals]
    check_disjoint(thresholds=normals, calibration=drawn, judging=judging)
    with pytest.raises(InputError, match=r"1 of the \d+ calibration images .* also fit the thresholds"):
        check_disjoint(thresholds=drawn.images[:1], calibration=drawn, judging=judging)
    overlapping = replace(drawn, images=np.concatenate([drawn.images[1:], judging.images[:1]]))
    with pytest.raises(InputError, match="also judge the accuracy"):
        check_disjoint(thresholds=normals, calibration=overlapping, judging=judging)
    with pytest.raises(InputError, match=r"1 of the \d+ images that judge the accuracy also fits the thresholds"):
        check_disjoint(thresholds=judging.images[:1], calibration=drawn, judging=judging)
    assert not set(content_hashes(drawn.images)) & set(content_hashes(judging.images))


def test_a_few_bad_images_among_many_are_named_and_the_set_is_taken(
    trained: TrainedModel, judging: JudgingSet, own: Path
) -> None:
    save(own, np.zeros((1, 64, 64, 3), np.uint8))
    drawn = draw_calibration_set(trained, judging, data=own)
    (warning,) = (warning for warning in drawn.warnings if "constant" in warning)
    assert "1 of the 40" in warning
    assert "(000.png)" in warning


def test_the_statistics_of_pictures_are_what_they_say() -> None:
    noise = RANDOM.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (1, 64, 64, 3))
    assert np.abs(neighbour_correlations(noise)).max() < 0.05
    assert neighbour_correlations(ramp)[0] > 0.98
    assert neighbour_correlations(np.zeros((1, 8, 8, 3), np.uint8))[0] == 1
    assert contrasts(ramp)[0] == pytest.approx(np.arange(64).std(), rel=1e-5)


def test_a_product_that_looks_like_noise_itself_is_not_refused_for_it() -> None:
    first, second = RANDOM.integers(0, 256, (2, 40, 32, 32, 3), dtype=np.uint8)
    assert check_pictures(first, [str(i) for i in range(40)], second, "here") == []


@pytest.mark.parametrize(("n_normals", "n"), [(2, 32), (8, 40), (100, 300)])
def test_scores_drawn_alike_pass(n_normals: int, n: int) -> None:
    random = np.random.default_rng(3)
    for _ in range(500):
        scores = random.gumbel(size=n_normals + n).astype(np.float32)
        assert check_scores(scores[:n], scores[n:], "here") == []


def test_one_odd_held_out_image_does_not_disarm_the_rule() -> None:
    normals = np.append(RANDOM.normal(size=59), 1000).astype(np.float32)
    with pytest.raises(InputError, match=r"40 of the 40 .* which only 2 of its 60 held-out normals do"):
        check_scores(np.full(40, 50, np.float32), normals, "here")


def test_a_few_odd_images_are_warned_about() -> None:
    normals = RANDOM.normal(size=500).astype(np.float32)
    scores = np.append(np.full(45, 50), RANDOM.normal(size=255) - 1).astype(np.float32)
    (warning,) = check_scores(scores, normals, "here")
    assert "check them for defects, other products or different light" in warning


def test_the_probability_is_that_of_all_orders_counted() -> None:
    random = np.random.default_rng(0)
    n, n_normals, rank, trials = 6, 5, 2, 20000
    values = random.random((trials, n + n_normals))
    limit = np.sort(values[:, n:], axis=1)[:, -rank]
    beyond = (values[:, :n] > limit[:, None]).sum(axis=1)
    for k in range(n + 1):
        assert probability_beyond(k, n, rank, n_normals) == pytest.approx((beyond >= k).mean(), abs=0.015)
    assert probability_beyond(32, 32, 1, 2) == pytest.approx(2 / (33 * 34))
