"""The first screen: which bundle, why, how sure, and what speaks against believing it."""

from __future__ import annotations

from vae_edge.benchmarks.choice_records import Judgement, Recommendation, Requirement
from vae_edge.benchmarks.formats import mebibytes, milliseconds, percent, share
from vae_edge.benchmarks.metric_names import METRICS
from vae_edge.benchmarks.page.markup import Child, Markup, element, join
from vae_edge.benchmarks.page.tables import bullets, folded, part, section, with_interval
from vae_edge.benchmarks.report import BundleResult, Report

_OPTIONS = ("--require", "--minimize", "--maximize")
_SIGNS = {">=": "≥", "<=": "≤"}


def verdict_section(report: Report) -> Markup:
    """Return the section."""
    return section("verdict", "Which bundle to ship", _flags(report), _verdict(report))


def _flags(report: Report) -> Markup:
    """Return what limits belief, where it cannot be overlooked."""
    flags: list[Child] = []
    if report.interrupted_because:
        flags.append(join(element("strong", "Interrupted: "), report.interrupted_because))
    if report.settings.quick:
        flags.append(
            join(element("strong", "Quick run: "), "too short to compare machines or versions, or to ship by.")
        )
    if report.warnings:
        n = len(report.warnings)
        link = element("a", "one warning" if n == 1 else f"{n} warnings", href="#warnings")
        flags.append(join(link, " limits" if n == 1 else " limit", " how far these numbers can be believed."))
    return join([element("p", flag, class_="flag") for flag in flags])


def _verdict(report: Report) -> Markup:
    choice = report.recommendation
    if choice is None:
        headline = (
            "No bundle was recommended." if report.any_ran else "No bundle ran, so there is nothing to choose from."
        )
        reasons = [
            join(element("strong", bundle.name, class_="name"), ": ", bundle.not_run_because)
            for bundle in report.bundles
            if not bundle.has_run
        ]
        return join(element("p", headline, class_="headline"), bullets(reasons))
    return join(
        _headline(report, choice),
        element(
            "div",
            [
                element("div", aside)
                for aside in (_asked(report, choice), _sure(report, choice), _misfits(choice))
                if aside
            ],
            class_="asides",
        ),
        _others(choice),
    )


def _headline(report: Report, choice: Recommendation) -> Markup:
    if choice.chosen is None:
        return element(
            "div",
            element("p", "None of the bundles fits.", class_="headline"),
            element("p", choice.why),
            class_="card bad",
        )
    bundle = report.bundle(choice.chosen)
    # A quick or interrupted run says where to look, not what to ship.
    is_provisional = report.settings.quick or report.interrupted_because is not None
    word = "Provisionally: " if is_provisional else "Ship "
    return element(
        "div",
        element("p", word, element("strong", choice.chosen, class_="name"), class_="headline"),
        element("p", choice.why),
        _tiles(bundle),
        class_="card provisional" if is_provisional else "card",
    )


def _tiles(bundle: BundleResult) -> Markup:
    """Return the few numbers that the choice is about."""
    tiles: list[tuple[str, Child]] = []
    if bundle.latency:
        file = bundle.latency.file
        tiles += [
            ("p50, file to verdict", with_interval(file.p50_ms, file.intervals.get("p50_ms"), milliseconds, " ms")),
            ("p99", with_interval(file.p99_ms, file.intervals.get("p99_ms"), milliseconds, " ms")),
        ]
    if bundle.accuracy:
        metrics, intervals = bundle.accuracy.metrics, bundle.accuracy.intervals
        tiles += [
            ("image AUROC", with_interval(metrics.image_auroc, intervals.get("image_auroc"), share)),
            ("recall", with_interval(metrics.recall, intervals.get("recall"), percent)),
            ("false alarms", with_interval(metrics.false_alarm_rate, intervals.get("false_alarm_rate"), percent)),
        ]
    if bundle.memory:
        tiles.append(("memory", join(mebibytes(bundle.memory.peak_resident_bytes), " MiB")))
    items = [element("div", element("dt", term), element("dd", content)) for term, content in tiles]
    return element("dl", items, class_="tiles")


def _asked(report: Report, choice: Recommendation) -> Markup:
    bundle = report.bundle(choice.chosen) if choice.chosen is not None else None
    rule = f"{choice.rule[:1].upper()}{choice.rule[1:]}."
    how = (
        join(" To ask for something else: ", [join(element("code", option), " ") for option in _OPTIONS])
        if choice.is_default_rule
        else None
    )
    return part(
        "What was asked for",
        element("p", rule, how),
        bullets([_requirement(requirement, bundle) for requirement in choice.requirements], css="requirements"),
    )


def _requirement(requirement: Requirement, bundle: BundleResult | None) -> Markup:
    """Return a limit and, where a bundle was chosen, what was measured of it."""
    sign = _SIGNS.get(requirement.operator, requirement.operator)
    limit = element("code", f"{requirement.metric} {sign} {requirement.limit:g}")
    metric = METRICS.get(requirement.metric)
    found = metric.find(bundle) if metric is not None and bundle is not None else None
    if metric is None or found is None:
        return limit
    value, interval = found
    return element("span", limit, " measured: ", with_interval(value, interval, "{:.4g}".format), title=metric.what)


def _sure(report: Report, choice: Recommendation) -> Markup | None:
    """Return what the measurement's uncertainty leaves open about the chosen bundle."""
    chosen = next((item for item in choice.judgements if item.bundle == choice.chosen), None)
    if chosen is None:
        return None
    rivals = [
        join(element("strong", item.bundle, class_="name"), ": ", caveat)
        for item in choice.judgements
        if item.fits and item.bundle != choice.chosen
        for caveat in item.caveats
        # Of the others only what is said of them beside the chosen one; the rest stands below with their reasons.
        if choice.chosen is not None and choice.chosen in caveat
    ]
    doubts: list[Child] = [*chosen.caveats, *rivals]
    own = [warning for warning in report.warnings if warning.startswith(f"{choice.chosen}: ")]
    return part(
        "How sure",
        element("p", "Within the measurement's uncertainty (95 % intervals), so not certain:")
        if doubts
        else element("p", "Nothing that was asked for hangs on the measurement's uncertainty (95 % intervals)."),
        bullets(doubts, css="caveats"),
        folded(f"Warnings about {choice.chosen} ({len(own)})", bullets(own)) if own else None,
    )


def _misfits(choice: Recommendation) -> Markup | None:
    misfits = [item for item in choice.judgements if not item.fits]
    return part("What does not fit", _judgements(misfits)) if misfits else None


def _others(choice: Recommendation) -> Markup | None:
    others = [item for item in choice.judgements if item.fits and item.bundle != choice.chosen]
    if not others:
        return None
    return folded(f"What fits, and why another one is better ({len(others)})", _judgements(others))


def _judgements(items: list[Judgement]) -> Markup | None:
    return bullets(
        [
            join(
                element("strong", item.bundle, class_="name"),
                ": ",
                "; ".join(item.reasons) or "no reason given",
                bullets(item.caveats, css="caveats"),
            )
            for item in items
        ]
    )
