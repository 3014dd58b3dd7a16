"""Gates against their formula, written as loops over rows and experts in numpy."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from loractr.adapters import LowRankLinear, adapted, merge
from loractr.adapters.gate import FieldsInRoute, Gate, GatedLinear, SharedGate
from loractr.batch import Groups, Route
from loractr.errors import AdapterError
from loractr.layers.embedding import Embedded, Widths
from loractr.layers.linear import Linear
from loractr.layers.norm import BatchNorm, DomainNorm

DOMAINS, WIDE, TALL, RANK = 3, 5, 4, 2
IDS = torch.tensor([2, -1, 0, 2, 2, -1, 0])  # domain 1 has no row
EVERYONE = torch.arange(DOMAINS)


def noise(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.double)


def moved(module, seed=1):
    """In float64 and away from its start, so that every parameter counts."""
    for place, parameter in enumerate(module.double().parameters()):
        parameter.data += noise(*parameter.shape, seed=(seed * 100 + place))
    return module


def mixed(ids, domains=DOMAINS, **extra):
    """The route of a batch on which mixers act."""
    groups = Groups.of(ids, domains)
    return Route(divisions=(groups,), cell=groups, **extra)


def by_hand(gate, ids, context=None):
    """softmax(table[d] + out f(context)) over the largest, experts only, 0 without a domain."""
    table = gate.table.detach().numpy()
    rows = []
    for n, domain in enumerate(ids.tolist()):
        if domain < 0:
            rows.append(np.zeros(gate.experts))
            continue
        logits = table[domain].copy()
        if gate.out is not None:
            h = context[n].detach().numpy()
            for layer in gate.hidden:
                h = layer.weight.detach().numpy() @ h + layer.bias.detach().numpy()
                h = np.where(h > 0, h, 0.0)
            logits = logits + gate.out.detach().numpy() @ h
        kept = sorted(range(len(logits)), key=lambda o: (-logits[o], o))[: gate.top_k]
        shares = np.zeros(len(logits))
        for option in kept:
            shares[option] = np.exp(logits[option]) / sum(np.exp(logits[o]) for o in kept)
        rows.append(shares[1:] if gate.backbone else shares)
    return torch.tensor(np.array(rows).reshape(len(ids), gate.experts))


def layer_by_hand(layer, x, weights):
    """base(x[n]) + sum_e weights[n, e] (up[e] down[e] x[n] + offset[e])"""
    rows = []
    for n in range(len(x)):
        y = layer.base.weight @ x[n] + layer.base.bias
        for e in range(layer.experts):
            update = layer.up[e] @ (layer.down[e] @ x[n]) + layer.offset[e]
            y = y + weights[n, e] * update
        rows.append(y)
    return torch.stack(rows)


def gated(reads="domain", per_domain=1, sizes=(), fields=6, **options):
    context = {"domain": 0, "fields": fields, "hidden": WIDE}[reads]
    gate = Gate(DOMAINS, per_domain, context=context, sizes=sizes, **options)
    base = Linear(WIDE, TALL)
    experts = DOMAINS * per_domain
    return moved(GatedLinear(base, gate, experts=experts, rank=RANK, reads=reads))


OPTIONS = list(product([0, 6], [(), (4, 3)], [1, 2], [False, True], [None, 2, 3]))
OPTIONS = [options for options in OPTIONS if options[0] or not options[1]]


@pytest.mark.parametrize(("context", "sizes", "per_domain", "backbone", "top_k"), OPTIONS)
def test_a_gate_is_its_formula(context, sizes, per_domain, backbone, top_k):
    gate = Gate(DOMAINS, per_domain, context=context, sizes=sizes, backbone=backbone, top_k=top_k)
    shown = noise(len(IDS), context) if context else None
    weights = moved(gate)(Groups.of(IDS, DOMAINS), shown)
    torch.testing.assert_close(weights, by_hand(gate, IDS, shown), atol=1e-12, rtol=0)
    with_domain = weights[IDS >= 0].sum(1)
    assert (with_domain < 1 + 1e-12).all()
    assert backbone or torch.allclose(with_domain, torch.ones(5, dtype=torch.double))


@pytest.mark.parametrize(("sizes", "context"), [((), 0), ((), 6), ((4,), 6)])
def test_a_fresh_gate_gives_all_experts_the_same(sizes, context):
    gate = Gate(DOMAINS, 2, context=context, sizes=sizes)
    shown = noise(len(IDS), context).float() if context else None
    expected = torch.full((len(IDS), 6), 1 / 6) * (IDS >= 0)[:, None]
    torch.testing.assert_close(gate(Groups.of(IDS, DOMAINS), shown), expected)


def test_a_uniform_start_is_the_mean_of_all_experts():
    gate = Gate(DOMAINS)
    layer = LowRankLinear(Linear(WIDE, TALL), experts=DOMAINS, rank=RANK)
    layer = moved(layer)
    ours = GatedLinear(layer.base, gate, experts=DOMAINS, rank=RANK)
    ours.load_state_dict(layer.state_dict() | {"gate.table": gate.table})
    x = noise(4, WIDE)
    every = [layer(x, Route.hard(torch.full((4,), e), DOMAINS)) for e in range(DOMAINS)]
    expected = sum(every) / DOMAINS
    found = ours.double()(x, mixed(torch.tensor([0, 2, 1, 0])))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("per_domain", "backbone", "row_of_domain_1"),
    [
        (1, False, [0.05, 0.9, 0.05]),
        (2, False, [0.025, 0.45, 0.025, 0.025, 0.45, 0.025]),
        (1, True, [0.1 / 3, 0.9, 0.1 / 3]),
        (2, True, [0.02, 0.45, 0.02, 0.02, 0.45, 0.02]),
    ],
)
@pytest.mark.parametrize("context", [0, 6])
def test_a_gate_may_start_with_a_domains_own_experts(
    per_domain, backbone, row_of_domain_1, context
):
    gate = Gate(DOMAINS, per_domain, context=context, backbone=backbone, start="own")
    shown = noise(3, context).float() if context else None
    weights = gate(Groups.of(EVERYONE, DOMAINS), shown)
    torch.testing.assert_close(weights[1], torch.tensor(row_of_domain_1))
    for domain in range(DOMAINS):  # every row is the same, turned
        own = weights[domain].view(per_domain, DOMAINS)[:, domain]
        assert own.sum().item() == pytest.approx(0.9)


@pytest.mark.parametrize(("backbone", "expected"), [(False, 0.5), (True, 0.45)])
def test_own_experts_of_the_only_domain(backbone, expected):
    """Without another option there is nothing to leave them a tenth."""
    weights = Gate(1, 2, start="own", backbone=backbone)(Groups.of(torch.tensor([0]), 1))
    torch.testing.assert_close(weights, torch.tensor([[expected, expected]]))


@pytest.mark.parametrize(
    ("shares", "top_k", "expected"),
    [
        ((4, 1, 3, 2), 2, (4 / 7, 0, 3 / 7, 0)),
        ((4, 1, 3, 2), 4, (0.4, 0.1, 0.3, 0.2)),
        ((2, 1, 2, 2), 2, (0.5, 0, 0.5, 0)),  # of equal ones the first
        ((1, 1, 1, 1), 3, (1 / 3, 1 / 3, 1 / 3, 0)),
    ],
)
def test_the_largest_are_kept_and_share_all(shares, top_k, expected):
    gate = Gate(1, 4, top_k=top_k)
    gate.table.data = torch.tensor([shares]).float().log()
    weights = gate(Groups.of(torch.tensor([0]), 1))
    torch.testing.assert_close(weights, torch.tensor([expected]).float())


@pytest.mark.parametrize(
    ("shares", "top_k", "expected"),
    [
        ((5, 1, 3, 2), None, (1 / 11, 3 / 11, 2 / 11)),
        ((5, 1, 3, 2), 2, (0, 3 / 8, 0)),
        ((1, 2, 3, 4), 2, (0, 3 / 7, 4 / 7)),
    ],
)
def test_what_the_backbone_gets_is_taken_from_the_experts(shares, top_k, expected):
    gate = Gate(1, 3, top_k=top_k, backbone=True)
    gate.table.data = torch.tensor([shares]).float().log()
    weights = gate(Groups.of(torch.tensor([0]), 1))
    torch.testing.assert_close(weights, torch.tensor([expected]).float())


def test_experts_that_are_not_kept_get_no_gradient():
    gate = moved(Gate(1, 4, top_k=2))
    weights = gate(Groups.of(torch.tensor([0, 0]), 1))
    (weights[0] * noise(4)).sum().backward()
    kept = weights[0].detach() > 0
    assert kept.sum() == 2
    assert (gate.table.grad[0] != 0).equal(kept)
    assert torch.isfinite(gate.table.grad).all()


@pytest.mark.parametrize("reads", ["domain", "fields", "hidden"])
@pytest.mark.parametrize("backbone", [False, True])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_gated_layer_is_its_formula(reads, backbone, top_k):
    layer = gated(reads, per_domain=2, backbone=backbone, top_k=top_k)
    x, fields = noise(len(IDS), WIDE), noise(len(IDS), 6, seed=3)
    shown = {"domain": None, "fields": fields, "hidden": x}[reads]
    expected = layer_by_hand(layer, x, by_hand(layer.gate, IDS, shown))
    found = layer(x, mixed(IDS, context=fields))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(found[IDS < 0], layer.base(x)[IDS < 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("reads", ["domain", "fields", "hidden"])
def test_rows_of_several_vectors_have_one_set_of_weights(reads):
    layer = gated(reads)
    x, fields = noise(len(IDS), 2, WIDE), noise(len(IDS), 6, seed=3)
    shown = {"domain": None, "fields": fields, "hidden": (x[:, 0] + x[:, 1]) / 2}[reads]
    weights = by_hand(layer.gate, IDS, shown)
    expected = torch.stack([layer_by_hand(layer, x[:, m], weights) for m in range(2)], 1)
    found = layer(x, mixed(IDS, context=fields))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_where_no_mixer_acts_a_gated_layer_is_as_any_other():
    layer, x = gated(), noise(len(IDS), WIDE)
    plain = LowRankLinear(layer.base, experts=DOMAINS, rank=RANK).double()
    state = {n: v for n, v in layer.state_dict().items() if not n.startswith("gate.")}
    plain.load_state_dict(state)
    soft = torch.rand(len(IDS), DOMAINS, generator=torch.Generator().manual_seed(0)).double()
    for route in (None, Route.none(), Route.hard(IDS, DOMAINS), Route.soft(soft)):
        assert torch.equal(layer(x, route), plain(x, route))


@pytest.mark.parametrize("reads", ["domain", "fields", "hidden"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_gradients_are_numerically_right(reads, top_k):
    """Of the input, the context and every weight of gate and experts."""
    layer = gated(reads, sizes=(3,) if reads != "domain" else (), top_k=top_k)
    names = [name for name, _ in layer.named_parameters()]
    values = [parameter.detach() for parameter in layer.parameters()]
    groups = Groups.of(IDS, DOMAINS)

    def output(x, context, *parameters):
        given = dict(zip(names, parameters, strict=True))
        route = Route(divisions=(groups,), cell=groups, context=context)
        return functional_call(layer, given, (x, route))

    leaves = [noise(len(IDS), WIDE), noise(len(IDS), 6, seed=3), *values]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(output, leaves, fast_mode=True)


@pytest.mark.parametrize("reads", ["domain", "fields", "hidden"])
def test_a_fresh_gate_learns_from_its_first_step(reads):
    """`out` is zero, so hidden layers get no gradient yet; table and `out` must."""
    context = {"domain": 0, "fields": 6, "hidden": WIDE}[reads]
    gate = Gate(DOMAINS, context=context)
    layer = GatedLinear(Linear(WIDE, TALL), gate, experts=DOMAINS, rank=RANK, reads=reads)
    with torch.no_grad():
        layer.up.normal_(generator=torch.Generator().manual_seed(0))
    x, fields = noise(len(IDS), WIDE).float(), noise(len(IDS), 6).float()
    layer(x, mixed(IDS, context=fields)).square().sum().backward()
    assert gate.table.grad[[0, 2]].ne(0).all()
    assert gate.table.grad[1].eq(0).all()  # no row of that domain
    assert gate.out is None or gate.out.grad.ne(0).all()


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_row_does_not_feel_its_batch_mates(data):
    layer = gated("hidden", per_domain=2, sizes=(3,), top_k=3)
    x = noise(len(IDS), WIDE)
    whole = layer(x, mixed(IDS))
    chosen = data.draw(st.lists(st.sampled_from(range(len(IDS))), max_size=7))
    part = layer(x[chosen], mixed(IDS[chosen]))
    torch.testing.assert_close(part, whole[chosen], atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["domain", "fields", "hidden"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_it_compiles_without_a_graph_break_and_means_the_same(reads, top_k):
    torch.compiler.reset()
    layer = gated(reads, top_k=top_k, backbone=True)
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for rows in (7, 3):
        x, fields = noise(rows, WIDE), noise(rows, 6, seed=3)
        route = mixed(IDS[:rows], context=fields)
        torch.testing.assert_close(compiled(x, route), layer(x, route), atol=1e-12, rtol=0)


def embedded():
    rows = len(IDS)
    random = [noise(rows, 2, 2), (noise(rows, 1, seed=1),), noise(rows, 1, seed=2)]
    return Embedded(*random, first_order=torch.zeros(rows))


WIDTHS = Widths(size=2, fields=2, others=(1,), numbers=1)


@pytest.mark.parametrize("context", [0, WIDTHS.flat])
def test_the_shared_gate_writes_weights_into_the_route_where_mixers_act(context):
    front = moved(SharedGate(WIDTHS, Gate(DOMAINS, context=context)))
    assert front.widths == WIDTHS
    features, route = embedded(), mixed(IDS)
    same, found = front(features, route)
    assert same is features
    assert (found.divisions, found.cell) == (route.divisions, route.cell)
    expected = by_hand(front.gate, IDS, features.flat())
    torch.testing.assert_close(found.weights, expected, atol=1e-12, rtol=0)


def test_the_embedded_fields_are_shown_where_mixers_act():
    features, route = embedded(), mixed(IDS)
    same, found = FieldsInRoute(WIDTHS)(features, route)
    assert same is features
    assert (found.divisions, found.cell) == (route.divisions, route.cell)
    assert found.weights is None
    parts = [features.vectors[:, 0], features.vectors[:, 1], features.others[0], features.numbers]
    assert torch.equal(found.context, torch.cat(parts, 1))


@pytest.mark.parametrize("route", [Route.none(), Route.hard(IDS, DOMAINS)])
def test_where_no_mixer_acts_fronts_leave_the_route_alone(route):
    features = embedded()
    for front in (SharedGate(WIDTHS, Gate(DOMAINS)), FieldsInRoute(WIDTHS)):
        assert front(features, route)[0] is features
        assert front(features, route)[1] is route


def test_only_hidden_layers_draw_from_the_generator():
    random = torch.Generator().manual_seed(5)
    before = random.get_state()
    Gate(DOMAINS, context=6, generator=random)
    assert torch.equal(random.get_state(), before)
    gates = [
        Gate(DOMAINS, context=6, sizes=(4,), generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    ]
    one, again, other = (gate.hidden[0].weight for gate in gates)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("top_k", [-1, 0, 1, 7])
def test_a_gate_keeps_two_experts_at_least_and_all_at_most(top_k):
    with pytest.raises(AdapterError, match=f"top_k {top_k} does not fit a gate over 6 experts"):
        Gate(DOMAINS, 2, top_k=top_k)


def test_a_route_of_more_domains_is_refused():
    with pytest.raises(AdapterError, match="rows of 4 domains, this gate knows 3"):
        Gate(DOMAINS)(Groups.of(IDS, DOMAINS + 1))


@pytest.mark.parametrize(("context", "given"), [(0, 6), (6, 0), (6, 5)])
def test_a_context_of_another_width_is_refused(context, given):
    shown = torch.zeros(len(IDS), given) if given else None
    expected = f"looks at {context} values of a row besides its domain, not at {given}"
    with pytest.raises(AdapterError, match=expected):
        Gate(DOMAINS, context=context)(Groups.of(IDS, DOMAINS), shown)


def test_a_layer_that_reads_fields_needs_a_route_that_has_them():
    with pytest.raises(AdapterError, match="looks at 6 values of a row besides its domain"):
        gated("fields")(noise(len(IDS), WIDE), mixed(IDS))


def test_a_gate_over_other_experts_is_refused():
    with pytest.raises(AdapterError, match="a gate over 6 experts, this bank has 3"):
        GatedLinear(Linear(WIDE, TALL), Gate(DOMAINS, 2), experts=3, rank=RANK)


def test_the_gate_takes_the_layers_type():
    layer = GatedLinear(Linear(WIDE, TALL).double(), Gate(DOMAINS), experts=3, rank=RANK)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.double}
    assert "domains=3, experts=3, context=0" in repr(layer)


@pytest.mark.parametrize(("backbone", "top_k"), [(False, None), (True, 2)])
def test_weights_of_domains_are_those_of_their_rows(backbone, top_k):
    gate = moved(Gate(DOMAINS, 2, backbone=backbone, top_k=top_k))
    torch.testing.assert_close(gate.of_domains(), by_hand(gate, EVERYONE), atol=1e-12, rtol=0)


def test_there_are_no_such_weights_where_rows_differ():
    gate = Gate(DOMAINS, context=6)
    with pytest.raises(AdapterError, match="looks at 6 values of a row besides its domain") as e:
        gate.of_domains()
    assert "gate_input: domain" in str(e.value)


def adapted_backbone():
    """Two layers, the second without a bias."""
    backbone = nn.Sequential(Linear(WIDE, TALL), Linear(TALL, TALL, bias=False))
    for place in range(2):
        layer = LowRankLinear(backbone[place], experts=DOMAINS, rank=RANK, row_scale=place == 0)
        backbone[place] = layer
    return moved(backbone)


def test_a_mixture_of_experts_can_be_merged():
    backbone, x = adapted_backbone(), noise(6, WIDE)
    weights = torch.tensor([0.2, 0.0, 0.7]).double()
    route = Route.soft(weights.expand(6, -1))
    expected = backbone[1](backbone[0](x, route), route)
    merge(backbone, weights)
    assert not list(adapted(backbone))
    torch.testing.assert_close(backbone(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (4,), (3, 1)])
def test_weights_for_other_experts_cannot_be_merged(shape):
    backbone = adapted_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(AdapterError, match="needs weights of its 3 experts, not of shape"):
        merge(backbone, torch.ones(shape).double())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_norms_of_domains_cannot_be_mixed():
    backbone = adapted_backbone()
    backbone.append(DomainNorm(BatchNorm(TALL), (DOMAINS,)))
    with pytest.raises(AdapterError, match="'2' is a norm per domain"):
        merge(backbone, torch.ones(DOMAINS))
    assert len(list(adapted(backbone))) == 2
