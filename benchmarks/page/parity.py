"""Parity: how far each bundle is from the reference, and which verdicts that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vae_edge.benchmarks.accuracy_records import EXPLAINED_MOVE, Comparison
from vae_edge.benchmarks.formats import ABSENT, relative
from vae_edge.benchmarks.page.markup import Child, Markup, element, join
from vae_edge.benchmarks.page.plot import Look, named
from vae_edge.benchmarks.page.tables import bullets, data_table, exact, part, section
from vae_edge.benchmarks.report import Report


def parity_section(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the section."""
    title = "Do they decide the same"
    compared = [(bundle.name, bundle.comparison) for bundle in report.bundles if bundle.comparison]
    notes = bullets(report.reference_notes)
    if not compared:
        return section("parity", title, notes, element("p", "No bundle was compared with a reference."))
    intro = (
        f"On {report.data.n_judged} {report.data.judged}. A flip is an image that one calls anomalous and the other "
        "does not, each by its own threshold. In brackets the difference as a share of the reference's largest value."
    )
    return section(
        "parity",
        title,
        element("p", intro),
        notes,
        _drift_table(compared, looks),
        _flips(compared),
        _exported(report),
    )


def _drift_table(compared: Sequence[tuple[str, Comparison]], looks: Mapping[str, Look]) -> Markup:
    rows: list[Sequence[Child]] = []
    for name, found in compared:
        reference = found.reference if found.same_run else f"{found.reference} (another training run)"
        rows.append(
            [
                named(name, looks[name]),
                element("span", reference, class_="name"),
                join(exact(found.label_flips, "{:.0f}".format), f" of {found.n_images}"),
                str(found.unexplained_flips),
                relative(found.max_score_difference, found.reference_score_scale),
                f"{found.mean_score_difference:+.1e}",
                relative(found.max_map_difference, found.reference_map_scale),
                ABSENT if found.mean_map_difference is None else f"{found.mean_map_difference:.1e}",
                ABSENT if found.score_rank_correlation is None else f"{found.score_rank_correlation:.6f}",
            ]
        )
    headers = (
        "bundle", "reference", "flips", "not explained", "largest score difference", "mean, signed",
        "largest map difference", "mean map difference", "rank correlation",
    )  # fmt: skip
    return data_table("Drift from the reference", headers, rows, n_names=2)


def _flips(compared: Sequence[tuple[str, Comparison]]) -> Markup:
    rows: list[Sequence[Child]] = [
        [
            element("span", flip.image, class_="name"),
            element("span", name, class_="name"),
            flip.defect if flip.defect is not None else "good or not known",
            "normal, now anomalous" if flip.is_anomalous else "anomalous, now normal",
            f"{flip.reference_margin:+.3f}",
            f"{flip.margin:+.3f}",
            "yes" if flip.is_explained else "no",
        ]
        for name, found in compared
        for flip in found.flips
    ]
    if not rows:
        return part(
            "Flipped images", element("p", "None: every compared bundle decides every image as the reference does.")
        )
    legend = (
        "A margin is the distance to the threshold in standard deviations of the good parts' scores. A flip is "
        f"explained where the margin moved by less than {EXPLAINED_MOVE:g}: the image lies that near to the threshold."
    )
    headers = ("image", "bundle", "defect class", "verdict", "margin before", "margin now", "explained")
    return part(
        "Flipped images", element("p", legend), data_table("Images with another verdict", headers, rows, n_names=4)
    )


def _exported(report: Report) -> Markup | None:
    """Return what the export had found, to set beside what was found here."""
    rows: list[Sequence[Child]] = []
    for bundle in report.bundles:
        record = bundle.exported_parity
        if record is not None:
            rows.append(
                [
                    element("span", bundle.name, class_="name"),
                    record.images,
                    str(record.n_images),
                    str(record.label_flips),
                    relative(record.max_score_difference, record.reference_score_scale),
                    relative(record.max_map_difference, record.reference_map_scale),
                ]
            )
    if not rows:
        return None
    headers = ("bundle", "images", "n", "flips", "largest score difference", "largest map difference")
    return part(
        "What the export wrote down",
        element("p", join("Against the FP32 torch reference, where the bundle was made.")),
        data_table("Parity at export", headers, rows, n_names=2),
    )
