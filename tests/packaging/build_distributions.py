"""Build sdist and wheel so that the same sources always give the same bytes: `build_distributions.py [DIST]`.

The files that git tracks, or all of a folder without git, are copied with fixed permissions and times and built there,
by the setuptools that is installed. Times in the archives are `SOURCE_DATE_EPOCH`, seconds since 1970; without it, the
time of the last commit. Compressed bytes also depend on Python's zlib, and the wheel names the setuptools that built
it: two builds are alike with the versions in `constraints.txt`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
OUTPUTS = {"build", "dist", "demo", "bench", "gpu-check"}
"""Folders at the top that hold what was made, not what it was made from."""


def source_files(repository: Path) -> list[Path]:
    """Return the files to build from, relative to the repository, sorted."""
    if (repository / ".git").exists():
        done = subprocess.run(["git", "-C", str(repository), "ls-files", "-z"], capture_output=True, check=True)
        found = [Path(name) for name in done.stdout.decode().split("\0") if name]
    else:
        found = [path.relative_to(repository) for path in repository.rglob("*")]
    # The links to folders are for editors; the build goes by a table in pyproject.toml.
    return sorted(
        path
        for path in found
        if (repository / path).is_file()
        and not any((repository / each).is_symlink() for each in (path, *path.parents))
        and path.parts[0] not in OUTPUTS
        and not any(part.startswith(".") or part == "__pycache__" or part.endswith(".egg-info") for part in path.parts)
    )


def source_date(repository: Path) -> int:
    """Return the time that goes into the archives, in seconds since 1970.

    Raises:
        SystemExit: `SOURCE_DATE_EPOCH` is not a number of seconds.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isdecimal():
            raise SystemExit(f"SOURCE_DATE_EPOCH is {given!r}; expected a whole number of seconds since 1970")
        return int(given)
    if (repository / ".git").exists():
        last = ["git", "-C", str(repository), "log", "-1", "--format=%ct"]
        return int(subprocess.run(last, capture_output=True, text=True, check=True).stdout)
    return int((repository / "pyproject.toml").stat().st_mtime)  # An archive of a commit has the commit's time.


def build(repository: Path, dist: Path) -> list[Path]:
    """Build both into a folder and return their paths: sdist, wheel.

    Raises:
        SystemExit: the build failed; its output is on stderr.
    """
    when = source_date(repository)
    dist.mkdir(parents=True, exist_ok=True)
    earlier_umask = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            copy, out = Path(scratch) / "vae-edge", Path(scratch) / "dist"
            for name in source_files(repository):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(repository / name, copy / name)
                (copy / name).chmod(0o644)
                os.utime(copy / name, (when, when))
            environment = {**os.environ, "SOURCE_DATE_EPOCH": str(when), "TZ": "UTC", "PYTHONHASHSEED": "0"}
            words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                sys.stderr.write(done.stdout.decode(errors="replace")[-4000:])
                raise SystemExit(f"the build ended with {done.returncode}; see its output above")
            (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
            _write_sdist(sdist, dist / sdist.name, when)
            shutil.copyfile(wheel, dist / wheel.name)
            return [dist / sdist.name, dist / wheel.name]
    finally:
        os.umask(earlier_umask)


def _write_sdist(source: Path, target: Path, when: int) -> None:
    """Write a .tar.gz again with its members in order, and with one time, owner and permission for all of them."""
    with (
        tarfile.open(source) as given,
        target.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=when) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as written,
    ):
        for member in sorted(given.getmembers(), key=lambda each: each.name):
            clean = tarfile.TarInfo(member.name)
            clean.size, clean.type, clean.linkname, clean.mtime = member.size, member.type, member.linkname, when
            clean.mode = 0o755 if member.isdir() else 0o644
            written.addfile(clean, given.extractfile(member) if member.isfile() else None)


def main() -> int:
    """Build, and print each file's SHA-256 as `sha256sum` does."""
    for path in build(REPOSITORY, Path(sys.argv[1] if len(sys.argv) > 1 else REPOSITORY / "dist")):
        sys.stdout.write(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
