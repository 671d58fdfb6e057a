"""Which images a benchmark times and judges with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vae_edge.benchmarks.report import DataRecord
from vae_edge.image import read_image
from vae_edge.train.data_report import check_inspection_set
from vae_edge.train.inspection_set import ImageFile, InspectionSet, open_inspection_set, resolve_data, spread
from vae_edge.train.layout import describe_uses

DEFAULT_DATA = "sample"

_JUDGED_WITHOUT_TEST = 64
"""Good parts of the training folder that outputs are compared on where there is no test set."""


@dataclass(frozen=True)
class BenchmarkImages:
    """The images, and what the report says about them."""

    timing: tuple[Path, ...]
    judged: tuple[ImageFile, ...]
    train: tuple[ImageFile, ...]
    has_labels: bool
    """Whether the judged images are test images of the very part that the bundles are for."""
    record: DataRecord


def choose_images(data: str | Path | InspectionSet | None, n_timing_images: int) -> BenchmarkImages:
    """Open and check the data, and choose from it.

    Args:
        data: a folder, `sample`, `sample:PRODUCT`, or an inspection set; None: the sample set for its pixels alone.
            Nobody said that the bundles are for its product, so no accuracy is taken from it.
        n_timing_images: images to time with, at most; evenly spread over the test images, or else the train images.

    Raises:
        InputError: the data cannot be used.
    """
    if isinstance(data, InspectionSet):
        source, opened = data.root.name, data
    else:
        text = DEFAULT_DATA if data is None else str(data)
        folder = resolve_data(text)
        opened = open_inspection_set(folder)
        source = f"sample:{folder.name}" if text.partition(":")[0] == "sample" else folder.resolve().name
    checked, found = check_inspection_set(opened)
    judged = checked.test or spread(checked.train, _JUDGED_WITHOUT_TEST)
    timing = tuple(file.path for file in spread(checked.test or checked.train, n_timing_images))
    reason: str | None = None
    if data is None:
        source += ", taken for its pixels because no data was given"
        reason = "no data was given: the sample images are not what the bundles were trained for; give --data"
    elif not checked.test:
        reason = "the data has no test images: expected test/good and test/<defect> folders"
    n_anomalous = sum(file.is_anomalous for file in checked.test)
    return BenchmarkImages(
        timing=timing,
        judged=judged,
        train=checked.train,
        has_labels=reason is None,
        record=DataRecord(
            source=source,
            n_timing_images=len(timing),
            timing_image_sizes=_sizes(timing),
            n_judged=len(judged),
            judged="test images" if checked.test else "good parts of the training images",
            n_test_normal=len(checked.test) - n_anomalous,
            n_test_anomalous=n_anomalous,
            n_with_mask=sum(file.mask is not None for file in checked.test),
            no_accuracy_because=reason,
            notes=(*describe_uses(use for use in opened.uses if not use.is_used), *found.sentences(max_names=3)[1:]),
        ),
    )


def _sizes(paths: Sequence[Path]) -> tuple[str, ...]:
    shapes = {read_image(path).shape[:2] for path in paths}
    return tuple(f"{height}x{width}" for height, width in sorted(shapes))
