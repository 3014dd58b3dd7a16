"""Gradients of a bank's experts that have rows only: the values of those of all experts."""

import pytest
import torch

from loractr.adapters.fusion import FusedLinear, Fusion
from loractr.adapters.low_rank import EXPERT_PARAMETERS, Bank, LowRankLinear
from loractr.batch import Groups, Route
from loractr.layers.dropout import Dropout
from loractr.layers.linear import Linear
from loractr.layers.lookup import RowGradient, set_row_gradients

WIDE, TALL, EXPERTS, RANK, ROWS = 5, 4, 9, 2, 12


def rows_of(seed, *, experts=EXPERTS, among=3):
    """Rows of a few of the experts, and some of none."""
    random = torch.Generator().manual_seed(seed)
    few = torch.randperm(experts, generator=random)[:among].sort().values
    return torch.cat([few, few.new_tensor([-1])])[
        torch.randint(among + 1, (ROWS,), generator=random)
    ]


def numbers(*shape, seed=5):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.double)


def moved(layer):
    """With weights of any size, so that every one counts."""
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = numbers(*parameter.shape, seed=seed)
    return layer


def one_bank(*, dropout=None):
    base = Linear(WIDE, TALL)
    base.dropout = dropout
    return moved(LowRankLinear(base, experts=EXPERTS, rank=RANK, row_scale=True))


def two_banks():
    base = Linear(WIDE, TALL)
    banks = [Bank(base, experts=n, rank=RANK, row_scale=True) for n in (EXPERTS, 4)]
    return moved(FusedLinear(base, banks, Fusion(TALL, RANK)))


def mixed():
    first, second = rows_of(1), rows_of(2, experts=4, among=2)
    divisions = (Groups.of(first, EXPERTS), Groups.of(second, 4))
    return Route(divisions=divisions, cell=Groups.of(first.clamp(min=0), EXPERTS))


CASES = {
    "hard": (one_bank, Route(divisions=(Groups.of(rows_of(1), EXPERTS),))),
    "hard, unlike tower": (lambda: one_bank(dropout=Dropout(0.0)), Route.hard(rows_of(1))),
    "soft": (one_bank, Route(weights=numbers(ROWS, EXPERTS, seed=8))),
    "mixed": (two_banks, mixed()),
    "one of two divisions": (two_banks, Route(divisions=(Groups.of(rows_of(3), EXPERTS), None))),
    "nobody": (one_bank, Route(divisions=(Groups.of(torch.full((ROWS,), -1), EXPERTS),))),
}


def experts_of(route, second):
    """Those that have rows; of a soft route, all."""
    if route.weights is not None:
        return list(range(EXPERTS))
    return sorted({*route.divisions[int(second)].expert.tolist()} - {-1})


@pytest.mark.parametrize("wide", [False, True], ids=["(N, in)", "(N, M, in)"])
@pytest.mark.parametrize("case", CASES)
def test_they_hold_what_the_dense_ones_hold(case, wide):
    make, route = CASES[case]
    layer, twin = make(), make()
    names = [n for n, _ in layer.named_parameters() if n.rpartition(".")[2] in EXPERT_PARAMETERS]
    given = {name: RowGradient() for name in names}
    set_row_gradients(layer, given)
    x = numbers(ROWS, 3, WIDE) if wide else numbers(ROWS, WIDE)
    for one in (layer, twin):
        one(x, route).square().sum().backward()
    acts = {"mixed": ("banks.0", "banks.1"), "one of two divisions": ("banks.0",)}.get(case, ("",))
    for name, parameter in twin.named_parameters():
        found, expected = layer.get_parameter(name).grad, parameter.grad
        read = given[name].get() if name in given else None
        assert (read is not None) == (name in given and name.startswith(acts))
        if read is not None:
            assert found is None
            touched, values = read
            assert touched.rows.tolist() == experts_of(route, name.startswith("banks.1"))
            found = torch.zeros_like(parameter).flatten(1)
            found[touched.rows] = touched.sums(values)
            found = found.view_as(parameter)
        if found is None:
            assert expected is None  # nobody read it
        else:
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_a_bank_that_trains_in_part_leaves_the_rest_a_dense_gradient():
    layer, twin = one_bank(), one_bank()
    gradient = RowGradient()
    set_row_gradients(layer, {"down": gradient})
    for one in (layer, twin):
        one(numbers(ROWS, WIDE), CASES["hard"][1]).square().sum().backward()
    assert layer.down.grad is None
    for name in ("up", "row_scale", "offset"):
        own, dense = layer.get_parameter(name).grad, twin.get_parameter(name).grad
        torch.testing.assert_close(own, dense, atol=1e-10, rtol=0)


def test_scoring_leaves_nothing_behind():
    layer, gradient = one_bank(), RowGradient()
    set_row_gradients(layer, dict.fromkeys(EXPERT_PARAMETERS, gradient))
    with torch.no_grad():
        layer(numbers(ROWS, WIDE), CASES["hard"][1])
    assert gradient.get() is None
