"""`vae-edge verify`: run a bundle's references on this device, and fit its thresholds here if there are images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from vae_edge.backends.base import Hint
from vae_edge.bundle import Bundle
from vae_edge.cli.console import plain_table, print_warning, results_console
from vae_edge.cli.options import (
    Condition,
    DeviceOption,
    NoRebuildOption,
    RecursiveOption,
    TrustedKeyOption,
    keys_of,
    refuse_idle,
)
from vae_edge.cli.progress import progress_bar, step_progress
from vae_edge.cli.run_options import need_of_recursion, needs_of_targets
from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, check_askable_rate, describe_promise, describe_support
from vae_edge.detector import Detector
from vae_edge.errors import InputError, ParityError, UsageError
from vae_edge.gate import describe_gate
from vae_edge.image import read_pixels, white_level_remark
from vae_edge.kept import is_kept_folder, labelled_anomalous, sampled_normals
from vae_edge.manifest import ThresholdMethod
from vae_edge.picture_files.name_meanings import named_not_good
from vae_edge.platform.outside import printable, user_path
from vae_edge.references import not_verified, record_of, recorded
from vae_edge.refit import Refit
from vae_edge.signing.files import LOCAL_FILE
from vae_edge.sources.opening import image_files
from vae_edge.text_enum import TextEnum
from vae_edge.wording import count, verb

_OF_DATA = frozenset({"false_alarm_rate", "abnormal", "method", "recursive"})
"""Options that have no effect without images."""

_NAMED = 10
_LOOKED_AT = 8
"""Pictures that are examined beforehand: enough to tell that a camera has 12 bits."""


class RefitMethod(TextEnum):
    """The kinds of thresholds that can be fitted on a device; see `ThresholdMethod`."""

    SPLIT_CONFORMAL = "split-conformal"
    F1_OPTIMAL = "f1-optimal"


def verify(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a folder made by vae-export.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Normal images that were not used in training, to fit the thresholds on: a folder, files or a glob in "
            "quotes. Of a folder of vae-run --keep: the good parts among those that 1/N kept."
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of normal images that may be called anomalous.", show_default=f"{DEFAULT_FALSE_ALARM_RATE}"
        ),
    ] = None,
    abnormal: Annotated[
        list[str] | None,
        typer.Option(
            help="Images of defective parts, as for --data: shows how many are found; required for f1-optimal."
        ),
    ] = None,
    method: Annotated[
        RefitMethod,
        typer.Option(
            help="How the image threshold is chosen. split-conformal: it keeps the false-alarm rate. f1-optimal: it "
            "maximizes F1 on the images of --data and --abnormal and guarantees no rate."
        ),
    ] = RefitMethod.SPLIT_CONFORMAL,
    trusted_key: TrustedKeyOption = None,
    device: DeviceOption = "auto",
    recursive: RecursiveOption = False,
    no_rebuild: NoRebuildOption = False,
) -> None:
    """Run a bundle's references on this device, and record in the bundle whether it gives their outputs here.

    With --data its thresholds are then fitted again, on this device's scores. Every image of --data must show a good
    part: a defective one would raise the threshold. Images in the folder of --data that are named after defects or
    masks are refused.

    In a signed bundle all this goes into local.json, signed with a key of this user, and its maker's signature stays.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the bundle does not give its reference outputs here; it no longer
    counts as verified then.
    """
    if false_alarm_rate is not None:
        check_askable_rate(false_alarm_rate, "false-alarm rate")
    _check_method(method, abnormal, false_alarm_rate)
    opened = Bundle.open(bundle, trusted_keys=keys_of(trusted_key))
    needs_data = Condition(_OF_DATA, bool(data), "for fitting thresholds: add --data, a folder of normal images")
    refuse_idle(context, [*needs_of_targets({opened.manifest.target}), needs_data])
    if not data:
        record_of(opened)  # One that has no references is refused before its model is loaded.
    files = _good_files(data or [], recursive=recursive)
    defects = _defective_files(abnormal, recursive=recursive) if abnormal else None
    if data:
        refuse_idle(context, [need_of_recursion([*data, *(abnormal or ())])])
    _check_apart(files, defects or [])
    detector = _open(opened, device, rebuild=not no_rebuild)
    remark = white_level_remark(_largest_16_bit(files[:_LOOKED_AT]), opened.manifest.preparation.white_level)
    if remark is not None:
        print_warning(remark)
    for note in detector.backend.notes:
        print_warning(note)
    with detector:
        if detector.bundle.manifest.references is not None:
            _run_references(detector, confirms=not data)
        if not data:
            return
        with progress_bar("fitting thresholds") as report:
            refit = detector.refit_thresholds(
                files,
                false_alarm_rate,
                anomalous=defects,
                method=ThresholdMethod(method.value),
                max_images=max(len(files), len(defects or [])),
                progress=report,
            )
    _print_refit(refit)


def _open(bundle: Bundle, device: str, *, rebuild: bool) -> Detector:
    """Open a bundle; if an engine that is built for that does not give its reference outputs, it is not verified."""
    try:
        with step_progress() as progress:
            return Detector.open(bundle, device=device, hint=Hint.THROUGHPUT, rebuild=rebuild, progress=progress)
    except ParityError as error:
        bundle.with_manifest(not_verified(bundle.manifest, str(error)))
        raise


def _run_references(detector: Detector, *, confirms: bool) -> None:
    """Run the references, print a line for each measure, and record in the bundle what follows.

    Args:
        detector: the bundle, opened.
        confirms: whether it becomes verified by this alone, with the thresholds that it has.

    Raises:
        ParityError: they do not agree; the bundle is not verified then, whatever it was before.
        InputError: the bundle cannot be written.
    """
    bundle, console = detector.bundle, results_console()
    with progress_bar("running references") as report:
        check = detector.check_references(progress=report)
    console.print(f"References: {printable(check.images)}; run with {printable(check.ran_on)}.", soft_wrap=True)
    for line in check.lines():
        console.print(f"  {printable(line)}", soft_wrap=True)
    if check.agrees and not confirms:
        return
    changed = recorded(bundle.manifest, check)
    if changed != bundle.manifest:
        detector.bundle = bundle.with_manifest(changed)
    check.require(str(bundle.folder))
    console.print(
        f"{bundle.folder} is verified on this device; its thresholds stay as they are (--data fits them here).",
        soft_wrap=True,
    )


def _good_files(data: Sequence[str], *, recursive: bool) -> list[Path]:
    """Return the images to fit on; refuse a folder or a glob that takes in what is named after defects or masks."""
    files = []
    for text in data:
        if is_kept_folder(user_path(text)):
            files += sampled_normals(user_path(text))
            continue
        found = image_files([text], recursive=recursive)
        if len(found) > 1:
            root = Path(os.path.commonpath([path.parent for path in found]))
            doubtful = named_not_good(path.relative_to(root) for path in found)
            if doubtful:
                raise InputError(
                    f"{len(doubtful)} of the {len(found)} images of {text} "
                    f"{verb(len(doubtful), 'is', 'are')} not named like good parts "
                    f"({doubtful[0].as_posix()}, for example), and a defect among them would let others pass; pass "
                    "only folders or files of good parts"
                )
        files += found
    return files


def _defective_files(abnormal: Sequence[str], *, recursive: bool) -> list[Path]:
    files = []
    for text in abnormal:
        folder = user_path(text)
        files += labelled_anomalous(folder) if is_kept_folder(folder) else image_files([text], recursive=recursive)
    return files


def _check_method(method: RefitMethod, abnormal: list[str] | None, false_alarm_rate: float | None) -> None:
    """Refuse, in the words of the options, what `refit_thresholds` would refuse after all images have been found."""
    if method is not RefitMethod.F1_OPTIMAL:
        return
    if not abnormal:
        raise UsageError("--method f1-optimal needs labelled images; add --abnormal, a folder of defective parts")
    if false_alarm_rate is not None:
        raise UsageError(
            f"--method f1-optimal guarantees no false-alarm rate, but --false-alarm-rate is {false_alarm_rate}; "
            "leave out one of them"
        )


def _largest_16_bit(files: Sequence[Path]) -> int | None:
    """Return the largest value in the 16-bit pictures among some files; None where there is none."""
    values = []
    for path in files:
        with suppress(InputError):  # It is named when the scores are taken.
            pixels = read_pixels(path)
            if pixels.dtype == np.uint16:
                values.append(int(pixels.max()))
    return max(values, default=None)


def _check_apart(normal: Sequence[Path], abnormal: Sequence[Path]) -> None:
    both = {path.resolve() for path in normal} & {path.resolve() for path in abnormal}
    if both:
        raise InputError(
            f"{count(len(both), 'image')} {verb(len(both), 'is', 'are')} in both "
            f"--data and --abnormal ({sorted(both)[0]}, for example); expected good "
            "parts in the first and defective ones in the second"
        )


def _print_refit(refit: Refit) -> None:
    old, new = refit.old, refit.bundle.manifest.thresholds
    table = plain_table()
    table.add_column("", style="cyan")
    table.add_column("before", justify="right")
    table.add_column("now", justify="right", style="bold")
    for name, before, now in (
        ("image threshold", old.image_threshold, new.image_threshold),
        ("pixel threshold", old.pixel_threshold, new.pixel_threshold),
        ("false-alarm rate", old.false_alarm_rate, new.false_alarm_rate),
        ("normals", old.n_normals, new.n_normals),
    ):
        table.add_row(name, f"{before:.6g}", f"{now:.6g}")
    table.add_row("method", str(old.method), str(new.method))
    console = results_console()
    console.print(table)
    console.print(f"False alarms: {describe_promise(new)}.")
    console.print(f"The smallest possible rate is {describe_support(new)}.")
    console.print(f"Not inspectable: {describe_gate(refit.bundle.manifest.gate)}.")
    found = refit.labelled
    if found is not None:
        console.print(
            f"On these images it finds {found.n_hits} of {found.n_anomalous} anomalous ones and calls "
            f"{found.n_false_alarms} of {found.n_normal} normals anomalous: F1 {found.f1:.3f}. Expect worse results "
            "on new images than on those that set the threshold."
        )
    above = sum(score > old.image_threshold for score in new.calibration_scores)
    console.print(f"With the previous thresholds, {above} of these {new.n_normals} normals would be called anomalous.")
    manifest = refit.bundle.manifest
    trust = "is verified now." if manifest.verified else f"is not verified: {manifest.not_verified_because}."
    beside = ""
    if refit.bundle.local is not None:
        beside = f" in {LOCAL_FILE}, signed with this user's key; its maker's signature stays valid. The bundle"
    console.print(f"Scored by {new.scored_by}; written to {refit.bundle.folder}{beside or ', which'} {trust}")
    if old.method is ThresholdMethod.CROSS_CONFORMAL:
        print_warning(
            "this model was trained on all good parts that its run had; the thresholds hold for new parts only if "
            "these images were not among them"
        )
    for error in refit.unreadable[:_NAMED]:
        print_warning(str(error))
    if refit.unreadable:
        print_warning(
            f"{len(refit.unreadable)} of {refit.n_images} images could not be "
            f"read and {verb(len(refit.unreadable), 'was', 'were')} left out"
        )
    if refit.warning:
        print_warning(refit.warning)
