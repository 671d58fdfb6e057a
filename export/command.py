"""`vae-export`: a run folder to bundles, a bundle's ONNX to a TensorRT engine, a bundle to OpenVINO Model API."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vae_edge.backends.tensorrt_build import EngineSettings
from vae_edge.bundle import Bundle
from vae_edge.cli.console import plain_table, print_warning, results_console, size_text
from vae_edge.cli.progress import step_progress
from vae_edge.decision import check_rate, too_few_normals
from vae_edge.errors import InputError, MissingDependencyError, UsageError, VaeEdgeError
from vae_edge.export.settings import CHECKPOINT_SUFFIXES, Budget, Estimator, ExportLayout, LowPrecisionSettings
from vae_edge.manifest import MANIFEST_FILE, QuantizationRecord
from vae_edge.progress import StepProgress
from vae_edge.targets import SUPPORTED, Precision, Target, parse_precisions, parse_targets
from vae_edge.train.model.input_settings import RANGES, KnownRange
from vae_edge.train.model.scoring import ScoringSettings, parse_scoring

if TYPE_CHECKING:
    from vae_edge.export.model_api.folder import ModelApiRecord
    from vae_edge.export.pipeline import ExportResult
    from vae_edge.train.run.folder import RunFolder


def export(
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
        str, typer.Option(help=f"One or several of {', '.join(Precision)}, comma-separated, or all.")
    ] = "fp32",
    layout: Annotated[
        ExportLayout,
        typer.Option(
            help="plain: bundles; model-api: also a folder that OpenVINO Model API opens, target openvino only."
        ),
    ] = ExportLayout.PLAIN,
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
        float | None, typer.Option(help="Share of normal images that may be called anomalous; default: the run's.")
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            metavar="mse|normalized|default|MAPS",
            help="How a residual becomes a score, as in vae-train --help; default: the run's.",
            show_default=False,
        ),
    ] = None,
    input_range: Annotated[
        KnownRange | None,
        typer.Option(help="What a checkpoint's network gets for a pixel, if it does not say it.", show_default=False),
    ] = None,
    calibration_data: Annotated[
        Path | None, typer.Option(help="INT8: normal images to calibrate on; default: those of the training.")
    ] = None,
    calibration_images: Annotated[int, typer.Option(help="INT8: how many of them, 32 or more.")] = 300,
    estimator: Annotated[
        Estimator, typer.Option(help="INT8: how a range follows from the values seen.")
    ] = Estimator.MIN_MAX,
    max_auroc_drop: Annotated[
        float | None, typer.Option(help="FP16, INT8: the image AUROC may fall by so much.")
    ] = Budget.max_auroc_drop,
    max_flip_rate: Annotated[
        float | None, typer.Option(help="FP16, INT8: so large a share of the verdicts may change.")
    ] = Budget.max_flip_rate,
    max_batch: Annotated[int, typer.Option(help="TensorRT: the largest batch the engine takes.")] = 8,
    workspace_mib: Annotated[int, typer.Option(help="TensorRT: most scratch memory a layer may use, in MiB.")] = 512,
    optimization_level: Annotated[
        int | None, typer.Option(help="TensorRT: 0 (quick to build) to 5 (thorough); default: TensorRT's own.")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="TensorRT: file with the timings of earlier builds, read and written; default: the cache's."),
    ] = None,
) -> None:
    """Export a trained model to bundles, each checked against it; or make another form of a bundle, without torch.

    From a bundle: an engine on the device (--target tensorrt), or what OpenVINO Model API opens (--layout model-api).

    A checkpoint of anomalib becomes a run folder first, OUT/NAME-run: its thresholds are fitted on the normal images of
    --data, and where anomalib is installed its own prediction of the same images is held against the model.

    A bundle is a folder NAME-TARGET-PRECISION with a manifest. Nothing half-written ever gets that name. `all` leaves
    out the targets whose runtime is not installed. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a bundle did not give
    the trained model's verdict and was not made.
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
    if (source / MANIFEST_FILE).is_file():
        if layout is ExportLayout.MODEL_API:
            _export_bundle_to_model_api(Bundle.open(source), out, name, data)
            return
        _rebuild(source, targets, out, name, engine)
        return
    asked_scoring = None if scoring is None else _given_scoring(scoring)
    from vae_edge.export.pipeline import ExportSettings, export_run
    from vae_edge.train.run.folder import RunFolder

    if source.suffix.lower() in CHECKPOINT_SUFFIXES and not source.is_dir():
        name = name or source.stem
        run = _take_over(source, data, out / f"{name}-run", asked_scoring, false_alarm_rate, input_range)
        data, asked_scoring = None, None
    else:
        if input_range is not None:
            raise UsageError(f"--input-range is for checkpoints, and {source} is none; leave it out")
        if not source.is_dir():
            raise InputError(
                f"there is no folder {source}; expected a run folder (from vae-train), a bundle, or a checkpoint "
                f"({', '.join(CHECKPOINT_SUFFIXES)})"
            )
        run = RunFolder.open(source)
    settings = ExportSettings(
        targets=targets,
        precisions=precisions,
        name=name,
        data_root=data,
        false_alarm_rate=false_alarm_rate,
        scoring=asked_scoring,
        skip_missing_runtimes=target.strip() == "all",
        only_supported="all" in (target.strip(), precision.strip()),
        engine=engine,
        low_precision=low_precision,
    )
    started = time.perf_counter()
    with step_progress() as progress:
        if layout is ExportLayout.MODEL_API:
            _check_model_api_names(run, out, name, precisions)
        results = export_run(run, out, settings, progress=progress)
        made: list[tuple[Path, ModelApiRecord]] = []
        if layout is ExportLayout.MODEL_API:
            results, made = _with_model_api(run, results, out, data, progress)
    for folder, record in made:
        _report_model_api(folder, record)
    _report(results, out, time.perf_counter() - started)


def _take_over(
    checkpoint: Path,
    data: Path | None,
    out: Path,
    scoring: ScoringSettings | None,
    false_alarm_rate: float | None,
    input_range: KnownRange | None,
) -> RunFolder:
    """Make a run folder of a network that anomalib trained, and hold it against anomalib where that is installed."""
    from vae_edge.export.parity import compare_with_anomalib
    from vae_edge.train.anomalib.checkpoint import read_checkpoint
    from vae_edge.train.anomalib.taking_over import take_over
    from vae_edge.train.data.sources import DataSource
    from vae_edge.train.loop.watcher import TerminalWatcher
    from vae_edge.train.run.folder import RECORD_FILE

    if data is None:
        raise UsageError(
            f"{checkpoint} needs normal images for its thresholds; add --data NORMALS, images that the network was not "
            "trained on, or the folder that it was trained on if it is a checkpoint of vae_edge.anomalib.Vae"
        )
    if (out / RECORD_FILE).is_file():
        raise InputError(
            f"{out} holds a complete run, of an earlier export; export it with: vae-export {out}, or choose "
            "another --name or --out"
        )
    asked = None if input_range is None else RANGES[input_range]
    with TerminalWatcher() as watcher:
        trained = read_checkpoint(checkpoint, input_range=asked)
        run = take_over(
            trained,
            DataSource(root=str(data)),
            out,
            scoring=scoring,
            false_alarm_rate=false_alarm_rate,
            watcher=watcher,
        )
        if trained.notes is None:
            watcher.say("not held against anomalib: these weights are of no model that an anomalib release has")
            return run
        if not trained.notes.prepares_as_device:
            watcher.say(
                "not held against anomalib: there a pre-processor of the user's resized the images, and a device "
                "resizes with OpenCV; what the scoring divides by was measured anew"
            )
            return run
        if not trained.scores_as_device(run.record.scoring):
            watcher.say("not held against anomalib: its scoring is not the one that was asked for")
            return run
        try:
            parity = compare_with_anomalib(run, trained, watcher)
        except MissingDependencyError as error:
            watcher.say(f"not held against anomalib's own prediction: {error}")
            return run
        watcher.say(
            f"against anomalib's own prediction of {parity.n_images} images: {parity.label_flips} verdicts differ, "
            f"scores by at most {parity.max_score_difference:.1e} and maps by {parity.max_map_difference:.1e}"
        )
    return run


def _rebuild(source: Path, targets: tuple[Target, ...], out: Path, name: str | None, engine: EngineSettings) -> None:
    if targets != (Target.TENSORRT,):
        raise UsageError(
            f"{source} is a bundle; from a bundle only a TensorRT engine can be built: add --target tensorrt, "
            "or pass the run folder"
        )
    from vae_edge.export.rebuild import rebuild_engine

    with step_progress() as progress:
        bundle = rebuild_engine(Bundle.open(source), out, engine, name=name, progress=progress)
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
    _report_model_api(folder, record)
    if data is None:
        print_warning(f"{folder.name} was compared with the bundle on drawn pictures only; --data PICTURES takes yours")


def _check_model_api_names(run: RunFolder, out: Path, name: str | None, precisions: tuple[Precision, ...]) -> None:
    from vae_edge.export.model_api.folder import check_folder_is_free, model_api_folder

    for precision in precisions:
        check_folder_is_free(model_api_folder(out, "", precision, name or run.folder.resolve().name))


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


def _report_model_api(folder: Path, record: ModelApiRecord) -> None:
    check = record.check
    results_console().print(
        f"{folder}: {size_text(sum(file.size_bytes for file in record.files))}, the bundle's verdict on "
        f"{check.n_images - check.label_differences} of {check.n_images} pictures, score drift "
        f"{check.max_score_difference:.1e}",
        soft_wrap=True,
    )


def _report(results: list[ExportResult], out: Path, seconds: float) -> None:
    """Print a table of what was made, warn, and end with the exit code of what failed."""
    table = plain_table(title=f"exported to {out} in {seconds:.1f} s")
    table.add_column("bundle", no_wrap=True)
    for column in ("size", "score drift", "map drift", "flips", "AUROC drop", "given back", "verified"):
        table.add_column(column, justify="right")
    for result in results:
        if result.bundle is None:
            continue
        manifest = result.bundle.manifest
        parity = manifest.parity
        drift = ("-", "-", "-")
        if parity is not None:
            drift = (
                f"{parity.max_score_difference:.1e}",
                f"{parity.max_map_difference:.1e}",
                f"{parity.label_flips} of {parity.n_images}",
            )
        table.add_row(
            manifest.name,
            size_text(result.bundle.size_bytes),
            *drift,
            "-" if manifest.accuracy is None else f"{manifest.accuracy.image_auroc_drop:.4f}",
            _given_back(manifest.quantization),
            "yes" if manifest.verified else "no",
        )
    if table.row_count:
        results_console().print(table)
    _warn(results)
    errors = [result for result in results if result.error is not None]
    for result in errors[:-1]:
        print_warning(f"no {result.target} {result.precision} bundle: {result.error}")
    gates = [result.error for result in errors if result.error is not None and result.error.exit_code == 3]
    if errors:
        last = errors[-1].error
        assert last is not None
        raise gates[-1] if gates else last


def _given_back(quantization: QuantizationRecord | None) -> str:
    """Say how many layers went back to float."""
    return "-" if quantization is None else f"{len(quantization.given_back)} of {len(quantization.layers)}"


def _warn(results: list[ExportResult]) -> None:
    said: set[str] = set()

    def warn_once(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            print_warning(sentence)

    unverified: dict[str, list[str]] = {}
    for result in results:
        if result.skipped is not None:
            warn_once(f"no {result.target} bundle: {result.skipped}")
        for sentence in result.warnings:
            warn_once(f"{result.target} {result.precision}: {sentence}")
        if result.bundle is None:
            continue
        manifest = result.bundle.manifest
        if manifest.quantization is not None and manifest.quantization.given_back:
            layers = ", ".join(manifest.quantization.given_back)
            warn_once(f"{manifest.name}: back in float to keep the accuracy, the most harmful first: {layers}")
        if not manifest.verified:
            unverified.setdefault(str(manifest.not_verified_because), []).append(manifest.name)
    for reason, names in unverified.items():
        warn_once(
            f"not verified: {', '.join(names)}, whose thresholds another runtime's scores have set: {reason}; on the "
            f"device, run: vae-edge verify {names[0]} --data NORMALS"
        )
    for result in results:
        if result.bundle is not None and (too_few := too_few_normals(result.bundle.manifest.thresholds)):
            warn_once(too_few)


def _given_scoring(text: str) -> ScoringSettings:
    settings = parse_scoring(text)
    if settings is None:
        raise UsageError("the scoring is 'auto', which is chosen in training; expected a name or maps, or leave it out")
    return settings
