"""The summary of `vae-run`: counts, device, where the results are, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from vae_edge.cli.console import notes_console, plain_table, print_error, print_warning
from vae_edge.decision import describe_promise
from vae_edge.detector import Detector, n_stream_workers
from vae_edge.image import white_level_remark
from vae_edge.sinks.inspection import Tally
from vae_edge.sinks.sink import Sink, trust_warnings
from vae_edge.sources.pictures import Source
from vae_edge.wording import count


def print_summary(detector: Detector, pictures: Source, tally: Tally, sinks: Sequence[Sink], out: Path | None) -> None:
    """Print it to stderr; `out` is the folder of the results, where they do not go to stdout."""
    manifest = detector.bundle.manifest
    backend = detector.stream_backend()
    table = plain_table(headers=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    counts = tally.counts
    table.add_row("pictures", f"{tally.n_pictures}  ({tally.pictures_per_s:.1f}/s)")
    table.add_row("anomalous", _red_if_any(counts["anomalous"]))
    table.add_row("normal", str(counts["normal"]))
    if detector.gate is not None:
        table.add_row("not inspectable", _red_if_any(counts["not inspectable"]))
    table.add_row("errors", _red_if_any(counts["error"]))
    if tally.n_live:
        table.add_row("skipped frames", f"{tally.n_skipped} of {tally.n_skipped + tally.n_live}")
    if pictures.n_passed_over:
        table.add_row(
            "left out", f"{count(pictures.n_passed_over, 'file')} in these folders whose names are not those of images"
        )
    if tally.not_made:
        table.add_row("not written", Text(", ".join(f"{n} {what}" for what, n in tally.not_made.items()), "red"))
    if pictures.n_reconnections:
        table.add_row("reconnections", str(pictures.n_reconnections))
    table.add_row("device", f"{backend.device.name} with {backend.version} ({backend.device.reason})")
    table.add_row("layout", f"{backend.layout}; {count(n_stream_workers(backend.layout), 'worker')}")
    thresholds = detector.thresholds
    promise = f"{describe_promise(thresholds)}, from {count(thresholds.n_normals, 'normal')}"
    if thresholds != manifest.thresholds:
        promise += f"; chosen for this run, the bundle's own is {manifest.thresholds.false_alarm_rate:.3g}"
    table.add_row("false alarms", promise)
    if detector.gate is not None:
        table.add_row("false rejections", detector.gate.promise)
    if detector.drift is not None:
        alarm = detector.drift.alarm
        table.add_row("drift", Text(detector.drift.sentence(), "" if alarm is None else "red"))
    for what, where in (row for sink in sinks for row in sink.summary()):
        table.add_row(what, where)
    notes_console().print(table)
    for message in tally.first_errors if out is not None else ():
        print_error(message)
    if out is not None and counts["error"] > len(tally.first_errors):
        print_error(f"{counts['error'] - len(tally.first_errors)} more; the lines in {out} name them all")
    remark = white_level_remark(tally.largest_16_bit, manifest.preparation.white_level)
    if remark is not None:
        print_warning(f"{remark} It is chosen in training (vae-train), not here.")
    for sentence in trust_warnings(detector.bundle, thresholds):
        print_warning(sentence)


def _red_if_any(number: int) -> Text:
    return Text(str(number), "red" if number else "")
