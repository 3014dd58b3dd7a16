"""What a column of text holds: truth values, numbers, times, lists of ids, or names.

Real files hold a few values that do not fit the others (`-` among prices), and lists in many
spellings. So a column is what nearly all of its values are, and what the others are is counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import polars as pl

from loractr.data import lists, moments
from loractr.data.config import MISSING_VALUES

Form = Literal["boolean", "whole", "number", "time", "list", "text", "unfit"]
Decimal = Literal[".", ","]
Counts = dict[str, int]
"""Text → how many rows hold it, the most frequent first."""

VECTOR = (
    "a vector, not ids (`pretrained` reads a file of ids with their vectors; or make each of its"
    " numbers a column)"
)
"""Why a list of fractions is no input."""
DRESSED = "numbers with signs that no number has (write them as 1234.5)"
"""Why `12 EUR` and `1,234.5` are none."""
TIME_OF_DAY = "a time of day (its hour may be an input)"
"""Why a time without a date is none."""

_NEARLY = 0.9  # of the values must fit, for the others to be mistakes
_SOME, _HARDLY = 2_000, 0.1  # different texts to look at first, and how many of them must fit
_WHOLE = r"^-?(?:0|[1-9]\d*)(?:\.0*)?$"
NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
"""What a number looks like."""
PADDED = r"^-?0\d|^\+\d{6,}$"
"""What is a name and no number: 007, +4930123."""
_COMMA = r"^[+-]?\d+(?:,\d+)?$"
_UNIT = r"(?:[€$£¥%]|EUR|USD|GBP|CNY|RMB)"
_DRESSED = (
    rf"^(?:{_UNIT}\s*[+-]?\d[\d.,' ]*|[+-]?\d[\d.,' ]*\s*{_UNIT}"
    r"|[+-]?\d{1,3}(?:,\d{3})+\.\d+|[+-]?\d{1,3}(?:\.\d{3})+,\d+"
    r"|[+-]?\d{1,3}(?: \d{3})+[.,]\d+)$"
)
_THOUSANDS = r"^[+-]?\d{1,3}(?:,\d{3})*$"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
_UNREAD_TIMES = (
    r"\d{1,2}\.\d{1,2}\.\d{4}(?:\D|$)",  # 31.12.2026
    r"\d{1,2}[/-]\d{1,2}[/-](?:\d{4}|\d{2})(?:\D|$)",  # 12/31/2026, 31-12-26
    r"(?:19|20)\d{2}(?:\.\d{1,2}\.\d{1,2}\b|[-/](?:0?[1-9]|1[0-2])$|-?W\d{2})",  # 2026-12
    rf"\d{{1,2}}[ /.-]*{_MONTH}[ /.,-]+\d{{2,4}}",  # 31 Dec 2026, 31/Dec/2026:23:59:00
    rf"{_MONTH}\.? \d{{1,2}},? \d{{4}}",  # Dec 31, 2026
    rf"[A-Z][a-z]{{2}},? (?:\d{{1,2}} {_MONTH}|{_MONTH} \d{{1,2}})",  # Thu, 31 Dec 2026
    r"\d{8}T\d{4,6}|\d{4}-\d{2}-\d{2}\D",  # 20261231T2359, 2026-12-31 23:59 CET
)
_UNREAD_TIME = rf"^(?:{'|'.join(_UNREAD_TIMES)})"
_OF_DAY = r"^\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[AaPp][Mm])?$"
_ANY_NUMBER = f"{_DRESSED}|{NUMBER}|{_COMMA}"
_LIST = r"(?s)^\[.*\]$"
_BETWEEN = {separator: rf"\S[{separator}]" for separator in ("|", ";", ",", " ")}

_UNREAD = {
    _UNREAD_TIME: (
        "dates in a form that is not read (write them as 2026-12-31 or 2026-12-31T23:59:00)"
    ),
    _OF_DAY: TIME_OF_DAY,
    r"(?s)^(?:\{.*\}|\((?:.*,.*)?\)|\[\s*[\[{(].*\])$": "objects, sets or lists in lists",
}


@dataclass(frozen=True)
class Written:
    """What a column of R texts holds."""

    form: Form
    values: pl.Series
    """(R,) the values, parsed; null where there is none. Lists stay the text that they are."""
    gaps: Counts
    """Texts that stand for a missing value."""
    odd: Counts = field(default_factory=dict)
    """Texts that are no number, time or list, where nearly all others are; null in `values`."""
    separator: str | None = None
    """What stands between the ids of a list without brackets."""
    decimal: Decimal | None = None
    """The mark in its numbers, as in 15.48 or 15,48, if there is any."""
    unfit: str | None = None
    """Why such values are no input."""


def read(texts: pl.Series, *, expects_number: bool) -> Written:
    """Find out what the texts (R,) are.

    Args:
        texts: Strings.
        expects_number: Whether the column's name says that a whole number in it is an amount or a
            moment; among whole numbers of another name, text is an id like any other.
    """
    column = _Texts(texts, expects_number)
    found = column.scalar() or column.unread() or column.bracketed() or column.separated()
    return found or column.written("text")


def are_fractions(pieces: pl.Series) -> bool:
    """Whether the pieces of lists are numbers, some of them no whole ones; gaps aside."""
    pieces = pieces.filter(~pieces.is_in(list(MISSING_VALUES)))
    fractions = pieces.str.contains(r"\.\d*[1-9]|[eE]-")
    return len(pieces) > 0 and bool(pieces.str.contains(NUMBER).all() and fractions.any())


def are_values(texts: pl.Series) -> pl.Series:
    """Whether each of the texts (N,), by itself, is a truth value, a number or a time.

    >>> are_values(pl.Series(["0.5", "2026-03-01", "007", "price", "NA"])).to_list()
    [True, True, False, False, False]
    """
    number = texts.str.contains(NUMBER) & ~texts.str.contains(PADDED)
    number |= texts.str.contains(r"^[+-]?\d+,\d+$")
    return number | _booleans(texts).is_not_null() | _times(texts).is_not_null()


class _Texts:
    """The texts (R,) of a column, and guesses about them: by a part of the different ones first,
    by all of them where that part says yes."""

    def __init__(self, texts: pl.Series, expects_number: bool) -> None:
        plain = texts.str.strip_chars()
        is_gap = plain.is_in(list(MISSING_VALUES))
        self.known = plain.set(is_gap, None)
        self.rows = len(texts) - self.known.null_count()
        self.gaps = _counted(plain.filter(is_gap))
        self.expects_number = expects_number
        self.distinct = self.known.drop_nulls().unique(maintain_order=True)
        self.some = self.distinct.head(_SOME)

    def written(self, form: Form, values: pl.Series | None = None, **told: Any) -> Written:
        """What was found."""
        return Written(form, self.known if values is None else values, self.gaps, **told)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Pattern of texts that are no scalars → share of some of the different ones."""
        return self._shares(
            (_DRESSED, _ANY_NUMBER, _THOUSANDS, *_UNREAD, _LIST, *_BETWEEN.values())
        )

    def scalar(self) -> Written | None:
        """One truth value, number or time a row, if the texts are that."""
        looks = self._shares(like for like, _, _ in _FORMS.values())
        nearly: list[Written] = []
        for form, (like, kind, parse) in _FORMS.items():
            if looks[like] < _HARDLY:
                continue
            values = parse(self.known)
            fits = values.is_not_null()
            odd = self._odd(fits)
            mark = self._mark(fits, "," if form == "comma" else ".") if kind != "time" else None
            found = self.written(kind, values, odd=odd, decimal=mark)
            if not odd:
                return found
            may_err = kind in ("number", "time") or (kind == "whole" and self.expects_number)
            if may_err and self.rows - sum(odd.values()) >= _NEARLY * self.rows:
                nearly.append(found)
        for found in nearly:
            whole = found.form == "number" and (found.values == found.values.floor()).all()
            if not whole or self.expects_number:
                return found
        return None

    def unread(self) -> Written | None:
        """Numbers, times and lists in a form that is not read, if the texts are such."""
        shares = self.shares
        dressed = shares[_DRESSED] > 0.02 and shares[_ANY_NUMBER] >= _NEARLY
        if dressed or (self.expects_number and shares[_THOUSANDS] == 1):
            return self.written("unfit", unfit=DRESSED)
        for pattern, why in _UNREAD.items():
            if shares[pattern] >= _NEARLY:
                return self.written("unfit", unfit=why)
        return None

    def bracketed(self) -> Written | None:
        """Several ids a row, if the texts are lists in brackets; a vector is no input."""
        if self.shares[_LIST] < _HARDLY:
            return None
        is_list = self.known.str.contains(_LIST)
        odd = self._odd(is_list)
        if self.rows - sum(odd.values()) < _NEARLY * self.rows:
            return None
        some = self.some.filter(self.some.str.contains(_LIST))
        if are_fractions(_pieces(some, None)):
            return self.written("unfit", unfit=VECTOR)
        return self.written("list", self.known.set(~is_list, None), odd=odd)

    def separated(self) -> Written | None:
        """Several ids a row, if a separator stands between them; a vector is no input."""
        for separator, pattern in _BETWEEN.items():
            if self.shares[pattern] <= 0.2:
                continue
            pieces = _pieces(self.some, separator)
            if are_fractions(pieces):
                return self.written("unfit", unfit=VECTOR)
            if len(self.distinct) > len(self.some):
                pieces = _pieces(self.distinct, separator)
            numbered = separator != " " or pieces.str.contains(r"\d").all()  # else words of a text
            if numbered and pieces.n_unique() < len(self.distinct):
                return self.written("list", separator=separator)
        return None

    def _mark(self, fits: pl.Series, mark: Decimal) -> Decimal | None:
        """The decimal mark, if one of the texts that fit has it."""
        return mark if (fits & self.known.str.contains(mark, literal=True)).any() else None

    def _odd(self, fits: pl.Series) -> Counts:
        """The texts that do not fit."""
        return {} if fits.sum() == self.rows else _counted(self.known.filter(~fits))

    def _shares(self, patterns: Iterable[str]) -> dict[str, float]:
        """Of some of the different texts, the share that matches each pattern."""
        asked = {pattern: pl.col("text").str.contains(pattern).mean() for pattern in patterns}
        numbered = {str(place): share for place, share in enumerate(asked.values())}
        found = self.some.alias("text").to_frame().select(**numbered).row(0)
        return {pattern: share or 0.0 for pattern, share in zip(asked, found, strict=True)}


def _fit(values: pl.Series) -> float:
    """Share of the values that are not null."""
    return 1 - values.null_count() / len(values) if len(values) else 0.0


def _counted(values: pl.Series) -> Counts:
    """How often each of the values is there, the most frequent first."""
    counts = values.rename("value").drop_nulls().value_counts(sort=True)
    return dict(counts.rows())


def _pieces(known: pl.Series, separator: str | None) -> pl.Series:
    """The ids of lists as text, one after the other."""
    return lists.split(known, separator).explode().drop_nulls()


def _booleans(known: pl.Series) -> pl.Series:
    lower = known.str.to_lowercase()
    whether = (lower == "true").cast(pl.Int64)
    return whether.set(~lower.is_in(["true", "false"]), None)


def _wholes(known: pl.Series) -> pl.Series:
    """Whole numbers, as floats write them too; of more than 64 bits where one of them has more."""
    digits = _matching(known, _WHOLE).str.replace(r"\.0*$", "")
    values = digits.cast(pl.Int64, strict=False)
    same = values.null_count() == digits.null_count()
    return values if same else digits.cast(pl.Int128, strict=False)


def _numbers(known: pl.Series) -> pl.Series:
    return _matching(known, NUMBER).cast(pl.Float64, strict=False)


def _numbers_with_comma(known: pl.Series) -> pl.Series:
    """None of them where the texts may as well be lists of two ids."""
    numbers = _matching(known, _COMMA)
    texts = numbers.drop_nulls()
    has_comma = _fit(_matching(texts, ","))
    cents = has_comma > 0.8 and texts.str.contains(r"^[^,]*(?:,\d{1,2})?$").all()
    zeros = has_comma >= 0.5 and texts.str.contains(r",0\d|^0,").any()
    if texts.str.contains(_THOUSANDS).all() or not (cents or zeros):
        numbers = _matching(known, r"[^\s\S]")  # nothing
    return numbers.str.replace(",", ".", literal=True).cast(pl.Float64)


def _times(known: pl.Series) -> pl.Series:
    return pl.select(moments.parsed(pl.lit(known))).to_series().alias(known.name)


def _matching(known: pl.Series, pattern: str) -> pl.Series:
    """The texts that match, null for the others; none match where one is a name of digits."""
    matches = known.str.contains(pattern)
    if pattern in (_WHOLE, NUMBER) and known.str.contains(PADDED).any():
        matches = matches & False
    return known.set(~matches, None)


_FORMS: dict[str, tuple[str, Form, Callable[[pl.Series], pl.Series]]] = {
    "boolean": (r"(?i)^(?:true|false)$", "boolean", _booleans),
    "whole": (_WHOLE, "whole", _wholes),
    "number": (NUMBER, "number", _numbers),
    "time": (r"^\d{4}[-/]\d{1,2}[-/]\d", "time", _times),
    "comma": (_COMMA, "number", _numbers_with_comma),
}
"""Name of a form → what its texts look like, what its values are, and how they are read: null where
a text has another form."""
