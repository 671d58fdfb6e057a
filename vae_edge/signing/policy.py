"""The user's configuration: which signatures are demanded of every bundle, and whose re-fits count.

`signing.json` in the folder for configuration; SIGNING.md has an example. Every command and every `Bundle.open` obeys
it. What cannot be read or does not hold together is an error, never "no policy".
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, StrictBool

from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.platform.outside import user_folder, user_path
from vae_edge.records import JsonLimits, Record, open_regular, parse_json, parse_record, read_bounded

if TYPE_CHECKING:
    from vae_edge.signing.keys import TrustedKeys

POLICY_FILE = "signing.json"
_LIMITS = JsonLimits(100_000, 1_000)
_ADVICE = "correct it, or remove it to demand no signatures"


class _PolicyRecord(Record):
    schema_version: Literal[1] = 1
    only_signed: StrictBool = True
    """Refuse bundles without a signature."""
    trusted_keys: tuple[str, ...] = Field(default=(), max_length=100)
    """Files of public keys and root certificates; a relative path is from the folder of this file."""
    trusted_refit_keys: tuple[str, ...] = Field(default=(), max_length=100)
    """Files of public keys of other devices or users, whose re-fits count here beside this user's own."""


@dataclass(frozen=True)
class Policy:
    """What is demanded of every bundle."""

    only_signed: bool = False
    trusted: TrustedKeys | None = None
    """None: signatures are not checked, unless somebody asks."""
    refit_keys: tuple[Path, ...] = ()


def config_folder() -> Path | None:
    """Return the user's folder for vae-edge's configuration, which need not exist; None: this user has no home folder.

    `$VAE_EDGE_CONFIG` where it is set, and that one has to exist, else `$XDG_CONFIG_HOME/vae-edge`, else
    `~/.config/vae-edge`.
    """
    return user_folder("VAE_EDGE_CONFIG", "XDG_CONFIG_HOME", ".config")


def read_policy() -> Policy:
    """Read the policy in force; without a file, nothing is demanded.

    Raises:
        InputError: the file, or one that it names, cannot be read or holds something else; `$VAE_EDGE_CONFIG` is no
            folder.
        MissingDependencyError: it demands signatures, and `cryptography` is not installed.
    """
    folder = config_folder()
    if folder is None:
        return Policy()
    path = folder / POLICY_FILE
    try:
        with open_regular(path) as file:
            _refuse_open_to_others("the policy", path, os.fstat(file.fileno()).st_mode)
            _refuse_open_folder(folder)
            content = parse_json(read_bounded(file, _LIMITS.size_bytes), _LIMITS)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not os.path.lexists(path):
            if os.environ.get("VAE_EDGE_CONFIG") and not folder.is_dir():
                problem = "not a folder" if os.path.lexists(folder) else "not there"
                raise InputError(
                    f"VAE_EDGE_CONFIG is {folder}, which is {problem}; expected the folder of {POLICY_FILE}: make it, "
                    "or unset the variable"
                ) from error
            return Policy()
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, FileNotFoundError):
            reason = f"it is a link to {path.readlink()}, which is not there"
        raise InputError(f"the policy {path} cannot be read ({reason}); {_ADVICE}") from error
    record = parse_record(content, path, _PolicyRecord, 1, advice=_ADVICE, error_kind=InputError)
    if record.only_signed and not record.trusted_keys:
        raise InputError(
            f"the policy {path} demands signatures (only_signed) and trusts nobody; name files of keys in trusted_keys"
        )
    keys, refit_keys = (
        tuple(folder / user_path(name) for name in names) for names in (record.trusted_keys, record.trusted_refit_keys)
    )
    if not keys:
        return Policy(record.only_signed, None, refit_keys)
    from vae_edge.signing.keys import trusted_keys  # Most users have no policy.

    trusted = trusted_keys(keys, said_by=str(path))
    if refit_keys:
        trusted_keys(refit_keys, said_by="trusted_refit_keys")
    for key in (*keys, *refit_keys):
        _refuse_open_to_others("the trusted key", key, key.stat().st_mode)
    return Policy(record.only_signed, trusted, refit_keys)


def describe_policy() -> str:
    """Return what the policy in force demands, or why it cannot be used, for people."""
    try:
        policy = read_policy()
    except VaeEdgeError as error:
        return f"no bundle can be opened: {error}"
    if policy.trusted is None:
        return "demanded of no bundle"
    which = "demanded of every bundle" if policy.only_signed else "checked where there are any"
    refits = (
        "" if not policy.refit_keys else f"; re-fits of others: {', '.join(path.name for path in policy.refit_keys)}"
    )
    return f"{which}, by {policy.trusted.names} ({policy.trusted.said_by}){refits}"


def _refuse_open_to_others(what: str, path: Path, mode: int) -> None:
    if os.name == "posix" and mode & 0o002:
        raise InputError(f"every user can change {what} {path}; run: chmod o-w {path}")


def _refuse_open_folder(folder: Path) -> None:
    """Refuse a folder in which every user can put another file in the place of the policy."""
    mode = folder.stat().st_mode
    if not mode & stat.S_ISVTX:  # As in /tmp: nobody removes or renames the files of others.
        _refuse_open_to_others("what is in", folder, mode)
