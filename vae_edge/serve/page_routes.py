"""The live page over HTTP: one file that asks for its state and its pictures, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vae_edge.html_page import security_policy, style_sheet, whole_page
from vae_edge.serve.page import Page

PAGE_PATH = "/page"
"""Served without the token, as it has nothing of what was judged and asks for the token."""

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # No page of another site shows these, nor frames them.
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


def page_routes(page: Page) -> list[Route]:
    """Return the routes of the page, its state and its images."""
    own, body, script = (Path(__file__).with_name(f"page.{kind}").read_text("utf-8") for kind in ("css", "html", "js"))
    style = style_sheet(own)
    html = whole_page("vae-edge", style, f"{body}<script>{script}</script>")
    policy = security_policy(style, script, "img-src blob:; connect-src 'self'; frame-ancestors 'none'; ")
    headers = {**_HEADERS, "Content-Security-Policy": policy}

    async def show(_: Request) -> Response:
        return Response(html, media_type="text/html", headers=headers)

    async def state(request: Request) -> Response:
        since = request.query_params.get("since", "0")
        if not (since.isascii() and since.isdecimal() and len(since) < 16):
            return JSONResponse(
                {"error": f"since is {since[:40]!r}; expected the version of an earlier state, or 0"},
                status_code=400,
                headers=_HEADERS,
            )
        # Not in the event loop: the quantiles take milliseconds.
        return JSONResponse(await run_in_threadpool(page.state, int(since)), headers=_HEADERS)

    async def image(request: Request) -> Response:
        jpeg = page.image(int(request.path_params["number"]))
        if jpeg is None:
            return JSONResponse({"error": "this picture is not shown any more"}, status_code=404, headers=_HEADERS)
        return Response(jpeg, media_type="image/jpeg", headers=_HEADERS)

    return [
        Route(PAGE_PATH, show, methods=["GET"]),
        Route(f"{PAGE_PATH}/state", state, methods=["GET"]),
        Route(f"{PAGE_PATH}/image/{{number:int}}", image, methods=["GET"]),
    ]
