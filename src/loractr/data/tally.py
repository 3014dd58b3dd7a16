"""Rows, positives and gaps per division × domain: for the manifest, the profile, and warnings."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loractr.data.canonical import Positions
from loractr.data.gaps import Gaps, inputs
from loractr.data.rows import Rows
from loractr.schema import Schema

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Cells:
    """Counts of C groups of rows that have no row in common; F input fields."""

    rows: Counts  # (C,)
    positives: Counts  # (C,)
    missing: Counts  # (C, F), rows without a value
    unknown: Counts  # (C, F), ids that training never saw
    ids: Counts  # (C, F), ids in all: a row has one, or none, or a sequence of them

    @staticmethod
    def none(count: int, fields: int) -> "Cells":
        """C groups without any row."""
        one, table = (count,), (count, fields)
        return Cells(
            *(np.zeros(shape, dtype=np.int64) for shape in (one, one, table, table, table))
        )


class Tally:
    """Counts rows: all together, and by the domains of each division.

    Args:
        schema: Fitted.
    """

    def __init__(self, schema: Schema) -> None:
        self.divisions = schema.divisions
        self.fields = tuple(field.name for field in inputs(schema))
        self.whole = Cells.none(1, len(self.fields))
        self.domains = [Cells.none(len(d.domains) + 1, len(self.fields)) for d in self.divisions]
        """Of each division: the unseen, then its domains."""

    def add(self, rows: Rows, gaps: Gaps, where: Positions | None = None) -> None:
        """Count rows.

        Args:
            rows: Encoded rows; without a label none is positive.
            gaps: Theirs.
            where: (K,) positions of those to count; all when absent.
        """
        chosen = np.ones(len(rows), dtype=np.bool_)
        if where is not None:
            chosen[:] = False
            chosen[where] = True
        self._add(self.whole, np.zeros(len(rows), dtype=np.int32), chosen, rows, gaps)
        for cells, domain in zip(self.domains, rows.domains.T, strict=True):
            self._add(cells, domain + 1, chosen, rows, gaps)

    def _add(
        self,
        cells: Cells,
        cell: NDArray[np.int32],
        chosen: NDArray[np.bool_],
        rows: Rows,
        gaps: Gaps,
    ) -> None:
        count = len(cells.rows)
        each = np.bincount(cell[chosen], minlength=count)
        cells.rows[:] += each
        if rows.label is not None:
            cells.positives[:] += np.bincount(cell[chosen & (rows.label == 1)], minlength=count)
        for place, name in enumerate(self.fields):
            none = np.bincount(_among(gaps.missing[name], cell, chosen), minlength=count)
            new = np.bincount(_among(gaps.unknown[name], cell, chosen), minlength=count)
            ids = each
            if name in rows.sequences:
                lengths = np.diff(rows.sequences[name][1])[chosen]
                ids = np.bincount(cell[chosen], weights=lengths, minlength=count).astype(np.int64)
            cells.missing[:, place] += none
            cells.unknown[:, place] += new
            cells.ids[:, place] += ids - none  # a row of a sequence without any has one missing

    def summary(self) -> dict[str, Any]:
        """Rows and positives: of all, of each domain, and of the unseen."""
        divisions = {
            division.name: {
                "domains": {
                    name: _entry(cells, index + 1) for index, name in enumerate(division.domains)
                },
                "unseen": _entry(cells, 0),
            }
            for division, cells in zip(self.divisions, self.domains, strict=True)
        }
        return {**_entry(self.whole, 0), "divisions": divisions}


def _among(
    rows: Positions, cell: NDArray[np.int32], chosen: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Cell of each of `rows` that is chosen."""
    return cell[rows[chosen[rows]]]


def _entry(cells: Cells, cell: int) -> dict[str, int]:
    return {"rows": int(cells.rows[cell]), "positives": int(cells.positives[cell])}
