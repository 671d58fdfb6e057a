from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is closed has all the time that a busy machine needs to deliver what waits."""
    monkeypatch.setattr("vae_edge.sinks.line.line.DRAIN_S", 60.0)
