"""A whole layer in one compiled pass: against loops in float64, torch's operations and finite
differences."""

import numpy as np
import pytest
import torch

from loractr import native
from loractr.adapters import LowRankLinear
from loractr.batch import Groups, Route
from loractr.layers import one_pass
from loractr.layers.dropout import Dropout, Rectifier, draw
from loractr.layers.linear import Linear
from loractr.layers.one_pass import Experts, in_one_pass
from native.agreement import gap

pytestmark = pytest.mark.usefixtures("kernels")

PRECISE = {torch.float32: 1e-5, torch.float64: 1e-13}
EXPERTS, RANK = 4, 3
ROWS = {
    "none": [],
    "one": [2],
    "one that has none": [-1],
    "few": [-1, 0, 0, 2, 3],  # expert 1 has no row
    "a block": [n // 64 for n in range(256)],
    "a block and a row": [n // 100 - 1 for n in range(257)],
    "many": [n // 300 - 1 for n in range(1300)],
    "nobody": [-1] * 600,
}


@pytest.fixture
def always(monkeypatch):
    """One pass even where torch's operations would be quicker."""
    monkeypatch.setattr(one_pass, "CACHED", -1)


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def groups_of(ids):
    return Groups.of(torch.tensor(ids, dtype=torch.int64), EXPERTS, grouped=True)


def weights_of(wide, tall, dtype):
    """weight, bias, down, up, offset."""
    shapes = [(tall, wide), (tall,), (EXPERTS, RANK, wide), (EXPERTS, tall, RANK), (EXPERTS, tall)]
    return [normal(*shape, dtype=dtype, seed=n) for n, shape in enumerate(shapes)]


@pytest.mark.parametrize(("wide", "tall"), [(5, 6), (16, 33), (7, 1)])
@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
def test_forward_is_the_formula_row_by_row(ids, wide, tall):
    x, weights = normal(len(ids), wide, seed=9), weights_of(wide, tall, torch.float64)
    weight, bias, *bank = weights
    found = in_one_pass(x, weight, bias, Experts(*bank, groups_of(ids)), Rectifier())
    rows, (weight, bias, down, up, offset) = x.numpy(), (tensor.numpy() for tensor in weights)
    for n, e in enumerate(ids):
        expected = weight @ rows[n] + bias
        if e >= 0:
            expected += up[e] @ (down[e] @ rows[n]) + offset[e]
        np.testing.assert_allclose(found[n], np.maximum(expected, 0), rtol=1e-12, atol=1e-12)
    assert found.shape == (len(ids), tall)


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
@pytest.mark.usefixtures("always")
def test_results_and_gradients_agree_with_torchs_down_to_the_mask(ids, adapted, dropout, dtype):
    generator = torch.Generator().manual_seed(4)
    base = Linear(12, 20, generator=generator)
    layer = LowRankLinear(base, experts=EXPERTS, rank=RANK) if adapted else base
    layer = layer.to(dtype)
    names = [name for name, _ in layer.named_parameters()]
    weights = [normal(*p.shape, dtype=dtype, seed=n) for n, p in enumerate(layer.parameters())]
    route = Route(divisions=(groups_of(ids),)) if adapted else None
    ending = Rectifier(None if dropout is None else Dropout(dropout))

    def applied(x, *weights):
        torch.manual_seed(3)
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, given, (x, route, ending))

    assert gap(applied, normal(len(ids), 12, dtype=dtype, seed=8), *weights) < PRECISE[dtype]


@pytest.mark.parametrize("rectifies", [False, True])
@pytest.mark.parametrize("parts", ["all", "no bias", "no offset", "no experts"])
def test_gradients_are_those_of_finite_differences(parts, rectifies):
    weight, bias, down, up, offset = weights_of(3, 4, torch.float64)
    groups, ending = groups_of([-1, 0, 0, 1, 3]), Rectifier() if rectifies else None
    given = {"weight": weight, "bias": bias, "down": down, "up": up, "offset": offset}
    left_out = {
        "no bias": ["bias"],
        "no offset": ["offset"],
        "no experts": ["down", "up", "offset"],
    }
    given = {name: given[name] for name in given if name not in left_out.get(parts, ())}

    def applied(x, *tensors):
        named = dict(zip(given, tensors, strict=True))
        experts = None
        if "down" in named:
            experts = Experts(named["down"], named["up"], named.get("offset"), groups)
        return in_one_pass(x, named["weight"], named.get("bias"), experts, ending)

    inputs = [normal(5, 3, seed=7), *given.values()]
    assert torch.autograd.gradcheck(applied, [x.clone().requires_grad_() for x in inputs])


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "down", "up", "offset"])
def test_a_gradient_alone_is_the_one_beside_all_others(wanted):
    names = ("x", "weight", "bias", "down", "up", "offset")
    values = [normal(300, 5, seed=9), *weights_of(5, 6, torch.float64)]
    groups = groups_of([n // 80 for n in range(300)])

    def gradient(names_of_leaves):
        leaves = {
            name: value.clone().requires_grad_(name in names_of_leaves)
            for name, value in zip(names, values, strict=True)
        }
        x, weight, bias, *bank = leaves.values()
        in_one_pass(x, weight, bias, Experts(*bank, groups), Rectifier()).sin().sum().backward()
        others = [leaves[name].grad for name in names if name not in names_of_leaves]
        assert others == [None] * len(others)
        return leaves[wanted].grad

    assert torch.equal(gradient([wanted]), gradient(names))


def test_gradients_of_biases_are_summed_beyond_the_precision_of_their_terms():
    """Before a norm they are 0 but for rounding, and Adam makes whole steps of what is left."""
    grad = normal(256, 3, dtype=torch.float32) * 1e4
    grad[-1] -= grad.double().sum(0).float()
    exact = grad.double().sum(0)
    weight, bias, down, up, offset = (w.float() for w in weights_of(2, 3, torch.float64))
    bias.requires_grad_(), offset.requires_grad_()
    experts = Experts(down, up, offset, groups_of([1] * 256))
    in_one_pass(normal(256, 2, dtype=torch.float32), weight, bias, experts).backward(grad)
    for found in (bias.grad, offset.grad[1]):
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_what_is_not_a_number_stays_so():
    x = torch.full((2, 3), torch.nan)
    assert in_one_pass(x, torch.ones(4, 3), None, None, Rectifier()).isnan().all()


def test_each_pass_draws_one_mask_and_only_in_training():
    dropout, x = Dropout(0.5), torch.ones(300, 4)
    weight, bias = torch.zeros(8, 4), torch.ones(8)
    torch.manual_seed(5)
    found = in_one_pass(x, weight, bias, None, Rectifier(dropout))
    torch.manual_seed(5)
    assert torch.equal(found, draw(0.5).mask(torch.ones(300, 8)))
    dropout.eval()
    held = torch.get_rng_state()
    assert torch.equal(in_one_pass(x, weight, bias, None, Rectifier(dropout)), torch.ones(300, 8))
    assert torch.equal(torch.get_rng_state(), held)


def experts(ids, count=EXPERTS, **of):
    groups = Groups.of(torch.tensor(ids), count, grouped=ids == sorted(ids))
    down, up = torch.ones(EXPERTS, 2, 3), torch.ones(EXPERTS, 4, 2)
    return Experts(of.get("down", down), of.get("up", up), None, groups)


X, WEIGHT = torch.ones(2, 3), torch.ones(4, 3)
UNFIT = {
    "rows in another order": (X, WEIGHT, None, experts([1, 0])),
    "more groups than experts": (X, WEIGHT, None, experts([0, 5], 6)),
    "groups of more rows": (X, WEIGHT, None, experts([0, 0, 1])),
    "experts of another width": (X, WEIGHT, None, experts([0, 1], down=torch.ones(EXPERTS, 2, 5))),
    "experts of two ranks": (X, WEIGHT, None, experts([0, 1], up=torch.ones(EXPERTS, 4, 1))),
    "x of another width": (torch.ones(2, 5), WEIGHT, None),
    "a bias of another width": (X, WEIGHT, torch.ones(3)),
    "x of three axes": (torch.ones(2, 2, 3), WEIGHT, None),
    "x turned": (torch.ones(3, 2).T, WEIGHT, None),
    "two types": (X, WEIGHT.double(), None),
    "half the precision": (X.half(), WEIGHT.half(), None),
}


@pytest.mark.parametrize("unfit", UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_left_to_torch(unfit):
    assert in_one_pass(*unfit) is None


def test_without_compiled_kernels_there_is_none():
    assert in_one_pass(X, WEIGHT, None) is not None
    with native.use("torch"):
        assert in_one_pass(X, WEIGHT, None) is None


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("ids", ["many", "nobody"])
def test_a_fresh_adapter_computes_what_its_base_does_to_rounding(ids):
    base, groups = Linear(64, 48), groups_of(ROWS[ids])
    layer = LowRankLinear(base, experts=EXPERTS, rank=RANK)
    x = normal(len(ROWS[ids]), 64, dtype=torch.float32)
    for ending in (None, Rectifier()):
        found = layer(x, Route(divisions=(groups,)), ending)
        torch.testing.assert_close(found, base(x, None, ending), atol=2e-6, rtol=0)


def test_what_has_no_ending_may_be_overwritten():
    layer = LowRankLinear(Linear(3, 4), experts=EXPERTS, rank=2)
    y = layer(X, Route(divisions=(groups_of([0, 1]),)))
    y.mul_(2).sum().backward()
    assert layer.base.bias.grad.tolist() == [4.0] * 4


def test_one_pass_is_taken_where_it_pays():
    x, dropout = torch.ones(1024, 3), Dropout(0.5)
    assert not one_pass.pays(x, 256, Rectifier())
    assert one_pass.pays(x, 257, Rectifier())
    assert one_pass.pays(x, 1, Rectifier(dropout))
    assert not one_pass.pays(x, 1, Rectifier(dropout.eval()))
