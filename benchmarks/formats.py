"""Numbers as people read them; a number that was not measured is a dash, never a zero."""

from __future__ import annotations

from collections.abc import Callable

from vae_edge.benchmarks.estimates import Interval

ABSENT = "-"
MIB = 1024 * 1024


def milliseconds(value_ms: float | None) -> str:
    """Return milliseconds with three significant digits: 0.123, 4.56, 78.9, 1234."""
    return _significant(value_ms)


def seconds(value_s: float | None) -> str:
    """Return seconds with three significant digits."""
    return _significant(value_s)


def rate(value: float | None) -> str:
    """Return a rate with three significant digits."""
    return _significant(value)


def mebibytes(size_bytes: int | None) -> str:
    """Return bytes as MiB (2^20 bytes) with three significant digits."""
    return ABSENT if size_bytes is None else _significant(size_bytes / MIB)


def share(value: float | None) -> str:
    """Return a number in [0, 1], such as an AUROC, with three decimals."""
    return ABSENT if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal."""
    return ABSENT if value is None else f"{value:.1%}"


def relative(difference: float | None, scale: float | None) -> str:
    """Return a difference with the share of its scale: `1.2e-05 (3.0e-07)`."""
    if difference is None:
        return ABSENT
    return f"{difference:.1e}" + (f" ({difference / scale:.1e})" if scale else "")


def with_interval(value: float | None, interval: Interval | None, form: Callable[[float | None], str]) -> str:
    """Return a value with the ends of its interval, all in one form: `4.56 (4.51 to 4.63)`."""
    if value is None or interval is None:
        return form(value)
    return f"{form(value)} ({form(interval.low)} to {form(interval.high)})"


def _significant(value: float | None) -> str:
    if value is None:
        return ABSENT
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"
