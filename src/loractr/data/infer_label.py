"""Which column of unknown data is the label, and which of its values are clicks.

A label is found by its name first, then by its values; every choice comes with notes, which say
what else it could have been.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl
from pydantic import ValidationError

from loractr.data import column_names
from loractr.data.column_names import shown
from loractr.data.columns import Column
from loractr.errors import DataError, some
from loractr.schema import Label

_YES = (
    *("yes", "y", "true", "t", "click", "clicked", "clk", "positive", "pos", "on", "1", "1.0"),
    *("ja", "oui", "si", "sí", "sim", "да", "是"),
)
_NO = (
    *("no", "n", "false", "f", "none", "negative", "neg", "off", "0", "0.0", "nein", "non", "nao"),
    *("não", "нет", "否"),
)
_MOST_COUNTS = 100
_ONLY_CLICKS = (
    "for a log that holds clicks only, `negatives` draws the other rows: it needs the columns of"
    " a user, an item and a domain."
)


@dataclass(frozen=True)
class LabelGuess:
    """The label of unknown data."""

    column: Column
    rule: str | None
    """What makes a row a click, as `label.positive` says it; None for 0 and 1."""
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, str]:
        """The configuration's `label`."""
        positive = {} if self.rule is None else {"positive": self.rule}
        return {"column": self.column.name, **positive}

    @property
    def rate(self) -> float:
        """Share of clicks among the rows that have a label."""
        known = self.column.values.drop_nulls()
        clicks = known.eq(1) if self.rule is None else _clicks(known, self.rule)
        return float(clicks.sum()) / max(len(known), 1)


def label_of(columns: Iterable[Column]) -> LabelGuess | None:
    """The label; None where no column looks like one."""
    columns = [column for column in columns if column.type != "unfit"]
    found = _by_name(columns) or _by_rating(columns) or _by_values(columns)
    if found is None:
        return None
    return LabelGuess(found.column, found.rule, (*found.notes, *_further(found, columns)))


def only_clicks(columns: Iterable[Column]) -> Column | None:
    """A column that is named like a label and is 1 (true, yes) in every row, if there is one."""
    for column in _named(columns, column_names.LABELS):
        value = column.values.drop_nulls().first()
        if column.distinct == 1 and not column.missing and str(value).lower() in _YES:
            return column
    return None


def no_label(place: object, columns: list[Column]) -> DataError:
    """The error for data whose label is not found: what values the likeliest columns have."""
    for column in _named(columns, (*column_names.LABELS, *column_names.RATINGS)):
        values = _examples(column)
        rule = f"> {column.median:g}" if column.is_numeric else f"== {(values or ['1'])[-1]}"
        if column.distinct == 1:
            return DataError(
                f"{place}: column {shown(column.name)!r} is named like the label, but it holds"
                f" {_told(column, values)} and nothing else; a model"
                " learns from clicks and from rows without one.",
                fix=f"take rows of both kinds; {_ONLY_CLICKS}",
            )
        return DataError(
            f"{place}: column {shown(column.name)!r} is named like the label; a label is 0 or 1,"
            f" yes or no, but it holds {column.unfit or _told(column, values)}.",
            fix="write data.label by hand and say which rows are clicks, e.g."
            f' `label: {{column: {shown(column.name)}, positive: "{rule}"}}`, or put a column'
            " `click` of 0 and 1 into the data.",
        )
    binary = [column.name for column in columns if column.is_binary]
    return DataError(
        f"{place} has no column that is surely the label: of 0 and 1, named like a click."
        f" It has {some(shown(c.name) for c in columns)};"
        f" of 0 and 1 are {some(shown(name) for name in binary)}.",
        fix=f"name the label's column one of {some(column_names.LABELS)}, or write data.label by"
        f" hand; {_ONLY_CLICKS}",
    )


def _by_name(columns: list[Column]) -> LabelGuess | None:
    named = list(_named(columns, column_names.LABELS))
    for column in named:
        if column.is_binary:
            return LabelGuess(column, None)
    for column in named:
        rule = _rule(column)
        if rule is not None:
            return _by_rule(column, rule)
    for column in _named(columns, column_names.EVENTS):
        values = _words(column) if column.distinct <= _MOST_COUNTS else []
        for value in values:
            if value.lower() in ("click", "clicked", "clk") and len(values) > 1:
                return _by_rule(column, f"== {value}")
    return None


def _by_rule(column: Column, rule: str) -> LabelGuess:
    told = _told(column, _examples(column))
    note = f"Label: {shown(column.name)} holds {told}; `{shown(rule)}` counts as a click."
    return LabelGuess(column, rule, (note,))


def _by_rating(columns: list[Column]) -> LabelGuess | None:
    for column in _named(columns, column_names.RATINGS):
        if not column.is_numeric or column.distinct < 2:
            continue
        least = 3 if column.high <= 5 else round(0.6 * column.high)
        note = f"Label: {shown(column.name)} above {least} counts as a click; is that right?"
        return LabelGuess(column, f"> {least}", (note,))
    return None


def _by_values(columns: list[Column]) -> LabelGuess | None:
    """The only column of 0 and 1, or the only one that is named as an outcome."""
    binary = [c for c in columns if c.is_binary and not c.missing]
    outcomes = [c for c in binary if c.is_outcome]
    if len(binary) == 1:
        why = "is the only column of 0 and 1; is it the click?"
        return LabelGuess(binary[0], None, (f"Label: {shown(binary[0].name)} {why}",))
    if len(outcomes) == 1:
        why = "is named like an outcome; is it the click?"
        return LabelGuess(outcomes[0], None, (f"Label: {shown(outcomes[0].name)} {why}",))
    return None


def _further(found: LabelGuess, columns: list[Column]) -> list[str]:
    """Notes on other columns that could be the label, and on rows without one."""
    name, notes = shown(found.column.name), []
    labels = {column.name for column in _named(columns, column_names.LABELS)}
    others = [
        shown(column.name)
        for column in columns
        if column.name != found.column.name
        and column.distinct == 2
        and (column.name in labels or (column.is_outcome and column.is_binary))
    ]
    if others:
        notes.append(f"Label: {name} was taken; it could also be {', '.join(others[:20])}.")
    if found.column.missing:
        notes.append(
            f"{name}: {found.column.missing:,} of {len(found.column.values):,} rows have no label;"
            " `prepare` refuses them: drop those rows first."
        )
    return notes


def _rule(column: Column) -> str | None:
    """What makes a row a click where the label is not 0 and 1; None where that is unclear."""
    if column.distinct == 2 and column.type == "text":
        return _rule_of_words(*_words(column))
    if not column.is_numeric or column.distinct < 2:
        return None
    counts = column.type == "whole" and column.low == 0 and column.distinct <= _MOST_COUNTS
    if counts or (column.distinct == 2 and column.low < 0 < column.high):
        return "> 0"
    if column.distinct > 2 or column.low == column.high:  # as floats, which rules compare
        return None
    return f"== {column.high:.0f}" if column.type == "whole" else f"== {column.high!r}"


def _rule_of_words(one: str, other: str) -> str | None:
    """The rule by two words, one of which means yes, or no."""
    yes = [word for word in (one, other) if word.lower() in _YES]
    chosen = yes or [word for word in (one, other) if word.lower() not in _NO]
    if len(chosen) != 1 or one.lower() == other.lower():
        return None
    left = other if chosen[0] == one else one
    rules = {f"== {chosen[0]}": chosen[0], f"!= {left}": left}
    return next((rule for rule, word in rules.items() if _compares_text(rule, word)), None)


def _compares_text(rule: str, word: str) -> bool:
    """Whether the rule is one, and compares with that text: with `01` it compares with 1."""
    try:
        parsed = Label(positive=rule).rule
    except ValidationError:
        return False
    return parsed is not None and parsed[1] == word


def _clicks(known: pl.Series, rule: str) -> pl.Series:
    """Whether each value is a click by one of the rules made here."""
    sign, _, value = rule.partition(" ")
    if sign == ">":
        return known.cast(pl.Float64) > float(value)
    if known.dtype != pl.String:
        return known.cast(pl.Float64) == float(value)
    same = known.str.to_lowercase() == value.lower()
    return same if sign == "==" else ~same


def _named(columns: Iterable[Column], names: tuple[str, ...]) -> Iterable[Column]:
    """Columns of these names, in the order of the names."""
    found = [(column_names.place(column.name, names), column) for column in columns]
    return [c for place, c in sorted(found, key=lambda one: one[0] or 0) if place is not None]


def _words(column: Column) -> list[str]:
    return [] if column.type != "text" else sorted(column.values.drop_nulls().unique().to_list())


def _examples(column: Column) -> list[str]:
    """A few of its values, sorted, as text of bounded length."""
    if column.type in ("unfit", "list"):
        return []
    values = column.values.drop_nulls().unique().sort().head(5).to_list()
    return [shown(f"{value:g}" if isinstance(value, float) else str(value)) for value in values]


def _told(column: Column, values: list[str]) -> str:
    if not values:
        return "no values that it could be told by"
    more = f" and {column.distinct - len(values):,} more" if column.distinct > len(values) else ""
    return ", ".join(values[:5]) + more
