from __future__ import annotations

from pathlib import PurePath

import pytest

from vae_edge.picture_files.name_meanings import masked_stem, meaning_of, named_not_good, with_siblings

GOOD = """good OK ok normal Normal PASS passed OK_parts good-01 GoodParts okparts i.O. iO IO gut no_defect
nodefects NoDefect defect_free defectfree non-defective non_anomalous anomaly_free free_of_defects
without_any_defects zero_defects not-abnormal fehlerfrei kein-fehler ohne_fehler OKs goods 001_OK OK!
good(2) train_good testok OK_A faultless good-images Normal.parts 良品图片 无缺陷 正常品 양품 정상 bueno
Conformes mangelfrei dobré годные sağlam SAĞLAM"""
BAD = """ng NG bad Bad_parts NOK nok ko KO defect Defects defective anomaly Anomalies anomalous abnormal Abnormal
reject rejected FAIL failed fails not_ok NotOK notok not_good no_good nogood not_normal Not_Passed
n.i.O. N.I.O NIO niO n_ok n.OK NG_scratch logical_anomalies def_front défauts non_OK nicht_io NG12 001NG
NG(front) N.G. test_bad not_defect_free Ausschuss 不良 外观不良 不良图片 非良品 不正常 異常品 불량 malo
no_conformes non_conforme mangelhaft vadné брак HATALI hatal\u0131"""
MASKS = """mask Masks MASK gt GT ground_truth groundtruth GroundTruth ground-truth label Labels bad_mask MaskNG
defects_masks good_masks"""
UNCERTAIN = """fail-safe-ring screw_bad_light good_but_dirty nearly_good OK_lens pass-through not_yet_ok ok_ng OK-NG
okng pass_fail good_bad_mixed GT_car no_mask didn't_pass No.3_good"""
NOTHING = """passenger goodyear passport book badge okra gooding masked normalized kos01 union bypass failsafe Data
images 2024-01-05 001 scratch bent_wire Class1 unlabelled ngk ratio"""


@pytest.mark.parametrize(
    ("names", "quality"), [(GOOD, "good"), (BAD, "bad"), (MASKS, "mask")], ids=["good", "bad", "mask"]
)
def test_a_name_of_known_words_means_what_they_say(names: str, quality: str) -> None:
    meanings = {name: meaning_of(name) for name in names.split()}
    assert {name for name, each in meanings.items() if each.quality != quality or not each.certain} == set()


def test_a_name_with_words_left_over_is_uncertain() -> None:
    assert {name for name in UNCERTAIN.split() if meaning_of(name).certain} == set()
    assert {name for name in UNCERTAIN.split() if meaning_of(name).quality is None} == set()


def test_a_name_that_only_contains_the_letters_says_nothing() -> None:
    assert {name for name in NOTHING.split() if meaning_of(name).quality is not None} == set()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"), ("Training", "train"), ("test", "test"), ("test_public", "test"), ("val", "validation"),
        ("validation", "validation"), ("TestSet", "test"), ("contest", None), ("testament", None), ("trainer", None),
    ],
)  # fmt: skip
def test_a_name_says_train_test_or_validation(name: str, part: str | None) -> None:
    assert meaning_of(name).part == part


def test_opposite_names_with_the_same_rest_make_each_other_certain() -> None:
    meanings = with_siblings(["OK_lens", "bad_lens", "bad_ring", "not_yet_ok", "bad_yet"])
    assert {name for name, meaning in meanings.items() if meaning.certain} == {"OK_lens", "bad_lens"}


def test_names_for_what_was_sorted_out_say_that_somebody_sorted() -> None:
    alone = "scratch crack_01 no_hole unsorted Non-cracked 划伤 front_dents"
    assert {name for name in alone.split() if not meaning_of(name).is_class} == set()
    not_alone = "positive negative 0 1 Class_1 bent_wire hole_plate bad_crack images"
    assert {name for name in not_alone.split() if meaning_of(name).is_class} == set()
    beside = with_siblings(
        ["positive", "negative", "0", "1", "Class 1", "Class2", "lens_pos", "lens_neg", "true", "no"]
    )
    assert {name for name, meaning in beside.items() if not meaning.is_class} == {"true", "no"}
    opposites = ["complete", "incomplete", "part_usable", "part_unusable", "clean", "dirty", "real", "fake"]
    assert {name for name, meaning in with_siblings(opposites).items() if not meaning.is_class} == {"clean"}
    others = ["coated", "uncle", "put", "input", "cover", "discovery", "line", "inline_cam"]
    assert not any(meaning.is_class for meaning in with_siblings(others).values())
    assert not any(meaning.is_class for meaning in with_siblings(["0", "1", "2", "pos_a", "neg_b", "cam_0"]).values())


@pytest.mark.parametrize(
    ("stem", "base"),
    [
        ("000_mask", "000"), ("000_MASK", "000"), ("0-GT", "0"), ("Part0_label", "Part0"), ("a.label2", "a"),
        ("000_mask_1", "000"), ("img1Mask", "img1"), ("a_ground_truth", "a"), ("mask", None), ("label_001", None),
        ("unmask", None), ("weight", None), ("0001", None),
    ],
)  # fmt: skip
def test_a_mask_is_told_by_the_end_of_its_name(stem: str, base: str | None) -> None:
    assert masked_stem(stem) == base


@pytest.mark.parametrize(
    ("names", "not_good"),
    [
        ("a.png b.png", ""),
        ("good/a.png ok/b.png", ""),
        ("monday/a.png tuesday/b.png", ""),
        ("train/good/a.png validation/good/b.png", ""),
        ("good/a.png NG/b.png", "NG/b.png"),
        ("good/a.png broken_large/b.png", "broken_large/b.png"),
        ("x/scratch/a.png x/b.png", "x/scratch/a.png"),
        ("train/good/a.png ground_truth/x/a_mask.png test/x/a.png", "ground_truth/x/a_mask.png"),
        ("OK_1.png NG_1.png part2_scratch.png", "NG_1.png part2_scratch.png"),
        ("0.png 0_mask.png 1.png", "0_mask.png"),
        ("label_1.png label_2.png fail-safe-ring.png bad.png", ""),
        ("positive/a.png negative/a.png", "positive/a.png negative/a.png"),
    ],
)
def test_what_is_not_named_like_a_good_part_is_found_below_a_folder(names: str, not_good: str) -> None:
    assert named_not_good([PurePath(name) for name in names.split()]) == [PurePath(name) for name in not_good.split()]
