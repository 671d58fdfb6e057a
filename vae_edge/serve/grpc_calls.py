"""The gRPC side: MLServer's servicer behind a gate that lets through the calls of the inference protocol alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio
from mlserver.grpc.dataplane_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from mlserver.grpc.servicers import InferenceServicer
from mlserver.handlers import DataPlane

from vae_edge.serve.access import is_token
from vae_edge.serve.encryption import Encryption

_SERVICE = "/inference.GRPCInferenceService/"
_CALLS = frozenset(
    _SERVICE + name
    for name in ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")
)
MOST_CALLS = 64
"""At the same time; more are refused."""


class _Gate(aio.ServerInterceptor):
    def __init__(self, token: str | None) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        if self._token is not None and not is_token(str(given), self._token):
            return _refusal(grpc.StatusCode.UNAUTHENTICATED, "expected the metadata authorization: Bearer TOKEN")
        if handler_call_details.method not in _CALLS:
            return _refusal(grpc.StatusCode.UNIMPLEMENTED, "this server only infers; see its metadata")
        return await continuation(handler_call_details)


def _refusal(code: grpc.StatusCode, text: str) -> Any:
    async def refuse(_: Any, context: Any) -> None:
        await context.abort(code, text)

    return grpc.unary_unary_rpc_method_handler(refuse)


def make_grpc_server(
    data_plane: DataPlane,
    *,
    host: str,
    port: int,
    token: str | None,
    max_request_bytes: int,
    encryption: Encryption | None = None,
) -> tuple[Any, int]:
    """Return a gRPC server that is not started yet, and its port.

    Raises:
        RuntimeError: the port is in use.
    """
    server = aio.server(
        interceptors=[_Gate(token)],
        # Without SO_REUSEPORT: two servers would share a port without a word.
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.max_send_message_length", -1),
        ],
        maximum_concurrent_rpcs=MOST_CALLS,
    )
    # Its second argument serves the calls that load and unload models, which the gate does not let through.
    add_GRPCInferenceServiceServicer_to_server(InferenceServicer(data_plane, None), server)
    address = f"[{host}]" if ":" in host else host
    where = f"{address}:{port}"
    if encryption is None:
        return server, server.add_insecure_port(where)
    credentials = grpc.ssl_server_credentials(
        [(encryption.private_key.read_bytes(), encryption.certificate.read_bytes())]
    )
    return server, server.add_secure_port(where, credentials)
