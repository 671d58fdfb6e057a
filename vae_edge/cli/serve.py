"""`vae-edge serve`: bundles behind the Open Inference Protocol, for programs in any language."""

from __future__ import annotations

import importlib.metadata
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.backends.base import Hint
from vae_edge.bundle import Bundle
from vae_edge.cli.console import notes_console, print_warning
from vae_edge.cli.options import (
    Condition,
    DeviceOption,
    MaxPixelsOption,
    NoGateOption,
    NoRebuildOption,
    OptionGroup,
    RateOption,
    TrustedKeyOption,
    keys_of,
    refuse_idle,
    with_option_groups,
)
from vae_edge.cli.progress import step_progress
from vae_edge.cli.run_options import DriftAlarmOption
from vae_edge.decision import thresholds_at
from vae_edge.detector import Detector
from vae_edge.drift import check_alarm_rate
from vae_edge.errors import MissingDependencyError, UsageError
from vae_edge.platform.outside import user_path
from vae_edge.serve.access import TOKEN_VARIABLE, listen, read_token
from vae_edge.serve.encryption import Encryption
from vae_edge.signing.keys import TrustedKeys
from vae_edge.sinks.line.addresses import is_loopback
from vae_edge.sinks.sink import trust_warnings

_FIRST_PYTHON_WITHOUT = (3, 13)


@dataclass(frozen=True)
class ListenOptions(OptionGroup):
    """Where it listens, and to whom."""

    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port of HTTP; 0: any that is free.")]
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="N", help="Also serve gRPC, on this port.")
    ] = None
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; one that other machines reach, such as 0.0.0.0, needs a token.",
        ),
    ] = "127.0.0.1"
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File with the token that every request must carry; default: {TOKEN_VARIABLE}, if it is set.",
        ),
    ] = None
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Encrypt: the server's certificate (PEM), for HTTP and gRPC."),
    ] = None
    private_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its private key (PEM, without a password)."),
    ] = None
    max_request: Annotated[
        int, typer.Option(min=1, max=1024, metavar="MB", help="Size of a request at most, in MB.")
    ] = 32
    max_pixels: MaxPixelsOption = None
    page: Annotated[
        bool,
        typer.Option(
            "--page", help="Also serve a live page, /page: last picture, counts, drift, latency, last anomalies."
        ),
    ] = False


@dataclass(frozen=True)
class VerdictOptions(OptionGroup, panel="Verdicts and drift"):
    """How scores become verdicts, and whether they are watched for drift."""

    false_alarm_rate: RateOption = None
    no_gate: NoGateOption = False
    drift: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Watch whether each bundle's scores drift, one picture per part; DIR/NAME.drift keeps what is known.",
        ),
    ] = None
    drift_alarm: DriftAlarmOption = None


@dataclass(frozen=True)
class ModelOptions(OptionGroup, panel="Runtime"):
    """How the bundles are loaded."""

    trusted_key: TrustedKeyOption = None
    device: DeviceOption = "auto"
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processor threads of each bundle; default: all cores.")
    ] = None
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Pictures in one run of the model at most, of those that wait; more than 1 pays on a GPU.",
        ),
    ] = 1
    no_rebuild: NoRebuildOption = False


@with_option_groups
def serve(
    context: typer.Context,
    bundle: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles; each is served under its folder's name.")
    ],
    listening: ListenOptions,
    verdicts: VerdictOptions,
    model: ModelOptions,
) -> None:
    """Answer requests with verdicts, over HTTP and gRPC (Open Inference Protocol, KServe v2), until Ctrl-C.

        vae-edge serve bundles/tile-openvino-fp32 --port 8080
        vae-edge serve bundles/* --port 8080 --grpc-port 8081 --host 0.0.0.0 --token-file token

    A request has one input: encoded, the contents of PNG or JPEG files, or image, pixels. The outputs are verdict,
    is_anomalous, score, p_value and threshold, and anomaly_map where it is asked for. /metrics is for Prometheus;
    with --page, /page is for people: it shows the last picture with its map, and the last anomalies.

    Exit code 0: it was told to end, by Ctrl-C or a signal.
    """
    _check_mlserver()
    # Before anything loads: a forgotten server on the port, or a missing token, must not cost the minutes of a build.
    from vae_edge.serve.server import Access, run_server
    from vae_edge.serve.service import Service

    token = read_token(listening.token_file, listening.host)
    encryption = Encryption.read(listening.certificate, listening.private_key)
    if encryption is None and not is_loopback(listening.host):
        print_warning(
            "the token and the pictures are sent in clear; --certificate and --private-key encrypt them, as does a "
            "proxy with TLS"
        )
    bundles = _opened(bundle, keys_of(model.trusted_key))
    _check_verdict_options(context, verdicts, bundles)
    with ExitStack() as stack:
        http = stack.enter_context(listen(listening.host, listening.port, "--port"))
        port = http.getsockname()[1]
        if listening.grpc_port:
            listen(listening.host, listening.grpc_port, "--grpc-port").close()
        access = Access(
            host=listening.host,
            port=port,
            grpc_port=listening.grpc_port,
            token=token,
            max_request_bytes=listening.max_request * 1_000_000,
            encryption=encryption,
        )
        from vae_edge.serve.metrics import Metrics
        from vae_edge.serve.page import Page
        from vae_edge.serve.page_routes import PAGE_PATH, page_routes

        watchers, routes, open_paths = [Metrics().watch], [], frozenset[str]()
        if listening.page:
            page = stack.enter_context(Page(list(bundles)))
            watchers.append(page.watch)
            routes, open_paths = page_routes(page), frozenset({PAGE_PATH})
        services = []
        for name, opened in bundles.items():
            detector = _open_detector(name, opened, model, verdicts, listening.max_pixels)
            for warning in trust_warnings(opened, detector.thresholds):
                print_warning(f"{name}: {warning}")
            if listening.page:
                page.add(name, has_gate=detector.gate is not None, drift=detector.drift)
            limit = detector.backend.max_batch
            service = Service(
                name,
                detector,
                batch_size=model.batch_size if limit is None else min(model.batch_size, limit),
                max_pixels=listening.max_pixels,
                watchers=watchers,
            )
            services.append(stack.enter_context(service))

        def started(grpc_port: int | None) -> None:
            also = "" if grpc_port is None else f" and gRPC on port {grpc_port}"
            names, scheme = ", ".join(bundles), "http" if encryption is None else "https"
            notes_console().print(
                f"Serving {names} on {scheme}://{_in_url(access.host)}:{port}{also}; end with Ctrl-C.", soft_wrap=True
            )
            if listening.page:
                notes_console().print(
                    f"The page is {scheme}://{_in_url(access.host)}:{port}{PAGE_PATH}", soft_wrap=True
                )

        run_server(services, access, http, routes=routes, open_paths=open_paths, started=started)


def _check_mlserver() -> None:
    """Refuse, with the way out, where the server is not installed or cannot be.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        importlib.metadata.version("mlserver")
    except importlib.metadata.PackageNotFoundError as error:
        if sys.version_info >= _FIRST_PYTHON_WITHOUT:
            raise MissingDependencyError(
                f"this command needs MLServer, which has no release for Python {sys.version_info[0]}."
                f"{sys.version_info[1]}; use an environment with Python 3.10 to 3.12"
            ) from error
        raise MissingDependencyError(
            "this command needs the package 'mlserver', which is not installed; run: pip install \"vae-edge[serve]\""
        ) from error


def _opened(folders: list[Path], trusted: TrustedKeys | None) -> dict[str, Bundle]:
    bundles: dict[str, Bundle] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in bundles:
            raise UsageError(f"two bundles are called {name}; each is served under its folder's name: rename one")
        bundles[name] = Bundle.open(folder, trusted_keys=trusted)
    return bundles


def _check_verdict_options(context: typer.Context, verdicts: VerdictOptions, bundles: dict[str, Bundle]) -> None:
    """Refuse what cannot be, before anything loads.

    Raises:
        UsageError: a rate is outside its range or smaller than a bundle's normals support, an option has no effect, or
            `--drift` is not a folder.
    """
    conditions = [
        Condition({"drift_alarm"}, verdicts.drift is not None, "for drift: add --drift DIR"),
        Condition(
            {"no_gate"},
            any(opened.manifest.gate is not None for opened in bundles.values()),
            "for bundles with a gate, and none of these has one: leave it out",
        ),
    ]
    refuse_idle(context, conditions)
    if verdicts.drift_alarm is not None:
        check_alarm_rate(verdicts.drift_alarm)
    if verdicts.drift is not None and user_path(str(verdicts.drift)).is_file():
        raise UsageError(
            f"--drift {verdicts.drift} is a file; expected a folder, in which each bundle has a file of its own"
        )
    rate = verdicts.false_alarm_rate
    if rate is None:
        return
    for name, opened in bundles.items():
        try:
            thresholds_at(opened.manifest.thresholds, rate)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def _open_detector(
    name: str, bundle: Bundle, model: ModelOptions, verdicts: VerdictOptions, max_pixels: int | None
) -> Detector:
    with step_progress() as progress:
        return Detector.open(
            bundle,
            device=model.device,
            hint=Hint.THROUGHPUT,
            threads=model.threads,
            rebuild=not model.no_rebuild,
            max_pixels=max_pixels,
            false_alarm_rate=verdicts.false_alarm_rate,
            gate=not verdicts.no_gate,
            drift=False if verdicts.drift is None else user_path(str(verdicts.drift)) / f"{name}.drift",
            drift_alarm_rate=verdicts.drift_alarm,
            progress=progress,
        )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
