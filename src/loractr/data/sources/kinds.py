"""What a field is that does not say its `kind`: decided by the values, whatever the file.

sequence      lists, also as text in brackets
numerical     numbers, at least one of them with a fraction
categorical   everything else: whole numbers (also those that a gap made float), text, times
"""

from collections.abc import Iterable
from typing import Any

import polars as pl
from polars import selectors as cs

from loractr.data.sources.readings import COMMA_NUMBER, NUMBER
from loractr.data.sources.text_form import TextForm
from loractr.data.sources.union import Part
from loractr.schema import Kind

_LIST = r"(?s)^\[.*\]$"


def decide_kinds(rows: Part, columns: Iterable[str], form: TextForm) -> dict[str, Kind]:
    """The kind of each of the named columns of `rows`, by one pass over those whose type does not
    say it. Columns that cannot be read are categorical."""
    types, columns = rows.types, list(columns)
    kinds: dict[str, Kind] = {}
    open_questions: list[pl.Expr] = []
    for place, name in enumerate(columns):
        kinds[name] = "sequence" if isinstance(types[name], pl.List | pl.Array) else "categorical"
        open_questions += _questions(name, types[name], str(place), form)
    answers = _answered(rows.frame, open_questions)
    for place, name in enumerate(columns):
        if answers.get(f"number {place}"):
            kinds[name] = "numerical"
        elif answers.get(f"list {place}"):
            kinds[name] = "sequence"
    return kinds


def _questions(name: str, kind: pl.DataType, place: str, form: TextForm) -> list[pl.Expr]:
    """`number <place>`, and of text `list <place>`: whether the column is one."""
    column = cs.by_name(name).as_expr()
    if kind.is_float() or isinstance(kind, pl.Decimal):
        number = column.cast(pl.Float64)
        return [_has_fraction(number).alias(f"number {place}")]
    if not isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return []
    known = form.known(column.cast(pl.String))
    reading = COMMA_NUMBER if form.decimal == "," else NUMBER
    number = reading.parse(known, False)
    is_number = (number.is_finite() | known.is_null()).fill_null(False).all() & _has_fraction(
        number
    )
    is_list = known.str.contains(_LIST).all() & known.is_not_null().any()
    return [is_number.alias(f"number {place}"), is_list.alias(f"list {place}")]


def _has_fraction(number: pl.Expr) -> pl.Expr:
    return ((number != number.floor()) & number.is_finite()).any()


def _answered(frame: pl.LazyFrame, questions: list[pl.Expr]) -> dict[str, Any]:
    if not questions:
        return {}
    try:
        return frame.select(questions).collect(engine="streaming").row(0, named=True)
    except (pl.exceptions.PolarsError, OSError):  # bad lines: reading will name the first
        return {}
