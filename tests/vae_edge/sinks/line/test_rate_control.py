"""The false-alarm rate, set by a client of OPC UA: asyncua's own, on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.line_receivers import free_port, opcua_client
from tests.threads import wait_until
from tests.tiny_bundles import dark_image, write_image
from vae_edge import Bundle, Detector
from vae_edge.drift import DriftMonitor
from vae_edge.errors import UsageError
from vae_edge.manifest import ThresholdMethod
from vae_edge.sinks.line.channel import About
from vae_edge.sinks.line.line import Line
from vae_edge.sinks.line.rate_control import RateControl
from vae_edge.sinks.line.settings import LineSettings
from vae_edge.sinks.sink import prediction_record
from vae_edge.sources.pictures import Picture

USER = LineSettings({"OPCUA_USER": "me", "OPCUA_PASSWORD": "secret"})


def between(detector: Detector) -> Any:
    """Return a picture that is normal at 0.01, the smallest rate of 99 normals, and anomalous at 0.5."""
    return next(image for image in map(dark_image, range(500, 600)) if 0.02 < detector.predict(image).p_value < 0.4)


def test_the_next_picture_is_judged_by_the_new_rate_and_its_record_says_so(onnx_bundle: Bundle) -> None:
    rates = RateControl(onnx_bundle.manifest.thresholds)
    rates.set(0.02, "somebody")
    told: list[float] = []
    with Detector.open(onnx_bundle) as detector:
        rates.steer(detector)
        assert detector.false_alarm_rate == 0.02
        rates.when_set(lambda thresholds: told.append(thresholds.false_alarm_rate))
        image = between(detector)
        records = []
        for rate in (0.5, 0.01):
            thresholds = rates.set(rate, "somebody")
            assert thresholds == detector.thresholds
            prediction = detector.predict(image)
            records.append(prediction_record(Picture("part", "part", image), prediction))
        assert [record["is_anomalous"] for record in records] == [True, False]
        assert [record["false_alarm_rate"] for record in records] == [0.5, 0.01]
        assert records[0]["threshold"] < records[1]["threshold"]
    assert told == [0.02, 0.5, 0.01]
    assert "set 3 times, at last to 0.01 by somebody" in str(rates.note())
    assert Bundle.open(onnx_bundle.folder).manifest.thresholds == onnx_bundle.manifest.thresholds


@pytest.mark.parametrize("rate", [0.0099, 0.0, -1.0, 0.51, 1e-7, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_is_refused_and_nothing_changes(
    onnx_bundle: Bundle, caplog: pytest.LogCaptureFixture, rate: float
) -> None:
    rates = RateControl(onnx_bundle.manifest.thresholds)
    assert rates.smallest == 0.01
    with Detector.open(onnx_bundle) as detector:
        rates.steer(detector)
        with pytest.raises(UsageError):
            rates.set(rate, "somebody")
        assert detector.thresholds == rates.thresholds == onnx_bundle.manifest.thresholds
    assert "somebody wanted to set the false-alarm rate; refused: the false-alarm rate is" in caplog.text
    assert rates.note() == "false-alarm rate set 0 times; 1 refused"


def test_refusals_do_not_fill_the_log(onnx_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    rates = RateControl(onnx_bundle.manifest.thresholds)
    for _ in range(100):
        with pytest.raises(UsageError):
            rates.set(0.9, "somebody")
    assert len(caplog.records) == 20
    assert rates.n_refused == 100


def test_a_monitor_of_drift_does_not_notice_another_rate(onnx_bundle: Bundle) -> None:
    seen = []
    for changes in (False, True):
        with Detector.open(onnx_bundle, drift=True) as detector:
            detector.drift = DriftMonitor.for_bundle(onnx_bundle, seed=1)
            rates = RateControl(detector.thresholds)
            rates.steer(detector)
            verdicts = []
            for seed in range(40):
                if changes and seed == 20:
                    rates.set(0.5, "somebody")
                verdicts.append(detector.predict(dark_image(seed)).drift)
            seen.append((verdicts, detector.drift.record()))
    assert seen[0] == seen[1]


async def written(port: int, value: Any, user: tuple[str, str] | None = ("me", "secret")) -> dict[str, float]:
    """Write to the node, and return what the nodes hold then."""
    async with opcua_client(port, user) as made:
        space = await made.get_namespace_index("urn:vae-edge:line")
        nodes = {
            name: made.get_node(f"ns={space};s=Inspection.{name}")
            for name in ("false_alarm_rate", "image_threshold", "smallest_false_alarm_rate")
        }
        await nodes["false_alarm_rate"].write_value(value)
        return {name: await node.read_value() for name, node in nodes.items()}


@pytest.fixture
def serve() -> Callable[..., Any]:
    pytest.importorskip("asyncua", reason="asyncua is not installed: vae-edge[line]")
    from vae_edge.sinks.line.opcua import OpcUa

    return lambda port, rates, settings=USER: OpcUa(f"opc.tcp://127.0.0.1:{port}", settings, rates=rates)


@pytest.mark.slow
def test_a_client_sets_the_rate_and_reads_what_is_in_force(
    onnx_bundle: Bundle, serve: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    from asyncua import ua

    manifest, port = onnx_bundle.manifest, free_port()
    rates = RateControl(manifest.thresholds)
    with (
        Detector.open(onnx_bundle) as detector,
        Line([serve(port, rates)], About.of(manifest)) as line,
    ):
        rates.steer(detector)
        rates.when_set(lambda now: line.tell(About.of(manifest, now)))
        image = between(detector)
        assert not detector.predict(image).is_anomalous
        caplog.clear()
        found = asyncio.run(written(port, 0.5))
        assert detector.predict(image).is_anomalous
        assert found == {
            "false_alarm_rate": 0.5,
            "image_threshold": detector.thresholds.image_threshold,
            "smallest_false_alarm_rate": 0.01,
        }
        assert "the OPC UA client 'me' at 127.0.0.1 sets the false-alarm rate to 0.5; it was 0.01" in caplog.text
        for value, refusal in (
            (0.001, ua.uaerrors.BadOutOfRange),
            (0.9, ua.uaerrors.BadOutOfRange),
            (float("nan"), ua.uaerrors.BadOutOfRange),
            ("much", ua.uaerrors.BadTypeMismatch),
            ([0.1, 0.2], ua.uaerrors.BadTypeMismatch),
            (True, ua.uaerrors.BadTypeMismatch),
        ):
            with pytest.raises(refusal):
                asyncio.run(written(port, value))
        for nobody in (None, ("me", "other")):
            with pytest.raises(ua.UaError):
                asyncio.run(written(port, 0.1, nobody))
        assert detector.false_alarm_rate == 0.5
        assert rates.n_set == 1
        assert "set 1 time, at last to 0.5 by the OPC UA client 'me'" in " ".join(line.summary()[1])


@pytest.mark.slow
def test_an_f1_optimal_threshold_takes_no_rate_and_without_control_nobody_may_write(
    onnx_bundle: Bundle, serve: Callable[..., Any]
) -> None:
    from asyncua import ua

    thresholds = onnx_bundle.manifest.thresholds.model_copy(update={"method": ThresholdMethod.F1_OPTIMAL})
    for rates, refusal in (
        (RateControl(thresholds), ua.uaerrors.BadNotSupported),
        (None, ua.uaerrors.BadUserAccessDenied),
    ):
        port = free_port()
        with (
            Line([serve(port, rates)], About.of(onnx_bundle.manifest, thresholds)),
            pytest.raises(refusal),
        ):
            asyncio.run(written(port, 0.1))
    assert rates is None


@pytest.mark.slow
def test_vae_run_judges_the_pictures_after_a_change_by_the_new_rate(
    command: Callable[..., tuple[int, str, str]], onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("asyncua", reason="asyncua is not installed: vae-edge[line]")
    import json
    import threading

    from tests.line_receivers import listens
    from tests.mjpeg_server import MjpegServer

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("VAE_EDGE_OPCUA_USER", "me")
    monkeypatch.setenv("VAE_EDGE_OPCUA_PASSWORD", "secret")
    port, out = free_port(), tmp_path / "out"
    lines = out / "predictions.jsonl"

    def client() -> None:
        wait_until(lambda: listens(port), 60)
        wait_until(lambda: lines.exists() and lines.read_bytes().count(b"\n") > 3, 60)
        asyncio.run(written(port, 0.25))

    with MjpegServer(frames_per_s=20) as camera:
        thread = threading.Thread(target=client, daemon=True)
        thread.start()
        options = ("--opcua", f"opc.tcp://127.0.0.1:{port}", "--allow-control", "--no-trigger", "--max-pictures", 60)
        code, _, err = command("run", onnx_bundle.folder, camera.url, *options, "--out", out, "--overlays", "none")
        thread.join(20)
    assert code == 0, err
    said = [json.loads(line)["false_alarm_rate"] for line in lines.read_text().splitlines()]
    assert said == sorted(said)
    assert set(said) == {0.01, 0.25}
    assert "sets the false-alarm rate to 0.25" in " ".join(err.split())
    assert "false-alarm rate set 1 time" in " ".join(err.split())


def test_control_of_pictures_without_a_camera_is_the_rate_alone(
    command: Callable[..., tuple[int, str, str]], onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAE_EDGE_OPCUA_USER", "me")
    monkeypatch.setenv("VAE_EDGE_OPCUA_PASSWORD", "secret")
    pytest.importorskip("asyncua", reason="asyncua is not installed: vae-edge[line]")
    write_image(tmp_path / "0.png", dark_image(0))
    options = ("--opcua", f"opc.tcp://127.0.0.1:{free_port()}", "--allow-control")
    code, _, err = command("run", onnx_bundle.folder, tmp_path, *options)
    assert (code, "no source is one: add --no-trigger" in " ".join(err.split())) == (2, True)
    code, _, err = command("run", onnx_bundle.folder, tmp_path, "--no-trigger")
    assert (code, "--no-trigger is for clients that may control" in " ".join(err.split())) == (2, True)
