"""Text that says when, as moments in UTC; moments as text that does not depend on their unit.

    2026-03-01            2026/3/1              2026-03-01 00:09
    2026-03-01T00:09:00   …09:00.25   …09:00Z   …09:00 UTC   …09:00+02:00   …09:00 +0200

A moment without a zone is in UTC, a date is its midnight. Dates that end in the year (31.12.2026,
12/31/2026) are not read: which of their numbers is the month cannot be known. What is finer than a
microsecond is cut off.
"""

import re
from datetime import UTC, datetime

import polars as pl

_DATE = r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})"
_TIME = r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?"
_ZONE = r"(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)"
_PATTERN = rf"^\s*{_DATE}(?:(?:\s+|T){_TIME}(?:\s*{_ZONE})?)?\s*$"
_PARTS = ("year", "month", "day", "hour", "minute", "second", "fraction", "zone")


def parsed(text: pl.Expr) -> pl.Expr:
    """Datetime in microseconds, UTC without a zone, of each text; null where it is no moment.

    >>> texts = pl.Series(["2026/3/1", "2026-03-01T02:09+02:00", "soon"])
    >>> [str(moment) for moment in pl.select(parsed(pl.lit(texts))).to_series()]
    ['2026-03-01 00:00:00', '2026-03-01 00:09:00', 'None']
    """
    return text.map_batches(series, return_dtype=pl.Datetime("us"), is_elementwise=True)


def moment(text: str) -> datetime:
    """One moment, with its zone if the text has one.

    Raises:
        ValueError: it is none.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        found: datetime | None = series(pl.Series([text])).item()
        if found is None:
            raise
    return found.replace(tzinfo=UTC) if re.search(rf"{_ZONE}\s*$", text[10:]) else found


def text(values: pl.Series) -> pl.Series:
    """Dates and datetimes as text: `2026-03-01`, `2026-03-01 00:09:00`, `2026-03-01 00:09:00.25`.

    The same moment has the same text, whatever its type: unit and zone do not show, and a midnight
    is its date.
    """
    if isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone is not None:
        values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    full = values.cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S%.6f")
    return _trimmed(full).str.strip_suffix(" 00:00:00")


def _trimmed(text: pl.Series) -> pl.Series:
    """Without zeros at the end of a fraction."""
    return text.str.replace(r"(\.\d*?)0+$", "$1").str.strip_suffix(".")


def clock(text: pl.Series) -> pl.Series:
    """Times of day as text: `00:24:00`, `00:24:00.25`; null where it is none.

    >>> clock(pl.Series(["0:24", "00:24:00.250", "24:00", "noon"])).to_list()
    ['00:24:00', '00:24:00.25', None, None]
    """
    read = series("1970-01-01 " + text.str.strip_chars()).dt.strftime("%H:%M:%S%.6f")
    return _trimmed(read)


def series(text: pl.Series) -> pl.Series:
    """As `parsed`, of a series. The usual form fast, the others by a pattern."""
    usual = text.str.replace("T", " ", literal=True).str.strip_suffix("Z")
    moment = usual.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")
    other = (moment.is_null() & text.is_not_null()).arg_true()
    if not len(other):
        return moment
    return moment.scatter(other, _by_pattern(text.gather(other)))


def _by_pattern(text: pl.Series) -> pl.Series:
    written = text.str.extract_groups(_PATTERN).struct.rename_fields(_PARTS).struct.unnest()
    zone = pl.col("zone").str.replace(":", "", literal=True)
    columns = written.with_columns(
        day=pl.concat_str(
            ["year", pl.col("month").str.zfill(2), pl.col("day").str.zfill(2)], separator="-"
        ).str.to_date("%Y-%m-%d", strict=False),
        micros=pl.col("fraction").fill_null("0").str.pad_end(6, "0").str.head(6).cast(pl.Int32),
        ahead=pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
        * (_number(zone.str.slice(1, 2)) * 60 + _number(zone.str.slice(3, 2))),
        hour=_number(pl.col("hour")),
        minute=_number(pl.col("minute")),
        second=_number(pl.col("second")),
    )
    since_midnight = pl.duration(
        minutes=pl.col("hour") * 60 + pl.col("minute") - pl.col("ahead"),
        seconds="second",
        microseconds="micros",
    )
    possible = (pl.col("hour") < 24) & (pl.col("minute") < 60) & (pl.col("second") < 60)
    moment = pl.col("day").cast(pl.Datetime("us")) + since_midnight
    return columns.select(pl.when(possible).then(moment)).to_series()


def _number(digits: pl.Expr) -> pl.Expr:
    """Whole numbers; 0 where there are no digits."""
    return digits.cast(pl.Int32, strict=False).fill_null(0)
