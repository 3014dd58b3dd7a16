"""Repeated rows: the first one stays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data.partition import partitions
from loractr.data.staging import Staged

_ROW = "loractr row"


def first_of_each(staged: Staged, columns: Sequence[str], scratch: Path) -> NDArray[np.bool_]:
    """Whether each staged row is the first with its values in `columns`; missing equals missing.

    Rows are brought together by hash in parts on disk and compared there by their values.

    Args:
        staged: The rows.
        columns: Columns to compare.
        scratch: Directory for temporary files.
    """
    keep = np.zeros(staged.rows, dtype=np.bool_)
    batches = (frame.with_columns(pl.Series(_ROW, rows)) for rows, frame in staged.batches(columns))
    for part in partitions(batches, columns, scratch, staged.rows):
        first = part.unique(subset=list(columns), keep="first", maintain_order=True)
        keep[first[_ROW].to_numpy()] = True
    return keep
