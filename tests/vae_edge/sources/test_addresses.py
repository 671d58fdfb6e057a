from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import pytest

from tests.mjpeg_server import MjpegServer
from vae_edge.errors import InputError
from vae_edge.sources.addresses import RedirectError, final_address, open_address, without_password
from vae_edge.sources.live import LiveOptions, open_video


class RedirectingServer:
    """Leads `/to?ADDRESS` to ADDRESS, answers everything else with its path, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        """(path, Authorization) of each request."""
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers["Authorization"]))
                if self.path.startswith("/to?"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/to?"))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(self.path)))
                self.end_headers()
                self.wfile.write(self.path.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.here = f"http://127.0.0.1:{self._server.server_port}"
        self.elsewhere = self.here.replace("127.0.0.1", "localhost")
        """The same server under a name that is another host's to whoever compares names."""
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[RedirectingServer]:
    made = RedirectingServer()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://user:secret@cam:554/s?a=1", "rtsp://cam:554/s?a=1"),
        ("http://secret@cam/x@2x.png", "http://cam/x@2x.png"),
        ("http://user:se/cret@cam/x", "http://cam/x"),
        ("http://user:se?cr#et@cam/x", "http://cam/x"),
        ("http://cam:80/a@b", "http://cam:80/a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("http://cam/still?user=me&pwd=secret&w=9", "http://cam/still?user=***&pwd=***&w=9"),
        ("http://cam/still?Api_Key=secret#x", "http://cam/still?Api_Key=***#x"),
        ("http://cam/s?X-Amz-Signature=secret", "http://cam/s?X-Amz-Signature=***"),
        ("http://cam/s?monkey=1&tokenize=2", "http://cam/s?monkey=1&tokenize=2"),
        ("a@b.mp4", "a@b.mp4"),
    ],
)
def test_names_passwords_and_keys_are_not_shown(address: str, shown: str) -> None:
    assert without_password(address) == shown


def test_a_redirect_is_followed_on_its_host_with_the_login(server: RedirectingServer) -> None:
    address = server.here.replace("://", "://me:p%40ss@") + "/to?/picture"
    with open_address(address, timeout_s=5) as answer:
        assert answer.read() == b"/picture"
        assert answer.url == f"{server.here}/picture"
    assert {login for _, login in server.asked} == {"Basic bWU6cEBzcw=="}
    assert final_address(address, timeout_s=5) == server.here.replace("://", "://me:p%40ss@") + "/picture"


def test_a_redirect_to_another_host_is_refused_unless_it_is_allowed(server: RedirectingServer) -> None:
    address = server.here.replace("://", "://me:secret@") + f"/to?{server.elsewhere}/picture"
    for ask in (open_address, final_address):
        with pytest.raises(RedirectError) as refused:
            ask(address, timeout_s=5)
        message = str(refused.value)
        assert "redirects from 127.0.0.1 to another host, localhost" in message
        assert "--follow-redirects" in message
        assert "secret" not in message
    assert {path for path, _ in server.asked} == {f"/to?{server.elsewhere}/picture"}
    with open_address(address, timeout_s=5, other_hosts=True) as answer:
        assert answer.read() == b"/picture"
    assert server.asked[-1] == ("/picture", None)  # The login is the first host's.


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "rtsp://127.0.0.1/x", "data:,x"])
def test_a_redirect_to_another_kind_of_address_is_never_followed(server: RedirectingServer, target: str) -> None:
    with pytest.raises(InputError):
        open_address(f"{server.here}/to?{target}", timeout_s=5, other_hosts=True)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://h/x", "data:,x", "/etc/passwd"])
def test_only_http_is_asked(address: str) -> None:
    with pytest.raises(InputError, match="not an http or https address"):
        open_address(address, timeout_s=1)


@pytest.mark.parametrize("rest", ["127.0.0.1:1/x", "127.0.0.1:port/x", "[::1/x", "127.0.0.1:1/a b\r\nX: y", "\udcff/x"])
def test_an_address_that_cannot_be_asked_is_a_sentence_without_the_password(rest: str) -> None:
    with pytest.raises(InputError, match="could not be read") as failed:
        open_address(f"http://me:secret@{rest}", timeout_s=2)
    assert "secret" not in str(failed.value)
    assert failed.value.__cause__ is None


def test_a_loop_of_redirects_ends(server: RedirectingServer) -> None:
    path = "/to?" * 30 + "/end"
    with pytest.raises(InputError, match="answered 302"):
        open_address(server.here + path, timeout_s=5)


def test_a_camera_behind_a_redirect_follows_the_same_rule(server: RedirectingServer) -> None:
    with MjpegServer() as camera:
        elsewhere = camera.url.replace("127.0.0.1", "localhost")
        with pytest.raises(RedirectError, match=r"redirects from 127\.0\.0\.1 to another host, localhost"):
            open_video(f"{server.here}/to?{elsewhere}")
        assert camera.n_connections == 0
        for address, options in ((camera.url, LiveOptions()), (elsewhere, LiveOptions(other_hosts=True))):
            source = open_video(f"{server.here}/to?{address}", live=options, max_frames=2)
            assert [picture.frame is not None for picture in source] == [True, True]


def test_ffmpeg_itself_follows_no_redirect_after_the_check(
    server: RedirectingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"avformat:\s+YES \((\d+)", cv2.getBuildInformation())
    if found is not None and int(found[1]) < 61:
        pytest.skip(
            f"the FFmpeg in OpenCV {cv2.__version__} has no option for redirects; the check before is all there is"
        )
    monkeypatch.setattr("vae_edge.sources.video.final_address", lambda address, **_: address)  # A server that lies.
    with MjpegServer() as camera:
        with pytest.raises(InputError, match="could not be opened"):
            open_video(f"{server.here}/to?{camera.url.replace('127.0.0.1', 'localhost')}")
        assert camera.n_connections == 0
