import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vae_edge.errors import InputError
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.split import (
    Fold,
    Split,
    SplitSettings,
    n_statistics,
    n_threshold,
    split_into_folds,
    split_labelled,
    split_normals,
)


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
    ("expression", "says"),
    [("part(", "not a regular expression"), (r"part\d+", "no parentheses"), ("x(a)", "does not match the name")],
)
def test_a_group_that_cannot_be_used_is_refused(expression: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        split_normals(parts(20), SplitSettings(group_by=expression))


def test_an_anomalous_image_is_refused() -> None:
    images = parts(20)
    images[3] = replace(images[3], defect="scratch")
    with pytest.raises(InputError, match="1 of the images to split is anomalous"):
        split_normals(images)


@pytest.mark.parametrize("values", [{"threshold_share": 0}, {"threshold_share": 0.9}, {"statistics_share": 0.5}])
def test_a_share_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SplitSettings.model_validate(values)


@pytest.mark.parametrize("n_folds", [3, 5, 8])
@pytest.mark.parametrize("n", [8, 9, 24, 101])
def test_each_image_is_held_out_in_one_fold_and_trains_in_the_others(n: int, n_folds: int) -> None:
    images = parts(n)
    whole, folds = split_into_folds(images, n_folds)
    assert len(folds) == n_folds
    assert whole.threshold == ()
    assert {*whole.fit, *whole.statistics} == set(images)
    assert sorted(image.name for fold in folds for image in fold.held_out) == sorted(image.name for image in images)
    for fold in folds:
        assert abs(len(fold.held_out) - n / n_folds) < 1
        assert {*fold.fit, *fold.statistics, *fold.held_out} == set(images)
        assert len(fold.fit) + len(fold.statistics) + len(fold.held_out) == n
        assert len(fold.statistics) >= 2


def groups_of(images: Sequence[ImageFile]) -> set[str]:
    return {image.name.split("_")[0] for image in images}


@pytest.mark.parametrize(("per_part", "n_folds"), [(6, 5), (10, 6), (4, 3)])
def test_a_fold_never_cuts_a_group(per_part: int, n_folds: int) -> None:
    images = parts(60, per_part=per_part)
    _, folds = split_into_folds(images, n_folds, SplitSettings(group_by=r"part(\d+)_"))
    assert len(folds) == n_folds
    for fold in folds:
        of_role = [groups_of(role) for role in (fold.fit, fold.statistics, fold.held_out)]
        assert sum(map(len, of_role)) == len(set.union(*of_role)) == 60 / per_part


def test_there_are_no_more_folds_than_groups_and_an_empty_one_is_left_out() -> None:
    settings = SplitSettings(group_by=r"part(\d+)_")
    assert len(split_into_folds(parts(40, per_part=10), 5, settings)[1]) == 4
    uneven = [replace(image, name=f"part{min(i, 12) % 13}_{i}.png") for i, image in enumerate(parts(24))]
    folds = split_into_folds(uneven, 12, settings)[1]
    assert 2 <= len(folds) < 12
    assert sum(len(fold.held_out) for fold in folds) == 24


def test_the_folds_depend_on_neither_order_nor_names_and_an_image_more_moves_few() -> None:
    def held_out(folds: tuple[Fold, ...]) -> list[list[str]]:
        return [[image.sha256 for image in fold.held_out] for fold in folds]

    images = parts(60)
    renamed = [replace(image, name=f"other_{59 - i}.png") for i, image in enumerate(images)]
    expected = held_out(split_into_folds(images, 5)[1])
    assert held_out(split_into_folds(images[::-1], 5)[1]) == held_out(split_into_folds(renamed, 5)[1]) == expected
    assert held_out(split_into_folds(images, 5, SplitSettings(seed=1))[1]) != expected
    for before, after in zip(expected, held_out(split_into_folds(parts(61), 5)[1]), strict=True):
        assert len(set(before) - set(after)) <= 2


def test_folds_that_would_leave_too_little_to_train_on_are_refused() -> None:
    with pytest.raises(InputError, match="the number of folds is 1; expected 2 or more"):
        split_into_folds(parts(20), 1)
    with pytest.raises(InputError, match="there are 7 images"):
        split_into_folds(parts(7), 5)
    with pytest.raises(
        InputError, match=r"left to train a fold's network on; expected at least 30%: choose more folds"
    ):
        split_into_folds(parts(8), 2)
    one_large = [replace(image, name=f"part{max(i - 37, 0)}_{i}.png") for i, image in enumerate(parts(40))]
    with pytest.raises(InputError, match=r"of 40 good parts in 3 groups \d+ would be left to train.* on"):
        split_into_folds(one_large, 3, SplitSettings(group_by=r"part(\d+)_"))


def labelled(**counts: int) -> list[ImageFile]:
    images = []
    for kind, n in counts.items():
        for image in parts(n):
            name = f"{kind}_{image.name}"
            defect = None if kind == "good" else kind
            images.append(replace(image, name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), defect=defect))
    return images


class TestHalvesOfLabelledImages:
    @pytest.mark.parametrize("counts", [{"good": 10, "dent": 6, "rust": 7}, {"good": 2, "dent": 2, "rust": 1}])
    def test_they_are_disjoint_together_everything_and_hold_half_of_each_class(self, counts: dict[str, int]) -> None:
        images = labelled(**counts)
        chosen, tested = split_labelled(images)
        assert not set(chosen) & set(tested)
        assert set(chosen) | set(tested) == set(images)
        for kind, n in counts.items():
            defect = None if kind == "good" else kind
            assert sum(image.defect == defect for image in chosen) == n // 2
            assert sum(image.defect == defect for image in tested) == n - n // 2

    def test_they_depend_on_the_images_and_the_seed_and_not_on_the_order(self) -> None:
        images = labelled(good=10, dent=6)
        chosen, _ = split_labelled(images)
        assert set(split_labelled(images[::-1])[0]) == set(chosen)
        assert set(split_labelled(images, seed=1)[0]) != set(chosen)

    def test_pictures_of_one_part_stay_in_one_half(self) -> None:
        images = labelled(good=12, dent=12)
        for seed in range(5):
            chosen, tested = split_labelled(images, seed, lambda image: image.name.split("part")[1][0])
            for group in "0123456789":
                halves = [
                    {image.defect for image in half if image.name.split("part")[1][0] == group}
                    for half in (chosen, tested)
                ]
                assert not halves[0] & halves[1]

    @pytest.mark.parametrize("counts", [{"good": 1, "dent": 5}, {"good": 5, "dent": 1}, {"good": 5}, {"dent": 5}])
    def test_a_half_without_both_kinds_is_refused(self, counts: dict[str, int]) -> None:
        n_good, n_bad = counts.get("good", 0), counts.get("dent", 0)
        with pytest.raises(InputError, match=f"there are {n_good} good and {n_bad} defective labelled images"):
            split_labelled(labelled(**counts))
