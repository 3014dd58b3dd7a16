"""How the text of a column becomes values: as whole numbers or as numbers.

Which of them is decided from all values of the column, in one pass.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from polars import selectors as cs

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


_TRUE, _FALSE = ("True", "true", "TRUE"), ("False", "false", "FALSE")


def _digits(text: pl.Expr) -> pl.Expr:
    """True and false as 1 and 0, as pandas, Spark, R and spreadsheets write them."""
    truth = pl.when(text.is_in(_TRUE)).then(pl.lit("1")).when(text.is_in(_FALSE))
    return truth.then(pl.lit("0")).otherwise(text)


def _whole(text: pl.Expr, strict: bool) -> pl.Expr:
    return _digits(text).cast(pl.Int64, strict=strict)


def _number(text: pl.Expr, strict: bool) -> pl.Expr:
    return _digits(text).cast(pl.Float64, strict=strict)


def _comma_number(text: pl.Expr, strict: bool) -> pl.Expr:
    return _number(pointed(text), strict)


def pointed(text: pl.Expr) -> pl.Expr:
    """The decimal comma becomes a point; a point, as in 1.234,5, something unreadable."""
    return text.str.replace_all(".", "?", literal=True).str.replace(",", ".", literal=True)


WHOLE = Reading("a whole number", pl.Int64(), _whole)
NUMBER = Reading("a number", pl.Float64(), _number)
COMMA_NUMBER = Reading("a number with a decimal comma", pl.Float64(), _comma_number)

Readings = Mapping[str, Reading]
"""Column → how it is read; columns that are not named stay text."""


def known(text: pl.LazyFrame, names: Iterable[str], form: TextForm) -> pl.LazyFrame:
    """`text` with the named columns as `TextForm.known` makes them."""
    return text.with_columns(form.known(cs.by_name(name)) for name in names)


def read(text: pl.LazyFrame, readings: Readings, form: TextForm) -> pl.LazyFrame:
    """`text` with the values of its columns in `readings`; one that cannot be read is an error."""
    return known(text, readings, form).with_columns(
        reading.parse(cs.by_name(name).as_expr(), True).alias(name)
        for name, reading in readings.items()
    )


def unread(name: str, reading: Reading) -> pl.Expr:
    """Which values of a column of `known` are there and cannot be read."""
    text = cs.by_name(name).as_expr()
    return text.is_not_null() & reading.parse(text, False).is_null()


def decide(
    text: pl.LazyFrame,
    form: TextForm,
    *,
    numbers: Collection[str] = (),
    labels: Collection[str] = (),
) -> Readings:
    """How to read columns of `text`.

    Args:
        text: All values of the table, as text.
        form: How they are written.
        numbers: Numbers: whole ones where every value is.
        labels: Numbers if the first value is one; else they stay text.
    """
    number = COMMA_NUMBER if form.decimal == "," else NUMBER
    columns = list(dict.fromkeys((*numbers, *labels)))
    facts = _facts(text, columns, form)
    if facts is None:
        return dict.fromkeys(numbers, number)
    readings: dict[str, Reading] = {}
    for place, name in enumerate(columns):
        if facts[f"whole {place}"]:
            readings[name] = WHOLE
        elif name in numbers or _can_read(facts[f"first {place}"], number):
            readings[name] = number
    return readings


def _facts(text: pl.LazyFrame, columns: list[str], form: TextForm) -> dict[str, Any] | None:
    """Of each column, by its place: the first value, and whether all are whole numbers. None when
    the lines cannot be read: the check will say which."""
    facts = []
    for place, name in enumerate(columns):
        facts.append(cs.by_name(name).drop_nulls().first().alias(f"first {place}"))
        facts.append((~unread(name, WHOLE)).all().alias(f"whole {place}"))
    try:
        asked = known(text, columns, form).select(facts)
        return asked.collect(engine="streaming").row(0, named=True) if facts else {}
    except (pl.exceptions.PolarsError, OSError):
        return None


def _can_read(value: str, reading: Reading) -> bool:
    can: bool = pl.select(reading.parse(pl.lit(value), False).is_not_null()).item()
    return can
