"""The file of a bundle's manifest: as it is written, and read with every check that needs nothing but the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vae_edge.decision import check_thresholds
from vae_edge.errors import BundleError
from vae_edge.manifest import (
    MANIFEST_FILE,
    MANIFEST_LIMITS,
    MAX_OTHER_VALUES,
    NEVER_VERIFIED,
    SCHEMA_VERSION,
    Manifest,
    manifest_digest,
)
from vae_edge.records import check_n_values, open_regular, parse_json, parse_record, read_bounded

_ADVICE = "copy or export the bundle again"

_WROTE_SCHEMA = {1: r"0\.[01](\.|$)", 2: r"0\.[0-2](\.|$)"}
"""The versions of vae-edge that wrote an older schema."""

_LATER_FIELDS = ("references", "verified_by", "gate")
"""What no manifest of an older schema has."""


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest as it is written, with its digest: JSON with a line for each value.

    A manifest of an older schema stays one. One of the first was read from a bundle that has no digest, and adding one
    now would vouch for content that was never checked.
    """
    later = set(_LATER_FIELDS) if manifest.schema_version < 3 else set()
    if manifest.schema_version == 1:
        return manifest.model_dump_json(indent=2, exclude={"digest", *later}) + "\n"
    content = json.loads(manifest.model_dump_json(exclude=later))
    digest = manifest_digest(content)
    return manifest.model_copy(update={"digest": digest}).model_dump_json(indent=2, exclude=later) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle and check that it is the one that was written.

    One of the first schema has no digest to check, and one of the second no references. It is returned as not verified,
    whatever it claims.

    Raises:
        BundleError: there is none, it is damaged, or it was changed or made newer or older than it is.
    """
    return parse_manifest(manifest_bytes(folder), folder / MANIFEST_FILE)


def manifest_bytes(folder: Path) -> bytes:
    """Read the bytes of a bundle's manifest.

    Raises:
        BundleError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST_FILE
    try:
        with open_regular(path, links=False) as file:
            return read_bounded(file, MANIFEST_LIMITS.size_bytes)
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is not a bundle: there is no {MANIFEST_FILE} in it; pass a folder made by vae-export"
        ) from None
    except NotADirectoryError:
        raise BundleError(f"{folder} is a file, not a bundle; pass a folder made by vae-export") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); {_ADVICE}") from error


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Return the manifest that some bytes are; see `read_manifest`.

    Args:
        data: the content of the file.
        path: the file, for messages.
    """
    try:
        content = parse_json(data, MANIFEST_LIMITS)
        check_n_values(data, MAX_OTHER_VALUES + _n_scores(content))
    except ValueError as error:
        raise BundleError(f"{path} cannot be read ({error}); {_ADVICE}") from error
    if not isinstance(content, dict) or type(content.get("schema_version")) is not int:
        raise BundleError(f"{path} is damaged: it has no integer schema_version; {_ADVICE}")
    manifest = parse_record(content, path, Manifest, SCHEMA_VERSION, advice=_ADVICE)
    if manifest.schema_version > 1 and manifest.digest != manifest_digest(content):
        raise BundleError(f"{path} was changed: its digest does not match its content; {_ADVICE}")
    if manifest.schema_version in NEVER_VERIFIED:
        manifest = _of_older_schema(manifest, path)
    check_thresholds_of(manifest, path)
    return manifest


def check_thresholds_of(manifest: Manifest, path: Path) -> None:
    """Refuse a manifest whose thresholds do not follow from its scores.

    Raises:
        BundleError: with what does not fit.
    """
    try:
        check_thresholds(manifest.thresholds)
    except ValueError as error:
        raise BundleError(f"{path} was changed: {error}; {_ADVICE}") from error


def _n_scores(content: Any) -> int:
    """Return the length of the one list in a manifest that may be long."""
    thresholds = content.get("thresholds") if isinstance(content, dict) else None
    scores = thresholds.get("calibration_scores") if isinstance(thresholds, dict) else None
    return len(scores) if isinstance(scores, list) else 0


def _of_older_schema(manifest: Manifest, path: Path) -> Manifest:
    """Return a manifest of an older schema, which has too little in it to be verified, as not verified.

    Raises:
        BundleError: it is a later one, stripped down.
    """
    schema, version = manifest.schema_version, manifest.provenance.vae_edge_version
    has_later = manifest.digest is not None and schema == 1
    if has_later or not re.match(_WROTE_SCHEMA[schema], version):
        raise BundleError(
            f"{path} was changed: it has schema {schema} but was written by vae-edge {version!r} with a later one; "
            f"{_ADVICE}"
        )
    reason, why = manifest.not_verified_because, NEVER_VERIFIED[schema]
    if reason is None or why not in reason:
        reason = why if reason is None else f"{reason}; and {why}"
    return manifest.model_copy(update={"verified": False, "not_verified_because": reason})
