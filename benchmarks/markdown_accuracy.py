"""The parts of report.md about accuracy and about parity with the reference."""

from __future__ import annotations

from vae_edge.benchmarks.accuracy_records import EXPLAINED_MOVE, AccuracyRecord
from vae_edge.benchmarks.estimates import Interval
from vae_edge.benchmarks.formats import ABSENT, percent, relative, share, with_interval
from vae_edge.benchmarks.markdown_tables import bullets, names, table
from vae_edge.benchmarks.report import BundleResult, Report
from vae_edge.manifest import ThresholdMethod
from vae_edge.train.metrics import Metrics


def accuracy_section(report: Report) -> str:
    """Return the accuracy of every bundle with intervals, and that of each defect class."""
    judged = [(bundle.name, bundle.accuracy) for bundle in report.bundles if bundle.accuracy is not None]
    simple = _simple_methods(report)
    if not judged and not simple:
        return f"Not measured: {report.data.no_accuracy_because or 'no bundle ran'}."
    data = report.data
    header = [
        "bundle", "image AUROC", "image AUPR", "F1", "recall", "false alarms", "promised", "pixel AUROC", "AUPRO",
    ]  # fmt: skip
    rows = [[name, *_cells(record.metrics, record.intervals, record)] for name, record in judged]
    rows += [[name, *_cells(metrics, {}, None)] for name, metrics in simple]
    test_set = (
        f"{data.n_test_normal} good and {data.n_test_anomalous} defective test images, {data.n_with_mask} with masks. "
        "F1, recall and false alarms are at each bundle's own threshold, which was fitted on other images."
    )
    return "\n\n".join([test_set, table(header, rows), _per_defect([(n, r.metrics) for n, r in judged] + simple)])


def _cells(metrics: Metrics, intervals: dict[str, Interval], record: AccuracyRecord | None) -> list[str]:
    def shown(name: str, rate: bool = False) -> str:
        return with_interval(getattr(metrics, name), intervals.get(name), percent if rate else share)

    return [
        shown("image_auroc"),
        shown("image_aupr"),
        shown("image_f1"),
        shown("recall", rate=True),
        shown("false_alarm_rate", rate=True),
        _promise(record),
        shown("pixel_auroc"),
        shown("aupro"),
    ]


def _promise(record: AccuracyRecord | None) -> str:
    if record is not None and record.threshold_method is ThresholdMethod.F1_OPTIMAL:
        return "nothing: F1-optimal"
    if record is None or record.promise is None:
        return ABSENT
    return percent(record.promise.promised_rate) + ("" if record.promise.is_kept else ", broken")


def _per_defect(judged: list[tuple[str, Metrics]]) -> str:
    defects = sorted({defect for _, metrics in judged for defect in metrics.per_defect})
    if not defects:
        return ""
    rows = []
    for defect in defects:
        counts = [metrics.per_defect[defect].n for _, metrics in judged if defect in metrics.per_defect]
        cells = []
        for _, metrics in judged:
            found = metrics.per_defect.get(defect)
            cells.append(f"{share(found.image_auroc)} / {share(found.pixel_auroc)}" if found else ABSENT)
        rows.append([defect, str(counts[0]), *cells])
    title = "AUROC of each defect class, image / pixel, against all good test images:"
    return f"{title}\n\n{table(['defect', 'images', *(name for name, _ in judged)], rows)}"


def _simple_methods(report: Report) -> list[tuple[str, Metrics]]:
    same_size = len({(record.height, record.width) for record in report.simple_methods}) == 1
    return [
        (f"no network: {record.name}" + ("" if same_size else f" {record.height}x{record.width}"), record.metrics)
        for record in report.simple_methods
    ]


def parity_section(report: Report) -> str:
    """Return how far every bundle is from its reference, with the names of the flipped images."""
    notes = bullets(report.reference_notes)
    compared = [bundle for bundle in report.bundles if bundle.comparison is not None]
    if not compared:
        return notes
    header = [
        "bundle", "reference", "images", "label flips", "unexplained", "largest score difference", "mean drift",
        "largest map difference", "rank correlation",
    ]  # fmt: skip
    flipped = [
        f"{bundle.name}: {names(bundle.comparison.flipped_images)}"
        for bundle in compared
        if bundle.comparison is not None and bundle.comparison.flips
    ]
    legend = (
        f"On {report.data.n_judged} {report.data.judged}. A flip is an image that one calls anomalous and the other "
        "does not, each by its own threshold; it is explained where the score moved by less than "
        f"{EXPLAINED_MOVE:.0%} of the spread of good parts' scores, so that the image lies at the threshold. In "
        "brackets the difference as a share of the reference's largest value."
    )
    parts = [notes, legend, table(header, [_parity_row(bundle) for bundle in compared])]
    return "\n\n".join([*parts, *([f"Flipped:\n\n{bullets(flipped)}"] if flipped else [])])


def _parity_row(bundle: BundleResult) -> list[str]:
    found = bundle.comparison
    assert found is not None
    return [
        bundle.name,
        found.reference if found.same_run else f"{found.reference} (another training run)",
        str(found.n_images),
        str(found.label_flips),
        str(found.unexplained_flips),
        relative(found.max_score_difference, found.reference_score_scale),
        relative(found.mean_score_difference, found.reference_score_scale),
        relative(found.max_map_difference, found.reference_map_scale),
        ABSENT if found.score_rank_correlation is None else f"{found.score_rank_correlation:.6f}",
    ]
