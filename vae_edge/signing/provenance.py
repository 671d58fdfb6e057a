"""`provenance.json`: where a bundle comes from, as an in-toto statement with the predicate of SLSA, version 1.

Its subject are the bundle's files with their digests, the manifest included; a signature covers it like every other
file. `vae_edge.export.provenance` writes it, `vae-edge inspect` shows it, and nothing depends on it. Formats:
https://github.com/in-toto/attestation/tree/main/spec/v1 and https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from vae_edge.errors import BundleError
from vae_edge.records import JsonLimits, Record, Sha256, open_regular, parse_json, read_bounded
from vae_edge.signing.envelope import Subject, in_short
from vae_edge.signing.files import PROVENANCE_FILE

EXPORT_TYPE, REBUILD_TYPE = "https://vae-edge/export/v1", "https://vae-edge/rebuild/v1"
"""How a bundle was made: from a run, or from the ONNX file of another bundle."""
BUILDER = "https://vae-edge/vae-export"
PACKAGE_PREFIX = "pkg:pypi/"
"""Of the name of a Python package, with its version behind an @ (https://github.com/package-url/purl-spec)."""
_LIMITS = JsonLimits(1_000_000, 20_000)


class Dependency(Record):
    """What went into the bundle: data, by their hash, or a package, by its name and version."""

    name: str
    uri: str | None = None
    digest: dict[Literal["sha256"], Sha256] | None = None


class BuildDefinition(Record):
    """What was made, and of what."""

    buildType: str  # noqa: N815 - as the format spells it, here and below
    externalParameters: dict[str, str]  # noqa: N815
    resolvedDependencies: tuple[Dependency, ...] = Field(max_length=2_000)  # noqa: N815


class Builder(Record):
    """What made it."""

    id: str
    version: dict[str, str]


class Metadata(Record):
    """When it was made."""

    finishedOn: str  # noqa: N815


class RunDetails(Record):
    """What made it, and when."""

    builder: Builder
    metadata: Metadata


class Predicate(Record):
    """The predicate of SLSA's provenance."""

    buildDefinition: BuildDefinition  # noqa: N815
    runDetails: RunDetails  # noqa: N815


class ProvenanceStatement(Record):
    """The statement."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(
        default="https://in-toto.io/Statement/v1", alias="_type", serialization_alias="_type"
    )
    subject: tuple[Subject, ...] = Field(min_length=1, max_length=1_000)
    predicateType: Literal["https://slsa.dev/provenance/v1"] = "https://slsa.dev/provenance/v1"  # noqa: N815
    predicate: Predicate

    @property
    def packages(self) -> list[str]:
        """The Python packages that were in use, as `numpy 2.4.6`."""
        found = self.predicate.buildDefinition.resolvedDependencies
        return [
            each.uri.removeprefix(PACKAGE_PREFIX).replace("@", " ")
            for each in found
            if each.uri is not None and each.uri.startswith(PACKAGE_PREFIX) and each.digest is None
        ]

    def differing(self, sha256_of: Mapping[str, str]) -> list[str]:
        """Return the files that are not, or no longer, those of the statement.

        Args:
            sha256_of: SHA-256 of the bundle's files as they are.
        """
        stated = {each.name: each.digest["sha256"] for each in self.subject}
        names = {*stated, *sha256_of}
        return sorted(name for name in names if stated.get(name) != sha256_of.get(name))


def read_provenance(folder: Path) -> ProvenanceStatement | None:
    """Read where a bundle says it comes from; None: it is older than such statements.

    Raises:
        BundleError: it is damaged, or a statement of another kind.
    """
    path = folder / PROVENANCE_FILE
    try:
        with open_regular(path, links=False) as file:
            return ProvenanceStatement.model_validate(parse_json(read_bounded(file, _LIMITS.size_bytes), _LIMITS))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path} cannot be read: {in_short(error)}") from error
