"""Two builds of the same sources give the same bytes, wherever, whenever and under whatever umask they are made."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.packaging.build_distributions import REPOSITORY, source_date, source_files

pytest.importorskip("build")
SCRIPT = "tests/packaging/build_distributions.py"


def hashes_of(repository: Path, dist: Path, umask: int, **environment: str) -> dict[str, str]:
    """Build in a process with this umask; return the SHA-256 of each file."""
    subprocess.run(
        [sys.executable, SCRIPT, str(dist)],
        cwd=repository,
        env={**os.environ, **environment},
        check=True,
        umask=umask,
        stdout=subprocess.DEVNULL,
    )
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_two_builds_elsewhere_later_and_under_another_umask_give_the_same_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    when = source_date(REPOSITORY)
    first = hashes_of(REPOSITORY, tmp_path / "first", 0o022, SOURCE_DATE_EPOCH=str(when), TZ="Asia/Tokyo")
    # Without git, in an order of files of its own, with other times and permissions, and what an earlier build left.
    elsewhere = tmp_path / "some where" / "else"
    for name in reversed(source_files(REPOSITORY)):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, elsewhere / name)
        (elsewhere / name).chmod(0o600)
        os.utime(elsewhere / name, (time.time() - 86400 * 400,) * 2)
    for left in ("build/lib/vae_edge/left.py", "dist/left.whl", "vae_edge.egg-info/SOURCES.txt", ".venv/left.py"):
        (elsewhere / left).parent.mkdir(parents=True)
        (elsewhere / left).write_text("left\n", encoding="utf-8")
    second = hashes_of(elsewhere, tmp_path / "second", 0o077, SOURCE_DATE_EPOCH=str(when), TZ="America/Lima")
    assert first == second
    assert len(first) == 2

    # What comes out when the time changes shows that the time is the only thing that these hashes could differ by.
    (wheel,), (sdist,) = (tmp_path / "second").glob("*.whl"), (tmp_path / "second").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        infos = archive.infolist()
    assert {stat.S_IMODE(info.external_attr >> 16) for info in infos} <= {0o644, 0o664}
    assert {info.date_time for info in infos} == {time.gmtime(when - when % 2)[:6]}
    with tarfile.open(sdist) as packed:
        members = packed.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.uid, member.gid, member.uname, int(member.mtime)) for member in members} == {(0, 0, "", when)}


def test_a_time_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(SystemExit, match="'yesterday'; expected a whole number of seconds"):
        source_date(REPOSITORY)


def test_links_outputs_and_hidden_files_are_no_sources() -> None:
    names = {path.as_posix() for path in source_files(REPOSITORY)}
    assert {"pyproject.toml", "README.md", "train/model/network.py", "vae_edge/py.typed"} <= names
    assert not any(name.startswith((".", "vae_edge/train/", "dist/")) for name in names)
