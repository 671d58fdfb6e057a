"""What `vae-export` prints about what it made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vae_edge.cli.console import plain_table, print_warning, results_console, size_text
from vae_edge.decision import too_few_normals
from vae_edge.manifest import QuantizationRecord
from vae_edge.wording import count

if TYPE_CHECKING:
    from vae_edge.export.model_api.folder import ModelApiRecord
    from vae_edge.export.pipeline import ExportResult


MUCH_SATURATION = 0.001
"""Share of a layer's values beyond their range from which the user is warned: ten times what the estimator `percentile`
cuts off on purpose, and a tenth of the share of positions that a score averages by default (1 %)."""


def print_model_api(folder: Path, record: ModelApiRecord) -> None:
    """Print a line about a Model API folder."""
    check = record.check
    results_console().print(
        f"{folder}: {size_text(sum(file.size_bytes for file in record.files))}, the bundle's verdict on "
        f"{check.n_images - check.label_differences} of {count(check.n_images, 'picture')}, score drift "
        f"{check.max_score_difference:.1e}",
        soft_wrap=True,
    )


def print_results(results: list[ExportResult], out: Path, seconds: float) -> None:
    """Print a table of what was made and the warnings, and exit with the exit code of what failed."""
    table = plain_table(title=f"exported to {out} in {seconds:.1f} s")
    table.add_column("bundle", no_wrap=True)
    for column in ("size", "score drift", "map drift", "flips", "AUROC drop", "given back", "saturated", "verified"):
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
            _saturated(manifest.quantization),
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
    """Return how many layers went back to float."""
    return "-" if quantization is None else f"{len(quantization.given_back)} of {len(quantization.layers)}"


def _saturated(quantization: QuantizationRecord | None) -> str:
    """Return the share of values beyond their range in the layer where it is largest."""
    saturation = None if quantization is None else quantization.saturation
    return "-" if saturation is None else f"{saturation.share:.2%}"


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
        saturation = None if manifest.quantization is None else manifest.quantization.saturation
        if saturation is not None and saturation.share > MUCH_SATURATION:
            warn_once(
                f"{manifest.name}: {saturation.share:.2%} of the values that {saturation.layer} reads on "
                f"{saturation.n_images} judging images are beyond the range of the calibration images, and are cut "
                "off: defects may score lower than in fp32; calibrate on more pictures with --calibration-data, or "
                "use --estimator min-max"
            )
        if not manifest.verified:
            unverified.setdefault(str(manifest.not_verified_because), []).append(manifest.name)
    for reason, names in unverified.items():
        warn_once(
            f"not verified: {', '.join(names)}, whose thresholds come from another runtime's scores: {reason}; on the "
            f"device, run: vae-edge verify {names[0]}"
        )
    for result in results:
        if result.bundle is not None and (too_few := too_few_normals(result.bundle.manifest.thresholds)):
            warn_once(too_few)
