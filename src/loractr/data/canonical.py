"""One way to read a column: as ids (Int64 or text), as numbers, as lists of ids.

The same id must be the same whether it comes from a Parquet file of integers, a CSV of text or a
JSON request. A column is first spelt without loss, as Int64 or text; its `Reading` then brings
every spelling of an id to one form. An Int64 and a text are the same id when the integer's digits
are that text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import lists, moments
from loractr.data.id_type import FALSE, TRUE, WHOLE, IdTypes, lost_digits
from loractr.errors import DataError, some
from loractr.schema import Division, Field, IdType

Positions = NDArray[np.int64]

_INT64 = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
_WRITTEN = (pl.String, pl.Categorical, pl.Enum)
_TEXT = (pl.UInt64, pl.Int128, pl.UInt128, pl.Boolean, pl.Time, pl.Decimal, pl.Null, *_WRITTEN)
# up to here a float knows its last digit
_EXACT: dict[type[pl.DataType], int] = {pl.Float32: 2**24, pl.Float64: 2**53}


@dataclass(frozen=True)
class Reading:
    """How the values of a column become ids.

    Args:
        id_type: What they are; None for models older than this rule (`_as_before`), and for ids
            that are canonical already.
        missing: Texts that stand for a missing value.
    """

    id_type: IdType | None = None
    missing: tuple[str, ...] = ()


AS_BEFORE = Reading()


def column_of(frame: pl.DataFrame, name: str) -> pl.Series:
    """The column of that name, safe to work with: Polars takes `*` and `^id$` for patterns in what
    a series of such a name does as well, so it gets a blank in front."""
    values = frame[name]
    is_pattern = name == "*" or (name.startswith("^") and name.endswith("$"))
    return values.alias(f" {name}") if is_pattern else values


def ids(values: pl.Series, what: str, reading: Reading = AS_BEFORE) -> pl.Series:
    """`values` as ids: Int64 or text; null where missing (NaN is missing too).

    >>> ids(pl.Series(["52", "52.0", None]), "field 'user'", Reading("integer")).to_list()
    [52, 52, None]

    Args:
        values: Any column of integers, text, booleans, floats, decimals, dates.
        what: Who reads the column, for error messages: "field 'user'".
        reading: How.

    Raises:
        DataError: Floats so large that neighbouring ids have become one, or a nested column.
    """
    if reading.id_type is None:
        return _as_before(without(values, reading.missing), what)
    return read(spelled(values, what, reading.missing), what, reading.id_type)


def spelled(values: pl.Series, what: str, missing: Sequence[str] = ()) -> pl.Series:
    """`values` as Int64 or text, so that nothing of how they were written is lost but blanks around
    them.

    Raises:
        DataError: As `ids`.
    """
    dtype = values.dtype
    if dtype in _INT64:
        return values.cast(pl.Int64)
    if dtype in _WRITTEN:
        return without(values.cast(pl.String), missing).str.strip_chars()
    if dtype in _TEXT:
        return values.cast(pl.String)
    if dtype in (pl.Date, pl.Datetime):
        return moments.text(values)
    if dtype in _EXACT:
        return _checked_floats(values, what).cast(pl.String)
    raise DataError(
        f"{what} reads column {values.name!r} of type {dtype}, which holds no ids.",
        fix="use a column of integers, text, booleans or dates (lists: `kind: sequence`).",
    )


def read(spelled_: pl.Series, what: str, id_type: IdType) -> pl.Series:
    """Spelt values as canonical ids. A value that is not of the type stays the text it is.

    Raises:
        DataError: Whole numbers that were written as floats so large that digits are lost.
    """
    if id_type == "text" or (id_type == "integer" and spelled_.dtype == pl.Int64):
        return spelled_
    values = spelled_.cast(pl.String)
    if id_type == "integer":
        return _integers(values, what)
    if id_type == "boolean":
        return _booleans(values, "true", "false")
    parsed, clock = moments.series(values), moments.clock(values)
    texts = moments.text(parsed).zip_with(parsed.is_not_null(), clock)
    return texts.zip_with(texts.is_not_null(), values).alias(values.name)


def decided(values: pl.Series, what: str, missing: tuple[str, ...] = ()) -> Reading:
    """The reading of a column whose values are all here (N,)."""
    types = IdTypes(what)
    types.observe(spelled(values, what, missing))
    return Reading(types.decided(), missing)


def without(values: pl.Series, missing: Sequence[str]) -> pl.Series:
    """Text with null where it, blanks aside, stands for a missing value; other columns as is."""
    if not missing or values.dtype not in _WRITTEN:
        return values
    values = values.cast(pl.String)
    gap = _is_gap(values, missing)
    return values.set(gap, None) if gap.any() else values


def gaps(values: pl.Series, missing: Sequence[str]) -> dict[str, int]:
    """How often each text that stands for a missing value is there; blanks alone do not count."""
    if not missing or values.dtype not in _WRITTEN:
        return {}
    found = values.cast(pl.String)
    found = found.filter(_is_gap(found, missing)).str.strip_chars()
    counts = found.filter(found != "").value_counts()
    return dict(zip(*counts.get_columns(), strict=True)) if len(counts) else {}


def _is_gap(values: pl.Series, missing: Sequence[str]) -> pl.Series:
    return (values.str.strip_chars().is_in(list(missing)) & values.is_not_null()).fill_null(False)


def _integers(values: pl.Series, what: str) -> pl.Series:
    plain = values.cast(pl.Int64, strict=False)
    if values.eq_missing(plain.cast(pl.String)).all():
        return plain
    digits = values.str.extract(WHOLE)
    if values.str.contains(r"\d{16}\.0").any():
        number = digits.filter(values.str.contains(r"\.0*\s*$")).cast(pl.Float64, strict=False)
        lost = number.filter(number.abs() >= _EXACT[pl.Float64])
        if len(lost):
            raise lost_digits(what, f"{lost[0]:.0f}")
    digits = digits.set(digits == "-0", "0")
    return narrowed(digits.zip_with(digits.is_not_null(), _booleans(values, "1", "0")))


def _booleans(values: pl.Series, true: str, false: str) -> pl.Series:
    """Every spelling of true and false as `true` and `false`, other values as they are."""
    lower = values.str.strip_chars().str.to_lowercase()
    return values.set(lower.is_in(list(TRUE)), true).set(lower.is_in(list(FALSE)), false)


def _as_before(values: pl.Series, what: str) -> pl.Series:
    """Ids as models read them that do not say what their ids are: the type of the file decides."""
    if values.dtype in (pl.Date, pl.Datetime):
        return values.cast(pl.String)
    if values.dtype == pl.Decimal:
        return values.cast(pl.String).str.replace(r"\.0+$|(\.\d*?)0+$", "$1")
    if values.dtype in _WRITTEN:
        return values.cast(pl.String)
    if values.dtype not in _EXACT:
        return spelled(values, what)
    values = _checked_floats(values, what)
    whole, text = values == values.floor(), values.cast(pl.String)
    return values.cast(pl.Int64, strict=False).cast(pl.String).zip_with(whole.fill_null(True), text)


def _checked_floats(values: pl.Series, what: str) -> pl.Series:
    """Floats with null for NaN, if each still knows its last digit."""
    values = values.fill_nan(None)
    lost = values.filter(values.abs() >= _EXACT[type(values.dtype)])
    if len(lost):
        raise DataError(
            f"{what} reads ids from column {values.name!r} of type {values.dtype}, but {len(lost)}"
            f" of them, e.g. {lost[0]:.0f}, are {_EXACT[type(values.dtype)]:,} or more: their last"
            " digits are lost.",
            fix="store that column as integers or text.",
        )
    return values


def text(value: int | str | float | bool) -> str:
    """Canonical text of one value: `true`, `1` for 1.0, `2.5`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def declared(value: int | str | float | bool, id_type: IdType | None) -> list[str]:
    """The ids, as text, that a value of the configuration means. Where 2 and 2.0 are two ids, a
    number means both."""
    one = text(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    return [one, f"{one}.0"] if id_type == "text" and whole else [one]


def narrowed(values: pl.Series) -> pl.Series:
    """Canonical ids as Int64 where all of them are the digits of one, else as they are."""
    if values.dtype == pl.Int64:
        return values
    integers = values.cast(pl.Int64, strict=False)
    return integers if values.eq_missing(integers.cast(pl.String)).all() else values


def numbers(
    values: pl.Series,
    what: str,
    rows: Positions,
    missing: Sequence[str] = (),
    *,
    fix: str = "clean the column, or declare the field as categorical.",
) -> NDArray[np.float64]:
    """`values` (N,) as numbers, NaN where missing; true and false are 1 and 0, in text too.

    Args:
        values: Numbers, booleans, or text that says some.
        what: Who reads the column.
        rows: (N,) where each row stands in the source.
        missing: Texts that stand for a missing value.
        fix: Advice for values that are no numbers.

    Raises:
        DataError: Text that is no number, an infinite number, or a column that holds no numbers.
    """
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if not (values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.String, pl.Null)):
        raise DataError(
            f"{what} reads numbers from column {values.name!r} of type {values.dtype}.",
            fix=fix.replace("clean the column", "use a column of numbers"),
        )
    values = without(values, missing)
    if values.dtype == pl.Float32:  # .7 is .7, as in a text file, and not .699999988
        values = values.cast(pl.String)
    parsed = (_plain(values) if values.dtype == pl.String else values).cast(
        pl.Float64, strict=False
    )
    wrong = (parsed.is_null() & values.is_not_null()) | parsed.is_infinite().fill_null(False)
    if wrong.any():
        raise DataError(
            f"{what} reads numbers from column {values.name!r}; {wrong.sum()} of its values are"
            f" none or infinite: {some(values.filter(wrong).unique(maintain_order=True).head(5))}"
            f" ({at(rows[wrong.to_numpy()])}).",
            fix=fix,
        )
    return parsed.fill_null(float("nan")).to_numpy()


def _plain(text_: pl.Series) -> pl.Series:
    """Numbers as text without blanks around them; true and false as 1 and 0."""
    stripped = text_.str.strip_chars()
    lower = stripped.str.to_lowercase()
    return stripped.set(lower == "true", "1").set(lower == "false", "0")


def bags(
    values: pl.Series, field: Field, reading: Reading = AS_BEFORE
) -> tuple[pl.Series, Positions]:
    """A sequence column as its ids (L,), one row after the other, and offsets (N + 1,).

    A row without any id, null or empty, holds one missing id. Empty pieces of a text are left out.

    Raises:
        DataError: The column holds neither lists nor text that `lists` can read.
    """
    pieces, offsets = bags_of(values, field, reading)
    return ids(pieces, f"field {field.name!r}", reading), offsets


def bags_of(values: pl.Series, field: Field, reading: Reading) -> tuple[pl.Series, Positions]:
    """As `bags`, with the pieces as they are in the file."""
    if values.dtype == pl.Array:
        values = values.arr.to_list()
    if values.dtype in _WRITTEN:
        values = _lists_in_text(values.cast(pl.String), field, reading)
    if values.dtype == pl.Null:
        values = values.cast(pl.List(pl.String))
    if not isinstance(values.dtype, pl.List):
        raise _no_lists(field, f"column {values.name!r} of type {values.dtype}")
    if field.max_length is not None:
        values = values.list.head(field.max_length)
    lengths = values.list.len().fill_null(0).clip(1).to_numpy()
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return values.explode(empty_as_null=True, keep_nulls=True), offsets


def _lists_in_text(values: pl.Series, field: Field, reading: Reading) -> pl.Series:
    if reading.id_type is None and field.separator is not None:  # a model older than `lists`
        pieces = values.str.split(field.separator)
        return pieces.list.eval(pl.element().filter(pl.element() != ""))
    values = without(values, reading.missing)
    odd = values.filter(values.str.contains(lists.UNREADABLE))
    if not len(odd) and field.separator is None:
        odd = values.filter(~lists.is_list(values) & (values.str.strip_chars() != ""))
    if len(odd):
        raise _no_lists(field, f"column {values.name!r} of text such as {odd[0][:40]!r}")
    return lists.split(values, field.separator)


def _no_lists(field: Field, found: str) -> DataError:
    return DataError(
        f"field {field.name!r} reads sequences from {found}.",
        fix="use a list column, text like [1, 2], or text together with `separator`.",
    )


def reading_of(reader: Field | Division, missing: tuple[str, ...]) -> Reading:
    """How a field or division reads its column."""
    return Reading(reader.id_type, missing)


def at(rows: Positions) -> str:
    """The first few rows in words, for error messages; rows count from 0."""
    more = ", …" if len(rows) > 5 else ""
    return (
        f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}{more}, counted from 0"
    )
