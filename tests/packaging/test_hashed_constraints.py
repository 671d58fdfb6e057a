"""`constraints-hashed.txt` and `LICENSES.md` agree with pyproject.toml, with constraints.txt and with each other."""

from __future__ import annotations

import re
import sys

import pytest

pytest.importorskip("packaging")
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.hashed_constraints import (
    EXTRAS,
    FILE,
    OTHERS,
    PLATFORMS,
    PYTHONS,
    REPOSITORY,
    Pin,
    plain_pins,
    read,
)
from tests.packaging.licences import PAGE, licence_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

TEXT = FILE.read_text(encoding="utf-8")
PINS = read(TEXT)
HASH = "--hash=sha256:" + "0" * 64


def versions(python: str, platform: str) -> dict[str, str]:
    """Return the versions for a Python on a system, of which each package has one."""
    applying = [pin for pin in PINS if pin.applies(python, platform)]
    found = {pin.name: pin.version for pin in applying}
    assert len(found) == len(applying), f"a package has two versions for Python {python} on {platform}"
    return found


def test_every_line_is_a_pin_with_hashes_and_names_no_place() -> None:
    assert all(pin.hashes and len(set(pin.hashes)) == len(pin.hashes) for pin in PINS)
    content = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    assert not re.search(
        r"https?:|file:|--index-url|--extra-index-url|--find-links| @ |^\s*-[a-z]", content, re.MULTILINE
    )
    # The comment at the top is the only one, so none names the place where the file was made.
    assert [line for line in TEXT.splitlines() if line.startswith("#")] == TEXT.splitlines()[:4]


@pytest.mark.parametrize(
    "line",
    [
        "numpy==2.0",
        f"numpy>=2.0 {HASH}",
        "--index-url https://packages.example/simple",
        f"numpy @ file:///home/somebody/numpy.whl {HASH}",
        "numpy==2.0 --hash=md5:00",
    ],
)
def test_something_else_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="is not a pinned package with its hashes"):
        read(line)


def test_a_pin_is_read_with_its_marker_over_several_lines() -> None:
    (pin,) = read(f"Zope.Event==6.2 ; python_full_version < '3.13' \\\n    {HASH}\n")
    assert pin == Pin("zope-event", "6.2", "python_full_version < '3.13'", ("0" * 64,))
    assert pin.applies("3.12", "x86_64-manylinux_2_28")
    assert not pin.applies("3.13", "x86_64-manylinux_2_28")


def test_every_extra_is_pinned_or_left_out_on_purpose() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(project["optional-dependencies"]) - set(OTHERS)
    assert named == set(EXTRAS), "add the extra to EXTRAS and run `make constraints-hashed licences`, or to OTHERS"


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_all_that_pyproject_asks_for_is_pinned_within_its_limits(python: str, platform: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = versions(python, platform)
    facts = {**PLATFORMS[platform], "python_version": python, "python_full_version": f"{python}.9"}
    facts["platform_system"] = {"linux": "Linux", "win32": "Windows", "darwin": "Darwin"}[facts["sys_platform"]]
    texts = [*project["dependencies"], *(each for extra in EXTRAS for each in project["optional-dependencies"][extra])]
    for requirement in map(Requirement, texts):
        if requirement.name == project["name"]:
            assert requirement.extras <= {*EXTRAS}
        elif requirement.marker is None or requirement.marker.evaluate(facts):
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_versions_are_those_of_constraints_txt_on_the_python_of_ci() -> None:
    pins = plain_pins((REPOSITORY / "constraints.txt").read_text(encoding="utf-8"))
    both = {name: version for name, version in versions("3.11", "x86_64-manylinux_2_28").items() if name in pins}
    assert len(both) > 50
    assert both == {name: pins[name] for name in both}, "run `make constraints-hashed licences`"


def test_every_package_has_its_licence() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| package")
    ]
    listed = {name: set(version.split(", ")) for name, version, *_ in rows}
    assert listed == {pin.name: {each.version for each in PINS if each.name == pin.name} for pin in PINS}
    assert all(licence and users for _, _, licence, users, _ in rows)


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"License-Expression": "MIT", "License": "other"}, "MIT"),
        ({"License": "Apache 2.0", "Classifier": ["License :: OSI Approved :: MIT License"]}, "Apache-2.0"),
        ({"License": "All\nof it", "Classifier": ["License :: OSI Approved :: MIT License"]}, "MIT"),
        ({"Classifier": ["Typing :: Typed"]}, ""),
    ],
)
def test_a_licence_is_read_from_new_and_old_metadata(metadata: dict[str, object], licence: str) -> None:
    assert licence_of(metadata) == licence
