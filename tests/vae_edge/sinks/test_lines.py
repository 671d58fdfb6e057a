from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_bundles import dark_image
from vae_edge import InputError
from vae_edge.sinks.lines import COLUMNS, CsvLines, JsonLines
from vae_edge.sinks.sink import Inspected
from vae_edge.sources.pictures import Picture


def inspected(record: dict[str, Any]) -> Inspected:
    return Inspected(Picture("piece.png", "piece", dark_image(0)), InputError("not looked at"), record)


def test_every_line_is_on_disk_before_the_next_one_comes(tmp_path: Path) -> None:
    path = tmp_path / "out" / "predictions.jsonl"
    with JsonLines(path) as lines:
        for number in range(3):
            lines.write(inspected({"source": f"ü{number}.png"}))
            written = path.read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["source"] for line in written] == [f"ü{n}.png" for n in range(number + 1)]


def test_an_earlier_run_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text("old\n")
    with pytest.raises(InputError, match="--overwrite"):
        JsonLines(path)
    assert path.read_text() == "old\n"
    with JsonLines(path, overwrite=True) as lines:
        lines.write(inspected({"new": 1}))
    assert path.read_text() == '{"new": 1}\n'


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="could not be written"):
        JsonLines(tmp_path / "out" / "predictions.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_sentence() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        with pytest.raises(InputError, match="No space left on device"):
            JsonLines(full).write(inspected({"source": "piece.png"}))
        # What could not be written stays in the buffer, and closing would try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_a_sentence_also_where_the_file_is_closed_after_it() -> None:
    with pytest.raises(InputError, match="could not be written"), JsonLines(Path("/dev/full")) as lines:
        lines.write(inspected({"source": "piece.png"}))


def test_a_name_that_is_no_utf_8_is_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"St\xfcck.png")
    with JsonLines(tmp_path / "predictions.jsonl") as lines:
        lines.write(inspected({"source": name}))
        lines.write(inspected({"source": "Stück.png"}))
    first, second = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {"source": name}
    assert second == '{"source": "Stück.png"}'


def test_a_stream_that_was_given_is_left_open() -> None:
    text = io.StringIO()
    with JsonLines(text) as lines:
        lines.write(inspected({"source": "a"}))
    assert text.getvalue() == '{"source": "a"}\n'
    assert not text.closed


def test_a_table_has_a_header_and_a_cell_for_every_column(tmp_path: Path) -> None:
    with CsvLines(tmp_path / "out" / "predictions.csv") as lines:
        lines.write(inspected({"source": 'a "b", c.png', "is_anomalous": False, "score": 0.1, "overlay": "x.jpg"}))
        lines.write(inspected({"source": "belt.mp4", "frame": 0, "skipped": 2, "error": "two\nlines"}))
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header, first, second = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert dict(zip(header, first, strict=True)) == {
        **dict.fromkeys(COLUMNS, ""),
        "source": 'a "b", c.png',
        "is_anomalous": "false",
        "score": "0.1",
        "overlay": "x.jpg",
    }
    assert (second[0], second[1], second[3], second[COLUMNS.index("error")]) == ("belt.mp4", "0", "2", "two\nlines")


def test_a_row_is_on_disk_before_the_next_one_comes(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    with CsvLines(path) as lines:
        assert path.read_text().splitlines() == [",".join(COLUMNS)]
        lines.write(inspected({"source": os.fsdecode(b"St\xfcck.png")}))
        assert path.read_text().splitlines()[1].startswith("St\\udcfcck.png,")


LIMITED = """
import resource, sys
from pathlib import Path
from vae_edge.errors import InputError
from vae_edge.sinks.lines import JsonLines
from vae_edge.sinks.sink import Inspected
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
n = 0
with JsonLines(Path(sys.argv[1])) as lines:
    for number in range(100):
        try:
            lines.write(Inspected(None, None, {"source": "x" * 90 + str(number)}))
            n += 1
        except InputError as error:
            assert "could not be written" in str(error), error
print(n)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits on the size of a file are POSIX's")
def test_a_line_that_does_not_fit_on_the_disk_leaves_no_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    n = int(subprocess.check_output([sys.executable, "-c", LIMITED, str(path)], text=True))
    content = path.read_text()
    assert content.endswith("\n")
    assert [json.loads(line)["source"][-1] for line in content.splitlines()] == [str(i) for i in range(n)]
    assert 0 < n < 10


HOSTILE = [
    "\x1b]0;owned\x07.png",
    "a\u202egnp.exe",
    "\x9b31m.png",
    "a\u2028b.png",
    "\x7f.png",
    "a\rb.png",
    "\udcff.png",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_line_holds_what_a_terminal_would_act_on_and_json_has_the_exact_name(name: str) -> None:
    lines, table = io.StringIO(), io.StringIO()
    for sink in (JsonLines(lines), CsvLines(table)):
        sink.write(inspected({"source": name, "error": f"{name} is empty"}))
    assert json.loads(lines.getvalue()) == {"source": name, "error": f"{name} is empty"}
    for text in (lines.getvalue(), table.getvalue()):
        assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("name", ["=1+1.png", "+x", "-x", "@SUM(A1)", "\tx"])
def test_a_name_is_no_formula_in_a_table_and_still_the_files_path(name: str) -> None:
    table = io.StringIO()
    CsvLines(table).write(inspected({"source": name, "score": -0.5, "error": f"{name} is empty"}))
    row = dict(zip(COLUMNS, list(csv.reader(io.StringIO(table.getvalue())))[1], strict=True))
    assert (row["source"], row["score"], row["error"]) == (f"./{name}", "-0.5", f"./{name} is empty")
