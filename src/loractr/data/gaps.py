"""What encoded rows do not say: values that are not there, and ids that training never saw.

Encoding gives a missing number the mean of the training rows, and a missing id index 0 where no
training row was without one. Where an index or a number leaves it open, the raw value decides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical, hashing
from loractr.data.canonical import Positions, column_of
from loractr.data.encode import Encoders, is_domain_field
from loractr.data.rows import Rows
from loractr.schema import Field, Schema

NONE: Positions = np.zeros(0, dtype=np.int64)

HasNone = Callable[[Positions], NDArray[np.bool_]]
"""Which of some rows (K,) have no raw value."""


@dataclass(frozen=True)
class Gaps:
    """By name of the field, for every field that `inputs` names.

    Args:
        missing: Rows without a value, rising: of a sequence, without any id.
        unknown: Row of each id that training never saw (index 0), rising; a sequence's row stands
            there once for each such id. Missing ones are not among them.
    """

    missing: dict[str, Positions]
    unknown: dict[str, Positions]


def inputs(schema: Schema) -> tuple[Field, ...]:
    """The fields that read a column: the domain as a field does not."""
    return tuple(field for field in schema.fields if not is_domain_field(field, schema))


def find(rows: Rows, encoders: Encoders, frame: pl.DataFrame | None = None) -> Gaps:
    """The gaps of encoded rows.

    Args:
        rows: Encoded rows.
        encoders: What encoded them.
        frame: The same rows, raw. Without it no number is known to be missing, and a missing id
            counts as unknown where training has seen none.
    """
    schema, missing, unknown = encoders.schema, {}, {}
    categorical = [field.name for field in schema.categorical]
    numerical = [field.name for field in schema.numerical]
    for field in inputs(schema):
        has_none = _look(frame, field, schema.missing_values)
        none, new = NONE, NONE
        if field.kind == "numerical":
            if field.missing == "mean":
                column = rows.numbers[:, numerical.index(field.name)]
                filled = np.flatnonzero(column == np.float32(field.fill))
                none = filled[has_none(filled)]
        elif field.kind == "categorical":
            index = rows.ids[:, categorical.index(field.name)]
            none, new = _of_ids(index, np.arange(len(rows)), _missing(field, encoders), has_none)
        else:
            none, new = _of_bags(*rows.sequences[field.name], _missing(field, encoders), has_none)
        missing[field.name], unknown[field.name] = none, new
    return Gaps(missing, unknown)


def _of_ids(
    index: NDArray[np.int32], row: Positions, missing: int, has_none: HasNone
) -> tuple[Positions, Positions]:
    """Rows without an id, and rows of an unknown one, from indices (K,), one each of rows (K,)."""
    unknown = row[index == 0]
    if missing:
        return row[index == missing], unknown
    none = has_none(unknown)
    return unknown[none], unknown[~none]


def _of_bags(
    values: NDArray[np.int32], offsets: Positions, missing: int, has_none: HasNone
) -> tuple[Positions, Positions]:
    """The same of sequences: a row without any id holds one missing id."""
    alone = np.flatnonzero(np.diff(offsets) == 1)
    none, new = _of_ids(values[offsets[alone]], alone, missing, has_none)
    among = np.flatnonzero(values == 0)
    row = np.searchsorted(offsets, among, side="right") - 1
    several = row[np.diff(offsets)[row] > 1]
    return none, np.sort(np.concatenate([new, several]))


def _missing(field: Field, encoders: Encoders) -> int:
    """The index that a missing id has, 0 where it is unknown."""
    if field.hash_buckets is not None:
        return hashing.MISSING
    values = encoders.vocabularies[field.name].values
    return int(values.is_null().arg_max() or 0) + 1 if values.null_count() else 0


def _look(frame: pl.DataFrame | None, field: Field, missing: tuple[str, ...]) -> HasNone:
    """Look at the raw values of a field; without a frame, nothing is known to be missing."""
    if frame is None:
        return lambda rows: np.zeros(len(rows), dtype=np.bool_)
    column, what = column_of(frame, field.source_column), f"field {field.name!r}"
    reading = canonical.reading_of(field, missing)

    def has_none(rows: Positions) -> NDArray[np.bool_]:
        if not len(rows):
            return np.zeros(0, dtype=np.bool_)
        chosen = column.gather(rows)
        if field.kind == "numerical":
            return np.isnan(canonical.numbers(chosen, what, rows, missing))
        if field.kind == "sequence":
            chosen = canonical.bags_of(chosen, field, reading)[0]
        return canonical.ids(chosen, what, reading).is_null().to_numpy()

    return has_none
