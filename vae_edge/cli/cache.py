"""`vae-edge cache`: what vae-edge caches on this machine, and how to clear it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer

from vae_edge.cache import compiled
from vae_edge.cache.compiled import CompiledEntry
from vae_edge.cache.folders import SampleSet, cache_folder, sample_sets
from vae_edge.cli.console import plain_table, print_warning, results_console, size_text
from vae_edge.cli.options import JsonOption
from vae_edge.errors import InputError, UsageError
from vae_edge.wording import count

_KINDS = ("openvino", "tensorrt", "tensorrt-timings", "sample")


def cache(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help=f"Only entries of this kind: {', '.join(_KINDS)}."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove the entries instead of listing them.")] = False,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Only entries not used for this many days.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what is cached for faster starts: compiled models, rebuilt engines, kernel timings, and the sample images.

    `--clear` removes it without asking: everything can be recreated, but the next start takes longer. Running programs
    are not affected. $VAE_EDGE_CACHE moves the cache to another folder, $VAE_EDGE_CACHE_LIMIT_MB limits the size
    of compiled models (default 2000, 0 keeps none); the least recently used are removed first.
    """
    if older_than is not None and not older_than >= 0:
        raise UsageError(f"--older-than is {older_than}; expected a number of days, 0 or more")
    if cache_folder().exists() and not cache_folder().is_dir():
        raise InputError(f"the cache is {cache_folder()}, which is not a folder; set VAE_EDGE_CACHE to a folder")
    items = [*map(_compiled_item, compiled.entries()), *map(_sample_item, sample_sets())]
    kinds = dict.fromkeys([*_KINDS, *(item.kind for item in items)])
    if kind is not None and kind not in kinds:
        raise UsageError(f"the kind is {kind!r}; expected one of {', '.join(kinds)}")
    chosen = [
        item for item in items if kind in (None, item.kind) and (older_than is None or item.age_s > older_than * 86400)
    ]
    if clear:
        _clear(chosen, as_json)
    elif as_json:
        _print_json(chosen)
    else:
        _print(chosen)


@dataclass(frozen=True)
class _Item:
    """A line of the list."""

    kind: str
    state: str
    model: str
    runtime: str
    device: str
    settings: dict[str, str]
    size_bytes: int
    created_utc: str | None
    last_used_utc: str
    source: CompiledEntry | SampleSet

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - datetime.fromisoformat(self.last_used_utc).timestamp())

    def remove(self) -> bool:
        return self.source.remove()


def _compiled_item(entry: CompiledEntry) -> _Item:
    key = entry.key
    state = "kept" if key is not None else "being written" if entry.is_unfinished else "unreadable"
    return _Item(
        kind=entry.kind,
        state=state,
        model="" if key is None else key.model_sha256,
        runtime="" if key is None else key.runtime,
        device="" if key is None else key.device,
        settings={} if key is None else dict(key.settings),
        size_bytes=entry.size_bytes,
        created_utc=entry.created_utc,
        last_used_utc=entry.last_used_utc,
        source=entry,
    )


def _sample_item(found: SampleSet) -> _Item:
    return _Item("sample", "kept", found.name, "", "", {}, found.size_bytes, found.drawn_utc, found.drawn_utc, found)


def _clear(chosen: list[_Item], as_json: bool) -> None:
    """Remove what was chosen, but for what a process is writing at this moment."""
    left_alone = [item for item in chosen if item.state == "being written"]
    removed: list[_Item] = []
    failed: list[_Item] = []
    for item in chosen:
        if item not in left_alone:
            (removed if item.remove() else failed).append(item)
    size_bytes = sum(item.size_bytes for item in removed)
    if as_json:
        print(json.dumps({"folder": str(cache_folder()), "removed": len(removed), "size_bytes": size_bytes}, indent=2))
    else:
        results_console().print(f"{_entries(len(removed))} removed, {size_text(size_bytes)}: {cache_folder()}")
    if left_alone:
        print_warning(f"{_entries(len(left_alone))} kept because a process may be writing them; try again in an hour")
    if failed:
        print_warning(f"{_entries(len(failed))} could not be removed; check the permissions of {cache_folder()}")
        raise typer.Exit(1)


def _print_json(chosen: list[_Item]) -> None:
    names = ("kind", "state", "model", "runtime", "device", "settings", "size_bytes", "created_utc", "last_used_utc")
    entries: list[dict[str, Any]] = [{name: getattr(item, name) for name in names} for item in chosen]
    content = {
        "folder": str(cache_folder()),
        "compiled_limit_bytes": compiled.limit_bytes(),
        "size_bytes": sum(item.size_bytes for item in chosen),
        "entries": entries,
    }
    print(json.dumps(content, indent=2))


def _print(chosen: list[_Item]) -> None:
    console = results_console()
    if chosen:
        table = plain_table()
        table.add_column("kind", no_wrap=True, style="cyan")
        table.add_column("model", no_wrap=True)
        table.add_column("runtime", overflow="fold")
        table.add_column("device", overflow="fold")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("last used", justify="right", no_wrap=True)
        for item in chosen:
            # A hash is told apart by its beginning; a sample set has a name.
            model = item.model[:12] if re.fullmatch(r"[0-9a-f]{64}", item.model) else item.model
            what = item.runtime if item.state == "kept" else f"({item.state})"
            row = (item.kind, model or "-", what or "-", item.device or "-")
            table.add_row(*row, size_text(item.size_bytes), _age_text(item.age_s))
        console.print(table)
        console.print()
    for kind in dict.fromkeys(item.kind for item in chosen):
        of_kind = [item for item in chosen if item.kind == kind]
        total = size_text(sum(item.size_bytes for item in of_kind))
        console.print(f"{kind}: {_entries(len(of_kind))}, {total}")
    total = size_text(sum(item.size_bytes for item in chosen))
    console.print(f"{_entries(len(chosen))}, {total}: {cache_folder()}", soft_wrap=True)


def _entries(number: int) -> str:
    return count(number, "entry", "entries")


def _age_text(age_s: float) -> str:
    """Return how long ago something was, in words."""
    for seconds, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if age_s >= seconds:
            return f"{age_s / seconds:.0f} {unit} ago"
    return "just now"
