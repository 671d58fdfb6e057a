"""Verdicts for the machine beside the line: MQTT, OPC UA, webhooks and Modbus, each on its own.

`line.Line` hands every verdict to several channels. Nothing here is imported unless a channel is wanted, and a
channel's library only in its own module.
"""
