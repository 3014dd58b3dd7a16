"""What a prepared data set depends on, as one hash: the key of the cache."""

import hashlib
import json
from pathlib import Path
from typing import Any

from loractr.data.config import DataConfig
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


def fingerprint(path: Path | None) -> list[dict[str, Any]]:
    """Name, size, and content hash or time of change, of the file or of all files under `path`."""
    if path is None:
        return []
    root = path if path.is_dir() else path.parent
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [{"file": file.relative_to(root).as_posix(), **_state(file)} for file in files]


def _state(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {"bytes": None}  # the source will say what is missing
    status = file.stat()
    if status.st_size > HASHED_BYTES:
        return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": status.st_size, "sha256": digest}
