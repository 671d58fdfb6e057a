"""The REST side: those of MLServer's routes that only infer, behind a gate, and inference with binary tensors."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from mlserver.errors import MLServerError
from mlserver.handlers import DataPlane
from mlserver.rest.app import create_app
from mlserver.settings import Settings
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, TensorData
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vae_edge.errors import InputError
from vae_edge.serve.access import is_local_name, is_token
from vae_edge.serve.tensors import packed, parse_body

_OF_MLSERVER = frozenset(
    {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{model_name}", "/v2/models/{model_name}/ready"}
)
"""MLServer's routes that stay. Those that load models, take a version or fetch scripts from elsewhere do not."""

_HEADER_LENGTH = "Inference-Header-Content-Length"


def make_app(
    settings: Settings,
    data_plane: DataPlane,
    *,
    token: str | None,
    max_request_bytes: int,
    more: list[Route] | None = None,
    open_paths: frozenset[str] = frozenset(),
) -> ASGIApp:
    """Return the application that the HTTP server runs.

    Args:
        settings: of MLServer.
        data_plane: what answers.
        token: which every request must carry; None: requests must name this machine instead.
        max_request_bytes: of a request's body.
        more: routes besides the protocol's.
        open_paths: exact paths that need no token.
    """
    app: FastAPI = create_app(settings, data_plane, None)
    infer = _Infer(data_plane, max_request_bytes)
    app.router.routes[:] = [
        Route("/v2/models/{model_name}/infer", infer.answer, methods=["POST"]),
        Route("/metrics", _metrics, methods=["GET"]),
        *(more or []),
        *(route for route in app.router.routes if getattr(route, "path", None) in _OF_MLSERVER),
    ]
    return _Gate(app, token, open_paths)


async def _metrics(_: Request) -> Response:
    # Not in the event loop: it takes milliseconds with many series.
    return Response(await run_in_threadpool(generate_latest), media_type=CONTENT_TYPE_LATEST)


class _Gate:
    """Lets a request through if it carries the token or, where there is none, if it names this machine."""

    def __init__(self, app: ASGIApp, token: str | None, open_paths: frozenset[str]) -> None:
        self._app = app
        self._token = token
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["type"] in ("http", "lifespan"):
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self._token is None:
            if not is_local_name(headers.get("host", "")):
                return _error(403, "without a token this server answers only under a name of this machine, localhost")
        elif scope["path"] not in self._open_paths and not is_token(headers.get("authorization", ""), self._token):
            refused = _error(401, "expected the header Authorization: Bearer TOKEN")
            refused.headers["WWW-Authenticate"] = "Bearer"
            return refused
        return None


class _Infer:
    def __init__(self, data_plane: DataPlane, max_request_bytes: int) -> None:
        self._data_plane = data_plane
        self._max_request_bytes = max_request_bytes

    async def answer(self, request: Request) -> Response:
        """Judge the pictures of a request, whose tensors may be JSON or bytes behind it."""
        if request.headers.get("content-encoding", "identity") != "identity":
            return _error(415, "the request is compressed; expected none, as pictures are compressed already")
        try:
            body = await self._body(request)
        except ClientDisconnect:
            return _error(400, "the client left")
        if body is None:
            return _error(413, f"the request is too large; expected at most {self._max_request_bytes} bytes")
        try:
            payload = _payload(body, request.headers.get(_HEADER_LENGTH))
            response = await self._data_plane.infer(payload, request.path_params["model_name"])
        except InputError as error:
            return _error(400, str(error))
        except MLServerError as error:
            return _error(error.status_code, str(error))
        return _response(response, _binary_outputs(payload))

    async def _body(self, request: Request) -> bytes | None:
        """Return the body; None: it is too large."""
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > self._max_request_bytes:
            return None
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_request_bytes:
                return None
        return bytes(body)


def _payload(body: bytes, header_length: str | None) -> InferenceRequest:
    """Return a request as MLServer has it.

    Raises:
        InputError: the body is not one.
    """
    request = parse_body(body, header_length)
    # Apart from what is validated: pydantic would look at each number of a picture.
    data = [given.pop("data", None) for given in request["inputs"]]
    try:
        payload: InferenceRequest = InferenceRequest.model_validate(
            {**request, "inputs": [{**given, "data": []} for given in request["inputs"]]}
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"the request is not one of the Open Inference Protocol: {place}: {first['msg']}") from error
    given_input: RequestInput
    for given_input, content in zip(payload.inputs, data, strict=True):
        given_input.data = TensorData.model_construct(root=content)
    return payload


def _binary_outputs(payload: InferenceRequest) -> set[str] | None:
    """Return the names of the outputs that are wanted as bytes; None: all."""
    extra = {} if payload.parameters is None else payload.parameters.model_extra or {}
    wanted = {
        output.name
        for output in payload.outputs or []
        if output.parameters is not None and (output.parameters.model_extra or {}).get("binary_data") is True
    }
    return None if extra.get("binary_data_output") is True and not payload.outputs else wanted


def _response(response: InferenceResponse, binary: set[str] | None) -> Response:
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for output in response.outputs:
        record: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        values = output.data.root
        if binary is None or output.name in binary:
            tensors.append(packed(values) if isinstance(values, list) else values.tobytes())
            record["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            record["data"] = [value.decode() for value in values] if isinstance(values, list) else values.tolist()
        outputs.append(record)
    head = json.dumps({"model_name": response.model_name, "id": response.id, "outputs": outputs}).encode()
    if not tensors:
        return Response(head, media_type="application/json")
    return Response(
        b"".join([head, *tensors]), media_type="application/octet-stream", headers={_HEADER_LENGTH: str(len(head))}
    )


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)
