"""Addresses of cameras and pictures: how they are shown, and where they may lead.

A server can answer with another address. It is followed on the same host, and from `http` to `https`; a step to another
host would tell that host what runs here and judge pictures that nobody named, so it is refused unless it is allowed.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from vae_edge.errors import InputError

REDIRECT_OPTION = "--follow-redirects"

_SECRET_IN_QUERY = re.compile(
    r"(?<=[?&;])((?:[\w.\-]*[_.\-])?(?:user(?:name)?|usr|login|account|pass(?:wd|word|phrase)?|pwd|psw|pw|token|secret"
    r"|auth|(?:api)?key|sig(?:nature)?)=)[^&;#\s]*",
    re.IGNORECASE,
)
_LOGIN_PROPERTY = re.compile(r"\b((?:user|proxy)-(?:id|pw)\s*=\s*)(?:\"[^\"]*\"|[^\s!]+)", re.IGNORECASE)
_MOST_REDIRECTS = 5
_FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_environment = threading.Lock()


def without_password(address: str) -> str:
    """Return an address as it may be shown and written down: without names, passwords and keys.

    `http://user:secret@camera/still?pwd=secret` becomes `http://camera/still?pwd=***`.

    Examples:
        >>> without_password("http://user:secret@camera/still?pwd=secret&n=1")
        'http://camera/still?pwd=***&n=1'
        >>> without_password("part.png")
        'part.png'
        >>> without_password("gst:rtspsrc location=rtsp://user:secret@camera/1 user-pw=secret ! appsink")
        'gst:rtspsrc location=rtsp://camera/1 user-pw=*** ! appsink'
    """
    if address.startswith("gst:"):
        # A pipeline has addresses among its words, and logs in with properties of its elements.
        words = [without_password(word) if "://" in word else word for word in address[4:].split(" ")]
        return "gst:" + _LOGIN_PROPERTY.sub(r"\1***", " ".join(words))
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A password may hold a slash although it should be written %2F; the part before it is then no host and port.
    if "@" not in authority and re.search(r"^[^\[\]@]*:(?!\d*$)", authority):
        authority = rest
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    return scheme + separator + _SECRET_IN_QUERY.sub(r"\1***", rest)


class RedirectError(InputError):
    """An address leads to another host, and that was not allowed."""


def open_address(address: str, *, timeout_s: float, other_hosts: bool = False) -> http.client.HTTPResponse:
    """Ask an `http` or `https` address for what is there, and follow where it leads as far as that is allowed.

    Args:
        address: may hold a name and a password, which are sent to its own host only: as Basic authentication, and as
            Digest authentication where the server asks for that, as many cameras do.
        timeout_s: how long the server may take to answer, and between two parts of its answer.
        other_hosts: follow a redirect to another host, too.

    Returns:
        The answer, to be read and closed. Its `url` is the last address, without name and password.

    Raises:
        RedirectError: it leads to another host.
        InputError: there is no answer, or it is an error. No message holds a name or a password.
    """
    shown = without_password(address)
    if _scheme(address) not in ("http", "https"):
        raise InputError(f"{shown} is not an http or https address")  # urllib would open files, too.
    try:
        plain, user = _apart(address)
        request = urllib.request.Request(plain)
        if user is not None:
            # `unredirected`: urllib would give the other kind of header to every host that a redirect names.
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        opener = urllib.request.build_opener(_Redirects(other_hosts), _Digest(plain, user or ""))
        answer: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
        return answer
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{shown} answered {error.code} {error.reason}; check the address") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Not the error itself: `nonnumeric port` and its like repeat the password.
        reason = getattr(error, "reason", error)
        said = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
        raise InputError(
            f"{shown} could not be read ({said}); check the address, and that the server answers"
        ) from None


def file_of_url(address: str) -> str:
    """Return the path that a `file` address names, and anything else as it is.

    Raises:
        InputError: it names another machine.
    """
    if _scheme(address) != "file":
        return address
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{address} refers to a file on another machine, {parts.netloc}; expected file:///PATH")
    return urllib.request.url2pathname(parts.path)


def final_address(address: str, *, timeout_s: float, other_hosts: bool = False) -> str:
    """Return where an `http` address leads, with its name and password; one that does not answer, as it is.

    FFmpeg follows redirects by itself. So the address is asked before FFmpeg gets it, and `ffmpeg_redirects_off` holds
    for what FFmpeg asks. RTSP has redirects of its own, which FFmpeg follows and this does not see.

    Raises:
        RedirectError: it leads to another host.
    """
    if other_hosts or _scheme(address) not in ("http", "https"):
        return address
    try:
        with open_address(address, timeout_s=timeout_s) as answer:
            plain = answer.url
    except RedirectError:
        raise
    except InputError:
        return address  # FFmpeg knows more ways to log in, and says the rest.
    user = urlsplit(address).netloc.rpartition("@")[0]
    scheme, _, rest = plain.partition("://")
    return f"{scheme}://{user}@{rest}" if user else plain


@contextmanager
def ffmpeg_redirects_off() -> Iterator[None]:
    """Keep FFmpeg from following a redirect of what is opened with OpenCV while the block runs.

    FFmpeg has the option since 7.1; an older one ignores it.
    """
    with _environment:
        before = os.environ.get(_FFMPEG_OPTIONS)
        # Without the variable OpenCV asks for RTSP over TCP; with it, for what it says and nothing else.
        os.environ[_FFMPEG_OPTIONS] = f"{before or 'rtsp_transport;tcp'}|max_redirects;0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FFMPEG_OPTIONS]
            else:
                os.environ[_FFMPEG_OPTIONS] = before


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect on the same host and to `https`, and any `http` one where other hosts are allowed."""

    max_redirections = _MOST_REDIRECTS

    def __init__(self, other_hosts: bool) -> None:
        self._other_hosts = other_hosts

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https"):
            raise RedirectError(
                f"{without_password(req.full_url)} redirects to {without_password(newurl)}, which is not http or "
                "https; pass the final address"
            )
        same_host = old.hostname == new.hostname
        downgraded = (old.scheme, new.scheme) == ("https", "http")
        if not self._other_hosts and (not same_host or downgraded):
            where = "the same host without encryption" if same_host else f"another host, {new.hostname}"
            raise RedirectError(
                f"{without_password(req.full_url)} redirects from {old.hostname} to {where}, which is not followed; "
                f"add {REDIRECT_OPTION} to allow it, or pass the final address"
            )
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        login = req.unredirected_hdrs.get("Authorization")
        if following is not None and login is not None and same_host and not downgraded:
            following.add_unredirected_header("Authorization", login)
        return following


class _Digest(urllib.request.HTTPDigestAuthHandler):
    """Logs in to one host; what it does not know is the server's 401."""

    def __init__(self, address: str, user: str) -> None:
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        super().__init__(passwords)
        name, _, password = user.partition(":")
        if name:
            parts = urlsplit(address)
            passwords.add_password(None, f"{parts.scheme}://{parts.netloc}/", name, password)

    def get_algorithm_impls(self, algorithm: str) -> Any:
        """Return the hash of a text, and of a secret and data; Python's own take ASCII only, and no SHA-256."""
        kind = {"MD5": "md5", "SHA": "sha1", "SHA-256": "sha256"}[algorithm.upper()]

        def hashed(text: str) -> str:
            return hashlib.new(kind, text.encode(), usedforsecurity=False).hexdigest()

        return hashed, lambda secret, data: hashed(f"{secret}:{data}")

    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_401(req, fp, code, msg, headers)
        except (ValueError, KeyError):
            return None  # Another way to log in, or another hash.


def _scheme(address: str) -> str:
    scheme, separator, _ = address.partition("://")
    return scheme.lower() if separator else ""


def _apart(address: str) -> tuple[str, str | None]:
    """Return an address without name and password, which urllib takes for a part of the host, and `name:password`."""
    parts = urlsplit(address)
    login, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=host).geturl(), unquote(login) if at else None
