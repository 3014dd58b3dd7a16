"""The bank of experts against its formula, written as loops over rows and experts in float64."""

import threading
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from loractr.adapters import LowRankLinear
from loractr.adapters.low_rank import EXPERT_PARAMETERS
from loractr.batch import Groups, Route
from loractr.errors import AdapterError
from loractr.layers.dropout import Dropout
from loractr.layers.linear import Linear

WIDE, TALL, EXPERTS, RANK = 5, 4, 3, 2
UNSORTED = torch.tensor([2, -1, 0, 2, 2, -1, 0])  # expert 1 has no row
OPTIONS = list(product([False, True], [False, True]))


def bank(*, row_scale=False, offset=True, experts=EXPERTS, rank=RANK, bias=True, seed=0):
    """A float64 layer that has moved away from its start, so that every parameter counts."""
    random = torch.Generator().manual_seed(seed)
    base = Linear(WIDE, TALL, bias, generator=random).double()
    layer = LowRankLinear(
        base, experts=experts, rank=rank, row_scale=row_scale, offset=offset, generator=random
    )
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=random, dtype=torch.double)
        parameter.data += noise
    return layer


def inputs(rows, seed=1, wide=WIDE):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, wide, generator=random, dtype=torch.double)


def formula(layer, x, weights):
    """y[n] = base(x[n]) + sum_e w[n, e] (row_scale[e] * (up[e] down[e] x[n]) + offset[e])"""
    rows = []
    for n in range(len(x)):
        y = layer.base.weight @ x[n]
        y = y if layer.base.bias is None else y + layer.base.bias
        for e in range(layer.experts):
            update = layer.up[e] @ (layer.down[e] @ x[n])
            update = update if layer.row_scale is None else layer.row_scale[e] * update
            update = update if layer.offset is None else update + layer.offset[e]
            y = y + weights[n, e] * update
        rows.append(y)
    return torch.stack(rows)


def one_hot(ids, experts=EXPERTS):
    weights = torch.zeros(len(ids), experts, dtype=torch.double)
    for n, expert in enumerate(ids.tolist()):
        if expert >= 0:
            weights[n, expert] = 1.0
    return weights


@pytest.mark.parametrize(("row_scale", "offset"), OPTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_a_hard_route_is_the_formula_in_any_order_of_rows(row_scale, offset, training):
    layer = bank(row_scale=row_scale, offset=offset).train(training)
    x = inputs(len(UNSORTED))
    expected = formula(layer, x, one_hot(UNSORTED))
    torch.testing.assert_close(layer(x, Route.hard(UNSORTED)), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("row_scale", "offset"), OPTIONS)
def test_a_hard_route_of_grouped_rows_is_the_formula(row_scale, offset):
    layer, ids = bank(row_scale=row_scale, offset=offset), UNSORTED.sort().values
    x = inputs(len(ids))
    route = Route(divisions=(Groups.of(ids, EXPERTS, grouped=True),))
    expected = formula(layer, x, one_hot(ids))
    torch.testing.assert_close(layer(x, route), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("row_scale", "offset"), OPTIONS)
def test_a_soft_route_is_the_formula(row_scale, offset):
    layer, x = bank(row_scale=row_scale, offset=offset), inputs(7)
    weights = torch.rand(7, EXPERTS, generator=torch.Generator().manual_seed(2)).double()
    weights[3] = 0.0
    expected = formula(layer, x, weights)
    torch.testing.assert_close(layer(x, Route.soft(weights)), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("row_scale", "offset"), OPTIONS)
def test_a_soft_route_passes_gradients_to_its_weights(row_scale, offset):
    layer, x = bank(row_scale=row_scale, offset=offset), inputs(4)
    weights = torch.rand(4, EXPERTS, generator=torch.Generator().manual_seed(2)).double()
    found, expected = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    layer(x, Route.soft(found)).square().sum().backward()
    formula(layer, x, expected).square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-10, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_shape_and_any_ids_are_the_formula(data):
    experts, rank = data.draw(st.integers(1, 6)), data.draw(st.integers(1, TALL))
    ids = torch.tensor(data.draw(st.lists(st.integers(-1, experts - 1), max_size=9)), dtype=int)
    layer = bank(experts=experts, rank=rank, row_scale=data.draw(st.booleans()))
    x, weights = inputs(len(ids)), one_hot(ids, experts)
    found = layer(x, Route.hard(ids, experts))
    assert found.shape == (len(ids), TALL)
    if len(ids):
        torch.testing.assert_close(found, formula(layer, x, weights), atol=1e-12, rtol=0)
    torch.testing.assert_close(layer(x, Route.soft(weights)), found, atol=1e-12, rtol=0)


def test_without_a_route_the_layer_is_its_base():
    layer, x = bank(), inputs(6)
    for route in (None, Route.none()):
        assert torch.equal(layer(x, route), layer.base(x))


def test_rows_of_no_expert_get_the_base_alone():
    layer, x = bank(), inputs(len(UNSORTED))
    alone = UNSORTED == -1
    torch.testing.assert_close(layer(x, Route.hard(UNSORTED))[alone], layer.base(x)[alone])
    nobody = torch.full((6,), -1)
    assert torch.equal(layer(x[:6], Route.hard(nobody, EXPERTS)), layer.base(x[:6]))


@pytest.mark.parametrize(("row_scale", "offset"), OPTIONS)
def test_a_fresh_layer_computes_exactly_what_its_base_does(row_scale, offset):
    base = Linear(WIDE, TALL)
    layer = LowRankLinear(base, experts=3, rank=2, row_scale=row_scale, offset=offset)
    x = inputs(len(UNSORTED)).float()
    assert torch.equal(layer(x, Route.hard(UNSORTED)), base(x))
    assert torch.equal(layer(x, Route.soft(torch.rand(len(x), 3))), base(x))


def test_the_input_is_left_as_it_was():
    layer, x = bank(), inputs(len(UNSORTED))
    before = x.clone()
    layer(x, Route.hard(UNSORTED)).sum().backward()
    layer(x, Route(divisions=(Groups.of(UNSORTED.sort().values, EXPERTS, grouped=True),)))
    assert torch.equal(x, before)


@pytest.mark.parametrize("ids", [UNSORTED, UNSORTED.sort().values], ids=["unsorted", "grouped"])
def test_gradients_are_numerically_right_whatever_is_frozen(ids):
    """gradcheck of the hard route for every way to freeze base, experts and input."""
    layer, x = bank(row_scale=True), inputs(len(ids))
    route = Route(divisions=(Groups.of(ids, EXPERTS, grouped=ids is not UNSORTED),))
    names = ["base.weight", "down", "up", "row_scale", "offset"]
    values = [x, *(layer.get_parameter(name).detach() for name in names)]
    for trains in product([False, True], repeat=len(values)):
        if not any(trains):
            continue

        def output(x, *parameters):
            given = dict(zip(names, parameters, strict=True))
            return functional_call(layer, given, (x, route))

        leaves = [v.clone().requires_grad_(t) for v, t in zip(values, trains, strict=True)]
        assert torch.autograd.gradcheck(output, leaves, fast_mode=True), trains


def test_gradients_are_those_of_the_formula():
    layer, x = bank(row_scale=True), inputs(len(UNSORTED))
    found, expected = {}, {}
    for result, gradients in (
        (lambda x: layer(x, Route.hard(UNSORTED)), found),
        (lambda x: formula(layer, x, one_hot(UNSORTED)), expected),
    ):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        result(leaf).square().sum().backward()
        gradients |= {name: p.grad.clone() for name, p in layer.named_parameters()}
        gradients["x"] = leaf.grad
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-10, rtol=0, msg=name)


def test_experts_without_rows_get_exactly_zero_gradient():
    layer = bank(row_scale=True)
    layer(inputs(len(UNSORTED)), Route.hard(UNSORTED)).square().sum().backward()
    for name in EXPERT_PARAMETERS:
        gradient = layer.get_parameter(name).grad
        assert gradient[1].eq(0).all()
        assert gradient[0].ne(0).any(), name
        assert gradient[2].ne(0).any(), name


@pytest.mark.parametrize("row_scale", [False, True])
def test_at_the_first_step_up_learns_and_nothing_below_it(row_scale):
    """up is zero, so down and row_scale get no gradient; up and offset must, or none ever would."""
    base = Linear(WIDE, TALL)
    layer = LowRankLinear(base, experts=3, rank=2, row_scale=row_scale)
    layer(inputs(len(UNSORTED)).float(), Route.hard(UNSORTED)).square().sum().backward()
    assert layer.up.grad[0].ne(0).all()
    assert layer.offset.grad[0].ne(0).all()
    assert layer.down.grad.eq(0).all()
    assert layer.row_scale is None or layer.row_scale.grad.eq(0).all()


def test_dropout_of_the_shared_path_leaves_the_update_alone():
    layer, x = bank(), inputs(200)
    ids = torch.arange(200) % EXPERTS
    layer.base.dropout = Dropout(0.5)
    layer.train()
    update = formula(layer, x, one_hot(ids)) - formula(layer, x, torch.zeros(200, EXPERTS))
    shared = layer(x, Route.hard(ids)) - update
    whole = x @ layer.base.weight.T + layer.base.bias
    dropped = shared.abs() < 1e-12
    torch.testing.assert_close(shared[~dropped], 2.0 * whole[~dropped])
    assert 0.4 < dropped.double().mean() < 0.6


def test_dropout_of_the_shared_path_masks_the_gradient_of_the_base_only():
    layer, x = bank(), inputs(len(UNSORTED))
    layer.base.dropout = Dropout(0.5)
    layer.train()
    gradients = []
    for route in (Route.hard(UNSORTED), Route.soft(one_hot(UNSORTED))):
        layer.zero_grad()
        torch.manual_seed(0)
        layer(x, route).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for hard, soft in zip(*gradients, strict=True):
        torch.testing.assert_close(hard, soft, atol=1e-10, rtol=0)


def test_a_second_derivative_is_refused_rather_than_wrong():
    layer, x = bank(), inputs(len(UNSORTED)).requires_grad_()
    loss = layer(x, Route.hard(UNSORTED)).square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_row_does_not_feel_which_other_experts_the_bank_holds():
    """Bit-identical: domains live and die alone."""
    layer, x = bank(row_scale=True), inputs(len(UNSORTED))
    fewer = LowRankLinear(layer.base, experts=2, rank=RANK, row_scale=True)
    for name in EXPERT_PARAMETERS:
        fewer.get_parameter(name).data = layer.get_parameter(name).data[[0, 2]].clone()
    renamed = torch.tensor([-1, 0, -1, 1])[UNSORTED + 1]
    assert torch.equal(layer(x, Route.hard(UNSORTED)), fewer(x, Route.hard(renamed)))


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_no_rows_and_one_row_pass_forward_and_backward(rows, kind):
    layer, x = bank(row_scale=True), inputs(rows).requires_grad_()
    ids = torch.zeros(rows, dtype=int)
    route = Route.hard(ids, EXPERTS) if kind == "hard" else Route.soft(one_hot(ids))
    y = layer(x, route)
    y.sum().backward()
    assert y.shape == (rows, TALL)
    assert x.grad.shape == x.shape
    assert all(p.grad is not None for p in layer.parameters())


def test_two_threads_share_one_layer():
    layer, x = bank(), inputs(len(UNSORTED))
    routes = [Route.hard(UNSORTED), Route.hard((UNSORTED + 2) % EXPERTS, EXPERTS)]
    expected = [layer(x, route).detach() for route in routes]
    assert not torch.equal(*expected)
    found = ([], [])

    def score(mine):
        found[mine].extend(layer(x, routes[mine]).detach() for _ in range(300))

    threads = [threading.Thread(target=score, args=(mine,)) for mine in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in (0, 1):
        assert len(found[mine]) == 300
        assert all(torch.equal(y, expected[mine]) for y in found[mine])


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_it_compiles_without_a_graph_break_and_means_the_same(kind):
    layer, x = bank(row_scale=True), inputs(len(UNSORTED))
    route = Route.hard(UNSORTED) if kind == "hard" else Route.soft(one_hot(UNSORTED))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, route), layer(x, route), atol=1e-12, rtol=0)


def test_initial_weights_are_glorot_normal_per_expert():
    """Fans in and r: the number of experts plays no part in the width of the distribution."""
    random = torch.Generator().manual_seed(0)
    base = Linear(300, 80, generator=random)
    layer = LowRankLinear(base, experts=7, rank=60, row_scale=True, generator=random)
    assert layer.down.shape == (7, 60, 300)
    expected = (2.0 / (300 + 60)) ** 0.5
    for expert in range(7):  # 18,000 draws: the standard error of a deviation is 0.5 %
        values = layer.down[expert]
        assert values.std().item() == pytest.approx(expected, rel=0.025)
        assert values.mean().item() == pytest.approx(0.0, abs=4 * expected / 18_000**0.5)
        tail = (values.abs() > 2 * expected).double().mean().item()
        assert tail == pytest.approx(0.0455, abs=0.008)  # of a normal distribution
    assert layer.row_scale.shape == (7, 80)
    assert layer.row_scale.std().item() == pytest.approx(1.0, abs=0.13)
    assert layer.row_scale.mean().item() == pytest.approx(0.0, abs=0.17)
    assert layer.up.shape == (7, 80, 60)
    assert layer.up.eq(0).all()
    assert layer.offset.shape == (7, 80)
    assert layer.offset.eq(0).all()


def test_experts_start_different_from_each_other():
    layer = LowRankLinear(Linear(WIDE, TALL), experts=2, rank=2)
    assert not torch.equal(layer.down[0], layer.down[1])


def test_the_generator_alone_decides_the_initial_weights():
    base, before = Linear(WIDE, TALL), torch.get_rng_state()
    layers = [
        LowRankLinear(
            base,
            experts=3,
            rank=2,
            row_scale=True,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (5, 5, 6)
    ]
    assert torch.equal(layers[0].down, layers[1].down)
    assert torch.equal(layers[0].row_scale, layers[1].row_scale)
    assert not torch.equal(layers[0].down, layers[2].down)
    assert torch.equal(torch.get_rng_state(), before)


def test_options_that_are_off_have_no_parameters():
    layer = LowRankLinear(Linear(WIDE, TALL), experts=3, rank=2, offset=False)
    assert [name for name, _ in layer.named_parameters()] == [
        "down",
        "up",
        "base.weight",
        "base.bias",
    ]


def test_the_base_is_kept_by_reference_and_gives_its_type():
    base = Linear(WIDE, TALL).double()
    layer = LowRankLinear(base, experts=3, rank=2)
    assert layer.base is base
    assert {p.dtype for p in layer.parameters()} == {torch.double}
    assert (layer.in_features, layer.out_features) == (WIDE, TALL)
    assert (layer.experts, layer.rank) == (3, 2)
    assert "experts=3, rank=2" in repr(layer)


@pytest.mark.parametrize("rank", [-1, 0, TALL + 1])
def test_a_rank_that_does_not_fit_is_refused_with_the_layer(rank):
    expected = rf"rank {rank} does not fit a layer {WIDE} -> {TALL}: 1 <= rank <= {TALL}"
    with pytest.raises(AdapterError, match=expected) as caught:
        LowRankLinear(Linear(WIDE, TALL), experts=2, rank=rank)
    assert isinstance(caught.value, ValueError)


def test_a_rank_beyond_the_input_is_allowed():
    """The papers' divisor rule follows the output, so a narrow input makes such ranks."""
    assert LowRankLinear(Linear(2, 8), experts=2, rank=4).rank == 4


@pytest.mark.parametrize("experts", [-1, 0])
def test_a_bank_without_experts_is_refused(experts):
    with pytest.raises(AdapterError, match=f"1 or more experts, not {experts}"):
        LowRankLinear(Linear(WIDE, TALL), experts=experts, rank=1)


def test_a_route_that_names_an_expert_too_many_is_refused():
    layer, x = bank(), inputs(4)
    with pytest.raises(AdapterError, match="rows of 4 experts, this bank has 3"):
        layer(x, Route.hard(torch.tensor([0, 3, 1, -1])))


@pytest.mark.parametrize("experts", [1, EXPERTS - 1, EXPERTS + 1])
@pytest.mark.parametrize("offset", [False, True])
def test_soft_weights_must_be_for_exactly_the_banks_experts(experts, offset):
    """One column would broadcast over all experts, and score without a word."""
    layer, x = bank(offset=offset), inputs(4)
    with pytest.raises(AdapterError, match=f"weights for {experts} experts, this bank has 3"):
        layer(x, Route.soft(torch.ones(4, experts, dtype=torch.double)))
