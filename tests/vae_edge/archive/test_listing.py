"""What a source holds, and how it is cut into parts."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.tiny_bundles import dark_image, write_image
from vae_edge.archive.listing import Kind, Part, Source, SourceOptions, _cuts, list_source, open_source, shown
from vae_edge.archive.places import LocalPlace, without_keys
from vae_edge.errors import InputError, UsageError


def listed(
    text: Path | str, options: SourceOptions | None = None, out: Path | None = None
) -> tuple[Source, list[Part]]:
    except_in = None if out is None else LocalPlace(out)
    return list_source(*open_source(str(text)), options or SourceOptions(), except_in=except_in)


def write_tar(path: Path, n: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in range(n):
            picture = write_image(path.parent / f".{number}.png", dark_image(number))
            archive.add(picture, f"{number:03d}.png")
            picture.unlink()
    return path


def names(parts: list[Part]) -> list[str]:
    return sorted(name for part in parts for name in part.values["names"])


def test_pictures_are_those_that_vae_run_takes(tmp_path: Path) -> None:
    for name in ("a.png", "deep/er/b.jpg", ".hidden.png", "@eaDir/a.png"):
        write_image(tmp_path / name, dark_image(1))
    write_image(tmp_path / "c.png", dark_image(1)).rename(tmp_path / "c.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    write_image(tmp_path / "out" / "d.png", dark_image(2))
    source, parts = listed(tmp_path, out=tmp_path / "out")
    assert source.kind is Kind.PICTURES
    assert names(parts) == ["a.png", "c.PNG", "deep/er/b.jpg"]


def test_tar_files_are_parts_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.tar", "a/c.tar", "a.tar.gz"):
        write_tar(tmp_path / name, 1)
    source, parts = listed(tmp_path)
    assert source.kind is Kind.WEBDATASET
    assert [part.values["names"] for part in parts] == [["a.tar.gz"], ["a/c.tar"], ["b.tar"]]
    assert {part.n_pictures for part in parts} == {None}


def test_one_file_may_be_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", 1)
    write_tar(tmp_path / "b.tar", 1)
    source, parts = listed(tmp_path / "b.tar")
    assert names(parts) == ["b.tar"]
    assert source.shown == str(tmp_path / "b.tar")
    assert shown(*open_source(str(tmp_path / "a.tar"))) == str(tmp_path / "a.tar")


def test_of_several_kinds_one_has_to_be_chosen(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", dark_image(1))
    write_tar(tmp_path / "b.tar", 1)
    with pytest.raises(UsageError, match="holds 1 picture and 1 WebDataset file; choose with --kind"):
        listed(tmp_path)
    assert names(listed(tmp_path, SourceOptions(Kind.WEBDATASET))[1]) == ["b.tar"]
    assert names(listed(tmp_path, SourceOptions(Kind.PICTURES))[1]) == ["a.png"]


def test_what_is_wrong_with_a_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"holds no picture, Parquet or WebDataset file \(1 file in all\)"):
        listed(tmp_path)
    write_image(tmp_path / "a.png", dark_image(1))
    with pytest.raises(InputError, match="holds no WebDataset file"):
        listed(tmp_path, SourceOptions(Kind.WEBDATASET))
    with pytest.raises(UsageError, match="columns are for Parquet files"):
        listed(tmp_path, SourceOptions(picture_column="image"))


def test_row_groups_are_put_together_up_to_the_size_of_a_part() -> None:
    assert _cuts([3, 3, 3, 20, 1, 1], 7) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert _cuts([500], 7) == [(0, 1)]
    assert _cuts([], 7) == []
    assert _cuts([0, 0], 7) == []


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a?endpoint_override=127.0.0.1:9000", "s3://bucket/a"),
        ("s3://KEY:SE%2FCRET@bucket/a", "s3://bucket/a"),
        ("s3://KEY:SE/CRET@bucket/a", "s3://bucket/a"),
        ("hdfs://plant@host:8020/a/", "hdfs://plant@host:8020/a"),
        ("abfs://pictures:secret@account.dfs.core.windows.net/a", "abfs://pictures@account.dfs.core.windows.net/a"),
    ],
)
def test_no_key_of_an_address_is_shown_or_recorded(uri: str, expected: str) -> None:
    assert without_keys(uri) == expected
