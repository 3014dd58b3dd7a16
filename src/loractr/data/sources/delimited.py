"""CSV files with a header: checked once in a fast pass, then read lazily by Polars.

Polars fills short lines with nulls and does not say on which line a value is wrong, so a check
comes first: the shape by PyArrow, the values by Polars, both block by block in bounded memory. Only
when it fails is the file read line by line, to name the first bad line.
"""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv
from polars import selectors as cs
from polars.selectors import by_name

from loractr.data.sources.bad_lines import raise_first_bad_line
from loractr.data.sources.content import unpacked, unreadable
from loractr.data.sources.readings import Readings, known, read, unread
from loractr.data.sources.text_file import TextFile, opened
from loractr.data.sources.text_form import STANDARD, TextForm
from loractr.errors import DataError, some

_BLOCK, _LARGEST_BLOCK = 1 << 23, 1 << 30


def scan(path: Path, readings: Readings, form: TextForm = STANDARD) -> pl.LazyFrame:
    """All columns of the file that have a name; an empty value is null.

    Raises:
        DataError: the file is empty, unreadable, or lacks one of the columns.
        MalformedLineError: a line has too few or too many values, or one that cannot be read.
    """
    file = opened(path, form)
    missing = [name for name in readings if name not in set(file.columns)]
    if missing:
        raise DataError(
            f"{path} lacks the columns {some(missing)}; it has {some(file.named)}.",
            fix="use a file that has them, with the header as its first line.",
        )
    frame, rows = checked(file, readings)
    if not rows:
        raise DataError(f"{path} has a header but no rows.", fix="write or fetch the file again.")
    return frame


def header(path: Path) -> list[str]:
    """Names of the columns: the file's first line."""
    return opened(path).named


def text(file: TextFile) -> pl.LazyFrame:
    """All columns that have a name as text, unchecked."""
    names = [name or f"\0{place}" for place, name in enumerate(file.columns)]
    frame = pl.scan_csv(
        file.text,
        separator=file.form.separator or ",",
        quote_char=file.form.quote or None,
        eol_char=file.line_end,
        skip_lines=file.above,
        new_columns=names,
        infer_schema=False,
        glob=False,
    )
    return frame if all(file.columns) else frame.select(cs.by_name(file.named))


def checked(file: TextFile, readings: Readings) -> tuple[pl.LazyFrame, int]:
    """The columns that have a name, read as `readings` say, and the number of rows.

    Blank lines are no rows where there are several columns.

    Raises:
        MalformedLineError: a line has too few or too many values, or one that cannot be read.
        DataError: the file cannot be read for another reason.
    """
    good = file
    rows = 0 if next(file.rows(), None) is None else _rows(file, readings)
    if rows is None:
        good = file.without_blank_lines()
        rows = _rows(good, readings)
    if rows is None:
        raise DataError(
            f"{file.path} cannot be read: its lines do not all end in the same way.",
            fix="write it with one kind of line end, \\n or \\r\\n.",
        )
    frame = read(text(good), readings, file.form)
    if file.form.decimal == ",":  # where a column of ids has a gap, pandas writes 52 as 52,0
        others = [name for name in file.named if name not in readings]
        whole = by_name(*others).str.replace(r"^(\s*-?\d+),(0+\s*)$", "$1.$2")
        frame = frame.with_columns(whole) if others else frame
    return frame, rows


def _rows(file: TextFile, readings: Readings) -> int | None:
    """Number of rows; None where it has to be read without its blank lines.

    Raises:
        MalformedLineError: there is a bad line.
    """
    try:
        rows = _well_shaped_rows(file)
        return rows if _readable_rows(file, readings) == rows else None
    except (pa.ArrowInvalid, pl.exceptions.PolarsError, OSError) as error:
        raise_first_bad_line(file, readings)
        if isinstance(error, pa.ArrowInvalid):
            return None  # of the shapes of its lines, only that of blank ones is not the header's
        raise unreadable(file.path, error) from error


def _well_shaped_rows(file: TextFile) -> int:
    """Number of rows. Raises ArrowInvalid unless all have as many values as the header."""
    try:
        return _rows_by_blocks(file, _BLOCK)
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        return _rows_by_blocks(file, _LARGEST_BLOCK)


def _rows_by_blocks(file: TextFile, block: int) -> int:
    """As `_well_shaped_rows`; a line longer than a block of so many bytes is an error, too."""
    parse = pyarrow.csv.ParseOptions(
        delimiter=file.form.separator,
        quote_char=file.form.quote or False,
        newlines_in_values=True,
        ignore_empty_lines=len(file.columns) > 1,
    )
    wide = 4 * sum(len(name) + 1 for name in file.columns)
    blocks = pyarrow.csv.ReadOptions(
        skip_rows=file.above,
        autogenerate_column_names=True,  # the header is a row, too: a name may be there twice
        block_size=max(block, wide),
    )
    first = pyarrow.csv.ConvertOptions(include_columns=["f0"], column_types={"f0": pa.binary()})
    with (
        unpacked(file.text, file.packing) as stream,
        pyarrow.csv.open_csv(
            stream, read_options=blocks, parse_options=parse, convert_options=first
        ) as batches,
    ):
        rows: int = sum(batch.num_rows for batch in batches) - 1
    return rows


def _readable_rows(file: TextFile, readings: Readings) -> int:
    """Number of rows that Polars finds. Raises PolarsError when it cannot read a value."""
    bad = [unread(name, reading).sum() for name, reading in readings.items()]
    last = pl.last().null_count().alias("last")  # with a column, the encoding is checked
    counts = known(text(file), readings, file.form).select(
        pl.len().alias("rows"),
        last,
        pl.sum_horizontal(pl.lit(0), *bad).alias("bad"),
    )
    found = counts.collect(engine="streaming").row(0, named=True)
    if found["bad"]:
        raise pl.exceptions.ComputeError(f"{found['bad']} of its values cannot be read")
    return int(found["rows"])
