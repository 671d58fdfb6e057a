"""Pictures of the same part stay together by content, by name, or not at all, and a run says what that comes to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.exposures import write_exposures
from vae_edge.errors import UsageError
from vae_edge.platform.atomic import sha256_file
from vae_edge.train.data.grouping import (
    few_parts,
    find_gap,
    find_look_alikes,
    group_normals,
    group_test_normals,
    similarity,
)
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.split import SplitSettings, split_normals
from vae_edge.train.sample import PRODUCTS, SampleSettings, write_sample_set


@pytest.fixture(scope="module")
def exposures(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    paths = write_exposures(tmp_path_factory.mktemp("exposures"), 16, 3)
    return [ImageFile(path, path.name, sha256_file(path)) for path in paths]


def parts_in(images: Sequence[ImageFile]) -> set[str]:
    return {image.name.split("_")[0] for image in images}


@pytest.mark.parametrize("group_by", ["auto", r"(part\d+)_"])
def test_pictures_of_one_part_have_one_role(exposures: list[ImageFile], group_by: str) -> None:
    settings = SplitSettings(group_by=group_by)
    grouping = group_normals(exposures, settings)
    split = split_normals(exposures, settings, grouping.part)
    assert grouping.n_parts(exposures) == 16
    assert len(parts_in(split.fit)) + len(parts_in(split.statistics)) + len(parts_in(split.threshold)) == 16
    assert grouping.n_parts(split.threshold) == len(parts_in(split.threshold))


def test_what_was_found_by_content_is_said_and_what_was_asked_for_is_not(exposures: list[ImageFile]) -> None:
    sentence = group_normals(exposures, SplitSettings()).sentence
    assert sentence == (
        "48 good parts look like 16 different ones: pictures of the same part are kept together; --group-by none "
        "turns this off"
    )
    assert group_normals(exposures, SplitSettings(group_by=r"(part\d+)_")).sentence is None
    nothing = group_normals(exposures, SplitSettings(group_by="none"))
    assert (dict(nothing.groups), nothing.sentence, nothing.n_parts(exposures)) == ({}, None, 48)


def test_groups_found_by_content_that_cannot_be_split_are_left_alone(exposures: list[ImageFile]) -> None:
    settings = SplitSettings(threshold_share=0.59, statistics_share=0.12)
    grouping = group_normals(exposures, settings)
    assert dict(grouping.groups) == {}
    assert grouping.sentence is not None
    assert "too few to keep them together" in grouping.sentence
    split_normals(exposures, SplitSettings(), grouping.part)


def test_good_test_images_are_grouped_too_and_need_not_be_named_alike(exposures: list[ImageFile]) -> None:
    strange = ImageFile(exposures[0].path, "strange.png", "f" * 64)
    bad = ImageFile(exposures[1].path, "part1_bad.png", "e" * 64, defect="dent")
    by_name = group_test_normals([*exposures[:6], strange, bad], SplitSettings(group_by=r"(part\d+)_"))
    assert set(by_name.groups.values()) == {"part0", "part1"}
    assert not {strange.sha256, bad.sha256} & set(by_name.groups)
    assert group_test_normals([*exposures, bad], SplitSettings()).n_parts(exposures) == 16
    assert dict(group_test_normals(exposures, SplitSettings(group_by="none")).groups) == {}


def test_an_expression_that_is_none_is_refused_with_the_other_choices(exposures: list[ImageFile]) -> None:
    with pytest.raises(UsageError, match="auto or none"):
        group_normals(exposures, SplitSettings(group_by="automatic"))


def test_few_parts_are_warned_of_only_where_they_are_fewer_than_the_pictures_and_than_the_rate_needs() -> None:
    sentence = few_parts(102, 17, 0.01)
    assert sentence is not None
    assert "102 normal images that set the threshold show 17 different parts" in sentence
    assert "needs about 100 parts" in sentence
    assert few_parts(102, 100, 0.01) is None
    assert few_parts(102, 17, 0.1) is None
    assert few_parts(17, 17, 0.01) is None


Picture = NDArray[np.float32]

Write = Callable[[dict[str, Picture]], list[ImageFile]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def files(pictures: dict[str, Picture]) -> list[ImageFile]:
        for name, picture in pictures.items():
            cv2.imwrite(str(tmp_path / f"{name}.png"), np.clip(np.rint(picture), 0, 255).astype(np.uint8))
        return image_files([tmp_path / f"{name}.png" for name in pictures])

    return files


def image_files(paths: Iterable[Path]) -> list[ImageFile]:
    return [ImageFile(path, path.name, sha256_file(path)) for path in paths]


def texture(rng: np.random.Generator, height: int = 112, width: int = 96, grain: float = 2.0) -> Picture:
    noise = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), grain)
    return np.asarray(128 + 40 * noise / noise.std(), dtype=np.float32)


def noisy(picture: Picture, rng: np.random.Generator) -> Picture:
    return np.asarray(picture + rng.normal(0, 2, picture.shape), dtype=np.float32)


def exposure(picture: Picture, rng: np.random.Generator) -> Picture:
    """The same region again: other gain, brightness and noise, light from a side, cut out some pixels further."""
    y, x = rng.integers(0, 5, 2)
    cut = picture[y : y + picture.shape[0] - 4, x : x + picture.shape[1] - 4]
    side_light = np.linspace(0, rng.uniform(-20, 20), cut.shape[1], dtype=np.float32)
    return noisy(cut * np.float32(rng.uniform(0.5, 1.1)) + rng.uniform(-15, 15) + side_light, rng)


def found(images: Sequence[ImageFile]) -> set[frozenset[str]]:
    """Return the groups as sets of names without their endings."""
    groups: dict[str, set[str]] = defaultdict(set)
    result = find_look_alikes(images)
    for image in images:
        if image.sha256 in result.groups:
            groups[result.groups[image.sha256]].add(Path(image.name).stem)
    return {frozenset(names) for names in groups.values()}


def test_exposures_of_one_part_are_grouped_and_single_pictures_are_not(write: Write) -> None:
    rng = np.random.default_rng(0)
    pictures: dict[str, Picture] = {}
    for part in range(20):
        drawn = texture(rng)
        pictures |= {f"{part}_{i}": exposure(drawn, rng) for i in range(4 if part < 12 else 1)}
    images = write(pictures)
    assert found(images) == {frozenset(f"{part}_{i}" for i in range(4)) for part in range(12)}
    result = find_look_alikes(images)
    assert result.n_parts == 20
    sentence = result.sentence()
    assert sentence is not None
    assert sentence.startswith("56 good parts look like 20 different ones: pictures of the same part are kept together")


def test_neither_order_nor_names_matter(write: Write) -> None:
    rng = np.random.default_rng(1)
    images = write(
        {f"{part}_{i}": exposure(drawn, rng) for part in range(12) for drawn in [texture(rng)] for i in (0, 1)}
    )
    groups = find_look_alikes(images).groups
    assert len(groups) == 24
    assert set(groups.values()) <= {image.sha256 for image in images}
    renamed = [ImageFile(image.path, f"{i}.png", image.sha256) for i, image in enumerate(images)]
    assert find_look_alikes(renamed[::-1]).groups == groups


@pytest.mark.parametrize("grain", [0.5, 2.0, 8.0])
def test_independent_textures_are_not_grouped(write: Write, grain: float) -> None:
    rng = np.random.default_rng(2)
    result = find_look_alikes(write({str(i): texture(rng, grain=grain) for i in range(60)}))
    assert (dict(result.groups), result.n_parts, result.sentence()) == ({}, 60, None)


@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_parts_of_a_rigid_product_are_not_taken_for_one_part(tmp_path: Path, product: str) -> None:
    settings = SampleSettings(image_size=96, n_train=60, n_test_good=1, n_test_per_defect=1)
    folder = write_sample_set(tmp_path, [product], settings)[0]
    images = image_files(sorted((folder / "train" / "good").iterdir()))
    result = find_look_alikes(images)
    assert result.n_parts >= 0.97 * len(images)
    assert result.too_large == 0


def test_the_frames_of_a_film_belong_to_the_part_they_show(write: Write) -> None:
    rng = np.random.default_rng(3)
    pictures: dict[str, Picture] = {}
    for part in range(12):
        belt = texture(rng, 96, 140)
        pictures |= {f"{part}_{i}": noisy(belt[:, 3 * i : 3 * i + 96], rng) for i in range(8)}
    assert found(write(pictures)) == {frozenset(f"{part}_{i}" for i in range(8)) for part in range(12)}


def test_one_film_over_all_parts_is_not_one_giant_group(write: Write) -> None:
    rng = np.random.default_rng(4)
    belt = texture(rng, 96, 96 + 80 * 4)
    result = find_look_alikes(write({str(i): noisy(belt[:, 4 * i : 4 * i + 96], rng) for i in range(80)}))
    assert dict(result.groups) == {}


def test_too_few_parts_to_keep_them_together_are_said_so(write: Write) -> None:
    rng = np.random.default_rng(5)
    parts = [texture(rng) for _ in range(4)]
    result = find_look_alikes(
        write({f"{p}_{i}": exposure(part, rng) for p, part in enumerate(parts) for i in range(8)})
    )
    assert (dict(result.groups), result.n_parts, result.too_large) == ({}, 4, 8)
    sentence = result.sentence()
    assert sentence is not None
    assert "32 good parts look like 4 different ones, and 8 pictures like the same one: too few" in sentence
    assert "not for new parts" in sentence


def test_parts_on_a_line_have_no_gap_and_a_few_that_are_nearer_have_one() -> None:
    # Squares of lengths that follow an exponential law, as between points drawn at random on a line.
    lengths = -np.log1p(-(np.arange(200) + 0.5) / 200)
    assert find_gap((0.2 * lengths**2).tolist(), 200) is None
    level = find_gap([*np.linspace(0.01, 0.02, 40), *np.linspace(0.5, 3.0, 160)], 200)
    assert level is not None
    assert 0.02 < level < 0.5
    # What is far apart in any case is not the same, whatever the gap.
    assert find_gap([*np.linspace(2.0, 2.1, 40), *np.linspace(20.0, 50.0, 160)], 200) is None


def test_the_similarity_is_the_largest_over_small_shifts_and_exact() -> None:
    rng = np.random.default_rng(6)
    large = rng.integers(-40, 41, (70, 60)).astype(np.int8)
    one, other = large[4:64, 3:53], large[2:62, 6:56]
    assert similarity(one, one) == 1.0
    assert similarity(one, other) == pytest.approx(1.0)
    assert abs(similarity(one, rng.integers(-40, 41, (60, 50)).astype(np.int8))) < 0.15
    assert similarity(one, large[:40, :30]) == 0.0
    assert similarity(np.zeros_like(one), one) == 0.0


def test_few_flat_and_tiny_pictures_are_nothing_special(write: Write) -> None:
    assert find_look_alikes([]).n_parts == 0
    flat = {str(i): np.full((40 + i % 3, 3 + i), 4.0 * i, dtype=np.float32) for i in range(20)}
    assert find_look_alikes(write(flat)).n_parts == 20
    assert find_look_alikes(write({"a": flat["3"], "b": flat["4"]})).sentence() is None


def test_progress_reaches_the_end(write: Write) -> None:
    rng = np.random.default_rng(7)
    told: list[tuple[str, int, int]] = []
    find_look_alikes(write({str(i): texture(rng) for i in range(9)}), lambda *step: told.append(step))
    assert told[8] == ("looking for pictures of the same part", 9, 9)
    assert told[-1] == ("comparing pictures", 9, 9)
