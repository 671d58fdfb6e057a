"""The options of `vae-bench` in groups, and what they need to have an effect. A new option is a field of a group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.benchmarks.report.figures import figure_help
from vae_edge.cli.options import Condition, DeviceOption, OptionGroup
from vae_edge.cli.run_options import Arithmetic

_REQUIRE_HELP = f"Requirement for the bundle to ship, such as p99_ms<=40. May be repeated. Metrics: {figure_help()}."


@dataclass(frozen=True)
class CommonOptions(OptionGroup):
    """What most benchmarks need."""

    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder in a layout that vae-train knows, such as MVTec AD, or sample or sample:PRODUCT. Without it "
            "the sample images are timed and no accuracy is measured.",
        ),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report.html, report.md, report.json and raw samples here."),
    ] = None
    quick: Annotated[bool, typer.Option("--quick", help="Shorter, for trying things out.")] = False
    require: Annotated[list[str] | None, typer.Option(metavar="METRIC>=NUMBER", help=_REQUIRE_HELP)] = None
    minimize: Annotated[
        str | None,
        typer.Option(metavar="METRIC", help="Of the bundles that fit, recommend the one with the lowest value."),
    ] = None
    maximize: Annotated[
        str | None,
        typer.Option(metavar="METRIC", help="Of the bundles that fit, recommend the one with the highest value."),
    ] = None


@dataclass(frozen=True)
class MeasuringOptions(OptionGroup, panel="What is measured, and how long"):
    """What is measured, and how long."""

    device: DeviceOption = "auto"
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processor threads for one inference."),
    ] = None
    arithmetic: Annotated[
        Arithmetic,
        typer.Option(
            help="auto: each bundle for ONNX Runtime or OpenVINO is measured a second time in the device's faster "
            "arithmetic, if its references agree in it."
        ),
    ] = Arithmetic.FP32
    rounds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Turns of each bundle, each in a fresh process: 10, quick 5."),
    ] = None
    round_time: Annotated[
        float | None,
        typer.Option(
            min=0.01, metavar="S", help="Time to measure each latency and the throughput in each round: 1 s, quick 0.2."
        ),
    ] = None
    load_fps: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Measure latency while images arrive at these rates, such as 30."),
    ] = None
    deadline_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="With --load-fps: deadline of a verdict; default: the time between images."),
    ] = None
    requests: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Measure throughput with this many images at the same time."),
    ] = None
    batch_sizes: Annotated[
        str | None, typer.Option(metavar="N,N", help="Measure throughput with these batch sizes.")
    ] = None


@dataclass(frozen=True)
class ComparingOptions(OptionGroup, panel="Comparisons"):
    """What bundles are compared with."""

    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Bundle whose verdicts the others are compared with; default: torch in FP32, or the first in FP32.",
        ),
    ] = None
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Bundle that ratios of speed refer to; default: the reference."),
    ] = None
    simple_method: Annotated[
        bool, typer.Option("--simple-method", help="With --data: also measure a method without a network.")
    ] = False


def needs_of_options(common: CommonOptions, measuring: MeasuringOptions) -> Iterator[Condition]:
    """Yield which options need others."""
    yield Condition({"deadline_ms"}, measuring.load_fps is not None, "for images that arrive at a rate: add --load-fps")
    yield Condition({"simple_method"}, common.data is not None, "for test images: add --data")
