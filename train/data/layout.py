"""Which files an inspection set is made of: good parts to train on, parts to test on, masks.

What an image is follows from the names of the folders that it lies in (`vae_edge.picture_files.name_meanings`), in any
case and at any depth, and from label pictures. So these layouts are understood, and what is arranged like them:

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
- `folders`, given by name (`vae_edge.train.data.named_folders`): `normal` for training; optionally `normal_test`,
  `abnormal` (its sub-folders are the defect classes; images directly in it belong to a class named after the folder)
  and `masks`, arranged like `abnormal`.

Another, `listed`, is not a layout: each file was named; see `vae_edge.train.data.inspection_set`.

Good parts of a `validation` folder are trained and calibrated on like those of `train`, for this package holds out its
own. An image below a name for parts that are not good, or for masks, is never trained on. If it is not clear what an
image is, and nothing says which images to train on, the set is refused with the options that would decide it. So it is
where somebody seems to have sorted the images by names that do not say good or bad (`scratch`, `positive` beside
`negative`, `0` beside `1`), or has written annotations that are not pictures and are not read.

A mask has its image's name (`0.png`) or a longer one (`0_mask.png`, `0-GT.bmp`, `0_label2.png`), or lies in a folder of
that name (`000/0.png`); several are united. Files are listed by the rule of `vae_edge.picture_files.listing`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from vae_edge.errors import InputError
from vae_edge.picture_files.listing import FolderFiles, Listing, count_images, list_images
from vae_edge.picture_files.name_meanings import Meaning, masked_stem, meaning_of, with_siblings
from vae_edge.platform.outside import user_path
from vae_edge.records import check_recordable
from vae_edge.train.data.masks import (
    FolderQuality,
    ImageFolder,
    Picture,
    find_annotations,
    find_unnamed_masks,
    pair_masks,
    tell_apart,
    what_masks_mark,
)
from vae_edge.wording import count, verb

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
    """Broken links."""


def find_below(root: Path, *, can_name_folders: bool = True) -> FoundFiles:
    """Find the files below one folder.

    Args:
        root: the folder.
        can_name_folders: whether whoever asked has `--normal` and its like, which messages then advise.

    Raises:
        InputError: the folder holds several products, or it is not clear what its images are; or a folder in it cannot
            be read.
    """
    return _Search(root, can_name_folders).result()


class _Search:
    """The images below one folder, on their way to being told apart."""

    def __init__(self, root: Path, can_name_folders: bool) -> None:
        self.root = root
        self.can_name_folders = can_name_folders
        self.listing = list_images(root)
        self.meanings = meanings_below(self.listing)
        self.folders = [self._judged(files) for files in self.listing.folders if files.images]
        self.uses: list[FolderUse] = []
        self.pictures, self.masks = tell_apart(self.folders)
        pair_masks(self.pictures, self.masks)
        self._settle_uncertain_masks()

    def result(self) -> FoundFiles:
        self._refuse_root_name()
        self._refuse_products()
        says_something = any(folder.quality not in (None, "perhaps good") or folder.part for folder in self.folders)
        # OK_lens beside scratch: somebody has sorted them.
        says_something |= {None, "perhaps good"} <= {folder.quality for folder in self.folders}
        says_something |= any(folder.is_class for folder in self.folders)
        labelled = self._is_labelled()
        train: list[Picture] = []
        test: list[tuple[Picture, str | None]] = []
        has_test = any(folder.part == "test" and folder.quality != "mask" for folder in self.folders)
        is_established = (
            any(folder.quality == "good" and folder.part == "train" for folder in self.folders)
            or (self.root / "train" / "good").is_dir()
        )
        unclear: list[ImageFolder] = []
        by_folder: dict[int, list[Picture]] = defaultdict(list)
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
                    self._pass_over(folder, "its name does not show clearly what it contains", n)
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
                    "it is unknown which of them are good; put them into test/good and test/DEFECT to test on them",
                    n,
                )
            elif is_established or folder.part == "validation":
                self._pass_over(folder, "it is unknown whether they are good", n)
            else:
                unclear.append(folder)
        if unclear:
            raise self._unclear(unclear)
        self._refuse_names(train)
        self._refuse_conflicts(train, test)
        if not says_something and not labelled:
            self._refuse_annotations()
            self._refuse_masks_among(train)
        return self._found(train, test, says_something=says_something, labelled=labelled)

    def _judged(self, files: FolderFiles) -> ImageFolder:
        """Put together what the names on the way to a folder say."""
        folder = ImageFolder(files, decided_by=files.parts)
        kinds: list[str] = []
        meanings = [self.meanings[files.parts[: depth + 1]] for depth in range(len(files.parts))]
        for meaning in meanings:
            if meaning.part is not None and folder.part != "test":
                folder.part = meaning.part
            if meaning.quality == "mask" and folder.quality != "mask":
                folder.is_certain_mask = meaning.certain
            folder.quality = _combined(folder.quality, meaning, in_test=folder.part == "test")
            folder.is_class |= meaning.is_class
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
                    self.pictures += [Picture(folder, mask.path.name) for mask in own]

    def _is_labelled(self) -> bool:
        """Return whether label pictures say which images are good: names do not, and images have some."""
        return any(picture.masks and _waits_for_label(picture.folder) for picture in self.pictures)

    def _by_label(
        self, folder: ImageFolder, pictures: Sequence[Picture], *, has_test: bool
    ) -> tuple[list[Picture], list[Picture]]:
        """Tell good and defective parts apart by whether their label pictures mark something."""
        marks = what_masks_mark(pictures)
        place = folder.files.path
        lies_among = any(mask.folder.files.path.parent == place for picture in pictures for mask in picture.masks)
        good: list[Picture] = []
        bad: list[Picture] = []
        nameless: list[Picture] = []
        broken: list[Picture] = []
        for picture, mark in zip(pictures, marks, strict=True):
            if not picture.masks:
                (good if lies_among else nameless).append(picture)
            elif isinstance(mark, InputError):
                broken.append(picture)
            else:
                (bad if mark else good).append(picture)
        to_test = folder.part == "test"
        if good:
            how = "their label pictures are empty or missing" if lies_among else "their label pictures are empty"
            self._use(folder, f"good parts to {'test' if to_test else 'train'} on: {how}", len(good))
        if bad and folder.part == "train" and has_test:
            self._pass_over(folder, "defective parts by their label pictures among those to train on", len(bad))
            bad = []
        elif bad:
            self._use(folder, "defective parts to test on, by their label pictures", len(bad))
        if nameless:
            self._pass_over(folder, "they have no label picture, but others do", len(nameless))
        if broken:
            self._pass_over(
                folder, f"their label pictures cannot be decoded ({broken[0].masks[0].path.name})", len(broken)
            )
        return good, bad

    def _without_marked(self, folder: ImageFolder, pictures: list[Picture]) -> list[Picture]:
        """Leave out images of good parts whose masks mark something all the same."""
        marks = what_masks_mark(pictures)
        good = [picture for picture, mark in zip(pictures, marks, strict=True) if mark is False]
        if len(good) < len(pictures):
            first = next(picture for picture, mark in zip(pictures, marks, strict=True) if mark is not False)
            self._pass_over(
                folder,
                f"good according to the folder name, but a mask marks something or cannot be decoded ({first.file})",
                len(pictures) - len(good),
            )
        what = (
            "good parts of validation, to train and calibrate on"
            if folder.part == "validation"
            else ("good parts to train on")
        )
        self._use(folder, what, len(good))
        return good

    def _use(self, folder: ImageFolder, use: str, n: int) -> None:
        self.uses.append(FolderUse(folder.name, use, n))

    def _pass_over(self, folder: ImageFolder, why: str, n: int) -> None:
        self.uses.append(FolderUse(folder.name, why, n, is_used=False))

    def _found(
        self, train: list[Picture], test: list[tuple[Picture, str | None]], *, says_something: bool, labelled: bool
    ) -> FoundFiles:
        root = self.root
        train_folder = root / "train" / "good" if (root / "train" / "good").is_dir() else root
        if not train and labelled:
            raise InputError(
                f"no label picture in {root} is empty, so none of its images shows a good part "
                f"({'; '.join(self._described())}); add good parts with empty label pictures"
                + (f", or pass a folder of good parts: --normal DIR --abnormal {root}" if self.can_name_folders else "")
            )
        if not train and train_folder == root and says_something:
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
        self.uses += left_out(self.listing)
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
                    f"{self.root} is called {name}, a name for {what}, and does not show which images are good "
                    f"parts; if all of them are, {self._all_good_fix(self.root)}"
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
            f"{self.root} has one folder per product ({shown}); expected one product, for example "
            f"{self.root / names[0]}"
        )

    def _unclear(self, folders: Sequence[ImageFolder]) -> InputError:
        counts = Counter(picture.folder.name for picture in self.pictures)
        named = [f"{folder.name} ({count(counts[folder.name], 'image')})" for folder in folders]
        shown = ", ".join(named[:_NAMED_FOLDERS]) + (
            f" and {len(named) - _NAMED_FOLDERS} more" if named[_NAMED_FOLDERS:] else ""
        )
        known = "; ".join(self._described())
        all_good = "" if known or len(folders) < 2 else f" If all of them do, {self._all_good_fix(self.root)}."
        return InputError(
            f"{self.root}: it is unclear whether these contain good parts: {shown}"
            f"{f'. Recognized: {known}' if known else ''}.{all_good} {self._advice(folders)}"
        )

    def _described(self) -> list[str]:
        uses = [
            *self.uses,
            *(FolderUse(name, "masks", n) for name, n in Counter(m.folder.name for m in self.masks).items()),
        ]
        return describe_uses([use for use in uses if use.use != "masks" or use.n], most=8)

    def _all_good_fix(self, folder: Path | str) -> str:
        """Return what to do if all images in a folder show good parts; follows `if all show good parts`."""
        if self.can_name_folders:
            return f"pass --normal {folder}"
        return "move them into a folder called good"

    def _advice(self, unclear: Sequence[ImageFolder] = ()) -> str:
        """Say with the folders that are there how to name them."""
        if not self.can_name_folders:
            return "Move the good parts into a folder called good and the others into one called NG, or out of it."

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
            f"Pass the folders by name instead: --normal {normal[0] if normal else 'DIR'}"
            f"{f' --normal-test {tested[0]}' if tested else ''}"
            f" --abnormal {abnormal[0] if abnormal else 'DIR'} (the last one only if you have defective parts to "
            "test on)"
        )
        if any(not folder.parts for folder in unclear):
            return (
                f"Move the images that lie directly in {self.root} into a folder called good, if they show good parts, "
                f"or out of it. Or: {sentence[0].lower()}{sentence[1:]}"
            )
        return f"{sentence}; or move anything that is not a part out of {self.root}"

    def _refuse_names(self, train: Sequence[Picture]) -> None:
        """Refuse files to train on whose own names speak of defects or masks; in a folder called good, only say it."""
        said: dict[bool, list[Picture]] = {True: [], False: []}
        perhaps = []
        good = []
        for picture in train:
            meaning = _meaning_of_file(picture)
            is_named_good = picture.folder.quality == "good"
            if (
                meaning.is_class
                or masked_stem(picture.stem) is not None
                or (meaning.quality in ("bad", "mask", "mixed") and (meaning.certain or meaning.quality == "mixed"))
            ):
                said[is_named_good].append(picture)
            elif meaning.quality == "bad" and not is_named_good:
                perhaps.append(picture)
            elif meaning.quality == "good" and meaning.certain and not is_named_good:
                good.append(picture)
        # A word that all of them have is part of the product's name.
        words = [{*_meaning_of_file(picture).kind.split("-")} for picture in perhaps]
        shared = set.intersection(*words) if words and len(perhaps) == len(train) else set()
        is_product = any(not word.isdecimal() for word in shared)
        bad = [*said[False], *([] if is_product else perhaps)]
        if bad:
            raise InputError(
                f"{len(bad)} of the {len(train)} images to train on in {self.root} "
                f"{verb(len(bad), 'is', 'are')} named like defective parts or "
                f"masks ({_first_names(bad)}); move those that are into a separate folder, such as NG or masks, "
                f"or, if all show good parts, {self._all_good_fix(_common(self.root, train))}"
            )
        silent = [picture for picture in train if picture.folder.quality != "good"] if good else []
        if len(good) < len(silent):
            others = {picture.name for picture in good}
            silent = [picture for picture in silent if picture.name not in others]
            raise InputError(
                f"{len(good)} of the images in {self.root} {verb(len(good), 'is', 'are')} "
                f"named like good parts ({_first_names(good)}), and "
                f"{len(silent)} are not ({_first_names(silent)}); move the good ones into a folder called good and the "
                f"others out of it, or, if all show good parts, {self._all_good_fix(_common(self.root, train))}"
            )
        if said[True]:
            use = (
                f"named like defective parts or masks ({_first_names(said[True])}), but used for training because of "
                "the folder name"
            )
            self.uses.append(FolderUse(said[True][0].folder.name, use, len(said[True])))

    def _refuse_annotations(self) -> None:
        """Refuse images beside files that may say which of them show defects, where nothing else says it."""
        found = find_annotations([files for files in self.listing.folders if not files.again])
        if found is not None:
            raise InputError(
                f"{found} looks like annotations, so some of the images in {self.root} may show defects, and "
                "annotations that are not pictures are not read; move the good parts into a folder called good and the "
                f"others into one called NG, or, if all show good parts, {self._all_good_fix(self.root)}"
            )

    def _refuse_masks_among(self, train: Sequence[Picture]) -> None:
        """Refuse pictures of two values among others, where no name says that they are masks."""
        masks, of_all = find_unnamed_masks(train)
        if masks and not of_all:
            raise InputError(
                f"{_first_names(masks)} in {self.root} {verb(len(masks), 'looks', 'look')} like masks of defects "
                "(black and one other value), and other images do not; move masks into a folder called masks, and the "
                f"images that they belong to into NG, or, if all show good parts, "
                f"{self._all_good_fix(_common(self.root, train))}"
            )

    def _refuse_conflicts(self, train: list[Picture], test: Sequence[tuple[Picture, str | None]]) -> None:
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
                    f"{picture.path} would be trained on, and is a link to {real}, which is not among good parts; "
                    "remove the link"
                    + (", or name the folders: --normal DIR --abnormal DIR" if self.can_name_folders else "")
                )
            if not (files.again and key in again):
                kept.append(picture)
        train[:] = kept


def _combined(was: FolderQuality | None, meaning: Meaning, *, in_test: bool) -> FolderQuality | None:
    """Return what a folder is, from what the folders above it are and its own name says."""
    quality = meaning.quality
    if meaning.is_class and was in ("good", "perhaps good") and not in_test:
        return "unclear"
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


def _waits_for_label(folder: ImageFolder) -> bool:
    """Return whether only a label picture can say what a folder's images are."""
    return folder.quality in (None, "perhaps good") and not (folder.part == "test" and folder.defect)


def meanings_below(listing: Listing) -> dict[tuple[str, ...], Meaning]:
    """Return what the name of each folder says, beside the others in the same folder."""
    beside: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for folder in listing.folders:
        if folder.parts:
            beside[folder.parts[:-1]].append(folder.parts[-1])
    return {
        (*above, name): meaning for above, names in beside.items() for name, meaning in with_siblings(names).items()
    }


def _meaning_of_file(picture: Picture) -> Meaning:
    """Return what a file's name says; which number it has is all one, so that a hundred thousand are few names."""
    return meaning_of(re.sub(r"\d+", "0", picture.stem))


def left_out(listing: Listing) -> list[FolderUse]:
    """Say what the listing left out by its rule."""
    root = listing.root
    uses = [
        FolderUse(path.relative_to(root).as_posix(), "left-over or hidden", count_images(path), is_used=False)
        for path in listing.leftovers
    ]
    for paths, why in ((listing.dangling, "broken links"), (listing.special, "pipes or devices")):
        by_folder = Counter(path.parent.relative_to(root).as_posix() for path in paths)
        first = {path.parent.relative_to(root).as_posix(): path.name for path in reversed(paths)}
        uses += [FolderUse(name, f"{why} ({first[name]})", n, is_used=False) for name, n in sorted(by_folder.items())]
    hidden = [FolderUse("/".join(f.parts) or ".", "hidden files", f.n_hidden, is_used=False) for f in listing.folders]
    return [*uses, *(use for use in hidden if use.n)]


def describe_uses(uses: Iterable[FolderUse], most: int = 40) -> list[str]:
    """Describe in one line per folder how its images are used; many folders with the same use share a line."""
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
            n = count(sum(counts), "image") if counts else "cannot be read"
            lines.append(f"{places}: {n}, {'' if is_used else 'skipped: '}{what}")
    rest = len(lines) - most
    return [*lines[:most], *([f"and {rest} more folders"] if rest > 0 else [])]


def _first_names(pictures: Sequence[Picture]) -> str:
    return ", ".join(picture.name for picture in pictures[:3]) + (", ..." if len(pictures) > 3 else "")


def _common(root: Path, pictures: Sequence[Picture]) -> Path:
    """Return the folder that all the images lie in or below."""
    parts = [picture.folder.parts for picture in pictures]
    n = next((i for i, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1), min(map(len, parts)))
    return root.joinpath(*parts[0][:n])


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
        raise InputError(f"{folder} is a file; expected {what}: pass the folder that contains it")
    return folder
