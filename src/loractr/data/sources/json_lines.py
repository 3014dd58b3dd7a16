"""Files with one JSON object a line, gzip or not: checked once, then read lazily by Polars."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import polars as pl

from loractr.data.sources.base import refuse_empty
from loractr.errors import DataError, MalformedLineError

Columns = Mapping[str, type[str | int | float]]
"""Key → what its value must be; every object has all of them."""

_TYPES: dict[type, pl.DataType] = {str: pl.String(), int: pl.Int64(), float: pl.Float64()}


def scan(path: Path, columns: Columns) -> pl.LazyFrame:
    """The named keys of every line.

    Raises:
        DataError: the file is empty or unreadable.
        MalformedLineError: a line that is no JSON object, or lacks a key, or has a value of another
            type, with its number.
    """
    refuse_empty(path)
    frame = pl.scan_ndjson(path, schema={name: _TYPES[kind] for name, kind in columns.items()})
    try:
        gaps = frame.select(pl.all().null_count()).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        _raise_first_bad_line(path, columns)
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read: {reason}.", fix="fetch it again.") from error
    if any(gaps.row(0)):
        _raise_first_bad_line(path, columns)
    return frame


def _raise_first_bad_line(path: Path, columns: Columns) -> None:
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, start=1):
                problem = _problem(line, columns)
                if problem:
                    raise MalformedLineError(path, number, problem)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}.", fix="fetch it again.") from error


def _problem(line: bytes, columns: Columns) -> str | None:
    """What is wrong with a line, if anything. Blank lines are none."""
    if not line.strip():
        return None
    try:
        values = json.loads(line)
    except ValueError as error:
        return f"not JSON ({error})"
    if not isinstance(values, dict):
        return f"expected a JSON object, found {type(values).__name__}"
    for name, kind in columns.items():
        if name not in values:
            return f"the key {name!r} is missing"
        accepted = (int, float) if kind is float else kind
        if not isinstance(values[name], accepted) or isinstance(values[name], bool):
            return f"{name} must be {kind.__name__}, not {values[name]!r}"
    return None


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
