"""`vae-edge archive` on Ray: on this machine and on a cluster, interrupted, killed and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="Ray is not installed; `make test-archive` has it")
import pyarrow
import pyarrow.parquet

from tests.archive.nodes import Nodes
from tests.archive.s3_double import S3Double
from tests.tiny_bundles import dark_image, make_bundle, spotted_image, write_image
from vae_edge.targets import Target

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy-onnx-fp32", Target.ONNX).folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(120):
        write_image(folder / f"{number % 3}" / f"{number}.png", picture(number))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes([1, 1]) as cluster:
        yield cluster


def picture(number: int, size: int = 96) -> Any:
    return (spotted_image if number % 5 == 0 else dark_image)(number, size)


def begin(*words: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vae_edge", "archive", *map(str, words)]
    environment = {**(environment or os.environ), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, encoding="utf-8")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said


def run(*words: object, environment: dict[str, str] | None = None) -> tuple[int, str]:
    return end(begin(*words, environment=environment))


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """Return the rows by their ids, none of which may be there twice."""
    table = pyarrow.parquet.read_table(out)
    found = {row["id"]: row for row in table.to_pylist()}
    assert len(found) == table.num_rows
    return found


def parts(out: Path) -> list[Path]:
    return list(out.glob("bundle_sha256=*/part-*.parquet"))


def wait_for_parts(out: Path, n: int, process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while len(parts(out)) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.02)


def names(pictures: Path) -> set[str]:
    return {path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png")}


def test_on_this_machine_nothing_leaves_it_and_nothing_is_left_behind(
    bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = begin(bundle, pictures, "--out", tmp_path / "out", environment={**environment, "HOME": str(home)})
    addresses: set[str] = set()
    usage: set[str] = set()
    while process.poll() is None:
        for each in psutil.Process(process.pid).children(recursive=True):
            try:
                usage.add(each.environ().get("RAY_USAGE_STATS_ENABLED", "unset"))
                for found in each.net_connections("inet"):
                    addresses |= {side.ip for side in (found.laddr, found.raddr) if side}
            except psutil.Error:
                continue
        time.sleep(0.2)
    code, said = end(process)
    assert code == 1, said  # One picture is broken.
    assert usage - {"unset"} == {"0"}
    assert {address.removeprefix("::ffff:") for address in addresses} <= {"127.0.0.1", "0.0.0.0", "::", "::1"}
    assert list(home.rglob("*")) == []
    assert set(rows(tmp_path / "out")) == names(pictures)
    assert "all 1 are there" in " ".join(said.split())


def test_interrupted_and_continued_no_row_is_lost_or_doubled(
    bundle: Path, pictures: Path, tmp_path: Path, nodes: Nodes
) -> None:
    out = tmp_path / "out"
    words = (bundle, pictures, "--out", out, "--rows-per-part", 3, "--address", nodes.address, "--workers", 1)
    process = begin(*words, environment=nodes.environment)
    wait_for_parts(out, 2, process)
    process.send_signal(signal.SIGINT)
    code, said = end(process)
    assert code == 130, said
    assert "what is written is whole: run the same command to go on" in said
    kept = {path.name: path.stat().st_mtime_ns for path in parts(out)}
    assert 2 <= len(kept) < 41
    code, said = run(*words, environment=nodes.environment)
    assert code == 1, said  # The broken picture, whichever run came to it.
    assert {path.name: path.stat().st_mtime_ns for path in parts(out) if path.name in kept} == kept
    code, once_more = run(*words, environment=nodes.environment)
    assert code == 1, once_more
    n_written = sum(pyarrow.parquet.read_metadata(path).num_rows for path in parts(out) if path.name not in kept)
    for text, now in ((said, f"({n_written} now, "), (once_more, "anomalous 24")):
        assert f"pictures 121 {now}" in " ".join(text.split())
        assert "anomalous 24 normal 96 errors 1 parts all 41 are there" in " ".join(text.split())
    found = rows(out)
    assert set(found) == names(pictures)
    assert found["broken.png"]["error"].startswith(f"{pictures / 'broken.png'} ")
    assert [found[f"{n % 3}/{n}.png"]["verdict"] for n in (0, 1)] == ["anomalous", "normal"]
    assert {row["bundle_sha256"] for row in found.values()} == {out.glob("bundle_*").__next__().name.partition("=")[2]}


def test_a_signal_that_ends_it_leaves_what_ctrl_c_does(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin(bundle, pictures, "--out", out, "--rows-per-part", 1, "--workers", 1)
    wait_for_parts(out, 2, process)
    beside = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    code, said = end(process)
    assert code == 143, said
    assert "run the same command to go on" in said
    _, alive = psutil.wait_procs(beside, timeout=30)
    assert not alive


def test_a_killed_driver_takes_the_workers_of_this_machine_with_it(
    bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = begin(bundle, pictures, "--out", out, "--rows-per-part", 1, "--workers", 1)
    wait_for_parts(out, 2, process)
    beside = psutil.Process(process.pid).children(recursive=True)
    detectors = [each for each in beside if each.name().startswith("ray::MapWorker")]
    assert detectors
    process.kill()
    end(process)
    _, alive = psutil.wait_procs(detectors, timeout=60)  # Ray's own helpers take a minute more.
    assert not alive
    there = {path.name for path in parts(out)}
    assert 2 <= len(there) < 121


def test_a_killed_worker_is_replaced(bundle: Path, pictures: Path, tmp_path: Path, nodes: Nodes) -> None:
    out = tmp_path / "out"
    words = (bundle, pictures, "--out", out, "--rows-per-part", 2, "--address", nodes.address, "--workers", 2)
    process = begin(*words, environment=nodes.environment)
    wait_for_parts(out, 3, process)
    killed = nodes.workers()[0]
    killed.kill()
    code, said = end(process)
    assert code == 1, said
    assert set(rows(out)) == names(pictures)


def test_parquet_and_webdataset_files_are_sources(bundle: Path, tmp_path: Path, nodes: Nodes) -> None:
    encoded = [write_image(tmp_path / "one.png", picture(number)).read_bytes() for number in range(12)]
    (tmp_path / "rows").mkdir()
    columns = pyarrow.table({"serial": [f"s{n}" for n in range(12)], "image": encoded})
    pyarrow.parquet.write_table(columns, tmp_path / "rows" / "a.parquet", row_group_size=5)
    (tmp_path / "tars").mkdir()
    for half in (0, 1):
        with tarfile.open(tmp_path / "tars" / f"{half}.tar", "w") as archive:
            for number in range(6 * half, 6 * half + 6):
                write_image(tmp_path / "one.png", picture(number))
                archive.add(tmp_path / "one.png", f"{number:02d}.png")
    on = ("--address", "auto", "--workers", 1)
    environment = {**nodes.environment, "RAY_ADDRESS": nodes.address}
    code, said = run(
        *(bundle, tmp_path / "rows", "--out", tmp_path / "a", "--rows-per-part", 5, "--id-column", "serial"),
        *on,
        environment=environment,
    )
    assert code == 0, said
    code, said = run(bundle, tmp_path / "tars", "--out", tmp_path / "b", *on, environment=environment)
    assert code == 0, said
    by_serial, by_member = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert len(parts(tmp_path / "a")) == 3
    for number in range(12):
        member = by_member[f"{number // 6}.tar/{number:02d}.png"]
        assert by_serial[f"s{number}"]["score"] == member["score"]
        assert member["verdict"] == ("anomalous" if number % 5 == 0 else "normal")


def test_an_object_store_is_a_source_and_a_target(bundle: Path, tmp_path: Path, nodes: Nodes) -> None:
    with S3Double() as store:
        for number in range(9):
            content = write_image(tmp_path / "one.png", picture(number)).read_bytes()
            store.objects[f"2026/{number}.png"] = content
        store.objects["2026/broken.png"] = b"no picture"
        words = (bundle, store.uri("2026"), "--out", store.uri("results"), "--rows-per-part", 4)
        on = ("--address", nodes.address, "--workers", 1)
        code, said = run(*words, *on, environment=nodes.environment)
        assert code == 1, said
        assert "SECRET" not in said
        results = {key: content for key, content in store.objects.items() if key.startswith("results/")}
        record = json.loads(results["results/_plan/archive.json"])
        assert record["source"] == "s3://plant/2026"
        found = [
            row
            for key, content in results.items()
            if key.endswith(".parquet")
            for row in pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
        ]
        assert sorted(row["id"] for row in found) == [*(f"{n}.png" for n in range(9)), "broken.png"]
        # A part that is lost is made again, and no other.
        (lost, *_) = [key for key in results if key.endswith(".parquet")]
        del store.objects[lost]
        store.puts.clear()
        code, said = run(*words, *on, environment=nodes.environment)
        assert store.puts == [lost], said


def test_what_is_wrong_with_a_cluster_is_said_in_a_sentence(
    bundle: Path, pictures: Path, tmp_path: Path, nodes: Nodes
) -> None:
    words = (bundle, pictures, "--out", tmp_path / "out")
    for address, expected, code in (
        ("127.0.0.2:1", "no Ray cluster answers at 127.0.0.2:1 (Connection refused); start one with ray start", 1),
        ("somewhere", "'somewhere' is not the address of a Ray cluster; expected auto or HOST:PORT", 2),
    ):
        found, said = run(*words, "--address", address)
        assert (found, expected in said) == (code, True), said
        assert "Traceback" not in said
    found, said = run(*words, "--address", nodes.address, "--workers", 9, environment=nodes.environment)
    assert found == 1
    assert f"9 workers need 9 processors, and the cluster at {nodes.address} has 2; pass --workers 2" in said
    found, said = run(*words, "--workers", 999)
    assert found == 1
    assert "999 workers need 999 processors, and this machine has" in said
    stranger = {**nodes.environment, "RAY_AUTH_TOKEN": "0" * 64}
    found, said = run(*words, "--address", nodes.address, environment=stranger)
    assert found == 1, said
    assert "Traceback" not in said
