"""What a column of text holds: truth values, numbers, times, lists of ids, or names.

Real files hold a few values that do not fit the others (`-` among prices), and lists in many
spellings. So a column is what nearly all of its values are, and what the others are is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from loractr.data import moments
from loractr.data.config import MISSING_VALUES

Form = Literal["boolean", "whole", "number", "time", "list", "text", "unfit"]
Counts = dict[str, int]
"""Text → how many rows hold it, the most frequent first."""

VECTOR = (
    "a vector, not ids (`pretrained` reads a file of ids with their vectors; or make each of its"
    " numbers a column)"
)
"""Why a list of fractions is no input."""
TIME_OF_DAY = "a time of day (its hour may be an input)"
"""Why a time without a date is none."""

SEPARATORS = ("|", ";", ",", " ")
_NEARLY = 0.9  # of the values must fit, for the others to be mistakes
_ENTRY = r"""(?s)"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^,\s"']+"""
_WHOLE = r"^-?(?:0|[1-9]\d*)(?:\.0*)?$"
_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
_PADDED = r"^-?0\d|^\+\d{6,}$"  # 007 and +4930123 are names, not numbers
_COMMA = r"^[+-]?\d+(?:,\d+)?$"
_UNIT = r"(?:[€$£¥%]|EUR|USD|GBP|CNY|RMB)"
_DRESSED = (
    rf"^(?:{_UNIT}\s*[+-]?\d[\d.,' ]*|[+-]?\d[\d.,' ]*\s*{_UNIT}"
    r"|[+-]?\d{1,3}(?:,\d{3})+\.\d+|[+-]?\d{1,3}(?:\.\d{3})+,\d+)$"
)
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


@dataclass(frozen=True)
class Written:
    """What a column of R texts holds."""

    form: Form
    values: pl.Series
    """(R,) the values, parsed; null where there is none. Lists stay the text that they are."""
    gaps: Counts
    """Texts that stand for a missing value."""
    odd: Counts = field(default_factory=dict)
    """Texts that are not what nearly all others are; null in `values`."""
    separator: str | None = None
    """What stands between the ids of a list without brackets."""
    decimal_comma: bool = False
    """Whether numbers are written as 15,48."""
    unfit: str | None = None
    """Why such values are no input."""


def read(texts: pl.Series, *, expects_number: bool) -> Written:
    """Find out what the texts (R,) are.

    Args:
        texts: Strings.
        expects_number: Whether the column's name says that a whole number in it is an amount or a
            moment; among whole numbers of another name, text is an id like any other.
    """
    plain = texts.str.strip_chars()
    is_gap = plain.is_in(list(MISSING_VALUES))
    known = plain.set(is_gap, None)
    gaps = counted(plain.filter(is_gap))
    found = _scalar(known, gaps, expects_number) or _dressed(known, gaps)
    return found or _listed(known, gaps) or Written("text", known, gaps)


def counted(values: pl.Series) -> Counts:
    """How often each of the values is there, the most frequent first."""
    counts = values.rename("value").drop_nulls().value_counts(sort=True)
    return dict(counts.rows())


def pieces(known: pl.Series, separator: str | None) -> pl.Series:
    """The ids of lists as text, in brackets where there is no separator, one after the other."""
    if separator is not None:
        parts = known.str.split(separator).explode().str.strip_chars()
    else:
        inner = known.str.strip_chars().str.strip_prefix("[").str.strip_suffix("]")
        parts = inner.str.extract_all(_ENTRY).explode().str.strip_chars("\"'")
    return parts.filter(parts != "")


def _scalar(known: pl.Series, gaps: Counts, expects_number: bool) -> Written | None:
    """One truth value, number or time a row, if the texts are that."""
    rows = len(known) - known.null_count()
    if not rows:
        return None
    nearly: list[Written] = []
    for form, parse in _FORMS.items():
        values = parse(known)
        odd = known.filter(values.is_null() & known.is_not_null())
        read = Written(form, values, gaps, counted(odd))
        if not len(odd):
            return read
        may_err = form in ("number", "time") or (form == "whole" and expects_number)
        if may_err and rows - len(odd) >= _NEARLY * rows:
            nearly.append(read)
    comma = _with_comma(known)
    if comma is not None:
        return Written("number", comma, gaps, decimal_comma=True)
    for read in nearly:
        whole = read.form == "number" and (read.values == read.values.floor()).all()
        if not whole or expects_number:
            return read
    return None


def _booleans(known: pl.Series) -> pl.Series:
    lower = known.str.to_lowercase()
    whether = (lower == "true").cast(pl.Int64)
    return whether.set(~lower.is_in(["true", "false"]), None)


def _wholes(known: pl.Series) -> pl.Series:
    """Whole numbers, as floats write them too; of more than 64 bits where one of them has more."""
    if known.str.contains(_PADDED).any():
        return pl.Series(known.name, [None], dtype=pl.Int64).new_from_index(0, len(known))
    digits = known.set(~known.str.contains(_WHOLE), None).str.replace(r"\.0*$", "")
    values = digits.cast(pl.Int64, strict=False)
    same = values.null_count() == digits.null_count()
    return values if same else digits.cast(pl.Int128, strict=False)


def _numbers(known: pl.Series) -> pl.Series:
    if known.str.contains(_PADDED).any():
        return pl.Series(known.name, [None], dtype=pl.Float64).new_from_index(0, len(known))
    return known.set(~known.str.contains(_NUMBER), None).cast(pl.Float64, strict=False)


def _times(known: pl.Series) -> pl.Series:
    return pl.select(moments.parsed(pl.lit(known))).to_series().alias(known.name)


_FORMS: dict[Form, Callable[[pl.Series], pl.Series]] = {
    "boolean": _booleans,
    "whole": _wholes,
    "number": _numbers,
    "time": _times,
}


def _with_comma(known: pl.Series) -> pl.Series | None:
    """Numbers with a decimal comma; None where the texts may as well be lists of two ids."""
    if _share(known, _COMMA) != 1:
        return None
    has_comma = _share(known, ",")
    cents = _share(known, r"^[^,]*(?:,\d{1,2})?$") == 1 and has_comma > 0.8
    if has_comma < 0.5 or not (cents or known.str.contains(r",0\d|^0,").any()):
        return None
    return known.str.replace(",", ".", literal=True).cast(pl.Float64)


def _dressed(known: pl.Series, gaps: Counts) -> Written | None:
    """Numbers and times in a form that is not read, if the texts are such."""
    dressed = _share(known, _DRESSED)
    if dressed > 0.02 and _share(known, f"{_DRESSED}|{_NUMBER}|{_COMMA}") >= _NEARLY:
        why = "numbers with signs that no number has (write them as 1234.5)"
    elif _share(known, _UNREAD_TIME) >= _NEARLY:
        why = "dates in a form that is not read (write them as 2026-12-31 or 2026-12-31T23:59:00)"
    elif _share(known, _OF_DAY) >= _NEARLY:
        why = TIME_OF_DAY
    elif _share(known, r"(?s)^(?:\{.*\}|\((?:.*,.*)?\)|\[\s*[\[{(].*\])$") >= _NEARLY:
        why = "objects, sets or lists in lists"
    else:
        return None
    return Written("unfit", known, gaps, unfit=why)


def _listed(known: pl.Series, gaps: Counts) -> Written | None:
    """Several ids a row, if the texts are lists; a vector is no input."""
    if _share(known, r"(?s)^\[.*\]$") >= _NEARLY:
        return _list(known, gaps, None)
    for separator in SEPARATORS:
        if not _share(known, rf"\S[{separator}]") > 0.2:
            continue
        found = pieces(known, separator)
        if are_fractions(found):
            return _list(known, gaps, separator)
        numbered = separator != " " or found.str.contains(r"\d").all()  # else words of a text
        if numbered and found.n_unique() < known.drop_nulls().n_unique():
            return _list(known, gaps, separator)
    return None


def _list(known: pl.Series, gaps: Counts, separator: str | None) -> Written:
    if are_fractions(pieces(known, separator)):
        return Written("unfit", known, gaps, unfit=VECTOR)
    return Written("list", known, gaps, separator=separator)


def are_fractions(found: pl.Series) -> bool:
    """Whether the pieces of lists are numbers, some of them no whole ones."""
    fractions = found.str.contains(r"\.\d*[1-9]|[eE]-")
    return len(found) > 0 and bool(found.str.contains(_NUMBER).all() and fractions.any())


def _share(known: pl.Series, pattern: str) -> float:
    """Share of the known texts that match."""
    return known.drop_nulls().str.contains(pattern).mean() or 0.0  # type: ignore[return-value]
