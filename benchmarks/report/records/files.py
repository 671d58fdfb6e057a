"""A report's files: report.json, raw samples and pictures; writing and reading them. `html` makes its pages."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_edge.benchmarks.report.records.report import (
    HTML_FILE,
    IMAGES_FOLDER,
    MARKDOWN_FILE,
    REPORT_FILE,
    REPORT_FORMAT,
    REPORT_SCHEMA_VERSION,
    SAMPLES_FOLDER,
    BundleResult,
    Report,
    SamplesFile,
)
from vae_edge.errors import InputError
from vae_edge.platform.atomic import LOCK_FILE, check_place, write_bytes, write_text
from vae_edge.records import RECORD_LIMITS, open_regular, parse_json, parse_record, read_bounded

_COPY = "copy both again from where they were measured"

Samples = Mapping[str, Any]
"""Raw samples of one bundle; see `vae_edge.benchmarks.measure.samples`."""


def read_report(path: Path) -> Report:
    """Read a `report.json`, or the one in a folder.

    Raises:
        InputError: there is none, it is not a report, or it was written by a newer version or by one without rounds.
    """
    path = path / REPORT_FILE if path.is_dir() else path
    content = _read_json(path)
    if not isinstance(content, dict) or content.get("format") != REPORT_FORMAT:
        raise InputError(f"{path} is not a benchmark report; give a {REPORT_FILE} that vae-bench wrote")
    version = content.get("schema_version")
    if isinstance(version, int) and version < REPORT_SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema {version}: its samples were not taken in rounds, so their uncertainty is unknown; "
            "run vae-bench again"
        )
    return parse_record(
        content, path, Report, REPORT_SCHEMA_VERSION, advice="run vae-bench again", error_kind=InputError
    )


def read_samples(report_path: Path, bundle: BundleResult) -> Any:
    """Read a bundle's raw samples and check their SHA-256 against the report.

    Args:
        report_path: the report's file or folder.
        bundle: one of its rows.

    Raises:
        InputError: there are none, or they were changed.
    """
    if bundle.samples is None:
        raise InputError(f"{report_path} names no raw samples of {bundle.name}; run vae-bench again with --report")
    folder = report_path if report_path.is_dir() else report_path.parent
    path = folder / bundle.samples.name
    if not _is_sample_file(bundle.samples.name) or not path.is_file():
        raise InputError(f"{path}, the raw samples of {bundle.name}, is missing; copy the report's whole folder")
    try:
        with open_regular(path) as file:
            data = read_bounded(file, RECORD_LIMITS.size_bytes)
        if hashlib.sha256(data).hexdigest() == bundle.samples.sha256:
            return parse_json(data, RECORD_LIMITS)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}, the raw samples of {bundle.name}, cannot be read ({error}); {_COPY}") from error
    raise InputError(
        f"{path} was changed: the report gives another SHA-256 for the raw samples of {bundle.name}; {_COPY}"
    )


def samples_file(name: str, samples: Samples) -> tuple[SamplesFile, bytes]:
    """Return raw samples as the bytes of a file, and the report's record of it."""
    content = (json.dumps(samples, separators=(",", ":")) + "\n").encode()
    return SamplesFile(name=name, sha256=hashlib.sha256(content).hexdigest()), content


def check_report_folder(folder: Path) -> None:
    """Refuse, before anything is measured, a folder that holds something other than an earlier report.

    Raises:
        InputError: something else is there; the message names it.
    """
    if folder.is_dir() and (all(path.name == LOCK_FILE for path in folder.iterdir()) or _is_report(folder)):
        return
    check_place(folder.parent)
    if folder.exists() or folder.is_symlink():
        raise InputError(
            f"{folder} already exists and is not a benchmark report; choose another folder or move it away"
        )


def write_report(folder: Path, report: Report, files: Mapping[str, bytes]) -> None:
    """Write report.json and the files it names; an earlier report and its pages are replaced, nothing else.

    Args:
        folder: made if it is missing.
        report: the results.
        files: the raw samples and pictures that the report names, by their names relative to the folder.

    Raises:
        InputError: the folder holds something else or cannot be written.
    """
    check_report_folder(folder)
    old = _earlier_files(folder)
    for name, content in files.items():
        write_bytes(folder / name, content)
    # Last, so that a report.json always has its samples beside it.
    write_text(folder / REPORT_FILE, report.to_json())
    for name in old - set(files):
        (folder / name).unlink(missing_ok=True)


def sample_file_name(bundle_name: str, taken: Sequence[str]) -> str:
    """Return a unique file name for a bundle's raw samples."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", bundle_name).strip(".-") or "bundle"
    names = (f"{SAMPLES_FOLDER}/{stem}{suffix}.json" for suffix in ("", *(f"-{n}" for n in range(2, len(taken) + 3))))
    return next(name for name in names if name not in taken)


def _read_json(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            return parse_json(read_bounded(file, RECORD_LIMITS.size_bytes), RECORD_LIMITS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a benchmark report ({error}); give one that vae-bench wrote"
        ) from error


def _is_report(folder: Path) -> bool:
    try:
        content = _read_json(folder / REPORT_FILE)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("format") == REPORT_FORMAT


def _is_sample_file(name: str) -> bool:
    return re.fullmatch(rf"{SAMPLES_FOLDER}/[A-Za-z0-9_][A-Za-z0-9_.-]*\.json", name) is not None


def _earlier_files(folder: Path) -> set[str]:
    """Return the samples and pictures that an earlier report in the folder names."""
    if not folder.is_dir() or not _is_report(folder):
        return set()
    try:
        report = read_report(folder)
    except InputError:
        return set()
    samples = {bundle.samples.name for bundle in report.bundles if bundle.samples is not None}
    pictures = {f"{IMAGES_FOLDER}/{name}" for example in report.examples for name in example.pictures}
    # Pages, too: beside another report.json they would be of this one.
    return {name for name in samples if _is_sample_file(name)} | pictures | {MARKDOWN_FILE, HTML_FILE}
