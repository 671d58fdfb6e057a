from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vae_edge.errors import InputError, UsageError
from vae_edge.serve.access import TOKEN_VARIABLE, is_local_name, is_token, listen, read_token

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_this_machine_alone_no_token_is_needed(host: str) -> None:
    assert read_token(None, host) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "device.local", ""])
def test_what_others_reach_needs_a_token(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a token: pass --token-file FILE or set VAE_EDGE_SERVE_TOKEN"):
        read_token(None, host)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token", host) == TOKEN
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(None, host) == TOKEN


@pytest.mark.parametrize("content", ["", "short", "0123456789 abcdef", "ä" * 20, "x" * 600])
def test_a_bad_token_is_refused_and_not_repeated(content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="expected 16 to 512") as error:
        read_token(tmp_path / "token", "127.0.0.1")
    assert not content or content not in str(error.value)


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none could not be read"):
        read_token(tmp_path / "none", "127.0.0.1")


def test_a_token_comes_as_a_bearer() -> None:
    assert is_token(f"Bearer {TOKEN}", TOKEN)
    assert is_token(f"bearer {TOKEN} ", TOKEN)
    for given in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ", "Bearer é"):
        assert not is_token(given, TOKEN)


def test_names_of_this_machine_are_told_from_others() -> None:
    for name in ("localhost", "localhost:8080", "127.0.0.1:80", "[::1]:8080", "[::1]"):
        assert is_local_name(name)
    for name in ("", "example.org", "localhost.example.org:8080", "192.168.0.5"):
        assert not is_local_name(name)


def test_a_port_in_use_is_one_sentence() -> None:
    with listen("127.0.0.1", 0, "--port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=f"port {port} of 127.0.0.1 cannot be used .*; choose another one with --port"
        ):
            listen("127.0.0.1", port, "--port")
    with listen("127.0.0.1", port, "--port") as free:
        assert isinstance(free, socket.socket)


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot be used|not an address"):
        listen("192.0.2.7", 0, "--port")
