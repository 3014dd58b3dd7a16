"""The first bad line of a CSV file, found line by line once it is known that there is one."""

import re
from collections.abc import Mapping

import polars as pl

from loractr.data.sources.readings import NUMBER, WHOLE, Reading, known, unread
from loractr.data.sources.text_file import (
    NOT_UTF_8,
    SAY_ENCODING,
    SAY_QUOTE,
    TextFile,
    is_utf_8,
)
from loractr.data.sources.text_form import STANDARD, TextForm
from loractr.errors import MalformedLineError, some

_BATCH = 10_000


def raise_first_bad_line(file: TextFile, readings: Mapping[str, Reading]) -> None:
    """Read the file record by record until one is bad. Raises MalformedLineError, if one is."""
    pending: dict[int, list[str]] = {}
    for line, values, raw in file.rows():
        problem = _shape_problem(values, raw, file)
        if problem or len(pending) == _BATCH:
            _raise_first_unreadable(file, pending, readings)
            pending.clear()
        if problem:
            raise MalformedLineError(file.path, line, problem[0], fix=problem[1])
        pending[line] = values
    _raise_first_unreadable(file, pending, readings)


def _shape_problem(values: list[str], raw: str, file: TextFile) -> tuple[str, str | None] | None:
    """What is wrong with one record before its values are looked at, and what to do, if it is."""
    if values and len(values) != len(file.columns):
        named = some((name[:30] for name in file.named), 5)
        return f"expected {len(file.columns)} values ({named}), found {len(values)}", None
    if not is_utf_8(raw):
        return NOT_UTF_8, SAY_ENCODING
    quote = file.form.quote
    for value in values:
        if quote and quote in value and quote + value.replace(quote, quote * 2) + quote not in raw:
            problem = "a value with quotes in it must be quoted, its own quotes doubled"
            return f"{problem}: {value[:40]}", SAY_QUOTE
    return None


def _raise_first_unreadable(
    file: TextFile, records: Mapping[int, list[str]], readings: Mapping[str, Reading]
) -> None:
    places = {name: place for place, name in enumerate(file.columns)}
    lines, rows = list(records), list(records.values())
    problems: list[tuple[int, str, Reading, str]] = []
    for name, reading in readings.items():
        values = [row[places[name]] if row else "" for row in rows]
        written = pl.LazyFrame({name: pl.Series(values, dtype=pl.String)})
        asked = known(written, [name], file.form).select(unread(name, reading))
        bad = asked.collect().to_series().arg_true()
        if len(bad):
            problems.append((lines[bad[0]], name, reading, values[bad[0]]))
    if problems:
        line, name, reading, value = min(problems, key=lambda problem: problem[0])
        problem = f"{name[:60]} must be {reading.what}, not {value[:40]!r}"
        raise MalformedLineError(file.path, line, problem, fix=_advice(value, reading, file.form))


def _advice(value: str, reading: Reading, form: TextForm) -> str | None:
    """What to do about a value that cannot be read."""
    value = value.strip()
    if form == STANDARD:  # a file of a known data set
        return None
    if reading in (NUMBER, WHOLE) and re.fullmatch(r"[+-]?\d+,\d+", value):
        return (
            'if the comma is the decimal mark, say `decimal: ","` in the data section; write'
            " thousands without a mark."
        )
    if form.decimal == "," and "." in value:
        return (
            'with `decimal: ","` no number may hold a point: leave that setting out, or write'
            " thousands without a mark."
        )
    return (
        f"correct or remove that line; or, if {value[:40]!r} stands for a missing value and the"
        " column may have some, list it in `missing_values` in the data section."
    )
