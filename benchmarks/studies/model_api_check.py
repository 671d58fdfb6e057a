"""Does OpenVINO Model API give the Detector's verdicts, and at what cost?

`python -m vae_edge.benchmarks.studies.model_api_check BUNDLE MODEL_API_DIR --data PICTURES`

Each side reads every picture from its file in its own way: `Detector.predict(path)`, and `model(cv2.imread(path))`.
They take turns with every picture, so that a disturbance affects both. Where `openvino-model-api` is not installed, the
model is run by OpenVINO alone, without Model API's own postprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from vae_edge.agreement import compare_scores
from vae_edge.benchmarks.measure.instruments import timed
from vae_edge.benchmarks.studies import run_study
from vae_edge.cli.console import notes_console, plain_table, results_console
from vae_edge.cli.progress import step_progress
from vae_edge.detector import Detector
from vae_edge.errors import InputError, UsageError
from vae_edge.export.model_api.folder import ModelApiRecord, images_below, open_model, read_model_api_record
from vae_edge.export.model_api.graph import Scale
from vae_edge.platform.atomic import write_text
from vae_edge.platform.machine import installed_version
from vae_edge.platform.telemetry import import_openvino
from vae_edge.platform.work import Progress
from vae_edge.records import Record


class ModelApiComparison(Record):
    """The results for the pictures on both sides."""

    bundle: str
    opened_with: str
    """What ran the model, and in which arithmetic."""
    n_images: int
    n_anomalous: int
    """By the Detector."""
    equal_verdicts: int
    differing_images: tuple[str, ...]
    max_score_difference: float
    """Largest difference between `pred_score` and the Detector's score converted to the scale from 0 to 1."""
    order_inversions: int
    """Pairs of neighbours, in the order of the Detector's scores, that `pred_score` has the other way round."""
    detector_ms: float
    """Median for one picture, from the file to the verdict."""
    model_api_ms: float


@dataclass(frozen=True)
class _Verdict:
    score: float
    is_anomalous: bool


Judge = Callable[[NDArray[np.uint8]], _Verdict]
"""From a picture as `cv2.imread` gives it, uint8 [H, W, 3], to a verdict."""


def compare(
    bundle: Path,
    folder: Path,
    images: Sequence[Path],
    *,
    as_created: bool = False,
    progress: Progress | None = None,
) -> ModelApiComparison:
    """Judge pictures with a Detector and with the Model API folder that was made from its bundle.

    Args:
        bundle: the bundle.
        folder: made from it by `vae-export --layout model-api`.
        images: files to judge; 8 bits per channel, because `cv2.imread` scales others by its own rules.
        as_created: open it with just `create_model(path)`: the processor then chooses the arithmetic.
        progress: called after every picture.

    Raises:
        UsageError: the folder was made from another bundle, or `as_created` without Model API.
        InputError: there is no picture, or one cannot be read.
        BundleError: one of the folders is damaged.
    """
    if not images:
        raise InputError("there is no picture to judge; expected at least 1")
    record = read_model_api_record(folder)
    judge, opened_with = _open(folder / record.model_file, as_created=as_created)
    scale = Scale(record.image_scale.threshold, record.image_scale.spread)
    ours: list[_Verdict] = []
    theirs: list[_Verdict] = []
    times: tuple[list[int], list[int]] = ([], [])
    with Detector.open(bundle, device="cpu", hint="latency") as detector:
        _check_origin(detector, record, bundle, folder)
        for path in images[:3]:  # What comes first is slower.
            detector.predict(path)
            judge(_read(path))
        for position, path in enumerate(images):
            prediction, own_ns = timed(detector.predict, path)
            verdict, other_ns = timed(lambda path: judge(_read(path)), path)
            times[0].append(own_ns)
            times[1].append(other_ns)
            ours.append(_Verdict(prediction.score, prediction.is_anomalous))
            theirs.append(verdict)
            if progress is not None:
                progress(position + 1, len(images))
    raw, scores = (np.array([verdict.score for verdict in side]) for side in (ours, theirs))
    verdicts = [np.array([verdict.is_anomalous for verdict in side]) for side in (ours, theirs)]
    agreement = compare_scores(
        scale.normalize(raw.astype(np.float32)), scores, reference_verdicts=verdicts[0], verdicts=verdicts[1]
    )
    steps = np.diff(scores[np.argsort(raw, kind="stable")])
    return ModelApiComparison(
        bundle=record.bundle,
        opened_with=opened_with,
        n_images=len(images),
        n_anomalous=int(verdicts[0].sum()),
        equal_verdicts=len(images) - len(agreement.flipped),
        differing_images=agreement.names([path.name for path in images]),
        max_score_difference=agreement.scores.largest,
        order_inversions=int((steps < 0).sum()),
        detector_ms=float(np.median(times[0])) / 1e6,
        model_api_ms=float(np.median(times[1])) / 1e6,
    )


def _check_origin(detector: Detector, record: ModelApiRecord, bundle: Path, folder: Path) -> None:
    opened = detector.bundle
    if opened.model_sha256 != record.bundle_model_sha256:
        raise UsageError(f"{folder} was made from another bundle, {record.bundle}; expected one made from {bundle}")
    if opened.manifest.thresholds != record.thresholds:
        raise UsageError(
            f"the thresholds of {bundle} were fitted again after {folder} was made from it; export it again: "
            f"vae-export {bundle} --layout model-api"
        )


def _open(model: Path, *, as_created: bool) -> tuple[Judge, str]:
    if find_spec("model_api") is None:
        if as_created:
            raise UsageError("openvino-model-api is not installed; run: pip install openvino-model-api")
        run = open_model(model)

        def by_openvino(picture: NDArray[np.uint8]) -> _Verdict:
            outputs = run(picture)
            return _Verdict(outputs["pred_score"].item(), bool(outputs["pred_label"].item()))

        return by_openvino, "OpenVINO alone, FP32"
    import_openvino()  # Before Model API does: without its telemetry.
    from model_api.adapters import OpenvinoAdapter, create_core
    from model_api.models import AnomalyDetection

    source: Any = str(model)
    if not as_created:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        source = OpenvinoAdapter(create_core(), source, device="CPU", plugin_config=settings)
    opened = AnomalyDetection.create_model(source)

    def by_model_api(picture: NDArray[np.uint8]) -> _Verdict:
        result = opened(picture)
        return _Verdict(float(result.pred_score), result.pred_label == "True")

    arithmetic = "as created" if as_created else "FP32"
    return by_model_api, f"Model API {installed_version('openvino-model-api')}, {arithmetic}"


def _read(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path))
    if picture is None:
        raise InputError(f"{path} could not be decoded; remove it or take the picture again")
    return np.asarray(picture, dtype=np.uint8)


def main(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle for target openvino.")],
    folder: Annotated[
        Path, typer.Argument(metavar="MODEL_API_DIR", help="The folder that --layout model-api made from it.")
    ],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Pictures to judge, including sub-folders.")],
    as_created: Annotated[
        bool, typer.Option("--as-created", help="Open with just create_model(path), whatever arithmetic it uses.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures there as JSON.")] = None,
) -> None:
    """Compare the verdicts of OpenVINO Model API with those of the Detector, and their time."""
    images = images_below(data)
    with step_progress() as progress:
        found = compare(
            bundle,
            folder,
            images,
            as_created=as_created,
            progress=lambda done, total: progress("judging", done, total),
        )
    print_comparison(found)
    if out is not None:
        write_text(out, found.model_dump_json(indent=2) + "\n")
        notes_console().print(f"Written: {out}")
    if found.differing_images:
        raise typer.Exit(3)


def print_comparison(found: ModelApiComparison) -> None:
    """Print a comparison as a table."""
    table = plain_table(title=f"{found.bundle} and its Model API export ({found.opened_with})", headers=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row("pictures", f"{found.n_images}, {found.n_anomalous} of them anomalous")
    table.add_row("equal verdicts", f"{found.equal_verdicts} of {found.n_images}")
    table.add_row("largest score difference", f"{found.max_score_difference:.1e} on the scale from 0 to 1")
    table.add_row("inversions of the order", str(found.order_inversions))
    table.add_row("Detector", f"{found.detector_ms:.1f} ms a picture, from the file (median)")
    table.add_row("Model API", f"{found.model_api_ms:.1f} ms")
    results_console().print(table)
    if found.differing_images:
        notes_console().print("different verdict: " + ", ".join(found.differing_images))


if __name__ == "__main__":
    run_study(main)
