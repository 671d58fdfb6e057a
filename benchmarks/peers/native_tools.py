"""The runtimes' own benchmark programs: how they are called, and what their output says.

They time the engine alone, on random pixels; they neither read images nor judge them.
"""

from __future__ import annotations

import re
from pathlib import Path

from vae_edge.benchmarks.bare_runtime import BENCHMARK_APP
from vae_edge.errors import DeviceError

FIRST_INFERENCE = re.compile(r"First inference took")
"""The line of benchmark_app, and nothing of trtexec, that says that the first result is there."""

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def benchmark_app_command(
    python: Path, model: Path, shape: tuple[int, ...], hint: str, seconds: float, precision: str | None
) -> list[str]:
    """Return the command line of OpenVINO's benchmark_app.

    Args:
        python: interpreter of its environment.
        model: `model.xml`.
        shape: of the one input, batch included.
        hint: `latency` or `throughput`.
        seconds: how long it measures.
        precision: what the processor computes floating-point layers in; None: OpenVINO's choice, which is bfloat16
            where the processor has it.
    """
    text = "[" + ",".join(str(size) for size in shape) + "]"
    command = [str(python), "-I", "-c", BENCHMARK_APP, "-m", str(model), "-d", "CPU", "-hint", hint, "-shape", text]
    command += ["-t", str(max(1, round(seconds)))]
    return command if precision is None else [*command, "-infer_precision", precision]


def read_benchmark_app(output: str) -> dict[str, float]:
    """Return `p50_ms` and `per_s` of benchmark_app's output.

    Raises:
        DeviceError: it does not have them.
    """
    return {
        "p50_ms": _milliseconds(r"Median:\s+([\d.]+)\s*(us|ms|s)\b", output, "benchmark_app"),
        "per_s": _number(r"Throughput:\s+([\d.]+)\s*FPS", output, "benchmark_app"),
    }


def trtexec_command(program: Path, model: Path, shape: tuple[int, ...], seconds: float) -> list[str]:
    """Return the command line of TensorRT's trtexec, which builds an engine from the ONNX file first."""
    shapes = "image:" + "x".join(str(size) for size in shape)
    return [str(program), f"--onnx={model}", f"--shapes={shapes}", f"--duration={max(1, round(seconds))}"]


def read_trtexec(output: str) -> dict[str, float]:
    """Return `p50_ms` (copies included) and `per_s` of trtexec's output.

    Raises:
        DeviceError: it does not have them.
    """
    return {
        "p50_ms": _milliseconds(r"\] Latency:.*?median = ([\d.]+) (us|ms|s)\b", output, "trtexec"),
        "per_s": _number(r"Throughput: ([\d.]+) qps", output, "trtexec"),
    }


def _milliseconds(pattern: str, output: str, tool: str) -> float:
    found = _search(pattern, output, tool)
    return float(found[1]) * _UNITS_MS[found[2]]


def _number(pattern: str, output: str, tool: str) -> float:
    return float(_search(pattern, output, tool)[1])


def _search(pattern: str, output: str, tool: str) -> re.Match[str]:
    found = re.search(pattern, output)
    if found is None:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        raise DeviceError(f"{tool} did not print what was expected; its last line: {lines[-1][:200] if lines else ''}")
    return found
