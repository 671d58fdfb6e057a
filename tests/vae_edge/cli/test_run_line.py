"""`vae-run` with the machine beside the line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.line_receivers import Endpoint, free_port, listens, opcua_client
from tests.mjpeg_server import MjpegServer
from tests.threads import wait_until
from tests.tiny_bundles import dark_image, spotted_image, write_image
from vae_edge import Bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    for number in range(6):
        write_image(tmp_path / "pieces" / f"{number}.png", spotted_image(number) if number == 4 else dark_image(number))
    (tmp_path / "pieces" / "5.png").write_bytes(b"broken")
    return tmp_path / "pieces"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_every_line_arrives_as_it_is_written(command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Endpoint() as endpoint:
        code, _, err = command("run", onnx_bundle.folder, pieces, "--out", out, "--webhook", endpoint.address)
    assert code == 1  # One picture is broken.
    arrived = [{k: v for k, v in body.items() if k not in ("id", "judged_at")} for _, body in endpoint.posts]
    assert arrived == lines(out)
    assert arrived[4]["overlay"] == "overlays/pieces-4.jpg"
    assert "error" in arrived[5]
    said = " ".join(err.split())
    assert f"webhook 6 delivered to {endpoint.address}" in said
    assert "0 dropped" in said
    assert not (out / "undelivered").exists()


def test_without_out_the_lines_go_to_stdout_as_well(command: Run, onnx_bundle: Bundle, pieces: Path) -> None:
    with Endpoint() as endpoint:
        _, out, _ = command("run", onnx_bundle.folder, pieces, "--webhook", endpoint.address)
    assert len(endpoint.posts) == len(out.splitlines()) == 6


def test_a_receiver_that_is_not_there_is_an_error_before_the_first_picture(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{free_port()}/"
    code, out, err = command("run", onnx_bundle.folder, pieces, "--webhook", address, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "cannot be reached" in err
    assert "--sink-optional" in err
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_what_an_optional_receiver_missed_is_delivered_by_the_next_run(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, port = tmp_path / "out", free_port()
    options = ("--webhook", f"http://127.0.0.1:{port}/", "--sink-optional", "--out", out)
    with monkeypatch.context() as impatient:
        impatient.setattr("vae_edge.sinks.line.line.DRAIN_S", 0.2)
        _, _, err = command("run", onnx_bundle.folder, pieces, *options)
    assert "6 wait in" in " ".join(err.split())
    with Endpoint(port=port) as endpoint:
        _, _, err = command("run", onnx_bundle.folder, pieces, *options, "--overwrite")
    assert "12 delivered" in " ".join(err.split())
    assert len(set(endpoint.ids)) == 12


@pytest.mark.parametrize("status", [404, 401, 400])
def test_a_receiver_that_refuses_every_verdict_fails_the_run(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path, status: int
) -> None:
    (pieces / "5.png").unlink()
    with Endpoint(lambda _: status) as endpoint:
        options = ("--out", tmp_path / "out", "--webhook", endpoint.address)
        code, _, err = command("run", onnx_bundle.folder, pieces, *options)
    said = " ".join(err.split())
    assert code == 1
    assert len(lines(tmp_path / "out")) == 5
    assert "0 dropped; 5 refused" in said
    assert f"refused {endpoint.ids[0]}: the answer is {status}" in said
    assert "error: 5 verdicts did not reach the machine beside the line" in said


def test_verdicts_that_are_lost_fail_the_run_and_those_that_wait_do_not(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_edge.sinks.line.line.DRAIN_S", 0.2)
    (pieces / "5.png").unlink()
    options = ("--webhook", f"http://127.0.0.1:{free_port()}/", "--sink-optional")
    code, _, err = command("run", onnx_bundle.folder, pieces, *options)
    assert (code, "5 verdicts did not reach" in err) == (1, True)
    code, _, err = command("run", onnx_bundle.folder, pieces, *options, "--out", tmp_path / "out")
    assert (code, "did not reach" in err) == (0, False)


@pytest.mark.parametrize("option", ["--mqtt", "--opcua", "--webhook", "--modbus", "--line-settings"])
def test_an_option_of_the_line_that_is_given_twice_is_refused(
    command: Run, onnx_bundle: Bundle, pieces: Path, option: str
) -> None:
    secret = "http://me:secret@h/"
    code, out, err = command("run", onnx_bundle.folder, pieces, option, secret, option, "http://other/")
    assert (code, out) == (2, "")
    assert f"{option} is given 2 times; expected once" in " ".join(err.split())
    assert "secret" not in err


@pytest.mark.parametrize("option", ["--line-settings", "--sink-optional"])
def test_options_for_the_line_need_an_address(command: Run, onnx_bundle: Bundle, pieces: Path, option: str) -> None:
    value = ["x"] if option == "--line-settings" else []
    code, _, err = command("run", onnx_bundle.folder, pieces, option, *value)
    assert code == 2
    assert f"{option} is for the machine beside the line" in " ".join(err.split())


@pytest.mark.parametrize(
    ("option", "address"),
    [("--mqtt", "broker/prefix"), ("--mqtt", "mqtt://broker"), ("--mqtt", "mqtt://u:p@broker/x"), ("--webhook", "h")],
)
def test_an_address_that_cannot_be_is_wrong_usage(
    command: Run, onnx_bundle: Bundle, pieces: Path, option: str, address: str
) -> None:
    if option == "--mqtt":
        pytest.importorskip("paho.mqtt.client")
    code, _, err = command("run", onnx_bundle.folder, pieces, option, address)
    assert code == 2
    assert "expected" in err or "VAE_EDGE_MQTT_USER" in err


LOADED = """
import sys
from vae_edge.cli.main import invoke
invoke(["run", *sys.argv[1:]])
names = {"paho", "asyncua", "pymodbus", "asyncio", "cryptography", "http", "ssl"}
print(sorted({name.split(".")[0] for name in sys.modules} & names - set(sys.argv)), file=sys.stderr)
print([name for name in sys.modules if name.startswith("vae_edge.sinks.line.")], file=sys.stderr)
"""


def test_without_an_address_nothing_of_it_is_loaded(onnx_bundle: Bundle, pieces: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, onnx_bundle.folder, pieces / "0.png"], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert not set(json.loads(done.stderr.splitlines()[-2].replace("'", '"'))) & {"paho", "asyncua", "pymodbus"}


def test_control_is_for_cameras_and_for_opc_ua(command: Run, onnx_bundle: Bundle, pieces: Path) -> None:
    code, _, err = command("run", onnx_bundle.folder, pieces, "--allow-control")
    assert code == 2
    assert "--allow-control is for clients of OPC UA: add --opcua" in " ".join(err.split())


@pytest.mark.slow
def test_a_client_triggers_a_camera(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("asyncua")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("VAE_EDGE_OPCUA_USER", "me")
    monkeypatch.setenv("VAE_EDGE_OPCUA_PASSWORD", "secret")
    port = free_port()
    counters: list[int] = []

    async def pull() -> None:
        async with opcua_client(port, ("me", "secret")) as client:
            space = await client.get_namespace_index("urn:vae-edge:line")
            counter, trigger = (client.get_node(f"ns={space};s=Inspection.{name}") for name in ("counter", "trigger"))
            for n in range(1, 4):
                await asyncio.sleep(0.5)
                counters.append(await counter.read_value())
                await trigger.write_value(True)
                if n == 3:
                    return  # After the third picture the program ends.
                while await counter.read_value() < n:
                    await asyncio.sleep(0.02)

    def client() -> None:
        wait_until(lambda: listens(port), 60)
        asyncio.run(pull())

    with MjpegServer() as camera:
        thread = threading.Thread(target=client, daemon=True)
        thread.start()
        options = ("--opcua", f"opc.tcp://127.0.0.1:{port}", "--allow-control", "--max-pictures", 3)
        code, out, err = command("run", onnx_bundle.folder, camera.url, *options)
        thread.join(20)
    assert code == 0, err
    assert len(out.splitlines()) == 3
    # Nothing is judged without a trigger.
    assert counters == [0, 1, 2]


@pytest.mark.slow
def test_all_four_at_once(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_edge.sinks.line.line.DRAIN_S", 3.0)
    for package in ("paho.mqtt.client", "asyncua", "pymodbus"):
        pytest.importorskip(package)
    mqtt = f"mqtt://127.0.0.1:{free_port()}/hall"
    with Endpoint() as endpoint:
        options = ["--opcua", f"opc.tcp://127.0.0.1:{free_port()}", "--modbus", f"127.0.0.1:{free_port()}"]
        options += ["--webhook", endpoint.address, "--mqtt", mqtt, "--sink-optional"]
        _, _, err = command("run", onnx_bundle.folder, pieces, *options, "--out", tmp_path / "out")
    said = " ".join(err.split())
    assert len(endpoint.posts) == 6
    for kind in ("opcua", "webhook", "modbus"):
        assert f"{kind} 6 delivered" in said
    assert "mqtt 0 delivered" in said
    assert "6 wait in" in said
