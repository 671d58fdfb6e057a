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
from vae_edge.cli.options import SourceKind, idle, refuse_others, with_option_groups
from vae_edge.cli.progress import step_progress
from vae_edge.decision import check_rate
from vae_edge.errors import InputError, UsageError, VaeEdgeError
from vae_edge.export.options import (
    BUNDLE_TO_ENGINE,
    BUNDLE_TO_MODEL_API,
    BUNDLE_TO_TRITON,
    CHECKPOINT,
    RUN,
    SOURCE_KINDS,
    CommonOptions,
    EngineOptions,
    LayoutOptions,
    LowPrecisionOptions,
    ScoreOptions,
    needs_of_options,
)
from vae_edge.export.settings import (
    CHECKPOINT_SUFFIXES,
    Budget,
    ExportLayout,
    LowPrecisionSettings,
    ReferenceSettings,
)
from vae_edge.export.summary import print_model_api, print_results
from vae_edge.manifest import MANIFEST_FILE
from vae_edge.platform.work import StepProgress
from vae_edge.targets import Target, combinations, parse_precisions, parse_targets
from vae_edge.train.model.input_settings import RANGES, KnownRange
from vae_edge.train.model.scoring import ScoringSettings, parse_scoring

if TYPE_CHECKING:
    from vae_edge.export.model_api.folder import ModelApiRecord
    from vae_edge.export.pipeline import ExportResult, ExportSettings
    from vae_edge.train.run.folder import RunFolder


@with_option_groups
def export(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|BUNDLE|CHECKPOINT",
            help="A run folder; what anomalib trained (.ckpt, .pt, .pth); a bundle that holds an ONNX; or, for "
            "model-api, an OpenVINO bundle; for triton, any but torch's.",
        ),
    ],
    common: CommonOptions,
    score: ScoreOptions,
    low: LowPrecisionOptions,
    engine: EngineOptions,
    form: LayoutOptions,
) -> None:
    """Export a trained model to bundles, each checked against it.

    A bundle is a folder NAME-TARGET-PRECISION with a manifest; nothing half-written ever gets that name.

        vae-export runs/part --target all --out bundles
        vae-export runs/part --target openvino --precision int8
        vae-export model.ckpt --data normals     a checkpoint of anomalib
        vae-export BUNDLE --target tensorrt      an engine, on the device
        vae-export BUNDLE --layout model-api     for OpenVINO Model API
        vae-export BUNDLE --layout triton --out repository

    A checkpoint of anomalib becomes a run folder first, OUT/NAME-run: its thresholds are fitted on the normal images of
    --data, and if anomalib is installed, the model is compared with anomalib's own prediction of the same images.
    Exporting from a bundle does not need torch.

    An option that does not apply to the source is refused. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a bundle did
    not give the trained model's verdicts and was not made.
    """
    engine_settings, low_settings = _engine_settings(engine), _low_precision_settings(low)
    if score.false_alarm_rate is not None:
        check_rate(score.false_alarm_rate, "false-alarm rate")
    name = common.name
    if name is not None and (Path(name).name != name or name.startswith(".")):
        raise UsageError(
            f"--name is {name!r}; expected the first part of a folder's name, such as tile; --out sets the folder"
        )
    targets, precisions = tuple(parse_targets(common.target)), tuple(parse_precisions(common.precision))
    if form.layout is ExportLayout.MODEL_API:
        targets = _model_api_targets(common.target, targets)
    kind = _kind_of(source, form.layout, targets)
    refuse_others(context, source, kind, SOURCE_KINDS)
    if kind is BUNDLE_TO_MODEL_API:
        _export_bundle_to_model_api(Bundle.open(source), common.out, name, common.data)
    elif kind is BUNDLE_TO_TRITON:
        _export_bundle_to_triton(Bundle.open(source), common.out, name, context, engine.max_batch)
    elif kind is BUNDLE_TO_ENGINE:
        _rebuild(Bundle.open(source), common.out, name, engine_settings)
    else:
        only_supported = "all" in (common.target.strip(), common.precision.strip())
        made = combinations(targets, precisions, only_supported=only_supported)
        scoring = _given_scoring(score.scoring)
        for reason in idle(context, needs_of_options(made)):
            print_warning(f"{reason}: no effect")
        from vae_edge.export.pipeline import ExportSettings

        settings = ExportSettings(
            targets=targets,
            precisions=precisions,
            name=name,
            data_root=common.data,
            false_alarm_rate=score.false_alarm_rate,
            scoring=scoring,
            skip_missing_runtimes=common.target.strip() == "all",
            only_supported=only_supported,
            engine=engine_settings,
            low_precision=low_settings,
            references=_reference_settings(common.references),
        )
        _export_trained(source, kind, common.out, settings, score.input_range, form.layout)


def _export_trained(
    source: Path,
    kind: SourceKind,
    out: Path,
    settings: ExportSettings,
    input_range: KnownRange | None,
    layout: ExportLayout,
) -> None:
    """Export a run, or a checkpoint, which first becomes a run with the given data and scoring."""
    if kind is CHECKPOINT:
        from vae_edge.export.checkpoint import make_run

        name = settings.name or source.stem
        run = make_run(
            source,
            settings.data_root,
            out / f"{name}-run",
            scoring=settings.scoring,
            false_alarm_rate=settings.false_alarm_rate,
            input_range=None if input_range is None else RANGES[input_range],
        )
        settings = replace(settings, name=name, data_root=None, scoring=None)
    else:
        from vae_edge.train.run.folder import RunFolder

        run = RunFolder.open(source)
    _export_run(run, out, settings, layout)


def _engine_settings(engine: EngineOptions) -> EngineSettings:
    return EngineSettings(
        max_batch=engine.max_batch,
        workspace_bytes=engine.workspace_mib * 2**20,
        optimization_level=engine.optimization_level,
        timing_cache=engine.timing_cache,
        weak_typing=engine.weak_typing,
    )


def _low_precision_settings(low: LowPrecisionOptions) -> LowPrecisionSettings:
    return LowPrecisionSettings(
        calibration_data=low.calibration_data,
        n_calibration_images=low.calibration_images,
        estimator=low.estimator,
        budget=Budget(max_auroc_drop=low.max_auroc_drop, max_flip_rate=low.max_flip_rate),
    )


def _reference_settings(given: Path | None) -> ReferenceSettings:
    if given is None:
        return ReferenceSettings()
    return ReferenceSettings(drawn=True) if str(given) == "none" else ReferenceSettings(folder=given)


def _kind_of(source: Path, layout: ExportLayout, targets: tuple[Target, ...]) -> SourceKind:
    """Return what the source is and what it becomes.

    Raises:
        UsageError: a bundle cannot become these targets.
        InputError: nothing there can be a source.
    """
    if (source / MANIFEST_FILE).is_file():
        if layout is ExportLayout.MODEL_API:
            return BUNDLE_TO_MODEL_API
        if layout is ExportLayout.TRITON:
            return BUNDLE_TO_TRITON
        if targets != (Target.TENSORRT,):
            raise UsageError(
                f"{source} is a bundle; from a bundle only a TensorRT engine can be built: add --target tensorrt "
                "(or --layout model-api or triton, for other libraries and servers), or pass the run folder"
            )
        return BUNDLE_TO_ENGINE
    if layout is ExportLayout.TRITON:
        raise UsageError(
            f"--layout triton came with {source}; expected a bundle: export the run first, then its bundle"
        )
    if source.is_dir():
        return RUN
    if source.suffix.lower() in CHECKPOINT_SUFFIXES:
        return CHECKPOINT
    raise InputError(
        f"there is no folder {source}; expected a run folder (from vae-train), a bundle, or a checkpoint "
        f"({', '.join(CHECKPOINT_SUFFIXES)})"
    )


def _rebuild(source: Bundle, out: Path, name: str | None, engine: EngineSettings) -> None:
    from vae_edge.export.rebuild import rebuild_engine

    with step_progress() as progress:
        bundle = rebuild_engine(source, out, engine, name=name, progress=progress)
    results_console().print(f"{bundle.folder}: {size_text(bundle.size_bytes)}")
    if bundle.manifest.verified:
        results_console().print(f"It gives its reference outputs with {bundle.manifest.verified_by}.", soft_wrap=True)
    else:
        print_warning(
            f"{bundle.manifest.name} is not verified: {bundle.manifest.not_verified_because}; on the device, run: "
            f"vae-edge verify {bundle.folder}"
        )


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
        print_warning(
            f"{folder.name} was compared with the bundle only on synthetic pictures; to use yours, pass --data PICTURES"
        )


def _export_bundle_to_triton(
    bundle: Bundle, out: Path, name: str | None, context: typer.Context, max_batch: int
) -> None:
    from vae_edge.export.triton_repository import PAGE_FILE, export_triton

    given = context.get_parameter_source("max_batch")
    asked = None if given is None or given.name == "DEFAULT" else max_batch
    folder = export_triton(bundle, out, name, max_batch=asked)
    results_console().print(
        f"{folder}: a model for Triton; {folder / PAGE_FILE} says what it leaves to clients", soft_wrap=True
    )


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
    """Make a Model API folder from every bundle; a failure becomes the error of that bundle's result."""
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


def _given_scoring(text: str | None) -> ScoringSettings | None:
    if text is None:
        return None
    settings = parse_scoring(text)
    if settings is None:
        raise UsageError("the scoring is 'auto', which is chosen in training; expected a name or maps, or leave it out")
    return settings
