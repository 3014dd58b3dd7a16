"""Groups and routes against their definition: which rows stand in whose span."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from loractr.batch import Bag, Batch, Groups, Route

IDS = [2, -1, 0, 2, 2, -1, 0]  # expert 1 has no row


def members(groups, segment):
    """The rows of one span, by position in the batch."""
    start, stop = groups.offsets[segment : segment + 2].tolist()
    order = torch.arange(len(groups.expert)) if groups.order is None else groups.order
    return order[start:stop].tolist()


def check(groups, ids, experts):
    """Every row stands once, in the span of its expert, and rows of one expert keep their order."""
    assert groups.expert.tolist() == ids
    assert groups.offsets.dtype == groups.expert.dtype == torch.int64
    assert groups.offsets.shape == (experts + 2,)
    assert groups.offsets[0] == 0
    assert groups.offsets[-1] == len(ids)
    for expert in range(-1, experts):
        expected = [n for n, one in enumerate(ids) if one == expert]
        assert members(groups, expert + 1) == expected


@settings(deadline=None)
@given(st.lists(st.integers(-1, 5), max_size=12))
def test_present_experts_are_those_with_rows_and_keep_their_rows(ids):
    experts, groups = Groups.of(torch.tensor(ids, dtype=torch.int64), 6).present
    assert experts.tolist() == sorted(set(ids) - {-1})
    place = {expert: place for place, expert in enumerate(experts.tolist())} | {-1: -1}
    check(groups, [place[one] for one in ids], len(experts))


@settings(deadline=None)
@given(st.data())
def test_every_row_stands_in_its_experts_span(data):
    experts = data.draw(st.integers(0, 5))
    ids = data.draw(st.lists(st.integers(-1, experts - 1), max_size=12))
    check(Groups.of(torch.tensor(ids, dtype=torch.int64), experts), ids, experts)
    ids.sort()
    grouped = Groups.of(torch.tensor(ids, dtype=torch.int64), experts, grouped=True)
    assert grouped.order is None
    check(grouped, ids, experts)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("named", "experts"), [(None, 3), (3, 3), (9, 9)])
def test_a_hard_route_groups_by_id(dtype, named, experts):
    route = Route.hard(torch.tensor(IDS, dtype=dtype), named)
    (groups,) = route.divisions
    check(groups, IDS, experts)
    assert route.cell is None
    assert route.weights is None


@pytest.mark.parametrize("ids", [[], [-1, -1]])
def test_a_hard_route_may_name_nobody(ids):
    (groups,) = Route.hard(torch.tensor(ids, dtype=torch.int64)).divisions
    check(groups, ids, 0)


def test_a_soft_route_holds_its_weights_and_none_holds_nothing():
    weights = torch.rand(4, 3)
    assert Route.soft(weights).weights is weights
    assert Route.soft(weights).divisions == ()
    assert Route.none() == Route()


def test_the_length_of_a_batch_is_its_rows():
    batch = Batch(ids=torch.zeros(5, 2), numbers=torch.zeros(5, 0), row=torch.arange(5))
    assert len(batch) == 5


def test_batches_cannot_be_changed():
    batch = Batch(ids=torch.zeros(5, 2), numbers=torch.zeros(5, 0), row=torch.arange(5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.label = torch.zeros(5)


def test_a_batch_is_a_tree_of_tensors_for_export():
    """Everything in it is found by torch as a tensor input; nothing is frozen into a graph."""
    batch = Batch(
        ids=torch.zeros(3, 2, dtype=torch.int32),
        numbers=torch.ones(3, 1),
        row=torch.arange(3),
        route=Route.hard(torch.tensor([1, 0, -1]), 2),
        sequences={"tags": Bag(torch.arange(4), torch.tensor([0, 1, 1, 4]))},
        label=torch.zeros(3),
    )
    leaves, spec = pytree.tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    assert len(tensors) == 9  # ids, numbers, row, label, 3 of the route, 2 of the bag
    assert all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, spec)
    assert torch.equal(again.sequences["tags"].offsets, batch.sequences["tags"].offsets)
    assert torch.equal(again.route.divisions[0].order, batch.route.divisions[0].order)
