"""What a row tells besides its inputs: label, weight, group, true probability."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical
from loractr.data.canonical import Positions, at, column_of
from loractr.data.rows import Rows
from loractr.errors import DataError, MissingColumnError, some
from loractr.schema import Label, Schema

_COMPARE = {
    "==": np.equal,
    "!=": np.not_equal,
    ">=": np.greater_equal,
    "<=": np.less_equal,
    ">": np.greater,
    "<": np.less,
}


def add(rows: Rows, frame: pl.DataFrame, schema: Schema, *, oracle: str | None = None) -> Rows:
    """`rows` with label, weight and group as `frame`, the raw rows, has them.

    Args:
        rows: Encoded rows (N,).
        frame: The same rows, raw.
        schema: Names the columns.
        oracle: Column of true click probabilities, where there is one.
    """

    def column(name: str, wanted_by: str) -> pl.Series:
        if name not in frame.columns:
            raise MissingColumnError(name, frame.columns, wanted_by=wanted_by)
        return column_of(frame, name)

    missing = schema.missing_values
    label = labels(column(schema.label.column, "the label"), schema.label, rows.row, missing)
    weight = group = truth = None
    if schema.weight is not None:
        weight = weights(column(schema.weight, "`weight`"), rows.row, missing)
    if schema.group is not None:
        group = groups(column(schema.group, "`group`"), missing)
    if oracle is not None:
        truth = probabilities(column(oracle, "the source"), rows.row)
    return replace(rows, label=label, weight=weight, group=group, oracle=truth)


def labels(
    values: pl.Series, label: Label, rows: Positions, missing: Sequence[str] = ()
) -> NDArray[np.float32]:
    """Label of each row (N,), 0 or 1, by the label's rule or as the column holds it: 0 and 1, or
    true and false, as numbers, booleans or text.

    Raises:
        DataError: A label is missing, or neither 0 nor 1 where no rule says what is positive.
    """
    values = canonical.without(values, missing)
    if label.rule is not None and isinstance(label.rule[1], str):
        _refuse_missing(label, values.is_null().to_numpy(), rows)
        return _by_text(values, label.rule[0], label.rule[1])
    if label.rule is None and values.dtype == pl.String:
        _refuse_text(values, label, rows)
    numbers = canonical.numbers(values, "label", rows, fix=_label_fix(values, label))
    _refuse_missing(label, np.isnan(numbers), rows)
    if label.rule is not None:
        sign, bound = label.rule[0], float(label.rule[1])
        return _COMPARE[sign](numbers, bound).astype(np.float32)
    wrong = (numbers != 0) & (numbers != 1)
    if wrong.any():
        raise _no_label(values, label, wrong, rows)
    return numbers.astype(np.float32)


def _by_text(values: pl.Series, sign: str, wanted: str) -> NDArray[np.float32]:
    same = values.cast(pl.String).str.strip_chars().str.to_lowercase() == wanted.lower()
    return (same if sign == "==" else ~same).to_numpy().astype(np.float32)


def _refuse_missing(label: Label, missing: NDArray[np.bool_], rows: Positions) -> None:
    if missing.any():
        raise DataError(
            f"label column {label.column!r}: {missing.sum()} labels are missing"
            f" ({at(rows[missing])}).",
            fix="drop the rows without a label before preparing.",
        )


def _refuse_text(values: pl.Series, label: Label, rows: Positions) -> None:
    """Words other than true and false need a rule."""
    plain = values.str.strip_chars().str.to_lowercase()
    number = plain.cast(pl.Float64, strict=False).is_not_null()
    wrong = ~(number | plain.is_in(["true", "false"])) & values.is_not_null()
    if wrong.any():
        raise _no_label(values, label, wrong.to_numpy(), rows)


def _no_label(
    values: pl.Series, label: Label, wrong: NDArray[np.bool_], rows: Positions
) -> DataError:
    found = values.filter(pl.Series(wrong)).unique(maintain_order=True).head(9).to_list()
    return DataError(
        f"label column {label.column!r} holds {some(found)} ({at(rows[wrong])}); a label is 0 or 1,"
        " or true or false.",
        fix=_label_fix(values, label),
    )


_YES = ("yes", "y", "t", "click", "clicked", "positive", "pos", "2", "2.0", "1", "1.0")


def _label_fix(values: pl.Series, label: Label) -> str:
    """How to say which rows are positive, by the example of the values that are there."""
    known = values.drop_nulls().unique(maintain_order=True).head(3).cast(pl.String).to_list()
    likely = [value for word in _YES for value in known if value.strip().lower() == word]
    rule = f"== {likely[0].strip()}" if likely and len(known) == 2 else ">= 4"
    said = f'`label: {{column: {label.column}, positive: "{rule}"}}`'
    return f"say in the configuration which rows are positive, e.g. {said}."


def weights(values: pl.Series, rows: Positions, missing: Sequence[str] = ()) -> NDArray[np.float32]:
    """Weight of each row (N,).

    Raises:
        DataError: A weight is missing or negative.
    """
    numbers = canonical.numbers(values, "weight", rows, missing, fix="correct the column.")
    wrong = ~(numbers >= 0)  # NaN, the missing, too
    if wrong.any():
        raise DataError(
            f"weight column {values.name!r}: {wrong.sum()} weights are negative or missing"
            f" ({at(rows[wrong])}); a weight is 0 or more.",
            fix="correct the column.",
        )
    return numbers.astype(np.float32)


def probabilities(values: pl.Series, rows: Positions) -> NDArray[np.float32]:
    """True click probability of each row (N,), where the source knows it.

    Raises:
        DataError: One of them is missing or outside [0, 1].
    """
    numbers = canonical.numbers(values, "true probability", rows)
    wrong = ~((numbers >= 0) & (numbers <= 1))
    if wrong.any():
        raise DataError(
            f"column {values.name!r} of true probabilities: {wrong.sum()} are missing or outside"
            f" [0, 1] ({at(rows[wrong])})."
        )
    return numbers.astype(np.float32)


def groups(values: pl.Series, missing: tuple[str, ...] = ()) -> NDArray[np.int64]:
    """Key of each row's group (N,), dense; equal values, and only those, have equal keys."""
    ids = canonical.ids(values, "group", canonical.decided(values, "group", missing))
    return ids.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
