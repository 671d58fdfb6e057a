"""Masks of defects: which image each belongs to, and its pixels.

Pairing goes by the names of files and folders; masks are united and resized without losing thin defects.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import check_regular_file, read_pixels
from vae_edge.picture_files.listing import FolderFiles
from vae_edge.picture_files.name_meanings import Part, masked_stem, meaning_of
from vae_edge.records import open_regular

_LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})
_OPAQUE_SUFFIXES = frozenset({".jpg", ".jpeg"})


class Masks(NamedTuple):
    """Where the defects are, and whether that is known."""

    masks: NDArray[np.bool_]
    """bool [N, H, W], true at a defect; all false where `has_mask` is false."""
    has_mask: NDArray[np.bool_]
    """bool [N]; false for an anomalous image without a mask, whose pixels count in no pixel metric. A normal image has
    a mask: it is false everywhere."""


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Decode a mask: a pixel is a defect where any colour channel is above 0, so labels 0/1 do as well as 0/255.

    In a JPEG or WebP file, whose compression leaves faint traces beside an edge, it is a defect from 128 on. The EXIF
    orientation is applied, as it is to the picture. Of a mask with transparency a pixel that is fully transparent is
    no defect; where every pixel has the same colour, so that only the transparency tells pixels apart, it is the mask.

    Returns:
        bool [H, W], at the mask's own size.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    try:
        values = read_pixels(path)
    except InputError as error:
        full = _with_all_channels(path)
        if full is None or full.dtype.kind != "f":  # Some tools write 0.0 and 1.0, which is not a picture.
            raise InputError(f"the mask {error}") from error
        values = full
    least = 128 if path.suffix.lower() in _LOSSY_SUFFIXES else 1e-9
    colour = np.asarray((values if values.ndim == 2 else values[:, :, :3].max(axis=2)) >= least)
    full = None if path.suffix.lower() in _OPAQUE_SUFFIXES else _with_all_channels(path)
    if full is None or full.ndim == 2 or full.shape[2] < 4 or full[:, :, 3].min() == full[:, :, 3].max():
        return colour
    alpha = full[:, :, 3]
    if (full[:, :, :3] == full[0, 0, :3]).all():
        return np.asarray(alpha >= least)
    # OpenCV turns an image only where it drops the transparency: what was turned has its colours alone.
    unturned = np.asarray(full[:, :, :3].max(axis=2) >= least)
    return np.asarray(colour & (alpha > 0)) if np.array_equal(unturned, colour) else colour


def _with_all_channels(path: Path) -> NDArray[Any] | None:
    """Decode a file as it is, with transparency and not turned; None where that cannot be done."""
    try:
        check_regular_file(path)
        data = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (InputError, OSError, cv2.error):
        return None
    return None if image is None else np.asarray(image)


def read_masks(paths: Sequence[Path]) -> NDArray[np.bool_]:
    """Decode the masks of one image and unite them: a pixel is a defect if any of them marks it.

    Args:
        paths: one or more masks.

    Returns:
        bool [H, W].

    Raises:
        InputError: one cannot be decoded, or they differ in size.
    """
    united = read_mask(paths[0])
    for path in paths[1:]:
        mask = read_mask(path)
        if mask.shape != united.shape:
            raise InputError(
                f"the mask {path} is {mask.shape[0]}x{mask.shape[1]} and {paths[0].name}, of the same image, "
                f"{united.shape[0]}x{united.shape[1]}; expected masks of one size"
            )
        united = united | mask
    return united


def looks_like_mask(path: Path) -> bool:
    """Return whether a file is a grey image of one or two values that is black somewhere, as a mask is."""
    try:
        values = read_pixels(path)
    except InputError:
        return False
    if values.ndim == 3:
        if not (values == values[:, :, :1]).all():
            return False
        values = values[:, :, 0]
    found = np.unique(values)
    return len(found) <= 2 and int(found[0]) == 0


def resize_mask(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Resize a mask, bool [h, w], to bool [height, width] without losing thin defects.

    Where it shrinks, a pixel of the result is a defect if any part of the area it stands for is one: a scratch one
    pixel wide stays, at the price of an outline up to one pixel wider. Where it grows, the nearest pixel is taken.
    """
    if mask.shape == (height, width):
        return mask
    area = (min(width, mask.shape[1]), min(height, mask.shape[0]))
    shrunk = cv2.resize(mask.astype(np.float32), area, interpolation=cv2.INTER_AREA) > 0
    grown = cv2.resize(shrunk.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(grown, dtype=np.uint8).astype(np.bool_)


FolderQuality = Literal["good", "bad", "mask", "unclear", "perhaps good"]

LIKE_MASKS = re.compile("mask|label|gt|truth|seg|annot", re.IGNORECASE)
"""What a file name must hold before it is worth taking apart: a set may have a hundred thousand."""


@dataclass
class ImageFolder:
    """A folder with images, and what its name says together with the names above it."""

    files: FolderFiles
    quality: FolderQuality | None = None
    part: Part | None = None
    is_certain_mask: bool = True
    defect: str | None = None
    """The name on its way that tells its defects from others; None: no name does."""
    is_class: bool = False
    """Whether a name on its way is only one for parts that were sorted out (`Meaning.is_class`)."""
    decided_by: tuple[str, ...] = ()
    """Its path up to that name, or all of it."""
    kinds: tuple[str, ...] = ()
    """What tells it from folders with the same role: equal for a folder of images and that of their masks."""
    kinds_above: tuple[str, ...] = ()
    """The same for the folder that it lies in."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Its path from the root."""
        return self.files.parts

    @property
    def name(self) -> str:
        """Its path from the root as text; "." for the root."""
        return "/".join(self.parts) or "."


@dataclass(frozen=True)
class MaskFile:
    """A mask or label picture."""

    folder: ImageFolder
    file: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder.files.path / self.file


@dataclass
class Picture:
    """An image and its masks."""

    folder: ImageFolder
    file: str
    masks: tuple[MaskFile, ...] = ()

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder.files.path / self.file

    @property
    def name(self) -> str:
        """Its path from the root, with forward slashes."""
        return "/".join((*self.folder.parts, self.file))

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return _stem(self.file)


def _stem(file: str) -> str:
    return file.rpartition(".")[0] or file


def tell_apart(folders: Iterable[ImageFolder]) -> tuple[list[Picture], list[MaskFile]]:
    """Tell images from label pictures: those in a folder of masks, and those beside the image whose name they have.

    Files that are called like masks of images that are not there are masks where the set has others; but not if all
    files of a folder that holds parts by its name are called so: then it is the product's name.
    """
    pictures: list[Picture] = []
    masks: list[MaskFile] = []
    orphans: list[Picture] = []
    n_in_folder: Counter[str] = Counter()
    for folder in folders:
        files = folder.files.images
        if folder.quality == "mask":
            masks += [MaskFile(folder, file) for file in files]
            continue
        stems = Counter(_stem(file).casefold() for file in files)
        for file in files:
            stem = _stem(file)
            base = masked_stem(stem) if LIKE_MASKS.search(stem) else None
            if base is not None and base.casefold() in stems:
                masks.append(MaskFile(folder, file))
            elif base is not None:
                orphans.append(Picture(folder, file))
                n_in_folder[folder.name] += 1
            # Real-IAD: a.jpg has its mask in a.png. Or somebody has one picture in two formats.
            elif stems[stem.casefold()] > 1 and looks_like_mask(folder.files.path / file):
                masks.append(MaskFile(folder, file))
            else:
                pictures.append(Picture(folder, file))
    are_masks = bool(masks)
    for orphan in orphans:
        folder = orphan.folder
        is_product = n_in_folder[folder.name] == len(folder.files.images) and (
            folder.quality in ("good", "bad") or (folder.part == "test" and folder.defect is not None)
        )
        if are_masks and not is_product:
            masks.append(MaskFile(folder, orphan.file))
        else:
            pictures.append(orphan)
    return pictures, masks


def pair_masks(pictures: Iterable[Picture], masks: Iterable[MaskFile]) -> None:
    """Assign each image its masks.

    A mask belongs to the image of its stem in the folder of the same kind, such as `test/hole/0.png` and
    `ground_truth/hole/0_mask.png`; where that says nothing, to the only image that its own folders fit, such as
    `NG/0.png` and `masks/0.png`. A longer name (`0_mask`) comes before an equal one (`0`), and this before a folder.
    """
    known: dict[tuple[Part | None, tuple[str, ...], str], list[tuple[int, str, MaskFile]]] = defaultdict(list)
    for mask in masks:
        folder, stem = mask.folder, _stem(mask.file)
        base = masked_stem(stem)
        names = [(1, stem, folder.kinds), *([(0, base, folder.kinds)] if base is not None else [])]
        if folder.quality == "mask" and folder.parts:
            names.append((2, folder.parts[-1], folder.kinds_above))
        for rank, name, kinds in names:
            known[folder.part, kinds, name.casefold()].append((rank, name, mask))
    if not known:
        return
    guessed: dict[Path, list[Picture]] = defaultdict(list)
    for picture in pictures:
        folder = picture.folder
        depths = range(1 if folder.quality == "good" else len(folder.kinds) + 1)
        for depth in depths:
            for part in dict.fromkeys((folder.part, None)):
                candidates = known.get((part, folder.kinds[depth:], picture.stem.casefold()), ())
                exact = [each for each in candidates if each[1] == picture.stem] or candidates
                if exact:
                    best = min(rank for rank, _, _ in exact)
                    picture.masks = tuple(mask for rank, _, mask in exact if rank == best)
                    break
            if picture.masks:
                if depth:
                    for mask in picture.masks:
                        guessed[mask.path].append(picture)
                break
    for several in guessed.values():
        for picture in several if len(several) > 1 else ():
            picture.masks = ()


def what_masks_mark(pictures: Sequence[Picture]) -> list[bool | InputError]:
    """Return for each image whether its masks mark anything; false where it has none."""

    def marks(picture: Picture) -> bool | InputError:
        if not picture.masks:
            return False
        try:
            return bool(read_masks([mask.path for mask in picture.masks]).any())
        except InputError as error:
            return error

    if not any(picture.masks for picture in pictures):
        return [False] * len(pictures)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(marks, pictures))


_ANNOTATION_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".txt", ".xlsx", ".yaml", ".yml")
_ANNOTATION_WORDS = {"coco", "instances", "bbox", "bboxes", "boxes", "classes", "via", "labelme", "yolo", "annot"}
_ANNOTATIONS_INSIDE = {
    ".json": re.compile(
        rb'"(shapes|annotations|bbox|bboxes|objects|regions|polygons?|segmentation|labels?|defects?)"\s*:'
    ),
    ".xml": re.compile(rb"<(annotation|object|bndbox)\b", re.IGNORECASE),
    ".txt": re.compile(rb"\A\s*\d{1,4}(?:[ \t]+-?\d*\.?\d+(?:e-?\d+)?){4,}[ \t]*\r?(?:\n|\Z)", re.IGNORECASE),
}
"""What LabelMe, COCO, Pascal VOC and YOLO write into a file for each image."""
_MOST_READ, _MOST_BYTES = 500, 20_000


def find_annotations(folders: Iterable[FolderFiles]) -> Path | None:
    """Return a file that says what images show, such as `labels.csv` or a VOC or YOLO file for an image, if any does.

    Files that a program keeps next to its images (`camera.json`, `0.txt` with the time) are not annotations. An empty
    file marks nothing.
    """
    n_read = 0
    for folder in folders:
        if not folder.n_other:
            continue
        stems = {_stem(file).casefold() for file in folder.images}
        above = [meaning_of(part) for part in folder.parts]
        is_for_labels = any(meaning.quality == "mask" and meaning.certain for meaning in above)
        for path in sorted(folder.path.iterdir()):
            ending = path.suffix.lower()
            if ending not in _ANNOTATION_SUFFIXES or path.name.startswith(".") or not path.is_file():
                continue
            is_of_an_image = path.stem.casefold() in stems
            if is_for_labels or (not is_of_an_image and _says_annotations(path)):
                if path.stat().st_size:
                    return path
            elif is_of_an_image and ending in _ANNOTATIONS_INSIDE and n_read < _MOST_READ:
                n_read += 1
                # What cannot be read says nothing.
                with suppress(OSError), open_regular(path) as file:
                    if _ANNOTATIONS_INSIDE[ending].search(file.read(_MOST_BYTES)):
                        return path
    return None


def _says_annotations(path: Path) -> bool:
    meaning = meaning_of(path.stem)
    # errors.txt is what a program had to say.
    is_list = meaning.quality == "bad" and meaning.certain and path.suffix.lower() != ".txt"
    words = re.findall(r"[^\W\d_]+", path.stem.casefold())
    return is_list or meaning.quality in ("mask", "mixed") or not _ANNOTATION_WORDS.isdisjoint(words)


_ADDED_LETTERS = re.compile(r"(?P<base>.+?)[\s_.\-]*[a-z]+\d{0,3}", re.IGNORECASE)
_MOST_LOOKED_AT = 20


def find_unnamed_masks(pictures: Sequence[Picture]) -> tuple[list[Picture], bool]:
    """Return pictures that look like masks, and whether all pictures that were examined do.

    Looked at are a few of each folder, and those whose names are longer by letters than another's (`0` and `0_bw`).
    """
    by_folder: dict[int, dict[str, Picture]] = defaultdict(dict)
    for picture in pictures:
        by_folder[id(picture.folder)][picture.stem.casefold()] = picture
    looked_at: dict[Path, Picture] = {}
    for stems in list(by_folder.values())[:_MOST_READ]:
        longer = [
            picture
            for stem, picture in stems.items()
            if (match := _ADDED_LETTERS.fullmatch(stem)) is not None and match["base"] in stems
        ]
        looked_at |= {picture.path: picture for picture in [*list(stems.values())[:2], *longer[:_MOST_LOOKED_AT]]}
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(looks_like_mask, looked_at))
    return [picture for picture, is_mask in zip(looked_at.values(), found, strict=True) if is_mask], all(found)
