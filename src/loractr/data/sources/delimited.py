"""CSV files with a header: checked once in a fast pass, then read lazily by Polars.

Polars fills short lines with nulls and does not say on which line a value is wrong, so a check
comes first: the shape by PyArrow, the values by Polars, both block by block in bounded memory. Only
when it fails is the file read line by line, to name the first bad line.
"""

import csv
import gzip
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.csv

from loractr.data.sources.base import refuse_empty
from loractr.errors import DataError, MalformedLineError, some


@dataclass(frozen=True)
class Reading:
    """How the text of a column becomes values."""

    what: str
    """What a value must be, for the error."""
    parse: Callable[[pl.Expr, bool], pl.Expr]
    """(text, strict) → values; what cannot be read is an error, or null when not strict."""


def _moment(text: pl.Expr, strict: bool) -> pl.Expr:
    plain = text.str.replace("T", " ", literal=True).str.strip_suffix("Z")
    return plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=strict)


WHOLE = Reading("a whole number", lambda text, strict: text.cast(pl.Int64, strict=strict))
NUMBER = Reading("a number", lambda text, strict: text.cast(pl.Float64, strict=strict))
DATE = Reading("a date like 2026-01-31", lambda text, strict: text.str.to_date("%F", strict=strict))
MOMENT = Reading("a moment in UTC like 2026-01-31T12:00:00", _moment)

Readings = Mapping[str, Reading]
"""Column → how it is read; columns that are not named stay text."""


def scan(path: Path, readings: Readings, *, separator: str = ",") -> pl.LazyFrame:
    """All columns of the file; an empty value is null.

    Raises:
        DataError: the file is empty, unreadable, or lacks one of the columns.
        MalformedLineError: a line has too few or too many values, or one that cannot be read.
    """
    columns = header(path, separator=separator)
    missing = [name for name in readings if name not in columns]
    if missing:
        raise DataError(
            f"{path} lacks the columns {some(missing)}; it has {some(columns)}.",
            fix="use a file that has them, with the header as its first line.",
        )
    try:
        _check(path, columns, readings, separator)
    except (pa.ArrowInvalid, pl.exceptions.PolarsError, OSError) as error:
        _raise_first_bad_line(path, columns, readings, separator)
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} cannot be read: {reason}.", fix="write the file again.") from error
    return text(path, separator=separator).with_columns(
        reading.parse(pl.col(name), True) for name, reading in readings.items()
    )


def header(path: Path, *, separator: str = ",") -> list[str]:
    """Names of the columns: the file's first line."""
    refuse_empty(path)
    try:
        with _open(path) as file:
            columns = next(csv.reader(file, delimiter=separator), [])
    except (OSError, EOFError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.", fix="write the file again.") from error
    if not columns or "" in columns:
        raise MalformedLineError(path, 1, "the header must name every column")
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise MalformedLineError(path, 1, f"the header names {some(sorted(repeated))} twice")
    return columns


def text(path: Path, *, separator: str = ",") -> pl.LazyFrame:
    """All columns as text, unchecked."""
    return pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)


def _check(path: Path, columns: list[str], readings: Readings, separator: str) -> None:
    """Raise ArrowInvalid or PolarsError unless every line and every value can be read."""
    shaped = _well_shaped_rows(path, columns, separator)
    if not shaped:
        raise DataError(f"{path} has a header but no rows.", fix="write or fetch the file again.")
    read = {name: pl.col(name) for name in columns}
    read |= {name: reading.parse(read[name], True) for name, reading in readings.items()}
    every = pl.struct(pl.len(), *(values.null_count() for values in read.values()))
    counts = text(path, separator=separator).select(every).collect(engine="streaming")
    if counts.item()["len"] != shaped:
        raise pa.ArrowInvalid("it does not fall into rows; each line must end with \\n or \\r\\n")


def _well_shaped_rows(path: Path, columns: list[str], separator: str) -> int:
    """Number of rows with as many values as the header. Blank lines do not count as rows."""
    parse = pyarrow.csv.ParseOptions(
        delimiter=separator, newlines_in_values=True, ignore_empty_lines=len(columns) > 1
    )
    convert = pyarrow.csv.ConvertOptions(
        include_columns=columns[:1], column_types={columns[0]: pa.string()}
    )
    with pyarrow.csv.open_csv(path, parse_options=parse, convert_options=convert) as blocks:
        return sum(block.num_rows for block in blocks)


def _raise_first_bad_line(
    path: Path, columns: list[str], readings: Readings, separator: str
) -> None:
    """Read the file record by record until one is bad. Raises MalformedLineError, if one is."""
    pending: dict[int, list[str]] = {}
    for line, values, raw in _records(path, separator):
        problem = _shape_problem(values, raw, columns)
        if problem or len(pending) == _BATCH:
            _raise_first_unreadable(path, pending, columns, readings)
            pending.clear()
        if problem:
            raise MalformedLineError(path, line, problem)
        pending[line] = values
    _raise_first_unreadable(path, pending, columns, readings)


_BATCH = 10_000


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str], str]]:
    """(its first line, values, the text itself) of each record after the header."""
    raw: list[str] = []
    with _open(path) as file:
        records = csv.reader(_remembering(file, raw), delimiter=separator, strict=True)
        line = 1
        try:
            next(records)
            while True:
                raw.clear()
                line = records.line_num + 1
                values = next(records, None)
                if values is None:
                    return
                yield line, values, "".join(raw)
        except csv.Error as error:
            raise MalformedLineError(path, line, f"quotes do not match ({error})") from None
        except (OSError, EOFError) as error:  # compressed, and cut short
            raise DataError(f"{path} cannot be read: {error}.", fix="fetch it again.") from error


def _remembering(lines: IO[str], raw: list[str]) -> Iterator[str]:
    for line in lines:
        raw.append(line)
        yield line


def _shape_problem(values: list[str], raw: str, columns: list[str]) -> str | None:
    """What is wrong with one record before its values are looked at, if anything."""
    if not values and len(columns) > 1:
        return "the line is blank"
    if values and len(values) != len(columns):
        return f"expected {len(columns)} values ({some(columns)}), found {len(values)}"
    if any("\udc80" <= letter <= "\udcff" for letter in raw):
        return "the text is not UTF-8"
    for value in values:
        if '"' in value and '"' + value.replace('"', '""') + '"' not in raw:
            return f"a value with quotes in it must be quoted, its own quotes doubled: {value[:40]}"
    return None


def _raise_first_unreadable(
    path: Path, records: dict[int, list[str]], columns: list[str], readings: Readings
) -> None:
    problems = []
    for name, reading in readings.items():
        place = columns.index(name)
        values = [record[place] if record else "" for record in records.values()]
        written = pl.Series(values, dtype=pl.String)
        read = pl.select(reading.parse(pl.lit(written), False)).to_series()
        bad = (read.is_null() & (written != "")).arg_true()
        if len(bad):
            problem = f"{name} must be {reading.what}, not {written[bad[0]][:40]!r}"
            problems.append((list(records)[bad[0]], problem))
    if problems:
        raise MalformedLineError(path, *min(problems))


def _open(path: Path) -> IO[str]:
    """The file as text, whatever its bytes: those that are not UTF-8 become lone surrogates."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
