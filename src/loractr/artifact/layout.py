"""Where things lie in an artifact, and the manifest that vouches for them.

    manifest.json                       this file's `Manifest`
    config.json  schema.json  vocabulary/<field>.parquet  activeness/<division>.parquet
    profile.json                        what the model was trained on, where that is known
    base/model.safetensors              embedding + backbone + head; never changes
    adapters/<division>/<domain>/<version>/{adapter_config.json, adapter_model.safetensors,
                                            metrics.json}
    domains/<division>/<domain>/<version>/{model.safetensors, metrics.json}      whole models
    mixers/<name>/<version>/model.safetensors                gates, fusions, norms of cells

Safetensors, JSON and Parquet only: nothing in an artifact can run code when it is read.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints, ValidationError

from loractr.batch import EVERY
from loractr.data.encode import file_name
from loractr.errors import ArtifactError, some
from loractr.method import ALL_ROWS
from loractr.model import CTRModel
from loractr.schema import Division, Record, Schema

KIND: Literal["loractr artifact"] = "loractr artifact"
FORMAT: Literal[1] = 1
"""Version of this layout; a reader refuses every other one."""

MANIFEST = "manifest.json"
CONFIG = "config.json"
SCHEMA = "schema.json"
BASE = "base/model.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
WHOLE_MODEL = "model.safetensors"
METRICS = "metrics.json"
ENCODERS = ("vocabulary/", "activeness/")
"""Folders that hold the encoders."""

FIRST_VERSION = "v1"
Version = Annotated[str, StringConstraints(pattern=r"^v[1-9][0-9]*$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PerDomain = Literal["adapters", "domains"]


class Active(Record):
    """The version in use, of everything that has versions: division → domain → version."""

    adapters: dict[str, dict[str, Version]] = {}
    """Low-rank experts, one per domain."""
    domains: dict[str, dict[str, Version]] = {}
    """Whole models, one per domain."""
    mixers: dict[str, Version] = {}
    """Gates and fusions, by name; one that is stored but not named here does not act."""


class Manifest(Record):
    """What an artifact is made of. It is written last, so an artifact that has one is complete."""

    kind: Literal["loractr artifact"] = KIND
    """What this manifest is of: other things of ours have a manifest.json as well."""
    format: Literal[1] = FORMAT
    """Version of the layout."""
    base: Digest
    """SHA-256 of the base model; every adapter names the base that it was trained for."""
    active: Active
    """Versions in use."""
    files: dict[str, Digest]
    """SHA-256 of every file but this one, by its path within the artifact."""


def version_folder(kind: PerDomain, division: str, domain: str, version: str) -> str:
    """Folder of one version of a domain's adapter or whole model, within the artifact."""
    return f"{kind}/{folder_name(division)}/{folder_name(domain)}/{version}"


def mixer_file(name: str, version: str) -> str:
    """File of one version of a mixer, within the artifact."""
    return f"mixers/{folder_name(name)}/{version}/{WHOLE_MODEL}"


def divisions_of(model: CTRModel, schema: Schema) -> list[Division]:
    """The divisions whose domains own parts of a model, in the order of its routes."""
    return [
        Division(name=ALL_ROWS, column=ALL_ROWS, domains=(ALL_ROWS,))
        if place == EVERY
        else schema.divisions[place]
        for place in model.routing.divisions
    ]


def folder_name(name: str) -> str:
    """A folder for a domain or division of any name; different names have different folders.

    As `file_name`, with a leading dot encoded too; the empty name is "+".
    """
    safe = file_name(name, longest=120)
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    return safe or "+"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Contents:
    """An artifact on disk. Every file is checked against the manifest before it is read."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path) -> "Contents":
        """Read the manifest.

        Raises:
            ArtifactError: there is no artifact at `path`, its manifest is damaged, or its format is
                one that this version cannot read.
        """
        try:
            values = json.loads((path / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise _no_artifact(path, f"it has no {MANIFEST}") from None
        except ValueError as error:
            raise _damaged(path / MANIFEST, f"it is not valid JSON ({error})") from error
        if not isinstance(values, dict) or values.get("kind") != KIND:
            raise _no_artifact(path, f"its {MANIFEST} is that of something else")
        if values.get("format") != FORMAT:
            raise ArtifactError(
                f"{path} is an artifact of format {values.get('format')!r}; this version of loractr"
                f" reads format {FORMAT}.",
                fix="load it with the version of loractr that wrote it, or save the model again.",
            )
        try:
            manifest = Manifest.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _damaged(path / MANIFEST, f"{place}: {first['msg']}") from error
        if manifest.files.get(BASE) != manifest.base:
            raise _damaged(path / MANIFEST, f"its base is not the SHA-256 of {BASE}")
        return Contents(path, manifest)

    def checked(self, name: str) -> Path:
        """Where the file `name` lies, after a look at every byte of it.

        Raises:
            ArtifactError: it is missing, or is not what was written.
        """
        path = self.path / name
        wanted = self.manifest.files.get(name)
        if wanted is None:
            raise _damaged(self.path / MANIFEST, f"it does not list {name!r}")
        try:
            found = digest(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise _damaged(path, "it is missing") from None
        if found != wanted:
            raise _damaged(
                path, f"its SHA-256 is {found[:12]}…, that of the saved file {wanted[:12]}…"
            )
        return path

    def active(
        self, kind: PerDomain, divisions: Sequence[Division], *, complete: bool = False
    ) -> dict[tuple[str, str], str]:
        """(division, domain) → folder of the active version.

        Args:
            kind: Adapters or whole models.
            divisions: Divisions that may have some.
            complete: Whether every one of their domains must.

        Raises:
            ArtifactError: the manifest does not fit the schema.
        """
        versions = getattr(self.manifest.active, kind)
        folders = {
            (division, domain): version_folder(kind, division, domain, version)
            for division, domains in versions.items()
            for domain, version in domains.items()
        }
        known = {(division.name, domain) for division in divisions for domain in division.domains}
        unknown, missing = folders.keys() - known, known - folders.keys()
        if unknown:
            reason = f"it names {kind} of {_list(unknown)}, which {SCHEMA} does not have"
            raise _damaged(self.path / MANIFEST, reason)
        if complete and missing:
            raise _damaged(self.path / MANIFEST, f"it names no {kind} of {_list(missing)}")
        return folders

    def json(self, name: str) -> Any:
        """The values of a JSON file.

        Raises:
            ArtifactError: as `checked`.
        """
        return json.loads(self.checked(name).read_bytes())


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    return some(f"{division}: {domain}" for division, domain in sorted(pairs))


def _no_artifact(path: Path, reason: str) -> ArtifactError:
    inside = path / "artifact"
    if (inside / MANIFEST).exists():
        fix = f"name the artifact within that run: {inside}."
    else:
        fix = "name the folder that `save` wrote: RUN/artifact after `loractr train --out RUN`."
    found = reason if path.exists() else "it does not exist"
    return ArtifactError(f"{path} is not an artifact: {found}.", fix=fix)


def _damaged(file: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{file} is damaged: {reason}.", fix="copy the artifact again, or save the model again."
    )
