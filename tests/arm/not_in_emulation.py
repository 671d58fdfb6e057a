"""A pytest plugin, `-p tests.arm.not_in_emulation`: deselects tests that cannot pass in the emulation, and lists them.

Only what is due to qemu belongs here. Tests that start Python again do run: `sys.executable` starts the emulation. What
the runtimes remark on its processor, which they do not know, is taken out of the standard error that tests look at.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest

REMARKS = re.compile(r"^.*(?:cpuid_info warning|MIDR_EL1).*\n", re.MULTILINE)
"""Lines that ONNX Runtime and OpenVINO write when they are loaded in the emulation; `run.sh` leaves out the same."""

_TIME = "it measures time, and everything is many times slower there"
_START = (
    "qemu computes the start time in a process's own /proc/PID/stat, 0.01 s off what others read there, and by it a "
    "process is told from a later one of the same number"
)
REASONS = {
    "tests/vae_edge/cache/test_compiled.py::TestFinding::test_a_miss_costs_next_to_nothing": _TIME,
    "tests/vae_edge/cache/test_compiled.py::TestProcesses::test_two_that_fill_one_key_at_once_both_succeed": _START,
    "tests/vae_edge/platform/test_atomic.py::test_what_a_live_process_is_writing_is_left_alone": _START,
    "tests/vae_edge/platform/test_atomic.py::"
    "test_a_place_is_one_processs_at_a_time_and_free_when_that_is_killed[True]": _START,
    "tests/vae_edge/sources/test_live.py::test_stopping_ends_a_source_that_waits_for_a_connection": _TIME,
    "tests/vae_edge/sources/test_live.py::test_an_address_that_does_not_answer_is_refused_at_once": _TIME,
    "tests/vae_edge/sources/test_opening.py::test_a_named_pipe_is_an_error_in_its_place[itself]": _TIME,
}
"""Beginning of a test's identifier, and why it is not run."""

_not_run: list[tuple[str, str]] = []


_run = subprocess.run


def _run_without_remarks(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program as `subprocess.run` does, and leave the remarks out of what it wrote to standard error."""
    done = _run(*arguments, **options)
    if isinstance(done.stderr, str):
        done.stderr = REMARKS.sub("", done.stderr)
    elif isinstance(done.stderr, bytes):
        done.stderr = REMARKS.sub("", done.stderr.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return done


def pytest_configure() -> None:
    """From here on every test runs programs so."""
    subprocess.run = _run_without_remarks  # for the whole session


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests, and remember them for the summary."""
    kept, left_out = [], []
    for item in items:
        reason = next((why for start, why in REASONS.items() if item.nodeid.startswith(start)), None)
        if reason is None:
            kept.append(item)
        else:
            left_out.append(item)
            _not_run.append((item.nodeid, reason))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every test that was not run, with the reason, and count them."""
    terminalreporter.write_line(f"not run in the emulation: {len(_not_run)} tests")
    for name, reason in _not_run:
        terminalreporter.write_line(f"  {name}: {reason}")
