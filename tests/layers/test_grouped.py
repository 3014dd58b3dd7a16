"""Products per group against a loop over rows; groups of repeated rows against their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loractr.batch import Groups
from loractr.layers.grouped import grouped_linear, grouped_sum, look_up, one_hot

WIDE, TALL, EXPERTS = 5, 4, 3
ROWS = {
    "unsorted": [2, -1, 0, 2, 2, -1, 0],  # expert 1 has no row
    "sorted": [-1, 0, 0, 1, 2, 2],
    "one group": [1, 1, 1, 1],
    "nobody": [-1, -1],
    "no rows": [],
}


def groups_of(ids, experts=EXPERTS):
    grouped = ids == sorted(ids)
    return Groups.of(torch.tensor(ids, dtype=torch.int64), experts, grouped=grouped)


def numbers(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.double)


def loop(x, weight, ids):
    """y[n] = weight[e] x[n], row by row."""
    rows = [torch.zeros(TALL).double() if e < 0 else weight[e] @ x[n] for n, e in enumerate(ids)]
    return torch.stack(rows) if rows else x.new_zeros(0, TALL)


def graph(function):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="eager", dynamic=True)


def with_gradients(function, ids):
    """The output, and the gradients of x and weight for a fixed direction."""
    x = numbers(len(ids), WIDE).requires_grad_()
    weight = numbers(EXPERTS, TALL, WIDE, seed=1).requires_grad_()
    y = function(x, weight, ids)
    if y.requires_grad:  # the loop over rows of no expert uses neither
        (y * numbers(len(ids), TALL, seed=2)).sum().backward()
    return y.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in (x, weight))


@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_are_those_of_a_loop_over_rows(compiled):
    function = graph(grouped_linear) if compiled else grouped_linear
    for ids in ROWS.values():
        found = with_gradients(lambda x, weight, ids: function(x, weight, groups_of(ids)), ids)
        for ours, loops in zip(found, with_gradients(loop, ids), strict=True):
            torch.testing.assert_close(ours, loops, atol=1e-12, rtol=0)


@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
def test_gradients_are_those_of_finite_differences(ids):
    x = numbers(len(ids), WIDE).requires_grad_()
    weight = numbers(EXPERTS, TALL, WIDE, seed=1).requires_grad_()
    groups = groups_of(ids)
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, groups), (x, weight))


@pytest.mark.parametrize(("of_x", "of_weight"), [(True, False), (False, True)])
def test_a_frozen_input_or_matrix_gets_no_gradient(of_x, of_weight):
    ids = ROWS["unsorted"]
    x = numbers(len(ids), WIDE).requires_grad_(of_x)
    weight = numbers(EXPERTS, TALL, WIDE).requires_grad_(of_weight)
    grouped_linear(x, weight, groups_of(ids)).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == (of_x, of_weight)


def test_the_inputs_stay_as_they_are():
    ids = ROWS["unsorted"]
    x, weight = numbers(len(ids), WIDE), numbers(EXPERTS, TALL, WIDE)
    before = x.clone(), weight.clone()
    grouped_linear(x, weight, groups_of(ids))
    assert torch.equal(x, before[0])
    assert torch.equal(weight, before[1])


def test_groups_may_know_fewer_experts_than_there_are_matrices():
    ids = [0, 1, -1]
    x, weight = numbers(3, WIDE), numbers(EXPERTS, TALL, WIDE)
    found = grouped_linear(x, weight, groups_of(ids, experts=2))
    torch.testing.assert_close(found, loop(x, weight, ids), atol=1e-12, rtol=0)


@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
def test_one_hot_rows_and_rows_of_a_table(ids):
    groups, table = groups_of(ids), numbers(EXPERTS, TALL)
    hot, found = one_hot(groups, EXPERTS, torch.double), look_up(table, groups)
    assert hot.shape == (len(ids), EXPERTS)
    assert hot.dtype == torch.double
    for n, expert in enumerate(ids):
        assert hot[n].tolist() == [float(e == expert) for e in range(EXPERTS)]
        assert torch.equal(found[n], torch.zeros(TALL).double() if expert < 0 else table[expert])


@settings(deadline=None)
@given(st.lists(st.integers(-1, 3), max_size=9), st.integers(1, 4), st.booleans())
def test_repeated_groups_are_the_groups_of_repeated_rows(ids, times, grouped):
    ids = sorted(ids) if grouped else ids
    few = Groups.of(torch.tensor(ids, dtype=torch.int64), 4, grouped=grouped)
    many = [expert for expert in ids for _ in range(times)]
    expected = Groups.of(torch.tensor(many, dtype=torch.int64), 4, grouped=grouped)
    found = few.repeated(times)
    assert found.expert.tolist() == many
    assert torch.equal(found.offsets, expected.offsets)
    assert (found.order is None) == grouped
    if found.order is not None:
        assert torch.equal(found.order, expected.order)


def sum_of(*domains):
    """A base and, for each list of domains, an input, matrices and groups."""
    random = torch.Generator().manual_seed(4)

    def numbers(*shape):
        return torch.randn(shape, generator=random, dtype=torch.double).requires_grad_()

    terms = [
        (numbers(len(ids), 2 + place), numbers(3, 4, 2 + place), Groups.of(torch.tensor(ids), 3))
        for place, ids in enumerate(domains)
    ]
    return numbers(len(domains[0]), 4), terms


SUMS = [([0, 2, -1, 2, 0],), ([0, 2, -1, 2, 0], [1, -1, -1, 0, 1]), ([-1, -1], [-1, 2])]


@pytest.mark.parametrize("domains", SUMS)
def test_a_sum_adds_every_term_where_it_belongs(domains):
    base, terms = sum_of(*domains)
    before = base.detach().clone()
    expected = [row.clone() for row in base]
    for (x, weight, _), ids in zip(terms, domains, strict=True):
        for n, expert in enumerate(ids):
            if expert >= 0:
                expected[n] = expected[n] + weight[expert] @ x[n]
    found = grouped_sum(base, terms)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-12, rtol=0)
    assert torch.equal(base, before)


@pytest.mark.parametrize("domains", SUMS)
def test_gradients_of_a_sum_are_those_of_finite_differences(domains):
    base, terms = sum_of(*domains)
    groups = [own for _, _, own in terms]

    def of(base, *tensors):
        return grouped_sum(base, list(zip(tensors[::2], tensors[1::2], groups, strict=True)))

    tensors = [tensor for x, weight, _ in terms for tensor in (x, weight)]
    assert torch.autograd.gradcheck(of, (base, *tensors))
