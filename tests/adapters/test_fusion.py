"""Mixers against the paper's formula with every expert's output formed, loops in float64."""

import itertools
import math

import pytest
import torch

from loractr.adapters.fusion import FusedLinear, Fusion, Mean, Own, Sum
from loractr.adapters.low_rank import EXPERT_PARAMETERS, Bank, LowRankLinear
from loractr.batch import Groups, Route
from loractr.errors import AdapterError
from loractr.layers.linear import Linear

WIDE, TALL, SIZES, RANKS, RANK = 5, 4, (3, 2, 4), (2, 3, 1), 3
MIXERS = {"attention": Fusion, "sum": Sum, "mean": Mean}


def mixer_of(kind, random):
    return Fusion(TALL, RANK, generator=random) if kind is Fusion else kind()


def fused(kind=Fusion, divisions=2, *, row_scale=True, offset=True, moved=True, seed=0):
    """A float64 layer; `moved`: away from its start, so that every parameter counts."""
    random = torch.Generator().manual_seed(seed)
    base = Linear(WIDE, TALL, generator=random).double()
    banks = [
        Bank(
            base,
            experts=size,
            rank=rank,
            row_scale=row_scale,
            offset=offset,
            generator=random,
        )
        for size, rank in zip(SIZES[:divisions], RANKS[:divisions], strict=True)
    ]
    layer = FusedLinear(base, banks, mixer_of(kind, random).double())
    if moved:
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.double)
            parameter.data += 0.4 * noise  # small enough that no softmax saturates
    return layer


def numbers(*shape, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.double)


def domains_of(divisions, *, complete=False):
    """(N, V): every combination of domains, shuffled; unless `complete`, those with -1 too."""
    lowest = 0 if complete else -1
    every = torch.tensor(list(itertools.product(*(range(lowest, n) for n in SIZES[:divisions]))))
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(2))]


def mixed(domains):
    """The route in which mixers act; the layer does not look which cell a row is of."""
    sizes = SIZES[: domains.shape[1]]
    groups = tuple(Groups.of(domains[:, v].contiguous(), n) for v, n in enumerate(sizes))
    return Route(divisions=groups, cell=Groups.of(torch.full((len(domains),), -1), 0))


def update(bank, expert, x):
    """h_v = (s ⊙ U D) x + b, eq. 8."""
    change = bank.up[expert] @ bank.down[expert]
    if bank.row_scale is not None:
        change = bank.row_scale[expert][:, None] * change
    h = change @ x
    return h if bank.offset is None else h + bank.offset[expert]


def naive(layer, x, domains):
    """Row by row: h0, every h_v, and their mixture as eq. 10 says."""
    rows = []
    for n in range(len(x)):
        h0 = layer.base.weight @ x[n] + layer.base.bias
        hs = [update(layer.bank(v), e, x[n]) for v, e in enumerate(domains[n].tolist()) if e >= 0]
        if isinstance(layer.mixer, Fusion) and hs:
            query = layer.mixer.query.weight @ h0
            scores = [(query @ (layer.mixer.key.weight @ h)) / math.sqrt(RANK) for h in hs]
            share = [torch.exp(s) / sum(torch.exp(other) for other in scores) for s in scores]
        else:
            share = [1 / len(hs) if isinstance(layer.mixer, Mean) else 1.0 for _ in hs]
        rows.append(h0 + sum(w * h for w, h in zip(share, hs, strict=True)))
    return torch.stack(rows)


CASES = [*itertools.product(MIXERS, (1, 2, 3))]


@pytest.mark.parametrize(("kind", "divisions"), CASES)
@pytest.mark.parametrize(("row_scale", "offset"), [(True, True), (False, False)])
def test_it_is_the_formula_with_every_experts_output_formed(kind, divisions, row_scale, offset):
    layer = fused(MIXERS[kind], divisions, row_scale=row_scale, offset=offset)
    domains = domains_of(divisions)
    x = numbers(len(domains), WIDE)
    found = layer(x, mixed(domains))
    torch.testing.assert_close(found, naive(layer, x, domains), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("kind", "divisions"), CASES)
def test_gradients_are_those_of_the_formula(kind, divisions):
    """Of the input, the base, every expert, and the mixer, by autograd of the naive form."""
    domains, ends = domains_of(divisions), []
    for form in (lambda layer, x: layer(x, mixed(domains)), lambda *a: naive(*a, domains)):
        layer, x = fused(MIXERS[kind], divisions), numbers(len(domains), WIDE).requires_grad_()
        (form(layer, x) * numbers(len(domains), TALL, seed=3)).sum().backward()
        ends.append({"x": x.grad} | {name: p.grad for name, p in layer.named_parameters()})
    for name, expected in ends[1].items():
        found = ends[0][name]
        if kind == "attention" and divisions == 1 and name.startswith("mixer."):
            # of one expert the weight is 1, whatever query and key are
            torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)
            continue
        assert expected.abs().max() > 0.01, name
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-12, msg=name)


@pytest.mark.parametrize("kind", MIXERS)
def test_gradients_are_those_of_finite_differences(kind):
    layer, domains = fused(MIXERS[kind]), domains_of(2)[:4]
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *values):
        tensors = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, tensors, (x, mixed(domains)))

    inputs = [numbers(4, WIDE), *layer.parameters()]
    assert torch.autograd.gradcheck(output, [t.detach().requires_grad_() for t in inputs])


@pytest.mark.slow
@pytest.mark.parametrize("kind", MIXERS)
def test_the_compiled_form_is_the_eager_one(kind):
    torch.compiler.reset()
    layer, domains = fused(MIXERS[kind]), domains_of(2)
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for some in (domains, domains[:5]):
        x = numbers(len(some), WIDE)
        torch.testing.assert_close(
            compiled(x, mixed(some)), layer(x, mixed(some)), atol=1e-12, rtol=0
        )


def test_weights_are_shares_of_the_experts_that_a_row_has():
    layer, domains = fused(Fusion, 3), domains_of(3)
    groups = mixed(domains).divisions
    x = numbers(len(domains), WIDE)
    inner = [
        torch.stack([b.down[max(e, 0)] @ row for e, row in zip(domains[:, v], x, strict=True)])
        for v, b in enumerate(layer.banks)
    ]
    own = [
        Own(z, bank.acting(rows)) for z, bank, rows in zip(inner, layer.banks, groups, strict=True)
    ]
    weights = layer.mixer(layer.base(x), own)
    present = domains >= 0
    assert (weights[~present] == 0).all()
    assert (weights[present] > 0).all()
    expected = present.any(1).double()
    torch.testing.assert_close(weights.sum(1), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("place", [0, 1])
def test_unmixed_one_divisions_experts_act_alone(kind, place):
    layer, domains = fused(MIXERS[kind]), domains_of(2)
    x, own = numbers(len(domains), WIDE), domains[:, place].contiguous()
    route = Route(divisions=(None,) * place + (Groups.of(own, SIZES[place]),))
    expected = torch.stack(
        [
            layer.base(row) + (update(layer.bank(place), int(e), row) if e >= 0 else 0)
            for e, row in zip(own, x, strict=True)
        ]
    )
    torch.testing.assert_close(layer(x, route), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("route", [None, Route.none()])
def test_without_a_route_it_is_the_base(route):
    layer, x = fused(), numbers(7, WIDE)
    assert torch.equal(layer(x, route), layer.base(x))


@pytest.mark.parametrize("kind", MIXERS)
def test_a_fresh_layer_computes_what_its_base_does_to_the_bit(kind):
    layer, domains = fused(MIXERS[kind], 3, moved=False), domains_of(3)
    x = numbers(len(domains), WIDE)
    assert torch.equal(layer(x, mixed(domains)), layer.base(x))


@pytest.mark.parametrize("kind", MIXERS)
def test_no_rows_have_no_output_and_no_gradient(kind):
    layer = fused(MIXERS[kind])
    output = layer(numbers(0, WIDE), mixed(torch.zeros(0, 2, dtype=torch.int64)))
    output.sum().backward()
    assert output.shape == (0, TALL)
    assert not any(p.grad.any() for p in layer.parameters() if p.grad is not None)


def test_up_gets_a_gradient_at_the_first_step_and_down_none():
    """U = 0 and s ~ N(0, 1): dU = s ⊙ (…) is not zero. With s = 0 as well, nothing would learn."""
    base = Linear(WIDE, TALL, generator=torch.Generator().manual_seed(0))
    for std, learns in ((1.0, True), (0.0, False)):
        layer = LowRankLinear(base, experts=2, rank=2, row_scale=True, generator=None)
        layer.row_scale.data.normal_(generator=torch.Generator().manual_seed(1)).mul_(std)
        y = layer(numbers(8, WIDE).float(), Route.hard(torch.tensor([0, 1] * 4)))
        (y - 1).square().sum().backward()
        assert (layer.up.grad.abs().amin() > 1e-4).item() is learns
        assert not layer.down.grad.any()
        assert not layer.row_scale.grad.any()
        assert layer.offset.grad.all()


def test_queries_and_keys_learn_once_there_is_something_to_choose_from():
    """Experts that update nothing are all alike: no gradient. Trained ones differ."""
    for moved in (False, True):
        layer, domains = fused(moved=moved), domains_of(2, complete=True)
        x = numbers(len(domains), WIDE)
        layer(x, mixed(domains)).square().sum().backward()
        for linear in (layer.mixer.query, layer.mixer.key):
            assert (linear.weight.grad.abs().max() > 1e-3).item() is moved
        assert layer.mixer.query.bias is layer.mixer.key.bias is None


def test_a_fresh_fusion_is_near_equal_shares():
    layer, domains = fused(moved=False), domains_of(2, complete=True)
    for bank in layer.banks:
        bank.up.data.normal_(std=0.02, generator=torch.Generator().manual_seed(3))
    x = numbers(len(domains), WIDE)
    found = layer(x, mixed(domains))
    equal = FusedLinear(layer.base, list(layer.banks), Mean())(x, mixed(domains))
    assert (found - equal).abs().max() < 0.1 * (equal - layer.base(x)).abs().max()


# --- three axes: every row of (N, M, in) is M rows of one domain ---


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("grouped", [False, True])
def test_rows_of_many_vectors_are_their_vectors_one_by_one(kind, grouped):
    domains = domains_of(2)
    if grouped:
        domains = torch.unique(domains, dim=0)
    many, ends = 3, []
    route = mixed(domains)
    for whole in (True, False):
        layer = fused(MIXERS[kind])
        x = numbers(len(domains), many, WIDE).requires_grad_()
        if whole:
            y = layer(x, route)
        else:
            y = torch.stack([layer(x[:, m], route) for m in range(many)], 1)
        (y * numbers(*y.shape, seed=4)).sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters()}
        ends.append({"y": y.detach(), "x": x.grad} | gradients)
    for name, expected in ends[1].items():
        torch.testing.assert_close(ends[0][name], expected, atol=1e-10, rtol=1e-12, msg=name)


def low_rank():
    random = torch.Generator().manual_seed(0)
    base = Linear(WIDE, TALL, generator=random).double()
    layer = LowRankLinear(base, experts=3, rank=2, row_scale=True, generator=random)
    for parameter in layer.parameters():
        parameter.data += torch.randn(parameter.shape, generator=random, dtype=torch.double)
    return layer


IDS = torch.tensor([2, -1, 0, 2, 0, -1])
ROUTES = {
    "unsorted": Route.hard(IDS, 3),
    "sorted": Route.to(IDS.sort().values, 3),
    "soft": Route.soft(torch.rand(6, 3, dtype=torch.double)),
    "none": Route.none(),
}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_low_rank_experts_on_many_vectors_are_those_on_each(route):
    ends = []
    for whole in (True, False):
        layer, x = low_rank(), numbers(6, 4, WIDE).requires_grad_()
        y = layer(x, route) if whole else torch.stack([layer(v, route) for v in x.unbind(1)], 1)
        (y * numbers(*y.shape, seed=4)).sum().backward()
        gradients = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
        ends.append({"y": y.detach(), "x": x.grad} | gradients)
    assert ends[0].keys() == ends[1].keys()
    for name, expected in ends[1].items():
        torch.testing.assert_close(ends[0][name], expected, atol=1e-10, rtol=1e-12, msg=name)


def test_many_vectors_of_no_rows():
    layer = low_rank()
    assert layer(numbers(0, 4, WIDE), Route.hard(IDS[:0], 3)).shape == (0, 4, TALL)


# --- bad input ---


def test_a_layer_needs_banks():
    with pytest.raises(AdapterError, match="one bank of experts per division, not none"):
        FusedLinear(Linear(2, 3), [], Sum())


@pytest.mark.parametrize("divisions", [1, 3])
def test_a_mixed_route_has_a_division_for_every_bank(divisions):
    domains = domains_of(divisions)
    with pytest.raises(AdapterError, match=f"route has {divisions} divisions, this layer has 2"):
        fused()(numbers(len(domains), WIDE), mixed(domains))


@pytest.mark.parametrize("silent", [0, 1])
def test_a_mixed_route_says_every_divisions_domains(silent):
    domains = domains_of(2)
    route = mixed(domains)
    groups = tuple(None if v == silent else g for v, g in enumerate(route.divisions))
    with pytest.raises(AdapterError, match="route has 1 divisions, this layer has 2"):
        fused()(numbers(len(domains), WIDE), Route(divisions=groups, cell=route.cell))


@pytest.mark.parametrize("place", [0, 1])
def test_a_route_of_more_domains_than_experts_is_refused(place):
    domains = torch.zeros(3, 2, dtype=torch.int64)
    groups = tuple(
        Groups.of(domains[:, v], 9 if v == place else n) for v, n in enumerate(SIZES[:2])
    )
    route = Route(divisions=groups, cell=Groups.of(torch.full((3,), -1), 0))
    problem = f"rows of 9 experts, this bank has {SIZES[place]}"
    with pytest.raises(AdapterError, match=problem):
        fused()(numbers(3, WIDE), route)
    with pytest.raises(AdapterError, match=problem):
        fused()(numbers(3, WIDE), Route(divisions=(None,) * place + (groups[place],)))


def test_a_bank_alone_has_the_experts_parameters():
    bank = Bank(Linear(WIDE, TALL), experts=3, rank=2, row_scale=True)
    assert {name for name, _ in bank.named_parameters()} == set(EXPERT_PARAMETERS)
