"""Check what a build left: `python tests/packaging/check_distributions.py dist` ends with 1 and says why, or with 0."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = {"vae_edge": "vae_edge", "train": "vae_edge/train", "export": "vae_edge/export"} | {
    "benchmarks": "vae_edge/benchmarks"
}
"""Folder in the repository to folder in site-packages."""


def main() -> int:
    """Compare the wheel and the sdist with the files of the repository."""
    dist = Path(sys.argv[1])
    (wheel,), (sdist,) = list(dist.glob("*.whl")), list(dist.glob("*.tar.gz"))
    modules = {
        f"{installed}/{path.relative_to(REPOSITORY / folder).as_posix()}"
        for folder, installed in FOLDERS.items()
        for path in (REPOSITORY / folder).rglob("*.py")
        if not any(part.is_symlink() for part in path.parents)
    }
    templates = (REPOSITORY / "benchmarks/report/pages/templates").iterdir()
    checked = {f"vae_edge/selfcheck/data/{name}" for name in ("bundles.tar.xz", "joined.tar.xz", "constructs.zip")}
    data = {
        "vae_edge/py.typed",
        "vae_edge/serve/page.css",
        "vae_edge/serve/page.html",
        "vae_edge/serve/page.js",
        *checked,
        *(f"vae_edge/benchmarks/report/pages/templates/{path.name}" for path in templates),
    }
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    problems = [f"the wheel lacks {name}" for name in sorted(modules - in_wheel)]
    problems += [f"the wheel has {name}, which is not ours" for name in sorted(in_wheel - modules - data)]
    problems += [f"the wheel lacks {name}" for name in sorted(data - in_wheel)]
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("pyproject.toml", "README.md", "LICENSE", "train/model/network.py", "vae_edge/py.typed"):
        if name not in in_sdist:
            problems.append(f"the sdist lacks {name}")
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    sys.stdout.write(f"{wheel.name}: {len(in_wheel)} files; {sdist.name}: {len(in_sdist)} files\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
