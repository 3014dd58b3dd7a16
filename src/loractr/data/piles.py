"""Rows in a uniformly random order, in bounded memory: each row is thrown on one of K piles on
disk at random, then each pile is shuffled in memory; the piles follow one another."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loractr.data.canonical import Positions
from loractr.data.rows import FIXED, Rows, take_bags

PILE_BYTES = 1 << 25
"""Size of a pile, on average."""
_MOST_PILES = 4096  # 128 GiB; beyond, piles grow


class Piles:
    """Shuffles rows on disk.

    Args:
        scratch: Directory for the piles.
        like: Any rows, even none, with the columns of those to come.
        total_bytes: About how much there will be in all.
        seed: Of the order.
    """

    def __init__(self, scratch: Path, like: Rows, total_bytes: int, seed: int) -> None:
        self.scratch, self.like = scratch, like
        self.count = min(max(1, -(-total_bytes // PILE_BYTES)), _MOST_PILES)
        self.rng = np.random.default_rng([seed, 1])  # another stream than the split's own
        self.record = record_type(like)

    def throw(self, rows: Rows, where: Positions) -> None:
        """Throw the rows at `where` (K,) on piles at random."""
        pile = self.rng.integers(self.count, size=len(where), dtype=np.uint16)
        order = np.argsort(pile, kind="stable")  # 16 bits: by radix
        bounds = np.searchsorted(pile[order], np.arange(self.count + 1))
        where = where[order]
        bags = [take_bags(*bags, where) for bags in rows.sequences.values()]
        records = self._records(rows, where, [offsets for _, offsets in bags])
        for number, (start, stop) in enumerate(pairwise(bounds)):
            if start == stop:
                continue
            _append(self._path(number), records[start:stop])
            for index, (values, offsets) in enumerate(bags):
                _append(self._path(number, index), values[offsets[start] : offsets[stop]])

    def __iter__(self) -> Iterator[Rows]:
        """The piles, each shuffled, and removed once it has been given."""
        for number in range(self.count):
            if self._path(number).exists():
                pile = self._read(number)
                yield pile.take(self.rng.permutation(len(pile)))

    def _records(
        self, rows: Rows, where: Positions, offsets: Sequence[Positions]
    ) -> NDArray[np.void]:
        records = np.empty(len(where), dtype=self.record)
        for name in FIXED:
            column = getattr(rows, name)
            if column is not None:
                records[name] = column[where]
        for index, bounds in enumerate(offsets):
            records[f"length {index}"] = np.diff(bounds)
        return records

    def _read(self, number: int) -> Rows:
        records = np.fromfile(self._path(number), dtype=self.record)
        sequences = {}
        for index, name in enumerate(self.like.sequences):
            offsets = np.zeros(len(records) + 1, dtype=np.int64)
            np.cumsum(records[f"length {index}"], out=offsets[1:])
            sequences[name] = (np.fromfile(self._path(number, index), np.int32), offsets)
            self._path(number, index).unlink()
        self._path(number).unlink()
        fixed = {name: records[name] for name in FIXED if name in (self.record.names or ())}
        return Rows(**fixed, sequences=sequences)

    def _path(self, number: int, sequence: int | None = None) -> Path:
        return self.scratch / (f"pile-{number}" + ("" if sequence is None else f".{sequence}"))


def record_type(like: Rows) -> np.dtype[np.void]:
    """One row's columns of fixed size, side by side; of a sequence, its length."""
    columns = [(name, getattr(like, name)) for name in FIXED]
    fixed = [(name, c.dtype, c.shape[1:]) for name, c in columns if c is not None]
    return np.dtype(fixed + [(f"length {i}", np.int32, ()) for i in range(len(like.sequences))])


def _append(path: Path, array: NDArray[np.generic]) -> None:
    with path.open("ab") as file:
        array.tofile(file)
