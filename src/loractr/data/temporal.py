"""Moments as 64-bit keys in the order of time, and where to cut them."""

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import moments
from loractr.data.canonical import Positions, at, without
from loractr.errors import ConfigError, DataError, some

Keys = NDArray[np.uint64]
Moment = int | float | str | None

_SIGN = np.uint64(1 << 63)
_DIGIT = 16  # bits told apart in one pass
_END = 1 << 64  # after every key


def keys(values: pl.Series, rows: Positions) -> Keys:
    """Key of each moment (N,): numbers, dates or datetimes; keys compare as moments do.

    Raises:
        DataError: A moment is missing, or the column holds none.
    """
    missing = values.is_null() | (values.is_nan() if values.dtype.is_float() else False)
    if missing.any():
        raise DataError(
            f"time column {values.name!r}: {missing.sum()} rows have no time"
            f" ({at(rows[missing.to_numpy()])}).",
            fix="drop those rows before preparing, or use another split.",
        )
    if values.dtype in (pl.Date, pl.Datetime) or values.dtype.is_integer():
        if values.dtype in (pl.UInt64, pl.Int128, pl.UInt128):
            values = _narrow(values, rows)
        return values.to_physical().cast(pl.Int64).to_numpy().view(np.uint64) ^ _SIGN
    if values.dtype.is_float() or values.dtype == pl.Decimal:
        bits = (values.cast(pl.Float64).to_numpy() + 0.0).view(np.uint64)  # -0.0 becomes 0.0
        return np.where(bits & _SIGN, ~bits, bits | _SIGN)
    raise DataError(
        f"time column {values.name!r} is of type {values.dtype}; it must hold numbers, dates or"
        " datetimes.",
        fix="convert the column, e.g. with polars `str.to_datetime`, and store it as Parquet.",
    )


class Clock:
    """Reads the times of a column. Those that a file has as text are all whole numbers, all numbers
    or all moments: `observe` finds out which, batch by batch, before `read` is called.

    Args:
        column: Its name.
        dtype: Its type in the table.
        missing: Texts that stand for a missing value.
    """

    def __init__(self, column: str, dtype: pl.DataType, missing: Sequence[str] = ()) -> None:
        self.column, self.missing, self._dtype = column, missing, dtype
        self._possible = list(_FORMS) if dtype == pl.String else []
        self._odd: list[str] = []
        self.zone: str | None = None
        """The first zone other than UTC that a text names."""

    def observe(self, values: pl.Series) -> None:
        """Take in a batch of times (N,) as text."""
        texts = without(values, self.missing).drop_nulls().unique(maintain_order=True)
        zones = texts.str.extract(_ZONE).drop_nulls()
        zones = zones.filter(~zones.is_in(["+00:00", "+0000", "+00", "-00:00"]))
        if self.zone is None and len(zones):
            self.zone = zones[0]
        lost = {form: texts.filter(_FORMS[form](texts).is_null()) for form in self._possible}
        self._possible = [form for form, odd in lost.items() if not len(odd)]
        if any(map(len, lost.values())):  # those that do not fit the form that most others have
            self._odd = min(filter(len, lost.values()), key=len).head(3).to_list()

    @property
    def dtype(self) -> pl.DataType:
        """Type of the times that `read` returns."""
        if self._dtype != pl.String:
            return self._dtype
        return _FORMS[self._form](pl.Series([], dtype=pl.String)).dtype

    def read(self, values: pl.Series) -> pl.Series:
        """The times of a batch (N,).

        Raises:
            DataError: Text that says no time, or not always in one form.
        """
        if self._dtype != pl.String:
            return values
        return _FORMS[self._form](without(values, self.missing))

    @property
    def _form(self) -> str:
        if not self._possible:
            raise DataError(
                f"time column {self.column!r} holds text such as {some(self._odd)}, which is not"
                " always a number, or always a date or a moment.",
                fix="write times like 2026-03-01 or 2026-03-01T12:00:00+02:00, or as seconds since"
                " 1970.",
            )
        return self._possible[0]


_ZONE = r":\d{2}(?:\.\d+)?\s*([+-]\d{2}(?::?\d{2})?)\s*$"
_FORMS: dict[str, Callable[[pl.Series], pl.Series]] = {
    "whole numbers": lambda text: text.str.strip_chars().cast(pl.Int64, strict=False),
    "numbers": lambda text: text.str.strip_chars().cast(pl.Float64, strict=False),
    "moments": moments.series,
}


def _narrow(values: pl.Series, rows: Positions) -> pl.Series:
    narrow = values.cast(pl.Int64, strict=False)
    if narrow.null_count():
        wrong = narrow.is_null().to_numpy()
        raise DataError(
            f"time column {values.name!r}: {values.filter(pl.Series(wrong))[0]} is no time"
            f" ({at(rows[wrong])}).",
            fix="drop those rows before preparing, or write a missing value there.",
        )
    return narrow


def moment(value: Moment, dtype: pl.DataType, column: str, zone: str | None = None) -> int:
    """Least key that a moment of a column of type `dtype` may have from `value` on. ISO text
    without a zone is in the zone of the column, UTC where it has none.

    Args:
        value: The moment.
        dtype: Type of the column.
        column: Its name.
        zone: A zone that the column's texts name, as `Clock.zone`.

    Raises:
        ConfigError: `value` is no moment of that type, or it does not say its zone where the texts
            of the column do: whose midnight a date is would be a guess.
    """
    wrong = ConfigError(
        [f"split: {value!r} is no moment of column {column!r}, whose type is {dtype}"],
        fix="give a number for a column of numbers, ISO text like '2022-05-07' for dates.",
    )
    try:
        if isinstance(dtype, pl.Date | pl.Datetime):
            if zone is not None and moments.moment(str(value)).tzinfo is None:
                raise _zoneless(value, column, zone)
            return _integer_key(_ticks(str(value), dtype))
        if isinstance(value, str) or value is None:
            raise wrong
        if dtype.is_integer():
            return _integer_key(math.ceil(value))
    except ConfigError:
        raise
    except ValueError as error:
        raise wrong from error
    return int(keys(pl.Series(column, [value], dtype=pl.Float64), np.zeros(1, dtype=np.int64))[0])


def _zoneless(value: Moment, column: str, zone: str) -> ConfigError:
    return ConfigError(
        [f"split: {value!r} says no zone, but the times of column {column!r} do, such as {zone}"],
        fix=f"say which is meant, such as {str(value)[:10]}T00:00:00{zone}, or …+00:00 for UTC.",
    )


def _integer_key(value: int) -> int:
    return value + (1 << 63)


def _ticks(text: str, dtype: pl.Date | pl.Datetime) -> int:
    """Days or, by the column's unit, milli-, micro- or nanoseconds since 1970, rounded up."""
    when = moments.moment(text)
    zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
    if when.tzinfo is None:
        when = when.replace(tzinfo=ZoneInfo(zone or "UTC"))
    since = when - datetime(1970, 1, 1, tzinfo=UTC)
    if isinstance(dtype, pl.Date):
        return -(-since // timedelta(days=1))
    nanoseconds = since // timedelta(microseconds=1) * 1000
    return -(-nanoseconds // {"ms": 1_000_000, "us": 1000, "ns": 1}[dtype.time_unit])


def cuts(times: Callable[[], Iterator[Keys]], wanted: list[int], total: int) -> list[int]:
    """Keys before which, as nearly as ties allow, `wanted` rows lie. Equal keys stay together.

    The k-th smallest key is found digit by digit, in four passes of 16 bits, without sorting or
    holding the keys.

    Args:
        times: Gives the keys anew, batch by batch, each time it is called.
        wanted: Numbers of rows.
        total: Number of all rows.
    """
    prefix, rank, equal = [0] * len(wanted), list(wanted), [0] * len(wanted)
    inside = [i for i, count in enumerate(wanted) if count < total]
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = np.zeros((len(wanted), 1 << _DIGIT), dtype=np.int64)
        for batch in times():
            high = batch >> np.uint64(shift)
            for i in inside:
                mine = high[high >> np.uint64(_DIGIT) == prefix[i]] & np.uint64(0xFFFF)
                counts[i] += np.bincount(mine.astype(np.int64), minlength=1 << _DIGIT)
        for i in inside:
            below = np.cumsum(counts[i])
            digit = int(np.searchsorted(below, rank[i], side="right"))
            equal[i] = int(counts[i][digit])
            rank[i] -= int(below[digit]) - equal[i]
            prefix[i] = (prefix[i] << _DIGIT) | digit
    # `rank` rows of the key's own moment would still belong before the cut: none or all of them do
    found = [prefix[i] + (rank[i] > equal[i] - rank[i]) for i in range(len(wanted))]
    return [found[i] if i in inside else _END for i in range(len(wanted))]
