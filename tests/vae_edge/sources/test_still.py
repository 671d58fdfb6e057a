from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import parse_http_list, parse_keqv_list

import cv2
import numpy as np
import pytest

from tests.picture_bytes import animated_png, encoded, part, png_of_zeros
from vae_edge.errors import InputError
from vae_edge.sources import still
from vae_edge.sources.addresses import open_address
from vae_edge.sources.live import LiveOptions, LiveVideo
from vae_edge.sources.opening import open_sources
from vae_edge.sources.pictures import Picture

PICTURE = encoded(".png", part())
CONTENTS = {
    "/snapshot.png": (PICTURE, "image/png"),
    "/still": (encoded(".jpg", part()), "application/octet-stream"),
    "/broken": (b"no picture", "image/jpeg"),
    "/half": (PICTURE[: len(PICTURE) // 2], "image/png"),
    "/animated": (animated_png(part(), part()), "image/apng"),
    "/bomb": (png_of_zeros(12_000), "image/png"),
    "/slow": (PICTURE, "image/png"),
    "/endless": (PICTURE, "image/png"),
}
WITHOUT_LENGTH = ("/slow", "/endless")


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/snapshot.png")  # type: ignore[attr-defined]  # an HTTPServer
            self.end_headers()
            return
        content, kind = CONTENTS[path]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if path not in WITHOUT_LENGTH:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            if path == "/slow":
                for value in content:
                    self.wfile.write(bytes([value]))
                    time.sleep(0.02)
            self.wfile.write(content)
            while path == "/endless":
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass  # The reader has seen enough.

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as serving:
        serving.daemon_threads = True
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def only(address: str, **options: int) -> Picture:
    begin_s = time.perf_counter()
    (picture,) = open_sources([address], live=LiveOptions(timeout_s=1), **options)  # type: ignore[arg-type]  # only numbers are passed
    assert time.perf_counter() - begin_s < 10
    return picture


@pytest.mark.parametrize("path", ["/snapshot.png", "/still"])
def test_a_still_picture_is_judged_once(server: str, path: str) -> None:
    picture = only(server + path)
    assert (picture.frame, picture.skipped) == (None, None)
    assert isinstance(picture.image, np.ndarray)
    np.testing.assert_allclose(picture.image.astype(int), part(), atol=0 if path == "/snapshot.png" else 60)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/broken", "could not be decoded"),
        ("/half", "ends too early"),
        ("/animated", "2 frames"),
        ("/bomb", "12000x12000 pixels"),
    ],
)
def test_what_is_no_whole_picture_is_an_error_in_its_place(server: str, path: str, says: str) -> None:
    picture = only(server + path)
    assert isinstance(picture.image, InputError)
    assert says in str(picture.image)
    assert str(picture.image).startswith(server + path)


def test_a_server_that_sends_without_end_or_a_byte_at_a_time_is_left(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(still, "_TIME_LIMIT_S", 0.3)
    monkeypatch.setattr(still, "most_bytes", lambda _: 1 << 20)
    for path, says in (("/slow", "was not received within 0.3 s"), ("/endless", "sent more than 1 MB")):
        image = only(server + path).image
        assert isinstance(image, InputError)
        assert says in str(image)


def test_a_name_and_a_password_stay_out_of_names_and_errors(server: str) -> None:
    address = server.replace("http://", "http://name:secret@")
    assert only(f"{address}/snapshot.png?token=secret").source == f"{server}/snapshot.png?token=***"
    assert "secret" not in str(only(f"{address}/broken?password=secret").image)


def test_a_redirect_to_another_host_is_refused_unless_it_is_allowed(server: str) -> None:
    with pytest.raises(InputError, match=r"redirects from 127\.0\.0\.1 to another host, localhost"):
        open_sources([f"{server}/moved"])
    (picture,) = open_sources([f"{server}/moved"], live=LiveOptions(other_hosts=True))
    assert isinstance(picture.image, np.ndarray)


def test_a_stream_of_pictures_is_no_still(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.mjpeg_server import MjpegServer

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with MjpegServer() as camera:
        if not cv2.VideoCapture(camera.url).isOpened():
            pytest.skip("this OpenCV reads no stream over HTTP")
        assert isinstance(open_sources([camera.url]), LiveVideo)


class _DigestHandler(_Handler):
    """Asks for Digest authentication (RFC 7616) of me:p@s/é, and checks the answer."""

    challenge = 'Digest realm="cam", nonce="abc", qop="auth", algorithm=MD5'

    def do_GET(self) -> None:
        said = self.headers["Authorization"] or ""
        fields = parse_keqv_list(parse_http_list(said.removeprefix("Digest "))) if said.startswith("Digest ") else {}
        if fields and fields["response"] == self.expected(fields):
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", self.challenge)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def expected(self, fields: dict[str, str]) -> str:
        def digest(*parts: str) -> str:
            return hashlib.md5(":".join(parts).encode()).hexdigest()

        who, what = digest("me", "cam", "p@s/é"), digest("GET", self.path)
        return digest(who, fields["nonce"], fields["nc"], fields["cnonce"], "auth", what)


@pytest.fixture
def digest_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with ThreadingHTTPServer(("127.0.0.1", 0), _DigestHandler) as serving:
        serving.daemon_threads = True
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_still_behind_a_digest_login_is_judged_once(digest_server: str) -> None:
    picture = only(f"http://me:p%40s%2F%C3%A9@{digest_server}/snapshot.png?x=1")
    assert np.array_equal(picture.image, part())  # type: ignore[arg-type]  # it is an array
    assert picture.source == f"http://{digest_server}/snapshot.png?x=1"


@pytest.mark.parametrize(
    "challenge", [_DigestHandler.challenge, "Negotiate", 'Digest realm="cam", nonce="a", algorithm=XYZ', "Basic", ""]
)
def test_a_login_that_fails_is_an_error(digest_server: str, challenge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_DigestHandler, "challenge", challenge)
    with pytest.raises(InputError, match="answered 401") as refused:
        open_address(f"http://me:wrong@{digest_server}/snapshot.png", timeout_s=5)
    assert "wrong" not in str(refused.value)
