from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.tiny_bundles import make_bundle
from vae_edge.bundle import Bundle
from vae_edge.cli.main import invoke
from vae_edge.targets import Target

MakeBundle = Callable[..., Bundle]


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A test run in the background of a shell inherits an ignored SIGINT, and Python then leaves it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


_NO_PRIVILEGE = 1314


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip what makes links where Windows does not let this user make any."""
    try:
        return (yield)
    except OSError as error:
        if getattr(error, "winerror", None) == _NO_PRIVILEGE:
            pytest.skip("making links needs a privilege on Windows that this user does not have")
        raise


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds what another compiled, or leaves something in the user's cache."""
    monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path_factory.mktemp("cache") / "vae-edge"))
    monkeypatch.delenv("VAE_EDGE_CACHE_LIMIT_MB", raising=False)


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test obeys the user's policy for signatures, or makes a key in the user's configuration."""
    monkeypatch.setenv("VAE_EDGE_CONFIG", str(tmp_path_factory.mktemp("vae-edge-config")))


@pytest.fixture
def onnx_bundle(tmp_path: Path) -> Bundle:
    """A tiny bundle that every machine with ONNX Runtime can open."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    return make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `vae-edge` in this process; returns the exit code, stdout and stderr."""

    def run(*arguments: object, program: str | None = None) -> tuple[int, str, str]:
        capsys.readouterr()
        code = invoke([str(argument) for argument in arguments], command=program)
        sys.stdout.flush()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
