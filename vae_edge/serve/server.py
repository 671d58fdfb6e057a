"""The server's life: MLServer's parts put together, ports, signals and the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from mlserver.errors import ModelNotFound
from mlserver.handlers import DataPlane
from mlserver.registry import MultiModelRegistry
from mlserver.settings import Settings
from mlserver.types import InferenceRequest, InferenceResponse
from starlette.routing import Route

from vae_edge import __version__
from vae_edge.platform.windows import ENDING_SIGNALS
from vae_edge.serve.encryption import Encryption
from vae_edge.serve.grpc_calls import make_grpc_server
from vae_edge.serve.rest import make_app
from vae_edge.serve.runtime import DetectorRuntime, model_settings
from vae_edge.serve.service import Service

MOST_CONNECTIONS = 128
"""Of HTTP; more get 503."""
_GRACE_S = 2.0
"""For requests in progress when the server is told to end."""


@dataclass(frozen=True)
class Access:
    """Where a server listens, and to whom."""

    host: str
    port: int
    grpc_port: int | None
    token: str | None
    max_request_bytes: int
    encryption: Encryption | None = None
    """Of HTTP and gRPC; None: there is none."""


def run_server(
    services: Sequence[Service],
    access: Access,
    listening: socket.socket,
    *,
    routes: Sequence[Route] = (),
    open_paths: frozenset[str] = frozenset(),
    started: Callable[[int | None], None],
) -> None:
    """Answer until a signal comes.

    Args:
        services: the bundles.
        access: where, and to whom.
        listening: the socket of `access.port`, see `listen`.
        routes: of HTTP besides the protocol's.
        open_paths: of those routes that need no token.
        started: called when requests are answered, with the port of gRPC if there is one.
    """
    # It writes a traceback for each request that it refuses; the client gets the reason, and the runtime logs failures.
    for name in ("mlserver", "mlserver.rest", "mlserver.grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asyncio.run(_serve(services, access, listening, list(routes), open_paths, started))


async def _serve(
    services: Sequence[Service],
    access: Access,
    listening: socket.socket,
    routes: list[Route],
    open_paths: frozenset[str],
    started: Callable[[int | None], None],
) -> None:
    # Nothing from the environment or from a file .env of the current folder.
    settings = Settings(
        _env_file=None,
        debug=False,
        parallel_workers=0,
        server_name="vae-edge",
        server_version=__version__,
        extensions=["binary_tensor_data"],
        metrics_endpoint="/metrics",
        load_models_at_startup=False,
        gzip_enabled=False,
        kafka_enabled=False,
        tracing_server=None,
        cache_enabled=False,
        cors_settings=None,
        root_path="",
    )
    by_name = {service.name: service for service in services}
    registry = MultiModelRegistry(model_initialiser=lambda model: DetectorRuntime(model, by_name[model.name]))
    for service in services:
        await registry.load(model_settings(service))
    data_plane = _DataPlane(settings, registry, frozenset(by_name))
    app = make_app(
        settings,
        data_plane,
        token=access.token,
        max_request_bytes=access.max_request_bytes,
        more=routes,
        open_paths=open_paths,
    )
    http = _HttpServer(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=int(_GRACE_S),
            ssl_certfile=None if access.encryption is None else str(access.encryption.certificate),
            ssl_keyfile=None if access.encryption is None else str(access.encryption.private_key),
        )
    )
    calls, grpc_port = None, None
    if access.grpc_port is not None:
        calls, grpc_port = make_grpc_server(
            data_plane,
            host=access.host,
            port=access.grpc_port,
            token=access.token,
            max_request_bytes=access.max_request_bytes,
            encryption=access.encryption,
        )
        await calls.start()
    ended = asyncio.Event()
    with _signals_set(ended):
        serving = asyncio.create_task(http.serve(sockets=[listening]))
        while not http.started and not serving.done():
            await asyncio.sleep(0.01)
        started(grpc_port)
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        http.should_exit = True
        await asyncio.gather(serving, *([] if calls is None else [calls.stop(_GRACE_S)]))


class _DataPlane(DataPlane):
    """Refuses unknown names before they become labels of metrics, which would grow with each name that is made up."""

    def __init__(self, settings: Settings, registry: MultiModelRegistry, names: frozenset[str]) -> None:
        super().__init__(settings, registry)
        self._names = names

    async def infer(self, payload: InferenceRequest, name: str, version: str | None = None) -> InferenceResponse:
        if name not in self._names or version:
            raise ModelNotFound(name, version or None)
        return await super().infer(payload, name)


class _HttpServer(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again at its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def install_signal_handlers(self) -> None:
        """Do nothing; older versions have this."""


@contextlib.contextmanager
def _signals_set(ended: asyncio.Event) -> Generator[None, None, None]:
    """Set an event at the first signal that ends programs; a second one has its usual effect."""
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            with suppress(ValueError):
                signal.signal(*before.popitem())

    def end(_: int, __: FrameType | None) -> None:
        restore()
        loop.call_soon_threadsafe(ended.set)

    for name in ENDING_SIGNALS:
        if (number := getattr(signal, name, None)) is not None:
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        restore()
