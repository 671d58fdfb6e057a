"""Where images come from: a folder, folders by name, the synthetic sample set, or an anomalib data module.

`DataSource` is what a run records. From a data module only the names of the files are taken.

anomalib (2.x) is not imported: any object will do whose `setup` leaves `train_data`, `test_data` and perhaps `val_data`
with a table `samples` of the columns `image_path`, `label`, `label_index` (0 normal, 1 abnormal), `mask_path` and
`split`. Only the names of the files are taken: images are decoded, resized and divided into roles by this package, the
same way as from a folder. So a data module's augmentations, batch sizes and workers have no effect.

What becomes of the images:

- Normal ones of `train_data` are those to train on. Abnormal ones among them are left out, and it is said how many.
- All of `test_data` are test images. An image's defect class is its `label`; where that is no more than "abnormal", as
  in a `Folder`, it is the name of the folder that the image lies in.
- Validation images go back to where they came from, as their `split` says, for this package holds out its own: those
  from the test images are test images, and normal ones from the images to train on, or from a folder of their own, are
  to train on. Abnormal ones of a folder of their own are test images.
- Defects that anomalib painted itself (`synthetic`) are files that vanish with the data module: the normal images that
  they were painted on are taken instead.
- Images without a label are left out.

A data module that divides at random should have a seed where several processes train together: each asks its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from vae_edge.cache.folders import sample_cache_folder
from vae_edge.errors import InputError, UsageError
from vae_edge.platform.outside import user_path
from vae_edge.platform.work import Progress
from vae_edge.records import Record, check_recordable
from vae_edge.train.data.inspection_set import (
    InspectionSet,
    ListedFiles,
    ListedImage,
    by_place,
    open_inspection_set,
    with_more_normals,
)
from vae_edge.wording import count, verb


def resolve_data(text: str, cache_folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Turn what a user writes after `--data` into a folder.

    Args:
        text: a folder's path; or `sample` or `sample:PRODUCT` for a synthetic set that is written once into the cache
            (a folder of that name is reached as `./sample`).
        cache_folder: where sample sets are kept; default: `vae_edge.cache.folders.sample_cache_folder()`.
        progress: called with sample images written and their total.

    Raises:
        InputError: the product is not known, or the cache cannot be written.
    """
    word, _, product = text.partition(":")
    if word != "sample":
        return user_path(text)
    from vae_edge.train.sample import (
        DEFAULT_PRODUCT,  # only needed here
        PRODUCTS,  # only needed here
        SAMPLE_VERSION,  # only needed here
        write_sample_set,  # only needed here
    )

    product = product or DEFAULT_PRODUCT
    if product not in PRODUCTS:
        raise UsageError(f"there is no sample product {product!r}; expected one of {', '.join(PRODUCTS)}")
    # The version is in the name: a set that another version drew is not taken for this one's.
    folder = (cache_folder or sample_cache_folder()) / f"v{SAMPLE_VERSION}"
    return write_sample_set(folder, products=[product], progress=progress)[0]


class DataSource(Record):
    """Where the images are: a folder (or `sample`, `sample:PRODUCT`), folders by name, or a list of files.

    With each of them, `more_normals` adds good parts that were kept on a device.
    """

    root: str | None = None
    normal: str | None = None
    normal_test: str | None = None
    abnormal: str | None = None
    masks: str | None = None
    listed: ListedFiles | None = None
    """Each file by name; given instead of the folders above."""
    more_normals: str | None = None
    """Folder of kept pictures: those labelled as normal train the network, too, and set neither scale nor threshold."""

    def absolute(self) -> DataSource:
        """Return the same source with absolute paths, so that a run can resume from another working folder."""
        folders = ("root", "normal", "normal_test", "abnormal", "masks", "more_normals")
        changed: dict[str, Any] = {name: _absolute(getattr(self, name)) for name in folders}
        if self.listed is not None:
            changed["listed"] = self.listed.at(Path(self.listed.root).absolute())
        return self.model_copy(update=changed)

    def moved_to(self, root: str | Path) -> DataSource:
        """Return the source of the same images where they were moved to `root`.

        A list stays one where its first file is found below `root`; elsewhere the folder is searched.
        """
        if self.listed is not None and (listed := self.listed.at(root)).is_there:
            return DataSource(listed=listed, more_normals=self.more_normals)
        return DataSource(root=str(root), more_normals=self.more_normals)

    def open(self, progress: Progress | None = None, *, can_name_folders: bool = True) -> InspectionSet:
        """List and hash the images; see `open_inspection_set`, `resolve_data` and `ListedFiles.open`.

        Raises:
            InputError: see there.
        """
        if self.listed is not None:
            found = self.listed.open(progress)
        else:
            found = open_inspection_set(
                None if self.root is None else resolve_data(self.root),
                normal=self.normal,
                normal_test=self.normal_test,
                abnormal=self.abnormal,
                masks=self.masks,
                can_name_folders=can_name_folders,
                progress=progress,
            )
        return found if self.more_normals is None else with_more_normals(found, user_path(self.more_normals), progress)


def _absolute(text: str | None) -> str | None:
    if text is None or text == "sample" or text.startswith("sample:"):
        return text
    return str(user_path(text).absolute())


_NORMAL, _ABNORMAL = 0, 1
_NAMELESS = "abnormal"


def source_of(data: Any) -> DataSource:
    """Return where images are.

    Args:
        data: a folder or `sample` or `sample:PRODUCT`; a data module; or a `DataSource`, which is returned as it is.

    Raises:
        InputError: it is not one of these, or see `list_images`.
    """
    if isinstance(data, DataSource):
        return data
    if isinstance(data, str | os.PathLike):
        return DataSource(root=os.fspath(data))
    if callable(getattr(data, "setup", None)):
        return DataSource(listed=list_images(data))
    raise InputError(
        f"the data is a {type(data).__name__}; expected a folder, 'sample', 'sample:PRODUCT', a DataSource or an "
        "anomalib data module"
    )


def list_images(datamodule: Any) -> ListedFiles:
    """List the images that a data module names; nothing is decoded.

    Args:
        datamodule: of anomalib, or like it. If it has not been set up its `prepare_data` is called, which may download,
            and its `setup`; otherwise it is taken as it is.

    Raises:
        InputError: it is another kind of data module, or names no normal image to train on.
        Exception: whatever the data module itself raises.
    """
    name = type(datamodule).__name__
    if not hasattr(datamodule, "train_data"):
        datamodule.prepare_data()
        datamodule.setup("fit")
    tables = {part: _rows(getattr(datamodule, f"{part}_data", None)) for part in ("train", "test", "val")}
    if tables["train"] is None:
        raise InputError(
            f"{name} has no train_data.samples after setup; expected an anomalib data module of images: pass one, or "
            "the folder of the images"
        )
    roles: dict[Path, tuple[bool, dict[str, Any]]] = {}
    n_abnormal = n_unlabelled = n_validation = n_back = 0
    for part, table in tables.items():
        for row in table or ():
            path = Path(row["image_path"]).absolute()
            label = _label(row)
            to_train = part == "train" or (part == "val" and label == _NORMAL and _split(row) != "test")
            if path in roles:
                continue  # Validation images may be the test images themselves.
            if label is None:
                n_unlabelled += 1
            elif part == "train" and label == _ABNORMAL:
                n_abnormal += 1
            else:
                roles[path] = to_train, row
                n_validation += part == "val"
                n_back += part == "val" and to_train
    if not any(to_train for to_train, _ in roles.values()):
        raise InputError(
            f"{name} has no normal image to train on ({n_abnormal} abnormal, {n_unlabelled} without a label); "
            "expected images of good parts with label_index 0 in its train_data"
        )
    remarks = []
    if n_abnormal:
        remarks.append(
            f"{count(n_abnormal, 'abnormal image')} in the training "
            f"data of {name} {verb(n_abnormal, 'is', 'are')} left out"
        )
    if n_unlabelled:
        remarks.append(
            f"{count(n_unlabelled, 'image')} without a label in {name} {verb(n_unlabelled, 'is', 'are')} left out"
        )
    if n_validation:
        remarks.append(
            f"{count(n_validation, 'validation image')} of {name} "
            f"{verb(n_validation, 'is returned to its', 'are returned to their')} origin, {n_back} to the training "
            f"images and {n_validation - n_back} to the test images, because vae-edge holds out its own"
        )
    return _listed(name, roles, tuple(remarks))


def _rows(dataset: Any) -> list[dict[str, Any]] | None:
    """Return a data set's table as rows; of one with painted defects the table of what they were painted on."""
    table = getattr(dataset, "source_samples", None)
    if table is None:
        table = getattr(dataset, "samples", None)
    if table is None or not callable(getattr(table, "to_dict", None)):
        return None
    rows: list[dict[str, Any]] = table.to_dict("records")
    return rows


def _label(row: dict[str, Any]) -> int | None:
    """Return 0 or 1; None for anything else, such as anomalib's -1 and pandas' missing values."""
    try:
        number = int(row["label_index"])
    except (KeyError, TypeError, ValueError):
        return None
    return number if number in (_NORMAL, _ABNORMAL) else None


def _split(row: dict[str, Any]) -> str:
    split = row.get("split")
    return str(getattr(split, "value", split)).lower()


def _defect(path: Path, row: dict[str, Any]) -> str | None:
    if _label(row) == _NORMAL:
        return None
    label = row.get("label")
    label = getattr(label, "value", label)
    return label if isinstance(label, str) and label.lower() not in ("", _NAMELESS) else path.parent.name


def _masks(row: dict[str, Any]) -> list[Path]:
    """Return where an image's masks are; MVTec LOCO's rows have several."""
    given = row.get("mask_path")
    several = list(given) if isinstance(given, list | tuple) else [given]
    if _label(row) == _NORMAL:
        return []
    return [Path(mask).absolute() for mask in several if isinstance(mask, str | PurePath) and str(mask)]


def _listed(name: str, roles: Mapping[Path, tuple[bool, dict[str, Any]]], remarks: tuple[str, ...]) -> ListedFiles:
    images, masks = [], []
    for path, (to_train, row) in roles.items():
        check_recordable(path)
        own = _masks(row)
        masks += own
        images.append((to_train, path, _defect(path, row), own))
    try:
        root = Path(os.path.commonpath([path.parent for path in (*roles, *masks)]))
    except ValueError as error:
        raise InputError(f"the images of {name} are on several drives; expected one: copy them together") from error

    def below(path: Path) -> str:
        return path.relative_to(root).as_posix()

    listed = [
        (
            to_train,
            ListedImage(
                path=below(path),
                defect=defect,
                mask=below(own[0]) if own else None,
                further_masks=tuple(map(below, own[1:])),
            ),
        )
        for to_train, path, defect, own in images
    ]
    listed.sort(key=lambda each: by_place(each[1].path))
    return ListedFiles(
        root=str(root),
        train=tuple(image for to_train, image in listed if to_train),
        test=tuple(image for to_train, image in listed if not to_train),
        given_by=name,
        remarks=remarks,
    )
