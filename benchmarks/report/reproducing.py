"""The command line that measures the same again, without the paths of the machine that it ran on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vae_edge.benchmarks.measure.plan import SuiteSettings
from vae_edge.benchmarks.report.records import Objective, Requirement


def command_line(
    settings: SuiteSettings,
    source: str,
    bundles: Sequence[str],
    requirements: Sequence[Requirement] = (),
    objective: Objective | None = None,
) -> str:
    """Return the command with every option that differs from its default.

    Args:
        settings: what was asked for.
        source: the data in words; a folder's name where it is one.
        bundles: names of the bundles.
        requirements: see `vae_edge.benchmarks.report.choosing`.
        objective: the same.
    """
    default = SuiteSettings.make_quick() if settings.quick else SuiteSettings()
    words = ["vae-bench", *bundles]
    words += ["--data", source.partition(",")[0], "--report", "REPORT"]
    words += ["--quick"] * settings.quick
    for name, value, usual in (
        ("--device", settings.device, default.device),
        ("--threads", settings.threads, default.threads),
        ("--rounds", settings.rounds, default.rounds),
        ("--round-time", settings.rules.round_s, default.rules.round_s),
        ("--reference", settings.reference, default.reference),
        ("--baseline", settings.baseline, default.baseline),
        ("--deadline-ms", settings.deadline_ms, default.deadline_ms),
    ):
        if value != usual:
            words += [name, f"{value:g}" if isinstance(value, float) else str(value)]
    for name, values in (
        ("--requests", settings.requests),
        ("--batch-sizes", settings.batch_sizes),
        ("--load-fps", settings.load_fps),
    ):
        if values:
            words += [name, ",".join(f"{value:g}" for value in values)]
    words += ["--simple-method"] * settings.simple_method
    for requirement in requirements:
        words += ["--require", str(requirement).replace(" ", "")]
    if objective is not None:
        words += [f"--{objective.direction}", objective.metric]
    return shlex.join(words)
