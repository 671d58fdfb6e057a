"""A worker's rows: those that vae-run writes, with the pictures' ids and sizes, as a Parquet file for each part."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_bundles import dark_image, make_bundle, spotted_image, toy_gate, write_image
from vae_edge.archive.listing import Part, SourceOptions, list_source, open_source
from vae_edge.archive.plan import ScoringSettings, bundle_sha256
from vae_edge.archive.rows import COLUMNS
from vae_edge.archive.scoring import Outcome, Scorer, Work, files_of
from vae_edge.bundle import Bundle
from vae_edge.targets import Target

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: vae-edge[archive]")
pytest.importorskip("onnxruntime")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gated(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX, gate=toy_gate())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(24):
        draw = (dark_image, spotted_image, dark_image, lambda seed, size: dark_image(seed, size) // 8)[number % 4]
        size = 32 if number % 2 == 0 else 40 + number  # The gate's size is 32.
        write_image(tmp_path / "pictures" / f"{number % 3}" / f"{number}.png", draw(number, size))
    (tmp_path / "pictures" / "empty.png").write_bytes(b"")
    return tmp_path / "pictures"


def work_on(source: Path, bundle: Bundle, **settings: Any) -> tuple[Work, list[Part]]:
    found, parts = list_source(*open_source(str(source)), SourceOptions(rows_per_part=10))
    options = ScoringSettings(**{"max_pixels": 10**6, **settings})
    return Work(found, options, bundle.folder, bundle_sha256(bundle)), parts


def scored(work: Work, parts: list[Part]) -> list[Outcome]:
    scorer = Scorer(work)
    try:
        return [scorer.score(part) for part in parts]
    finally:
        scorer.close()


def rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    assert all(outcome.content is not None for outcome in outcomes), outcomes
    tables = [parquet.read_table(io.BytesIO(outcome.content or b"")) for outcome in outcomes]
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_rows_of_a_part_are_the_lines_of_the_shard_of_its_number(
    command: Run, gated: Bundle, pictures: Path, batch_size: int
) -> None:
    work, parts = work_on(pictures, gated)
    work = Work(work.source, work.settings, work.bundle, work.bundle_sha256, batch_size=batch_size)
    seen: set[str] = set()
    for part, outcome in zip(parts, scored(work, parts), strict=True):
        shard = f"{part.number}/{len(parts)}"
        _, out, _ = command("run", gated.folder, pictures, "--recursive", "--shard", shard)
        lines = {line["source"]: line for line in map(json.loads, out.splitlines())}
        found = rows([outcome])
        assert sorted(row["source"] for row in found) == sorted(lines)
        for row in found:
            line = lines[row["source"]]
            assert {column: row[column] for column in COLUMNS if row[column] is not None and column in line} == line
            assert row["part"] == part.number
            assert str(pictures / row["id"]) == row["source"]
            seen.add(row["verdict"] or "error")
        assert sum(outcome.counts.values()) == len(found)
    assert seen >= {"normal", "not inspectable", "error"}


def test_every_file_has_all_columns_and_the_bundle(gated: Bundle, pictures: Path) -> None:
    work, parts = work_on(pictures, gated)
    (outcome,) = scored(work, parts[:1])
    table = parquet.read_table(io.BytesIO(outcome.content or b""))
    assert table.column_names == list(COLUMNS)
    assert [str(field.type) for field in table.schema] == [
        kind.replace("list<string>", "list<element: string>") for kind in COLUMNS.values()
    ]
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert metadata["vae_edge.bundle"] == "toy-onnx-fp32"
    assert metadata["vae_edge.bundle_sha256"] == bundle_sha256(gated)
    size = {row["id"]: (row["width"], row["height"]) for row in rows(scored(work, parts))}
    assert size["2/23.png"] == (63, 63)
    assert size["empty.png"] == (None, None)


def test_the_settings_hold(gated: Bundle, pictures: Path) -> None:
    work, parts = work_on(pictures, gated, gate=False, false_alarm_rate=0.25, max_pixels=50 * 50)
    found = rows(scored(work, parts))
    assert {row["verdict"] for row in found} == {"normal", "anomalous", None}
    assert {row["false_alarm_rate"] for row in found if row["error"] is None} == {0.25}
    assert sum("expected at most 0.0025 million" in (row["error"] or "") for row in found) == 7


def test_a_bundle_that_is_elsewhere_is_written_down_and_opened(gated: Bundle, pictures: Path, tmp_path: Path) -> None:
    work, parts = work_on(pictures, gated)
    expected = rows(scored(work, parts))
    files = files_of(gated)
    gated.folder.rename(tmp_path / "gone")
    assert scored(work, parts[:1])[0].is_fatal
    scorer = Scorer(work, files)
    assert rows([scorer.score(part) for part in parts]) == expected
    scorer.close()


def test_a_changed_bundle_and_a_missing_folder_are_said_once_and_for_all(
    gated: Bundle, pictures: Path, tmp_path: Path
) -> None:
    work, parts = work_on(pictures, gated)
    other = Work(work.source, work.settings, work.bundle, "0" * 64)
    (outcome,) = scored(other, parts[:1])
    assert outcome.is_fatal
    assert "was changed since the archive was begun" in (outcome.problem or "")
    pictures.rename(tmp_path / "moved")
    (outcome,) = scored(work, parts[:1])
    assert outcome.is_fatal
    assert "is not a folder on the machine" in (outcome.problem or "")
