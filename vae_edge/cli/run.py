"""`vae-run`: pictures in, one line for each out, with the anomalies drawn in where they are wanted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vae_edge.backends.base import Hint
from vae_edge.bundle import Bundle
from vae_edge.cli.console import lines_stdout, notes_console, print_error
from vae_edge.cli.options import keys_of, refuse_idle, with_option_groups
from vae_edge.cli.progress import progress_bar, step_progress
from vae_edge.cli.run_options import (
    FrameOptions,
    LineOptions,
    MonitorOptions,
    Overlays,
    PictureOptions,
    ResultOptions,
    RuntimeChoices,
    WatchingOptions,
    need_of_gate,
    needs_of_options,
    needs_of_sources,
    needs_of_targets,
)
from vae_edge.cli.run_summary import print_summary
from vae_edge.decision import thresholds_at
from vae_edge.detector import Detector
from vae_edge.drift import check_alarm_rate
from vae_edge.errors import UsageError
from vae_edge.platform.atomic import LOCK_FILE, claim
from vae_edge.platform.outside import user_path
from vae_edge.sinks.annotated_video import AnnotatedVideos
from vae_edge.sinks.inspection import Tally, close_sink, inspect_all
from vae_edge.sinks.keep_rules import DRIFT, KeepRules, parse_quota
from vae_edge.sinks.kept_pictures import DEFAULT_QUOTA, KeptFolder
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
from vae_edge.sources.division import Shard
from vae_edge.sources.opening import STANDARD_INPUT, open_sources, open_watch
from vae_edge.sources.pictures import AtMost, Source
from vae_edge.sources.trigger import Trigger
from vae_edge.wording import count

if TYPE_CHECKING:
    from vae_edge.manifest import Thresholds
    from vae_edge.sinks.line.line import Line
    from vae_edge.sinks.line.rate_control import RateControl

_LINES = {"jsonl": (JsonLines, PREDICTIONS_FILE), "csv": (CsvLines, TABLE_FILE)}
"""Formats of the lines: how they are written, and the file's name in --out."""


@with_option_groups
def run(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a folder made by vae-export.")],
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Images, folders, globs (in quotes), videos, cameras (0, /dev/video0, gst:PIPELINE), URLs, or - for "
            "paths from stdin.",
        ),
    ],
    result: ResultOptions,
    picture: PictureOptions,
    frame: FrameOptions,
    watching: WatchingOptions,
    line: LineOptions,
    monitor: MonitorOptions,
    runtime: RuntimeChoices,
) -> None:
    """Inspect images and write one line for each, in order; an unreadable image gets a line with the error.

    Exit code 0: every image got a verdict, and every receiver got it or gets it from the next run. 1: not so.

        vae-run BUNDLE today --out results                     the images of a folder
        vae-run BUNDLE incoming --watch --out results          those that arrive in it
        vae-run BUNDLE rtsp://camera/stream --video --out results
    """
    out = result.out
    formats = _formats(result.line_format, out)
    if picture.max_pictures is not None and picture.max_pictures < 1:
        raise UsageError(f"max-pictures is {picture.max_pictures}; expected 1 or more")
    if monitor.drift_alarm is not None:
        check_alarm_rate(monitor.drift_alarm)
    line.check_once()
    refuse_idle(context, needs_of_options(result, watching, line, monitor))
    rules, quota_bytes = KeepRules.parse(monitor.keep or []), parse_quota(monitor.keep_quota or DEFAULT_QUOTA)
    if DRIFT in rules.names and monitor.drift is None:
        raise UsageError("--keep drift keeps pictures around an alarm of drift: add --drift STATE_FILE")
    watch = watching.options
    shard = None if picture.shard is None else Shard.parse(picture.shard)
    if out is not None:
        check_no_earlier_run(out, overwrite=result.overwrite)
    opened = Bundle.open(bundle, trusted_keys=keys_of(runtime.trusted_key))
    thresholds = opened.manifest.thresholds
    if monitor.false_alarm_rate is not None:
        thresholds = thresholds_at(thresholds, monitor.false_alarm_rate)  # What is wrong with it, at once.
    refuse_idle(context, [*needs_of_targets({opened.manifest.target}), need_of_gate(opened.manifest)])
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(claim(out / LOCK_FILE, f"another vae-run is writing to {out}"))
            check_no_earlier_run(out, overwrite=result.overwrite)  # Which may have ended meanwhile.
        trigger = Trigger() if line.allow_control and not line.no_trigger else None
        to_the_line: Line | None = None
        rates: RateControl | None = None
        if line.addresses:
            to_the_line, rates = _open_line(line, opened, thresholds, out, trigger, stack)
        kept = None
        if monitor.keep_dir is not None:
            kept = _open_kept(monitor.keep_dir, rules, quota_bytes, opened, thresholds, source, out)
            stack.callback(kept.close)
        white_level, max_pixels = opened.manifest.preparation.white_level, picture.max_pixels
        pictures: Source
        if watch is not None:
            pictures = open_watch(
                source,
                recursive=picture.recursive,
                white_level=white_level,
                max_pixels=max_pixels,
                except_in=out,
                options=watch,
            )
        else:
            pictures = open_sources(
                source,
                recursive=picture.recursive,
                every=frame.every,
                max_frames=frame.max_frames,
                white_level=white_level,
                max_pixels=max_pixels,
                except_in=out,
                null_separated=picture.null,
                live=replace(frame.live, trigger=trigger),
                shard=shard,
            )
        refuse_idle(context, needs_of_sources(source, pictures, line))
        if picture.max_pictures is not None:
            pictures = AtMost(pictures, picture.max_pictures)
        if STANDARD_INPUT in source and sys.stdin.isatty():
            notes_console().print("Reading paths from this terminal, one per line; end with Ctrl-D.")
        with _open_detector(opened, runtime, picture, monitor, is_live=pictures.is_live) as detector:
            if rates is not None:
                rates.steer(detector)
            sinks = [*_open_sinks(result, formats), *([] if kept is None else [kept])]
            n_failed = _inspect(detector, pictures, sinks, to_the_line, runtime.batch_size, out)
    if n_failed:
        raise typer.Exit(1)


def _open_detector(
    bundle: Bundle,
    runtime: RuntimeChoices,
    picture: PictureOptions,
    monitor: MonitorOptions,
    *,
    is_live: bool,
) -> Detector:
    usual = Hint.LATENCY if is_live and runtime.requests is None else Hint.THROUGHPUT
    with step_progress() as progress:
        return Detector.open(
            bundle,
            device=runtime.device,
            hint=runtime.hint or usual,
            threads=runtime.threads,
            requests=runtime.requests,
            spinning=runtime.spinning,
            arithmetic=runtime.arithmetic.value,
            cache=not runtime.no_cache,
            rebuild=not runtime.no_rebuild,
            false_alarm_rate=monitor.false_alarm_rate,
            gate=not monitor.no_gate,
            drift=monitor.drift or False,
            drift_alarm_rate=monitor.drift_alarm,
            progress=progress,
        )


def _formats(text: str, out: Path | None) -> list[str]:
    formats = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in formats if name not in _LINES]
    if unknown or not formats:
        raise UsageError(f"{', '.join(unknown) or 'nothing'!r} is not a format for the lines; choose from jsonl, csv")
    if out is None and len(formats) > 1:
        raise UsageError("stdout can have only one format; choose one, or pass a folder with --out")
    return formats


def _open_sinks(result: ResultOptions, formats: list[str]) -> list[Sink]:
    """Open what the verdicts go to; what makes files comes before the lines that name them."""
    out, which = result.out, result.overlays or Overlays.ANOMALOUS
    if out is None:
        return [_LINES[name][0](lines_stdout()) for name in formats]
    sinks: list[Sink] = []
    if result.video:
        sinks.append(AnnotatedVideos(out / VIDEOS_FOLDER))
    if which is not Overlays.NONE:
        folder = OverlayFolder(
            out / OVERLAYS_FOLDER,
            file_format=result.overlay_format.value,
            only_anomalous=which is Overlays.ANOMALOUS,
        )
        sinks.append(folder)
    if result.overwrite:
        clear_earlier_run(out)
    lines = [_LINES[name][0](out / _LINES[name][1]) for name in formats]
    for second in lines[1:]:
        second.is_by_product = True  # The first holds every verdict.
    return [*sinks, *lines]


def _open_kept(
    folder: Path,
    rules: KeepRules,
    quota_bytes: int,
    bundle: Bundle,
    thresholds: Thresholds,
    sources: Sequence[str],
    out: Path | None,
) -> KeptFolder:
    """Open the folder of kept pictures, before anything else takes time.

    Raises:
        UsageError: see `KeptFolder`; it is among the sources, which would give the kept pictures again; or it
            is the folder of results.
    """
    if out is not None and folder.resolve() == out.resolve():
        raise UsageError(f"--keep-dir {folder} is also --out; choose another folder, such as {out / 'kept'}")
    for text in sources:
        source = user_path(text)
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise UsageError(f"--keep-dir {folder} is in the source {text}; choose a folder outside it")
    return KeptFolder(folder, rules, quota_bytes, bundle, thresholds)


def _open_line(
    options: LineOptions,
    bundle: Bundle,
    thresholds: Thresholds,
    out: Path | None,
    trigger: Trigger | None,
    stack: ExitStack,
) -> tuple[Line, RateControl | None]:
    """Connect to the machine beside the line, before anything else takes time."""
    from vae_edge.sinks.line.channel import About
    from vae_edge.sinks.line.line import Line
    from vae_edge.sinks.line.opening import folder_for, make_channels
    from vae_edge.sinks.line.rate_control import RateControl
    from vae_edge.sinks.line.settings import LineSettings

    rates = RateControl(thresholds) if options.allow_control else None
    settings = LineSettings.read(options.settings_file)
    channels = make_channels(settings, **options.addresses, trigger=trigger, rates=rates)
    folder = folder_for(settings, out)
    if settings.folder is not None:
        busy = f"another vae-run keeps verdicts that wait in {settings.folder}"
        stack.enter_context(claim(settings.folder / LOCK_FILE, busy))
    line = Line(
        channels,
        About.of(bundle.manifest, thresholds),
        folder=folder,
        most_bytes=settings.most_bytes,
        is_optional=options.sink_optional,
    )
    if rates is not None:
        rates.when_set(lambda now: line.tell(About.of(bundle.manifest, now)))
    return stack.enter_context(line), rates


def _inspect(
    detector: Detector,
    pictures: Source,
    sinks: list[Sink],
    line: Line | None,
    batch_size: int | None,
    out: Path | None,
) -> int:
    """Inspect everything and print the summary; return how many pictures got no verdict, or lost it on the way."""
    tally = Tally()
    if line is not None:
        sinks = [*sinks, line]  # After what names files in the record, and after the lines, which are the record.
    # A bar on stderr and lines on the same terminal's stdout would overwrite each other.
    visible = out is not None or not sys.stdout.isatty()
    interrupted = False
    try:
        with ExitStack() as stack, progress_bar("inspecting", visible=visible) as report:
            for sink in sinks:
                stack.callback(close_sink, sink, tally)
            try:
                inspect_all(detector, pictures, sinks, tally, batch_size=batch_size, progress=report)
            except KeyboardInterrupt:
                if line is not None:
                    line.hurry()
                raise
    except KeyboardInterrupt:
        interrupted = True
    print_summary(detector, pictures, tally, sinks, out)
    if interrupted:
        print_error(f"interrupted after {count(tally.n_pictures, 'picture')}; all results are written")
        raise typer.Exit(130) from None
    if line is not None and line.n_lost:
        print_error(
            f"{count(line.n_lost, 'verdict')} did not reach the machine beside the line and will not: dropped or "
            f"refused, as the summary says; {'the lines in ' + str(out) if out is not None else 'stdout'} had them all"
        )
        return tally.counts["error"] + line.n_lost
    return tally.counts["error"]
