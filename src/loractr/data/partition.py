"""Rows that belong together, brought together on disk: a group-by in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pyarrow as pa

PART_ROWS = 1 << 20
"""Rows of one part, on average."""
_MOST_PARTS = 256  # files open at the same time
_SEED = 0x6C6F7261  # apart from the hashes of Polars' own group-by


def partitions(
    batches: Iterable[pl.DataFrame], by: Sequence[str], scratch: Path, rows: int
) -> Iterator[pl.DataFrame]:
    """All rows of `batches`, in parts: rows that agree in the columns `by` are in the same part, in
    the order of the batches.

    Args:
        batches: Frames with the same columns.
        by: Columns.
        scratch: Directory for the parts; each is removed once it has been given.
        rows: About how many rows there are.
    """
    count = min(max(1, -(-rows // PART_ROWS)), _MOST_PARTS)
    paths = [scratch / f"part-{number}.arrows" for number in range(count)]
    try:
        _deal(batches, by, paths)
        for path in paths:
            if path.exists():
                yield pl.read_ipc_stream(path)
                path.unlink()
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _deal(batches: Iterable[pl.DataFrame], by: Sequence[str], paths: Sequence[Path]) -> None:
    with ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        for batch in batches:
            part = (batch.select(by).hash_rows(_SEED) % len(paths)).alias("part")
            for number in part.unique().to_list():
                table = batch.filter(part == number).to_arrow()
                if number not in writers:
                    stream = pa.ipc.new_stream(str(paths[number]), table.schema)
                    writers[number] = stack.enter_context(stream)
                writers[number].write_table(table)
