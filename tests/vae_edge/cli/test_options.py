"""Groups of options become a command's signature, and what has no effect is refused."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.main import get_command

from vae_edge.cli.main import COMMANDS, _load
from vae_edge.cli.options import (
    Condition,
    OptionGroup,
    SourceKind,
    idle,
    in_words,
    refuse_idle,
    refuse_others,
    with_option_groups,
)
from vae_edge.errors import MissingDependencyError, UsageError


@dataclass(frozen=True)
class Common(OptionGroup):
    source: Annotated[Path, typer.Argument(help="What.")]
    out: Annotated[Path | None, typer.Option(help="Where to.")] = None


@dataclass(frozen=True)
class Speed(OptionGroup, panel="Speed"):
    max_batch: Annotated[int, typer.Option(help="Most at once.")] = 8
    steps: Annotated[list[str] | None, typer.Option("--step", help="In which steps.")] = None
    quick: Annotated[bool, typer.Option("--quick", rich_help_panel="Elsewhere", help="In a hurry.")] = False


@pytest.fixture
def run() -> Callable[..., tuple[typer.Context, Common, Speed]]:
    """Run a toy command with some words; gives what it got."""

    def call(*words: str) -> tuple[typer.Context, Common, Speed]:
        got: list[tuple[typer.Context, Common, Speed]] = []

        @with_option_groups
        def toy(context: typer.Context, common: Common, speed: Speed) -> None:
            got.append((context, common, speed))

        app = typer.Typer(add_completion=False)
        app.command()(toy)
        get_command(app).main(list(words), standalone_mode=False)
        return got[0]

    return call


def test_a_command_gets_its_groups(run: Callable[..., tuple[typer.Context, Common, Speed]]) -> None:
    _, common, speed = run("here")
    assert (common, speed) == (Common(Path("here"), None), Speed(8, None, False))
    _, common, speed = run("--max-batch", "2", "here", "--step", "a", "--step", "b", "--out", "there", "--quick")
    assert (common, speed) == (Common(Path("here"), Path("there")), Speed(2, ["a", "b"], True))


def test_each_option_is_in_the_panel_of_its_group_unless_it_names_another() -> None:
    assert Speed.names() == {"max_batch", "steps", "quick"}
    panels = {}
    for group in (Common, Speed, Speed):  # A second use finds the declarations as they were.
        for parameter in group.parameters():
            panels[parameter.name] = parameter.annotation.__metadata__[0].rich_help_panel
    assert panels == {"source": None, "out": None, "max_batch": "Speed", "steps": "Speed", "quick": "Elsewhere"}


def test_options_of_another_kind_of_source_are_refused_with_what_they_are_for(
    run: Callable[..., tuple[typer.Context, Common, Speed]],
) -> None:
    kinds = (
        SourceKind("a file", "files", frozenset({"out"})),
        SourceKind("a folder", "folders", frozenset({"out", "max_batch"})),
        SourceKind("a camera", "cameras", frozenset({"max_batch", "quick"})),
    )
    context, _, _ = run("here", "--max-batch", "8", "--quick", "--out", "there")
    with pytest.raises(UsageError) as refusal:
        refuse_others(context, "here", kinds[0], kinds)
    assert str(refusal.value) == (
        "--max-batch is for folders and cameras; --quick is for cameras; but here is a file: leave them out"
    )
    refuse_others(run("here", "--out", "there")[0], "here", kinds[0], kinds)  # Defaults are not given.


def test_options_without_effect_are_refused_with_every_reason(
    run: Callable[..., tuple[typer.Context, Common, Speed]],
) -> None:
    context, _, _ = run("here", "--max-batch", "2", "--quick", "--step", "a")
    conditions = (
        Condition({"max_batch", "quick"}, False, "for folders: name one"),
        Condition({"steps"}, False, "for stairs"),
        Condition({"steps"}, True, "for ladders"),
        Condition({"out"}, False, "for those who give it"),
    )
    assert idle(context, conditions) == ["--max-batch and --quick are for folders: name one", "--step is for stairs"]
    with pytest.raises(UsageError, match="--max-batch and --quick are for folders: name one; --step is for stairs"):
        refuse_idle(context, conditions)
    refuse_idle(context, conditions[2:])


@pytest.mark.parametrize("name", COMMANDS)
def test_no_function_of_a_command_takes_more_than_ten_parameters(name: str) -> None:
    entry = COMMANDS[name]
    module, _, attribute = entry.function.partition(":")
    try:
        _load(entry)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    found = importlib.import_module(module)
    functions = [getattr(found, each) for each in (attribute, *entry.children)]
    functions += [each for _, each in inspect.getmembers(found, inspect.isfunction) if each.__module__ == module]
    for function in functions:
        assert len(inspect.signature(inspect.unwrap(function)).parameters) <= 10, function


def test_lists_in_words() -> None:
    assert [in_words("abc"[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
