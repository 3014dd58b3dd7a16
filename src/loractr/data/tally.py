"""Rows and positives per split × division × domain, for the manifest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loractr.data.canonical import Positions
from loractr.data.rows import Rows
from loractr.schema import Division


class Tally:
    """Counts the rows of one split.

    Args:
        divisions: Fitted.
    """

    def __init__(self, divisions: tuple[Division, ...]) -> None:
        self.divisions = divisions
        self.rows = np.zeros(2, dtype=np.int64)  # by label
        self.domains = [np.zeros((len(d.domains) + 1, 2), dtype=np.int64) for d in divisions]

    def add(self, rows: Rows, where: Positions) -> None:
        """Count the rows at `where` (K,)."""
        assert rows.label is not None
        label = rows.label[where].astype(np.int64)
        self.rows += np.bincount(label, minlength=2)
        for counts, domain in zip(self.domains, rows.domains[where].T, strict=True):
            cell = (domain.astype(np.int64) + 1) * 2 + label
            counts[:] += np.bincount(cell, minlength=counts.size).reshape(counts.shape)

    def summary(self) -> dict[str, Any]:
        """Rows and positives: of all, of each domain, and of the unseen."""
        divisions = {
            division.name: {
                "domains": {
                    name: _entry(counts[index + 1]) for index, name in enumerate(division.domains)
                },
                "unseen": _entry(counts[0]),
            }
            for division, counts in zip(self.divisions, self.domains, strict=True)
        }
        return {**_entry(self.rows), "divisions": divisions}


def _entry(by_label: NDArray[np.int64]) -> dict[str, int]:
    return {"rows": int(by_label.sum()), "positives": int(by_label[1])}
