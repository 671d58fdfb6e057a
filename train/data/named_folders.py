"""The layout `folders`: folders of good parts, defective parts and masks that the user gave by name."""

from __future__ import annotations

from pathlib import Path

from vae_edge.errors import InputError
from vae_edge.picture_files.listing import list_images
from vae_edge.picture_files.name_meanings import meaning_of
from vae_edge.records import check_recordable
from vae_edge.train.data.layout import FolderUse, FoundFiles, FoundImage, left_out, meanings_below
from vae_edge.train.data.masks import FolderQuality, ImageFolder, MaskFile, pair_masks, tell_apart, what_masks_mark
from vae_edge.wording import count


def find_by_name(normal: Path, normal_test: Path | None, abnormal: Path | None, masks: Path | None) -> FoundFiles:
    """Find the files of folders given by name, the layout `folders`.

    What was named is what it was named as, whatever it is called. Only a folder below one of good parts is refused
    whose name says plainly that it holds others; label pictures beside images are not images.

    Raises:
        InputError: masks without abnormal images, one folder within another, a folder below the good parts that holds
            others, or good and abnormal parts given the wrong way round.
    """
    if masks is not None and abnormal is None:
        raise InputError(f"masks were given ({masks}) without abnormal images; also pass the folder of those")
    named = [("normal", normal), ("normal_test", normal_test), ("abnormal", abnormal)]
    folders = [(role, folder, folder.resolve()) for role, folder in named if folder is not None]
    for i, (role, folder, place) in enumerate(folders):
        for other_role, other, other_place in folders[i + 1 :]:
            if place == other_place or place in other_place.parents or other_place in place.parents:
                raise InputError(f"{role} ({folder}) and {other_role} ({other}) overlap; expected separate folders")
    if abnormal is not None and [_said(normal.resolve().name), _said(abnormal.resolve().name)] == ["bad", "good"]:
        raise InputError(
            f"normal ({normal}) has a name for parts that are not good and abnormal ({abnormal}) one for good parts; "
            "swap the two, or rename the folders"
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
                mask_folder = ImageFolder(files, "mask", kinds=files.parts, kinds_above=files.parts[:-1])
                own_masks += [MaskFile(mask_folder, file) for file in files.images if not files.again]
            n = len(mask_listing.images())
            uses += [FolderUse(str(masks), "masks", n), *left_out(mask_listing)]
        pair_masks(pictures, own_masks)
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
        meanings = meanings_below(self.listing)
        folders = []
        for files in self.listing.folders:
            if files.again:
                continue
            said = [meanings[files.parts[: depth + 1]] for depth in range(len(files.parts))]
            qualities = {meaning.quality for meaning in said if meaning.certain}
            if role != "abnormal" and files.images and qualities & {"bad", "mask"}:
                raise InputError(
                    f"{role} ({root}) holds a folder {'/'.join(files.parts)}, a name for parts that are not good, with "
                    f"{count(len(files.images), 'image')}; move it elsewhere, or pass only the folder of good parts"
                )
            quality: FolderQuality = "mask" if "mask" in qualities else "bad" if role == "abnormal" else "good"
            folder = ImageFolder(files, quality, kinds=files.parts, kinds_above=files.parts[:-1])
            if quality == "mask":
                own = tuple(name for name, meaning in zip(files.parts, said, strict=True) if meaning.quality != "mask")
                folder.kinds, folder.kinds_above = own, own[:-1]
            folders.append(folder)
        self.pictures, self.masks = tell_apart(folders)
        if role != "abnormal":
            pair_masks(self.pictures, self.masks)
            for picture, mark in zip(list(self.pictures), what_masks_mark(self.pictures), strict=True):
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
        return [FolderUse(str(self.root), what, len(self.pictures)), *beside, *left_out(self.listing)]


def _said(name: str) -> str | None:
    meaning = meaning_of(name)
    return meaning.quality if meaning.certain else None
