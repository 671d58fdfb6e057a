"""With a client of sockets alone, and with pymodbus's own."""

from __future__ import annotations

import math
import socket
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.line_receivers import ABOUT, free_port, record
from tests.threads import our_threads, wait_until
from vae_edge.errors import InputError, UsageError
from vae_edge.sinks.line.line import Line

pytest.importorskip("pymodbus", reason="pymodbus is not installed: vae-edge[line]")
from pymodbus.client import ModbusTcpClient

from vae_edge.sinks.line.modbus import REGISTERS, Modbus

ADDRESSES = {name: (address, kind) for address, (name, kind, _) in REGISTERS.items()}
FORMATS = {"uint16": ">H", "uint32": ">I", "float32": ">f"}


def values(registers: list[int]) -> dict[str, float]:
    """Decode all registers as the documented map says."""
    found = {}
    for name, (address, kind) in ADDRESSES.items():
        n_words = 1 if kind == "uint16" else 2
        data = b"".join(struct.pack(">H", word) for word in registers[address : address + n_words])
        (found[name],) = struct.unpack(FORMATS[kind], data)
    return found


def read(port: int, code: int = 4) -> dict[str, float]:
    """Read all registers without pymodbus: MBAP header, function code, first address, number."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(struct.pack(">HHHBBHH", 7, 0, 6, 1, code, 0, 22))
        answer = connection.recv(300)
    assert struct.unpack(">HHHBBB", answer[:9]) == (7, 0, 47, 1, code, 44)
    return values(list(struct.unpack(">22H", answer[9:])))


def test_the_registers_show_the_latest_verdict() -> None:
    port = free_port()
    with Line([Modbus(f"127.0.0.1:{port}")], ABOUT) as line:
        before = read(port)
        assert (before["verdict"], before["counter"]) == (0, 0)
        assert math.isnan(before["score"])
        assert before["bundle"] == zlib.crc32(ABOUT.bundle.encode())
        assert before["image_threshold"] == 0.5
        assert before["false_alarm_rate"] == pytest.approx(0.01)
        for number in range(70_000 // 700):
            line.send(record(number))
        line.send({"source": "x", "error": "broken"})
        wait_until(lambda: line.deliveries[0].n_delivered == 101)
        failed = read(port)
        assert (failed["verdict"], failed["counter"], failed["n_errors"]) == (3, 101, 1)
        assert math.isnan(failed["p_value"])
        line.send(record(7))
        wait_until(lambda: line.deliveries[0].n_delivered == 102)
        for code in (3, 4):
            after = read(port, code)
            assert (after["verdict"], after["counter"], after["n_normal"], after["n_anomalous"]) == (2, 102, 50, 51)
            assert after["score"] == pytest.approx(0.007)
            assert after["p_value"] == 0.5
        time.sleep(1.1)
        assert read(port)["heartbeat"] > before["heartbeat"]
    assert our_threads() == []


def test_the_registers_show_other_thresholds_once_they_are_in_force() -> None:
    port = free_port()
    with Line([Modbus(f"127.0.0.1:{port}")], ABOUT) as line:
        line.tell(replace(ABOUT, image_threshold=0.25, false_alarm_rate=0.5))
        wait_until(lambda: read(port)["image_threshold"] == 0.25)
        assert read(port)["false_alarm_rate"] == 0.5


def test_a_picture_that_is_not_inspectable_is_not_normal() -> None:
    port = free_port()
    with Line([Modbus(f"127.0.0.1:{port}")], ABOUT) as line:
        line.send({"source": "x", "is_anomalous": False, "score": 0.1, "p_value": 0.5, "verdict": "not inspectable"})
        wait_until(lambda: line.deliveries[0].n_delivered == 1)
        found = read(port)
        assert (found["n_not_inspectable"], found["counter"], found["n_normal"]) == (1, 1, 0)
        assert (found["verdict"], found["counter"], found["n_normal"]) == (4, 1, 0)


def test_nothing_can_be_written() -> None:
    port = free_port()
    with Line([Modbus(f"127.0.0.1:{port}")], ABOUT):
        before = read(port)
        with ModbusTcpClient("127.0.0.1", port=port) as client:
            attempts = [
                client.write_register(14, 0),
                client.write_registers(14, [0, 0]),
                client.write_coil(0, True),
                client.write_coils(0, [True]),
                client.mask_write_register(address=14, and_mask=0, or_mask=0),
                client.readwrite_registers(read_address=0, read_count=1, write_address=14, values=[0, 0]),
            ]
            assert all(answer.isError() for answer in attempts)
            assert client.read_input_registers(15, count=20).isError()
        assert read(port)["image_threshold"] == before["image_threshold"] == 0.5


def test_requests_beyond_the_rate_wait_and_rubbish_is_survived() -> None:
    port = free_port()
    with Line([Modbus(f"127.0.0.1:{port}")], ABOUT):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"\xff" * 10_000)
        begin_s = time.monotonic()
        with ModbusTcpClient("127.0.0.1", port=port) as client:
            for _ in range(300):
                assert not client.read_input_registers(0, count=20).isError()
        assert time.monotonic() - begin_s > 1.3
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        time.sleep(0.2)
        crowd[-1].settimeout(5)
        assert crowd[-1].recv(1) == b""  # Closed by the server.
        for connection in crowd:
            connection.close()
        time.sleep(0.2)
        assert read(port)["verdict"] == 0


def test_a_score_that_float32_cannot_hold_is_infinite() -> None:
    port = free_port()
    with Line([Modbus(f"127.0.0.1:{port}")], ABOUT) as line:
        line.send({**record(0), "score": 1e300})
        wait_until(lambda: line.deliveries[0].n_delivered == 1)
        assert read(port)["score"] == math.inf


def test_a_port_in_use_is_an_error_before_the_first_verdict() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"the Modbus server cannot listen on 127.0.0.1:{port}"):
            Line([Modbus(f"127.0.0.1:{port}")], ABOUT)
    assert our_threads() == []


@pytest.mark.parametrize("address", ["h", "h:0", "h:x", ":502", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        Modbus(address)


def test_every_register_is_documented() -> None:
    page = (Path(__file__).parents[4] / "vae_edge" / "sinks" / "LINE.md").read_text(encoding="utf-8")
    for address, (name, kind, meaning) in REGISTERS.items():
        assert f"| {address} | `{name}` | {kind} | {meaning} |" in page
