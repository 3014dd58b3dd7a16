"""`Rows`: encoded rows as packed columns; the encoder makes them, store and loader pass them on."""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", bound=np.generic)

FIXED = ("ids", "numbers", "domains", "row", "label", "weight", "group", "oracle")
"""Columns with one entry a row, in contrast to sequences; those from `label` on may be None."""


@dataclass(frozen=True)
class Rows:
    """Encoded rows, in memory or memory-mapped.

    Shapes: N rows, F categorical fields, M numerical fields, V divisions, L ids of one sequence.
    """

    ids: NDArray[np.int32]  # (N, F), index into each field's vocabulary; 0 = unknown
    numbers: NDArray[np.float32]  # (N, M), normalised
    domains: NDArray[np.int32]  # (N, V), index into Division.domains; -1 = unseen
    row: NDArray[np.int64]  # (N,), position in the source table
    label: NDArray[np.float32] | None = None  # (N,), 0 or 1
    weight: NDArray[np.float32] | None = None  # (N,)
    group: NDArray[np.int64] | None = None  # (N,), key of the grouped AUC; equal = same group
    oracle: NDArray[np.float32] | None = None  # (N,), true click probability (synthetic only)
    sequences: dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]] = field(default_factory=dict)
    # field name -> (values (L,), offsets (N + 1,)): row n has values[offsets[n] : offsets[n + 1]]

    def __len__(self) -> int:
        return int(self.row.shape[0])

    def take(self, index: NDArray[np.int64]) -> "Rows":
        """The rows at `index` (K,), in that order, as copies in memory."""

        def pick(column: NDArray[Value] | None) -> NDArray[Value] | None:
            return None if column is None else column[index]

        return Rows(
            ids=self.ids[index],
            numbers=self.numbers[index],
            domains=self.domains[index],
            row=self.row[index],
            label=pick(self.label),
            weight=pick(self.weight),
            group=pick(self.group),
            oracle=pick(self.oracle),
            sequences={name: take_bags(*bags, index) for name, bags in self.sequences.items()},
        )


def take_bags(
    values: NDArray[np.int32], offsets: NDArray[np.int64], index: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The bags at `index`, packed anew, without a Python loop over rows."""
    starts = offsets[index]
    lengths = offsets[index + 1] - starts
    packed = np.zeros(len(index) + 1, dtype=np.int64)
    np.cumsum(lengths, out=packed[1:])
    where = np.repeat(starts - packed[:-1], lengths) + np.arange(packed[-1])
    return values[where], packed
