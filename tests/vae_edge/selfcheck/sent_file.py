"""What is in a file that `vae-edge selfcheck` left to be sent."""

from __future__ import annotations

import zipfile
from pathlib import Path

from vae_edge.records import RECORD_LIMITS, parse_json
from vae_edge.selfcheck.file import JSON_NAME
from vae_edge.selfcheck.record import SelfcheckRecord


def read_file(path: Path) -> SelfcheckRecord:
    """Return the record of a file that was written completely."""
    with zipfile.ZipFile(path) as archive:
        return SelfcheckRecord.model_validate(parse_json(archive.read(JSON_NAME), RECORD_LIMITS))
