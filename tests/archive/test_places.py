"""Object stores, by a stand-in that speaks S3: what is listed, read and written, and what is said when it fails."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed; `make test-archive` has it")
from tests.archive.s3_double import S3Double
from tests.tiny_bundles import dark_image, write_image
from vae_edge.archive.listing import Kind, SourceOptions, list_source, open_source
from vae_edge.archive.pictures import pictures_of
from vae_edge.archive.places import GoneError, RemotePlace, open_place
from vae_edge.errors import InputError, UsageError


@pytest.fixture
def store() -> Iterator[S3Double]:
    with S3Double() as double:
        yield double


def fill(store: S3Double, folder: Path, n: int) -> None:
    for number in range(n):
        content = write_image(folder / "one.png", dark_image(number)).read_bytes()
        store.objects[f"2026/line-{number % 2}/{number}.png"] = content
    store.objects["2026/.hidden/a.png"] = store.objects["2026/@eaDir/a.png"] = b""
    store.objects["2026/notes.txt"] = b"no picture"


def test_pictures_of_a_store_are_listed_read_and_named_without_keys(store: S3Double, tmp_path: Path) -> None:
    fill(store, tmp_path, 6)
    place, only = open_source(store.uri("2026"))
    assert (place.shown, only) == ("s3://plant/2026", None)
    source, parts = list_source(place, only, SourceOptions(rows_per_part=3))
    assert (source.kind, len(parts)) == (Kind.PICTURES, 2)
    again = pickle.loads(pickle.dumps(source))
    seen = {}
    for part in parts:
        for name, picture in pictures_of(again, part, white_level=65535, max_pixels=10**6):
            assert picture.source == f"s3://plant/2026/{name}"
            assert not isinstance(picture.image, InputError)
            seen[name] = picture.image
    assert all(np.array_equal(seen[f"line-{number % 2}/{number}.png"], dark_image(number)) for number in range(6))
    assert len(seen) == 6


def test_a_file_is_there_only_when_all_of_it_is(store: S3Double) -> None:
    place = open_place(store.uri("results"))
    assert isinstance(place, RemotePlace)
    assert place.names_in("bundle_sha256=0") == set()
    place.write("bundle_sha256=0/part-1.parquet", b"rows" * 1000)
    assert place.names_in("bundle_sha256=0") == {"part-1.parquet"}
    assert place.names_in("") == {"bundle_sha256=0"}
    assert place.read("bundle_sha256=0/part-1.parquet") == b"rows" * 1000
    assert store.puts == ["results/bundle_sha256=0/part-1.parquet"]
    place.write("_plan/parts.jsonl.gz", b"as it is")
    assert store.objects["results/_plan/parts.jsonl.gz"] == place.read("_plan/parts.jsonl.gz") == b"as it is"
    assert not store.uploads


def test_one_object_may_be_the_source(store: S3Double) -> None:
    store.objects["2026/a.tar"] = store.objects["2026/b.tar"] = b"\0" * 1024
    place, only = open_source(store.uri("2026/b.tar"))
    source, parts = list_source(place, only, SourceOptions())
    assert (source.shown, source.kind) == ("s3://plant/2026/b.tar", Kind.WEBDATASET)
    assert [part.values["names"] for part in parts] == [["b.tar"]]


def test_what_is_not_there_or_does_not_answer_is_said_without_keys(store: S3Double) -> None:
    with pytest.raises(GoneError, match="s3://plant/nowhere does not exist"):
        open_source(store.uri("nowhere"))
    place = open_place(store.uri("2026"))
    with pytest.raises(InputError, match=r"s3://plant/2026/a\.png could not be read"):
        place.read("a.png")
    silent = "s3://KEY:SECRET@plant/2026?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    with pytest.raises(InputError, match="s3://plant/2026") as caught:
        open_source(silent)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["ftp://host/pictures", "s4://bucket/x", "s3://KEY:SE/CRET@bucket/x"])
def test_an_address_that_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address that pyarrow can open") as caught:
        open_place(text)
    assert "CRET" not in str(caught.value)
