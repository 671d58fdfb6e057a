"""A pytest plugin, `-p tests.arm.not_in_emulation`: deselects tests that cannot pass in the emulation, and lists them.

Only what is due to qemu belongs here. Tests that start Python again do run: `sys.executable` starts the emulation.
"""

from __future__ import annotations

import pytest

REASONS = {
    "tests/vae_edge/cache/test_compiled.py::TestFinding::test_a_miss_costs_next_to_nothing": (
        "it measures time, and everything is many times slower there"
    ),
}
"""Beginning of a test's identifier, and why it is not run."""

_not_run: list[tuple[str, str]] = []


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
