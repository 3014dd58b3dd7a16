"""One way to read a column: as ids (Int64 or text), as numbers, as lists of ids.

The same id must be the same whether it comes from a Parquet file of integers, a CSV of text or a
JSON request, so every id is brought to one of two forms: Int64, for integer columns that fit, or
its canonical text (`true`, `1` for 1.0, `2.5`). An Int64 and a text are the same id when the
integer's digits are that text.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.errors import DataError, some
from loractr.schema import Field

Positions = NDArray[np.int64]

_INT64 = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
_TEXT = (pl.UInt64, pl.Int128, pl.UInt128, pl.String, pl.Categorical, pl.Enum, pl.Boolean)
_DATES = (pl.Date, pl.Datetime, pl.Time)
# up to here a float knows its last digit
_EXACT: dict[type[pl.DataType], int] = {pl.Float32: 2**24, pl.Float64: 2**53}


def ids(values: pl.Series, what: str) -> pl.Series:
    """`values` as ids: Int64 or text; null where missing (NaN is missing too).

    Args:
        values: Any column of integers, text, booleans, floats, decimals, dates.
        what: Who reads the column, for error messages: "field 'user'".

    Raises:
        DataError: Floats so large that neighbouring ids have become one, or a nested column.
    """
    if values.dtype in _INT64:
        return values.cast(pl.Int64)
    if values.dtype in _TEXT or values.dtype in _DATES or values.dtype == pl.Null:
        return values.cast(pl.String)
    if values.dtype in _EXACT:
        return _float_ids(values, what)
    if values.dtype == pl.Decimal:
        return values.cast(pl.String).str.replace(r"\.0+$|(\.\d*?)0+$", "$1")
    raise DataError(
        f"{what} reads column {values.name!r} of type {values.dtype}, which holds no ids.",
        fix="use a column of integers, text, booleans or dates (lists: `kind: sequence`).",
    )


def _float_ids(values: pl.Series, what: str) -> pl.Series:
    values = values.fill_nan(None)
    limit = _EXACT[type(values.dtype)]
    lost = values.filter(values.abs() >= limit)
    if len(lost):
        raise DataError(
            f"{what} reads ids from column {values.name!r} of type {values.dtype}, but {len(lost)}"
            f" of them, e.g. {lost[0]:.0f}, are {limit:,} or more: their last digits are lost.",
            fix="store that column as integers or text.",
        )
    whole = values == values.floor()
    text = values.cast(pl.String)
    return values.cast(pl.Int64, strict=False).cast(pl.String).zip_with(whole.fill_null(True), text)


def text(value: int | str | float | bool) -> str:
    """Canonical text of one value, as `ids` gives it: `true`, `1` for 1.0, `2.5`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def narrowed(values: pl.Series) -> pl.Series:
    """Canonical ids as Int64 where all of them are the digits of one, else as they are."""
    if values.dtype == pl.Int64:
        return values
    integers = values.cast(pl.Int64, strict=False)
    return integers if values.eq_missing(integers.cast(pl.String)).all() else values


def numbers(values: pl.Series, what: str, rows: Positions) -> NDArray[np.float64]:
    """`values` (N,) as numbers, NaN where missing.

    Raises:
        DataError: Text that is no number, an infinite number, or a column that holds no numbers.
    """
    if not (values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.String, pl.Null)):
        raise DataError(
            f"{what} reads numbers from column {values.name!r} of type {values.dtype}.",
            fix="use a column of numbers, or declare the field as categorical.",
        )
    parsed = values.cast(pl.Float64, strict=False)
    wrong = (parsed.is_null() & values.is_not_null()) | parsed.is_infinite().fill_null(False)
    if wrong.any():
        raise DataError(
            f"{what} reads numbers from column {values.name!r}; {wrong.sum()} of its values are"
            f" none or infinite: {some(values.filter(wrong).unique(maintain_order=True).head(5))}"
            f" ({at(rows[wrong.to_numpy()])}).",
            fix="clean the column, or declare the field as categorical.",
        )
    return parsed.fill_null(float("nan")).to_numpy()


def bags(values: pl.Series, field: Field) -> tuple[pl.Series, Positions]:
    """A sequence column as its ids (L,), one row after the other, and offsets (N + 1,).

    A row without any id, null or empty, holds one missing id. Empty pieces of a text are left out.

    Raises:
        DataError: The column holds neither lists nor text that `field.separator` splits.
    """
    what = f"field {field.name!r}"
    if values.dtype == pl.Array:
        values = values.arr.to_list()
    if values.dtype == pl.String and field.separator is not None:
        pieces = values.str.split(field.separator)
        values = pieces.list.eval(pl.element().filter(pl.element() != ""))
    if values.dtype == pl.Null:
        values = values.cast(pl.List(pl.String))
    if values.dtype != pl.List:
        raise DataError(
            f"{what} reads sequences from column {values.name!r} of type {values.dtype}.",
            fix="use a list column, or text together with `separator`.",
        )
    if field.max_length is not None:
        values = values.list.head(field.max_length)
    lengths = values.list.len().fill_null(0).clip(1).to_numpy()
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return ids(values.explode(empty_as_null=True, keep_nulls=True), what), offsets


def at(rows: Positions) -> str:
    """The first few rows in words, for error messages; rows count from 0."""
    more = ", …" if len(rows) > 5 else ""
    return (
        f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}{more}, counted from 0"
    )
