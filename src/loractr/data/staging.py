"""The columns that preparing needs, written once from the source, then read again and again.

A source may be text, a join, a computation: it is evaluated once, streaming, into a Parquet file
beside the output; all later passes read that, in batches of a fixed size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray
from polars.selectors import by_name

from loractr.data.aside import disk_is_full
from loractr.data.canonical import Positions
from loractr.errors import DataError

BATCH_ROWS = 1 << 18
"""Rows of a batch. Splits are drawn batch by batch: another size gives another split."""

_AS_TEXT = (pl.Int128, pl.UInt128, pl.Categorical, pl.Enum)  # pyarrow cannot read them back as such


@dataclass(frozen=True)
class Staged:
    """The staged rows of a source."""

    path: Path
    rows: int
    types: dict[str, pl.DataType]

    def batches(
        self, columns: Sequence[str], keep: NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[Positions, pl.DataFrame]]:
        """Positions in the source (N,) and raw values of each batch, in the order of the source.

        Args:
            columns: Columns to read.
            keep: (rows,) whether to give a row; all when absent.
        """
        start = 0
        with pq.ParquetFile(self.path) as file:
            for part in _equal(file, list(dict.fromkeys(columns))):
                rows = np.arange(start, start + len(part), dtype=np.int64)
                start += len(part)
                mask = None if keep is None else keep[rows]
                yield (
                    (rows, part) if mask is None or mask.all() else (rows[mask], part.filter(mask))
                )


def stage(source: pl.LazyFrame, columns: Sequence[str], path: Path) -> Staged:
    """Write `columns` of `source` to `path`, streaming.

    Raises:
        DataError: The source cannot be read, or has no rows.
    """
    types = source.collect_schema()
    chosen = [
        by_name(name).cast(pl.String) if types[name] in _AS_TEXT else by_name(name)
        for name in dict.fromkeys(columns)
    ]
    try:
        source.select(chosen).sink_parquet(
            path, compression="lz4", statistics=False, row_group_size=BATCH_ROWS
        )
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if disk_is_full(error) or "KeyboardInterrupt" in str(error):
            raise
        reason = str(error).strip().splitlines()[0][:300]
        raise DataError(
            f"the source cannot be read: {reason}", fix="correct the file, or fetch it again."
        ) from error
    rows = pq.read_metadata(path).num_rows
    if not rows:
        raise DataError("the table has no rows.", fix="check the path of the source.")
    return Staged(path, rows, dict(pl.read_parquet_schema(path)))


def _equal(file: pq.ParquetFile, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Batches of BATCH_ROWS rows each (the last one of fewer), whatever the file's row groups."""
    held = pl.DataFrame()
    for group in range(file.num_row_groups):  # `iter_batches` would hold on to all it has read
        read = pl.DataFrame(pl.from_arrow(file.read_row_group(group, columns)))[columns]
        held = pl.concat([held, read]) if len(held) else read
        while len(held) >= BATCH_ROWS:
            yield held.head(BATCH_ROWS)
            held = held.slice(BATCH_ROWS)
    if len(held):
        yield held
