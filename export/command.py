"""`vae-export`: a run folder to bundles, a bundle's ONNX to a TensorRT engine, a bundle to OpenVINO Model API."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vae_edge.backends.tensorrt.build import EngineSettings
from vae_edge.bundle import Bundle
from vae_edge.cli.console import print_warning, results_console, size_text
from vae_edge.cli.progress import step_progress
from vae_edge.decision import check_rate
from vae_edge.errors import InputError, UsageError, VaeEdgeError
from vae_edge.export.settings import (
    BUDGET_OPTIONS,
    BUNDLE_TO_ENGINE,
    BUNDLE_TO_MODEL_API,
    CHECKPOINT,
    CHECKPOINT_SUFFIXES,
    ENGINE_OPTIONS,
    INT8_OPTIONS,
    RUN,
    SOURCE_KINDS,
    Budget,
    Estimator,
    ExportLayout,
    LowPrecisionSettings,
    SourceKind,
)
from vae_edge.export.summary import print_model_api, print_results
from vae_edge.manifest import MANIFEST_FILE
from vae_edge.platform.work import StepProgress
from vae_edge.targets import SUPPORTED, Precision, Target, combinations, parse_precisions, parse_targets
from vae_edge.train.model.input_settings import RANGES, KnownRange
from vae_edge.train.model.scoring import ScoringSettings, parse_scoring

if TYPE_CHECKING:
    from vae_edge.export.model_api.folder import ModelApiRecord
    from vae_edge.export.pipeline import ExportResult, ExportSettings
    from vae_edge.train.run.folder import RunFolder


_SCORES, _LOW = "Thresholds and scores, of a run or a checkpoint", "FP16 and INT8, of a run or a checkpoint"
_ENGINE, _MODEL_API = "TensorRT, of a run, a checkpoint or a bundle", "OpenVINO Model API"


def export(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|BUNDLE|CHECKPOINT",
            help="A run folder; what anomalib trained (.ckpt, .pt, .pth); a bundle that holds an ONNX; or, for "
            "model-api, an OpenVINO bundle.",
        ),
    ],
    target: Annotated[
        str, typer.Option(help=f"One or several of {', '.join(SUPPORTED)}, comma-separated, or all.")
    ] = "all",
    precision: Annotated[
        str,
        typer.Option(
            help=f"One or several of {', '.join(Precision)}, comma-separated, or all. A bundle keeps its own."
        ),
    ] = "fp32",
    out: Annotated[Path, typer.Option(help="Folder that gets the bundles.")] = Path("bundles"),
    name: Annotated[str | None, typer.Option(help="First part of the bundles' names; default: the run's name.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Where the run's images are now, if not where they were in training. Of a checkpoint: the normal "
            "images that set its thresholds, in the layout of MVTec AD or of a folder. Of a bundle, with model-api: "
            "pictures to compare verdicts on."
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of normal images that may be called anomalous; default: the run's.", rich_help_panel=_SCORES
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            metavar="mse|normalized|default|MAPS",
            help="How a residual becomes a score, as in vae-train --help; default: the run's.",
            show_default=False,
            rich_help_panel=_SCORES,
        ),
    ] = None,
    input_range: Annotated[
        KnownRange | None,
        typer.Option(
            help="What a checkpoint's network gets for a pixel, if it does not say it.",
            show_default=False,
            rich_help_panel=_SCORES,
        ),
    ] = None,
    calibration_data: Annotated[
        Path | None,
        typer.Option(help="INT8: normal images to calibrate on; default: those of the training.", rich_help_panel=_LOW),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(help="INT8: how many of them, 32 or more.", rich_help_panel=_LOW)
    ] = 300,
    estimator: Annotated[
        Estimator, typer.Option(help="INT8: how a range follows from the values seen.", rich_help_panel=_LOW)
    ] = Estimator.MIN_MAX,
    max_auroc_drop: Annotated[
        float | None,
        typer.Option(help="FP16, INT8: the image AUROC may fall by so much.", rich_help_panel=_LOW),
    ] = Budget.max_auroc_drop,
    max_flip_rate: Annotated[
        float | None,
        typer.Option(help="FP16, INT8: so large a share of the verdicts may change.", rich_help_panel=_LOW),
    ] = Budget.max_flip_rate,
    max_batch: Annotated[int, typer.Option(help="The largest batch the engine takes.", rich_help_panel=_ENGINE)] = 8,
    workspace_mib: Annotated[
        int, typer.Option(help="Most scratch memory a layer may use, in MiB.", rich_help_panel=_ENGINE)
    ] = 512,
    optimization_level: Annotated[
        int | None,
        typer.Option(help="0 (quick to build) to 5 (thorough); default: TensorRT's own.", rich_help_panel=_ENGINE),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            help="File with the timings of earlier builds, read and written; default: the cache's.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    layout: Annotated[
        ExportLayout,
        typer.Option(
            help="plain: bundles; model-api: also a folder that OpenVINO Model API opens, target openvino only.",
            rich_help_panel=_MODEL_API,
        ),
    ] = ExportLayout.PLAIN,
) -> None:
    """Export a trained model to bundles, each checked against it; or make another form of a bundle, without torch.

    From a bundle: an engine on the device (--target tensorrt), or what OpenVINO Model API opens (--layout model-api).

    A checkpoint of anomalib becomes a run folder first, OUT/NAME-run: its thresholds are fitted on the normal images of
    --data, and where anomalib is installed its own prediction of the same images is held against the model.

    A bundle is a folder NAME-TARGET-PRECISION with a manifest. Nothing half-written ever gets that name. `all` leaves
    out the targets whose runtime is not installed. An option that does not apply to the source is refused. Exit codes:
    0 done, 1 failed, 2 wrong usage, 3 a bundle did not give the trained model's verdict and was not made.
    """
    engine = EngineSettings(
        max_batch=max_batch,
        workspace_bytes=workspace_mib * 2**20,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
    )
    low_precision = LowPrecisionSettings(
        calibration_data=calibration_data,
        n_calibration_images=calibration_images,
        estimator=estimator,
        budget=Budget(max_auroc_drop=max_auroc_drop, max_flip_rate=max_flip_rate),
    )
    if false_alarm_rate is not None:
        check_rate(false_alarm_rate, "false-alarm rate")
    if name is not None and (Path(name).name != name or name.startswith(".")):
        raise UsageError(
            f"--name is {name!r}; expected the first part of a folder's name, such as tile; --out says where"
        )
    targets, precisions = tuple(parse_targets(target)), tuple(parse_precisions(precision))
    if layout is ExportLayout.MODEL_API:
        targets = _model_api_targets(target, targets)
    kind = _kind_of(source, layout, targets)
    _refuse_others(context, source, kind)
    if kind is BUNDLE_TO_MODEL_API:
        _export_bundle_to_model_api(Bundle.open(source), out, name, data)
        return
    if kind is BUNDLE_TO_ENGINE:
        _rebuild(Bundle.open(source), out, name, engine)
        return
    asked_scoring = None if scoring is None else _given_scoring(scoring)
    only_supported = "all" in (target.strip(), precision.strip())
    _warn_of_unused(context, combinations(targets, precisions, only_supported=only_supported))
    from vae_edge.export.pipeline import ExportSettings
    from vae_edge.train.run.folder import RunFolder

    if kind is CHECKPOINT:
        from vae_edge.export.checkpoint import make_run

        name = name or source.stem
        run = make_run(
            source,
            data,
            out / f"{name}-run",
            scoring=asked_scoring,
            false_alarm_rate=false_alarm_rate,
            input_range=None if input_range is None else RANGES[input_range],
        )
        data, asked_scoring = None, None
    else:
        run = RunFolder.open(source)
    settings = ExportSettings(
        targets=targets,
        precisions=precisions,
        name=name,
        data_root=data,
        false_alarm_rate=false_alarm_rate,
        scoring=asked_scoring,
        skip_missing_runtimes=target.strip() == "all",
        only_supported=only_supported,
        engine=engine,
        low_precision=low_precision,
    )
    _export_run(run, out, settings, layout)


def _kind_of(source: Path, layout: ExportLayout, targets: tuple[Target, ...]) -> SourceKind:
    """Return what the source is and becomes.

    Raises:
        UsageError: a bundle cannot become these targets.
        InputError: there is nothing that could be a source.
    """
    if (source / MANIFEST_FILE).is_file():
        if layout is ExportLayout.MODEL_API:
            return BUNDLE_TO_MODEL_API
        if targets != (Target.TENSORRT,):
            raise UsageError(
                f"{source} is a bundle; from a bundle only a TensorRT engine can be built: add --target tensorrt "
                "(or, for OpenVINO Model API, --layout model-api), or pass the run folder"
            )
        return BUNDLE_TO_ENGINE
    if source.is_dir():
        return RUN
    if source.suffix.lower() in CHECKPOINT_SUFFIXES:
        return CHECKPOINT
    raise InputError(
        f"there is no folder {source}; expected a run folder (from vae-train), a bundle, or a checkpoint "
        f"({', '.join(CHECKPOINT_SUFFIXES)})"
    )


def _given(context: typer.Context) -> dict[str, str]:
    """Return the options of the command line: parameter to flag."""
    return {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.opts[0].startswith("-")
        and (origin := context.get_parameter_source(parameter.name)) is not None
        and origin.name == "COMMANDLINE"
    }


def _refuse_others(context: typer.Context, source: Path, kind: SourceKind) -> None:
    """Refuse options that do not apply to the source.

    Raises:
        UsageError: with what each is for.
    """
    refused: dict[str, list[str]] = {}
    for parameter, flag in _given(context).items():
        if parameter not in kind.options:
            suited = _and([each.several for each in SOURCE_KINDS if parameter in each.options])
            refused.setdefault(suited, []).append(flag)
    if refused:
        reasons = [f"{_and(flags)} {_is(flags)} for {suited}" for suited, flags in refused.items()]
        it = "it" if sum(map(len, refused.values())) == 1 else "them"
        raise UsageError(f"{'; '.join(reasons)}; but {source} is {kind.one}: leave {it} out")


def _warn_of_unused(context: typer.Context, pairs: list[tuple[Target, Precision]]) -> None:
    """Warn of options that apply to the source, but to nothing that is made of it."""
    precisions = {precision for _, precision in pairs}
    for options, wanted, is_made in (
        (ENGINE_OPTIONS, "--target tensorrt", any(target is Target.TENSORRT for target, _ in pairs)),
        (INT8_OPTIONS, "--precision int8", Precision.INT8 in precisions),
        (BUDGET_OPTIONS, "--precision fp16 or int8", precisions != {Precision.FP32}),
    ):
        unused = [flag for parameter, flag in _given(context).items() if parameter in options]
        if unused and not is_made:
            print_warning(f"{_and(unused)} {_is(unused)} for {wanted}, which was not asked for: it has no effect")


def _and(words: list[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _is(words: list[str]) -> str:
    return "is" if len(words) == 1 else "are"


def _rebuild(source: Bundle, out: Path, name: str | None, engine: EngineSettings) -> None:
    from vae_edge.export.rebuild import rebuild_engine

    with step_progress() as progress:
        bundle = rebuild_engine(source, out, engine, name=name, progress=progress)
    results_console().print(f"{bundle.folder}: {size_text(bundle.size_bytes)}")
    print_warning(f"{bundle.manifest.name} is not verified: {bundle.manifest.not_verified_because}")


def _model_api_targets(text: str, targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Return the one target that the layout exists for, which `all` means here."""
    if text.strip() != "all" and targets != (Target.OPENVINO,):
        raise UsageError(
            f"--layout model-api came with --target {text}; expected --target {Target.OPENVINO}, the only one that "
            "OpenVINO Model API opens: export the others without --layout"
        )
    return (Target.OPENVINO,)


def _export_bundle_to_model_api(bundle: Bundle, out: Path, name: str | None, data: Path | None) -> None:
    from vae_edge.export.model_api.folder import export_model_api, images_below, model_api_folder

    folder = model_api_folder(out, bundle.manifest.name, bundle.manifest.precision, name)
    images = [] if data is None else images_below(data)
    description = None if data is None else f"pictures in {data.name}"
    with step_progress() as progress:
        record = export_model_api(bundle, folder, images, description=description, progress=progress)
    print_model_api(folder, record)
    if data is None:
        print_warning(f"{folder.name} was compared with the bundle on drawn pictures only; --data PICTURES takes yours")


def _export_run(run: RunFolder, out: Path, settings: ExportSettings, layout: ExportLayout) -> None:
    from vae_edge.export.model_api.folder import check_folder_is_free, model_api_folder
    from vae_edge.export.pipeline import export_run

    started = time.perf_counter()
    made: list[tuple[Path, ModelApiRecord]] = []
    with step_progress() as progress:
        if layout is ExportLayout.MODEL_API:
            for precision in settings.precisions:
                check_folder_is_free(model_api_folder(out, "", precision, settings.name or run.folder.resolve().name))
        results = export_run(run, out, settings, progress=progress)
        if layout is ExportLayout.MODEL_API:
            results, made = _with_model_api(run, results, out, settings.data_root, progress)
    for folder, record in made:
        print_model_api(folder, record)
    print_results(results, out, time.perf_counter() - started)


def _with_model_api(
    run: RunFolder, results: list[ExportResult], out: Path, data: Path | None, progress: StepProgress
) -> tuple[list[ExportResult], list[tuple[Path, ModelApiRecord]]]:
    """Make a Model API folder of every bundle; a failure becomes the error of that bundle's result."""
    from vae_edge.export.model_api.folder import export_model_api, model_api_folder
    from vae_edge.train.data.inspection_set import spread

    files = [*spread(run.find_calibration_images(data), 200), *spread(run.find_images(("test",), data), 200)]
    images = [file.path for file in files]
    made: list[tuple[Path, ModelApiRecord]] = []
    with_errors = []
    for result in results:
        if result.bundle is not None:
            folder = model_api_folder(out, result.bundle.manifest.name, result.precision)
            try:
                record = export_model_api(
                    result.bundle,
                    folder,
                    images,
                    description="the normals of the thresholds and test images",
                    progress=progress,
                )
                made.append((folder, record))
            except VaeEdgeError as error:
                result = replace(result, error=error)
        with_errors.append(result)
    return with_errors, made


def _given_scoring(text: str) -> ScoringSettings:
    settings = parse_scoring(text)
    if settings is None:
        raise UsageError("the scoring is 'auto', which is chosen in training; expected a name or maps, or leave it out")
    return settings
