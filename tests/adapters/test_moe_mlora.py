"""MoE-MLoRA: whole models against the formula in numpy, what trains when, what can be merged."""

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from loractr.adapters import LowRankLinear, adapted, detach, merge
from loractr.adapters.gate import (
    FieldsInRoute,
    GatedLinear,
    SharedGate,
    domain_weights,
)
from loractr.adapters.mlora import EXPERTS, MLoRA, Rank
from loractr.adapters.moe_mlora import BACKBONE, GATES, MoEMLoRA
from loractr.backbones import BACKBONES, ModelConfig
from loractr.baselines.mix import Mix
from loractr.batch import Batch, Groups, Route, Routing
from loractr.config import RunConfig, dump_config, parse_config
from loractr.data.config import DataConfig
from loractr.errors import AdapterError, ConfigError
from loractr.model import build
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage, matches

DOMAINS = ("a", "b", "c")
SIZES = (6, 5)
SCHEMA = Schema(
    fields=(
        Field(name="user", size=6),
        Field(name="item", size=5, embedding_size=2),
        Field(name="age", kind="numerical"),
    ),
    divisions=(
        Division(name="tab", column="tab", domains=DOMAINS),
        Division(name="hour", column="hour", domains=("day", "night")),
    ),
)
FLAT = 3 + 2 + 1
GATES_OF = [  # (gate_input, gate_scope, gate_sizes)
    ("domain", "shared", ()),
    ("domain", "layer", ()),
    ("fields", "shared", ()),
    ("fields", "shared", (4,)),
    ("fields", "layer", ()),
    ("fields", "layer", (4, 3)),
    ("hidden", "layer", ()),
    ("hidden", "layer", (4,)),
]


def moe(gate_input="domain", gate_scope="shared", gate_sizes=(), **options):
    options = {"rank": Rank(fixed=2), "gate_input": gate_input, "gate_scope": gate_scope} | options
    return MoEMLoRA(name="moe_mlora", gate_sizes=gate_sizes, **options)


def model_of(method, *, seed=0, **options):
    options = {"backbone": "mlp", "embedding_size": 3, "hidden_sizes": SIZES} | options
    config = RunConfig(
        data=DataConfig(source="synthetic"), model=ModelConfig(**options), method=method, seed=seed
    )
    return build(config, SCHEMA)


def moved(method, **options):
    """A float64 model away from its start, on whose rows the gate acts."""
    model = model_of(method, **options).double().eval()
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.4 * torch.randn(parameter.shape, generator=random, dtype=torch.double)
    model.routing = replace(model.routing, mixed=True)
    return model


def batch_of(ids, route=None, seed=2):
    """Rows of the domains `ids`; mixers act on them unless there is another route."""
    random, count = np.random.default_rng(seed), len(ids)
    groups = Groups.of(ids, len(DOMAINS))
    return Batch(
        ids=torch.from_numpy(random.integers(0, (6, 5), (count, 2)).astype(np.int32)),
        numbers=torch.from_numpy(random.normal(size=(count, 1)).astype(np.float32)),
        row=torch.arange(count),
        route=Route(divisions=(groups,), cell=groups) if route is None else route,
    )


IDS = torch.tensor([1, -1, 0, 2, 2, 1, -1, 0, 0])


def array(tensor):
    return tensor.detach().numpy()


def gate_by_hand(gate, domain, shown):
    """A gate's weights for one row, and zeros for a row of no domain."""
    if domain < 0:
        return np.zeros(gate.experts)
    logits = array(gate.table)[domain].copy()
    if gate.out is not None:
        for layer in gate.hidden:
            shown = np.maximum(array(layer.weight) @ shown + array(layer.bias), 0.0)
        logits += array(gate.out) @ shown
    if gate.top_k is not None:
        logits[np.argsort(-logits, kind="stable")[gate.top_k :]] = -np.inf
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return shares[1:] if gate.backbone else shares


def logit_by_hand(model, batch, n, domain):
    """The tower of one row, layer by layer, expert by expert."""
    tables = [array(model.embedding.tables[name].weight) for name in ("size_3", "size_2")]
    numbers = array(batch.numbers[n].double())
    flat = np.concatenate([tables[0][batch.ids[n, 0]], tables[1][batch.ids[n, 1]], numbers])
    h = flat
    for _, layer in adapted(model.backbone):
        if isinstance(layer, GatedLinear):
            g = gate_by_hand(layer.gate, domain, h if layer.reads == "hidden" else flat)
        else:
            g = gate_by_hand(model.front.gate, domain, flat)
        y = array(layer.base.weight) @ h + array(layer.base.bias)
        for e in range(layer.experts):
            update = array(layer.up[e]) @ (array(layer.down[e]) @ h) + array(layer.offset[e])
            y = y + g[e] * update
        h = np.maximum(y, 0.0)
    return float(array(model.head.weight)[0] @ h + array(model.head.bias)[0])


@pytest.mark.parametrize(("gate_input", "gate_scope", "gate_sizes"), GATES_OF)
@pytest.mark.parametrize(("per_domain", "gate_backbone", "top_k"), [(1, False, None), (2, True, 2)])
def test_a_mixed_batch_is_the_formula(
    gate_input, gate_scope, gate_sizes, per_domain, gate_backbone, top_k
):
    method = moe(
        gate_input,
        gate_scope,
        gate_sizes,
        experts_per_domain=per_domain,
        gate_backbone=gate_backbone,
        top_k=top_k,
    )
    model, batch = moved(method), batch_of(IDS)
    expected = [logit_by_hand(model, batch, n, domain) for n, domain in enumerate(IDS.tolist())]
    expected = torch.tensor(expected, dtype=torch.double)
    torch.testing.assert_close(model(batch), expected, atol=1e-10, rtol=0)
    alone = batch_of(IDS, Route.none())
    unseen = IDS == -1
    torch.testing.assert_close(model(batch)[unseen], model(alone)[unseen], atol=1e-12, rtol=0)


@pytest.mark.parametrize("gate_scope", ["shared", "layer"])
def test_where_the_gate_does_not_act_a_domains_first_expert_does(gate_scope):
    model = moved(moe(gate_scope=gate_scope, experts_per_domain=2))
    plain = moved(MLoRA(name="mlora", rank=Rank(fixed=2)))
    state = {name: v for name, v in model.state_dict().items() if not matches(name, GATES)}
    state = {name: v[:3] if matches(name, EXPERTS) else v for name, v in state.items()}
    plain.load_state_dict(state)
    batch = batch_of(IDS, Route.hard(IDS, 3))
    torch.testing.assert_close(model(batch), plain(batch), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("options", "experts", "place"),
    [
        ({}, 3, 0),
        ({"experts_per_domain": 4}, 12, 0),
        ({"divisions": ("hour",), "experts_per_domain": 2}, 4, 1),
    ],
)
@pytest.mark.parametrize("gate_scope", ["shared", "layer"])
def test_there_are_so_many_experts_for_each_domain_of_its_division(
    options, experts, place, gate_scope
):
    model = model_of(moe(gate_scope=gate_scope, **options))
    assert model.routing == Routing(divisions=(place,))
    layers = [layer for _, layer in adapted(model.backbone)]
    assert {layer.experts for layer in layers} == {experts}
    gates = [layer.gate for layer in layers] if gate_scope == "layer" else [model.front.gate]
    assert {gate.table.shape for gate in gates} == {(len(SCHEMA.divisions[place].domains), experts)}


@pytest.mark.parametrize(("gate_input", "gate_scope", "gate_sizes"), GATES_OF)
def test_gates_stand_where_they_are_asked_for(gate_input, gate_scope, gate_sizes):
    model = model_of(moe(gate_input, gate_scope, gate_sizes))
    layers = [layer for _, layer in adapted(model.backbone)]
    if gate_scope == "shared":
        assert type(model.front) is SharedGate
        assert {type(layer) for layer in layers} == {LowRankLinear}
        gates, inputs = [model.front.gate], [FLAT]
    else:
        assert type(model.front) is (FieldsInRoute if gate_input == "fields" else type(None))
        assert {type(layer) for layer in layers} == {GatedLinear}
        gates = [layer.gate for layer in layers]
        inputs = [FLAT, FLAT] if gate_input == "fields" else [FLAT, SIZES[0]]
    for gate, width in zip(gates, inputs, strict=True):
        assert gate.context == (0 if gate_input == "domain" else width)
        assert [layer.out_features for layer in gate.hidden] == list(gate_sizes)


def test_ranks_follow_mloras_rule_and_experts_have_an_offset_and_no_row_scale():
    model = model_of(moe(rank=Rank(divisor=2)), hidden_sizes=(8, 6))
    layers = [layer for _, layer in adapted(model.backbone)]
    assert [layer.rank for layer in layers] == [4, 3]
    assert all(layer.offset is not None and layer.row_scale is None for layer in layers)
    with pytest.raises(AdapterError, match="lists 1 ranks, but 'tower"):
        model_of(moe(rank=Rank(fixed=(2,))))
    with pytest.raises(AdapterError, match="lists 3 ranks, but 2 layers are adapted"):
        model_of(moe(rank=Rank(fixed=(2, 2, 2))))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("gate_input", "gate_scope", "gate_sizes"), GATES_OF)
def test_experts_gates_and_backbone_are_a_partition_of_the_weights(
    backbone, gate_input, gate_scope, gate_sizes
):
    model = model_of(moe(gate_input, gate_scope, gate_sizes), backbone=backbone, batch_norm=True)
    experts = {id(p) for _, b in adapted(model) for p in (b.down, b.up, b.offset)}
    plain = model_of(Mix(name="mix"), backbone=backbone, batch_norm=True).state_dict()
    for name, parameter in model.named_parameters():
        kinds = [matches(name, globs) for globs in (EXPERTS, GATES, BACKBONE)]
        shared = name.replace("linear.base.", "linear.") in plain
        assert kinds == [
            id(parameter) in experts,
            not shared and id(parameter) not in experts,
            shared,
        ], name


@pytest.mark.parametrize("gate", GATES_OF)
def test_shared_part_and_experts_start_alike_under_every_gate(gate):
    """Otherwise two gates of a comparison would differ in more than the gate."""
    plain = model_of(Mix(name="mix")).state_dict()
    usual = model_of(moe()).state_dict()
    for name, value in model_of(moe(*gate)).state_dict().items():
        if not matches(name, GATES):
            assert torch.equal(value, usual[name]), name
        shared = name.replace("linear.base.", "linear.")
        assert shared not in plain or torch.equal(value, plain[shared]), name


def test_the_experts_of_a_domain_start_different():
    layer = next(layer for _, layer in adapted(model_of(moe(experts_per_domain=2)).backbone))
    assert all(not torch.equal(layer.down[e], layer.down[e + 3]) for e in range(3))


def test_three_stages_each_with_its_own_part():
    stages = moe(experts_per_domain=4).stages(Stage(name="", patience=2), norm=True)
    assert [stage.name for stage in stages] == ["pretrain", "experts", "gate"]
    assert [stage.trains for stage in stages] == [BACKBONE, EXPERTS, GATES]
    assert [stage.route for stage in stages] == ["none", "hard", "mixed"]
    assert [stage.independent for stage in stages] == [False, True, False]
    assert [stage.experts_per_domain for stage in stages] == [1, 4, 1]
    assert [stage.rows for stage in stages] == [None, None, None]
    assert {stage.patience for stage in stages} == {2}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"gate_input": "hidden"}, "gate_scope: layer"),
        ({"gate_sizes": [4]}, "gate_input: fields or hidden"),
        ({"gate_scope": "layer", "gate_sizes": [4]}, "gate_input: fields or hidden"),
        ({"gate_input": "fields", "gate_sizes": [0]}, "greater than 0"),
        ({"experts_per_domain": 0}, "greater than 0"),
        ({"top_k": 1}, "greater than or equal to 2"),
        ({"gate_start": "random"}, "gate_start"),
        ({"divisions": ["tab", "hour"]}, "moe_mlora works on one division"),
        ({"topk": 2}, "did you mean 'top_k'"),
    ],
)
def test_what_cannot_be_is_refused_by_the_configuration(options, problem):
    values = {"data": {"source": "synthetic"}, "method": {"name": "moe_mlora"} | options}
    with pytest.raises(ConfigError, match=problem):
        parse_config(values)


def test_the_configuration_survives_being_written():
    method = moe("fields", "layer", (4,), top_k=2, experts_per_domain=2, gate_start="own")
    config = RunConfig(data=DataConfig(source="synthetic"), method=method)
    assert parse_config(yaml.safe_load(dump_config(config))).method == method


@pytest.mark.parametrize("gate_scope", ["shared", "layer"])
def test_more_experts_than_there_are_cannot_be_kept(gate_scope):
    with pytest.raises(AdapterError, match="top_k 7 does not fit a gate over 6 experts"):
        model_of(moe(gate_scope=gate_scope, experts_per_domain=2, top_k=7))


MERGEABLE = list(product(["shared", "layer"], [(1, False, None), (2, True, 3)]))


@pytest.mark.parametrize(("gate_scope", "options"), MERGEABLE)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_gate_that_sees_the_domain_only_is_merged_per_domain(backbone, gate_scope, options):
    per_domain, gate_backbone, top_k = options
    method = moe(
        gate_scope=gate_scope,
        experts_per_domain=per_domain,
        gate_backbone=gate_backbone,
        top_k=top_k,
    )
    model = moved(method, backbone=backbone, batch_norm=True)
    for domain in range(len(DOMAINS)):
        batch = batch_of(torch.full((20,), domain))
        expected, one = model(batch), copy.deepcopy(model)
        merge(one, domain)
        assert not list(adapted(one))
        assert one.front is None
        assert not any(matches(name, (*EXPERTS, *GATES)) for name in one.state_dict())
        for route in (batch.route, Route.none()):  # no route is read any more
            found = one(replace(batch, route=route))
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("gate", GATES_OF)
def test_without_adapters_and_gates_it_is_the_backbone(gate):
    model, batch = moved(moe(*gate)), batch_of(IDS)
    expected = model(batch_of(IDS, Route.none()))
    detach(model)
    assert list(model.state_dict()) == list(model_of(Mix(name="mix")).state_dict())
    torch.testing.assert_close(model(batch), expected, atol=1e-12, rtol=0)


def test_merged_in_single_precision_probabilities_keep_five_digits():
    model, batch = moved(moe()).float(), batch_of(torch.full((200,), 1))
    expected = torch.sigmoid(model(batch))
    merge(model, 1)
    torch.testing.assert_close(torch.sigmoid(model(batch)), expected, atol=1e-5, rtol=0)


def test_weights_of_domains_are_told_for_every_layer():
    for gate_scope in ("shared", "layer"):
        model = moved(moe(gate_scope=gate_scope, experts_per_domain=2))
        found = domain_weights(model)
        assert list(found) == ["backbone.tower.0.linear", "backbone.tower.1.linear"]
        for name, weights in found.items():
            layer = model.get_submodule(name)
            gate = layer.gate if gate_scope == "layer" else model.front.gate
            expected = np.stack([gate_by_hand(gate, domain, None) for domain in range(3)])
            np.testing.assert_allclose(weights.numpy(), expected, atol=1e-12)
    one, other = found.values()
    assert not torch.equal(one, other)  # gates of layers differ


@pytest.mark.parametrize("gate", [gate for gate in GATES_OF if gate[0] != "domain"])
def test_a_gate_that_sees_more_cannot_be_merged(gate):
    model = moved(moe(*gate))
    before, names = copy.deepcopy(model.state_dict()), list(dict(model.named_modules()))
    with pytest.raises(AdapterError, match="rows of one domain have different weights"):
        merge(model, 0)
    assert list(dict(model.named_modules())) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("gate_scope", ["shared", "layer"])
def test_without_the_gate_acting_one_expert_is_merged(gate_scope):
    """As after a stage that left the gate aside; every expert can be had, and no gate remains."""
    model = moved(moe(gate_scope=gate_scope, experts_per_domain=2))
    model.routing = replace(model.routing, mixed=False)
    for expert in range(6):
        one, batch = copy.deepcopy(model), batch_of(IDS, Route.hard(torch.full((9,), expert), 6))
        merge(one, expert)
        assert one.front is None
        torch.testing.assert_close(one(batch), model(batch), atol=1e-10, rtol=0)


def test_a_model_without_a_gate_has_no_weights_of_domains():
    model = moved(MLoRA(name="mlora", rank=Rank(fixed=2)))
    assert domain_weights(model) == {}
    batch = batch_of(torch.full((9,), 1))
    expected = model(batch)
    merge(model, 1)  # its route is mixed, but nothing mixes
    torch.testing.assert_close(model(batch), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("domain", [-1, 3])
def test_a_domain_that_is_not_there_cannot_be_merged(domain):
    model = moved(moe(experts_per_domain=2))
    with pytest.raises(AdapterError, match=f"knows no domain {domain}; it knows 0 to 2"):
        merge(model, domain)
    assert len(list(adapted(model))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES_OF)
def test_a_model_compiles_without_a_graph_break(gate):
    torch.compiler.reset()
    model = moved(moe(*gate, experts_per_domain=2, top_k=3))
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for ids in (IDS, IDS[:4]):
        batch = batch_of(ids)
        torch.testing.assert_close(compiled(batch), model(batch), atol=1e-10, rtol=0)


def test_other_layers_can_be_gated_too():
    """Of any shape of input: attention projects several vectors per row."""
    model = moved(moe("hidden", "layer", targets=("*",)), backbone="autoint")
    names = [name for name, _ in adapted(model.backbone)]
    assert any("tower" not in name for name in names)
    assert model(batch_of(IDS)).isfinite().all()


def test_the_options_are_checked_where_they_are_made():
    with pytest.raises(ValidationError, match="gate_scope: layer"):
        moe("hidden")
