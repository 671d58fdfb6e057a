import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vae_edge.errors import InputError
from vae_edge.train.inspection_set import ImageFile
from vae_edge.train.split import Split, SplitSettings, n_statistics, n_threshold, split_normals


def parts(n: int, per_part: int = 1) -> list[ImageFile]:
    return [
        ImageFile(Path(f"{i}.png"), f"part{i // per_part}_{i}.png", hashlib.sha256(str(i).encode()).hexdigest())
        for i in range(n)
    ]


def roles(split: Split) -> list[Sequence[ImageFile]]:
    return [split.fit, split.statistics, split.threshold]


def contents(split: Split) -> list[list[str]]:
    return [[image.sha256 for image in role] for role in roles(split)]


@pytest.mark.parametrize("n", [8, 9, 20, 100, 425, 1000])
def test_the_roles_are_disjoint_and_together_everything(n: int) -> None:
    images = parts(n)
    split = split_normals(images)
    together = [image for role in roles(split) for image in role]
    assert len(together) == n
    assert set(together) == set(images)
    assert len(split.fit) >= 0.5 * n
    assert len(split.statistics) >= 2
    assert len(split.threshold) >= 2


def test_the_default_sizes_support_one_false_alarm_in_a_hundred_where_they_can() -> None:
    sizes = {
        n: (n_threshold(n, SplitSettings()), n_statistics(n, SplitSettings())) for n in (8, 50, 100, 334, 425, 1000)
    }
    assert sizes == {8: (2, 2), 50: (15, 7), 100: (30, 15), 334: (100, 40), 425: (100, 43), 1000: (200, 100)}


def test_the_split_depends_on_neither_order_nor_names() -> None:
    images = parts(60)
    renamed = [replace(image, name=f"other_{59 - i}.png", path=Path("x")) for i, image in enumerate(images)]
    assert contents(split_normals(images)) == contents(split_normals(images[::-1]))
    assert contents(split_normals(images)) == contents(split_normals(renamed))


def test_another_seed_gives_another_split() -> None:
    images = parts(60)
    assert contents(split_normals(images)) != contents(split_normals(images, SplitSettings(seed=1)))


def test_an_image_more_moves_few_of_the_others() -> None:
    before, after = split_normals(parts(200)), split_normals(parts(201))
    for old, new in zip(roles(before), roles(after), strict=True):
        assert len(set(old) - set(new)) <= 2


def test_shares_can_be_chosen() -> None:
    split = split_normals(parts(200), SplitSettings(threshold_share=0.4, statistics_share=0.2))
    assert [len(role) for role in roles(split)] == [80, 40, 80]


@pytest.mark.parametrize("how", ["expression", "function"])
def test_images_of_one_group_stay_in_one_role(how: str) -> None:
    images = parts(300, per_part=6)
    if how == "expression":
        split = split_normals(images, SplitSettings(group_by=r"part(\d+)_"))
    else:
        split = split_normals(images, group=lambda image: image.name.split("_")[0])
    of_role = [{image.name.split("_")[0] for image in role} for role in roles(split)]
    assert sum(map(len, of_role)) == 50
    assert len(set.union(*of_role)) == 50
    assert 90 <= len(split.threshold) < 96


def test_settings_from_before_groups_were_found_group_nothing() -> None:
    assert SplitSettings.model_validate({"group_by": None}).group_by == "none"
    assert SplitSettings().group_by == "auto"
    # Groups are found by who calls; left to itself the split takes every image for a part of its own.
    assert contents(split_normals(parts(60))) == contents(split_normals(parts(60), SplitSettings(group_by="none")))


def test_copies_of_one_image_stay_in_one_role() -> None:
    images = parts(40)
    copies = [replace(image, name=f"copy_{image.name}") for image in images]
    of_role = [{image.sha256 for image in role} for role in roles(split_normals(images + copies))]
    assert sum(map(len, of_role)) == 40


def test_too_few_images_or_groups_are_refused() -> None:
    with pytest.raises(InputError, match="there are 7 images"):
        split_normals(parts(7))
    with pytest.raises(InputError, match="form 2 groups"):
        split_normals(parts(20, per_part=10), SplitSettings(group_by=r"part(\d+)"))
    settings = SplitSettings(threshold_share=0.5, statistics_share=0.25, group_by=r"part(\d+)")
    with pytest.raises(InputError, match="left to train on"):
        split_normals(parts(60, per_part=10), settings)


@pytest.mark.parametrize(
    ("expression", "says"), [("part(", "no regular expression"), (r"part\d+", "no parentheses"), ("x(a)", "not found")]
)
def test_a_group_that_cannot_be_used_is_refused(expression: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        split_normals(parts(20), SplitSettings(group_by=expression))


def test_an_anomalous_image_is_refused() -> None:
    images = parts(20)
    images[3] = replace(images[3], defect="scratch")
    with pytest.raises(InputError, match="1 of the images to split are anomalous"):
        split_normals(images)


@pytest.mark.parametrize("values", [{"threshold_share": 0}, {"threshold_share": 0.9}, {"statistics_share": 0.5}])
def test_a_share_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SplitSettings.model_validate(values)
