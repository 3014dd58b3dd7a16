"""What a field is that does not say its `kind`: decided by the values, whatever the file.

sequence      lists, also as text in brackets
numerical     numbers, at least one of them with a fraction
categorical   everything else: whole numbers (also those that a gap made float), text, times

What looks like a number is what `column_texts` says, as for `loractr init`: true, 007 and +4930123
are none, and one of them makes all values of its column names.
"""

from collections.abc import Callable, Iterable

import polars as pl
from polars import selectors as cs

from loractr.data.column_texts import NUMBER, PADDED
from loractr.data.sources.readings import WHOLE, known, pointed, unread
from loractr.data.sources.text_form import TextForm
from loractr.data.sources.union import Part
from loractr.schema import Kind

_SAMPLE = 10_000
_LIST = r"(?s)^\[.*\]$"


def decide_kinds(rows: Part, columns: Iterable[str], form: TextForm) -> dict[str, Kind]:
    """The kind of each of the named columns of `rows`, by passes over those whose type does not
    say it. Columns that cannot be read are categorical."""
    kinds: dict[str, Kind] = dict.fromkeys(columns, "categorical")
    types = {name: rows.types[name] for name in kinds}
    lists = [name for name, kind in types.items() if isinstance(kind, pl.List | pl.Array)]
    fractions = [
        name for name, kind in types.items() if kind.is_float() or isinstance(kind, pl.Decimal)
    ]
    numbers = _where(rows.frame, fractions, _has_fraction)
    texts = [
        name
        for name, kind in types.items()
        if isinstance(kind, pl.String | pl.Categorical | pl.Enum)
    ]
    text = known(rows.frame.select(cs.by_name(texts).cast(pl.String)), texts, form)
    lists += _lists(text, texts)
    if form.decimal == ",":
        text = text.with_columns(pointed(cs.by_name(texts).as_expr()))
    numbers += _numbers(text, texts)
    return kinds | dict.fromkeys(numbers, "numerical") | dict.fromkeys(lists, "sequence")


def _numbers(text: pl.LazyFrame, names: list[str]) -> list[str]:
    """The columns that hold numbers, at least one with a fraction. The first rows rule out names,
    the cheaper question whole numbers."""

    def number(name: str) -> pl.Expr:
        return cs.by_name(name).cast(pl.Float64, strict=False)

    def are_numbers(name: str) -> pl.Expr:
        column = cs.by_name(name).as_expr()
        named = column.str.contains(PADDED) | number(name).is_infinite()
        return column.str.contains(NUMBER).all() & ~named.any()

    names = _where(text.head(_SAMPLE), names, are_numbers)
    names = _where(text, names, lambda name: unread(name, WHOLE).any())
    return _where(text, names, lambda name: are_numbers(name) & _is_fraction(number(name)).any())


def _lists(text: pl.LazyFrame, names: list[str]) -> list[str]:
    """The columns that hold lists in brackets."""

    def are_lists(name: str) -> pl.Expr:
        column = cs.by_name(name).as_expr()
        return column.str.contains(_LIST).all() & column.is_not_null().any()

    names = _where(text.head(_SAMPLE), names, are_lists)
    return _where(text, names, are_lists)


def _has_fraction(name: str) -> pl.Expr:
    return _is_fraction(cs.by_name(name).cast(pl.Float64)).any()


def _is_fraction(number: pl.Expr) -> pl.Expr:
    return (number != number.floor()) & number.is_finite()


def _where(frame: pl.LazyFrame, names: list[str], question: Callable[[str], pl.Expr]) -> list[str]:
    """The columns of which `question` is true; none when there are lines that Polars cannot read,
    which the check that follows does not let pass."""
    if not names:
        return []
    asked = [question(name).alias(str(place)) for place, name in enumerate(names)]
    try:
        answers = frame.select(asked).collect(engine="streaming").row(0)
    except (pl.exceptions.PolarsError, OSError):
        return []
    return [name for name, answer in zip(names, answers, strict=True) if answer]
