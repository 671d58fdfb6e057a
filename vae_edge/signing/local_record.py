"""`local.json`: what was fitted again on a device, beside a bundle that its maker signed.

The manifest of a signed bundle is never written again. What a re-fit changes in it, and whether the bundle gave its
reference outputs here, lies in a file of its own: a DSSE envelope around an in-toto statement whose subject is the
signed content, signed with the key of who did it (`vae_edge.signing.device_key`). Where signatures are checked, it
counts only if that is this user's key, or one of the policy's `trusted_refit_keys`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from vae_edge.errors import BundleError, InputError
from vae_edge.gate import GateRecord
from vae_edge.manifest import MANIFEST_LIMITS, NEVER_VERIFIED, Manifest, Thresholds
from vae_edge.platform.atomic import new_file
from vae_edge.records import JsonLimits, Record, Sha256, open_regular, parse_json, read_bounded
from vae_edge.signing.device_key import device_key, keep_count, signed_here
from vae_edge.signing.ec_keys import is_signature_of, key_sha256, sign_bytes
from vae_edge.signing.envelope import (
    PAYLOAD_TYPE,
    STATEMENT_TYPE,
    DsseEnvelope,
    Envelope,
    Subject,
    in_short,
    pre_authentication_encoding,
    read_signature,
    read_statement,
)
from vae_edge.signing.files import LOCAL_FILE
from vae_edge.signing.keys import public_keys, trusted_keys

_log = logging.getLogger(__name__)

LOCAL_PREDICATE_TYPE: Final = "https://vae-edge/local-record/v1"
_FILE_LIMITS = JsonLimits(MANIFEST_LIMITS.size_bytes * 4 // 3 + 10_000, 100)
_ADVICE = "remove it to use the thresholds of the bundle's maker, and fit them again: vae-edge verify BUNDLE --data DIR"


class LocalRecord(Record):
    """What takes the place of the same fields of the manifest."""

    schema_version: Literal[1] = 1
    manifest_sha256: Sha256
    """Of the manifest that it belongs to, as its maker signed it."""
    number: int = Field(ge=1)
    """1 for the first of this bundle on this device."""
    written_utc: str
    thresholds: Thresholds
    gate: GateRecord | None
    verified: bool
    verified_by: str | None
    not_verified_because: str | None

    def applied_to(self, manifest: Manifest) -> Manifest:
        """Return the maker's manifest with what was fitted here."""
        changes = {"thresholds": self.thresholds, "gate": self.gate}
        if manifest.schema_version not in NEVER_VERIFIED:
            changes |= {name: getattr(self, name) for name in ("verified", "verified_by", "not_verified_because")}
        return manifest.model_copy(update=changes)


class _Statement(Record):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1, max_length=1)
    predicateType: Literal["https://vae-edge/local-record/v1"]  # noqa: N815 - as the format spells it
    predicate: LocalRecord


@dataclass(frozen=True)
class Local:
    """A local record as it was read; only its form is checked."""

    record: LocalRecord
    root_sha256: str
    """Of the signed content that it says it belongs to."""
    key_sha256: str
    """Of the key that it says it was signed with."""
    envelope: Envelope
    file_sha256: str


def read_local(folder: Path, manifest_sha256: str) -> Local | None:
    """Read the local record of a bundle; None: there is none.

    Raises:
        BundleError: it is damaged, or belongs to another bundle.
    """
    path = folder / LOCAL_FILE
    try:
        with open_regular(path, links=False) as file:
            data = read_bounded(file, _FILE_LIMITS.size_bytes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); {_ADVICE}") from error
    try:
        found = DsseEnvelope.model_validate(parse_json(data, _FILE_LIMITS))
        payload, signature = found.content()
        statement = _Statement.model_validate(parse_json(payload, MANIFEST_LIMITS))
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {in_short(error)}; {_ADVICE}") from error
    if statement.predicate.manifest_sha256 != manifest_sha256:
        raise BundleError(f"{path} belongs to another bundle, or to another version of this one; {_ADVICE}")
    key = found.signatures[0].keyid
    return Local(
        statement.predicate,
        statement.subject[0].digest["sha256"],
        key,
        Envelope(payload, signature, key),
        hashlib.sha256(data).hexdigest(),
    )


def check_local(folder: Path, local: Local | None, root_sha256: str, refit_keys: Sequence[Path]) -> None:
    """Check that a local record belongs to a bundle, and that whoever signed it may fit its thresholds here.

    Args:
        folder: the bundle.
        local: its local record; None: it has none.
        root_sha256: of its content, from the maker's signature.
        refit_keys: public keys that count beside this user's own.

    Raises:
        BundleError: it does not, nobody who may has signed it, or it is older than the last one that was signed here.
        InputError: one of the keys cannot be read.
    """
    known = signed_here(folder, root_sha256)
    path = folder / LOCAL_FILE
    if local is None:
        if known:
            _log.warning(
                "%s was fitted again here and has no %s any more: the thresholds of its maker are in force; run: "
                "vae-edge verify %s --data DIR",
                folder,
                LOCAL_FILE,
                folder,
            )
        return
    if local.root_sha256 != root_sha256:
        raise BundleError(f"{path} belongs to another signed bundle; {_ADVICE}")
    own = device_key(make=False)
    keys = [] if own is None else [own.public_key()]
    if refit_keys:
        keys += public_keys(trusted_keys(list(refit_keys), said_by="trusted_refit_keys"))
    key = next((each for each in keys if key_sha256(each) == local.key_sha256), None)
    if key is None:
        raise BundleError(
            f"the thresholds in {path} were fitted without permission: they are signed by the key {_short(local)}, "
            f"which is neither this user's own nor one of the policy's trusted_refit_keys; {_ADVICE}"
        )
    if not is_signature_of(key, local.envelope):
        raise BundleError(f"{path} was changed after it was signed by the key {_short(local)}; {_ADVICE}")
    if local.record.number < known:
        raise BundleError(
            f"{path} is number {local.record.number} of the re-fits of this bundle, and {known} were made here: an "
            f"older one was put back; {_ADVICE}"
        )


def write_local(
    folder: Path, manifest_sha256: str, changed: Manifest, before: Local | None, check: Callable[[], None]
) -> Local:
    """Write what a re-fit changed beside a signed bundle, signed with this user's key.

    Args:
        folder: the bundle.
        manifest_sha256: of its manifest, which stays.
        changed: the manifest as it is from now on.
        before: the local record that is replaced.
        check: called when the new one is about to replace it; raises if the bundle is another one by then.

    Raises:
        InputError: the folder, or that of the key, cannot be written.
        BundleError: the maker's signature cannot be read.
    """
    key = device_key(make=True)
    assert key is not None
    envelope = read_signature(folder)
    if envelope is None:
        raise BundleError(f"the bundle {folder} was changed: its signature is gone; open it again")
    root_sha256 = read_statement(envelope, folder).root_sha256
    number = 1 + max(signed_here(folder, root_sha256), 0 if before is None else before.record.number)
    record = LocalRecord(
        manifest_sha256=manifest_sha256,
        number=number,
        written_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        thresholds=changed.thresholds,
        gate=changed.gate,
        verified=changed.verified,
        verified_by=changed.verified_by,
        not_verified_because=changed.not_verified_because,
    )
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": changed.name, "digest": {"sha256": root_sha256}}],
        "predicateType": LOCAL_PREDICATE_TYPE,
        "predicate": record.model_dump(mode="json"),
    }
    payload = json.dumps(statement, ensure_ascii=False, allow_nan=False).encode()
    signature = sign_bytes(key, pre_authentication_encoding(payload))
    keyid = key_sha256(key.public_key())
    content = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": keyid}],
    }
    text = json.dumps(content) + "\n"
    # The record first: if this process is killed in between, it counts.
    with new_file(folder / LOCAL_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
        check()
    try:
        keep_count(folder, root_sha256, number)
    except InputError as error:
        _log.warning("an older %s that is put back could not be noticed: %s", LOCAL_FILE, error)
    return Local(
        record, root_sha256, keyid, Envelope(payload, signature, keyid), hashlib.sha256(text.encode()).hexdigest()
    )


def _short(local: Local) -> str:
    return local.key_sha256[:16] or "without a name"
