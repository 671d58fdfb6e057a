"""Pictures in rows of Parquet files: which column holds them, how large the row groups are, and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vae_edge.archive.places import Place
from vae_edge.errors import InputError

_ROWS_AT_ONCE = 16
"""Pictures that are held at the same time, beside those that are decoded ahead."""


def look_into(
    place: Place,
    name: str,
    column: str | None,
    id_column: str | None,
    *,
    choose: Callable[[Sequence[str], Sequence[str], str], str],
) -> tuple[str, list[int]] | None:
    """Read the end of a Parquet file.

    Args:
        place: where it lies.
        name: of the file.
        column: that of the pictures; None: it is chosen.
        id_column: a column that has to be there.
        choose: called with the columns of bytes, all columns and the file's path; returns the one to take.

    Returns:
        The column of pictures and the number of rows in each row group. None: it is not a whole Parquet file.

    Raises:
        InputError: it cannot be read, or a column is missing or has no bytes.
    """
    import pyarrow as pa
    from pyarrow import parquet

    where = place.path_of(name)
    try:
        with place.open(name) as file, parquet.ParquetFile(file) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except pa.ArrowInvalid:
        return None
    except OSError as error:
        raise place.cannot_read(name, error) from error
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    if column is None:
        column = choose(candidates, schema.names, where)
    for wanted in (column, *([] if id_column is None else [id_column])):
        if wanted not in schema.names:
            raise InputError(f"{where} has no column {wanted!r}; its columns are {', '.join(schema.names) or 'none'}")
    if column not in candidates:
        raise InputError(
            f"the column {column!r} of {where} has the type {schema.field(column).type}; expected bytes of picture "
            "files, or a struct with them as bytes"
        )
    return column, sizes


def rows_of(
    place: Place, name: str, column: str, id_column: str | None, groups: tuple[int, int], first_row: int
) -> Iterator[tuple[str, bytes | None]]:
    """Yield (id, bytes of a picture file or None) of the rows in some row groups, in order.

    Args:
        place: where the file lies.
        name: of the file.
        column: that of the pictures.
        id_column: that of the ids; None, or a null in it: an id is the file's name, `#` and the row's position in the
            file, from 0.
        groups: the first row group, and the one after the last.
        first_row: position of their first row in the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    from pyarrow import parquet

    wanted = list(dict.fromkeys([column, *([] if id_column is None else [id_column])]))
    row = first_row
    # Neither read ahead nor with threads of its own: a worker has one core, and a row group may be larger than memory.
    with place.open(name) as file, parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as opened:
        batches = opened.iter_batches(_ROWS_AT_ONCE, row_groups=range(*groups), columns=wanted, use_threads=False)
        for batch in batches:
            pictures: list[Any] = batch.column(batch.schema.get_field_index(column)).to_pylist()
            ids = None if id_column is None else batch.column(batch.schema.get_field_index(id_column)).to_pylist()
            for place_in_batch, picture in enumerate(pictures):
                content = picture.get("bytes") if isinstance(picture, dict) else picture
                found = None if ids is None else ids[place_in_batch]
                if isinstance(found, bytes):
                    found = found.decode(errors="backslashreplace")
                yield f"{name}#{row}" if found is None else str(found), content
                row += 1


def _holds_bytes(kind: Any) -> bool:
    """Return whether a column's type is bytes, or a struct with a field of bytes called `bytes`."""
    import pyarrow as pa

    def is_bytes(each: Any) -> bool:
        return bool(pa.types.is_binary(each) or pa.types.is_large_binary(each) or pa.types.is_fixed_size_binary(each))

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_bytes(kind.field(index).type)
    return is_bytes(kind)
