"""Images that an anomalib data module names, for this package to train on.

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

from vae_edge.errors import InputError
from vae_edge.records import check_recordable
from vae_edge.train.listed_files import ListedFiles, ListedImage, by_place
from vae_edge.train.run_records import DataSource

_NORMAL, _ABNORMAL = 0, 1
_NAMELESS = "abnormal"


def source_of(data: Any) -> DataSource:
    """Return where images are.

    Args:
        data: a folder or `sample` or `sample:PRODUCT`; a data module; or a `DataSource`, which is returned as it is.

    Raises:
        InputError: it is none of these, or see `list_images`.
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
            f"{name} has no train_data.samples after setup; expected an anomalib data module of images: give one, or "
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
            f"{name} names no normal image to train on ({n_abnormal} abnormal, {n_unlabelled} without a label); "
            "expected images of good parts with label_index 0 in its train_data"
        )
    remarks = []
    if n_abnormal:
        remarks.append(f"{n_abnormal} abnormal images among those that {name} trains on are left out")
    if n_unlabelled:
        remarks.append(f"{n_unlabelled} images that {name} has no label for are left out")
    if n_validation:
        remarks.append(
            f"{n_validation} validation images of {name} go back to where they came from, {n_back} to the images to "
            f"train on and {n_validation - n_back} to the test images; this program holds out its own"
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
