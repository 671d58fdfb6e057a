"""What the names of folders and files say about pictures: good parts, parts that are not good, masks, train or test.

A name is cut into words at separators, digits and changes of case; `notOK`, `no_defect` and `defect-free` are
understood as a whole. A name is certain when every word of it is known: a word of meaning, a number, or one that
changes nothing, such as "part" or "front", or where a word such as NG or defect cannot mean anything else. Where
another word is left over ("fail-safe-ring", "good_but_dirty") the name is uncertain, and what it means must follow
from something else. A name that only contains the letters (passenger, goodyear) says nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Quality = Literal["good", "bad", "mask", "mixed"]
"""`bad` is what is not good; `mixed` is a name that says both, or good with a word that may deny it."""
Part = Literal["train", "validation", "test"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GOOD = _words(
    "good goods ok oks okay normal normals pass passes passed passing accept accepted acceptable conforming "
    "flawless faultless defectless healthy io gut gute gutteil gutteile fehlerfrei fehlerfreie einwandfrei 良品 合格 "
    "合格品 正常"
)
_BAD = _words(
    "ng ngs bad bads nok noks ko nio defect defects defective defectives defected anomaly anomalies anomalous "
    "abnormal abnormals abnormality abnormalities reject rejects rejected rejection rejections fail fails failed "
    "failing failure failures fault faults faulty scrap scrapped flaw flaws flawed damage damages damaged "
    "nonconforming nonconformity unacceptable error errors outlier outliers invalid schlecht schlechte "
    "schlechtteil schlechtteile fehler fehlerhaft fehlerhafte defekt defekte ausschuss def nonconformities "
    "nonconformance nonconformances defaut defauts mauvais rebut rebuts defecto defectos difetto difetti scarto "
    "scarti "
    "défaut défauts 不良 不良品 不合格 不合格品 缺陷 异常 異常 欠陥"
)
_STRONG = _words(
    "ng ngs nok noks nio defect defects def defective defectives anomaly anomalies anomalous abnormal abnormals reject "
    "rejects rejected ausschuss"
)
"""Words that no product is named after: whatever stands beside them (`NG_scratch`), it is not good."""
_MASK = _words(
    "truth truths mask masks maske masken gt gts groundtruth groundtruths label labels annotation annotations "
    "segmentation segmentations segmask segmasks"
)
_PART: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate"), "validation"),
    **dict.fromkeys(("test", "tests", "testing", "testset", "eval", "evaluation"), "test"),
}
_NOT = _words("not no non nicht kein keine ohne without zero never nie didn didnt doesn doesnt isn isnt")
_FREE = _words("free frei less")
_FILLERS = _words(
    "part parts piece pieces item items unit units component components image images img imgs picture pictures "
    "pic pics photo photos frame frames sample samples example examples product products set sets data dataset "
    "datasets class classes category categories type types folder dir file files cam cams camera cameras line "
    "lines station front back top bottom left right side sides view views rgb gray grey color colour batch lot "
    "day week month shift monday tuesday wednesday thursday friday saturday sunday new old all only raw orig "
    "original originals cropped crop crops resized copy kopie teil teile bild bilder foto fotos any found "
    "detected visible present public private mixed scan scans shot shots capture captures jpg jpeg png bmp tif "
    "tiff webp jpegimages of from the with has mit"
)
"""Words that change nothing about what a name means."""
_LINKS = _words("of from the any von an")
_LETTERS = {"n"}  # "n.OK", "n_io"

_TAKEN_APART = (_GOOD | _BAD | _MASK | _NOT | _FREE | _FILLERS | frozenset(_PART)) - _words(
    "io ko def gt gts of from the ng ngs less an no set sets"
) | {"ng", "no"}
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

    @property
    def is_empty(self) -> bool:
        """Whether the name says nothing and tells nothing apart, as `images` and `data`."""
        return self.quality is None and self.part is None and not self.rest


@lru_cache(maxsize=65536)
def meaning_of(name: str) -> Meaning:
    """Return what the name of a folder, or that of a file without its ending, says."""
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
    is_plain = not any(word in _NOT or word in _FREE or word in _LETTERS for word in words)
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
    )


def with_siblings(names: Sequence[str]) -> dict[str, Meaning]:
    """Return what the names of folders beside each other say.

    `OK_lens` and `bad_lens` make each other certain: what is left over is the same, so it is no part of the judgement.
    """
    meanings = {name: meaning_of(name) for name in names}
    opposite: dict[str, set[Quality]] = {}
    for meaning in meanings.values():
        if meaning.quality in ("good", "bad"):
            opposite.setdefault(meaning.rest, set()).add(meaning.quality)
    return {
        name: Meaning(meaning.quality, meaning.part, True, meaning.rest, meaning.kind)
        if not meaning.certain and len(opposite.get(meaning.rest, ())) == 2 and not _turns(name)
        else meaning
        for name, meaning in meanings.items()
    }


_CAMEL_ENDING = re.compile(r"(?P<base>.*[a-z0-9])(?:Mask|Label|GT|GroundTruth)\d{0,3}")
_SEPARATED_ENDING = re.compile(
    r"(?P<base>.*[^\s_.\-])[\s_.\-]+(?:mask|masks|maske|gt|label|labels|seg|annotation|ground[\s_.\-]?truth)"
    r"(?:[\s_.\-]*\d{1,3})?",
    re.IGNORECASE,
)


def masked_stem(stem: str) -> str | None:
    """Return the stem of the image that a mask belongs to by its own: `000` for `000_mask`, `000-GT`, `000_label2`.

    None: the stem does not end like a mask's.
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
    text = unicodedata.normalize("NFKC", name)
    # n.i.O., i. O., N.G.: single letters with dots are one word.
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
    """Tell whether a word is left over that may turn a meaning around."""
    words = _merged(_tokens(name))
    return any(word in _NOT or word in _FREE or word in _LETTERS for word in words)
