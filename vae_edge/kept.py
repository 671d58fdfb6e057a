"""A folder of kept pictures: what `vae-run --keep` writes, a person labels, and `verify` reads.

    KEPT/kept.jsonl     a line for each picture when it was kept: verdict, bundle, time, rules
    KEPT/unlabelled/    the pictures
    KEPT/normal/        those that a person moved there: good parts
    KEPT/anomalous/     and defective ones

The folder that a picture lies in is its label, so that any file manager can label, and nothing can say another thing
than what a person sees. Unlabelled pictures are used for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.errors import InputError
from vae_edge.picture_files.listing import is_image_file

KEPT_FILE = "kept.jsonl"
UNLABELLED, NORMAL, ANOMALOUS = "unlabelled", "normal", "anomalous"
FOLDERS = (UNLABELLED, NORMAL, ANOMALOUS)
SAMPLE_RULE = "1/"
"""How the rule begins that keeps pictures whatever their verdict is."""


@dataclass(frozen=True)
class KeptPictures:
    """The labelled pictures of a folder, each sorted by name, which begins with the time."""

    folder: Path
    normal: tuple[Path, ...]
    anomalous: tuple[Path, ...]
    sampled: frozenset[str]
    """Names of the pictures that were kept whatever their verdict was."""

    @property
    def sampled_normal(self) -> tuple[Path, ...]:
        """Good parts that represent the others: only on such a threshold may be fitted.

        Those that were kept because they score high would raise it, and defects would pass.
        """
        return tuple(path for path in self.normal if path.name in self.sampled)


def is_kept_folder(folder: Path) -> bool:
    """Tell whether a folder holds kept pictures."""
    return (folder / KEPT_FILE).is_file()


def read_kept(folder: Path) -> KeptPictures:
    """Return the labelled pictures of a folder.

    Raises:
        InputError: it cannot be read.
    """
    try:
        sampled = frozenset(
            record["name"]
            for record in kept_records(folder)
            if any(str(rule).startswith(SAMPLE_RULE) for rule in record.get("rules", ()))
        )
        labelled = {label: _pictures(folder / label) for label in (NORMAL, ANOMALOUS)}
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); check its permissions") from error
    return KeptPictures(folder, labelled[NORMAL], labelled[ANOMALOUS], sampled)


def kept_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a folder's record that are whole and are ones of `vae-run --keep`.

    Of the last one a power cut may have left a part.

    Raises:
        OSError: the file cannot be read.
    """
    with (folder / KEPT_FILE).open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(record, dict) or not isinstance(record.get("name"), str):
                continue
            if isinstance(record.get("rules", []), list):
                yield record


def sampled_normals(folder: Path) -> list[Path]:
    """Return the pictures of a folder that a threshold may be fitted on.

    Raises:
        InputError: there are none; with what to do.
    """
    kept = read_kept(folder)
    if not kept.sampled_normal:
        have = f"has {len(kept.normal)} pictures in {NORMAL}/, none of which was kept by a rule such as 1/100"
        raise InputError(
            f"{folder} {have}; a threshold may only be fitted on pictures that were kept whatever their verdict was: "
            f"keep such ones with --keep 1/N, and move the good parts among them from {UNLABELLED}/ to {NORMAL}/"
        )
    return list(kept.sampled_normal)


def labelled_anomalous(folder: Path) -> list[Path]:
    """Return the pictures of a folder that a person called anomalous.

    Raises:
        InputError: there are none.
    """
    kept = read_kept(folder)
    if not kept.anomalous:
        raise InputError(
            f"{folder} has no picture in {ANOMALOUS}/; move defective parts there from {UNLABELLED}/, or leave it out"
        )
    return list(kept.anomalous)


def _pictures(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if is_image_file(path) and not path.name.startswith(".")))
