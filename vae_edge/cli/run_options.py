"""The options of `vae-run` in groups, and what they need to have an effect.

A new option is a field of a group; what it needs goes into one of the functions below. Other commands with options of a
runtime use `needs_of_targets`, too.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.backends.base import Hint
from vae_edge.cli.options import (
    Condition,
    DeviceOption,
    MaxPixelsOption,
    NoGateOption,
    NoRebuildOption,
    OptionGroup,
    RateOption,
    RecursiveOption,
    TrustedKeyOption,
    in_words,
)
from vae_edge.drift import DEFAULT_ALARM_RATE
from vae_edge.errors import UsageError
from vae_edge.manifest import Manifest
from vae_edge.platform.outside import user_path
from vae_edge.sinks.kept_pictures import DEFAULT_QUOTA
from vae_edge.sources.addresses import file_of_url
from vae_edge.sources.live import LiveOptions
from vae_edge.sources.pictures import Source
from vae_edge.sources.watch import WatchOptions
from vae_edge.targets import SUPPORTED, Target
from vae_edge.text_enum import TextEnum


class Overlays(TextEnum):
    """Which pictures are written with the anomaly drawn in."""

    ALL = "all"
    ANOMALOUS = "anomalous"
    NONE = "none"


class OverlayFormat(TextEnum):
    """The file format of those pictures."""

    JPG = "jpg"
    PNG = "png"


DriftAlarmOption = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Chance of a false alarm of drift, over all time.",
        show_default=f"{DEFAULT_ALARM_RATE}",
    ),
]


@dataclass(frozen=True)
class ResultOptions(OptionGroup):
    """What is written, and where."""

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the lines, overlays and videos. Without it, the lines go to stdout.",
        ),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run.")] = False
    line_format: Annotated[
        str, typer.Option("--format", metavar="LIST", help="jsonl, csv, or both with --out: jsonl,csv.")
    ] = "jsonl"
    overlays: Annotated[
        Overlays | None,
        typer.Option(help="Which images to write as overlays, with the anomaly drawn in.", show_default="anomalous"),
    ] = None
    overlay_format: Annotated[OverlayFormat, typer.Option(help="jpg is small, png is exact.")] = OverlayFormat.JPG
    video: Annotated[
        bool, typer.Option("--video", help="Write each video or camera as a video with the verdicts drawn in.")
    ] = False


@dataclass(frozen=True)
class PictureOptions(OptionGroup, panel="Pictures"):
    """Which pictures are taken."""

    recursive: RecursiveOption = False
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Paths from stdin end with NUL, as written by find -print0.")
    ] = False
    max_pictures: Annotated[int | None, typer.Option(metavar="N", help="Stop after this many images.")] = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Take one of N shards of the image files, such as 3/8: each belongs to one, by its name alone.",
        ),
    ] = None
    max_pixels: MaxPixelsOption = None


@dataclass(frozen=True)
class FrameOptions(OptionGroup, panel="Videos, cameras and streams"):
    """Which of their frames are taken."""

    every: Annotated[int, typer.Option(metavar="N", help="Process every N-th frame.")] = 1
    max_frames: Annotated[int | None, typer.Option(metavar="N", help="At most this many frames of each source.")] = None
    no_skip: Annotated[
        bool,
        typer.Option(
            "--no-skip", help="Process every frame of a camera or stream, however late, instead of only the newest."
        ),
    ] = False
    reconnect: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="How long to keep reconnecting to a lost camera or stream; 0: not at all."
        ),
    ] = LiveOptions.reconnect_s
    follow_redirects: Annotated[bool, typer.Option("--follow-redirects", help="Follow redirects to another host.")] = (
        False
    )

    @property
    def live(self) -> LiveOptions:
        """How cameras and streams are read."""
        return LiveOptions(skip=not self.no_skip, reconnect_s=self.reconnect, other_hosts=self.follow_redirects)


@dataclass(frozen=True)
class WatchingOptions(OptionGroup, panel="Watched folders"):
    """How folders are watched."""

    watch: Annotated[
        bool,
        typer.Option("--watch", help="Also process images that arrive in the folder later, until Ctrl-C."),
    ] = False
    poll: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time between polls.", show_default=str(WatchOptions.poll_s)),
    ] = None
    settle: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long a file must be unchanged before it is read.",
            show_default=str(WatchOptions.settle_s),
        ),
    ] = None
    patience: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="How long an unreadable file must be unchanged before it counts as broken.",
            show_default=str(WatchOptions.patience_s),
        ),
    ] = None
    idle_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Stop when no image has arrived for this long."),
    ] = None

    @property
    def options(self) -> WatchOptions | None:
        """How folders are watched; None: they are not."""
        times = {name: getattr(self, name) for name in ("poll", "settle", "patience", "idle_timeout")}
        given = {f"{name}_s": value for name, value in times.items() if value is not None}
        return WatchOptions(**given) if self.watch else None


_CHANNELS = ("mqtt", "opcua", "webhook", "modbus")


@dataclass(frozen=True)
class LineOptions(OptionGroup, panel="Verdicts for the machine beside the line"):
    """Where the verdicts go beside files."""

    mqtt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS", help="Publish each JSON line: mqtt://HOST[:PORT]/PREFIX, or mqtts:// with TLS."
        ),
    ] = None
    opcua: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="Serve OPC UA: opc.tcp://HOST:PORT to listen on.")
    ] = None
    webhook: Annotated[list[str] | None, typer.Option(metavar="URL", help="POST each JSON line to an http(s) URL.")] = (
        None
    )
    modbus: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="Serve Modbus/TCP registers on this address.")
    ] = None
    line_settings: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Credentials and certificates, as lines VAE_EDGE_NAME=VALUE; otherwise from the environment.",
        ),
    ] = None
    sink_optional: Annotated[
        bool, typer.Option("--sink-optional", help="Start without a receiver that is not there, and keep trying.")
    ] = False

    allow_control: Annotated[
        bool,
        typer.Option(
            "--allow-control",
            help="Let OPC UA clients with a password trigger cameras, which then take no other pictures, and set the "
            "false-alarm rate.",
        ),
    ] = False
    no_trigger: Annotated[
        bool,
        typer.Option("--no-trigger", help="With --allow-control: let clients set the rate alone, and cameras run."),
    ] = False

    @property
    def addresses(self) -> dict[str, str]:
        """The addresses that were given, by option."""
        given: dict[str, list[str] | None] = {name: getattr(self, name) for name in _CHANNELS}
        return {name: addresses[0] for name, addresses in given.items() if addresses}

    @property
    def settings_file(self) -> Path | None:
        """The file with settings, where one was given."""
        return self.line_settings[0] if self.line_settings else None

    def check_once(self) -> None:
        """Refuse an option that was given twice, of which only one would count.

        Raises:
            UsageError: with the values.
        """
        for name in (*_CHANNELS, "line_settings"):
            values = getattr(self, name) or []
            if len(values) > 1:
                # Without what may be a password in an address.
                raise UsageError(
                    f"--{name.replace('_', '-')} is given {len(values)} times; expected once: each of these options "
                    "has one receiver, and a program of its own can have several (vae_edge.sinks.line)"
                )


@dataclass(frozen=True)
class MonitorOptions(OptionGroup, panel="Verdicts, drift, and pictures to keep"):
    """How scores become verdicts, whether they are watched for drift, and which pictures are kept."""

    false_alarm_rate: RateOption = None
    no_gate: NoGateOption = False
    drift: Annotated[
        Path | None,
        typer.Option(
            metavar="STATE_FILE",
            help="Watch whether scores drift, one image per part; the file keeps what is known between two runs.",
        ),
    ] = None
    drift_alarm: DriftAlarmOption = None
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Keep pictures, as they came: near (the threshold), anomalous, not-inspectable, drift (around its "
            "alarm), 1/N (a random one of N). Several: near,1/100.",
        ),
    ] = None
    keep_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for them, with a record.")] = None
    keep_quota: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Largest size of that folder; the oldest unlabelled ones go.",
            show_default=DEFAULT_QUOTA,
        ),
    ] = None


class Arithmetic(TextEnum):
    """What floating-point layers are computed in; see `Detector.open`."""

    FP32 = "fp32"
    AUTO = "auto"


@dataclass(frozen=True)
class RuntimeChoices(OptionGroup, panel="Running the model"):
    """Running the model."""

    trusted_key: TrustedKeyOption = None
    device: DeviceOption = "auto"
    hint: Annotated[
        Hint | None,
        typer.Option(
            help="Optimize for the latency of one verdict or for throughput.",
            show_default="latency for cameras and streams, else throughput",
        ),
    ] = None
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Processor threads to use.", show_default="all usable cores")
    ] = None
    requests: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Images that the model processes concurrently.", show_default="the best for the device"
        ),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Images per run of the model.", show_default="1")
    ] = None
    spinning: Annotated[
        bool, typer.Option("--spinning", help="ONNX Runtime: let idle threads spin while they wait for work.")
    ] = False
    arithmetic: Annotated[
        Arithmetic,
        typer.Option(
            help="ONNX Runtime, OpenVINO: auto is the device's faster arithmetic if the bundle's references agree."
        ),
    ] = Arithmetic.FP32
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="OpenVINO, TensorRT: do not use or write the cache of compiled models."),
    ] = False
    no_rebuild: NoRebuildOption = False


def needs_of_options(
    result: ResultOptions, watching: WatchingOptions, line: LineOptions, monitor: MonitorOptions
) -> Iterator[Condition]:
    """Yield what options need of others."""
    yield Condition({"keep"}, monitor.keep_dir is not None, "for kept pictures, which need a place: add --keep-dir DIR")
    yield Condition({"keep_dir", "keep_quota"}, bool(monitor.keep), "for kept pictures: add --keep RULE, such as 1/100")
    yield Condition({"drift_alarm"}, monitor.drift is not None, "for drift: add --drift STATE_FILE")
    needs_folder = {"overwrite", "overlay_format", "video"}
    if result.overlays is not Overlays.NONE:
        needs_folder.add("overlays")
    yield Condition(needs_folder, result.out is not None, "for a folder of results: add --out DIR")
    yield Condition(
        {"overlay_format"}, result.overlays is not Overlays.NONE, "for overlays, but --overlays is none: leave it out"
    )
    yield Condition(
        {"line_settings", "sink_optional"},
        bool(line.addresses),
        "for the machine beside the line: add --mqtt, --opcua, --webhook or --modbus",
    )
    yield Condition({"allow_control"}, bool(line.opcua), "for clients of OPC UA: add --opcua")
    yield Condition({"no_trigger"}, line.allow_control, "for clients that may control: add --allow-control")
    yield Condition({"poll", "settle", "patience", "idle_timeout"}, watching.watch, "for watched folders: add --watch")
    yield Condition(
        {"null"}, not watching.watch, "for paths from stdin, but --watch is for folders: leave out one of them"
    )
    yield Condition(
        {"shard"}, not watching.watch, "for images that are there already, but --watch waits for more: leave one out"
    )
    yield Condition(
        {"video"} | FrameOptions.names(),
        not watching.watch,
        "for videos, cameras and streams, but --watch waits for images in folders: leave it out",
    )


def needs_of_sources(texts: Sequence[str], pictures: Source, line: LineOptions) -> Iterator[Condition]:
    """Yield what options need of the sources.

    Args:
        texts: the words of the command line, all of which could be opened.
        pictures: what they stand for.
        line: whether clients may trigger cameras.
    """
    yield need_of_recursion(texts)
    yield Condition(
        {"video", "every", "max_frames"},
        pictures.has_frames,
        "for videos, cameras and streams, but no source is one: leave it out",
    )
    yield Condition(
        {"no_skip", "reconnect"},
        pictures.is_live,
        "for cameras and streams, but no source is one: leave it out",
    )
    yield Condition(
        {"allow_control"},
        pictures.is_live or line.no_trigger,
        "for cameras, which clients trigger, but no source is one: add --no-trigger, with which clients can set the "
        "false-alarm rate alone",
    )
    has_url = any(text.partition("://")[0].lower() in ("http", "https") for text in texts)
    yield Condition({"follow_redirects"}, has_url, "for http addresses, but no source is one: leave it out")


def need_of_gate(manifest: Manifest) -> Condition:
    """Return what `--no-gate` needs: a bundle that has a gate."""
    return Condition(
        {"no_gate"}, manifest.gate is not None, "for bundles with a gate, and this one has none: leave it out"
    )


def need_of_recursion(texts: Sequence[str]) -> Condition:
    """Return what `--recursive` needs: a folder among the words, or a glob, which may match one."""
    has_folder = any(glob.has_magic(text) or user_path(file_of_url(text)).is_dir() for text in texts)
    return Condition({"recursive"}, has_folder, "for folders, but no source is one: leave it out")


def needs_of_targets(targets: Collection[Target]) -> Iterator[Condition]:
    """Give which targets an option of a runtime is for; `no_cache` and `no_rebuild` stand for `cache` and `rebuild`.

    Args:
        targets: of the bundles that were given, one of which has to have a use for the option.
    """
    which = "this one is" if len(targets) == 1 else "these are"
    for option in sorted(frozenset[str]().union(*(record.options for record in SUPPORTED.values()))):
        suited = [each for each, record in SUPPORTED.items() if option in record.options]
        yield Condition(
            {option, f"no_{option}"},
            any(target in suited for target in targets),
            f"for bundles for {in_words(list(map(str, suited)))}, but {which} for "
            f"{in_words(sorted(map(str, targets)))}: leave it out",
        )
