"""Studies beyond one benchmark: other tools, detection, false alarms, training speed, drift, the gate and others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from vae_edge.cli.console import print_error
from vae_edge.errors import VaeEdgeError


def run_study(command: Callable[..., Any]) -> None:
    """Run a study as a program: its parameters are the options; an error prints one line and sets the exit code."""
    try:
        typer.run(command)
    except VaeEdgeError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
