"""The parts of `vae-edge inspect` about trust: what was measured, who signed a bundle, and where it comes from."""

from __future__ import annotations

from typing import Any

from vae_edge.bundle import Bundle
from vae_edge.cli.console import size_text
from vae_edge.errors import BundleError
from vae_edge.manifest import MANIFEST_FILE, BackboneOrigin, Manifest
from vae_edge.signing.check import claimed_signer
from vae_edge.signing.files import PROVENANCE_FILE
from vae_edge.signing.provenance import read_provenance
from vae_edge.targets import Precision
from vae_edge.wording import count


def trust_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """Return what the export measured of a bundle, and whether it is verified."""
    by = f" with {manifest.verified_by}" if manifest.verified_by else ""
    rows = [("verified", f"yes: it gave its reference outputs{by}" if manifest.verified else "no")]
    if manifest.not_verified_because:
        rows.append(("because", manifest.not_verified_because))
    rows += _reference_rows(manifest)
    parity = manifest.parity
    if parity is None:
        rows.append(("parity", "not measured"))
    else:
        score = parity.max_score_difference / max(parity.reference_score_scale, 1e-30)
        maps = parity.max_map_difference / max(parity.reference_map_scale, 1e-30)
        rows.append(("parity", f"{count(parity.n_images, 'image')} ({parity.images}) against {parity.reference}"))
        allowed = "" if parity.tolerance is None else f"; at most {parity.tolerance:.2%} allowed"
        rows.append(("", f"score within {score:.2%}, map within {maps:.2%}{allowed}"))
        rows.append(
            (
                "",
                f"{count(parity.label_flips, 'verdict differs', 'verdicts differ')}"
                if parity.label_flips
                else "every verdict the same",
            )
        )
    accuracy = manifest.accuracy
    if accuracy is not None:
        rows.append(("accuracy", f"on {accuracy.images}"))
        rows.append(("", f"image AUROC {accuracy.image_auroc:.4f}, in FP32 {accuracy.reference_image_auroc:.4f}"))
        if accuracy.pixel_auroc is not None:
            rows.append(("", f"pixel AUROC {accuracy.pixel_auroc:.4f}, in FP32 {accuracy.reference_pixel_auroc:.4f}"))
        at_reference = accuracy.label_flips_at_reference_threshold
        rows.append(
            (
                "",
                f"{count(accuracy.label_flips, 'verdict differs', 'verdicts differ')}; "
                f"{at_reference} would by FP32's threshold",
            )
        )
    quantization = manifest.quantization
    if quantization is not None and manifest.calibration_set is not None:
        images = manifest.calibration_set
        pasted = f", {images.n_with_defects} of them with pasted defects" if images.n_with_defects else ""
        on = f"{count(images.n_images, 'image')} ({images.sha256[:12]}){pasted}"
        rows.append(("quantized on", f"{on}, ranges by {quantization.estimator}"))
        if (saturation := quantization.saturation) is not None:
            rows.append(("", f"at most {saturation.share:.2%} of values beyond their range, in {saturation.layer}"))
        rows.append(("in float", ", ".join(quantization.given_back) or "no layer went back to float"))
    return rows


def _reference_rows(manifest: Manifest) -> list[tuple[str, str]]:
    found = manifest.references
    if found is None:
        return [("references", "none")]
    size_bytes = next(file.size_bytes for file in manifest.files if file.name == found.file)
    parts = "they show parts" if found.shows_parts else "they show no part"
    trained = f"scores within {found.score_tolerance:.3%}, maps within {found.map_tolerance:.3%} of {found.computed_by}"
    rows = [
        ("references", f"{count(found.n_images, 'picture')}, {size_text(size_bytes)}: {found.images}; {parts}"),
        ("", trained),
    ]
    own = found.own
    if own is not None:
        within = f"scores within {own.score_tolerance:.3%}, maps within {own.map_tolerance:.3%}"
        if manifest.precision is Precision.INT8:
            within += " (where values are rounded in another way: half of the pictures, or half of what INT8 is off)"
        rows.append(("", f"{within} of its own at export, {own.runtime} on {own.device}"))
    return rows


def signature_rows(bundle: Bundle) -> list[tuple[str, str]]:
    """Return who signed a bundle, and whether it was changed here."""
    if bundle.signature is not None:
        rows = [("signed by", bundle.signature.by.what), ("content", bundle.signature.root_sha256)]
    else:
        try:
            claimed = claimed_signer(bundle.folder)
        except BundleError as error:
            return [("signed by", f"nobody: {error}")]
        if claimed is None:
            return [("signed by", "nobody: there is no model.sig")]
        rows = [("signed by", f"{claimed}, as it says; not checked: add --trusted-key PUB.pem")]
    local = bundle.local
    if local is not None:
        checked = "" if bundle.signature is not None else "; not checked"
        by = f"the key SHA-256 {local.key_sha256[:16]}{checked}"
        rows.append(("changed here", f"number {local.record.number}, {local.record.written_utc}, by {by}"))
    return rows


def statement_rows(bundle: Bundle) -> list[tuple[str, str]]:
    """Return what `provenance.json` says, and whether it is about the files that are there."""
    try:
        found = read_provenance(bundle.folder)
    except BundleError as error:
        return [("statement", str(error))]
    if found is None:
        return [("statement", f"none: there is no {PROVENANCE_FILE}")]
    assert bundle.seen is not None
    files = {file.name: file.sha256 for file in bundle.manifest.files} | {MANIFEST_FILE: bundle.seen.manifest_sha256}
    other = [name for name in found.differing(files) if name in files]
    which = f"not of {', '.join(other)} as it is now" if other else "of these very files"
    covered = "" if bundle.signature is None else ", signed"
    rows = [("statement", f"{PROVENANCE_FILE}, {which}{covered}: in-toto, {found.predicateType}")]
    shown = {bundle.manifest.provenance.run_fingerprint, bundle.manifest.provenance.data_fingerprint}
    for each in found.predicate.buildDefinition.resolvedDependencies:
        if each.digest is not None and each.digest["sha256"] not in shown:
            rows.append((each.name, f"SHA-256 {each.digest['sha256'][:12]}"))
    builder = found.predicate.runDetails.builder
    rows.append(("made by", ", ".join(f"{name} {version}" for name, version in builder.version.items())))
    rows.append(("packages", ", ".join(found.packages)))
    return rows


def statement_as_json(bundle: Bundle) -> dict[str, Any] | None:
    """Return `provenance.json`; None: there is none.

    Raises:
        BundleError: it is damaged.
    """
    found = read_provenance(bundle.folder)
    return None if found is None else found.model_dump(mode="json", by_alias=True, exclude_none=True)


def backbone_rows(backbone: BackboneOrigin | None) -> list[tuple[str, str]]:
    """Return the origin of the pretrained weights, where there are some."""
    if backbone is None:
        return []
    return [("backbone", f"{backbone.name} from {backbone.source}, {backbone.licence}, SHA-256 {backbone.sha256[:12]}")]
