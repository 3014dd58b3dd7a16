"""What a prepared data set depends on, as one hash: the key of the cache."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractr.data.config import DataConfig
from loractr.data.sources.files import find
from loractr.data.store import FORMAT
from loractr.errors import some
from loractr.schema import Schema

HASHED_BYTES = 1 << 26
"""Files up to this size count by their content, larger ones by size and time of change."""


@dataclass(frozen=True)
class Identity:
    """What a prepared data set was or would be made from."""

    key: str
    """As of `cache_key`."""
    config: dict[str, Any]
    """The `data` section as plain values, without the path."""
    files: list[dict[str, Any]]
    """As of `fingerprint`."""
    format: int = FORMAT
    """Of the prepared data."""

    @staticmethod
    def of(config: DataConfig) -> "Identity":
        """That of the source of `config`."""
        files = fingerprint(config)
        return Identity(cache_key(config, None, files), _plain(config), files)

    def changes(self, before: Mapping[str, Any]) -> list[str]:
        """What is not as in `before`, an identity as plain values (`asdict`), in words."""
        if before.get("key") == self.key:
            return []
        if before.get("format") != self.format:
            return [f"its prepared data are of format {before.get('format')}, now {self.format}"]
        found = []
        old, new = before.get("config", {}), self.config
        found += [
            f"data.{name} was {_short(old.get(name))} and is {_short(new.get(name))}"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
        there = {file["file"]: file for file in before.get("files", [])}
        here = {file["file"]: file for file in self.files}
        for what, names in (
            ("new", here.keys() - there.keys()),
            ("gone", there.keys() - here.keys()),
            ("changed", {name for name in here.keys() & there if here[name] != there[name]}),
        ):
            if names:
                found.append(f"{what}: {some(sorted(names))}")
        return found or ["the order of its files"]


def _plain(config: DataConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"path"})


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def cache_key(config: DataConfig, schema: Schema | None, source: list[dict[str, Any]]) -> str:
    """SHA-256 over the data configuration (without the path), the source's files and the format.

    Args:
        config: The `data` section.
        schema: Given instead of the configuration's, if it was.
        source: As of `fingerprint`.
    """
    parts = {
        "format": FORMAT,
        "config": _plain(config),
        "schema": None if schema is None else schema.model_dump(mode="json"),
        "source": source,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint(config: DataConfig) -> list[dict[str, Any]]:
    """Name (below the folder or pattern), size, and content hash or time of change, of each file
    that the source may read: the file itself, those of the folder, or those that the pattern
    means."""
    path = config.path
    if path is None:
        return []
    if config.source == "table":
        return [{"file": found.name, **_state(found.path)} for found in find(path)]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    else:
        files = [path] if path.is_file() else []  # the source will say what is missing
    return [{"file": file.name, **_state(file)} for file in files]


def known_again(files: Iterable[Path], known: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Those of `files` whose content is that of a file in `known`, as of `fingerprint`; whatever
    their names."""
    states = [{**one, "file": ""} for one in known]
    sizes = {one["bytes"] for one in states}
    return [
        file
        for file in files
        if file.stat().st_size in sizes and {"file": "", **_state(file)} in states
    ]


def _state(file: Path) -> dict[str, Any]:
    status = file.stat()
    if status.st_size > HASHED_BYTES:
        return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": status.st_size, "sha256": digest}
