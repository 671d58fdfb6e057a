"""The file that is sent: a ZIP with the record and a page to read it in a browser."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from vae_edge.platform.atomic import write_bytes
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
