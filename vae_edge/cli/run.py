"""`vae-run`: pictures in, one JSON line for each out, with the anomalies drawn in where they are wanted."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape

from vae_edge.bundle import Bundle
from vae_edge.cli.console import notes_console, plain_table, print_error, print_warning
from vae_edge.cli.progress import progress_bar
from vae_edge.detector import Detector
from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.pictures import Picture, Source
from vae_edge.prediction import Prediction
from vae_edge.sinks import (
    OVERLAYS_FOLDER,
    PREDICTIONS_FILE,
    JsonLines,
    OverlayFolder,
    check_no_earlier_run,
    error_record,
    prediction_record,
    trust_warnings,
)
from vae_edge.sources import open_sources


class Overlays(str, Enum):
    """Which pictures are written with the anomaly drawn in."""

    ALL = "all"
    ANOMALOUS = "anomalous"
    NONE = "none"


class OverlayFormat(str, Enum):
    """The file format of those pictures."""

    JPG = "jpg"
    PNG = "png"


_NAMED_ERRORS = 5


@dataclass
class Tally:
    """What a run has done so far."""

    counts: Counter[str] = field(default_factory=Counter)
    n_overlays: int = 0
    first_errors: list[str] = field(default_factory=list)
    begin_s: float = field(default_factory=time.perf_counter)

    def add_error(self, error: VaeEdgeError) -> None:
        """Count a picture without a verdict; the first few are named at the end."""
        self.counts["error"] += 1
        if len(self.first_errors) < _NAMED_ERRORS:
            self.first_errors.append(str(error))

    @property
    def n_pictures(self) -> int:
        """Pictures that have a record."""
        return sum(self.counts.values())

    @property
    def pictures_per_s(self) -> float:
        """Rate over everything: reading, deciding, drawing and writing."""
        return self.n_pictures / max(time.perf_counter() - self.begin_s, 1e-9)


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a folder that export made.")],
    source: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Images, folders, globs (in quotes), videos, a camera's index or a URL."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help=f"Folder for {PREDICTIONS_FILE} and the overlays. Without it the lines go to stdout."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu, cuda or cuda:N; doctor lists them.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Pictures for one run of the model.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Processor threads; by default the runtime decides.")] = None,
    overlays: Annotated[
        Overlays | None, typer.Option(help="Pictures to write with the anomaly drawn in.", show_default="anomalous")
    ] = None,
    overlay_format: Annotated[OverlayFormat, typer.Option(help="jpg is small, png is exact.")] = OverlayFormat.JPG,
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into sub-folders too.")] = False,
    every: Annotated[int, typer.Option(help="Of a video or a camera, take every N-th frame.")] = 1,
    max_frames: Annotated[
        int | None, typer.Option(help="Of each video or camera, take so many frames at most.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run.")] = False,
) -> None:
    """Inspect pictures and write one JSON line for each, in order; what cannot be read gets a line with the error.

    Exit code 0: every picture got a verdict. 1: at least one did not.
    """
    if out is None and overlays in (Overlays.ALL, Overlays.ANOMALOUS):
        raise typer.BadParameter("overlays are written into --out DIR, which is missing", param_hint="--overlays")
    if out is not None:
        check_no_earlier_run(out, overwrite=overwrite)
    opened = Bundle.open(bundle)
    pictures = open_sources(
        source,
        recursive=recursive,
        every=every,
        max_frames=max_frames,
        white_level=opened.manifest.preparation.white_level,
        except_in=out,
    )
    which = Overlays.ANOMALOUS if overlays is None else overlays
    with Detector.open(opened, device=device, threads=threads) as detector:
        lines = JsonLines(sys.stdout if out is None else out / PREDICTIONS_FILE, overwrite=overwrite)
        drawings = None
        if out is not None:
            # Made even where none will be written: an earlier run's pictures must not stay beside new verdicts.
            folder = OverlayFolder(out / OVERLAYS_FOLDER, file_format=overlay_format.value, overwrite=overwrite)
            drawings = None if which is Overlays.NONE else folder
        tally = Tally()
        try:
            with lines:
                _run_all(detector, pictures, batch_size, lines, drawings, which, tally)
        except KeyboardInterrupt:
            _print_summary(detector, tally, out)
            print_error(f"interrupted after {tally.n_pictures} pictures; their results are written")
            raise typer.Exit(130) from None
        _print_summary(detector, tally, out)
    if tally.counts["error"]:
        raise typer.Exit(1)


def _run_all(
    detector: Detector,
    pictures: Source,
    batch_size: int,
    lines: JsonLines,
    drawings: OverlayFolder | None,
    which: Overlays,
    tally: Tally,
) -> None:
    thresholds = detector.bundle.manifest.thresholds
    total = pictures.n_pictures
    # A bar on stderr and lines on the same terminal's stdout would overwrite each other.
    with progress_bar("inspecting", visible=not lines.on_terminal) as report:
        for picture, result in decide(detector, pictures, batch_size):
            if isinstance(result, VaeEdgeError):
                record: dict[str, Any] = error_record(picture, result)
                tally.add_error(result)
            else:
                record = prediction_record(picture, result, thresholds)
                tally.counts["anomalous" if result.is_anomalous else "normal"] += 1
                if drawings is not None and (which is Overlays.ALL or result.is_anomalous):
                    assert not isinstance(picture.image, InputError)
                    path = drawings.write(picture, picture.image, result)
                    record["overlay"] = f"{OVERLAYS_FOLDER}/{path.name}"
                    tally.n_overlays += 1
            lines.write(record)
            report(tally.n_pictures, total)


def decide(
    detector: Detector, pictures: Source, batch_size: int
) -> Iterator[tuple[Picture, Prediction | VaeEdgeError]]:
    """Pair every picture, in order, with its verdict or its error; each picture is decoded once.

    Only the few pictures that the detector has taken ahead are held.
    """
    waiting: deque[Picture] = deque()

    def images() -> Iterator[NDArray[np.uint8]]:
        for picture in pictures:
            waiting.append(picture)
            if not isinstance(picture.image, InputError):
                yield picture.image

    def unreadable() -> Iterator[tuple[Picture, VaeEdgeError]]:
        while waiting and isinstance(waiting[0].image, InputError):
            yield waiting[0], waiting.popleft().image  # type: ignore[misc]  # checked on the line above

    for result in detector.stream(images(), batch_size=batch_size, errors="return"):
        yield from unreadable()
        yield waiting.popleft(), result
    yield from unreadable()


def _print_summary(detector: Detector, tally: Tally, out: Path | None) -> None:
    manifest = detector.bundle.manifest
    choice = detector.backend.device
    table = plain_table(headers=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    counts = tally.counts
    table.add_row("pictures", f"{tally.n_pictures}  ({tally.pictures_per_s:.1f}/s)")
    table.add_row("anomalous", f"[red]{counts['anomalous']}[/red]" if counts["anomalous"] else "0")
    table.add_row("normal", str(counts["normal"]))
    table.add_row("errors", f"[red]{counts['error']}[/red]" if counts["error"] else "0")
    table.add_row("device", escape(f"{choice.name} with {detector.backend.version} ({choice.reason})"))
    rate = manifest.thresholds.false_alarm_rate
    table.add_row("false alarms", f"at most {rate:.3g} of normal parts, from {manifest.thresholds.n_normals} of them")
    if out is not None:
        table.add_row("results", escape(str(out / PREDICTIONS_FILE)))
        table.add_row("overlays", escape(f"{tally.n_overlays} in {out / OVERLAYS_FOLDER}"))
    notes_console().print(table)
    for message in tally.first_errors if out is not None else ():
        print_error(message)
    if out is not None and counts["error"] > len(tally.first_errors):
        print_error(f"{counts['error'] - len(tally.first_errors)} more; {out / PREDICTIONS_FILE} names them all")
    for sentence in trust_warnings(detector.bundle):
        print_warning(sentence)
