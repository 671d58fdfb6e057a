"""Which images of a folder are trained on, tested on, and what their masks are; whatever the folders are called."""

from __future__ import annotations

import itertools
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from vae_edge.errors import InputError
from vae_edge.image import Preparation, read_image
from vae_edge.train.data.inspection_set import InspectionSet, load_masks, open_inspection_set
from vae_edge.train.data.layout import describe_uses
from vae_edge.train.data.masks import read_mask

_IMAGES = itertools.count()


def make(root: Path, tree: str) -> Path:
    """Write images, each of its own pixels: paths with braces for several, `=m` for a mask, `=0` for an empty one."""
    for word in tree.split():
        pattern, _, kind = word.partition("=")
        for name in expand(pattern):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((8, 8), np.uint8)
            if kind == "m":
                pixels[2:4, 2:4] = 255
            elif kind != "0":
                pixels = np.random.default_rng(next(_IMAGES)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            done, data = cv2.imencode(path.suffix, pixels)
            assert done
            path.write_bytes(data.tobytes())
    return root


def expand(pattern: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    return [
        name
        for each in found[1].split(",")
        for name in expand(pattern[: found.start()] + each + pattern[found.end() :])
    ]


def names(tree: str) -> list[str]:
    return sorted(name for word in tree.split() for name in expand(word))


def what_is_tested(images: InspectionSet) -> dict[str, str | None]:
    return {image.name: image.defect for image in images.test}


def what_is_masked(images: InspectionSet) -> dict[str, list[str]]:
    return {
        image.name: [mask.relative_to(images.root).as_posix() for mask in image.masks]
        for image in images.test
        if image.masks
    }


# layout, tree, to train on, to test on as good, to test on as defective by class, masks
RECOGNISED: dict[str, tuple[str, str, str, str, dict[str, str], dict[str, list[str]]]] = {
    "MVTec AD": (
        "mvtec",
        "train/good/{0,1}.png test/good/2.png test/hole/{0,1}.png ground_truth/hole/{0_mask,1}.png=m license.bmp",
        "train/good/{0,1}.png",
        "test/good/2.png",
        {"hole": "test/hole/{0,1}.png"},
        {"test/hole/0.png": ["ground_truth/hole/0_mask.png"], "test/hole/1.png": ["ground_truth/hole/1.png"]},
    ),
    "MVTec AD with ok": (
        "mvtec", "train/good/0.png test/{ok,scratch}/0.png", "train/good/0.png", "test/ok/0.png",
        {"scratch": "test/scratch/0.png"}, {},
    ),
    "MVTec LOCO": (
        "mvtec",
        "train/good/0.png validation/good/1.png test/good/2.png test/{logical_anomalies,structural_anomalies}/000.png "
        "ground_truth/logical_anomalies/000/{000,001}.png=m ground_truth/structural_anomalies/000/000.png=m",
        "train/good/0.png validation/good/1.png",
        "test/good/2.png",
        {name: f"test/{name}/000.png" for name in ("logical_anomalies", "structural_anomalies")},
        {
            "test/logical_anomalies/000.png": [f"ground_truth/logical_anomalies/000/00{i}.png" for i in (0, 1)],
            "test/structural_anomalies/000.png": ["ground_truth/structural_anomalies/000/000.png"],
        },
    ),
    "MVTec AD 2": (
        "mvtec",
        "train/good/0.png validation/good/1.png test_public/{good,bad}/0.png test_public/ground_truth/bad/0_mask.png=m "
        "test_private/{0,1}.png test_private_mixed/0.png",
        "train/good/0.png validation/good/1.png",
        "test_public/good/0.png",
        {"bad": "test_public/bad/0.png"},
        {"test_public/bad/0.png": ["test_public/ground_truth/bad/0_mask.png"]},
    ),
    "BTAD": (
        "mvtec",
        "train/ok/0.bmp test/{ok,ko}/1.bmp ground_truth/ko/1.png=m",
        "train/ok/0.bmp",
        "test/ok/1.bmp",
        {"ko": "test/ko/1.bmp"},
        {"test/ko/1.bmp": ["ground_truth/ko/1.png"]},
    ),
    "MPDD": (
        "mvtec",
        "train/good/0.png test/{good,defective_painting,parts_mismatch}/0.png "
        "ground_truth/defective_painting/0_mask.png=m",
        "train/good/0.png",
        "test/good/0.png",
        {name: f"test/{name}/0.png" for name in ("defective_painting", "parts_mismatch")},
        {"test/defective_painting/0.png": ["ground_truth/defective_painting/0_mask.png"]},
    ),
    "VisA": (
        "named",
        "Data/Images/{Normal,Anomaly}/{000,001}.JPG Data/Masks/Anomaly/{000,001}.png=m",
        "Data/Images/Normal/{000,001}.JPG",
        "",
        {"Anomaly": "Data/Images/Anomaly/{000,001}.JPG"},
        {f"Data/Images/Anomaly/{i}.JPG": [f"Data/Masks/Anomaly/{i}.png"] for i in ("000", "001")},
    ),
    "VisA, one class": (
        "mvtec",
        "train/good/0.JPG test/{good,bad}/0.JPG ground_truth/bad/0.png=m",
        "train/good/0.JPG",
        "test/good/0.JPG",
        {"bad": "test/bad/0.JPG"},
        {"test/bad/0.JPG": ["ground_truth/bad/0.png"]},
    ),
    "VisA, two classes": (
        "mvtec",
        "{train,test}/{good,bad}/{0,1}.JPG ground_truth/bad/0.png=m ground_truth/good/0.png=0",
        "train/good/{0,1}.JPG",
        "test/good/{0,1}.JPG",
        {"bad": "test/bad/{0,1}.JPG"},
        {"test/bad/0.JPG": ["ground_truth/bad/0.png"]},
    ),
    "OK and NG": ("named", "{OK,NG}/{0,1}.png", "OK/{0,1}.png", "", {"NG": "NG/{0,1}.png"}, {}),
    "OK and NG with masks": (
        "named",
        "ok_parts/{0,1}.png NG/scratch/0.png NG/dent/1.png masks/NG/scratch/0.png=m masks/1-mask.bmp=m",
        "ok_parts/{0,1}.png",
        "",
        {"scratch": "NG/scratch/0.png", "dent": "NG/dent/1.png"},
        {"NG/scratch/0.png": ["masks/NG/scratch/0.png"], "NG/dent/1.png": ["masks/1-mask.bmp"]},
    ),
    "OK and NG, masks within": (
        "named", "OK/0.png NG/0.png NG/masks/0.png=m", "OK/0.png", "", {"NG": "NG/0.png"},
        {"NG/0.png": ["NG/masks/0.png"]},
    ),
    "OK and NG in train and test": (
        "mvtec", "Train/OK/{0,1}.png Train/NG/9.png Test/OK/2.png Test/NG/{3,4}.png", "Train/OK/{0,1}.png",
        "Test/OK/2.png", {"NG": "Test/NG/{3,4}.png"}, {},
    ),
    "train and test in OK and NG": (
        "mvtec", "OK/train/0.png OK/test/1.png NG/test/2.png", "OK/train/0.png", "OK/test/1.png",
        {"NG": "NG/test/2.png"}, {},
    ),
    "OK and NG for each view": (
        "named", "{OK_lens,NG_lens,OK_rim,NG_rim}/0.png", "{OK_lens,OK_rim}/0.png", "",
        {"NG_lens": "NG_lens/0.png", "NG_rim": "NG_rim/0.png"}, {},
    ),
    "NG for each kind of defect": (
        "named", "OK/0.png NG_scratch/1.png NG-dent/2.png", "OK/0.png", "",
        {"NG_scratch": "NG_scratch/1.png", "NG-dent": "NG-dent/2.png"}, {},
    ),
    "castings": (
        "mvtec", "{train,test}/{ok_front,def_front}/0.png", "train/ok_front/0.png", "test/ok_front/0.png",
        {"def_front": "test/def_front/0.png"}, {},
    ),
    "MVTec 3D-AD": (
        "mvtec", "train/good/rgb/0.png train/good/gt/0.png=0 validation/good/rgb/1.png validation/good/gt/1.png=0 "
        "test/{good,hole}/rgb/2.png test/hole/gt/2.png=m test/good/gt/2.png=0",
        "{train/good/rgb/0,validation/good/rgb/1}.png", "test/good/rgb/2.png", {"hole": "test/hole/rgb/2.png"},
        {"test/hole/rgb/2.png": ["test/hole/gt/2.png"]},
    ),
    "German": (
        "named", "i.O./0.png n.i.O./kratzer/0.png", "i.O./0.png", "", {"kratzer": "n.i.O./kratzer/0.png"}, {},
    ),
    "denied words": (
        "named", "no_defect/0.png with-defects/0.png defect-free/1.png Abnormal/2.png not_ok/3.png",
        "{no_defect/0,defect-free/1}.png", "",
        {"with-defects": "with-defects/0.png", "Abnormal": "Abnormal/2.png", "not_ok": "not_ok/3.png"}, {},
    ),
    "Real-IAD": (
        "named",
        "OK/S0001/a_0001_OK_C1.jpg NG/BX/S0002/a_0002_NG_BX_C1.jpg NG/BX/S0002/a_0002_NG_BX_C1.png=m",
        "OK/S0001/a_0001_OK_C1.jpg",
        "",
        {"BX": "NG/BX/S0002/a_0002_NG_BX_C1.jpg"},
        {"NG/BX/S0002/a_0002_NG_BX_C1.jpg": ["NG/BX/S0002/a_0002_NG_BX_C1.png"]},
    ),
    "KolektorSDD": (
        "labels",
        "kos{01,02}/Part{0,1}.jpg kos01/Part0_label.bmp=m kos01/Part1_label.bmp=0 kos02/Part{0,1}_label.bmp=0",
        "kos01/Part1.jpg kos02/Part{0,1}.jpg",
        "",
        {"defect": "kos01/Part0.jpg"},
        {"kos01/Part0.jpg": ["kos01/Part0_label.bmp"]},
    ),
    "KolektorSDD2": (
        "labels",
        "{train,test}/{10000,10001}.png {train,test}/10000_GT.png=0 {train,test}/10001_GT.png=m",
        "train/10000.png",
        "test/10000.png",
        {"defect": "test/10001.png"},
        {"test/10001.png": ["test/10001_GT.png"]},
    ),
    "DAGM": (
        "labels",
        "{Train,Test}/{0001,0002}.PNG {Train,Test}/Label/0002_label.PNG=m",
        "Train/0001.PNG",
        "Test/0001.PNG",
        {"defect": "Test/0002.PNG"},
        {"Test/0002.PNG": ["Test/Label/0002_label.PNG"]},
    ),
    "images and masks": (
        "labels", "images/{0,1,2}.png masks/{0,1}.png=0 masks/2.png=m", "images/{0,1}.png", "",
        {"defect": "images/2.png"}, {"images/2.png": ["masks/2.png"]},
    ),
    "masks of every name": (
        "mvtec",
        "train/good/0.png test/hole/{a,b,c,d,e,f}.png "
        "MASKS/hole/{a_MASK,b-mask,c_gt,d.Label,e,f_mask_1,f_mask_2}.png=m",
        "train/good/0.png",
        "",
        {"hole": "test/hole/{a,b,c,d,e,f}.png"},
        {
            f"test/hole/{stem}.png": [f"MASKS/hole/{mask}.png" for mask in masks.split()]
            for stem, masks in {
                "a": "a_MASK", "b": "b-mask", "c": "c_gt", "d": "d.Label", "e": "e", "f": "f_mask_1 f_mask_2"
            }.items()
        },
    ),
    "good parts only": ("folder", "good/{0,1}.png good/monday/2.png", "good/{0,1,monday/2}.png", "", {}, {}),
    "good parts of several views": ("folder", "OK_lens/0.png OK_rim/1.png", "{OK_lens/0,OK_rim/1}.png", "", {}, {}),
    "one folder": ("folder", "b.png monday/a.png passenger/0.png", "b.png monday/a.png passenger/0.png", "", {}, {}),
    "one folder with leftovers": (
        "folder",
        "0.png results/overlays/1.jpg @eaDir/2.jpg .trash/3.png $RECYCLE.BIN/4.png __MACOSX/5.png ._6.png",
        "0.png", "", {}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RECOGNISED.values(), ids=RECOGNISED)
def test_a_layout_is_recognised(
    tmp_path: Path, case: tuple[str, str, str, str, dict[str, str], dict[str, list[str]]]
) -> None:
    layout, tree, train, good, bad, masks = case
    images = open_inspection_set(make(tmp_path / "set", tree))
    assert [image.name for image in images.train] == names(train)
    expected = dict.fromkeys(names(good)) | {name: defect for defect, each in bad.items() for name in names(each)}
    assert what_is_tested(images) == expected
    assert what_is_masked(images) == masks
    assert images.layout == layout


REFUSED = {
    "an unknown folder beside OK and NG": (
        "OK/0.png NG/1.png other/2.png",
        r"whether these contain good parts: other \(1 image\).*--normal .*OK --abnormal .*NG",
    ),
    "images beside NG": ("0.png NG/1.png", r"good parts: \. \(1 image\).*Move the images .* called good"),
    "images beside masks of none": ("0.png masks/7.png", r"good parts: \. .*masks: 1 image, masks"),
    "only defects": ("NG/0.png", r"no train/good/ .*NG: 1 image, defective parts"),
    "only masks": ("masks/0.png", r"no train/good/"),
    "a word beside others": ("fail-safe-ring/0.png nut/1.png", r"good parts: fail-safe-ring \(1 image\).*--normal"),
    "good with a reservation": ("good_but_dirty/0.png NG/1.png", r"good parts: good_but_dirty"),
    "a word that may be none, beside others": ("pass-through/0.png nut/1.png", r"good parts: nut .*, pass-through"),
    "good parts of one view beside others": ("OK_lens/0.png scratch/1.png", r"good parts: OK_lens .*, scratch"),
    "good denied from afar": ("not_yet_ok/0.png", r"good parts: not_yet_ok"),
    "NG below OK": ("OK/0.png OK/NG/1.png", r"good parts: OK/NG"),
    "OK below NG": ("OK/0.png NG/OK/1.png", r"good parts: NG/OK"),
    "both in one name": ("ok_ng/0.png OK/1.png", r"good parts: ok_ng"),
    "a doubtful good name in test": ("train/good/0.png test/good_light/1.png", r"good parts: test/good_light"),
    "a defect below train/good": ("train/good/0.png train/good/NG/1.png", r"good parts: train/good/NG"),
    "images directly in train": ("train/0.png test/{good,bad}/1.png", r"good parts: train .*--normal \S*train"),
    "products with OK and NG": ("{nut,ring}/{OK,NG}/0.png", r"one folder per product \(nut, ring\)"),
    "products of VisA": ("{candle,pcb1}/Data/Images/{Normal,Anomaly}/0.JPG", r"per product \(candle, pcb1\)"),
    "one product with a word": ("screw_bad_light/{OK,NG}/0.png", r"per product \(screw_bad_light\); .* \S*light$"),
    "files named NG": ("{OK,NG}_{1,2}.png", r"2 of the 4 images .* named like defective parts .*NG_1\.png.*--normal"),
    "files named like masks": ("{a,b}_mask.png", r"2 of the 2 images .* or masks \(a_mask\.png"),
    "all label pictures marked": ("p{1,2}/P.jpg p{1,2}/P_label.bmp=m", r"no label picture in .* is empty.*--normal"),
    "labels of defects only": ("images/{0,1}.png masks/0.png=m", r"they have no label picture, but others do"),
    "kinds of defects": ("{crack,hole}/0.png", r"good parts: crack \(1 image\), hole .*all of them do.*--normal"),
    "one kind of defects": ("scratches/0.png", r"good parts: scratches"),
    "kinds of defects beside others": ("PCB/0.png images/{Missing_hole,Mouse_bite}/1.png", r"Missing_hole"),
    "a kind of defect below good": ("good/0.png good/scratch/1.png", r"good parts: good/scratch"),
    "what nobody has judged below good": ("train/good/0.png train/good/review/1.png", r"parts: train/good/review"),
    "a kind of defect beside images": ("0.png dents/1.png", r"good parts: \. \(1 image\), dents"),
    "a kind of defect denied": ("{Cracked,Non-cracked}/0.png", r"good parts: Cracked .*, Non-cracked"),
    "positive and negative": ("{positive,negative}/0.png", r"good parts: negative .*, positive"),
    "yes and no": ("data/{yes,no}/0.png", r"good parts: data/no .*, data/yes"),
    "zero and one": ("{0,1}/0.png", r"good parts: 0 .*, 1"),
    "classes by number": ("Class_{1,2}/0.png", r"good parts: Class_1 .*, Class_2"),
    "a kind that is taken back": ("ok/0.png false_{accept,reject}/1.png", r"false_accept .*, false_reject"),
    "files named after kinds of defects": ("{crazing,inclusion}_{1,2}.png", r"4 of the 4 images .*crazing_1"),
    "one file named after a kind": ("IMG_1.png IMG_2_scratch.png", r"1 of the 2 images .*IMG_2_scratch"),
    "different words in files": ("fail_x_1.png reject_y_2.png", r"2 of the 2 images .*named like defective"),
    "some files named good": ("OK_{1,2}.png xyz_3.png", r"2 of the images .* good parts .*, and 1 are not \(xyz_3"),
    "masks that no name tells": ("images/{0,1}.png bw/{0,1}.png=m", r"bw/0\.png, bw/1\.png .* look like masks"),
    "masks beside images by an unknown word": ("{0,1,2,3}.png 3_bw.png=m", r"3_bw\.png .* looks like masks"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_ambiguous_is_refused_with_what_resolves_it(tmp_path: Path, case: tuple[str, str]) -> None:
    tree, says = case
    with pytest.raises(InputError, match=says):
        open_inspection_set(make(tmp_path / "set", tree))


@pytest.mark.parametrize("tree", [case[0] for case in REFUSED.values()], ids=REFUSED)
def test_a_command_without_the_options_for_folders_advises_to_move_files(tmp_path: Path, tree: str) -> None:
    with pytest.raises(InputError) as raised:
        open_inspection_set(make(tmp_path / "set", tree), can_name_folders=False)
    assert "--" not in str(raised.value)
    says = str(raised.value)
    assert re.search(r"folder called good|add good parts|expected one product|no train/good", says), says


ANNOTATIONS = {
    "labels.csv": "file,label",
    "pcb_labels.csv": "file,label",
    "defects.csv": "file",
    "img/0.txt": "0 0.5 0.5 0.125 1e-1",
    "img/0.json": '{"version": "5.0", "shapes": []}',
    "img/0.xml": "<annotation><object/></annotation>",
    "img/_annotations.coco.json": "{}",
    "labels/0.txt": "anything",
    "Annotations/a/0.xml": "<a/>",
}
NO_ANNOTATIONS = {
    "notes.txt": "on good labels",
    "log.csv": "time,file",
    "errors.txt": "none",
    "fault_log.csv": "time",
    "img/1.txt": "0.5 0.5",
    "img/0.txt": "exposure 12 ms",
    "img/0.json": '{"camera": 3, "time": "12:00"}',
    "img/0.xml": "<exif/>",
    "labels/0.txt": "",
    "img/Thumbs.db": "0 0.5 0.5 0.125 0.1",
}


@pytest.mark.parametrize("file", ANNOTATIONS)
def test_images_beside_annotations_that_are_not_read_are_refused(tmp_path: Path, file: str) -> None:
    root = make(tmp_path / "set", "img/{0,1}.png")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(ANNOTATIONS[file])
    with pytest.raises(InputError, match=rf"{re.escape(file)} looks like annotations.*--normal"):
        open_inspection_set(root)
    assert len(open_inspection_set(normal=root / "img").train) == 2
    make(root, "good/{2,3}.png")
    (root / "img").rename(root / "NG")
    if not file.startswith("img"):
        assert len(open_inspection_set(root).train) == 2


@pytest.mark.parametrize("file", NO_ANNOTATIONS)
def test_what_a_program_leaves_beside_its_images_is_no_annotation(tmp_path: Path, file: str) -> None:
    root = make(tmp_path / "set", "img/{0,1}.png")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(NO_ANNOTATIONS[file])
    assert len(open_inspection_set(root).train) == 2


PRODUCTS = """scratchpad crackers hole_plate bent_wire cam_0 cam_1 pos1 pos2 positive_film negative_mould 2 3
first_grade stainless bonbon chips rusty_nail_decor 不锈钢 灯笼 Class_7"""


def test_products_named_after_such_words_are_trained_on(tmp_path: Path) -> None:
    root = make(tmp_path / "set", " ".join(f"{name}/{name}_{{0,1}}.png" for name in PRODUCTS.split()))
    assert len(open_inspection_set(root).train) == 2 * len(PRODUCTS.split())
    silhouettes = make(tmp_path / "silhouettes", "{0,1}.png=m")
    assert len(open_inspection_set(silhouettes).train) == 2


@pytest.mark.parametrize("name", ["NG", "defects", "n.i.O.", "masks", "OK_NG"])
def test_a_folder_called_like_defects_or_masks_is_trained_on_only_when_it_is_named_normal(
    tmp_path: Path, name: str
) -> None:
    folder = make(tmp_path / name, "0.png")
    with pytest.raises(InputError, match=r"is called .*--normal"):
        open_inspection_set(folder)
    (tmp_path / "today").symlink_to(folder)
    with pytest.raises(InputError, match=r"is called .*--normal"):
        open_inspection_set(tmp_path / "today")
    assert len(open_inspection_set(normal=folder).train) == 1


def test_the_sentence_that_resolves_an_ambiguity_does(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "fail-safe-ring/0.png train/1.png test/{good,bad}/2.png x/a_mask.png")
    for folder in ("fail-safe-ring", "train", "x"):
        assert len(open_inspection_set(normal=root / folder).train) == 1
    images = open_inspection_set(
        normal=root / "train", normal_test=root / "test" / "good", abnormal=root / "test" / "bad"
    )
    assert what_is_tested(images) == {"normal_test/2.png": None, "abnormal/2.png": "bad"}


def test_folders_by_name_are_searched_for_what_is_not_theirs(tmp_path: Path) -> None:
    root = make(
        tmp_path / "set", "a/NG/0.png b/0.png b/0_mask.png=m c/0.png c/results/1.png c/masks/2.png d/0.png e/0.png"
    )
    with pytest.raises(InputError, match=r"normal .* holds a folder NG"):
        open_inspection_set(normal=root / "a")
    with pytest.raises(InputError, match=r"among the good parts .*0_mask\.png beside it marks a defect"):
        open_inspection_set(normal=root / "b")
    with pytest.raises(InputError, match=r"holds a folder masks"):
        open_inspection_set(normal=root / "c")
    images = open_inspection_set(normal=root / "d", abnormal=root / "b")
    assert [mask.name for mask in images.test[0].masks] == ["0_mask.png"]
    (root / "NG").mkdir()
    (root / "e").rename(root / "OK")
    (root / "d" / "0.png").rename(root / "NG" / "0.png")
    with pytest.raises(InputError, match="swap the two"):
        open_inspection_set(normal=root / "NG", abnormal=root / "OK")


# What is said


def test_each_folder_is_named_with_its_use_and_its_number_of_images(tmp_path: Path) -> None:
    root = make(
        tmp_path / "set",
        "train/good/{0,1}.png validation/good/2.png test/{good,hole}/3.png test/4.png docs/5.png "
        "ground_truth/hole/3.png=m results/overlays/{6,7}.png train/scratch/8.png train/good/.9.png",
    )
    assert open_inspection_set(root).describe() == [
        "train/good: 2 images, good parts to train on",
        "validation/good: 1 image, good parts of validation, to train and calibrate on",
        "test/good: 1 image, good parts to test on",
        "test/hole: 1 image, defective parts to test on, class hole",
        "ground_truth/hole: 1 image, masks",
        "docs: 1 image, skipped: it is unknown whether they are good",
        "test: 1 image, skipped: it is unknown which of them are good; put them into test/good and test/DEFECT to "
        "test on them",
        "train/scratch: 1 image, skipped: it is unknown whether they are good",
        "results: 2 images, skipped: left-over or hidden",
        "train/good: 1 image, skipped: hidden files",
    ]


def test_many_folders_with_the_same_use_share_a_line(tmp_path: Path) -> None:
    images = open_inspection_set(make(tmp_path / "set", "day{1,2,3,4,5,6,7,8}/{0,1}.png"))
    assert images.describe() == ["day1 ... day8 (8 folders): 16 images, good parts to train on"]
    assert describe_uses(images.uses, most=0) == ["and 1 more folders"]


def test_a_mask_of_a_good_part_that_marks_something_keeps_the_image_out_of_train(tmp_path: Path) -> None:
    images = open_inspection_set(make(tmp_path / "set", "OK/{0,1,2}.png OK/0_mask.png=m OK/1_mask.png=0"))
    assert [image.name for image in images.train] == ["OK/1.png", "OK/2.png"]
    why = "good according to the folder name, but a mask marks something or cannot be decoded (0.png)"
    assert f"OK: 1 image, skipped: {why}" in images.describe()


def test_file_names_in_a_folder_called_good_are_only_remarked_on(tmp_path: Path) -> None:
    images = open_inspection_set(make(tmp_path / "set", "train/good/{bad01,2}.png"))
    assert len(images.train) == 2
    assert any("named like defective parts or masks (train/good/bad01.png)" in line for line in images.describe())


def test_a_word_in_the_name_of_every_file_is_the_product_s(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "screw_bad_light_{1,2}.png")
    assert len(open_inspection_set(root).train) == 2
    make(root, "screw_3.png")
    with pytest.raises(InputError, match="2 of the 3 images"):
        open_inspection_set(root)


def test_files_called_like_masks_are_images_where_all_of_a_folder_of_parts_are(tmp_path: Path) -> None:
    root = make(
        tmp_path / "set",
        "train/good/bottle_label_{1,2}.png test/torn/bottle_label_3.png ground_truth/torn/bottle_label_3_mask.png=m",
    )
    images = open_inspection_set(root)
    assert len(images.train) == 2
    assert what_is_masked(images) == {"test/torn/bottle_label_3.png": ["ground_truth/torn/bottle_label_3_mask.png"]}
    make(root, "train/good/0.png")
    assert [image.name for image in open_inspection_set(root).train] == ["train/good/0.png"]


# Links


def test_a_link_from_good_parts_to_defects_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "train/good/0.png test/hole/1.png")
    link = root / "train" / "good" / "more"
    link.symlink_to(root / "test" / "hole", target_is_directory=True)
    with pytest.raises(InputError, match=r"is a link to .*1\.png, which is not among good parts"):
        open_inspection_set(root)
    link.unlink()
    make(tmp_path, "NG/monday/5.png pool/6.png")
    link.symlink_to(tmp_path / "pool", target_is_directory=True)
    (root / "train" / "good" / "7.png").symlink_to(tmp_path / "pool" / "6.png")
    assert [image.name for image in open_inspection_set(root).train] == [
        f"train/good/{name}.png" for name in ("0", "7", "more/6")
    ]
    (root / "train" / "good" / "8.png").symlink_to(tmp_path / "NG" / "monday" / "5.png")
    with pytest.raises(InputError, match=r"8\.png would be trained on"):
        open_inspection_set(root)


def test_folders_that_are_links_into_a_pool_are_listed_where_they_are_named(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "pool/a/{0,1}.png pool/b/2.png")
    for name, target in (("train/good", "pool/a"), ("test/hole", "pool/b")):
        (root / name).parent.mkdir()
        (root / name).symlink_to(root / target, target_is_directory=True)
    images = open_inspection_set(root)
    assert [image.name for image in images.train] == ["train/good/0.png", "train/good/1.png"]
    assert what_is_tested(images) == {"test/hole/2.png": "hole"}


# Masks


def test_several_masks_of_an_image_are_united(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "train/good/0.png test/hole/000.png ground_truth/hole/000/0.png=m")
    other = np.zeros((8, 8), np.uint8)
    other[6, 6] = 255
    cv2.imwrite(str(root / "ground_truth" / "hole" / "000" / "1.png"), other)
    masks, has_mask = load_masks(open_inspection_set(root).test, Preparation(height=32, width=32))
    assert has_mask.all()
    assert masks[0].sum() == 16 * 5


def with_orientation(jpeg_or_png: bytes, orientation: int) -> bytes:
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    if jpeg_or_png[:2] == b"\xff\xd8":
        content = b"Exif\0\0" + tiff
        return b"\xff\xd8\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + jpeg_or_png[2:]
    chunk = b"eXIf" + tiff
    chunk = len(tiff).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return jpeg_or_png[:33] + chunk + jpeg_or_png[33:]


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_mask_is_turned_as_its_picture_is(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :8] = 255
    path = tmp_path / f"mask{suffix}"
    path.write_bytes(with_orientation(cv2.imencode(suffix, pixels)[1].tobytes(), orientation))
    mask = read_mask(path)
    np.testing.assert_array_equal(mask, read_image(path)[:, :, 0] >= 128)
    if suffix == ".jpg":
        assert mask.shape == ((16, 32) if orientation < 5 else (32, 16))


def masked(shape: tuple[int, ...], dtype: type, rest: int, marked: int) -> np.ndarray:
    values: np.ndarray = np.full(shape, rest, dtype)
    values[2:4, 2:4] = marked
    return values


def alpha(colour: np.ndarray, transparency: np.ndarray) -> np.ndarray:
    return np.dstack([*([colour] * 3), transparency])


BLACK, WHITE = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
SPOT = masked((8, 8), np.uint8, 0, 255)


@pytest.mark.parametrize(
    "pixels",
    [
        SPOT,
        masked((8, 8), np.uint8, 0, 1),
        masked((8, 8, 3), np.uint8, 0, 7),
        masked((8, 8), np.uint16, 0, 1),
        masked((8, 8), np.uint16, 0, 65535),
        alpha(WHITE, SPOT),
        alpha(BLACK, SPOT),
        alpha(SPOT, WHITE),
        alpha(SPOT, np.maximum(SPOT, 9)),
        alpha(SPOT, BLACK),
    ],
    ids=["255", "label 1", "colour", "16 bit, label 1", "16 bit", "white, alpha", "black, alpha", "opaque",
         "colour and alpha", "all transparent"],
)  # fmt: skip
def test_a_mask_of_any_kind_marks_its_spot(tmp_path: Path, pixels: np.ndarray) -> None:
    assert cv2.imwrite(str(tmp_path / "mask.png"), pixels)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), SPOT > 0)


# Whatever the nesting

CERTAIN = {
    "good": [
        "good",
        "OK",
        "Normal",
        "pass",
        "ok_parts",
        "good-01",
        "no_defect",
        "defect_free",
        "i.O.",
        "non-defective",
    ],
    "bad": [
        "NG",
        "bad",
        "Defects",
        "anomaly",
        "abnormal",
        "REJECT",
        "fail",
        "not_ok",
        "n.i.O.",
        "not good",
        "NG12",
        "nok",
    ],
    "mask": ["mask", "masks", "GT", "ground_truth", "Labels", "bad_masks"],
}
DOUBTFUL = ["fail-safe-ring", "screw_bad_light", "ok_ng", "logical_anomalies", "label_lens", "not_yet_ok", "OK_lens"]
NEUTRAL = ["Data", "images", "train", "test", "val", "lens", "monday", "S0001", "passenger", "goodyear", "kos01"]
LEFTOVERS = ["results", ".hidden", "@eaDir", "$RECYCLE.BIN", "__MACOSX"]
WORDS = [*itertools.chain(*CERTAIN.values()), *DOUBTFUL, *NEUTRAL, *LEFTOVERS]


@seed(13)
@settings(
    max_examples=int(os.environ.get("VAE_EDGE_FUZZ_LAYOUTS", "150")),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    tree=st.lists(
        st.tuples(
            st.lists(st.sampled_from(WORDS), max_size=4), st.sampled_from(["0.png", "1.png", "0_mask.png", "0.jpg"])
        ),
        min_size=1,
        max_size=7,
    ),
    base=st.sampled_from([None, "train/good/base.png", "OK/base.png"]),
)
def test_nothing_below_a_word_for_defects_or_masks_is_trained_on(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[list[str], str]], base: str | None
) -> None:
    root = tmp_path_factory.mktemp("tree") / "set"
    root.mkdir()
    write = _writer(root)
    for folders, file in tree:
        write("/".join([*folders, file]))
    if base is not None:  # Without it most trees say nothing plainly and are refused.
        write(base)
    try:
        images = open_inspection_set(root)
    except InputError:
        return
    never = {*CERTAIN["bad"], *CERTAIN["mask"], *LEFTOVERS, *DOUBTFUL} - {"OK_lens"}
    for image in images.train:
        assert not never & set(image.path.relative_to(root).parts), image.name
    for image in images.test:
        assert not {*CERTAIN["mask"], *LEFTOVERS} & set(image.path.relative_to(root).parts), image.name
    used = {image.path for image in (*images.train, *images.test)} | {m for image in images.test for m in image.masks}
    said = sum(use.n or 0 for use in images.uses)
    assert said >= len(used), "an image is used that no line names"
    assert base is None or base in [image.name for image in images.train]


def _writer(root: Path) -> Callable[[str], Path]:
    """Write small files quickly: random trees need no pixels of their own, but masks do need some."""
    encoded = {
        suffix: cv2.imencode(suffix, np.full((4, 4, 3), 90, np.uint8))[1].tobytes() for suffix in (".png", ".jpg")
    }
    mask = cv2.imencode(".png", SPOT)[1].tobytes()

    def write(name: str) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mask if "mask" in path.name else encoded[path.suffix])
        return path

    return write
