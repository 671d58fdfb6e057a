"""Accuracy: curves, scores with the threshold, and each defect class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vae_edge.benchmarks.accuracy_records import AccuracyRecord
from vae_edge.benchmarks.estimates import CurveRecord
from vae_edge.benchmarks.formats import percent, share
from vae_edge.benchmarks.page.curves import NamedCurve, curve_chart, score_chart
from vae_edge.benchmarks.page.markup import Child, Markup, element, join
from vae_edge.benchmarks.page.plot import Look, key
from vae_edge.benchmarks.page.tables import data_table, exact, figure, folded, part, section, with_interval
from vae_edge.benchmarks.report import Report
from vae_edge.train.metrics import DefectMetrics

Judged = Sequence[tuple[str, AccuracyRecord]]

PRO_LIMIT = 0.3
"""False-positive rate up to which the area under the PRO curve is taken."""


def accuracy_section(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the section; without labelled images it says why."""
    title = "How right they are"
    judged = [(bundle.name, bundle.accuracy) for bundle in report.bundles if bundle.accuracy]
    if not judged:
        reason = report.data.no_accuracy_because or "no bundle ran"
        return section("accuracy", title, element("p", f"Not measured: {reason}."))
    data = report.data
    intro = (
        f"{data.n_test_normal} good and {data.n_test_anomalous} defective test images, {data.n_with_mask} of them with "
        "masks. Recall and false alarms are at each bundle's own threshold, which was fitted on other images."
    )
    return section(
        "accuracy",
        title,
        element("p", intro),
        _curves(judged, looks),
        _scores(judged),
        _defects(judged),
        _all_metrics(report, judged),
    )


def _curves(judged: Judged, looks: Mapping[str, Look]) -> Markup | None:
    charts = [
        _chart(judged, looks, "roc", "ROC of images", "false alarms", "defective images found", lambda a: a.roc,
               lambda a: a.metrics.image_auroc),
        _chart(judged, looks, "pixel-roc", "ROC of pixels", "good pixels flagged", "defective pixels found",
               lambda a: a.pixel_roc, lambda a: a.metrics.pixel_auroc),
        _chart(judged, looks, "pro", "PRO", "good pixels flagged", "overlap with the defects' regions",
               lambda a: a.pro, lambda a: a.metrics.aupro, PRO_LIMIT),
    ]  # fmt: skip
    found = [chart for chart in charts if chart]
    if not found:
        return None
    names = [name for name, _ in judged]
    return part(
        "Curves",
        key(names, [looks[name] for name in names]),
        element("div", found, class_="panels"),
        folded("Curves as a table", _curve_table(judged)),
    )


def _chart(
    judged: Judged,
    looks: Mapping[str, Look],
    name: str,
    title: str,
    x_title: str,
    y_title: str,
    curve: Callable[[AccuracyRecord], CurveRecord | None],
    area: Callable[[AccuracyRecord], float | None],
    up_to: float = 1.0,
) -> Markup | None:
    curves = [
        NamedCurve(bundle, looks[bundle], found, area(accuracy))
        for bundle, accuracy in judged
        if (found := curve(accuracy)) is not None
    ]
    if not curves:
        return None
    return figure(title, curve_chart(name, title, x_title, y_title, curves, up_to=up_to))


def _curve_table(judged: Judged) -> Markup:
    """Return the height of each image ROC at a few false-alarm rates: what a screen reader can make of a curve."""
    rates = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
    rows: list[Sequence[Child]] = []
    for name, accuracy in judged:
        for what, curve in (("images, ROC", accuracy.roc), ("pixels, ROC", accuracy.pixel_roc), ("PRO", accuracy.pro)):
            if curve is not None:
                rows.append([name, what, *(share(_height(curve, value)) for value in rates)])
    return data_table(
        "Height of the curves at false-positive rates", ["bundle", "curve", *map(str, rates)], rows, n_names=2
    )


def _height(curve: CurveRecord, at: float) -> float:
    """Return the height of a curve, straight between its corners; on a vertical step its upper end."""
    points = list(zip(curve.false_positive_rate, curve.hit_rate, strict=True))
    before = [point for point in points if point[0] <= at]
    after = next((point for point in points if point[0] > at), None)
    if not before:
        return 0.0
    if after is None:
        return before[-1][1]
    (x1, y1), (x2, y2) = before[-1], after
    return y1 + (y2 - y1) * (at - x1) / (x2 - x1)


def _scores(judged: Judged) -> Markup:
    charts = [
        figure(
            element("span", name, class_="name"),
            score_chart(f"scores-{position}", name, accuracy.scores, accuracy.metrics.threshold),
        )
        for position, (name, accuracy) in enumerate(judged)
    ]
    return part(
        "Scores and thresholds",
        element(
            "p", "Each bundle's scores are in its own scale. What is to the right of the threshold is called anomalous."
        ),
        element("div", charts, class_="panels"),
        folded("Scores as a table", _score_table(judged)),
    )


def _score_table(judged: Judged) -> Markup:
    rows = [
        [name, f"{low:.3g} to {high:.3g}", str(good), str(bad)]
        for name, accuracy in judged
        for low, high, good, bad in zip(
            accuracy.scores.edges[:-1],
            accuracy.scores.edges[1:],
            accuracy.scores.normal,
            accuracy.scores.anomalous,
            strict=True,
        )
        if good or bad
    ]
    return data_table("Images by score", ("bundle", "score", "good", "defective"), rows, n_names=2)


def _defects(judged: Judged) -> Markup | None:
    defects = sorted({defect for _, accuracy in judged for defect in accuracy.metrics.per_defect})
    if not defects:
        return None
    rows: list[Sequence[Child]] = []
    for defect in defects:
        found = [accuracy.metrics.per_defect.get(defect) for _, accuracy in judged]
        n = next(metrics.n for metrics in found if metrics is not None)
        rows.append([element("span", defect, class_="name"), str(n), *(_defect_cell(metrics) for metrics in found)])
    table = data_table(
        "Recall at the bundle's own threshold; below it AUROC of images / of pixels against all good test images",
        ["defect class", "images", *(name for name, _ in judged)],
        rows,
    )
    return part("By defect class", table)


def _defect_cell(metrics: DefectMetrics | None) -> Markup:
    if metrics is None:
        return exact(None, share)
    areas = join(exact(metrics.image_auroc, share), " / ", exact(metrics.pixel_auroc, share))
    return join(exact(metrics.recall, percent), " ", element("span", areas, class_="interval"))


def _all_metrics(report: Report, judged: Judged) -> Markup:
    rows: list[Sequence[Child]] = []
    for name, accuracy in judged:
        metrics, intervals = accuracy.metrics, accuracy.intervals
        rows.append(
            [
                name,
                with_interval(metrics.image_auroc, intervals.get("image_auroc"), share),
                with_interval(metrics.image_aupr, intervals.get("image_aupr"), share),
                with_interval(metrics.image_f1, intervals.get("image_f1"), share),
                with_interval(metrics.pixel_auroc, intervals.get("pixel_auroc"), share),
                with_interval(metrics.aupro, intervals.get("aupro"), share),
            ]
        )
    for method in report.simple_methods:
        metrics = method.metrics
        label = join(
            f"no network: {method.name} {method.height}x{method.width}",
            " ",
            element("span", method.description, class_="interval wraps"),
        )
        values = (metrics.image_auroc, metrics.image_aupr, metrics.image_f1, metrics.pixel_auroc, metrics.aupro)
        rows.append([label, *(exact(value, share) for value in values)])
    headers = ("bundle", "image AUROC", "image AUPR", "F1 at the threshold", "pixel AUROC", "AUPRO")
    return part("All metrics", data_table("Accuracy with 95 % intervals", headers, rows))
