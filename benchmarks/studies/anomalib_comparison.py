"""One checkpoint in anomalib and as bundles: the command behind `vae_edge.benchmarks.studies.anomalib_check`.

Needs an environment with anomalib (`make bench-anomalib DATA=...`). `vae_edge.anomalib.Vae` is trained by anomalib's
`Engine`, or an existing checkpoint of it is used; then the same weights are measured

- by anomalib's evaluator, by this project's metrics on the network in torch, and by these on each bundle, on the whole
  test set: image and pixel AUROC, and the largest difference of a score from the torch network's;
- as anomalib's OpenVINO export in its `OpenVINOInferencer` against the bundles in the `Detector`: time to the first
  verdict, memory, images/s, in separate processes, alternately.

Pixel AUROC differs a little between the first and the others: anomalib shrinks masks by the nearest pixel, this project
in a way that keeps thin defects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vae_edge import Detector
from vae_edge.benchmarks.studies.peers import measured_process
from vae_edge.benchmarks.studies.peers.candidates import Candidate, anomalib_candidates
from vae_edge.benchmarks.studies.peers.environments import Environment
from vae_edge.benchmarks.studies.peers.rounds import Plan, run_rounds
from vae_edge.benchmarks.studies.peers.table import make_rows, to_markdown
from vae_edge.bundle import Bundle
from vae_edge.cli.console import notes_console, results_console
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.platform.atomic import write_text
from vae_edge.targets import Precision, Target
from vae_edge.train.anomalib.checkpoint import read_checkpoint
from vae_edge.train.anomalib.taking_over import take_over
from vae_edge.train.choice.image_size import parse_image_size
from vae_edge.train.data.inspection_set import ImageFile, load_images, load_masks, spread
from vae_edge.train.data.sources import DataSource
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.run.metrics import Metrics, evaluate

_TIMED = 64


def compare(
    data: Annotated[Path, typer.Argument(help="Image set in the layout of MVTec AD.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the bundles and the tables.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint of vae_edge.anomalib.Vae; default: train one.")
    ] = None,
    image_size: Annotated[str, typer.Option(help="Height and width, as 336x288.")] = "256x256",
    tile_size: Annotated[int | None, typer.Option(help="Side of the tiles; default: whole images.")] = None,
    photometric: Annotated[str, typer.Option(help="none, image or local.")] = "none",
    n_features: Annotated[int, typer.Option(help="Of the network.")] = 16,
    max_features: Annotated[int, typer.Option(help="Of the network.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    epochs: Annotated[int, typer.Option(help="Of the training.")] = 40,
    precision: Annotated[str, typer.Option(help="Of the training, as Lightning names it.")] = "32-true",
    rounds: Annotated[int, typer.Option(help="Rounds of timing; 0: none.")] = 3,
    seconds: Annotated[float, typer.Option(help="Of each loop of the timing.")] = 5.0,
) -> None:
    """Measure one checkpoint in anomalib and as bundles."""
    from anomalib.deploy import ExportType
    from anomalib.engine import Engine

    from vae_edge.anomalib import Vae

    root = data.resolve()
    module = _as_folder(root)
    engine = Engine(
        default_root_dir=out / "anomalib",
        accelerator="cpu",
        max_epochs=epochs,
        precision=precision,
        enable_progress_bar=False,
        # Every validation measures residuals anew; one at the end is enough here.
        check_val_every_n_epoch=epochs,
    )
    if checkpoint is None:
        model = Vae(
            n_features=n_features,
            max_features=max_features,
            learning_rate=learning_rate,
            tile_size=tile_size,
            photometric=photometric,
            pre_processor=Vae.configure_pre_processor(parse_image_size(image_size)),
        )
        engine.fit(model, datamodule=module)
        checkpoint = Path(engine.best_model_path)
    model = Vae.load_from_checkpoint(checkpoint)
    (theirs,) = engine.test(model, datamodule=module)
    exported = Path(engine.export(model, ExportType.OPENVINO, export_root=out / "anomalib-openvino"))

    trained = read_checkpoint(checkpoint)
    run = take_over(trained, DataSource(root=str(root)), out / "run")
    targets, precisions = (Target.OPENVINO, Target.ONNX, Target.TENSORRT), tuple(Precision)
    results = export_run(
        run,
        out / "bundles",
        ExportSettings(targets=targets, precisions=precisions, skip_missing_runtimes=True, only_supported=True),
    )
    bundles = [result.bundle for result in results if result.bundle is not None and result.bundle.manifest.verified]
    lines = _accuracy_lines(theirs, run, bundles)
    for line in lines:
        results_console().print(line, markup=False, soft_wrap=True)
    text = "\n".join(["# One checkpoint in anomalib and as bundles", "", *lines, ""])
    if rounds:
        text += "\n" + _timing(exported, bundles, run, rounds, seconds, out / "scratch")
    write_text(out / "anomalib.md", text)
    notes_console().print(f"Written: {out / 'anomalib.md'}", markup=False, soft_wrap=True)


def _as_folder(root: Path) -> Any:
    """Return anomalib's data module for a set in the layout of MVTec AD, with image files of any kind."""
    from anomalib.data import Folder

    defects = sorted(path.name for path in (root / "ground_truth").iterdir() if path.is_dir())
    return Folder(
        root.name,
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{name}" for name in defects],
        mask_dir=[f"ground_truth/{name}" for name in defects],
        # Else it would keep half of the test images for validation, and the two sides would measure on others.
        val_split_mode="same_as_test",
        num_workers=0,
    )


def _accuracy_lines(theirs: dict[str, float], run: RunFolder, bundles: Sequence[Bundle]) -> list[str]:
    tests = run.find_images(("test",))
    reference = run.metrics
    _, scores = run_graph(run.load_graph(), load_images(tests, run.record.preparation))
    lines = [
        f"{len(tests)} test images; AUROC of the same weights, and the largest difference of a score from the torch "
        "network's, next to the largest score.",
        "",
        "| measured by | image AUROC | pixel AUROC | largest score difference | other verdicts |",
        "|---|---:|---:|---:|---:|",
        f"| anomalib's evaluator | {theirs['image_AUROC']:.4f} | {theirs.get('pixel_AUROC', float('nan')):.4f} | | |",
        f"| this project's metrics, torch | {reference.image_auroc:.4f} | {reference.pixel_auroc or float('nan'):.4f} "
        f"| 0 of {np.abs(scores).max():.3g} | |",
    ]
    verdicts = scores > run.thresholds.image_threshold
    for bundle in bundles:
        found, measured, own = _measure(bundle, tests)
        lines.append(
            f"| {bundle.manifest.target} {bundle.manifest.precision} | {measured.image_auroc:.4f} "
            f"| {measured.pixel_auroc or float('nan'):.4f} | {np.abs(found - scores).max():.2g} "
            f"| {int((own != verdicts).sum())} of {len(tests)} |"
        )
    return lines


def _measure(bundle: Bundle, tests: Sequence[ImageFile]) -> tuple[Any, Metrics, Any]:
    """Return scores, metrics and verdicts of a bundle on the test images."""
    masks = load_masks(tests, bundle.manifest.preparation)
    with Detector.open(bundle.folder) as detector:
        predictions = list(detector.predict_batch([image.path for image in tests]))
    scores = np.array([each.score for each in predictions], dtype=np.float32)
    metrics = evaluate(
        np.array([image.is_anomalous for image in tests], dtype=np.bool_),
        scores,
        [image.defect for image in tests],
        np.stack([each.anomaly_map for each in predictions]),
        masks.masks,
        masks.has_mask,
        bundle.manifest.thresholds.image_threshold,
    )
    return scores, metrics, np.array([each.is_anomalous for each in predictions])


def _timing(
    exported: Path,
    bundles: Sequence[Bundle],
    run: RunFolder,
    rounds: int,
    seconds: float,
    scratch: Path,
) -> str:
    environment = Environment.here(
        "anomalib and vae-edge",
        ("anomalib", "torch", "openvino", "onnxruntime"),
        declare_operators=measured_process.has_declared_operators(),
    )
    candidates = anomalib_candidates(environment, exported, exported, None)
    candidates += [
        Candidate(
            f"vae-edge, {each.manifest.target} {each.manifest.precision}",
            "",
            environment,
            "process",
            each.folder,
            "vae-edge",
        )
        for each in bundles
        if each.manifest.precision in (Precision.FP32, Precision.INT8)
    ]
    tests = run.find_images(("test",))
    scratch.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        files=tuple(str(image.path) for image in spread(tests, _TIMED)),
        judged=tuple(str(image.path) for image in tests),
        rounds=rounds,
        seconds=seconds,
        n_start=20,
        timeout_s=600.0,
        scratch=scratch.resolve(),
    )

    def tell(line: str) -> None:
        notes_console().print(line, markup=False, soft_wrap=True)

    rows = make_rows(run_rounds(candidates, plan, tell), [image.is_anomalous for image in tests])
    facts = [f"The same checkpoint, {rounds} rounds in turns, {len(plan.files)} pictures timed."]
    versions = environment.versions.items()
    facts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions) + ".")
    return to_markdown(rows, facts, [])
