"""What a prepared data set depends on, as one hash: the key of the cache."""

import hashlib
import json
from pathlib import Path
from typing import Any

from loractr.data.config import DataConfig
from loractr.data.sources import table
from loractr.data.store import FORMAT
from loractr.schema import Schema

HASHED_BYTES = 1 << 26
"""Files up to this size count by their content, larger ones by size and time of change."""


def cache_key(config: DataConfig, schema: Schema | None, source: list[dict[str, Any]]) -> str:
    """SHA-256 over the data configuration (without the path), the source's files and the format.

    Args:
        config: The `data` section.
        schema: Given instead of the configuration's, if it was.
        source: As of `fingerprint`.
    """
    parts = {
        "format": FORMAT,
        "config": config.model_dump(mode="json", exclude={"path"}),
        "schema": None if schema is None else schema.model_dump(mode="json"),
        "source": source,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint(config: DataConfig) -> list[dict[str, Any]]:
    """Name, size, and content hash or time of change, of each file that the source may read: the
    file itself, those of the folder, or those that the pattern means."""
    path = config.path
    if path is None:
        return []
    if config.source == "table":
        files = table.files(path)
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    else:
        files = [path] if path.is_file() else []  # the source will say what is missing
    return [{"file": file.name, **_state(file)} for file in files]


def _state(file: Path) -> dict[str, Any]:
    status = file.stat()
    if status.st_size > HASHED_BYTES:
        return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": status.st_size, "sha256": digest}
