"""From the words of a command line to the channels; each imports its library only here, where it is wanted."""

from __future__ import annotations

from pathlib import Path

from vae_edge.sinks.line.channel import Channel
from vae_edge.sinks.line.rate_control import RateControl
from vae_edge.sinks.line.settings import LineSettings
from vae_edge.sources.trigger import Trigger

UNDELIVERED_FOLDER = "undelivered"


def make_channels(
    settings: LineSettings,
    *,
    mqtt: str | None = None,
    opcua: str | None = None,
    webhook: str | None = None,
    modbus: str | None = None,
    trigger: Trigger | None = None,
    rates: RateControl | None = None,
) -> list[Channel]:
    """Return the channels to some addresses; nothing is connected yet.

    Args:
        settings: credentials and certificates.
        mqtt: see `mqtt.Mqtt`.
        opcua: see `opcua.OpcUa`.
        webhook: see `webhook.Webhook`.
        modbus: see `modbus.Modbus`.
        trigger: what OPC UA clients may use to take pictures; None: nothing.
        rates: what they may use to set the false-alarm rate; None: nothing.

    Raises:
        UsageError: an address or a setting cannot be used.
        MissingDependencyError: a package is not installed.
    """
    channels: list[Channel] = []
    if mqtt is not None:
        from vae_edge.sinks.line.mqtt import Mqtt

        channels.append(Mqtt(mqtt, settings))
    if opcua is not None:
        from vae_edge.sinks.line.opcua import OpcUa

        channels.append(OpcUa(opcua, settings, trigger, rates))
    if webhook is not None:
        from vae_edge.sinks.line.webhook import Webhook

        channels.append(Webhook(webhook, settings))
    if modbus is not None:
        from vae_edge.sinks.line.modbus import Modbus

        channels.append(Modbus(modbus))
    return channels


def folder_for(settings: LineSettings, out: Path | None) -> Path | None:
    """Return where verdicts wait that could not be delivered: as set, or in the folder of the results."""
    return settings.folder or (None if out is None else out / UNDELIVERED_FOLDER)
