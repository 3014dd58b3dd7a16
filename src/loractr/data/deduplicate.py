"""Repeated rows: the first one stays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import canonical
from loractr.data.canonical import column_of
from loractr.data.id_type import IdTypes
from loractr.data.partition import partitions
from loractr.data.staging import Staged

_ROW = "loractr row"


def first_of_each(
    staged: Staged, columns: Sequence[str], scratch: Path, missing: tuple[str, ...] = ()
) -> NDArray[np.bool_]:
    """Whether each staged row is the first with its values in `columns`; missing equals missing.
    Text is compared as ids are read: where all values are whole numbers, 52 and 52.0 are the same.

    Rows are brought together by hash in parts on disk and compared there by their values.

    Args:
        staged: The rows.
        columns: Columns to compare.
        scratch: Directory for temporary files.
        missing: Texts that stand for a missing value.
    """
    keep = np.zeros(staged.rows, dtype=np.bool_)
    types = {name: IdTypes(name) for name in columns if staged.types[name] == pl.String}
    for _, frame in staged.batches(list(types)) if types else ():
        for name, found in types.items():
            found.observe(canonical.spelled(column_of(frame, name), name, missing))
    readings = {
        name: canonical.Reading(found.decided(exact=False), missing)
        for name, found in types.items()
    }
    amounts = {name for name, found in types.items() if found.are_decimals}
    keys = [f"key {place}" for place in range(len(columns))]  # a name like ^id$ is a pattern

    def read(frame: pl.DataFrame, name: str) -> pl.Series:
        values = column_of(frame, name)
        if name in amounts:
            return canonical.without(values, missing).cast(pl.Float64, strict=False)
        if name in readings:
            return canonical.ids(values, name, readings[name])
        return values.fill_nan(None) if values.dtype.is_float() else values

    batches = (
        pl.DataFrame(
            [read(frame, name).alias(key) for name, key in zip(columns, keys, strict=True)]
        ).with_columns(pl.Series(_ROW, rows))
        for rows, frame in staged.batches(columns)
    )
    for part in partitions(batches, keys, scratch, staged.rows):
        first = part.unique(subset=keys, keep="first", maintain_order=True)
        keep[first[_ROW].to_numpy()] = True
    return keep
