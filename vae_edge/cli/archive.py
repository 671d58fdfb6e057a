"""`vae-edge archive`: millions of pictures scored on many cores or machines, into Parquet."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.archive.cluster import check_cluster, connected, score_on
from vae_edge.archive.filling import Filled, count_there, fill
from vae_edge.archive.listing import Kind, Part, Source, SourceOptions, list_source, open_source, shown
from vae_edge.archive.places import LocalPlace, Place, open_place
from vae_edge.archive.plan import (
    Archive,
    ScoringSettings,
    begin_archive,
    bundle_sha256,
    check_same,
    describe,
    read_archive,
    read_record,
)
from vae_edge.archive.scoring import Work, files_of
from vae_edge.bundle import Bundle
from vae_edge.cli.console import notes_console, plain_table, print_error, print_warning
from vae_edge.cli.options import (
    MaxPixelsOption,
    NoGateOption,
    OptionGroup,
    RateOption,
    TrustedKeyOption,
    keys_of,
    with_option_groups,
)
from vae_edge.cli.progress import progress_bar, step_progress
from vae_edge.cli.run_options import Arithmetic
from vae_edge.decision import thresholds_at
from vae_edge.errors import MissingDependencyError, UsageError
from vae_edge.image import max_pixels_in_force
from vae_edge.platform.atomic import LOCK_FILE, claim
from vae_edge.sinks.sink import trust_warnings
from vae_edge.wording import count

_NEEDED = ("pyarrow", "ray")
_LINE_EVERY_S = 30.0
"""Where stderr is no terminal, a line of progress."""


@dataclass(frozen=True)
class ResultOptions(OptionGroup):
    """Where the results go, and who works."""

    out: Annotated[
        str, typer.Option(metavar="PARQUET_DIR", help="Folder or URI of the results; one that is there is continued.")
    ]
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster to join: auto, or HOST:PORT of its head. Without it, Ray is started on this machine.",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Workers, of one processor each.", show_default="as many as there are processors"
        ),
    ] = None


@dataclass(frozen=True)
class SourceChoices(OptionGroup, panel="Source"):
    """What is read."""

    kind: Annotated[
        Kind | None, typer.Option(help="What to take, where the source holds several.", show_default="what is there")
    ] = None
    picture_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Parquet: column with bytes of picture files, or a struct with them as bytes.",
            show_default="the only one, or image, picture, img, bytes",
        ),
    ] = None
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Parquet: column of ids.", show_default="file and row")
    ] = None
    rows_per_part: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, metavar="N", help="Pictures in one file of results, about; of an archive that is begun."
        ),
    ] = 500
    max_pixels: MaxPixelsOption = None


@dataclass(frozen=True)
class ScoringOptions(OptionGroup, panel="Scoring"):
    """How verdicts come about."""

    false_alarm_rate: RateOption = None
    no_gate: NoGateOption = False
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures per run of the model.")] = 1
    arithmetic: Annotated[
        Arithmetic,
        typer.Option(help="auto is the device's faster arithmetic if the bundle's references agree."),
    ] = Arithmetic.FP32
    trusted_key: TrustedKeyOption = None


@with_option_groups
def archive(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a folder made by vae-export.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder, or URI of a pyarrow filesystem (s3://, gs://, abfs://, hdfs://), with all below it.",
        ),
    ],
    result: ResultOptions,
    choices: SourceChoices,
    scoring: ScoringOptions,
) -> None:
    """Score an archive of pictures on Ray Data into Parquet, a row each; an unreadable picture is a row with its error.

        vae-edge archive BUNDLE /data/2026 --out results                        on the cores of this machine
        vae-edge archive BUNDLE s3://plant/2026 --out s3://plant/results --address auto

    SOURCE holds picture files, Parquet files with a column of pictures, or WebDataset files (.tar). It is listed once.
    The same command continues a run that was interrupted or killed: no row is lost, and none is there twice.

    Exit code 0: every picture of the archive has a verdict, whichever run scored it. 1: at least one has none.
    """
    _check_packages()
    opened = Bundle.open(bundle, trusted_keys=keys_of(scoring.trusted_key))
    if scoring.false_alarm_rate is not None:
        thresholds_at(opened.manifest.thresholds, scoring.false_alarm_rate)  # What is wrong with it, at once.
    if scoring.no_gate and opened.manifest.gate is None:
        raise UsageError("--no-gate is for bundles with a gate, and this one has none: leave it out")
    settings = ScoringSettings(
        false_alarm_rate=scoring.false_alarm_rate,
        gate=not scoring.no_gate,
        max_pixels=max_pixels_in_force(choices.max_pixels),
        arithmetic=scoring.arithmetic.value,
    )
    out = open_place(result.out)
    out.check_writable()
    with ExitStack() as stack:
        if isinstance(out, LocalPlace):
            stack.enter_context(claim(out.folder / LOCK_FILE, f"another vae-edge archive is writing to {out.shown}"))
        found = _open_archive(out, source, choices, opened, settings, result)
        for warning in trust_warnings(opened):
            print_warning(warning)
        _score(*found, opened, result, scoring)


def _check_packages() -> None:
    """Refuse, with the way out, where Ray or pyarrow is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(
                f'this command needs the package {name!r}, which is not installed; run: pip install "vae-edge[archive]"'
            )


def _open_archive(
    out: Place, text: str, choices: SourceChoices, bundle: Bundle, settings: ScoringSettings, result: ResultOptions
) -> tuple[Archive, Source]:
    """Continue the archive that is there, or plan a new one."""
    place, only = open_source(text)
    record = read_record(out)
    if record is not None:
        check_same(record, out, bundle, shown(place, only), settings)
        for name in ("kind", "picture_column", "id_column"):
            asked, begun = getattr(choices, name), getattr(record, name)
            if asked not in (None, begun):
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} is {asked}, but {out.shown} was begun with {begun}; choose another --out")
        source = Source(place, record.kind, record.picture_column, record.id_column, only)
        return read_archive(out, record), source
    check_cluster(result.address, result.workers)  # Listing may take minutes, and a plan is for one source alone.
    options = SourceOptions(choices.kind, choices.picture_column, choices.id_column, choices.rows_per_part)
    with step_progress() as step:
        step("listing the source", 0, 1)
        source, parts = list_source(
            place, only, options, except_in=out, progress=partial(step, "looking into Parquet files")
        )
        step("listing the source", 1, 1)
    return begin_archive(out, source, parts, bundle, settings), source


def _score(archive: Archive, source: Source, bundle: Bundle, result: ResultOptions, scoring: ScoringOptions) -> None:
    """Score what is missing and print the summary."""
    archive.place.clear_leftovers(archive.folder)
    missing = archive.missing()
    notes = notes_console()
    notes.print(f"{describe(archive)}; {count(len(missing), 'part')} to do", soft_wrap=True)
    with step_progress() as step:
        filled = Filled(count_there(archive, missing, partial(step, "counting what is there")))
    begun_s = time.monotonic()
    work = Work(
        source,
        archive.record.settings,
        bundle.folder,
        bundle_sha256(bundle),
        bundle.trusted,
        batch_size=scoring.batch_size,
    )
    try:
        if missing:
            with connected(result.address, result.workers) as cluster:
                files = None if cluster.is_local else files_of(bundle)
                begun_s = time.monotonic()
                with _progress(archive, missing, filled) as report:
                    fill(archive, missing, partial(score_on, cluster, work, files), filled, report)
    except KeyboardInterrupt:
        _summarize(archive, filled, time.monotonic() - begun_s)
        print_error(
            f"interrupted after {count(filled.n_pictures, 'picture')}; what is written is whole: run the same command "
            "to go on"
        )
        raise typer.Exit(130) from None
    _summarize(archive, filled, time.monotonic() - begun_s)
    if filled.all_counts["error"]:
        raise typer.Exit(1)


@contextmanager
def _progress(archive: Archive, missing: list[Part], begun: Filled) -> Iterator[Callable[[Filled], None]]:
    """Show how far it is: a bar on a terminal, else a line now and then."""
    total = archive.record.n_pictures
    there = sum(begun.there.values())
    begun_s = last_s = time.monotonic()
    with progress_bar("scoring") as move:

        def report(filled: Filled) -> None:
            nonlocal last_s
            if total is None:
                move(archive.record.n_parts - len(missing) + filled.n_parts, archive.record.n_parts)
            else:
                move(there + filled.n_pictures, total)
            now_s = time.monotonic()
            if not notes_console().is_terminal and now_s - last_s > _LINE_EVERY_S:
                last_s = now_s
                of = "" if total is None else f" of {total}"
                rate = filled.n_pictures / (now_s - begun_s)
                notes_console().print(f"  {there + filled.n_pictures}{of} pictures, {rate:.1f}/s", soft_wrap=True)

        yield report


def _summarize(archive: Archive, filled: Filled, seconds: float) -> None:
    table = plain_table(headers=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    counts = filled.all_counts
    now = f"{filled.n_pictures} now, " if filled.there else ""
    rate = f"  ({now}{filled.n_pictures / max(seconds, 1e-9):.1f}/s)" if filled.n_pictures else ""
    table.add_row("pictures", f"{sum(counts.values())}{rate}")
    for name in ("anomalous", "normal", "not inspectable"):
        if counts[name] or name != "not inspectable":
            table.add_row(name, str(counts[name]))
    table.add_row("errors", str(counts["error"]))
    left = len(archive.missing())
    n_parts = archive.record.n_parts
    table.add_row(
        "parts", f"{filled.n_parts} written, {left} of {n_parts} missing" if left else f"all {n_parts} are there"
    )
    table.add_row("workers", str(len(filled.workers)))
    table.add_row("results", archive.place.path_of(archive.folder))
    notes_console().print(table)
