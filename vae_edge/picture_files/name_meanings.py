"""What the names of folders and files say about pictures: good parts, parts that are not good, masks, train or test.

A name is cut into words at separators, digits and changes of case; `notOK`, `no_defect` and `defect-free` are
understood completely. A name is certain when every word of it is known: a word of meaning, a number, or one that
changes nothing, such as "part" or "front", or where a word such as NG or defect cannot mean anything else. Where
another word is left over ("fail-safe-ring", "good_but_dirty") the name is uncertain, and what it means must follow
from something else. A name that only contains the letters (passenger, goodyear) says nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePath
from typing import Literal

Quality = Literal["good", "bad", "mask", "mixed"]
"""`bad` is what is not good; `mixed` is a name that says both, or good with a word that may deny it."""
Part = Literal["train", "validation", "test"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GOOD = _words(
    "good goods ok oks okay normal normals pass passes passed passing accept accepted acceptable conforming "
    "flawless faultless defectless healthy io gut gute gutteil gutteile fehlerfrei fehlerfreie einwandfrei mangelfrei "
    "conform inlier inliers intact undamaged "
    "bon bons bonne bonnes conforme conformes bueno buenos buena buenas buono buoni bom boa dobry dobre dobré sağlam "
    "goed годные годный годен норма 良品 合格 合格品 正常 正常品 양품 정상"
)
_BAD = _words(
    "ng ngs bad bads nok noks ko nio defect defects defective defectives defected anomaly anomalies anomalous "
    "abnormal abnormals abnormality abnormalities reject rejects rejected rejection rejections fail fails failed "
    "failing failure failures fault faults faulty scrap scrapped flaw flaws flawed damage damages damaged "
    "nonconforming nonconformity unacceptable error errors outlier outliers invalid schlecht schlechte "
    "schlechtteil schlechtteile fehler fehlerhaft fehlerhafte defekt defekte ausschuss def nonconformities "
    "nonconformance nonconformances defaut defauts mauvais rebut rebuts defecto defectos difetto difetti scarto "
    "scarti nonconform "
    "défaut défauts mangelhaft mangelhafte malo malos mala malas defectuoso defectuosos defectuosa defectuosas "
    "cattivo cattivi ruim ruins defeito defeitos wadliwe wadliwy vadne vadné hatali kusurlu afkeur afgekeurd "
    "брак дефект дефекты дефектные негодные 不良 不良品 不合格 不合格品 缺陷 异常 異常 异常品 異常品 欠陥 欠陥品 "
    "欠点 瑕疵 次品 废品 廢品 报废 불량 불량품 결함"
)
_STRONG = _words(
    "ng ngs nok noks nio defect defects def defective defectives anomaly anomalies anomalous abnormal abnormals reject "
    "rejects rejected ausschuss 不良 不良品 不合格 不合格品 缺陷 欠陥 불량 결함"
)
"""Words that no product is named after: whatever other words the name has (`NG_scratch`), it is not good."""
_MASK = _words(
    "truth truths mask masks maske masken gt gts groundtruth groundtruths label labels annotation annotations "
    "segmentation segmentations segmask segmasks"
)
_PART: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trainset", "训练", "训练集", "訓練"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "验证", "验证集"), "validation"),
    **dict.fromkeys(("test", "tests", "testing", "testset", "eval", "evaluation", "测试", "测试集"), "test"),
}
_SORTED = _words(
    "scratch scratches scratched scratching crack cracks cracked cracking uncracked crazing dent dents dented hole "
    "holes blowhole blowholes burr burrs stain stains stained rust rusty corrosion corroded contamination "
    "contaminations contaminated broken breakage chipped deformed deformation misaligned missing pitted pitting "
    "porosity pores blister blisters inclusion inclusions delamination kratzer dellen delle riss risse "
    "划伤 划痕 脏污 裂纹 破损 キズ 傷 汚れ "
    "dirty malignant tumor tumour diseased wrong rej trash garbage complaint complaints returns returned ood "
    "review suspect suspects suspicious unsorted unlabeled unlabelled unclassified unknown uncertain questionable "
    "doubtful borderline rework quarantine"
)
"""Kinds of defects, and words for parts that nobody has judged. Products are named after some, so alone they say only
that the images were sorted."""
_CLASS = _words("class classes cls klasse klassen category categories grade grades")
_OPPOSITES = (
    ("positive", "negative"),
    ("pos", "neg"),
    ("yes", "no"),
    ("true", "false"),
    ("tp", "fn"),
    ("fp", "tn"),
    ("real", "fake"),
)
"""Names beside each other that tell two kinds apart, and not which one is good."""
_DENYING = ("un", "in", "im", "non", "dis", "ir", "mis", "ab")
"""What makes a word its opposite: `complete` and `incomplete`."""
_NOT = _words("not no non nicht kein keine ohne without zero never nie didn didnt doesn doesnt isn isnt 非 无 無 未 不")
_DOUBTED = _words("false pseudo almost nearly")
"""Words that take back what follows; `false_reject` is not a reject, and its meaning is unknown."""
_FREE = _words("free frei less")
_FILLERS = _words(
    "part parts piece pieces item items unit units component components image images img imgs picture pictures "
    "pic pics photo photos frame frames sample samples example examples product products set sets data dataset "
    "datasets class classes category categories type types folder dir file files cam cams camera cameras line "
    "lines station front back top bottom left right side sides view views rgb gray grey color colour batch lot "
    "day week month shift monday tuesday wednesday thursday friday saturday sunday new old all only raw orig "
    "original originals cropped crop crops resized copy kopie teil teile bild bilder foto fotos any found "
    "detected visible present public private mixed scan scans shot shots capture captures jpg jpeg png bmp tif "
    "tiff webp jpegimages of from the with has mit 图 图片 图像 画像 写真 品 件 样本 数据 사진 이미지"
)
"""Words that change nothing about what a name means."""
_LINKS = _words("of from the any von an")
_LETTERS = {"n"}  # "n.OK", "n_io"
_TURNING = _NOT | _FREE | _LETTERS | _DOUBTED

_TAKEN_APART = (_GOOD | _BAD | _MASK | _NOT | _FREE | _FILLERS | frozenset(_PART)) - _words(
    "io ko def gt gts of from the ng ngs less an no set sets bon bons bom boa mala malas malo malos goed ruim ruins"
) | {"ng", "no"}
_IDEOGRAPHS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_IDEOGRAPHIC = re.compile(
    "|".join(
        sorted((w for w in _TAKEN_APART | _SORTED if _IDEOGRAPHS.fullmatch(w)), key=lambda word: (-len(word), word))
    )
)
"""Words that are written without spaces between them."""
"""Words that a longer one may consist of, such as `goodparts` and `notok`."""


@dataclass(frozen=True)
class Meaning:
    """What one name says."""

    quality: Quality | None = None
    part: Part | None = None
    certain: bool = True
    """Whether no word is left over that might change the quality."""
    rest: str = ""
    """The words that are neither quality, part nor filler, and the numbers: equal for `bad_lens` and `OK_lens`."""
    kind: str = ""
    """As `rest`, with the words of good and bad: equal for `NG_lens` and `NG_lens_mask`."""
    is_class: bool = False
    """Whether it is only a name for parts that were sorted out (`scratch`, `unsorted`), good or not."""

    @property
    def is_empty(self) -> bool:
        """Whether the name says nothing and tells nothing apart, as `images` and `data`."""
        return self.quality is None and self.part is None and not self.rest


@lru_cache(maxsize=65536)
def meaning_of(name: str) -> Meaning:
    """Return what the name of a folder, or that of a file without its ending, says.

    Examples:
        >>> meaning_of("Gut-Teile").quality, meaning_of("NOK").quality, meaning_of("not ok").quality
        ('good', 'bad', 'bad')
        >>> meaning_of("train_good").part, meaning_of("0001_mask").quality, meaning_of("lens").quality
        ('train', 'mask', None)
    """
    words = _merged(_tokens(name))
    qualities = {_quality(word) for word in words} - {None, "mask"}
    is_mask = any(_quality(word) == "mask" for word in words)
    parts = {_PART[word] for word in words if word in _PART}
    unknown = [
        word
        for word in words
        if _quality(word) is None and word not in _PART and word not in _FILLERS and not word.isdecimal()
    ]
    # Single letters number things (OK_A, OK_B); beside a word that turns the meaning around they are not known.
    disturbing = [word for word in unknown if len(word) > 1 or word in _LETTERS]
    quality: Quality | None = None
    is_plain = not any(word in _TURNING for word in words)
    if is_mask:
        quality = "mask"
    elif len(qualities) == 2 or (qualities == {"good"} and not is_plain):
        quality = "mixed"
    elif qualities:
        quality = "good" if "good" in qualities else "bad"
    rest = [*unknown, *(word for word in words if word.isdecimal())]
    return Meaning(
        quality,
        parts.pop() if len(parts) == 1 else None,
        certain=len(parts) < 2
        and quality != "mixed"
        and (not disturbing or (quality == "bad" and is_plain and any(word in _STRONG for word in words))),
        rest="-".join(rest),
        kind="-".join([*(word for word in words if _quality(word) in ("good", "bad")), *rest]),
        is_class=quality is None
        and not {*unknown} - _SORTED - _NOT - _FREE - _FILLERS
        and not _SORTED.isdisjoint(unknown),
    )


def with_siblings(names: Sequence[str]) -> dict[str, Meaning]:
    """Return what the names of folders beside each other say.

    `OK_lens` and `bad_lens` make each other certain: what is left over is the same, so it is not part of the judgement.
    `positive` and `negative`, `0` and `1`, `Class_1` and `Class_2` make each other names of classes.

    Examples:
        >>> with_siblings(["positive", "negative"])["positive"].is_class
        True
        >>> meaning_of("OK_lens").certain, with_siblings(["OK_lens", "bad_lens"])["OK_lens"].certain
        (False, True)
    """
    meanings = {name: meaning_of(name) for name in names}
    opposite: dict[str, set[Quality]] = {}
    for meaning in meanings.values():
        if meaning.quality in ("good", "bad"):
            opposite.setdefault(meaning.rest, set()).add(meaning.quality)
    classes = _classes(names)
    return {
        name: replace(meaning, certain=True)
        if not meaning.certain and len(opposite.get(meaning.rest, ())) == 2 and not _turns(name)
        else replace(meaning, is_class=True)
        if meaning.quality is None and name in classes
        else meaning
        for name, meaning in meanings.items()
    }


def _classes(names: Sequence[str]) -> set[str]:
    """Return which of the names beside each other tell classes apart without saying what they are."""
    words = {name: [word for word in _tokens(name) if word not in _FILLERS or word in _CLASS] for name in names}
    classes = [
        name
        for name in names
        if not _CLASS.isdisjoint(words[name]) and all(len(word) < 3 for word in words[name] if word not in _CLASS)
    ]
    found = set(classes) if len(classes) > 1 else set()
    if {name for name in names if name.isdecimal()} == {"0", "1"}:
        found |= {"0", "1"}
    pairs = [*_OPPOSITES]
    known = {word for each in words.values() for word in each}
    for word in known:
        pairs += [(word, prefix + word) for prefix in _DENYING if len(word) > 3 and prefix + word in known]
    for pair in pairs:
        beside: dict[tuple[str, ...], dict[str, str]] = {}
        for name in names:
            for word in pair:
                if word in words[name]:
                    beside.setdefault(tuple(each for each in words[name] if each != word), {})[word] = name
        found.update(name for both in beside.values() if len(both) == 2 for name in both.values())
    return found


def named_not_good(files: Iterable[PurePath]) -> list[PurePath]:
    """Return the files whose names, or those of the folders on the way to them, do not say that they are good parts.

    For a set that holds good parts only: what is named after defects or masks, or lies beside what is named good.

    Args:
        files: names from the folder that the user named, which is not examined.
    """
    files = list(files)
    beside: dict[PurePath, set[str]] = defaultdict(set)
    for file in files:
        for folder in list(file.parents)[:-1]:
            beside[folder.parent].add(folder.name)
    doubtful: set[PurePath] = set()
    for above, names in beside.items():
        meanings = with_siblings(sorted(names))
        some_are_good = any(meaning.quality == "good" for meaning in meanings.values())
        doubtful.update(
            above / name
            for name, meaning in meanings.items()
            if (meaning.quality in ("bad", "mask") and meaning.certain)
            or meaning.quality == "mixed"
            or meaning.is_class
            or (some_are_good and meaning.quality != "good" and meaning.part is None and meaning.rest)
        )
    stems = {file.parent / file.stem for file in files}

    def is_doubtful(file: PurePath) -> bool:
        if not doubtful.isdisjoint(file.parents):
            return True
        meaning, base = meaning_of(re.sub(r"\d+", "0", file.stem)), masked_stem(file.stem)
        # Many files that are named after defects are numbered; a single bad.png may be anything.
        is_bad = ((meaning.quality == "bad" and meaning.certain) or meaning.is_class) and re.search(r"\d", file.stem)
        return bool(is_bad) or (base is not None and file.parent / base in stems)

    return [file for file in files if is_doubtful(file)]


_CAMEL_ENDING = re.compile(r"(?P<base>.*[a-z0-9])(?:Mask|Label|GT|GroundTruth)\d{0,3}")
_SEPARATED_ENDING = re.compile(
    r"(?P<base>.*[^\s_.\-])[\s_.\-]+(?:mask|masks|maske|gt|label|labels|seg|annotation|ground[\s_.\-]?truth)"
    r"(?:[\s_.\-]*\d{1,3})?",
    re.IGNORECASE,
)


def masked_stem(stem: str) -> str | None:
    """Return the stem of the image that a mask belongs to by its own: `000` for `000_mask`, `000-GT`, `000_label2`.

    None: the stem does not end like a mask's.

    Examples:
        >>> masked_stem("000_mask"), masked_stem("000-GT"), masked_stem("000")
        ('000', '000', None)
    """
    match = _SEPARATED_ENDING.fullmatch(stem) or _CAMEL_ENDING.fullmatch(stem)
    return None if match is None else match["base"]


def _quality(word: str) -> Quality | None:
    if word in _GOOD:
        return "good"
    if word in _BAD:
        return "bad"
    return "mask" if word in _MASK else None


def _is_known(word: str) -> bool:
    return (
        word in _GOOD or word in _BAD or word in _MASK or word in _PART or word in _NOT or word in _FREE
        or word in _FILLERS
    )  # fmt: skip


def _tokens(name: str) -> list[str]:
    text = unicodedata.normalize("NFKC", name).replace("\N{LATIN SMALL LETTER DOTLESS I}", "i")
    # n.i.O., i. O., N.G.: single letters with dots are one word.
    text = _IDEOGRAPHS.sub(lambda match: _IDEOGRAPHIC.sub(r" \g<0> ", match[0]), text)
    text = re.sub(r"\b(?:[^\W\d_]\.\s?){1,3}[^\W\d_]\b\.?", lambda match: re.sub(r"[.\s]", "", match[0]) + " ", text)
    tokens: list[str] = []
    for chunk in re.findall(r"[^\W_]+", text):
        word = chunk.casefold()
        if _is_known(word) or word.isdecimal():
            tokens.append(word)
            continue
        for piece in re.findall(r"\d+|[^\W\d_]+", chunk) if re.fullmatch(r"\d*[^\W\d_]+\d*", chunk) else [chunk]:
            folded = piece.casefold()
            if _is_known(folded) or folded.isdecimal():
                tokens.append(folded)
            elif apart := _taken_apart(folded):
                tokens += apart
            else:
                humps = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\WA-Za-z_]+", piece)
                tokens += [hump.casefold() for hump in humps] if len(humps) > 1 else [folded]
    return tokens


@lru_cache(maxsize=4096)
def _taken_apart(word: str) -> tuple[str, ...]:
    """Cut a word into known ones without a rest; empty where that cannot be done."""
    for end in range(len(word) - 1, 1, -1):
        if word[:end] not in _TAKEN_APART:
            continue
        if word[end:] in _TAKEN_APART:
            return word[:end], word[end:]
        if rest := _taken_apart(word[end:]):
            return word[:end], *rest
    return ()


def _merged(words: Sequence[str]) -> list[str]:
    """Turn `defect free` and `no defect` into `good`, `not ok` into `bad`, `ground truth` into `mask`."""
    left: list[str] = []
    for word in words:
        if word == "truth" and left and left[-1] == "ground":
            left[-1] = "mask"
        elif word in _FREE and left and _quality(left[-1]) == "bad":
            left[-1] = "good"
        else:
            left.append(word)
    result: list[str] = []
    for word in reversed(left):
        following = next((i for i in range(len(result)) if result[i] not in _LINKS), None)
        quality = None if following is None else _quality(result[following])
        turns = word in _NOT or (word in _LETTERS and quality == "good") or (word == "free" and quality == "bad")
        if turns and following is not None and quality in ("good", "bad"):
            result[: following + 1] = ["bad" if quality == "good" else "good"]
        else:
            result.insert(0, word)
    return result


def _turns(name: str) -> bool:
    """Return whether a word is left over that may turn a meaning around."""
    words = _merged(_tokens(name))
    return any(word in _TURNING for word in words)
