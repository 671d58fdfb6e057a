"""`vae-edge inspect`: what a bundle or a lone model file is, how it decides and how far it can be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vae_edge.backends.base import RuntimeOptions, open_backend
from vae_edge.bundle import Bundle
from vae_edge.cli.console import plain_table, print_warning, results_console, size_text
from vae_edge.errors import VaeEdgeError
from vae_edge.manifest import Manifest, TensorSpec
from vae_edge.model_file import ModelFileDescription, describe_model_file
from vae_edge.sinks import trust_warnings


def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|FILE", help="A bundle (a folder that export made), or a model file that lost its bundle."
        ),
    ],
    device: Annotated[str, typer.Option(help="Device to open the bundle on.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check a bundle's files, show its manifest, and say which runtime and device would run it here.

    Of a model file (.onnx, .xml, .engine, .json, .safetensors): what it says about itself, without its runtime.
    """
    if source.is_file():
        _inspect_file(describe_model_file(source), as_json)
    else:
        _inspect_bundle(source, device, as_json)


def _inspect_bundle(folder: Path, device: str, as_json: bool) -> None:
    opened = Bundle.open(folder)
    runs_with, reason = _try_to_open(opened, device)
    manifest = opened.manifest
    if as_json:
        content = {
            "bundle": str(folder),
            "size_bytes": opened.size_bytes,
            "runs_with": runs_with,
            "runs_because" if runs_with else "does_not_run_because": reason,
            "manifest": manifest.model_dump(mode="json"),
        }
        print(json.dumps(content, indent=2))
        return
    _print_sections(_sections(opened, runs_with, reason))
    for sentence in trust_warnings(opened):
        print_warning(sentence)


def _inspect_file(found: ModelFileDescription, as_json: bool) -> None:
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    facts = [("format", found.format), *found.details.items()]
    if found.bundle is not None:
        same = "unchanged" if found.bundle_match else "NOT the file that its manifest lists"
        facts.append(("of the bundle", f"{found.bundle}, {same}"))
    said = list(found.metadata.items()) or [("nothing", "no metadata of vae-edge, and no manifest beside it")]
    _print_sections(
        {
            f"{escape(Path(found.path).name)}  {size_text(found.size_bytes)}": facts,
            "What it says": said,
        }
    )
    if found.bundle_match is False:
        print_warning(f"{found.path} is not the file that {found.bundle} was exported with")


def _print_sections(sections: dict[str, list[tuple[str, str]]]) -> None:
    console = results_console()
    for title, rows in sections.items():
        table = plain_table(title=title, headers=False)
        table.add_column(min_width=18, style="cyan")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(escape(name), escape(value))
        console.print(table)
        console.print()


def _try_to_open(bundle: Bundle, device: str) -> tuple[str | None, str]:
    """Return runtime and device, and why that one; or None, and why it cannot be opened here."""
    manifest = bundle.manifest
    try:
        with open_backend(
            manifest.target,
            bundle.model_path,
            manifest.inputs,
            manifest.outputs,
            max_batch=manifest.max_batch,
            options=RuntimeOptions(device=device, rebuild=False),
        ) as backend:
            return f"{backend.version} on {backend.device.name}", backend.device.reason
    except VaeEdgeError as error:
        return None, str(error)


def _sections(bundle: Bundle, runs_with: str | None, reason: str) -> dict[str, list[tuple[str, str]]]:
    manifest = bundle.manifest
    made_by = f"{manifest.runtime.flavour} {manifest.runtime.version}"
    details = ", ".join(f"{key} {value}" for key, value in manifest.runtime.details.items())
    size = manifest.preparation
    model = [
        ("target", f"{manifest.target}, {manifest.precision}"),
        ("made with", f"{made_by} ({details})" if details else made_by),
        ("input", "; ".join(map(_tensor_text, manifest.inputs))),
        ("outputs", "; ".join(map(_tensor_text, manifest.outputs))),
        ("largest batch", "any" if manifest.max_batch is None else str(manifest.max_batch)),
        ("preparation", f"resized to {size.height} x {size.width}; 16-bit white is {size.white_level}"),
        ("scoring", manifest.scoring),
        ("files", "; ".join(f"{file.name} {size_text(file.size_bytes)}" for file in manifest.files) + "; unchanged"),
        ("here it runs with", f"{runs_with} ({reason})" if runs_with else f"nothing: {reason}"),
    ]
    return {
        f"{escape(manifest.name)}  {size_text(bundle.size_bytes)}": model,
        "Decision": _decision_rows(manifest),
        "Trust": _trust_rows(manifest),
        "Provenance": [
            ("run", f"{manifest.provenance.run} ({manifest.provenance.run_fingerprint[:12]})"),
            ("training images", manifest.provenance.data_fingerprint[:12]),
            ("exported", f"{manifest.provenance.created_utc} by vae-edge {manifest.provenance.vae_edge_version}"),
            ("libraries", ", ".join(f"{k} {v}" for k, v in manifest.provenance.library_versions.items()) or "none"),
        ],
    }


def _decision_rows(manifest: Manifest) -> list[tuple[str, str]]:
    thresholds = manifest.thresholds
    rate = f"{thresholds.false_alarm_rate:.3g} of normal images"
    if thresholds.false_alarm_rate > thresholds.false_alarm_rate_requested:
        rate += f" (asked for {thresholds.false_alarm_rate_requested:.3g}: too few normals)"
    scores = thresholds.calibration_scores
    return [
        ("false alarms", f"at most {rate}"),
        ("image threshold", f"score > {thresholds.image_threshold:.6g}"),
        (
            "pixel threshold",
            f"map > {thresholds.pixel_threshold:.6g}, "
            f"at most {thresholds.pixel_false_positive_rate:.3g} of normal pixels",
        ),
        ("fitted on", f"{thresholds.n_normals} normals, scores {scores[0]:.4g} to {scores[-1]:.4g}"),
        ("scored by", thresholds.scored_by),
    ]


def _trust_rows(manifest: Manifest) -> list[tuple[str, str]]:
    rows = [("verified", "yes: thresholds come from this bundle's own outputs" if manifest.verified else "no")]
    if manifest.not_verified_because:
        rows.append(("because", manifest.not_verified_because))
    parity = manifest.parity
    if parity is None:
        rows.append(("parity", "not measured"))
    else:
        score = parity.max_score_difference / max(parity.reference_score_scale, 1e-30)
        maps = parity.max_map_difference / max(parity.reference_map_scale, 1e-30)
        rows.append(("parity", f"{parity.n_images} images ({parity.images}) against {parity.reference}"))
        allowed = "" if parity.tolerance is None else f"; at most {parity.tolerance:.2%} allowed"
        rows.append(("", f"score within {score:.2%}, map within {maps:.2%}{allowed}"))
        rows.append(("", f"{parity.label_flips} verdicts differ" if parity.label_flips else "every verdict the same"))
    accuracy = manifest.accuracy
    if accuracy is not None:
        rows.append(("accuracy", f"on {accuracy.images}"))
        rows.append(("", f"image AUROC {accuracy.image_auroc:.4f}, in FP32 {accuracy.reference_image_auroc:.4f}"))
        if accuracy.pixel_auroc is not None:
            rows.append(("", f"pixel AUROC {accuracy.pixel_auroc:.4f}, in FP32 {accuracy.reference_pixel_auroc:.4f}"))
        at_reference = accuracy.label_flips_at_reference_threshold
        rows.append(("", f"{accuracy.label_flips} verdicts differ; {at_reference} would by FP32's threshold"))
    quantization = manifest.quantization
    if quantization is not None and manifest.calibration_set is not None:
        on = f"{manifest.calibration_set.n_images} images ({manifest.calibration_set.sha256[:12]})"
        rows.append(("quantized on", f"{on}, ranges by {quantization.estimator}"))
        rows.append(("in float", ", ".join(quantization.given_back) or "no layer went back to float"))
    return rows


def _tensor_text(spec: TensorSpec) -> str:
    shape = " x ".join("N" if size is None else str(size) for size in spec.shape)
    return f"{spec.name} {spec.dtype} {shape}"
