"""Pictures of the same part stay together by content, by name, or not at all, and a run says what that comes to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.train.exposures import write_exposures
from vae_edge.atomic import sha256_file
from vae_edge.errors import UsageError
from vae_edge.train.data.grouping import few_parts, group_normals, group_test_normals
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.split import SplitSettings, split_normals


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
        "48 good parts look like 16 different ones: pictures of the same part are kept together; --group-by none does "
        "not"
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
