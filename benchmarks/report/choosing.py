"""Which of the measured bundles to ship, and why: requirements, an objective, and a default rule."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence

from vae_edge.benchmarks.measure.statistics import Interval, Ratio
from vae_edge.benchmarks.report.figures import FIGURES, figure
from vae_edge.benchmarks.report.records.report import (
    BundleResult,
    Judgement,
    Objective,
    Operator,
    Recommendation,
    Requirement,
)
from vae_edge.errors import UsageError
from vae_edge.wording import count

RatioOf = Callable[[str, str, str], Ratio | None]
"""Returns the ratio of a metric between two bundles, (metric, bundle, other bundle), if raw samples provide it."""

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}

DEFAULT_OBJECTIVE = Objective(metric="p50_ms", direction="minimize")


def parse_requirement(text: str) -> Requirement:
    """Read a requirement such as `image_auroc>=0.9`.

    Raises:
        UsageError: the text is not a requirement, or the metric is unknown.

    Examples:
        >>> str(parse_requirement("p99_ms<=40"))
        'p99_ms <= 40'
    """
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*", text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a requirement; expected METRIC>=NUMBER or METRIC<=NUMBER, such as p99_ms<=40"
        )
    sign: Operator = match[2]  # type: ignore[assignment]  # the pattern lets nothing else through
    try:
        limit = float(match[3])
    except ValueError:
        limit = float("nan")
    if not abs(limit) < float("inf"):
        raise UsageError(f"the limit in {text!r} is {match[3]!r}; expected a number")
    return Requirement(metric=figure(match[1]).name, operator=sign, limit=limit)


def parse_objective(minimize: str | None, maximize: str | None) -> Objective | None:
    """Read the objective; None if none was given.

    Raises:
        UsageError: both are given, or the metric is unknown.
    """
    if minimize is not None and maximize is not None:
        raise UsageError(f"both --minimize {minimize} and --maximize {maximize} were given; choose one of them")
    if minimize is not None:
        return Objective(metric=figure(minimize).name, direction="minimize")
    if maximize is not None:
        return Objective(metric=figure(maximize).name, direction="maximize")
    return None


def options(requirements: Sequence[Requirement], objective: Objective | None) -> list[str]:
    """Return the options of `vae-bench` for the same choice."""
    words = [word for each in requirements for word in ("--require", str(each).replace(" ", ""))]
    return words if objective is None else [*words, f"--{objective.direction}", objective.metric]


def recommend(
    bundles: Sequence[BundleResult],
    requirements: Sequence[Requirement] = (),
    objective: Objective | None = None,
    ratio: RatioOf = lambda *_: None,
) -> Recommendation:
    """Choose a bundle; explain why, and why not the others. One that does not give its reference outputs is not chosen.

    Without requirements and an objective: of the bundles whose image AUROC lies within the interval of the best one's
    and that have no unexplained flip, the fastest from file to verdict.
    """
    is_default = not requirements and objective is None
    chosen_objective = objective or DEFAULT_OBJECTIVE
    rule, misfits = _default_rule(bundles) if is_default else _asked_rule(bundles, requirements, chosen_objective)
    best_of = chosen_objective.metric
    values = {bundle.name: found[0] for bundle in bundles if bundle.has_run and (found := _find(bundle, best_of))}
    for bundle in bundles:
        if not bundle.has_run:
            misfits[bundle.name] = [f"it did not run: {bundle.not_run_because}"]
        elif bundle.name not in values:
            misfits.setdefault(bundle.name, []).append(f"it has no {best_of}: that was not measured")
        if bundle.references_agree is False:
            misfits.setdefault(bundle.name, []).append("it does not give its reference outputs here")
    fitting = [name for name in values if not misfits.get(name)]
    pick = min if chosen_objective.direction == "minimize" else max
    chosen = pick(fitting, key=lambda name: values[name]) if fitting else None
    judgements = []
    for bundle in bundles:
        reasons = list(misfits.get(bundle.name, ()))
        caveats = _caveats(bundle, requirements)
        if not reasons and chosen is not None and bundle.name != chosen:
            reasons.append(f"its {best_of} is {_text(bundle, best_of)}")
            close = ratio(best_of, bundle.name, chosen)
            if close is not None and not close.is_certain:
                caveats.append(_close_call(close, chosen))
        judgements.append(
            Judgement(
                bundle=bundle.name,
                fits=not misfits.get(bundle.name),
                objective_value=values.get(bundle.name),
                reasons=tuple(reasons),
                caveats=tuple(caveats),
            )
        )
    return Recommendation(
        chosen=chosen,
        rule=rule,
        is_default_rule=is_default,
        requirements=tuple(requirements),
        objective=chosen_objective,
        why=_why(chosen, len(fitting), chosen_objective, bundles),
        judgements=tuple(judgements),
    )


def _asked_rule(
    bundles: Sequence[BundleResult], requirements: Sequence[Requirement], objective: Objective
) -> tuple[str, dict[str, list[str]]]:
    extreme = "smallest" if objective.direction == "minimize" else "largest"
    limits = " and ".join(map(str, requirements))
    rule = f"of the bundles {f'with {limits}' if limits else 'that ran'} the one with the {extreme} {objective.metric}"
    misfits: dict[str, list[str]] = {}
    for bundle in bundles:
        for requirement in requirements if bundle.has_run else ():
            found = _find(bundle, requirement.metric)
            if found is None:
                misfits.setdefault(bundle.name, []).append(f"it has no {requirement.metric}: that was not measured")
            elif not _OPERATORS[requirement.operator](found[0], requirement.limit):
                misfits.setdefault(bundle.name, []).append(
                    f"its {requirement.metric} is {_text(bundle, requirement.metric)}; the requirement is {requirement}"
                )
    return rule, misfits


def _default_rule(bundles: Sequence[BundleResult]) -> tuple[str, dict[str, list[str]]]:
    misfits: dict[str, list[str]] = {}
    parts = []
    judged = [(found, bundle) for bundle in bundles if (found := _find(bundle, "image_auroc")) is not None]
    if judged:
        (best, interval), top = max(judged, key=lambda pair: pair[0][0])
        floor = best if interval is None else interval.low
        parts.append(f"an image AUROC of at least {floor:.3f}, the lower end of the interval of the best ({top.name})")
        for (value, _), bundle in judged:
            if value < floor:
                misfits.setdefault(bundle.name, []).append(
                    f"its image AUROC of {value:.3f} is below {floor:.3f}, the lower end of the interval of the best"
                )
    compared = [(bundle, bundle.comparison) for bundle in bundles if bundle.comparison is not None]
    if compared:
        parts.append("no flip against the reference except on images at the threshold")
        for bundle, comparison in compared:
            if (n := comparison.unexplained_flips) > 0:
                names = ", ".join(flip.image for flip in comparison.flips if not flip.is_explained)
                misfits.setdefault(bundle.name, []).append(
                    f"{n} verdict{'s differ' * (n > 1) or ' differs'} from {comparison.reference}'s without lying at "
                    f"the threshold: {names}"
                )
    condition = f"with {' and '.join(parts)} " if parts else "that ran (no accuracy was measured) "
    return f"by default, of the bundles {condition}the fastest from file to verdict", misfits


def _caveats(bundle: BundleResult, requirements: Sequence[Requirement]) -> list[str]:
    """Return the limits that lie within the interval of a value."""
    caveats = []
    for requirement in requirements if bundle.has_run else ():
        found = _find(bundle, requirement.metric)
        if found is None or found[1] is None:
            continue
        value, interval = found[0], found[1]
        keeps = [_OPERATORS[requirement.operator](end, requirement.limit) for end in (interval.low, interval.high)]
        if keeps[0] != keeps[1]:
            kept = _OPERATORS[requirement.operator](value, requirement.limit)
            caveats.append(
                f"{requirement} is {'met' if kept else 'missed'}, but not with certainty: {_range(interval)}"
            )
    return caveats


def _close_call(found: Ratio, chosen: str) -> str:
    interval = "no interval, too few samples or rounds" if found.interval is None else _range(found.interval)
    return f"not certainly worse than {chosen}: the ratio is {found.value:.3g} ({interval})"


def _why(chosen: str | None, n_fitting: int, objective: Objective, bundles: Sequence[BundleResult]) -> str:
    if chosen is None:
        ran = sum(bundle.has_run for bundle in bundles)
        return f"{ran} of {count(len(bundles), 'bundle')} ran, and none of them fits the rule."
    bundle = next(each for each in bundles if each.name == chosen)
    title, value = FIGURES[objective.metric].title, _with_unit(bundle, objective.metric)
    in_what = bundle.arithmetic
    how = "" if in_what is None else f" It was opened with arithmetic='auto' and computed in {in_what}."
    if n_fitting == 1:
        return f"It is the only bundle that fits; its {title} is {value}.{how}"
    extreme = "lowest" if objective.direction == "minimize" else "highest"
    return f"{chosen} has the {extreme} {title} of the {count(n_fitting, 'bundle')} that fit: {value}.{how}"


def _find(bundle: BundleResult, name: str) -> tuple[float, Interval | None] | None:
    """Return a figure's value and interval; None if it was not measured."""
    found = FIGURES[name].find(bundle)
    return None if found is None or found.value is None else (found.value, found.interval)


def _text(bundle: BundleResult, name: str) -> str:
    found = _find(bundle, name)
    assert found is not None
    value, interval = found
    return f"{value:.4g}" + (f" ({_range(interval)})" if interval is not None else "")


def _with_unit(bundle: BundleResult, name: str) -> str:
    found = FIGURES[name].number(bundle)
    assert found.value is not None
    text = f"{found.form(found.value)} {FIGURES[name].unit}".rstrip()
    return f"{text} ({found.ends})" if found.ends else text


def _range(interval: Interval) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g}"
