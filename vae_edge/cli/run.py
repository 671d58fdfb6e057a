"""`vae-run`: pictures in, one line for each out, with the anomalies drawn in where they are wanted."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.backends.base import Hint
from vae_edge.bundle import Bundle
from vae_edge.cli.console import lines_stdout, notes_console, print_error
from vae_edge.cli.progress import progress_bar, step_progress
from vae_edge.cli.run_summary import print_summary
from vae_edge.detector import Detector
from vae_edge.errors import UsageError
from vae_edge.image import MAX_PIXELS
from vae_edge.platform.atomic import LOCK_FILE, claim
from vae_edge.sinks.annotated_video import AnnotatedVideos
from vae_edge.sinks.inspection import Tally, close_sink, inspect_all
from vae_edge.sinks.lines import CsvLines, JsonLines
from vae_edge.sinks.overlays import OverlayFolder
from vae_edge.sinks.sink import (
    OVERLAYS_FOLDER,
    PREDICTIONS_FILE,
    TABLE_FILE,
    VIDEOS_FOLDER,
    Sink,
    check_no_earlier_run,
    clear_earlier_run,
)
from vae_edge.sources.live import LiveOptions
from vae_edge.sources.opening import STANDARD_INPUT, open_sources, open_watch
from vae_edge.sources.pictures import AtMost, Source
from vae_edge.sources.watch import WatchOptions


class Overlays(str, Enum):
    """Which pictures are written with the anomaly drawn in."""

    ALL = "all"
    ANOMALOUS = "anomalous"
    NONE = "none"


class OverlayFormat(str, Enum):
    """The file format of those pictures."""

    JPG = "jpg"
    PNG = "png"


_LINES = {"jsonl": (JsonLines, PREDICTIONS_FILE), "csv": (CsvLines, TABLE_FILE)}
"""Formats of the lines: how they are written, and the file's name in --out."""

_FILES, _FRAMES, _WATCHING = "Lines and files", "Videos, cameras and streams", "Watched folders"
_MODEL = "How the model runs"


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a folder that export made.")],
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Images, folders, globs (in quotes), videos, a camera's index, a URL, or - for paths from stdin.",
        ),
    ],
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into sub-folders too.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="A NUL ends each path from stdin, as find -print0 writes them.")
    ] = False,
    max_pictures: Annotated[int | None, typer.Option(help="Stop after so many pictures.")] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="A picture file with more pixels gets an error and is not decoded.",
            show_default=f"VAE_EDGE_MAX_PIXELS, or {MAX_PIXELS}",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the lines, the overlays and the videos. Without it the lines go to stdout.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of an earlier run.", rich_help_panel=_FILES)
    ] = False,
    line_format: Annotated[
        str, typer.Option("--format", help="jsonl, csv, or with --out both: jsonl,csv.", rich_help_panel=_FILES)
    ] = "jsonl",
    overlays: Annotated[
        Overlays | None,
        typer.Option(
            help="Pictures to write with the anomaly drawn in.", show_default="anomalous", rich_help_panel=_FILES
        ),
    ] = None,
    overlay_format: Annotated[
        OverlayFormat, typer.Option(help="jpg is small, png is exact.", rich_help_panel=_FILES)
    ] = OverlayFormat.JPG,
    video: Annotated[
        bool,
        typer.Option(
            "--video", help="Write each video or camera as a video with the verdicts drawn in.", rich_help_panel=_FILES
        ),
    ] = False,
    every: Annotated[int, typer.Option(help="Take every N-th frame.", rich_help_panel=_FRAMES)] = 1,
    max_frames: Annotated[
        int | None, typer.Option(help="Of each, take so many frames at most.", rich_help_panel=_FRAMES)
    ] = None,
    no_skip: Annotated[
        bool,
        typer.Option(
            "--no-skip",
            help="Take every frame of a camera or a stream, however late, and not always the newest.",
            rich_help_panel=_FRAMES,
        ),
    ] = False,
    reconnect: Annotated[
        float,
        typer.Option(
            help="Seconds to try to reach a camera or a stream again that broke off; 0: not at all.",
            rich_help_panel=_FRAMES,
        ),
    ] = LiveOptions.reconnect_s,
    follow_redirects: Annotated[
        bool,
        typer.Option("--follow-redirects", help="Follow a URL that leads to another host.", rich_help_panel=_FRAMES),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on with the images that arrive in the folder, until Ctrl-C.",
            rich_help_panel=_WATCHING,
        ),
    ] = False,
    poll: Annotated[
        float | None,
        typer.Option(
            help="Seconds between two looks.", show_default=str(WatchOptions.poll_s), rich_help_panel=_WATCHING
        ),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a file must stay the same before it is read.",
            show_default=str(WatchOptions.settle_s),
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            help="Seconds that it must stay the same before it counts as broken.",
            show_default=str(WatchOptions.patience_s),
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    idle_timeout: Annotated[
        float | None,
        typer.Option(help="End when nothing has arrived for so many seconds.", rich_help_panel=_WATCHING),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, gpu, npu, cuda or cuda:N; doctor lists them.", rich_help_panel=_MODEL)
    ] = "auto",
    hint: Annotated[
        Hint | None,
        typer.Option(
            help="Lay the model out for the next verdict or for most verdicts in a second.",
            show_default="latency for cameras and streams, else throughput",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Processor threads in use.", show_default="all usable cores", rich_help_panel=_MODEL),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Pictures that the model works on at the same time.",
            show_default="the device's best",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Pictures for one run of the model.", show_default="1", rich_help_panel=_MODEL),
    ] = None,
    spinning: Annotated[
        bool,
        typer.Option(
            "--spinning", help="ONNX Runtime: let idle threads wait for work at full load.", rich_help_panel=_MODEL
        ),
    ] = False,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", help="Neither use nor keep what was compiled for this device.", rich_help_panel=_MODEL
        ),
    ] = False,
    no_rebuild: Annotated[
        bool,
        typer.Option(
            "--no-rebuild",
            help="TensorRT: fail if the engine does not fit this device, instead of building another.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
) -> None:
    """Inspect pictures and write one line for each, in order; what cannot be read gets a line with the error.

    Exit code 0: every picture got a verdict. 1: at least one did not.
    """
    formats = _formats(line_format, out)
    for option, asked in (("--overlays", overlays not in (None, Overlays.NONE)), ("--video", video)):
        if asked and out is None:
            raise UsageError(f"{option} writes into --out DIR, which is missing; name a folder, or leave it out")
    if max_pictures is not None and max_pictures < 1:
        raise UsageError(f"max-pictures is {max_pictures}; expected 1 or more")
    watching = _watch_options(watch, poll=poll, settle=settle, patience=patience, idle_timeout=idle_timeout)
    if watching is not None and null:
        raise UsageError("--null and --watch were given; one reads paths from stdin, the other watches folders")
    live = LiveOptions(skip=not no_skip, reconnect_s=reconnect, other_hosts=follow_redirects)
    if out is not None:
        check_no_earlier_run(out, overwrite=overwrite)
    opened = Bundle.open(bundle)
    white_level = opened.manifest.preparation.white_level
    busy = f"another vae-run writes into {out}"
    with nullcontext() if out is None else claim(out / LOCK_FILE, busy):
        if out is not None:
            check_no_earlier_run(out, overwrite=overwrite)  # Which may have ended meanwhile.
        if watching is not None:
            pictures = open_watch(
                source,
                recursive=recursive,
                white_level=white_level,
                max_pixels=max_pixels,
                except_in=out,
                options=watching,
            )
        else:
            pictures = open_sources(
                source,
                recursive=recursive,
                every=every,
                max_frames=max_frames,
                white_level=white_level,
                max_pixels=max_pixels,
                except_in=out,
                null_separated=null,
                live=live,
            )
        if video and not pictures.has_frames:
            raise UsageError("--video was given, and no source is a video, a camera or a stream; leave it out")
        if max_pictures is not None:
            pictures = AtMost(pictures, max_pictures)
        if STANDARD_INPUT in source and sys.stdin.isatty():
            notes_console().print("Reading paths from this terminal, one a line; Ctrl-D ends.")
        if hint is None:
            hint = Hint.LATENCY if pictures.is_live and requests is None else Hint.THROUGHPUT
        with step_progress() as progress:
            detector = Detector.open(
                opened,
                device=device,
                hint=hint,
                threads=threads,
                requests=requests,
                spinning=spinning,
                cache=not no_cache,
                rebuild=not no_rebuild,
                progress=progress,
            )
        with detector:
            sinks = _open_sinks(out, formats, overlays or Overlays.ANOMALOUS, overlay_format, video, overwrite)
            n_errors = _inspect(detector, pictures, sinks, batch_size, out)
    if n_errors:
        raise typer.Exit(1)


def _formats(text: str, out: Path | None) -> list[str]:
    formats = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in formats if name not in _LINES]
    if unknown or not formats:
        raise UsageError(f"{', '.join(unknown) or 'nothing'!r} is no format of the lines; choose from jsonl, csv")
    if out is None and len(formats) > 1:
        raise UsageError("stdout takes one format, there are two; choose one, or name a folder with --out")
    return formats


def _watch_options(watch: bool, **times: float | None) -> WatchOptions | None:
    given = {f"{name}_s": value for name, value in times.items() if value is not None}
    if watch:
        return WatchOptions(**given)
    for name, value in times.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is about watched folders; add --watch, or leave it out")
    return None


def _open_sinks(
    out: Path | None, formats: list[str], which: Overlays, overlay_format: OverlayFormat, video: bool, overwrite: bool
) -> list[Sink]:
    """Open what the verdicts go to; what makes files comes before the lines that name them."""
    if out is None:
        return [_LINES[name][0](lines_stdout()) for name in formats]
    sinks: list[Sink] = []
    if video:
        sinks.append(AnnotatedVideos(out / VIDEOS_FOLDER))
    if which is not Overlays.NONE:
        only_anomalous = which is Overlays.ANOMALOUS
        folder = OverlayFolder(out / OVERLAYS_FOLDER, file_format=overlay_format.value, only_anomalous=only_anomalous)
        sinks.append(folder)
    if overwrite:
        clear_earlier_run(out)
    lines = [_LINES[name][0](out / _LINES[name][1]) for name in formats]
    for second in lines[1:]:
        second.is_by_product = True  # The first holds every verdict.
    return [*sinks, *lines]


def _inspect(detector: Detector, pictures: Source, sinks: list[Sink], batch_size: int | None, out: Path | None) -> int:
    """Inspect everything and print the summary; return how many pictures got no verdict."""
    tally = Tally()
    # A bar on stderr and lines on the same terminal's stdout would overwrite each other.
    visible = out is not None or not sys.stdout.isatty()
    interrupted = False
    try:
        with ExitStack() as stack, progress_bar("inspecting", visible=visible) as report:
            for sink in sinks:
                stack.callback(close_sink, sink, tally)
            inspect_all(detector, pictures, sinks, tally, batch_size=batch_size, progress=report)
    except KeyboardInterrupt:
        interrupted = True
    print_summary(detector, pictures, tally, sinks, out)
    if interrupted:
        print_error(f"interrupted after {tally.n_pictures} pictures; their results are written")
        raise typer.Exit(130) from None
    return tally.counts["error"]
