"""How the text of a column becomes values: as whole numbers, numbers, dates or moments.

Which of them is decided from all values of the column, in one pass.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from polars import selectors as cs

from loractr.data import moments
from loractr.data.sources.text_form import TextForm


@dataclass(frozen=True)
class Reading:
    """How the text of a column becomes values."""

    what: str
    """What a value must be, for the error."""
    type: pl.DataType
    """The type of the values."""
    parse: Callable[[pl.Expr, bool], pl.Expr]
    """(text, strict) → values; what cannot be read is an error, or null when not strict."""


_TRUTH = {"True": "1", "False": "0", "true": "1", "false": "0", "TRUE": "1", "FALSE": "0"}


def _whole(text: pl.Expr, strict: bool) -> pl.Expr:
    return text.replace(_TRUTH).cast(pl.Int64, strict=strict)


def _number(text: pl.Expr, strict: bool) -> pl.Expr:
    return text.replace(_TRUTH).cast(pl.Float64, strict=strict)


def _comma_number(text: pl.Expr, strict: bool) -> pl.Expr:
    """The decimal comma becomes a point; a point, as in 1.234,5, something unreadable."""
    plain = text.str.replace_all(".", "?", literal=True).str.replace(",", ".", literal=True)
    return _number(plain, strict)


def _date(text: pl.Expr, strict: bool) -> pl.Expr:
    return text.str.to_date("%F", strict=strict)


def _moment(text: pl.Expr, _: bool) -> pl.Expr:
    return moments.parsed(text)  # never an error: the check finds what is none


WHOLE = Reading("a whole number", pl.Int64(), _whole)
NUMBER = Reading("a number", pl.Float64(), _number)
COMMA_NUMBER = Reading("a number with a decimal comma", pl.Float64(), _comma_number)
DATE = Reading("a date like 2026-01-31", pl.Date(), _date)
MOMENT = Reading(
    "a date like 2026-01-31 or a moment like 2026-01-31T12:00:00Z", pl.Datetime("us"), _moment
)

Readings = Mapping[str, Reading]
"""Column → how it is read; columns that are not named stay text."""


def read(name: str, reading: Reading, form: TextForm, *, strict: bool) -> pl.Expr:
    """The values of the text column `name`; null where one is missing."""
    return reading.parse(form.known(cs.by_name(name)), strict)


def unread(name: str, reading: Reading, form: TextForm) -> pl.Expr:
    """Which values of the text column `name` are there and cannot be read."""
    known = form.known(cs.by_name(name))
    return known.is_not_null() & reading.parse(known, False).is_null()


def decide(
    text: pl.LazyFrame,
    form: TextForm,
    *,
    numbers: Collection[str] = (),
    times: Collection[str] = (),
    labels: Collection[str] = (),
) -> Readings:
    """How to read columns of `text`.

    Args:
        text: All values of the table, as text.
        form: How they are written.
        numbers: Numbers: whole ones where every value is.
        times: Whole numbers, numbers, or dates, where every value is one; else what the first
            value is: a number, or a moment.
        labels: Numbers if the first value is one; else they stay text.
    """
    number = COMMA_NUMBER if form.decimal == "," else NUMBER
    columns = list(dict.fromkeys((*numbers, *times, *labels)))
    facts = _facts(text, columns, form, {"whole": WHOLE, "number": number, "date": DATE})
    if facts is None:
        return dict.fromkeys(numbers, number)
    readings: dict[str, Reading] = {}
    for place, name in enumerate(columns):
        is_number = facts[f"number {place}"]
        if facts[f"all whole {place}"]:
            readings[name] = WHOLE
        elif name in numbers or is_number:
            readings[name] = number
        elif name in times:
            readings[name] = DATE if facts[f"all date {place}"] else MOMENT
    return readings


def _facts(
    text: pl.LazyFrame, columns: list[str], form: TextForm, readings: Readings
) -> dict[str, Any] | None:
    """`all <reading> <place>`: whether all values of that column can be read so; `<reading>
    <place>`: whether the first one can. None when the lines cannot be read: the check will say
    which."""
    facts = []
    for place, name in enumerate(columns):
        known = form.known(cs.by_name(name))
        for what, reading in readings.items():
            can = reading.parse(known, False).is_not_null()
            facts.append((can | known.is_null()).all().alias(f"all {what} {place}"))
            facts.append(can.filter(known.is_not_null()).first().alias(f"{what} {place}"))
    try:
        return text.select(facts).collect(engine="streaming").row(0, named=True) if facts else {}
    except (pl.exceptions.PolarsError, OSError):
        return None
