"""Which files an inspection set is made of: good parts to train on, parts to test on, masks.

What an image is follows from the names of the folders that it lies in (`vae_edge.train.name_meanings`), in any case
and at any depth, and from label pictures. So these layouts are understood, and what is arranged like them:

- `mvtec`, that of MVTec AD (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021): `ROOT/train/good`,
  `ROOT/test/good`, `ROOT/test/<defect>` and `ROOT/ground_truth/<defect>/<name>_mask.png`. MVTec LOCO, MVTec AD 2, BTAD,
  MPDD and VisA's one-class split are arranged so too. Every folder in `test` that is not called good holds a defect.
- `named`, folders of good parts and of others anywhere: `OK` and `NG`, with or without `train` and `test`; VisA's
  `Data/Images/{Normal,Anomaly}` and `Data/Masks/Anomaly`; Real-IAD.
- `labels`, label pictures beside the images (KolektorSDD: `Part0.jpg` and `Part0_label.bmp`; KolektorSDD2:
  `10000.png` and `10000_GT.png`) or in a folder of labels: an image whose label picture marks nothing is good. Where
  the folder of labels lies among the images (DAGM: `Train/Label`) an image without a label picture is good too;
  elsewhere it is not used.
- `folder`, one folder of good parts: no name in it says anything, so every image in it and below it is for training.
- `folders`, given by name: `normal` for training; optionally `normal_test`, `abnormal` (its sub-folders are the defect
  classes; images directly in it belong to a class named after the folder) and `masks`, arranged like `abnormal`.

Another, `listed`, is no layout: each file was named; see `vae_edge.train.listed_files`.

Good parts of a `validation` folder are trained and calibrated on like those of `train`, for this package holds out its
own. An image below a name for parts that are not good, or for masks, is never trained on. Where it cannot be told what
an image is, and nothing says plainly which images are to be trained on, the set is refused with what would decide it.

A mask has its image's name (`0.png`) or a longer one (`0_mask.png`, `0-GT.bmp`, `0_label2.png`), or lies in a folder of
that name (`000/0.png`); several are united. Files are listed by the rule of `vae_edge.listing`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from vae_edge.errors import InputError
from vae_edge.listing import FolderFiles, Listing, count_images, list_images
from vae_edge.outside import user_path
from vae_edge.records import check_recordable
from vae_edge.train.masks import looks_like_mask, read_masks
from vae_edge.train.name_meanings import Meaning, Part, masked_stem, meaning_of, with_siblings

Layout = Literal["mvtec", "named", "labels", "folder", "folders", "listed"]

_NAMED_FOLDERS = 6
"""Folders beside each other with the same use that are named one by one."""


@dataclass(frozen=True)
class FoundImage:
    """An image, its name in the set, its defect class and its masks."""

    path: Path
    name: str
    defect: str | None = None
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FolderUse:
    """What the images of a folder were taken for."""

    folder: str
    """From the root, with forward slashes; "." for the root itself."""
    use: str
    n: int | None
    """Number of images; None: it could not be counted."""
    is_used: bool = True
    """False: it was passed over, and `use` says why."""


@dataclass(frozen=True)
class FoundFiles:
    """All files of a set."""

    root: Path
    layout: Layout
    train_folder: Path
    train: Sequence[FoundImage]
    test: Sequence[FoundImage]
    unmatched_masks: Sequence[Path] = ()
    n_ignored: int = 0
    uses: Sequence[FolderUse] = ()
    dangling: Sequence[Path] = ()
    """Links that lead nowhere."""


_Quality = Literal["good", "bad", "mask", "unclear", "perhaps good"]


@dataclass
class _Folder:
    """A folder with images, and what its name says together with the names above it."""

    files: FolderFiles
    quality: _Quality | None = None
    part: Part | None = None
    is_certain_mask: bool = True
    defect: str | None = None
    """The name on its way that tells its defects from others; None: no name does."""
    decided_by: tuple[str, ...] = ()
    """Its path up to that name, or all of it."""
    kinds: tuple[str, ...] = ()
    """What tells it from folders with the same role: equal for a folder of images and that of their masks."""
    kinds_above: tuple[str, ...] = ()
    """The same for the folder that it lies in."""

    @property
    def parts(self) -> tuple[str, ...]:
        return self.files.parts

    @property
    def name(self) -> str:
        return "/".join(self.parts) or "."


@dataclass(frozen=True)
class _Mask:
    folder: _Folder
    file: str

    @property
    def path(self) -> Path:
        return self.folder.files.path / self.file


@dataclass
class _Picture:
    folder: _Folder
    file: str
    masks: tuple[_Mask, ...] = ()

    @property
    def path(self) -> Path:
        return self.folder.files.path / self.file

    @property
    def name(self) -> str:
        return "/".join((*self.folder.parts, self.file))

    @property
    def stem(self) -> str:
        return _stem(self.file)


def find_below(root: Path) -> FoundFiles:
    """Find the files below one folder.

    Raises:
        InputError: the folder holds several products, or it cannot be told what its images are; or a folder in it
            cannot be read.
    """
    return _Search(root).result()


class _Search:
    """The images below one folder, on their way to being told apart."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listing = list_images(root)
        self.meanings = _meanings(self.listing)
        self.folders = [self._judged(files) for files in self.listing.folders if files.images]
        self.uses: list[FolderUse] = []
        self.pictures, self.masks = _apart(self.folders)
        _pair(self.pictures, self.masks)
        self._settle_uncertain_masks()

    def result(self) -> FoundFiles:
        self._refuse_root_name()
        self._refuse_products()
        says_something = any(folder.quality not in (None, "perhaps good") or folder.part for folder in self.folders)
        labelled = self._is_labelled()
        train: list[_Picture] = []
        test: list[tuple[_Picture, str | None]] = []
        has_test = any(folder.part == "test" and folder.quality != "mask" for folder in self.folders)
        is_established = (
            any(folder.quality == "good" and folder.part == "train" for folder in self.folders)
            or (self.root / "train" / "good").is_dir()
        )
        unclear: list[_Folder] = []
        by_folder: dict[int, list[_Picture]] = defaultdict(list)
        for picture in self.pictures:
            by_folder[id(picture.folder)].append(picture)
        for folder in self.folders:
            pictures = by_folder[id(folder)]
            n = len(pictures)
            if not n:
                continue
            if folder.quality == "good":
                if folder.part == "test":
                    test += [(picture, None) for picture in pictures]
                    self._use(folder, "good parts to test on", n)
                else:
                    train += self._without_marked(folder, pictures)
            elif folder.quality == "bad":
                if folder.part == "train" and has_test:
                    self._pass_over(folder, "defective parts among those to train on, not used", n)
                else:
                    test += [(picture, folder.defect) for picture in pictures]
                    self._use(folder, f"defective parts to test on, class {folder.defect}", n)
            elif folder.quality == "unclear":
                # Beside train/good, what lies outside of train and test belongs to something else.
                if is_established and folder.part is None:
                    self._pass_over(folder, "its name does not say plainly what it holds", n)
                else:
                    unclear.append(folder)
            elif folder.part == "test" and folder.defect:
                test += [(picture, folder.defect) for picture in pictures]
                self._use(folder, f"defective parts to test on, class {folder.defect}", n)
            elif labelled:
                good, bad = self._by_label(folder, pictures, has_test=has_test)
                train += [] if folder.part == "test" else good
                test += [(picture, None) for picture in good if folder.part == "test"]
                test += [(picture, "defect") for picture in bad]
            elif not says_something:
                train += pictures
                self._use(folder, "good parts to train on", n)
            elif folder.part == "test":
                self._pass_over(
                    folder,
                    "nothing says which of them are good; put them into test/good and test/DEFECT to test on them",
                    n,
                )
            elif is_established or folder.part == "validation":
                self._pass_over(folder, "nothing says whether they are good", n)
            else:
                unclear.append(folder)
        if unclear:
            raise self._unclear(unclear)
        self._refuse_names(train)
        self._refuse_conflicts(train, test)
        return self._found(train, test, says_something=says_something, labelled=labelled)

    def _judged(self, files: FolderFiles) -> _Folder:
        """Put together what the names on the way to a folder say."""
        folder = _Folder(files, decided_by=files.parts)
        kinds: list[str] = []
        meanings = [self.meanings[files.parts[: depth + 1]] for depth in range(len(files.parts))]
        for meaning in meanings:
            if meaning.part is not None and folder.part != "test":
                folder.part = meaning.part
            if meaning.quality == "mask" and folder.quality != "mask":
                folder.is_certain_mask = meaning.certain
            folder.quality = _combined(folder.quality, meaning, in_test=folder.part == "test")
            kinds += [meaning.kind] if meaning.kind else []
        folder.kinds = tuple(kinds)
        folder.kinds_above = tuple(kinds[:-1] if meanings and meanings[-1].kind else kinds)
        bad = next((depth for depth, meaning in enumerate(meanings) if meaning.quality == "bad"), None)
        start = (
            bad
            if bad is not None
            else next((i for i, each in enumerate(meanings) if each.part == "test"), len(meanings))
        )
        telling = [i for i in range(start + 1, len(meanings)) if meanings[i].quality is None and meanings[i].rest]
        # A number is a class only where nothing better is (test/001), a date below NG is none.
        named = [i for i in telling if not meanings[i].rest.isdecimal()] or ([] if bad is not None else telling)
        decided = named[0] if named and (bad is None or meanings[bad].certain) else bad
        if decided is not None:
            folder.defect = files.parts[decided]
            folder.decided_by = files.parts[: decided + 1]
        return folder

    def _settle_uncertain_masks(self) -> None:
        """Take a folder whose name only might mean masks (`label_front`) for masks if images have them."""
        matched = {mask.path for picture in self.pictures for mask in picture.masks}
        for folder in self.folders:
            if folder.quality == "mask" and not folder.is_certain_mask:
                own = [mask for mask in self.masks if mask.folder is folder]
                if not any(mask.path in matched for mask in own):
                    folder.quality = "unclear"
                    self.masks = [mask for mask in self.masks if mask.folder is not folder]
                    self.pictures += [_Picture(folder, mask.path.name) for mask in own]

    def _is_labelled(self) -> bool:
        """Tell whether label pictures say which images are good: names do not, and images have some."""
        return any(picture.masks and _waits_for_label(picture.folder) for picture in self.pictures)

    def _by_label(
        self, folder: _Folder, pictures: Sequence[_Picture], *, has_test: bool
    ) -> tuple[list[_Picture], list[_Picture]]:
        """Tell good and defective parts apart by whether their label pictures mark something."""
        marks = _what_masks_mark(pictures)
        place = folder.files.path
        lies_among = any(mask.folder.files.path.parent == place for picture in pictures for mask in picture.masks)
        good: list[_Picture] = []
        bad: list[_Picture] = []
        nameless: list[_Picture] = []
        broken: list[_Picture] = []
        for picture, mark in zip(pictures, marks, strict=True):
            if not picture.masks:
                (good if lies_among else nameless).append(picture)
            elif isinstance(mark, InputError):
                broken.append(picture)
            else:
                (bad if mark else good).append(picture)
        to_test = folder.part == "test"
        if good:
            how = "their label pictures are empty, or there is none" if lies_among else "their label pictures are empty"
            self._use(folder, f"good parts to {'test' if to_test else 'train'} on: {how}", len(good))
        if bad and folder.part == "train" and has_test:
            self._pass_over(folder, "defective parts by their label pictures among those to train on", len(bad))
            bad = []
        elif bad:
            self._use(folder, "defective parts to test on, by their label pictures", len(bad))
        if nameless:
            self._pass_over(folder, "they have no label picture, others do", len(nameless))
        if broken:
            self._pass_over(
                folder, f"their label pictures cannot be decoded ({broken[0].masks[0].path.name})", len(broken)
            )
        return good, bad

    def _without_marked(self, folder: _Folder, pictures: list[_Picture]) -> list[_Picture]:
        """Leave out images of good parts whose masks mark something all the same."""
        marks = _what_masks_mark(pictures)
        good = [picture for picture, mark in zip(pictures, marks, strict=True) if mark is False]
        if len(good) < len(pictures):
            first = next(picture for picture, mark in zip(pictures, marks, strict=True) if mark is not False)
            self._pass_over(
                folder,
                f"good by the folder's name, but a mask marks something or cannot be decoded ({first.file})",
                len(pictures) - len(good),
            )
        what = (
            "good parts of validation, to train and calibrate on"
            if folder.part == "validation"
            else ("good parts to train on")
        )
        self._use(folder, what, len(good))
        return good

    def _use(self, folder: _Folder, use: str, n: int) -> None:
        self.uses.append(FolderUse(folder.name, use, n))

    def _pass_over(self, folder: _Folder, why: str, n: int) -> None:
        self.uses.append(FolderUse(folder.name, why, n, is_used=False))

    def _found(
        self, train: list[_Picture], test: list[tuple[_Picture, str | None]], *, says_something: bool, labelled: bool
    ) -> FoundFiles:
        root = self.root
        train_folder = root / "train" / "good" if (root / "train" / "good").is_dir() else root
        if not train and train_folder == root and (says_something or labelled):
            raise InputError(
                f"{root} has no train/good/ and no other folder of good parts to train on "
                f"({'; '.join(self._described()) or 'no image at all'}). {self._advice()}"
            )
        is_plain = not test and not labelled and not any(folder.part for folder in self.folders)
        layout: Layout = "folder" if is_plain else "named"
        if labelled:
            layout = "labels"
        elif any(folder.part == "train" for folder in self.folders) or train_folder != root:
            layout = "mvtec"
        used = {mask.path for picture, _ in test for mask in picture.masks}
        used |= {mask.path for picture in self.pictures if picture.folder.quality == "good" for mask in picture.masks}
        if labelled:
            used |= {mask.path for picture in self.pictures for mask in picture.masks}
        counts = Counter(mask.folder.name for mask in self.masks)
        self.uses += [FolderUse(name, "masks", n) for name, n in sorted(counts.items())]
        self.uses += _left_out(self.listing)
        train.sort(key=lambda picture: picture.name)
        test.sort(key=lambda item: (item[0].folder.decided_by, item[0].name))
        found = [FoundImage(picture.path, picture.name) for picture in train]
        tested = [
            FoundImage(picture.path, picture.name, defect, tuple(mask.path for mask in picture.masks) if defect else ())
            for picture, defect in test
        ]
        for image in (*found, *tested):
            check_recordable(image.path)
        unmatched = sorted({mask.path for mask in self.masks} - used)
        # Beside train and test lie licenses and notes.
        n_ignored = sum(
            folder.n_other
            for folder in self.listing.folders
            if not folder.again
            and (
                train_folder == root or any(self.meanings[folder.parts[: i + 1]].part for i in range(len(folder.parts)))
            )
        )
        return FoundFiles(
            root, layout, train_folder, found, tested, unmatched, n_ignored, tuple(self.uses),
            tuple(self.listing.dangling),
        )  # fmt: skip

    def _refuse_root_name(self) -> None:
        """Refuse a folder that is called NG itself and says nothing else about its images."""
        if any(folder.quality == "good" for folder in self.folders) or self._is_labelled():
            return
        for name in dict.fromkeys((self.root.name, self.root.resolve().name)):
            meaning = meaning_of(name)
            if meaning.quality in ("bad", "mask", "mixed") and (meaning.certain or meaning.quality == "mixed"):
                what = {"bad": "parts that are not good", "mask": "masks"}.get(meaning.quality, "good and other parts")
                raise InputError(
                    f"{self.root} is called {name}, a name for {what}, and nothing in it says which images show good "
                    f"parts; if all of them do, say so: --normal {self.root}"
                )

    def _refuse_products(self) -> None:
        """Refuse a folder with a set in each of its folders."""
        products: dict[str, None] = {}
        for folder in self.folders:
            meanings = [self.meanings[folder.parts[: depth + 1]] for depth in range(len(folder.parts))]
            first = next(
                (i for i, meaning in enumerate(meanings) if (meaning.quality or meaning.part) and meaning.certain), None
            )
            above = () if first is None else folder.parts[:first]
            if first is not None and all(meaning.is_empty for meaning in meanings[:first]):
                return
            if first is None:
                # Images that no product explains: not for this sentence.
                products.setdefault("", None)
            elif above:
                n = max(i for i, meaning in enumerate(meanings[:first], 1) if not meaning.is_empty)
                products.setdefault("/".join(above[:n]), None)
        names = [name for name in products if name]
        if not names or ("" in products and not any((self.root / name / "train" / "good").is_dir() for name in names)):
            return
        shown = ", ".join(names[:_NAMED_FOLDERS]) + (", ..." if len(names) > _NAMED_FOLDERS else "")
        raise InputError(
            f"{self.root} holds one folder for each product ({shown}); expected one product: give "
            f"{self.root / names[0]}, for example"
        )

    def _unclear(self, folders: Sequence[_Folder]) -> InputError:
        counts = Counter(picture.folder.name for picture in self.pictures)
        named = [f"{folder.name} ({counts[folder.name]} images)" for folder in folders]
        shown = ", ".join(named[:_NAMED_FOLDERS]) + (
            f" and {len(named) - _NAMED_FOLDERS} more" if named[_NAMED_FOLDERS:] else ""
        )
        known = "; ".join(self._described())
        return InputError(
            f"{self.root}: it cannot be told whether these hold good parts: {shown}"
            f"{f'. Known are: {known}' if known else ''}. {self._advice(folders)}"
        )

    def _described(self) -> list[str]:
        uses = [
            *self.uses,
            *(FolderUse(name, "masks", n) for name, n in Counter(m.folder.name for m in self.masks).items()),
        ]
        return describe_uses([use for use in uses if use.use != "masks" or use.n], most=8)

    def _advice(self, unclear: Sequence[_Folder] = ()) -> str:
        """Say with the folders that are there how to name them."""

        def places(quality: str, *, in_test: bool) -> list[str]:
            return [
                str(folder.files.path)
                for folder in self.folders
                if folder.quality == quality and (folder.part == "test") == in_test and folder.parts
            ]

        normal = [*places("good", in_test=False), *(str(each.files.path) for each in unclear if each.parts)]
        tested = places("good", in_test=True)
        abnormal = [*places("bad", in_test=False), *places("bad", in_test=True)]
        sentence = (
            f"Name the folders instead: --normal {normal[0] if normal else 'DIR'}"
            f"{f' --normal-test {tested[0]}' if tested else ''}"
            f" --abnormal {abnormal[0] if abnormal else 'DIR'} (the last only if there are defective parts to test on)"
        )
        if any(not folder.parts for folder in unclear):
            return (
                f"Move the images that lie directly in {self.root} into a folder called good, if they show good parts, "
                f"or out of it. Or: {sentence[0].lower()}{sentence[1:]}"
            )
        return f"{sentence}; or move what belongs to no part out of {self.root}"

    def _refuse_names(self, train: Sequence[_Picture]) -> None:
        """Refuse files to train on whose own names speak of defects or masks; in a folder called good, only say it."""
        said: dict[bool, list[_Picture]] = {True: [], False: []}
        perhaps = []
        for picture in train:
            if not _SPEAKING.search(picture.stem):
                continue
            meaning = meaning_of(picture.stem)
            is_named_good = picture.folder.quality == "good"
            if masked_stem(picture.stem) is not None or (
                meaning.quality in ("bad", "mask", "mixed") and (meaning.certain or meaning.quality == "mixed")
            ):
                said[is_named_good].append(picture)
            elif meaning.quality == "bad" and not is_named_good:
                perhaps.append(picture)
        # A word that all of them have is part of the product's name.
        bad = [*said[False], *(perhaps if len(perhaps) < len(train) else [])]
        if bad:
            raise InputError(
                f"{len(bad)} of the {len(train)} images to train on in {self.root} are named like defective parts or "
                f"masks ({_first_names(bad)}); move those that are into a folder of their own, such as NG or masks, "
                f"or, if all show good parts, say so: --normal {_common(self.root, train)}"
            )
        if said[True]:
            use = f"named like defective parts or masks ({_first_names(said[True])}), but trained on as the folder says"
            self.uses.append(FolderUse(said[True][0].folder.name, use, len(said[True])))

    def _refuse_conflicts(self, train: list[_Picture], test: Sequence[tuple[_Picture, str | None]]) -> None:
        """Refuse links from good parts to what is not good, and drop what a link leads to a second time."""
        again = {
            (picture.folder.files.identity, picture.file)
            for picture in train
            if not picture.folder.files.again and picture.folder.files.reached_by is None
        }
        defective = {(picture.folder.files.identity, picture.file): picture for picture, defect in test if defect}
        kept = []
        for picture in train:
            files = picture.folder.files
            is_link = picture.file in files.linked
            if files.reached_by is None and not is_link:
                kept.append(picture)
                continue
            real = picture.path.resolve()
            key = files.identity, picture.file
            if is_link:
                parent = real.parent.stat()
                key = (parent.st_dev, parent.st_ino), real.name
            inside = (
                real.parent.relative_to(self.root.resolve()).parts
                if (real.is_relative_to(self.root.resolve()))
                else real.parent.parts
            )
            said = next((m for name in reversed(inside) if (m := meaning_of(name)).quality and m.certain), None)
            if key in defective or (said is not None and said.quality in ("bad", "mask")):
                raise InputError(
                    f"{picture.path} would be trained on, and is a link that leads to {real}, which is no good part by "
                    "its place; remove the link, or name the folders: --normal DIR --abnormal DIR"
                )
            if not (files.again and key in again):
                kept.append(picture)
        train[:] = kept


def _combined(was: _Quality | None, meaning: Meaning, *, in_test: bool) -> _Quality | None:
    """Return what a folder is, from what the folders above it are and its own name says."""
    quality = meaning.quality
    if quality is None or was == "mask":
        return was
    if quality == "mask":
        return "mask"
    if quality == "mixed":
        return was if was == "bad" else "unclear"
    if quality == "bad":
        if was == "good":
            return "unclear"
        return "bad" if meaning.certain or in_test or was == "bad" else "unclear"
    if was in ("bad", "unclear"):
        return "unclear" if meaning.certain else was
    if meaning.certain or was == "good":
        return "good"
    return "unclear" if in_test else "perhaps good"


def _waits_for_label(folder: _Folder) -> bool:
    """Tell whether only a label picture can say what a folder's images are."""
    return folder.quality in (None, "perhaps good") and not (folder.part == "test" and folder.defect)


def _meanings(listing: Listing) -> dict[tuple[str, ...], Meaning]:
    """Return what the name of each folder says, beside the others in the same folder."""
    beside: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for folder in listing.folders:
        if folder.parts:
            beside[folder.parts[:-1]].append(folder.parts[-1])
    return {
        (*above, name): meaning for above, names in beside.items() for name, meaning in with_siblings(names).items()
    }


_LIKE_MASKS = re.compile("mask|label|gt|truth|seg|annot", re.IGNORECASE)
_SPEAKING = re.compile(
    f"{_LIKE_MASKS.pattern}|ng|bad|nok|ko|n.?io|defe[ck]t|anomal|abnormal|reject|fail|fault|scrap|flaw|damage|nonconform|"
    "unaccept|error|outlier|invalid|schlecht|fehler|ausschu|n.{0,9}(?:ok|good|normal|pass|accept|conform|io|gut)|without|"
    "不|缺|异|異|欠|n[\\W_]*i",
    re.IGNORECASE,
)
"""What a file name must hold before it is worth taking apart: a set may have a hundred thousand."""


def _stem(file: str) -> str:
    return file.rpartition(".")[0] or file


def _apart(folders: Iterable[_Folder]) -> tuple[list[_Picture], list[_Mask]]:
    """Tell images from label pictures: those in a folder of masks, and those beside the image whose name they have."""
    pictures: list[_Picture] = []
    masks: list[_Mask] = []
    orphans: list[_Picture] = []
    for folder in folders:
        files = folder.files.images
        if folder.quality == "mask":
            masks += [_Mask(folder, file) for file in files]
            continue
        stems = Counter(_stem(file).casefold() for file in files)
        for file in files:
            stem = _stem(file)
            base = masked_stem(stem) if _LIKE_MASKS.search(stem) else None
            if base is not None and base.casefold() in stems:
                masks.append(_Mask(folder, file))
            elif base is not None:
                orphans.append(_Picture(folder, file))
            # Real-IAD: a.jpg has its mask in a.png. Or somebody has one picture in two formats.
            elif stems[stem.casefold()] > 1 and looks_like_mask(folder.files.path / file):
                masks.append(_Mask(folder, file))
            else:
                pictures.append(_Picture(folder, file))
    if masks:
        masks += [_Mask(orphan.folder, orphan.file) for orphan in orphans]
    else:
        pictures += orphans
    return pictures, masks


def _pair(pictures: Iterable[_Picture], masks: Iterable[_Mask]) -> None:
    """Give each image its masks.

    A mask belongs to the image of its stem in the folder of the same kind, such as `test/hole/0.png` and
    `ground_truth/hole/0_mask.png`; where that says nothing, to the only image that its own folders fit, such as
    `NG/0.png` and `masks/0.png`. A longer name (`0_mask`) comes before an equal one (`0`), and this before a folder.
    """
    known: dict[tuple[Part | None, tuple[str, ...], str], list[tuple[int, str, _Mask]]] = defaultdict(list)
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
    guessed: dict[Path, list[_Picture]] = defaultdict(list)
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


def _what_masks_mark(pictures: Sequence[_Picture]) -> list[bool | InputError]:
    """Return for each image whether its masks mark anything; false where it has none."""

    def marks(picture: _Picture) -> bool | InputError:
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


def _left_out(listing: Listing) -> list[FolderUse]:
    """Say what the listing left out by its rule."""
    root = listing.root
    uses = [
        FolderUse(path.relative_to(root).as_posix(), "left by a program, or hidden", count_images(path), is_used=False)
        for path in listing.leftovers
    ]
    for paths, why in ((listing.dangling, "links that lead nowhere"), (listing.special, "pipes or devices, no files")):
        by_folder = Counter(path.parent.relative_to(root).as_posix() for path in paths)
        first = {path.parent.relative_to(root).as_posix(): path.name for path in reversed(paths)}
        uses += [FolderUse(name, f"{why} ({first[name]})", n, is_used=False) for name, n in sorted(by_folder.items())]
    hidden = [FolderUse("/".join(f.parts) or ".", "hidden files", f.n_hidden, is_used=False) for f in listing.folders]
    return [*uses, *(use for use in hidden if use.n)]


def describe_uses(uses: Iterable[FolderUse], most: int = 40) -> list[str]:
    """Say in a line for each folder what its images were taken for; many folders with the same use share a line."""
    beside: dict[tuple[bool, str, str], list[FolderUse]] = defaultdict(list)
    for use in sorted(uses, key=lambda use: (not use.is_used, use.use == "masks", "train" not in use.use)):
        parent = str(PurePosixPath(use.folder).parent)
        beside[use.is_used, parent, use.use].append(use)
    lines = []
    for (is_used, _, what), group in beside.items():
        for shown in [group] if len(group) > _NAMED_FOLDERS else [[use] for use in group]:
            places = shown[0].folder
            if len(shown) > 1:
                places += f" ... {PurePosixPath(shown[-1].folder).name} ({len(shown)} folders)"
            counts = [use.n for use in shown if use.n is not None]
            n = f"{sum(counts)} image{'' if sum(counts) == 1 else 's'}" if counts else "cannot be read"
            lines.append(f"{places}: {n}, {'' if is_used else 'passed over: '}{what}")
    rest = len(lines) - most
    return [*lines[:most], *([f"and {rest} more folders"] if rest > 0 else [])]


def _first_names(pictures: Sequence[_Picture]) -> str:
    return ", ".join(picture.name for picture in pictures[:3]) + (", ..." if len(pictures) > 3 else "")


def _common(root: Path, pictures: Sequence[_Picture]) -> Path:
    """Return the folder that all the images lie in or below."""
    parts = [picture.folder.parts for picture in pictures]
    n = next((i for i, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1), min(map(len, parts)))
    return root.joinpath(*parts[0][:n])


def find_by_name(normal: Path, normal_test: Path | None, abnormal: Path | None, masks: Path | None) -> FoundFiles:
    """Find the files of folders given by name, the layout `folders`.

    What was named is what it was named as, whatever it is called. Only a folder below one of good parts is refused
    whose name says plainly that it holds others; label pictures beside images are no images.

    Raises:
        InputError: masks without abnormal images, one folder within another, a folder below the good parts that holds
            others, or good and abnormal parts given the wrong way round.
    """
    if masks is not None and abnormal is None:
        raise InputError(f"masks were given ({masks}) without abnormal images; give the folder of those too")
    named = [("normal", normal), ("normal_test", normal_test), ("abnormal", abnormal)]
    folders = [(role, folder, folder.resolve()) for role, folder in named if folder is not None]
    for i, (role, folder, place) in enumerate(folders):
        for other_role, other, other_place in folders[i + 1 :]:
            if place == other_place or place in other_place.parents or other_place in place.parents:
                raise InputError(
                    f"{role} ({folder}) and {other_role} ({other}) overlap; expected folders apart from each other"
                )
    if abnormal is not None and [_said(normal.resolve().name), _said(abnormal.resolve().name)] == ["bad", "good"]:
        raise InputError(
            f"normal ({normal}) is called like parts that are not good and abnormal ({abnormal}) like good ones; "
            "exchange the two, or rename the folders"
        )
    found = {role: _ByName(role, folder) for role, folder, _ in folders}
    mask_listing = None if masks is None else list_images(masks)
    train = [FoundImage(path, name) for path, name, _ in found["normal"].images]
    test = [FoundImage(path, name) for path, name, _ in found["normal_test"].images] if normal_test is not None else []
    unmatched: list[Path] = []
    uses = [use for each in found.values() for use in each.uses()]
    if abnormal is not None:
        by_name = found["abnormal"]
        pictures, own_masks = by_name.pictures, by_name.masks
        if mask_listing is not None:
            for files in mask_listing.folders:
                mask_folder = _Folder(files, "mask", kinds=files.parts, kinds_above=files.parts[:-1])
                own_masks += [_Mask(mask_folder, file) for file in files.images if not files.again]
            n = len(mask_listing.images())
            uses += [FolderUse(str(masks), "masks", n), *_left_out(mask_listing)]
        _pair(pictures, own_masks)
        for picture in sorted(pictures, key=lambda picture: picture.name):
            defect = picture.folder.parts[0] if picture.folder.parts else abnormal.resolve().name
            own = tuple(mask.path for mask in picture.masks)
            test.append(FoundImage(picture.path, f"abnormal/{picture.name}", defect, own))
        matched = {mask.path for picture in pictures for mask in picture.masks}
        unmatched = sorted({mask.path for mask in own_masks} - matched)
    for image in (*train, *test):
        check_recordable(image.path)
    listings = [each.listing for each in found.values()]
    return FoundFiles(
        normal,
        "folders",
        normal,
        train,
        test,
        unmatched,
        sum(listing.n_other for listing in listings),
        tuple(uses),
        tuple(path for listing in listings for path in listing.dangling),
    )


class _ByName:
    """The images of one folder that was given by name."""

    def __init__(self, role: str, root: Path) -> None:
        self.role, self.root = role, root
        self.listing = list_images(root)
        meanings = _meanings(self.listing)
        folders = []
        for files in self.listing.folders:
            if files.again:
                continue
            said = [meanings[files.parts[: depth + 1]] for depth in range(len(files.parts))]
            qualities = {meaning.quality for meaning in said if meaning.certain}
            if role != "abnormal" and files.images and qualities & {"bad", "mask"}:
                raise InputError(
                    f"{role} ({root}) holds a folder {'/'.join(files.parts)}, a name for what is no good part, with "
                    f"{len(files.images)} images; move it out of there, or name the folder of good parts alone"
                )
            quality: _Quality = "mask" if "mask" in qualities else "bad" if role == "abnormal" else "good"
            folder = _Folder(files, quality, kinds=files.parts, kinds_above=files.parts[:-1])
            if quality == "mask":
                own = tuple(name for name, meaning in zip(files.parts, said, strict=True) if meaning.quality != "mask")
                folder.kinds, folder.kinds_above = own, own[:-1]
            folders.append(folder)
        self.pictures, self.masks = _apart(folders)
        if role != "abnormal":
            _pair(self.pictures, self.masks)
            for picture, mark in zip(list(self.pictures), _what_masks_mark(self.pictures), strict=True):
                if mark is not False:
                    raise InputError(
                        f"{picture.path} is among the good parts ({role}), but {picture.masks[0].path.name} beside it "
                        "marks a defect or cannot be decoded; move both to the abnormal parts, or remove the mask"
                    )

    @property
    def images(self) -> list[tuple[Path, str, None]]:
        """Path and name of each image, sorted by name."""
        ordered = sorted(self.pictures, key=lambda picture: picture.name)
        return [(picture.path, f"{self.role}/{picture.name}", None) for picture in ordered]

    def uses(self) -> list[FolderUse]:
        """Say what the folder was taken for and what was passed over."""
        what = {
            "normal": "good parts to train on",
            "normal_test": "good parts to test on",
            "abnormal": "defective parts to test on",
        }[self.role]
        beside = [FolderUse(str(self.root), "label pictures beside images", len(self.masks))] if self.masks else []
        return [FolderUse(str(self.root), what, len(self.pictures)), *beside, *_left_out(self.listing)]


def _said(name: str) -> str | None:
    meaning = meaning_of(name)
    return meaning.quality if meaning.certain else None


def existing_folder(path: str | Path, what: str) -> Path:
    """Return a folder that is there.

    Raises:
        InputError: it is missing, a file or no UTF-8; `what` says what it should be.
    """
    folder = user_path(path)
    check_recordable(folder)
    if not folder.exists():
        raise InputError(f"{folder} does not exist; expected {what}: check the name")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; expected {what}: give the folder that holds it")
    return folder
