"""The file that keeps what a drift monitor knows between two starts: `vae_edge.drift` says what its values mean.

It is JSON with its own digest, bound to a bundle by `bundle_identity`. It holds scores and no pictures or names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from vae_edge.bundle import Bundle
from vae_edge.errors import InputError
from vae_edge.manifest import manifest_digest
from vae_edge.platform.atomic import write_text
from vae_edge.records import JsonLimits, Record, Sha256, open_regular, parse_json, parse_record, read_bounded

SCHEMA_VERSION: Final = 1
KIND: Final = "vae-edge drift"
MAX_SCORES = 20_000
"""Earlier scores that are kept: 160 kB of memory, and 0.4 MB of the file."""
N_RECENT = 200
"""Latest scores, of which a change's size is computed."""
N_BETS = 9

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_LIMITS = JsonLimits(2_000_000, 4 * (MAX_SCORES + N_RECENT))
_ADVICE = "delete it to begin anew"


def _plain_floats(values: Any) -> Any:
    # An error for each of many wrong values would take much memory.
    if isinstance(values, (list, tuple)) and any(type(value) not in (float, int) for value in values):
        raise ValueError("there is something else than numbers among them")
    return values


_Floats = Annotated[tuple[float, ...], BeforeValidator(_plain_floats)]


class Baseline(Record):
    """What a change's size is measured against."""

    median: float
    spread: float = Field(ge=0)
    """Interquartile range / 1.349: the standard deviation of a normal distribution with that range."""


class DriftAlarm(Record):
    """The first time that the martingale reached 1 / rate."""

    part: int = Field(ge=1)
    """The part at which it was raised, from 1."""
    began: int = Field(ge=1)
    """The part at which the change began, as the strongest bet has it."""
    direction: Literal["higher", "lower"]
    """Whether scores became higher, which more parts that look anomalous count as, or lower."""
    shift: float | None
    """Median of the scores since then minus the baseline's, in units of its spread; None: there is no baseline yet."""
    raised_utc: str | None = None
    """When it was raised, such as `2026-11-30T22:51:59Z`; None: an earlier version did not note it."""

    @property
    def raised_s(self) -> float | None:
        """When it was raised, in seconds since 1970; None: not known."""
        if self.raised_utc is None:
            return None
        return datetime.strptime(self.raised_utc, _TIME_FORMAT).replace(tzinfo=timezone.utc).timestamp()

    @model_validator(mode="after")
    def _check(self) -> DriftAlarm:
        _ = self.raised_s
        return self


class DriftRecord(Record):
    """All that a drift monitor knows."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["vae-edge drift"] = KIND
    bundle: Sha256
    """`bundle_identity` of the bundle that gave the scores."""
    bundle_name: str
    alarm_rate: float = Field(gt=0, lt=1)
    cut: float
    """Parts that score at least this are counted and not ranked."""
    allowed_share: float = Field(gt=0, lt=1)
    """Share of parts above the cut that is no drift."""
    n_reference: int = Field(ge=0)
    """Held-out normals below the cut that the ranks began with."""
    seed: int = Field(ge=0, lt=2**64)
    n_draws: int = Field(ge=0)
    """Random numbers used."""
    n_parts: int = Field(ge=0)
    n_above: int = Field(ge=0)
    """Parts above the cut."""
    baseline: Baseline | None
    scores: _Floats
    """Ascending: what the next part is ranked among."""
    recent: _Floats
    wealth: _Floats
    best: _Floats
    """Of each bet, its wealth if it had been begun at the best moment, as it was weighted then."""
    began: tuple[int, ...]
    highest: float = Field(ge=0)
    """The largest value of the martingale so far."""
    alarm: DriftAlarm | None

    @model_validator(mode="after")
    def _check(self) -> DriftRecord:
        if not len(self.wealth) == len(self.best) == len(self.began) == N_BETS:
            raise ValueError(f"there are not {N_BETS} bets")
        if min(*self.wealth, *self.best) < 0 or not all(0 <= part <= self.n_parts for part in self.began):
            raise ValueError("a bet has less than nothing, or began at no part")
        if len(self.scores) > MAX_SCORES or len(self.recent) > N_RECENT:
            raise ValueError("there are more scores than are kept")
        if any(first > second for first, second in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("the scores are not in ascending order")
        return self


def bundle_identity(bundle: Bundle) -> str:
    """Return a SHA-256 over what decides scores and cut: the model's files, and the thresholds with their normals.

    That the bundle was moved, or verified here, does not change it; thresholds that were fitted again do.
    """
    thresholds = bundle.manifest.thresholds.model_dump_json(exclude={"scored_by"})
    return hashlib.sha256(f"{bundle.model_sha256} {thresholds}".encode()).hexdigest()


def time_text(now: datetime) -> str:
    """Return a time as `DriftAlarm.raised_utc` has it."""
    return now.astimezone(timezone.utc).strftime(_TIME_FORMAT)


def is_drift_file(path: Path) -> bool:
    """Tell by its first bytes whether a file is one that `write_drift` wrote."""
    try:
        with open_regular(path) as file:
            return KIND.encode() in file.read(200)
    except OSError:
        return False


def write_drift(path: Path, record: DriftRecord) -> None:
    """Write the file, completely or not at all.

    Raises:
        InputError: it cannot be written; an older one is not changed.
    """
    content: dict[str, Any] = {"kind": KIND, **record.model_dump(mode="json")}
    write_text(path, json.dumps({"kind": KIND, "digest": manifest_digest(content), **content}))


def read_drift(path: Path) -> DriftRecord:
    """Read a file that `write_drift` wrote.

    Raises:
        InputError: it is not one, was changed, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            content = parse_json(read_bounded(file, _LIMITS.size_bytes), _LIMITS)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not the state of a drift monitor, or is damaged ({error}); {_ADVICE}") from error
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise InputError(f"{path} is not the state of a drift monitor; choose another file")
    rest = {key: value for key, value in content.items() if key != "digest"}
    record = parse_record(rest, path, DriftRecord, SCHEMA_VERSION, advice=_ADVICE, error_kind=InputError)
    if content.get("digest") != manifest_digest(rest):
        raise InputError(f"{path} was changed since it was written; {_ADVICE}")
    return record


def read_drift_of(path: Path, bundle: Bundle, alarm_rate: float) -> DriftRecord:
    """Read the file that goes with a bundle.

    Raises:
        InputError: see `read_drift`; or it is of another bundle, or for another rate.
    """
    record = read_drift(path)
    if record.bundle != bundle_identity(bundle):
        raise InputError(
            f"{path} belongs to the bundle {record.bundle_name} with its model and thresholds at that time, not to "
            f"{bundle.folder}; choose another file, or {_ADVICE}"
        )
    if record.alarm_rate != alarm_rate:
        raise InputError(
            f"{path} watches with a false-alarm rate of {record.alarm_rate}, not {alarm_rate}, and a rate that is "
            f"chosen later is not kept; pass that one, or {_ADVICE}"
        )
    return record
