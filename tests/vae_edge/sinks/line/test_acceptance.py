"""A short form of `make bench-line`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed: vae-edge[line]")
pytest.importorskip("asyncua", reason="asyncua is not installed: vae-edge[line]")
from tests.line_acceptance import run, table


@pytest.mark.broker
@pytest.mark.slow
def test_no_verdict_is_lost_while_everything_is_killed_and_comes_back(tmp_path: Path) -> None:
    result = run(600, 40, tmp_path)
    assert [outcome.channel for outcome in result.outcomes] == ["mqtt", "opcua", "webhook"]
    for outcome in result.outcomes:
        assert (outcome.arrived, outcome.lost) == (600, 0), table(result)
        # An outage takes 1.5 s: it was one.
        assert outcome.longest_s > 0.5
