"""The file that is sent: a ZIP with the record and a page to read it in a browser."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from vae_edge.errors import InputError
from vae_edge.platform.atomic import write_bytes
from vae_edge.records import RECORD_LIMITS, parse_json
from vae_edge.selfcheck.page import page
from vae_edge.selfcheck.record import SelfcheckRecord

JSON_NAME, PAGE_NAME = "selfcheck.json", "selfcheck.html"


def write_file(path: Path, record: SelfcheckRecord) -> None:
    """Write the file, completely or not at all; an older one is replaced.

    Raises:
        InputError: it cannot be written.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(JSON_NAME, record.model_dump_json(indent=1) + "\n")
        archive.writestr(PAGE_NAME, page(record))
    write_bytes(path, content.getvalue())


def read_file(path: Path) -> SelfcheckRecord:
    """Read the record of a file.

    Raises:
        InputError: it is not one of these files, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return SelfcheckRecord.model_validate(parse_json(archive.read(JSON_NAME), RECORD_LIMITS))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a file of vae-edge selfcheck, or is damaged ({error})") from error
