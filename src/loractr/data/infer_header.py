"""The first line of a CSV file of which nothing is known: names of columns, or already a row."""

from pathlib import Path

import polars as pl

from loractr.data.column_names import shown
from loractr.data.column_texts import are_values
from loractr.data.sources import table
from loractr.errors import DataError, MalformedLineError, some

_NO_HEADER = (
    "name every column once, in the first line; if that holds a row already, put a line of names"
    " before it, e.g. user_id,item_id,shop,click."
)


def scanned(path: Path) -> pl.LazyFrame:
    """The table at `path`.

    Raises:
        DataError: it cannot be read; the first line of a CSV file cannot be names.
    """
    try:
        return table.scan(path)
    except MalformedLineError as error:
        if "the header" not in error.problem:  # rows, or bytes, which have advice of their own
            raise
        raise DataError(error.problem, fix=_NO_HEADER) from error


def refuse_values_as_names(path: Path, sample: pl.DataFrame) -> None:
    """Refuse a CSV file whose first line is a row: most names look like values.

    Raises:
        DataError: the first line seems to hold values, or stands among the rows again.
    """
    names = [name.strip() for name in sample.columns]
    like_values = are_values(pl.Series(names)).to_list()
    texts = [values.alias("").cast(pl.String) for values in sample]
    among = [one.eq_missing(name).any() for one, name in zip(texts, sample.columns, strict=True)]
    if any(like_values) and not _counted(names):
        doubtful = sum(a or b for a, b in zip(like_values, among, strict=True))
        if 2 * doubtful >= len(names):
            raise DataError(
                f"the first line of {path} looks like values, not names:"
                f" {some(shown(name) for name in names)}.",
                fix=_NO_HEADER,
            )
    elif len(names) > 1 and all(among):
        raise DataError(
            f"the header of {path} stands among its rows again: {some(map(shown, names))}.",
            fix="remove the lines that repeat it.",
        )


def _counted(names: list[str]) -> bool:
    """Whether those names that are numbers count on, as pandas names columns: 0, 1, 2, …"""
    numbers = [int(name) for name in names if name.isdecimal()]
    first = numbers[0] if numbers else 0
    return len(numbers) > 1 and numbers == list(range(first, first + len(numbers)))
