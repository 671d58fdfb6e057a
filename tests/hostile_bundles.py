"""Makes hostile bundles as an attacker would: something is changed, then every size, hash and digest is corrected.

So what refuses the bundle is the check behind them. The digest is computed here once more, from its description, not by
the code under test.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vae_edge.bundle import Bundle
from vae_edge.manifest import MANIFEST_FILE

Content = bytes | Callable[[bytes], bytes]
"""What a file holds from now on, or how that comes out of what it held."""


def hostile_bundle(
    source: Bundle | Path,
    out: Path,
    *,
    manifest: Callable[[dict[str, Any]], object] | None = None,
    files: Mapping[str, Content] | None = None,
) -> Path:
    """Copy a bundle with changes, correct its sizes, hashes and digest, and return its folder.

    Args:
        source: the bundle, which stays as it is.
        out: the new folder.
        manifest: changes the parsed manifest in place, after sizes and hashes are corrected and before the digest is.
        files: new content by file name; a file that is not there yet is made, and not listed in the manifest.
    """
    shutil.copytree(source if isinstance(source, Path) else source.folder, out)
    for name, content in (files or {}).items():
        path = out / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    change_manifest(out, manifest)
    return out


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Change the manifest in a folder, and correct in it the sizes and hashes of the files and its digest."""
    content = read_content(folder)
    for record in content["files"]:
        data = (folder / record["name"]).read_bytes()
        record.update(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    if change is not None:
        change(content)
    (folder / MANIFEST_FILE).write_text(json.dumps(with_digest(content)), encoding="utf-8")


def read_content(folder: Path) -> dict[str, Any]:
    """Return the manifest in a folder as parsed from JSON."""
    content: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    return content


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with its digest; one that has none stays without."""
    if "digest" not in content:
        return dict(content)
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # A lone surrogate, which no UTF-8 has, gets some digest: to refuse it is the reader's task.
    return {**rest, "digest": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()}


def as_first_schema(content: dict[str, Any]) -> None:
    """Turn a parsed manifest into one that vae-edge 0.1 wrote; to be given to `hostile_bundle`."""
    as_second_schema(content)
    content["schema_version"] = 1
    content["provenance"]["vae_edge_version"] = "0.1.0"
    del content["digest"]


def as_second_schema(content: dict[str, Any]) -> None:
    """Turn a parsed manifest into one that vae-edge 0.2 wrote; its references stay in the folder and are not listed."""
    content["schema_version"] = 2
    content["provenance"]["vae_edge_version"] = "0.2.0"
    for name in ("references", "verified_by"):
        content.pop(name, None)
    content["files"] = [each for each in content["files"] if each["name"] != "references.safetensors"]
