"""Putting adapters on, taking them off, folding them in: on a backbone of three kinds of layers."""

import copy

import pytest
import torch
from torch import nn

from loractr.adapters import LowRankLinear, adapted, attach, detach, merge
from loractr.batch import Route
from loractr.errors import AdapterError
from loractr.layers.linear import Linear

EXPERTS = 3


class Plain(nn.Module):
    """A tower of two layers beside a side layer, and a product that is no `Linear` of ours."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.tower = nn.ModuleList(
            [Linear(5, 4, generator=random), Linear(4, 3, bias=False, generator=random)]
        )
        self.side = Linear(5, 3, generator=random)
        self.foreign = nn.Linear(5, 3)

    def forward(self, x, route=None):
        h = x
        for layer in self.tower:
            h = torch.tanh(layer(h, route))
        return h + self.side(x, route) + self.foreign(x)


def wrapper(**options):
    def wrap(name, layer):
        return LowRankLinear(layer, experts=EXPERTS, rank=2, **options)

    return wrap


def moved(**options):
    """An adapted backbone in float64, away from its start."""
    backbone = Plain().double()
    attach(backbone, ("tower.*", "side"), wrapper(**options))
    random = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        parameter.data += torch.randn(parameter.shape, generator=random, dtype=torch.double)
    return backbone


def inputs(rows=7):
    random = torch.Generator().manual_seed(2)
    return torch.randn(rows, 5, generator=random, dtype=torch.double)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("tower.*",), ["tower.0", "tower.1"]),
        (("*",), ["tower.0", "tower.1", "side"]),
        (("side", "tower.1"), ["tower.1", "side"]),
        (("tower.0", "tower.*"), ["tower.0", "tower.1"]),
        (("tower.[!0]",), ["tower.1"]),
    ],
)
def test_targets_are_globs_and_hits_come_in_the_backbones_order(targets, expected):
    backbone = Plain()
    seen = []

    def wrap(name, layer):
        seen.append(name)
        return wrapper()(name, layer)

    assert attach(backbone, targets, wrap) == expected == seen
    assert [name for name, _ in adapted(backbone)] == expected
    others = {"tower.0", "tower.1", "side"} - set(expected)
    assert all(type(backbone.get_submodule(name)) is Linear for name in others)


def test_the_layers_that_are_wrapped_are_the_backbones_own():
    backbone = Plain()
    before = {name: backbone.get_submodule(name) for name in ("tower.0", "tower.1", "side")}
    attach(backbone, ("*",), wrapper())
    assert all(layer.base is before[name] for name, layer in adapted(backbone))


@pytest.mark.parametrize("targets", [("towr.*",), ("tower.*", "cross.*"), ("foreign",), ()])
def test_a_target_that_matches_nothing_is_refused_with_what_there_is(targets):
    backbone = Plain()
    with pytest.raises(AdapterError, match=r"'tower.0', 'tower.1', 'side'") as caught:
        attach(backbone, targets, wrapper())
    assert "Fix: set method.targets" in str(caught.value)
    assert not list(adapted(backbone))
    for glob in targets:  # the one that does match is not blamed
        assert (repr(glob) in caught.value.problem) == (glob != "tower.*")


def test_a_layer_is_adapted_only_once():
    backbone = Plain()
    attach(backbone, ("tower.*",), wrapper())
    with pytest.raises(AdapterError, match="match no free layer of the backbone; it has 'side'"):
        attach(backbone, ("tower.*",), wrapper())


def test_detach_gives_back_the_backbone_as_it_was():
    backbone = Plain()
    before, state = dict(backbone.named_modules()), copy.deepcopy(backbone.state_dict())
    attach(backbone, ("*",), wrapper())
    detach(backbone)
    assert dict(backbone.named_modules()) == before
    assert list(backbone.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("expert", range(EXPERTS))
@pytest.mark.parametrize("row_scale", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_a_merged_backbone_scores_as_the_routed_one(expert, row_scale, offset):
    backbone, x = moved(row_scale=row_scale, offset=offset), inputs()
    routed = backbone(x, Route.hard(torch.full((len(x),), expert), EXPERTS))
    merge(backbone, expert)
    assert not list(adapted(backbone))
    torch.testing.assert_close(backbone(x), routed, atol=1e-10, rtol=0)


def test_merging_in_single_precision_keeps_probabilities_to_five_digits():
    backbone, x = moved(row_scale=True).float(), inputs(500).float()
    routed = torch.sigmoid(backbone(x, Route.hard(torch.full((500,), 1), EXPERTS)))
    merge(backbone, 1)
    torch.testing.assert_close(torch.sigmoid(backbone(x)), routed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("offset", [False, True])
def test_a_merged_layer_has_a_bias_only_where_one_is_needed(offset):
    backbone = moved(offset=offset)
    merge(backbone, 0)
    assert (backbone.tower[1].bias is not None) == offset


def test_merging_one_copy_leaves_the_others_alone():
    """A model per domain: each from a copy, as the base is folded in place."""
    backbone, x = moved(), inputs()
    before = copy.deepcopy(backbone.state_dict())
    for expert in range(EXPERTS):
        one = copy.deepcopy(backbone)
        merge(one, expert)
        route = Route.hard(torch.full((len(x),), expert), EXPERTS)
        torch.testing.assert_close(one(x), backbone(x, route), atol=1e-10, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("expert", [-1, EXPERTS])
def test_an_expert_that_is_not_there_cannot_be_merged(expert):
    """-1 means "no expert" in a route; as an index it would quietly be the last one."""
    backbone = moved()
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(AdapterError, match=f"has no expert {expert}; it has 0 to 2"):
        merge(backbone, expert)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
