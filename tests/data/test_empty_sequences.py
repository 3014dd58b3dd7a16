"""A row without any id holds one missing id, in lists and in text alike."""

import polars as pl
import pytest

from loractr.data.canonical import bags
from loractr.schema import Field


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("t", [["a", "b"], [], ["c"]]),
        pl.Series("t", [["a", "b"], None, ["c"]]),
        pl.Series("t", ["a|b", "", "c"]),
        pl.Series("t", ["a|b", None, "c"]),
        pl.Series("t", ["a||b|", "|", "c"]),
    ],
)
def test_a_row_without_ids_holds_one_missing_id(column):
    values, offsets = bags(column, Field(name="t", kind="sequence", separator="|"))
    assert values.to_list() == ["a", "b", None, "c"]
    assert offsets.tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("column", [[[], []], [None, None], [None, []]])
def test_a_column_without_any_id_holds_only_missing_ones(column):
    series = pl.Series("t", column, dtype=pl.List(pl.Int64))
    values, offsets = bags(series, Field(name="t", kind="sequence"))
    assert (values.to_list(), offsets.tolist()) == ([None, None], [0, 1, 2])
