"""Gradients by rows against the dense gradients of torch's own operations."""

from itertools import product

import pytest
import torch

from loractr.layers.lookup import Bags, RowGradient, Touched, all_ids, look_up, look_up_by_rows

TABLE = 9


def normal(*shape):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(3))


ROWS = torch.tensor([[0, 4], [4, 4], [8, 0], [2, 5]])
BAGS = Bags(torch.tensor([4, 4, 1, 8, 0, 0, 0]), torch.tensor([0, 2, 2, 3, 4, 4, 4, 6, 7]), 2)
"""Two sequence fields of the four rows, some bags empty."""

READS = {"fields": (ROWS, None), "both": (ROWS, BAGS), "sequences": (ROWS[:, :0], BAGS)}


def by_rows(weight, rows, bags, gradient):
    touched = Touched.of(all_ids(rows, bags), weight)
    return look_up_by_rows(weight, rows, bags, touched, gradient)


def dense(gradient, width):
    """The gradient as large as the table; 0 where no row was read."""
    touched, values = gradient.get()
    full = torch.zeros(TABLE, width, dtype=torch.double)
    full[touched.rows] = touched.sums(values)
    return full


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("reads", READS.values(), ids=READS)
def test_the_rows_gradients_are_those_of_the_whole_table(reads, width):
    weight, twin = (normal(TABLE, width).requires_grad_() for _ in range(2))
    gradient = RowGradient()
    found, expected = by_rows(weight, *reads, gradient), look_up(twin, *reads)
    assert torch.equal(found, expected)
    factor = normal(*found.shape)
    for y in (found, expected):
        (factor * y.square()).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(dense(gradient, width), twin.grad, atol=1e-14, rtol=0)
    assert gradient.get()[0].rows.tolist() == sorted(set(all_ids(*reads).tolist()))


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
def test_the_rows_gradients_are_those_of_finite_differences(reads):
    """Of a sum of squares, number by number of the whole table."""
    weight, gradient = normal(TABLE, 3).requires_grad_(), RowGradient()
    found = by_rows(weight, *reads, gradient)
    factor = normal(*found.shape)
    (factor * found.square()).sum().backward()
    expected, values = torch.zeros(TABLE, 3, dtype=torch.double), weight.detach()
    for place in product(range(TABLE), range(3)):
        ends = []
        for step in (1e-6, -1e-6):
            moved = values.clone()
            moved[place] += step
            y = by_rows(moved, *reads, RowGradient())
            ends.append((factor * y.square()).sum().item())
        expected[place] = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(dense(gradient, 3), expected, atol=1e-7, rtol=1e-6)


def test_pooled_rows_are_means_and_empty_bags_are_zeros():
    weight = normal(TABLE, 3)
    pooled = look_up(weight, *READS["sequences"])
    bags = [[4, 4], [], [1], [8], [], [], [0, 0], [0]]  # the first field's four, then the second's
    for place, ids in enumerate(bags):
        mean = sum((weight[i] for i in ids), torch.zeros(3).double()) / max(len(ids), 1)
        torch.testing.assert_close(pooled[place % 4, place // 4], mean)


def test_several_lookups_add_up_and_a_cleared_gradient_is_empty():
    weight = normal(TABLE, 3).requires_grad_()
    gradient = RowGradient()
    for reads in READS.values():
        by_rows(weight, *reads, gradient).sum().backward()
    twin = weight.detach().clone().requires_grad_()
    sum(look_up(twin, *reads).sum() for reads in READS.values()).backward()
    torch.testing.assert_close(dense(gradient, 3), twin.grad)
    before = dense(gradient, 3)
    torch.testing.assert_close(gradient.sum_up(), before[gradient.get()[0].rows])
    torch.testing.assert_close(dense(gradient, 3), before)
    gradient.clear()
    assert gradient.get() is None
    assert gradient.sum_up() is None


def test_a_gradient_that_lies_apart_in_memory_is_put_together():
    """As the gradients of a part of a wider tensor do."""
    weight = normal(TABLE, 3).requires_grad_()
    gradient = RowGradient()
    found = by_rows(weight, ROWS, None, gradient)
    wide = normal(4, 2, 7)
    found.backward(wide[:, :, 2:5])
    expected = torch.zeros(TABLE, 3).double()
    expected.index_add_(0, ROWS.flatten(), wide[:, :, 2:5].flatten(0, 1))
    assert gradient.get()[1].is_contiguous()
    torch.testing.assert_close(dense(gradient, 3), expected)


def test_rows_are_announced_before_they_are_read():
    weight = normal(TABLE, 2).requires_grad_()

    def move(touched):
        weight.data[touched.rows] += 1.0

    before = weight.detach().clone()
    found = by_rows(weight, ROWS, None, RowGradient(before=move))
    torch.testing.assert_close(found, look_up(before, ROWS, None) + 1.0)
