"""Verdicts as the registers of a Modbus/TCP server, with pymodbus."""

from __future__ import annotations

import asyncio
import logging
import math
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vae_edge.sinks.line.addresses import parse_address
from vae_edge.sinks.line.channel import About, Message, missing
from vae_edge.sinks.line.serving import ServedChannel, Verdict

if TYPE_CHECKING:
    from pymodbus.constants import ExcCodes
    from pymodbus.server import ModbusTcpServer

REGISTERS: Mapping[int, tuple[str, str, str]] = {
    0: ("verdict", "uint16", "0 none yet, 1 normal, 2 anomalous, 3 no verdict because of an error, 4 not inspectable"),
    1: ("heartbeat", "uint16", "seconds since the server's start, modulo 65536"),
    2: ("counter", "uint32", "verdicts since the server's start"),
    4: ("score", "float32", "the anomaly score; NaN where there is no verdict"),
    6: ("p_value", "float32", "the conformal p-value; NaN where there is no verdict"),
    8: ("n_normal", "uint32", "normal pictures since the server's start"),
    10: ("n_anomalous", "uint32", "anomalous ones"),
    12: ("n_errors", "uint32", "pictures without a verdict"),
    14: ("image_threshold", "float32", "a picture is anomalous if its score is above it"),
    16: ("false_alarm_rate", "float32", "the rate that the threshold stands for, 0 to 1"),
    18: ("bundle", "uint32", "CRC-32 of the bundle's name, target, precision and digest, as OPC UA and MQTT give them"),
    20: ("n_not_inspectable", "uint32", "pictures that are not inspectable"),
}
"""Address of the first register, counted from 0: name, type and meaning. Two registers: the high word first."""
_N_REGISTERS = 22
_FORMATS = {"uint16": ">H", "uint32": ">I", "float32": ">f"}
_FORM = "HOST:PORT, with the address of this machine to listen on, or 0.0.0.0 for all, such as 0.0.0.0:502"
_START_S = 15.0
_CONNECTIONS = 20
_REQUESTS_PER_S = 200
"""Of all clients together; each one more waits."""
_UNIT_ANY = 0


class Modbus(ServedChannel):
    """Serves the latest verdict in input registers and, for clients that know no others, the same holding registers.

    One request reads all registers of the same verdict. Nothing can be written: a write is answered with exception 1
    (illegal function). Modbus has neither passwords nor encryption: everybody who reaches the port can read.

    Args:
        address: `HOST:PORT`, where HOST is the address of this machine to listen on.

    Raises:
        UsageError: the address cannot be used.
        MissingDependencyError: pymodbus is not installed.
    """

    kind = "modbus"
    keeps = False
    at_once = 50

    def __init__(self, address: str) -> None:
        self._address = parse_address(
            address, {"modbus": None}, _FORM, "nothing: Modbus knows no users", implied="modbus://"
        )
        self.shown = address
        try:
            import pymodbus  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing("pymodbus", "--modbus") from error
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # It logs every client's mistake.
        self._server: ModbusTcpServer | None = None
        self._n = dict.fromkeys(Verdict, 0)
        self._registers = [0] * _N_REGISTERS
        self._begin_s = time.monotonic()
        self._next_s = 0.0
        """When the next request is answered at the earliest."""

    def open(self, about: About) -> None:
        """Begin to serve.

        Raises:
            InputError: the address cannot be listened on.
        """
        self.close()
        self._begin_s = time.monotonic()
        self._registers = self._with(
            score=math.nan,
            p_value=math.nan,
            image_threshold=about.image_threshold,
            false_alarm_rate=about.false_alarm_rate,
            bundle=zlib.crc32(about.bundle.encode()),
        )
        self.serve("vae-edge-modbus-server", "the Modbus server", self._start(), _START_S)

    def tell(self, about: About) -> None:
        """Show the thresholds in force."""
        self._registers = self._with(image_threshold=about.image_threshold, false_alarm_rate=about.false_alarm_rate)

    def send(self, messages: Sequence[Message]) -> None:
        """Write verdicts into the registers, all of one at once; see `Channel.send`."""
        for message in messages:
            record = message.record
            verdict = Verdict.of(record)
            self._n[verdict] += 1
            # Another list, in one step: a request sees the one verdict or the other, never a mixture.
            self._registers = self._with(
                verdict=int(verdict),
                score=float(record.get("score", math.nan)),
                p_value=float(record.get("p_value", math.nan)),
                n_normal=self._n[Verdict.NORMAL],
                n_anomalous=self._n[Verdict.ANOMALOUS],
                n_errors=self._n[Verdict.ERROR],
                n_not_inspectable=self._n[Verdict.NOT_INSPECTABLE],
                counter=sum(self._n.values()),
            )

    def _with(self, **values: float) -> list[int]:
        """Return the registers with other values."""
        registers = list(self._registers)
        for address, (name, kind, _) in REGISTERS.items():
            if name in values:
                words = _words(kind, values[name])
                registers[address : address + len(words)] = words
        return registers

    async def _start(self) -> None:
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        def block() -> list[SimData]:
            return [SimData(0, count=_N_REGISTERS, values=0, datatype=DataType.REGISTERS)]

        unused = [SimData(0, count=1, values=False, datatype=DataType.BITS)]
        device = SimDevice(_UNIT_ANY, (unused, unused, block(), block()), action=self._act)

        class Server(ModbusTcpServer):  # type: ignore[misc]
            def callback_new_connection(self) -> Any:
                handler = super().callback_new_connection()
                if len(self.active_connections) >= _CONNECTIONS:
                    self.loop.call_later(0.01, handler.close)
                return handler

        self._server = Server(device, address=(self._address.host, self._address.port))
        await self._server.serve_forever(background=True)

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.shutdown()

    async def _act(
        self, code: int, start: int, address: int, count: int, registers: list[int], written: object
    ) -> ExcCodes | None:
        """Before every access: refuse to write, and fill in the present values."""
        from pymodbus.constants import ExcCodes

        if written is not None or code not in (3, 4):
            return ExcCodes.ILLEGAL_FUNCTION
        now = time.monotonic()
        self._next_s = max(now, self._next_s + 1 / _REQUESTS_PER_S)
        await asyncio.sleep(self._next_s - now)
        values = list(self._registers)
        values[1] = int(time.monotonic() - self._begin_s) % 65536
        registers[:] = values
        return None


def _words(kind: str, value: float) -> list[int]:
    """Return a number as registers of 16 bits, the high word first; one that is too large for float32 as infinity."""
    try:
        data = struct.pack(_FORMATS[kind], value if kind == "float32" else int(value) % 2**32)
    except OverflowError:
        data = struct.pack(">f", math.copysign(math.inf, value))
    return [int(word) for (word,) in struct.iter_unpack(">H", data)]
