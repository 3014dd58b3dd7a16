"""What a row tells besides its inputs: label, weight, group, true probability."""

from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical
from loractr.data.canonical import Positions, at
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
        return frame[name]

    label = labels(column(schema.label.column, "the label"), schema.label, rows.row)
    weight = group = truth = None
    if schema.weight is not None:
        weight = weights(column(schema.weight, "`weight`"), rows.row)
    if schema.group is not None:
        group = groups(column(schema.group, "`group`"))
    if oracle is not None:
        truth = probabilities(column(oracle, "the source"), rows.row)
    return replace(rows, label=label, weight=weight, group=group, oracle=truth)


def labels(values: pl.Series, label: Label, rows: Positions) -> NDArray[np.float32]:
    """Label of each row (N,), 0 or 1, by the label's rule or as the column holds it.

    Raises:
        DataError: A label is missing, or neither 0 nor 1 where no rule says what is positive.
    """
    numbers = canonical.numbers(values, "label", rows)
    missing = np.isnan(numbers)
    if missing.any():
        raise DataError(
            f"label column {label.column!r}: {missing.sum()} labels are missing"
            f" ({at(rows[missing])}).",
            fix="drop the rows without a label before preparing.",
        )
    if label.rule is not None:
        sign, bound = label.rule
        return _COMPARE[sign](numbers, bound).astype(np.float32)
    wrong = (numbers != 0) & (numbers != 1)
    if wrong.any():
        found = values.filter(wrong).unique(maintain_order=True).head(9).to_list()
        raise DataError(
            f"label column {label.column!r} holds {some(found)} ({at(rows[wrong])}); a label is"
            " 0 or 1.",
            fix='say which rows are positive, e.g. `label: {column: rating, positive: ">= 4"}`.',
        )
    return numbers.astype(np.float32)


def weights(values: pl.Series, rows: Positions) -> NDArray[np.float32]:
    """Weight of each row (N,).

    Raises:
        DataError: A weight is missing or negative.
    """
    numbers = canonical.numbers(values, "weight", rows)
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


def groups(values: pl.Series) -> NDArray[np.int64]:
    """Key of each row's group (N,), dense; equal values, and only those, have equal keys."""
    ids = canonical.ids(values, "group")
    return ids.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
