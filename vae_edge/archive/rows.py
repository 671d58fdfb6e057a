"""Rows of results: what the lines of vae-run hold, with the picture's id and size, as a Parquet file for each part."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vae_edge.errors import InputError
from vae_edge.sources.pictures import Picture

COLUMNS: Final[Mapping[str, str]] = {
    "id": "string",
    "source": "string",
    "verdict": "string",
    "is_anomalous": "bool",
    "score": "double",
    "p_value": "double",
    "threshold": "double",
    "false_alarm_rate": "double",
    "n_anomalous_pixels": "int64",
    "anomalous_area": "double",
    "not_inspectable_because": "list<string>",
    "error": "string",
    "width": "int32",
    "height": "int32",
    "part": "int32",
}
"""Names and types (Arrow's) of the columns, always all of them; what a picture does not have is null."""

BUNDLE_KEY, BUNDLE_HASH_KEY, VERSION_KEY = "vae_edge.bundle", "vae_edge.bundle_sha256", "vae_edge.version"
"""In the metadata of every file."""


def row_of(name: str, picture: Picture, record: Mapping[str, Any], part: int) -> dict[str, Any]:
    """Return the row of a picture.

    Args:
        name: its id.
        picture: as it was judged.
        record: what vae-run would write about it; see `vae_edge.sinks.sink.record_of`.
        part: number of the part.
    """
    size: dict[str, int] = {}
    if not isinstance(picture.image, InputError):
        size = {"width": picture.image.shape[1], "height": picture.image.shape[0]}
    row = {**record, "id": name, **size, "part": part}
    return {column: _storable(row.get(column)) for column in COLUMNS}


def to_parquet(rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a Parquet file (Zstandard, one row group) with the rows in their order."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist(list(rows), schema=arrow_schema(metadata))
    content = io.BytesIO()
    parquet.write_table(table, content, compression="zstd")
    return content.getvalue()


def count_rows(file: Any) -> Counter[str]:
    """Count the rows of an open file that `to_parquet` made: by verdict, and those with an error as `error`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or another Parquet file.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        if "verdict" not in opened.schema_arrow.names:
            raise ValueError("it has no column of verdicts")
        verdicts = opened.read(["verdict"], use_threads=False).column(0)
    return Counter("error" if verdict is None else verdict for verdict in verdicts.to_pylist())


def arrow_schema(metadata: Mapping[str, str]) -> Any:
    """Return the `pyarrow.Schema` of the files."""
    import pyarrow as pa

    kinds = {"list<string>": pa.list_(pa.string())}
    fields = [(name, kinds.get(kind) or pa.type_for_alias(kind)) for name, kind in COLUMNS.items()]
    return pa.schema(fields, metadata=dict(metadata))


def _storable(value: Any) -> Any:
    """Write the bytes of a name that is not UTF-8 as escapes, as vae-run's files have them."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
