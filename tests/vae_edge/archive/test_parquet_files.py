"""Pictures in rows of Parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, write_image
from vae_edge.archive.listing import Kind, Part, Source, SourceOptions, list_source, open_source
from vae_edge.archive.pictures import pictures_of
from vae_edge.errors import InputError, UsageError

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: vae-edge[archive]")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def encoded(tmp_path: Path) -> list[bytes]:
    return [write_image(tmp_path / "one.png", dark_image(seed)).read_bytes() for seed in range(10)]


def write(path: Path, columns: dict[str, Any], row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def listed(path: Path, options: SourceOptions | None = None) -> tuple[Source, list[Part]]:
    return list_source(*open_source(str(path)), options or SourceOptions(rows_per_part=5))


def found(source: Source, parts: list[Part]) -> dict[str, Any]:
    return {
        name: str(picture.image) if isinstance(picture.image, InputError) else picture.image
        for part in parts
        for name, picture in pictures_of(source, part, white_level=65535, max_pixels=10**6)
    }


def test_row_groups_become_parts_and_rows_have_their_position_as_id(tmp_path: Path, encoded: list[bytes]) -> None:
    write(tmp_path / "in" / "a.parquet", {"n": range(10), "image": [*encoded[:8], None, b"no picture"]})
    write(tmp_path / "in" / "b" / "c.parquet", {"image": encoded[:2]})
    source, parts = listed(tmp_path / "in")
    assert (source.kind, source.picture_column) == (Kind.PARQUET, "image")
    assert [(part.values["groups"], part.n_pictures) for part in parts] == [
        ([0, 1], 4),
        ([1, 2], 4),
        ([2, 3], 2),
        ([0, 1], 2),
    ]
    seen = found(source, parts)
    assert list(seen) == [*(f"a.parquet#{n}" for n in range(10)), "b/c.parquet#0", "b/c.parquet#1"]
    assert all(np.array_equal(seen[f"a.parquet#{n}"], dark_image(n)) for n in range(8))
    assert "a.parquet#8 has no picture: the column 'image' is null there" in seen["a.parquet#8"]
    assert "a.parquet#9 " in seen["a.parquet#9"]


def test_a_struct_with_bytes_and_a_column_of_ids_are_taken(tmp_path: Path, encoded: list[bytes]) -> None:
    pictures = [{"bytes": each, "path": "x.png"} for each in encoded[:3]]
    path = write(tmp_path / "a.parquet", {"picture": pictures, "serial": ["k", "l", "m"], "other": encoded[:3]})
    source, parts = listed(path, SourceOptions(id_column="serial"))
    assert source.picture_column == "picture"
    assert list(found(source, parts)) == ["k", "l", "m"]


def test_an_id_that_is_null_or_bytes_is_a_readable_one(tmp_path: Path, encoded: list[bytes]) -> None:
    path = write(tmp_path / "a.parquet", {"image": encoded[:3], "serial": ["k", None, "None"]})
    assert list(found(*listed(path, SourceOptions(id_column="serial")))) == ["k", "a.parquet#1", "None"]
    serials = [b"k", None, b"\xff"]
    path = write(tmp_path / "b.parquet", {"image": encoded[:3], "serial": serials})
    options = SourceOptions(picture_column="image", id_column="serial")
    assert list(found(*listed(path, options))) == ["k", "b.parquet#1", "\\xff"]


def test_without_a_column_of_pictures_the_columns_are_named(tmp_path: Path, encoded: list[bytes]) -> None:
    path = write(tmp_path / "a.parquet", {"score": [1.0], "name": ["x"]})
    with pytest.raises(InputError, match=r"a\.parquet has no column of pictures \(its columns: score, name\)"):
        listed(path)
    with pytest.raises(InputError, match="has no column 'image'; its columns are score, name"):
        listed(path, SourceOptions(picture_column="image"))
    with pytest.raises(InputError, match=r"the column 'name' .* has the type string; expected bytes"):
        listed(path, SourceOptions(picture_column="name"))
    path = write(tmp_path / "b.parquet", {"left": encoded[:1], "right": encoded[:1]})
    with pytest.raises(UsageError, match=r"several columns of bytes \(left, right\); choose: --picture-column NAME"):
        listed(path)
    source, parts = listed(path, SourceOptions(picture_column="right"))
    assert len(found(source, parts)) == 1
    with pytest.raises(InputError, match="has no column 'serial'"):
        listed(path, SourceOptions(picture_column="right", id_column="serial"))


def test_a_damaged_file_among_others_is_a_row_with_the_error(tmp_path: Path, encoded: list[bytes]) -> None:
    write(tmp_path / "in" / "b.parquet", {"image": encoded})
    whole = (tmp_path / "in" / "b.parquet").read_bytes()
    (tmp_path / "in" / "a.parquet").write_bytes(whole[:100])
    broken = bytearray(whole)
    broken[60 + len(encoded[0]) * 4 : 60 + len(encoded[0]) * 6] = b"\xff" * (len(encoded[0]) * 2)
    source, parts = listed(tmp_path / "in")
    seen = found(source, parts)
    assert seen["a.parquet"].endswith(
        "a.parquet is damaged from here on (it is not a whole Parquet file); copy it again"
    )
    assert len(seen) == 11
    (tmp_path / "in" / "b.parquet").write_bytes(broken)
    seen = found(source, parts)
    assert any(isinstance(each, str) for name, each in seen.items() if name.startswith("b.parquet"))
    with pytest.raises(InputError, match="no Parquet file can be opened"):
        listed(tmp_path / "in" / "a.parquet")


def test_a_part_says_which_rows_it_has(tmp_path: Path, encoded: list[bytes]) -> None:
    path = write(tmp_path / "a.parquet", {"image": encoded}, row_group_size=2)
    _, parts = listed(path, SourceOptions(rows_per_part=4))
    assert [json.loads(part.content) for part in parts] == [
        {"names": ["a.parquet"], "groups": [0, 2], "first_row": 0},
        {"names": ["a.parquet"], "groups": [2, 4], "first_row": 4},
        {"names": ["a.parquet"], "groups": [4, 5], "first_row": 8},
    ]
