"""A data module with the attributes and columns of anomalib's, without anomalib and pandas; see tests/anomalib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from vae_edge.train.data.inspection_set import open_inspection_set

Row = dict[str, Any]


class Split(str, Enum):
    """As anomalib writes the column `split`, in some of its data modules."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Table:
    """As much of a pandas DataFrame as is used."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def to_dict(self, orient: str) -> list[Row]:
        assert orient == "records"
        return [dict(row) for row in self.rows]


class Images:
    """A data set with its table."""

    def __init__(self, rows: Iterable[Row], source: Iterable[Row] | None = None) -> None:
        self.samples = Table(rows)
        if source is not None:
            self.source_samples = Table(source)


class FakeDataModule:
    """Has its data sets only once it is set up."""

    def __init__(self, **parts: Iterable[Row] | Images) -> None:
        self.parts = parts
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str | None = None) -> None:
        self.calls.append("setup")
        for part, rows in self.parts.items():
            setattr(self, f"{part}_data", rows if isinstance(rows, Images) else Images(rows))


def row(
    path: Path, *, defect: str | None = None, mask: Path | None = None, split: object = "train", **other: Any
) -> Row:
    """Return a row of the table as anomalib's MVTecAD has it."""
    return {
        "path": str(path.parents[2]),
        "split": split,
        "label": defect or "good",
        "image_path": str(path),
        "label_index": int(defect is not None),
        "mask_path": None if mask is None else str(mask),
    }


def rows_of(root: Path) -> Mapping[str, list[Row]]:
    """Return the rows to train on and to test on of a set in MVTec AD's layout, not in order."""
    images = open_inspection_set(root)
    return {
        "train": [row(image.path, split=Split.TRAIN) for image in reversed(images.train)],
        "test": [
            row(image.path, defect=image.defect, mask=image.mask, split=Split.TEST) for image in reversed(images.test)
        ],
    }
