"""What the documents claim, held against the code: every command of the README is run, every other one is parsed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vae_edge.cli.main import COMMANDS
from vae_edge.targets import SUPPORTED
from vae_edge.train.model.presets import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in (
        ".",
        "vae_edge",
        "vae_edge/sinks",
        "vae_edge/archive",
        "vae_edge/serve",
        "vae_edge/signing",
        "train",
        "export",
        "benchmarks",
        "tests/soak",
    )
    for path in sorted((ROOT / folder).glob("*.md"))
}
MAX_README_WORDS = 1000

SHORTER = {
    "vae-train": "--epochs 1 --calibration split --photometric none --scoring default --tile-size none --image-size 64",
    "vae-bench": "--quick --rounds 1",
}
"""What the README's commands get in addition, so that they take seconds."""


def rows(heading: str, page: str = "README.md") -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = PAGES[page].split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def blocks(page: str, language: str) -> list[str]:
    """Return a page's blocks of code in one language; the empty one: commands."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)
    return [content for named, content in fenced if named == language]


def commands(page: str) -> list[list[str]]:
    """Return the words of every command in a page."""
    lines = re.findall(
        r"^(?:vae-|make|git|cd|python|pip|\.venv).*", "\n".join(blocks(page, "")).replace("\\\n", " "), re.MULTILINE
    )
    return [words for line in lines if (words := shlex.split(line.replace("\\", "/"), comments=True))]


def snippet(word: str) -> str:
    """Return the one block of Python, in any page, in which a word stands."""
    (only,) = [block for page in PAGES for block in blocks(page, "python") if word in block]
    return only


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MAX_README_WORDS


def test_the_table_of_targets_is_the_one_that_drives_the_export() -> None:
    assert [row[:4] for row in rows("Targets")] == [
        [str(target), ", ".join(map(str, record.precisions)), record.model_file, f"vae-edge[{record.extra}]"]
        for target, record in SUPPORTED.items()
    ]


def test_every_command_is_in_the_table_of_commands() -> None:
    named = {row[0].removeprefix("vae-edge ").removeprefix("vae-").split()[0] for row in rows("Commands")}
    assert named == set(COMMANDS)


@pytest.mark.slow
def test_every_command_of_the_readme_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    pytest.importorskip("lightning")
    from vae_edge.train.sample import SampleSettings, write_sample_set

    monkeypatch.chdir(tmp_path)
    sizes = SampleSettings(image_size=64, n_train=160, n_test_good=6, n_test_per_defect=2)
    write_sample_set(tmp_path, ["dial"], sizes)[0].rename("pictures")
    shutil.copytree("pictures/test/scratch", "today")
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for words in commands("README.md"):
        program, *arguments = words
        if program in ("git", "cd", "python"):
            assert words in (
                ["git", "clone", "REPOSITORY", "vae-edge"],
                ["cd", "vae-edge"],
                ["python", "-m", "venv", ".venv"],
            )
        elif program == "make":
            # `make test` is what runs this; `make demo` is run by the demo's own test.
            subprocess.run(["make", "-n", "-C", str(ROOT), *arguments], check=True, capture_output=True)
        elif program == ".venv/Scripts/vae-edge":
            assert arguments == ["demo"]  # As with `make demo`.
        elif program.endswith("pip") or arguments[:2] == ["-m", "pip"]:
            for extra in re.findall(r"\[(.+?)\]", words[-1]):
                assert extra in metadata["optional-dependencies"]
        else:
            assert program in metadata["scripts"], words
            more = shlex.split(SHORTER.get(program, ""))
            name = None if program == "vae-edge" else program.removeprefix("vae-")
            code, out, err = command(*arguments, *more, program=name)
            assert code == 0, f"{shlex.join(words)}\n{out}\n{err}"
    assert Path("report/report.html").is_file()
    assert len(Path("results/predictions.jsonl").read_text().splitlines()) == 2
    assert any(Path("results/overlays").iterdir())


@pytest.mark.parametrize("page", PAGES)
def test_the_options_it_names_exist(page: str) -> None:
    from typer.main import get_command

    from vae_edge.cli.main import _Apps

    pytest.importorskip("lightning")
    for program, *arguments in commands(page):
        if program == "vae-edge" and arguments[0] in COMMANDS:
            name, *arguments = arguments
        elif program.startswith("vae-") and program.removeprefix("vae-") in COMMANDS:
            name = program.removeprefix("vae-")
        else:
            continue
        app = get_command(_Apps(False).one_command(name, arguments))
        together = [app, *getattr(app, "commands", {}).values()]
        known = {option for each in together for parameter in each.params for option in parameter.opts}
        named = {word for word in arguments if word.startswith("--")}
        assert named <= known | {"--help", "--debug"}, (page, program, sorted(named - known))


def test_the_presets_have_the_parameters_that_the_table_says() -> None:
    torch = pytest.importorskip("torch")
    from vae_edge.train.model.network import Vae, count_flops, count_parameters

    for name, *cells in rows("Sizes of the network on pixels", "train/TRAINING.md"):
        for side, parameters, flops in zip((256, 128, 64), cells[::2], cells[1::2], strict=True):
            with torch.device("meta"):
                vae = Vae.from_architecture(PRESETS[name].architecture(name, side, side))
            assert count_parameters(vae) / 1e6 == pytest.approx(float(parameters.removesuffix(" M")), rel=0.01)
            assert count_flops(vae) / 1e9 == pytest.approx(float(flops), rel=0.01)


@pytest.mark.parametrize("page", PAGES)
def test_the_files_and_headings_it_links_to_are_there(page: str) -> None:
    for link in re.findall(r"\]\(([^):]+)\)", PAGES[page]):
        name, _, heading = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("page", PAGES)
def test_the_make_targets_it_names_are_there(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", PAGES[page], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    if page == "README.md":
        assert {"demo", "test"} <= set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
