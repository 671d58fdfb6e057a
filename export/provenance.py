"""Writes `provenance.json` into a bundle: its files, data, code and the versions of all packages in use.

No names of machines, users or folders are in it. The run's name is, which is the name of a folder that a user chose,
and is in the manifest, too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import vae_edge
from vae_edge.bundle import Bundle
from vae_edge.manifest import Manifest
from vae_edge.platform.atomic import sha256_file
from vae_edge.signing.envelope import Subject
from vae_edge.signing.files import PROVENANCE_FILE
from vae_edge.signing.provenance import (
    BUILDER,
    EXPORT_TYPE,
    PACKAGE_PREFIX,
    REBUILD_TYPE,
    BuildDefinition,
    Builder,
    Dependency,
    Metadata,
    Predicate,
    ProvenanceStatement,
    RunDetails,
)

_ROOTS = (
    *("vae-edge", "numpy", "opencv-python-headless", "pydantic", "torch", "lightning", "onnx", "onnxscript"),
    *("onnxruntime", "openvino", "nncf", "tensorrt", "tensorrt-rtx"),
)
"""The packages whose versions count, with all that they need in turn."""
_PARTS = ("train", "export", "benchmarks")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def write_provenance(folder: Path, manifest: Manifest, source: Bundle | None = None) -> None:
    """Write where a bundle comes from, once its other files are there.

    Args:
        folder: the bundle, with its manifest.
        manifest: that one.
        source: the bundle that it was built from; None: a run was exported.
    """
    statement = ProvenanceStatement(
        _type="https://in-toto.io/Statement/v1",
        subject=tuple(
            Subject(name=path.name, digest={"sha256": sha256_file(path)})
            for path in sorted(folder.iterdir())
            if path.name != PROVENANCE_FILE
        ),
        predicate=Predicate(
            buildDefinition=BuildDefinition(
                buildType=EXPORT_TYPE if source is None else REBUILD_TYPE,
                externalParameters={
                    "target": str(manifest.target),
                    "precision": str(manifest.precision),
                    "scoring": manifest.scoring,
                    "false_alarm_rate": repr(manifest.thresholds.false_alarm_rate_requested),
                },
                resolvedDependencies=(*_data(manifest, source), _code(), *_packages()),
            ),
            runDetails=RunDetails(
                builder=Builder(
                    id=BUILDER,
                    version={
                        "vae-edge": vae_edge.__version__,
                        "python": platform.python_version(),
                        "platform": f"{sys.platform} {platform.machine()}",
                    },
                ),
                metadata=Metadata(finishedOn=manifest.provenance.created_utc),
            ),
        ),
    )
    text = statement.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"
    (folder / PROVENANCE_FILE).write_text(text, encoding="utf-8", newline="")


def _data(manifest: Manifest, source: Bundle | None) -> list[Dependency]:
    origin = manifest.provenance
    found = {"run": origin.run_fingerprint, "training images": origin.data_fingerprint}
    if manifest.calibration_set is not None:
        found["calibration images"] = manifest.calibration_set.sha256
    if origin.backbone is not None:
        found[f"backbone {origin.backbone.name}"] = origin.backbone.sha256
    if source is not None and source.seen is not None:
        found[f"manifest of {source.manifest.name}"] = source.seen.manifest_sha256
    return [Dependency(name=name, digest={"sha256": sha256}) for name, sha256 in found.items()]


@cache
def _code() -> Dependency:
    """Return this package with a hash over its sources, which tells apart what has the same version."""
    digest = hashlib.sha256()
    for part in ("", *_PARTS):
        spec = find_spec(f"vae_edge.{part}" if part else "vae_edge")
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        if not places:
            continue
        top = Path(places[0])
        for folder, below, names in os.walk(top):
            below[:] = sorted(name for name in below if part or Path(folder) != top or name not in _PARTS)
            for name in sorted(names):
                if name.endswith(".py"):
                    path = Path(folder, name)
                    digest.update(f"{part}/{path.relative_to(top).as_posix()}\n".encode())
                    digest.update(sha256_file(path).encode())
    version = vae_edge.__version__
    return Dependency(name="vae-edge", uri=f"{PACKAGE_PREFIX}vae-edge@{version}", digest={"sha256": digest.hexdigest()})


@cache
def _packages() -> tuple[Dependency, ...]:
    """Return every installed package that took part, or that one of these needs, with its version."""
    found: dict[str, str] = {}
    waiting, seen = list(_ROOTS), set[str]()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if name != "vae-edge":
            found[name] = installed.version
        for requirement in installed.requires or ():
            matched = _NAME.match(requirement)
            if matched is not None and "extra ==" not in requirement:
                waiting.append(matched[0])
    return tuple(
        Dependency(name=name, uri=f"{PACKAGE_PREFIX}{name}@{version}") for name, version in sorted(found.items())
    )
