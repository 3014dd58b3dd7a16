"""Compiled products of groups against torch's operations and finite differences.

That torch's operations are right is shown in tests/layers and tests/adapters, against loops.
"""

import pytest
import torch

from loractr import native
from loractr.adapters import LowRankLinear
from loractr.batch import Groups, Route
from loractr.layers.grouped import grouped_linear, grouped_sum
from loractr.layers.linear import Linear
from native.agreement import gap

pytestmark = pytest.mark.usefixtures("kernels")

PRECISE = {torch.float32: 5e-6, torch.float64: 1e-13}
ROWS = {
    "unsorted": [2, -1, 0, 2, 2, -1, 0],  # experts 1 and 3 have no row
    "sorted": [-1, 0, 0, 1, 2, 2],
    "all of one": [1, 1, 1, 1],
    "nobody": [-1, -1],
    "no rows": [],
    "many, sorted": [n // 400 for n in range(1600)],
    "many, unsorted": [(n * 7) % 5 - 1 for n in range(1700)],  # more than one block of each
}
EXPERTS = 4


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def groups_of(ids):
    return Groups.of(torch.tensor(ids, dtype=torch.int64), EXPERTS, grouped=ids == sorted(ids))


def test_products_come_from_the_library_beside_torch():
    assert native.library().multiplies


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
def test_grouped_products_agree_with_torchs(ids, dtype):
    groups = groups_of(ids)
    x = normal(len(ids), 5, dtype=dtype)
    weight = normal(EXPERTS, 6, 5, dtype=dtype, seed=1)
    assert gap(lambda x, w: grouped_linear(x, w, groups), x, weight) < PRECISE[dtype]
    base, other = normal(len(ids), 6, dtype=dtype), normal(EXPERTS, 6, 5, dtype=dtype, seed=2)

    def both(base, x, weight, other):
        return grouped_sum(base, [(x, weight, groups), (x, other, groups)])

    assert gap(both, base, x, weight, other) < PRECISE[dtype]


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("row_scale", [False, True])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
def test_adapted_layers_agree_with_torchs(ids, offset, row_scale, dtype):
    generator = torch.Generator().manual_seed(4)
    layer = LowRankLinear(
        Linear(5, 6, generator=generator),
        experts=EXPERTS,
        rank=3,
        offset=offset,
        row_scale=row_scale,
        generator=generator,
    ).to(dtype)
    names = [name for name, _ in layer.named_parameters()]
    weights = [normal(*p.shape, dtype=dtype, seed=n) for n, p in enumerate(layer.parameters())]
    route = Route(divisions=(groups_of(ids),))

    def applied(x, *weights):
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, given, (x, route))

    assert gap(applied, normal(len(ids), 5, dtype=dtype), *weights) < 2 * PRECISE[dtype]
    deep = normal(len(ids), 3, 5, dtype=dtype)  # rows of several vectors each
    assert gap(applied, deep, *weights) < 2 * PRECISE[dtype]


def test_a_route_of_fewer_experts_than_the_bank_leaves_the_others_without_gradient():
    layer = LowRankLinear(Linear(5, 6), experts=3, rank=2)
    ids = torch.tensor([0, 0, 1])
    layer(normal(3, 5, dtype=torch.float32), Route.to(ids, 2)).sum().backward()
    assert not layer.up.grad[2].any()
    assert not layer.down.grad[2].any()
    assert layer.up.grad[1].any()


@pytest.mark.parametrize("ids", [[1, -1, 0, 1, 0], [-1, 0, 0, 1]])
def test_gradients_are_those_of_finite_differences(ids):
    generator = torch.Generator().manual_seed(2)
    layer = LowRankLinear(Linear(3, 4, generator=generator), experts=2, rank=2).double()
    for seed, weight in enumerate(layer.parameters()):
        weight.data = normal(*weight.shape, seed=seed)
    names = [name for name, _ in layer.named_parameters()]
    route = Route.hard(torch.tensor(ids), 2)

    def applied(x, *weights):
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, given, (x, route))

    inputs = [normal(len(ids), 3), *(p.detach() for p in layer.parameters())]
    assert torch.autograd.gradcheck(applied, [x.clone().requires_grad_() for x in inputs])
