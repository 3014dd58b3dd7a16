"""CSV files with a header: checked once in a fast pass, then read lazily by Polars.

Polars fills short lines with nulls and does not say on which line a value is wrong, so the check
comes first (shape by PyArrow, values by Polars, both block by block in bounded memory). Only when
it fails is the file read line by line, to name the first bad line.
"""

import csv
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.csv

from loractr.data.sources.base import refuse_empty
from loractr.errors import DataError, MalformedLineError, some

Types = Mapping[str, type[pl.String | pl.Int64 | pl.Float64]]
"""Column → how its text is read; columns that are not named stay text."""


def scan(path: Path, types: Types, *, separator: str = ",") -> pl.LazyFrame:
    """All columns of the file; an empty value is null.

    Raises:
        DataError: the file is empty, unreadable, or lacks one of the columns.
        MalformedLineError: a line has too few or too many values, or one that is not of its type.
    """
    columns = header(path, separator=separator)
    missing = [name for name in types if name not in columns]
    if missing:
        raise DataError(
            f"{path} lacks the columns {some(missing)}; it has {some(columns)}.",
            fix="use the official file, with its header line.",
        )
    frame = _text(path, separator).with_columns(
        pl.col(name).cast(kind) for name, kind in types.items() if kind is not pl.String
    )
    try:
        _check_shape(path, columns, separator)
        _check_values(path, types, separator)
    except (pa.ArrowInvalid, pl.exceptions.PolarsError) as error:
        _raise_first_bad_line(path, columns, types, separator)
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}.") from error
    return frame


def header(path: Path, *, separator: str = ",") -> list[str]:
    """Names of the columns: the file's first line."""
    refuse_empty(path)
    with _open(path) as file:
        columns = next(csv.reader(file, delimiter=separator), [])
    if not columns or "" in columns:
        raise MalformedLineError(path, 1, "the header must name every column")
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise MalformedLineError(path, 1, f"the header names {some(sorted(repeated))} twice")
    return columns


def _text(path: Path, separator: str) -> pl.LazyFrame:
    return pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)


def _check_shape(path: Path, columns: list[str], separator: str) -> None:
    """Every line has as many values as the header. Raises ArrowInvalid."""
    rows = 0
    parse = pyarrow.csv.ParseOptions(
        delimiter=separator, newlines_in_values=True, ignore_empty_lines=len(columns) == 1
    )
    convert = pyarrow.csv.ConvertOptions(
        include_columns=columns[:1], column_types={columns[0]: pa.string()}
    )
    with pyarrow.csv.open_csv(path, parse_options=parse, convert_options=convert) as blocks:
        for block in blocks:
            rows += block.num_rows
    if not rows:
        raise DataError(f"{path} has a header but no rows.", fix="write or fetch the file again.")


def _check_values(path: Path, types: Types, separator: str) -> None:
    """Every value is of its column's type. Raises PolarsError."""
    casts = [pl.col(n).cast(t).null_count() for n, t in types.items() if t is not pl.String]
    _text(path, separator).select(pl.len(), *casts).collect(engine="streaming")


def _raise_first_bad_line(path: Path, columns: list[str], types: Types, separator: str) -> None:
    typed = [
        (place, name, types[name])
        for place, name in enumerate(columns)
        if types.get(name, pl.String) is not pl.String
    ]
    with _open(path) as file:
        records = csv.reader(file, delimiter=separator)
        next(records)
        for values in records:
            problem = _problem(values, columns, typed)
            if problem:
                raise MalformedLineError(path, records.line_num, problem)


def _problem(
    values: list[str],
    columns: list[str],
    typed: list[tuple[int, str, type[pl.String | pl.Int64 | pl.Float64]]],
) -> str | None:
    """What is wrong with one line, if anything."""
    if len(values) != len(columns):
        return f"expected {len(columns)} values ({', '.join(columns[:6])}…), found {len(values)}"
    if any("\udc80" <= letter <= "\udcff" for value in values for letter in value):
        return "the text is not UTF-8"
    for place, name, kind in typed:
        if values[place] and pl.Series([values[place]]).cast(kind, strict=False)[0] is None:
            whole = "a whole number" if kind is pl.Int64 else "a number"
            return f"{name} must be {whole}, not {values[place][:40]!r}"
    return None


def _open(path: Path) -> IO[str]:
    """The file as text, whatever its bytes: those that are not UTF-8 become lone surrogates."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
