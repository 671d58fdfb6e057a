from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vae_edge.cli import serve

Command = Callable[..., tuple[int, str, str]]


def missing(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("version", "expected"),
    [((3, 12), 'pip install "vae-edge[serve]"'), ((3, 13), "use an environment with Python 3.10 to 3.12")],
)
def test_without_mlserver_the_way_to_it_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr("importlib.metadata.version", missing)
    monkeypatch.setattr(serve, "sys", SimpleNamespace(version_info=version))
    code, _, text = command("serve", tmp_path / "bundle", "--port", "8080")
    assert code == 1
    assert expected in " ".join(text.split())


def test_the_help_names_the_inputs_and_the_metrics(command: Command) -> None:
    code, text, _ = command("serve", "--help")
    assert code == 0
    for word in (
        "encoded",
        "is_anomalous",
        "/metrics",
        "--token-file",
        "--grpc-port",
        "--max-request",
        "--page",
        "--drift",
    ):
        assert word in text
