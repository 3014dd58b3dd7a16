"""The weighted product of experts that knows its gradients, whatever of it is frozen."""

from itertools import product

import pytest
import torch
from torch import Tensor

from loractr.adapters.products import Weighted

ROWS, WIDE, TALL, EXPERTS, RANK = 6, 5, 4, 3, 2
SHAPES = {
    "x": (ROWS, WIDE),
    "weight": (TALL, WIDE),
    "bias": (TALL,),
    "weights": (ROWS, EXPERTS),
    "down": (EXPERTS, RANK, WIDE),
    "up": (EXPERTS, TALL, RANK),
    "offset": (EXPERTS, TALL),
}
OPTIONAL = [(), ("bias",), ("offset",), ("bias", "offset")]
"""Inputs that may be None."""


def values(seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=random, dtype=torch.double)
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("absent", OPTIONAL, ids=str)
def test_it_is_the_sum_written_out(absent: tuple[str, ...]) -> None:
    """y[n] = W x[n] + b + sum_e w[n, e] (up[e] down[e] x[n] + offset[e])"""
    given = {name: None if name in absent else value for name, value in values().items()}
    x, weight, bias, weights, down, up, offset = values().values()
    found = Weighted.apply(*given.values())
    for n in range(ROWS):
        expected = weight @ x[n]
        if "bias" not in absent:
            expected = expected + bias
        for e in range(EXPERTS):
            update = up[e] @ (down[e] @ x[n])
            update = update if "offset" in absent else update + offset[e]
            expected = expected + weights[n, e] * update
        torch.testing.assert_close(found[n], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("absent", OPTIONAL, ids=str)
def test_gradients_are_numerically_right_whatever_is_frozen(absent: tuple[str, ...]) -> None:
    there = {name: value for name, value in values().items() if name not in absent}

    def output(*parts: Tensor) -> Tensor:
        named = dict(zip(there, parts, strict=True))
        found: Tensor = Weighted.apply(*(named.get(name) for name in SHAPES))
        return found

    for trains in product([False, True], repeat=len(there)):
        if not any(trains):
            continue
        leaves = [
            value.clone().requires_grad_(train)
            for value, train in zip(there.values(), trains, strict=True)
        ]
        assert torch.autograd.gradcheck(output, leaves, fast_mode=True), trains
