"""Products of bfloat16 factors against the same in float64, factors rounded beforehand."""

import pytest
import torch

from loractr.adapters import LowRankLinear
from loractr.batch import Route
from loractr.layers.linear import Linear
from loractr.layers.rounded import rounded_linear

ROUNDING = 2.0**-8
"""Of a bfloat16 number, relative to its size."""


def numbers(*shape, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, requires_grad=True)


def rounded(values):
    return values.detach().bfloat16().double()


def assert_rounded(found, exact):
    """`found` is `exact` up to one rounding of each, and up to the float32 sums behind it."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=ROUNDING, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 6), (3, 4, 6), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_are_products_of_rounded_factors(shape, bias):
    x, weight = numbers(*shape, seed=0), numbers(5, 6, seed=1)
    offset = numbers(5, seed=2) if bias else None
    y = rounded_linear(x, weight, offset)
    grad = numbers(*y.shape, seed=3).detach()
    y.backward(grad)
    g, rows = rounded(grad).flatten(0, -2), rounded(x).flatten(0, -2)
    product = rows @ rounded(weight).T
    found = y.detach() if offset is None else y.detach() - offset.detach()
    assert_rounded(found.flatten(0, -2), product)
    assert_rounded(x.grad.flatten(0, -2), g @ rounded(weight))
    assert_rounded(weight.grad, g.T @ rows)
    if offset is not None:
        torch.testing.assert_close(offset.grad, grad.flatten(0, -2).sum(0))


def test_a_layer_rounds_in_training_only():
    layer, x = Linear(6, 5), numbers(9, 6, seed=0)
    exact = layer(x)
    layer.rounds = True
    assert not torch.equal(layer(x), exact)
    torch.testing.assert_close(layer(x), exact, rtol=0, atol=0.05)
    assert torch.equal(layer.eval()(x), exact)


def test_an_expert_beside_a_rounding_layer_does_not_round():
    layer, x = LowRankLinear(Linear(6, 5), experts=3, rank=2), numbers(9, 6, seed=0)
    layer.up.data.normal_(generator=torch.Generator().manual_seed(1))
    experts = torch.tensor([0, 1, 2, 0, 1, -1, 2, 2, 0])
    route = Route.hard(experts)
    update = layer(x, route) - layer.base(x)
    layer.base.rounds = True
    torch.testing.assert_close(layer(x, route) - layer.base(x), update, rtol=0, atol=1e-5)


def test_frozen_factors_get_no_gradient():
    x, weight = numbers(9, 6, seed=0), numbers(5, 6, seed=1)
    for one, other in ((x, weight), (weight, x)):
        one.requires_grad_(False)
        other.requires_grad_(True)
        rounded_linear(x, weight, None).sum().backward()
        assert one.grad is None
        assert other.grad is not None
        one.requires_grad_(True)
        other.grad = None
