"""The README's claims that a test can hold against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vae_edge.cli.main import COMMANDS
from vae_edge.targets import SUPPORTED
from vae_edge.train.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_targets_is_the_one_that_drives_the_export() -> None:
    assert [row[:4] for row in rows("Targets")] == [
        [str(target), ", ".join(map(str, record.precisions)), record.model_file, f"vae-edge[{record.extra}]"]
        for target, record in SUPPORTED.items()
    ]


def test_every_command_is_in_the_table_of_commands() -> None:
    named = {row[0].removeprefix("vae-edge ").removeprefix("vae-").split()[0] for row in rows("Commands")}
    assert named == set(COMMANDS)


def snippet(word: str) -> str:
    """Return the one block of Python in which a word stands."""
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in block]
    return str(found)


@pytest.mark.slow
def test_training_from_a_program_works_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    from vae_edge.sample import SampleSettings, write_sample_set
    from vae_edge.train import RunFolder

    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=2, n_test_per_defect=1)
    write_sample_set(tmp_path, ["dial"], sizes)[0].rename(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    exec(snippet("EarlyStopping").replace("max_epochs=40", "max_epochs=2"), {})
    run = RunFolder.open("runs/tile")
    assert run.record.training.ended_by == "epochs"
    assert run.record.settings.trainer == {"gradient_clip_val": 1.0}
    table = next(Path("experiments").rglob("metrics.csv"))
    assert {"held_out_loss", "lr-Adam"} <= set(table.read_text().splitlines()[0].split(","))
    assert list(table.parent.glob("checkpoints/*.ckpt"))


def test_the_presets_have_the_parameters_that_the_table_says() -> None:
    torch = pytest.importorskip("torch")
    from vae_edge.train.network import Vae, count_flops, count_parameters

    for name, *cells in rows("Networks"):
        for side, parameters, flops in zip((256, 128, 64), cells[::2], cells[1::2], strict=True):
            with torch.device("meta"):
                vae = Vae.from_architecture(PRESETS[name].architecture(name, side, side))
            assert count_parameters(vae) / 1e6 == pytest.approx(float(parameters.removesuffix(" M")), rel=0.01)
            assert count_flops(vae) / 1e9 == pytest.approx(float(flops), rel=0.01)


def test_the_files_it_names_are_there() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:benchmarks|\.ci)/[\w.]+)`", README)
    assert linked
    for name in linked:
        assert (ROOT / name).exists(), name


def test_the_make_targets_it_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    blocks, inline = re.findall(r"^make ([a-z-]+)", README, re.MULTILINE), re.findall(r"`make ([a-z-]+)`", README)
    assert {"demo", "test"} <= set(blocks)
    for target in {*blocks, *inline}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
