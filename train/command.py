"""`vae-train`: train a detector on images of good parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vae_edge.cli.console import plain_table, print_warning, results_console
from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, describe_promise, describe_support, too_few_normals
from vae_edge.errors import UsageError
from vae_edge.records import make_record
from vae_edge.train.choice.image_size import check_request
from vae_edge.train.loop.settings import Calibration
from vae_edge.train.loop.watcher import TerminalWatcher
from vae_edge.train.model.input_settings import DEFAULT_OVERLAP, Photometric
from vae_edge.train.model.presets import (
    DEFAULT_PRESET,
    PRESETS,
    Augmentation,
    Recipe,
    Schedule,
    make_architecture,
    preset_named,
    resolve_precision,
)
from vae_edge.train.model.scoring import AUTO, parse_scoring

if TYPE_CHECKING:
    from vae_edge.train.loop.settings import SizeRequest
    from vae_edge.train.run.folder import RunFolder

_ALLOWED_WITH_RESUME = {"resume", "data"}

_RANKED = 5
"""Scorings that are printed; the run's record holds more."""


def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder in the layout of MVTec AD or with folders such as OK and NG, a folder of good parts, or "
            "sample or sample:PRODUCT.",
            metavar="DIR|sample[:PRODUCT]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run folder to make.")] = None,
    normal: Annotated[Path | None, typer.Option(help="Instead of --data: folder of good parts to train on.")] = None,
    normal_test: Annotated[Path | None, typer.Option(help="With --normal: folder of good parts to test on.")] = None,
    abnormal: Annotated[
        Path | None, typer.Option(help="With --normal: folder of defective parts, a sub-folder for each class.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="With --abnormal: folder of masks, arranged like it.")] = None,
    preset: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {preset.purpose}" for name, preset in PRESETS.items()) + ".")
    ] = DEFAULT_PRESET,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="auto|SIDE|HxW",
            help="The size that images are resized to, such as 256 or 256x320; auto: by the data's resolution and "
            "aspect.",
            show_default="auto; reference: 256",
        ),
    ] = None,
    tile_size: Annotated[
        str | None,
        typer.Option(
            metavar="auto|none|SIDE",
            help="Side of the square tiles that an image is cut into, in the model itself; none: it is not cut.",
            show_default="auto; reference: none",
        ),
    ] = None,
    tile_overlap: Annotated[
        float, typer.Option(metavar="SHARE", help="Least share of a tile that its neighbour sees as well.")
    ] = DEFAULT_OVERLAP,
    n_features: Annotated[
        int | None, typer.Option(help="Channels after the first convolution.", show_default="the preset's")
    ] = None,
    latent_vec_size: Annotated[int | None, typer.Option(help="Number of latents.", show_default="the preset's")] = None,
    kl_weight: Annotated[
        float | None, typer.Option(help="Weight of the Kullback-Leibler term.", show_default="0.00025")
    ] = None,
    max_features: Annotated[
        int | None, typer.Option(help="Channels at which the doubling stops.", show_default="the preset's")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Times that each image is seen.", show_default="for about 2000 steps")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Most images in a step.")] = 32,
    learning_rate: Annotated[
        float | None, typer.Option(help="Adam's learning rate.", show_default="0.001; reference: 0.0002")
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(help="How the learning rate moves.", show_default="one-cycle; reference: constant"),
    ] = None,
    kl_warmup: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the training over which the KL term grows from nothing.")
    ] = 0.0,
    averaging: Annotated[
        float, typer.Option(metavar="DECAY", help="Keep a running average of the weights, such as 0.999; 0: do not.")
    ] = 0.0,
    augment: Annotated[
        list[Augmentation] | None,
        typer.Option(help="Change images at random in training; may be given twice.", show_default="none"),
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a better held-out loss; 0: do not.")
    ] = 0,
    max_time: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Stop each training with the first epoch after so many minutes."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights on the same machine.")] = 0,
    held_out: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the good parts that set the threshold.", show_default="20-30 %"),
    ] = None,
    group_by: Annotated[
        str,
        typer.Option(
            metavar="auto|none|REGEX",
            help="Keep pictures of the same part together: auto finds them by content; an expression such as "
            "'part(\\d+)_' names the part by its first group in the file name; none does not.",
        ),
    ] = "auto",
    false_alarm_rate: Annotated[
        float, typer.Option(help="Share of good parts that may be called anomalous.")
    ] = DEFAULT_FALSE_ALARM_RATE,
    calibration: Annotated[
        Calibration,
        typer.Option(
            help="What sets the threshold. split: good parts held out from the one training. cross: all good parts, "
            "each scored by a network trained without it; for few good parts, at the price of --folds more trainings. "
            "auto: split if enough can be held out for the false-alarm rate, or if --held-out is given; else cross."
        ),
    ] = Calibration.AUTO,
    folds: Annotated[int, typer.Option(help="With cross: into how many parts the good parts are cut.")] = 5,
    photometric: Annotated[
        str,
        typer.Option(
            metavar="auto|none|image|local",
            help="How light and contrast are evened out, in the model itself; auto: chosen like the scoring.",
        ),
    ] = AUTO,
    scoring: Annotated[
        str,
        typer.Option(
            metavar="auto|mse|normalized|default|MAPS",
            help="How a residual becomes a score; auto: chosen by synthetic defects on held-out good parts. A "
            "composition of your own: l2/0.016/image+pixel/top0.5%,gradient/0.008/local+pixel/max "
            "(residual/smoothing/normalization/pooling).",
        ),
    ] = AUTO,
    choose_on_labels: Annotated[
        bool,
        typer.Option(
            "--choose-on-labels",
            help="Choose light and scoring by half of the labelled test images, which are then not tested on.",
        ),
    ] = False,
    white_level: Annotated[int, typer.Option(help="16-bit value that means white; 4095 for a 12-bit camera.")] = 65535,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data with anything wrong in it.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with an interrupted run; all else is as it was asked for then."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run, once this one is whole.")] = (
        False
    ),
    accelerator: Annotated[str, typer.Option(help="Lightning's accelerator: auto, cpu, gpu, mps.")] = "auto",
    devices: Annotated[str, typer.Option(help="Lightning's devices: auto, a number, or a list as in 0,1.")] = "auto",
    num_nodes: Annotated[int, typer.Option(help="Machines that train together.")] = 1,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Lightning's precision, such as 32-true or bf16-mixed; auto: bf16-mixed where the device has it.",
            show_default="auto; reference: 32-true",
        ),
    ] = None,
) -> None:
    """Train a detector on images of good parts, fit its threshold on others, and measure it where there are defects.

    Ctrl-C loses nothing but the epoch it falls into: vae-train --resume RUN goes on. Exit code 130 then.
    """
    if resume is not None:
        _refuse_others(context)
        from vae_edge.train.run.fitting import resume_run

        with TerminalWatcher() as watcher:
            run = resume_run(resume, data=data, watcher=watcher)
        print_result(run)
        return
    if out is None:
        raise UsageError("there is no place for the run; expected --out RUN, such as --out runs/first")
    if (data is None) == (normal is None):
        raise UsageError("expected either --data or --normal; for a first try: --data sample")
    if calibration is Calibration.CROSS and held_out is not None:
        raise UsageError(
            f"--calibration cross holds no good parts out, and --held-out is {held_out}; leave out one of them"
        )
    chosen = preset_named(preset)
    size = parse_size(
        image_size or (AUTO if chosen.chooses_size else "256"),
        tile_size or (AUTO if chosen.chooses_size else "none"),
        tile_overlap,
    )
    architecture = make_architecture(
        preset,
        n_features=n_features,
        latent_vec_size=latent_vec_size,
        kl_weight=kl_weight,
        max_features=max_features,
    )
    recipe = {
        "learning_rate": chosen.recipe.learning_rate if learning_rate is None else learning_rate,
        "schedule": chosen.recipe.schedule if schedule is None else schedule,
        "kl_warmup": kl_warmup,
        "averaging": averaging,
        "augmentation": tuple(kind for kind in augment or () if kind is not Augmentation.NONE),
    }
    from vae_edge.train.loop.settings import TrainSettings

    settings = make_record(
        TrainSettings,
        {
            "source": {
                "root": data,
                "normal": _text(normal),
                "normal_test": _text(normal_test),
                "abnormal": _text(abnormal),
                "masks": _text(masks),
            },
            "architecture": architecture,
            "size": size,
            "white_level": white_level,
            "photometric": parse_photometric(photometric),
            "scoring": parse_scoring(scoring),
            "choose_on_labels": choose_on_labels,
            "split": {"threshold_share": held_out, "group_by": group_by, "seed": seed},
            "strict": strict,
            "epochs": epochs,
            "batch_size": batch_size,
            "recipe": make_record(Recipe, recipe),
            "patience": patience,
            "max_time_minutes": max_time,
            "seed": seed,
            "false_alarm_rate": false_alarm_rate,
            "calibration": calibration,
            "folds": folds,
            "accelerator": accelerator,
            "devices": devices,
            "num_nodes": num_nodes,
            "precision": resolve_precision(precision or chosen.precision, accelerator),
        },
    )
    from vae_edge.train.run.fitting import fit_run

    with TerminalWatcher() as watcher:
        run = fit_run(settings, out=out, overwrite=overwrite, watcher=watcher)
    print_result(run)


def parse_size(image_size: str, tile_size: str, overlap: float) -> SizeRequest:
    """Read what was asked of the sizes of image and tiles.

    Raises:
        UsageError: a word is neither a size nor one of the others.
    """
    from vae_edge.train.loop.settings import SizeRequest

    image = None if image_size.strip().lower() == AUTO else parse_image_size(image_size)
    word = tile_size.strip().lower()
    if word not in (AUTO, "none") and not word.isdigit():
        raise UsageError(f"the tile size is {tile_size!r}; expected auto, none or a side in pixels such as 64")
    tiles = int(word) if word.isdigit() else word
    size: SizeRequest = make_record(SizeRequest, {"image": image, "tiles": tiles, "overlap": overlap})
    check_request(size)
    return size


def parse_photometric(text: str) -> Photometric | None:
    """Read how light is to be evened out; None for `auto`.

    Raises:
        UsageError: it is another word.
    """
    word = text.strip().lower()
    if word == AUTO:
        return None
    if word not in [kind.value for kind in Photometric]:
        known = ", ".join([AUTO, *(kind.value for kind in Photometric)])
        raise UsageError(f"the photometric normalization is {text!r}; expected one of {known}")
    return Photometric(word)


def parse_image_size(text: str) -> tuple[int, int]:
    """Read `256` or `256x320` as height and width.

    Raises:
        InputError: it is neither.
    """
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if match is None:
        raise UsageError(
            f"the image size is {text!r}; expected auto, a side such as 256, or height x width such as 256x320"
        )
    height = int(match.group(1))
    return height, int(match.group(2) or height)


def print_result(run: RunFolder) -> None:
    """Print what a run came to."""
    record, metrics, thresholds = run.record, run.metrics, run.thresholds
    console = results_console()
    table = plain_table(title=f"run {run.folder}", headers=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    outcome = record.training
    ended = {
        "epochs": "as planned",
        "patience": "no better for a while",
        "time": "out of time",
        "callback": "stopped by a callback",
    }[outcome.ended_by]
    table.add_row(
        "training",
        f"{outcome.epochs_run} epochs ({ended}) in {outcome.seconds:.0f} s, {outcome.images_per_s:.1f} images/s; kept "
        f"the weights of epoch {outcome.best_epoch}, held-out loss {outcome.best_held_out_loss:.5f}",
    )
    table.add_row("model", f"{record.tiling.describe()}; {record.photometric.describe()}")
    table.add_row("scoring", record.scoring.describe())
    if record.choice is not None:
        table.add_row("chosen on", f"{record.choice.judged_on}; the ranking is in model.json")
    n_pictures = len(run.split.of(*run.calibration_roles))
    shown = f", one of each part in {n_pictures}" if thresholds.n_normals < n_pictures else ""
    table.add_row(
        "threshold",
        f"score > {thresholds.image_threshold:.6g}, {thresholds.method} from {thresholds.n_normals} normals{shown}",
    )
    table.add_row("false alarms", describe_promise(thresholds))
    table.add_row("smallest rate", describe_support(thresholds))
    rows = (
        ("image AUROC", metrics.image_auroc),
        ("image AUPR", metrics.image_aupr),
        ("F1 at the threshold", metrics.image_f1),
        ("F1 at best", metrics.image_f1_best),
        ("recall", metrics.recall),
        (f"false alarms on {metrics.n_normal} test normals", metrics.false_alarm_rate),
        ("pixel AUROC", metrics.pixel_auroc),
        ("AUPRO", metrics.aupro),
    )
    for name, value in rows:
        if value is not None:
            table.add_row(name, f"{value:.3f}")
    console.print(table)
    _print_ranking(console, run)
    _print_defects(console, run)
    few = too_few_normals(thresholds)
    if few:
        print_warning(few)
    console.print(f"Next: vae-export {run.folder} --target all --out bundles")


def _print_ranking(console: Console, run: RunFolder) -> None:
    """Print what was compared and what it reached on the images to choose by."""
    choice = run.record.choice
    if choice is None or not (choice.photometric or choice.scoring):
        return
    table = plain_table()
    table.add_column("compared", style="cyan", overflow="fold")
    table.add_column("AUROC", justify="right")
    table.add_column("behind the first", justify="right")
    table.add_column("chosen")
    scorings = choice.scoring[:_RANKED]
    chosen = str(run.record.scoring)
    scorings += tuple(each for each in choice.scoring[_RANKED:] if each.name == chosen)
    for kind, ranked, name in (
        ("light", choice.photometric, str(run.record.photometric)),
        ("scoring", scorings, chosen),
    ):
        for each in ranked:
            table.add_row(
                f"{kind} {each.name}",
                f"{each.auroc:.3f}",
                f"{each.behind:.3f} ± {each.standard_error:.3f}",
                "yes" if each.name == name else "",
            )
    console.print()
    console.print(table)


def _print_defects(console: Console, run: RunFolder) -> None:
    if not run.metrics.per_defect:
        return
    table = plain_table()
    table.add_column("defect", style="cyan")
    for heading in ("images", "image AUROC", "recall", "pixel AUROC"):
        table.add_column(heading, justify="right")
    for name, defect in run.metrics.per_defect.items():
        values = (defect.image_auroc, defect.recall, defect.pixel_auroc)
        table.add_row(name, str(defect.n), *("" if value is None else f"{value:.3f}" for value in values))
    console.print()
    console.print(table)


def _refuse_others(context: typer.Context) -> None:
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in _ALLOWED_WITH_RESUME
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise UsageError(
            f"--resume was given along with {', '.join(given)}; an interrupted run goes on with its own settings: "
            "leave them out, or train a new run with --out"
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
