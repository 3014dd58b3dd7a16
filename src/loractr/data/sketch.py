"""Small random samples of many rows, taken batch by batch, whatever the number of rows.

Each row has a number that looks random but depends on the row alone; the rows with the smallest
numbers are the sample. Two data sets choose the same rows wherever they have the same, so that the
share of rows of one that are also in the other can be told from the samples.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loractr.data.hashing import splitmix64
from loractr.data.rows import Rows

Marks = NDArray[np.uint64]

_BITS = 53
"""Bits of a mark: JSON readers keep so many."""
ALL = 2**_BITS
"""A limit that no mark reaches."""


def marks(rows: Rows) -> Marks:
    """A number below 2 ** 53 for each encoded row (N,): equal rows, and with few exceptions only
    those, have equal marks, in every process and on every machine. All that the model reads counts,
    and the label where there is one; where the row stands in its source, and the order of the ids
    of a sequence, do not.
    """
    tables: list[NDArray[Any]] = [rows.ids, rows.domains, _bits(rows.numbers)]
    tables += [] if rows.label is None else [_bits(rows.label)[:, None]]
    tables += [_of_bags(*bags)[:, None] for bags in rows.sequences.values()]
    # odd multipliers that look random: a sum of products is equal by chance only
    count = sum(table.shape[1] for table in tables)
    factors = splitmix64(np.arange(count, dtype=np.uint64)) | np.uint64(1)
    total, first = np.zeros(len(rows), dtype=np.uint64), 0
    for table in tables:
        total += table.astype(np.uint64) @ factors[first : first + table.shape[1]]
        first += table.shape[1]
    return splitmix64(total) >> np.uint64(64 - _BITS)


def _bits(numbers: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The first 16 of 24 bits of precision: the last ones differ between files of one table, where
    one has it in float32 and another as text."""
    exact = (numbers + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
    return (exact + np.uint32(1 << 7)) >> np.uint32(8)


def _of_bags(values: NDArray[np.int32], offsets: NDArray[np.int64]) -> Marks:
    """A number for each sequence (N,), whatever its order; each has one id at least."""
    if len(offsets) == 1:
        return np.zeros(0, dtype=np.uint64)
    return np.add.reduceat(splitmix64(values.astype(np.uint64)), offsets[:-1])


class Sketch:
    """The `size` smallest of many marks, each once, and how often each was there."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.limit = ALL
        """Every mark below it that was added is kept."""
        self.marks: Marks = np.zeros(0, dtype=np.uint64)
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, found: Marks) -> None:
        """Take in marks (N,)."""
        found = found[found < self.limit]
        if not len(found):
            return
        both = np.concatenate([self.marks, found])
        ones = np.concatenate([self.counts, np.ones(len(found), dtype=np.int64)])
        kept, place = np.unique(both, return_inverse=True)
        counts = np.bincount(place, weights=ones).astype(np.int64)
        if len(kept) > self.size:
            self.limit = int(kept[self.size])
        self.marks, self.counts = kept[: self.size], counts[: self.size]


class Sample:
    """`size` rows of many, each as likely as any other, with their numbers (K, M)."""

    def __init__(self, size: int, width: int) -> None:
        self.size = size
        self.limit = ALL
        self.keys: Marks = np.zeros(0, dtype=np.uint64)
        self.values = np.zeros((0, width), dtype=np.float32)

    def wants(self, row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether `add` would take in the rows at `row` (N,) of the source."""
        wanted: NDArray[np.bool_] = _keys(row) < self.limit
        return wanted

    def add(self, row: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Take in the numbers (N, M) of rows that stand at `row` (N,) of the source."""
        wanted = self.wants(row)
        keys = np.concatenate([self.keys, _keys(row[wanted])])
        values = np.concatenate([self.values, values[wanted]])
        if len(keys) > self.size:
            order = np.argpartition(keys, self.size)
            self.limit = int(keys[order[self.size]])
            keys, values = keys[order[: self.size]], values[order[: self.size]]
        self.keys, self.values = keys, values


def _keys(row: NDArray[np.int64]) -> Marks:
    return splitmix64(row.astype(np.uint64)) >> np.uint64(64 - _BITS)
