"""What a column of unknown data probably is, from its values and from its name.

Whatever the file: a typed column, its text, and a CSV of the same values are the same column here.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import polars as pl

from loractr.data import column_names, column_texts
from loractr.data.column_texts import VECTOR, Counts, Decimal, Written

Type = Literal["whole", "number", "time", "text", "list", "unfit"]

Told = dict[str, Any]
"""Further attributes of a `Column`."""

_EXACT: dict[type[pl.DataType], int] = {
    pl.Float32: 2**24,
    pl.Float64: 2**53,
}  # a float below knows its last digit
_FIRST_EPOCH = 10_000_000  # 20260131 and seconds since 1970 are above it, hours and days below
_YEARS = (1_104_537_600, 2_051_222_400)  # 2005 and 2035 in seconds since 1970
_NEARLY_UNIQUE, _FEWEST_ROWS, _FEWEST_OF_USERS = 0.95, 100, 1_000


@dataclass(frozen=True)
class Column:
    """One column of a sample of R rows."""

    name: str
    type: Type
    values: pl.Series
    """Its values (R,), parsed where a file has them as text."""
    distinct: int
    """Number of different values, missing left out."""
    missing: int
    """Number of missing values."""
    low: float = 0.0
    """Smallest of its numbers."""
    high: float = 0.0
    """Largest of its numbers."""
    median: float = 0.0
    """Median of its numbers."""
    separator: str | None = None
    """What stands between the ids of a text with several."""
    gaps: Counts = field(default_factory=dict)
    """Texts in it that stand for a missing value → rows."""
    odd: Counts = field(default_factory=dict)
    """Texts in it that are no number, time or list, where nearly all others are → rows."""
    decimal: Decimal | None = None
    """The mark in its numbers where they are text, as in 15.48 or 15,48, if there is any."""
    rounded: bool = False
    """Whether it holds whole numbers so large that a float has rounded them."""
    unfit: str | None = None
    """Why its values are no input, whatever they mean."""

    @property
    def known(self) -> int:
        """Number of its values, missing left out."""
        return len(self.values) - self.missing

    @property
    def is_numeric(self) -> bool:
        """Whether it holds numbers."""
        return self.type in ("whole", "number")

    @property
    def is_binary(self) -> bool:
        """Whether it holds 0 and 1 (false and true), both of them, and nothing else."""
        two = self.type == "whole" and self.distinct == 2
        return two and (self.low, self.high) == (0, 1)

    @property
    def is_time(self) -> bool:
        """Whether it says when a row happened: a date, a moment, or numbers that mean one."""
        if not self.is_numeric or not self.known:
            return self.type == "time"
        if column_names.is_time(self.name) and not self.is_outcome:
            return self.low >= _FIRST_EPOCH
        units = (1, 10**3, 10**6, 10**9)
        epoch = any(_YEARS[0] * u <= self.low and self.high < _YEARS[1] * u for u in units)
        many = self.distinct > max(self.known / 2, _FEWEST_ROWS) or (self.rises and epoch)
        return epoch and many and not self._names_an_id

    @property
    def is_step(self) -> bool:
        """Whether it counts rows or periods on, so that later rows have values never seen."""
        if not self.is_numeric or self.distinct < 2 or self.is_binary:
            return False
        name = self.name
        if column_names.is_step(name) or (column_names.is_date(name) and not self._names_an_id):
            return True
        if column_names.is_time(name) and not self._names_an_id:
            return self.rises or self.distinct > 60
        if self._names_an_id or column_names.domain_place(name) is not None:
            return False
        amount = column_names.is_amount(name) and self.distinct < self.known / 2
        return self.rises and not amount

    @cached_property
    def rises(self) -> bool:
        """Whether its numbers rise from row to row, or fall, over many values."""
        if self.distinct < 10 or self.known < _FEWEST_ROWS or not self.is_numeric:
            return False
        known = self.values.drop_nulls()
        return known.is_sorted() or known.is_sorted(descending=True)

    @property
    def is_outcome(self) -> bool:
        """Whether its name says something that happens after the click."""
        return column_names.is_outcome(self.name)

    @property
    def is_amount(self) -> bool:
        """Whether its values are amounts rather than ids."""
        if self.type == "number":
            return True
        named = column_names.is_amount(self.name)
        return self.type == "whole" and self.distinct > 20 and named

    @property
    def is_lopsided(self) -> bool:
        """Whether an amount spans orders of magnitude upwards, as counts and prices do."""
        return self.low >= 0 and self.high > 20 * self.median

    @property
    def is_constant(self) -> bool:
        """Whether it says the same in every row; a missing id says something, a number does not."""
        gaps = self.missing > 0 and self.type != "number"
        return self.distinct + gaps <= 1

    @property
    def is_single(self) -> bool:
        """Whether a value says nothing of another row, as nearly every row has its own."""
        one_id = self.type in ("whole", "text") and self.separator is None and not self.is_amount
        if not one_id or self.known <= _FEWEST_ROWS:
            return False
        if column_names.is_user(self.name) or column_names.is_item(self.name):
            return self.distinct == self.known >= _FEWEST_OF_USERS
        return self.distinct >= _NEARLY_UNIQUE * self.known

    @property
    def is_prose(self) -> bool:
        """Whether it is long text that hardly ever repeats."""
        if self.type != "text" or self.separator is not None:
            return False
        long = self.values.str.len_chars().sum() > 40 * len(self.values)
        return long and self.distinct > len(self.values) / 2

    @property
    def _names_an_id(self) -> bool:
        name = self.name
        named = column_names.is_user(name) or column_names.is_item(name)
        return named or column_names.is_id(name)


def examine(values: pl.Series) -> Column:
    """Look at a column, of which `values` are a sample."""
    name, dtype = values.name, values.dtype
    values = values.alias("")  # Polars takes a name like ^id$ for a pattern
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Decimal, pl.Null):
        expects_number = column_names.is_amount(name) or column_names.is_time(name)
        text = column_texts.read(values.cast(pl.String), expects_number=expects_number)
        return _of_text(name, text)
    if isinstance(dtype, pl.List | pl.Array):
        return _of_lists(name, values)
    if dtype in (pl.Date, pl.Datetime):
        return _of(name, values, "time")
    if dtype.is_numeric() or dtype == pl.Boolean:
        return _of_numbers(name, values, {})
    if dtype == pl.Time:
        return _unfit(name, values, column_texts.TIME_OF_DAY)
    return _unfit(name, values, f"of type {_type_name(dtype)}, which holds no ids or numbers")


def _type_name(dtype: pl.DataType) -> str:
    """Without the types within, of which there may be many."""
    return type(dtype).__name__


def _of_text(name: str, written: Written) -> Column:
    """The column that its text means, with what the text alone tells."""
    told: Told = {"gaps": written.gaps, "odd": written.odd}
    values = written.values
    if written.unfit is not None:
        return _unfit(name, values, written.unfit, told)
    if written.form == "list":
        told |= {"separator": written.separator}
        return _of(name, values, "list", told)
    if written.form in ("time", "text"):
        return _of(name, values, "time" if written.form == "time" else "text", told)
    return _of_numbers(name, values, told | {"decimal": written.decimal})


def _of_lists(name: str, values: pl.Series) -> Column:
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    inner = values.drop_nulls().explode().drop_nulls()
    if inner.dtype.is_nested() or inner.dtype in (pl.Binary, pl.Duration, pl.Object):
        return _unfit(name, values, f"lists of type {_type_name(inner.dtype)}, which holds no ids")
    if inner.dtype == pl.String and column_texts.are_fractions(inner):
        return _unfit(name, values, VECTOR)
    if inner.dtype.is_float() or inner.dtype == pl.Decimal:
        inner = inner.cast(pl.Float64)
        inner = inner.filter(inner.is_finite())
        if (inner != inner.floor()).any():
            return _unfit(name, values, VECTOR)
    return _of(name, values, "list")


def _of_numbers(name: str, values: pl.Series, told: Told) -> Column:
    limit = _EXACT.get(type(values.dtype))
    if values.dtype == pl.Boolean:
        values = values.cast(pl.Int64)
    if limit is not None:
        values = values.fill_nan(None)
        if values.is_infinite().any():
            return _unfit(name, values, "infinite values, which no network can read", told)
        values = _whole_where_all_are(values)
    known = values.drop_nulls().cast(pl.Float64)
    told = told | {
        "low": known.quantile(0.0) or 0.0,
        "high": known.quantile(1.0) or 0.0,
        "median": known.quantile(0.5) or 0.0,
    }
    if not values.dtype.is_integer():
        return _of(name, values, "number", told)
    rounded = limit is not None and max(-told["low"], told["high"]) >= limit
    return _of(name, values, "whole", told | {"rounded": rounded})


def _whole_where_all_are(values: pl.Series) -> pl.Series:
    """Whole numbers that a gap, or pandas, made float."""
    known = values.drop_nulls()
    if not known.eq(known.floor()).all():
        return values
    whole = values.cast(pl.Int64, strict=False)
    return whole if whole.null_count() == values.null_count() else values.cast(pl.Int128)


def _unfit(name: str, values: pl.Series, why: str, told: Told | None = None) -> Column:
    return _of(name, values, "unfit", (told or {}) | {"unfit": why}, distinct=0)


def _of(
    name: str,
    values: pl.Series,
    kind: Type,
    told: Told | None = None,
    *,
    distinct: int | None = None,
) -> Column:
    return Column(
        name=name,
        type=kind,
        values=values,
        distinct=values.drop_nulls().n_unique() if distinct is None else distinct,
        missing=values.null_count(),
        **(told or {}),
    )
