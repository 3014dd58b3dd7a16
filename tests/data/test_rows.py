"""`Rows.take` and `take_bags` against lists."""

import numpy as np
import pytest

from loractr.data.rows import Rows, take_bags

BAGS = [[1, 2], [3], [4, 5, 6], [7], [8, 9]]


def packed(bags):
    offsets = np.cumsum([0, *map(len, bags)])
    return np.array([v for bag in bags for v in bag], dtype=np.int32), offsets


@pytest.mark.parametrize("index", [[], [2], [4, 0, 2], [1, 1, 3, 1], [0, 1, 2, 3, 4]])
def test_bags_are_taken_as_from_a_list(index):
    values, offsets = take_bags(*packed(BAGS), np.array(index, dtype=np.int64))
    expected = packed([BAGS[i] for i in index])
    assert values.tolist() == expected[0].tolist()
    assert offsets.tolist() == expected[1].tolist()
    assert offsets.dtype == np.int64


def test_every_column_follows_the_rows():
    n = 5
    rows = Rows(
        ids=np.arange(2 * n, dtype=np.int32).reshape(n, 2),
        numbers=np.arange(3 * n, dtype=np.float32).reshape(n, 3),
        domains=np.arange(n, dtype=np.int32).reshape(n, 1),
        row=np.arange(n) + 100,
        label=np.arange(n, dtype=np.float32),
        group=np.arange(n) * 7,
        sequences={"tags": packed(BAGS)},
    )
    taken = rows.take(np.array([3, 0]))
    assert len(taken) == 2
    assert taken.ids.tolist() == [[6, 7], [0, 1]]
    assert taken.numbers.tolist() == [[9, 10, 11], [0, 1, 2]]
    assert taken.row.tolist() == [103, 100]
    assert taken.label.tolist() == [3, 0]
    assert taken.group.tolist() == [21, 0]
    assert taken.weight is None
    assert taken.sequences["tags"][0].tolist() == [7, 1, 2]
    taken.ids[0, 0] = -1  # a copy
    assert rows.ids[3, 0] == 6
