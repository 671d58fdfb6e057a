"""Options in declared groups: how a command gets its signature from them, and how what has no effect is refused.

A group is a frozen dataclass whose fields carry typer's declarations. To add an option to a command, add a field:

    @dataclass(frozen=True, kw_only=True)
    class ThresholdOptions(OptionGroup, panel="Threshold"):
        folds: Annotated[int, typer.Option(help="With cross: into how many parts the good parts are cut.")] = 5

    @with_option_groups
    def train(context: typer.Context, threshold: ThresholdOptions) -> None: ...

An option that means the same in several commands, such as `--device`, is declared here, once.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

import typer

from vae_edge.errors import UsageError
from vae_edge.image import MAX_PIXELS
from vae_edge.signing.keys import TrustedKeys, trusted_keys

DeviceOption = Annotated[
    str, typer.Option(metavar="NAME", help="auto or the runtime's name: cpu, gpu, npu, cuda:1; doctor lists them.")
]
RecursiveOption = Annotated[bool, typer.Option("--recursive", help="Include sub-folders.")]
NoRebuildOption = Annotated[
    bool,
    typer.Option(
        "--no-rebuild", help="TensorRT: fail if the engine does not fit this device, instead of building another."
    ),
]
TrustedKeyOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        metavar="PUB.pem",
        help="Refuse a bundle that is not signed by this public key or a certificate of this root; may be repeated.",
        show_default="the policy's",
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="A picture with more pixels is an error and is not decoded.",
        show_default=f"VAE_EDGE_MAX_PIXELS, or {MAX_PIXELS}",
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Share of good parts called anomalous, from the scores of good parts in the bundle, which stays as it is.",
        show_default="the bundle's",
    ),
]
NoGateOption = Annotated[
    bool,
    typer.Option("--no-gate", help="Judge every picture, also one that is blurred, too dark or bright, or covered."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


class OptionGroup:
    """Base of the groups. A subclass is a dataclass, each field `Annotated` with a `typer.Option` or `Argument`.

    Args:
        panel: heading of the group in the command's help; None: the options that come first, without a heading of
            their own.
    """

    panel: ClassVar[str | None] = None

    def __init_subclass__(cls, *, panel: str | None = None) -> None:
        cls.panel = panel

    @classmethod
    def names(cls) -> frozenset[str]:
        """Return the names of the group's options, as parameters: `image_size` for `--image-size`."""
        return frozenset(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]  # see the class

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return the parameters that the group puts into a command's signature."""
        hints = get_type_hints(cls, include_extras=True)
        return [_parameter(field, hints[field.name], cls.panel) for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # as above


def _parameter(field: dataclasses.Field[Any], hint: Any, panel: str | None) -> inspect.Parameter:
    kind, declared = get_args(hint)
    if isinstance(declared, type(typer.Option())):
        declared = copy.copy(declared)  # Two commands may share a group.
        declared.rich_help_panel = declared.rich_help_panel or panel
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
    )


def with_option_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function for typer that has each option of the groups as a parameter, and gives `function` the groups.

    Parameters of `function` that are not groups stay what they are.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type[OptionGroup]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and issubclass(hint, OptionGroup):
            groups[parameter.name] = hint
            parameters += hint.parameters()
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint))

    @functools.wraps(function)
    def command(**values: Any) -> None:
        made = {name: group(**{each: values.pop(each) for each in group.names()}) for name, group in groups.items()}
        function(**made, **values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@dataclass(frozen=True)
class SourceKind:
    """One kind of what a command takes, with the options that are for it; it refuses the others."""

    one: str
    """What it is, in words, such as "a run folder"."""
    several: str
    options: frozenset[str]
    """Parameters of the command."""


def refuse_others(context: typer.Context, source: object, kind: SourceKind, kinds: Sequence[SourceKind]) -> None:
    """Refuse options that are not for this kind of source.

    Args:
        context: of the command.
        source: what was given, as the message names it.
        kind: what it is.
        kinds: all that the command takes, to say what the refused options are for.

    Raises:
        UsageError: with what each is for.
    """
    refused: dict[str, list[str]] = {}
    for name, flag in given_options(context).items():
        if name not in kind.options:
            suited = in_words([each.several for each in kinds if name in each.options])
            refused.setdefault(suited, []).append(flag)
    if refused:
        reasons = [f"{_are(flags)} for {suited}" for suited, flags in refused.items()]
        it = "it" if sum(map(len, refused.values())) == 1 else "them"
        raise UsageError(f"{'; '.join(reasons)}; but {source} is {kind.one}: leave {it} out")


@dataclass(frozen=True)
class Condition:
    """What must hold for some options to have an effect."""

    options: Collection[str]
    """Parameters of the command."""
    holds: bool
    reason: str
    """What follows "--every is": "for videos, but no source is one: leave it out"."""


def idle(context: typer.Context, conditions: Iterable[Condition]) -> list[str]:
    """Say of the options on the command line which have no effect, and why: a part of a sentence for each condition."""
    given = given_options(context)
    return [
        f"{_are(flags)} {condition.reason}"
        for condition in conditions
        if not condition.holds and (flags := [flag for name, flag in given.items() if name in condition.options])
    ]


def refuse_idle(context: typer.Context, conditions: Iterable[Condition]) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: with the reasons.
    """
    if reasons := idle(context, conditions):
        raise UsageError("; ".join(reasons))


def given_options(context: typer.Context) -> dict[str, str]:
    """Return the options of the command line, in the order of their declaration: parameter to flag."""
    return {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.opts[0].startswith("-")
        and (origin := context.get_parameter_source(parameter.name)) is not None
        and origin.name == "COMMANDLINE"
    }


def in_words(parts: Sequence[str]) -> str:
    """Return `a, b and c`.

    Examples:
        >>> in_words(["--data", "--normal", "--masks"])
        '--data, --normal and --masks'
    """
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def keys_of(paths: Sequence[Path] | None) -> TrustedKeys | None:
    """Read the files of `--trusted-key`; None: there are none.

    Raises:
        InputError: one cannot be read, or holds something else.
        MissingDependencyError: `cryptography` is not installed.
    """
    return trusted_keys(list(paths), said_by="--trusted-key") if paths else None


def _are(flags: Sequence[str]) -> str:
    return f"{in_words(flags)} {'is' if len(flags) == 1 else 'are'}"
