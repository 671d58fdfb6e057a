"""Which module may import which: the contracts in pyproject.toml, and the diagram in CONTRIBUTING.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")
grimp = pytest.importorskip("grimp")

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "vae_edge" / "train").is_dir(),
    reason="the links in vae_edge/ are not there, as in a checkout on Windows",
)
CHECK = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"


def lint(configuration: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHECK, str(configuration)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_imports_point_one_way_and_never_in_circles() -> None:
    result = lint(ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout


def test_an_import_that_points_upwards_is_found(tmp_path: Path) -> None:
    # The other way round, so that every import there is breaks it: the check can fail.
    turned = tmp_path / "setup.cfg"
    turned.write_text(
        "[importlinter]\nroot_package = vae_edge\n[importlinter:contract:turned]\nname = turned\ntype = layers\n"
        "containers = vae_edge\nlayers =\n    train\n    export\n    benchmarks\n",
        encoding="utf-8",
    )
    assert lint(turned).returncode == 1


def test_the_diagram_in_contributing_is_that_of_the_code() -> None:
    from tests.packaging.import_diagram import PAGE, diagram

    assert diagram() in PAGE.read_text(encoding="utf-8")
