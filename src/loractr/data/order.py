"""In which order the rows of an epoch are read: a function of (rows, seed, epoch) alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]

BLOCK = 65_536
"""Rows of one block of a memory-mapped set: shuffled block by block, each in memory at once."""


class Order(Protocol):
    """Row positions that can be sliced: an array, or one that makes its slices when asked."""

    def __len__(self) -> int:
        """Number of positions."""
        ...

    def __getitem__(self, key: slice, /) -> Index:
        """The positions from `key.start` to `key.stop`."""
        ...


@dataclass(frozen=True)
class Epoch:
    """One pass: batch k reads the positions `order[bounds[k] : bounds[k + 1]]`."""

    order: Order
    bounds: Index  # (batches + 1,)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, batch: int) -> Index:
        """Row positions of one batch."""
        return self.order[int(self.bounds[batch]) : int(self.bounds[batch + 1])]


class BlockOrder:
    """Blocks in random order, rows shuffled within each: for rows that lie on disk in an order that
    is random already. Only one block's permutation is ever held.

    Args:
        rows: Number of rows.
        seed: Any number of non-negative integers.
    """

    def __init__(self, rows: int, seed: Sequence[int]) -> None:
        self.rows = rows
        self.seed = tuple(seed)
        blocks = -(-rows // BLOCK)
        self.blocks = np.random.default_rng((*self.seed, blocks)).permutation(blocks)
        lengths = np.minimum((self.blocks + 1) * BLOCK, rows) - self.blocks * BLOCK
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self._held: tuple[int, Index] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, key: slice, /) -> Index:
        """The positions from `key.start` to `key.stop`."""
        start, stop, _ = key.indices(self.rows)
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < stop:
            block, begin = self._block(first), int(self.starts[first])
            parts.append(block[start - begin : stop - begin])
            start, first = int(self.starts[first + 1]), first + 1
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _block(self, place: int) -> Index:
        if self._held[0] != place:
            block = int(self.blocks[place])
            size = min((block + 1) * BLOCK, self.rows) - block * BLOCK
            shuffled = np.random.default_rng((*self.seed, block)).permutation(size)
            self._held = (place, shuffled + block * BLOCK)
        return self._held[1]


def shuffled(rows: int, batch_size: int, seed: Sequence[int], *, on_disk: bool = False) -> Epoch:
    """Every row once, in random order."""
    order: Order = (
        BlockOrder(rows, seed) if on_disk else np.random.default_rng(tuple(seed)).permutation(rows)
    )
    return Epoch(order, _every(rows, batch_size))


def balanced(
    domains: NDArray[np.int32], batch_size: int, seed: Sequence[int], *, temperature: float
) -> Epoch:
    """As many draws as rows, domain d getting a share in proportion to rows_d ** (1 / temperature).

    A domain's rows are drawn without replacement until all have come, then anew.

    Args:
        domains: (N,) domain of each row; -1, where it occurs, counts as a domain.
        batch_size: Rows of a batch.
        seed: Any number of non-negative integers.
        temperature: 1 is the natural share; larger is more even.
    """
    rng = np.random.default_rng(tuple(seed))
    names, counts = np.unique(domains, return_counts=True)
    wanted = counts ** (1.0 / temperature)
    exact = len(domains) * wanted / wanted.sum()
    quotas = np.floor(exact).astype(np.int64)
    left = len(domains) - quotas.sum()
    quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1  # largest remainders
    drawn = []
    for name, quota in zip(names, quotas, strict=True):
        rows = np.flatnonzero(domains == name)
        rounds = [rng.permutation(rows) for _ in range(-(-int(quota) // len(rows)))]
        drawn.append(np.concatenate([*rounds, rows[:0]])[:quota])
    order = rng.permutation(np.concatenate(drawn))
    return Epoch(order, _every(len(order), batch_size))


def domain_sequential(domains: NDArray[np.int32], batch_size: int, seed: Sequence[int]) -> Epoch:
    """One domain after the other, domains in random order, each batch of one domain only: the order
    of the MLoRA authors' code. Kept as a named option for comparisons."""
    rng = np.random.default_rng(tuple(seed))
    order, bounds, start = [], [np.zeros(1, np.int64)], 0
    for name in rng.permutation(np.unique(domains)):
        rows = rng.permutation(np.flatnonzero(domains == name))
        order.append(rows)
        bounds.append(_every(len(rows), batch_size)[1:] + start)
        start += len(rows)
    return Epoch(np.concatenate(order), np.concatenate(bounds))


def clustered(
    domains: NDArray[np.int32], batch_size: int, seed: Sequence[int], *, together: int
) -> Epoch:
    """Every row once, in runs of batch_size / together rows of one domain, runs in random order:
    a batch has rows of about `together` domains, more where domains have fewer rows than a run.

    With many domains, a step then touches few experts. The price is that the rows of a batch are
    not independent draws: a step's gradient of what domains share leans towards those in the batch.

    Args:
        domains: (N,) domain of each row; -1, where it occurs, counts as a domain.
        batch_size: Rows of a batch.
        seed: Any number of non-negative integers.
        together: Domains of a batch.
    """
    rng = np.random.default_rng(tuple(seed))
    rows = rng.permutation(len(domains))
    rows = rows[np.argsort(domains[rows], kind="stable")]  # by domain, in random order within
    sizes = np.unique(domains, return_counts=True)[1]
    run = max(1, batch_size // together)
    runs = -(-sizes // run)  # of each domain
    within = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)  # 0, 1, … in a domain
    starts = np.repeat(np.cumsum(sizes) - sizes, runs) + within * run
    lengths = np.minimum(run, np.repeat(np.cumsum(sizes), runs) - starts)
    order = rng.permutation(len(starts))
    starts, lengths = starts[order], lengths[order]
    moved = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return Epoch(rows[moved + np.arange(len(rows))], _every(len(rows), batch_size))


def _every(rows: int, batch_size: int) -> Index:
    return np.append(np.arange(0, rows, batch_size), rows).astype(np.int64)
