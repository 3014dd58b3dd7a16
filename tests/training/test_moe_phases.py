"""MoE-MLoRA's three phases: what moves and what does not, experts alone, what a gate finds."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.func import functional_call

from loractr.adapters import adapted, merge
from loractr.adapters.gate import GatedLinear, SharedGate, domain_weights
from loractr.adapters.mlora import EXPERTS, Rank
from loractr.adapters.moe_mlora import BACKBONE, GATES, MoEMLoRA
from loractr.batch import Bag, Batch, Route
from loractr.data.loader import collate
from loractr.data.order import shuffled
from loractr.predict import logits
from loractr.stage import Stage, matches
from loractr.training import fit
from loractr.training.events import Validated

SEED = 5
BASE = Stage(name="", epochs=2, batch_size=16, learning_rate=0.05, patience=2)
GATES_OF = [
    ("domain", "shared"),
    ("fields", "shared"),
    ("domain", "layer"),
    ("fields", "layer"),
    ("hidden", "layer"),
]


def moe(gate_input="domain", gate_scope="shared", **options):
    options = {"rank": Rank(fixed=2)} | options
    return MoEMLoRA(name="moe_mlora", gate_input=gate_input, gate_scope=gate_scope, **options)


def away_from_start(model):
    """So that experts update something, and every gate has something to learn."""
    random = torch.Generator().manual_seed(9)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=random, dtype=torch.double)
        parameter.data += 0.3 * noise
    return model


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


@pytest.mark.parametrize(("gate_input", "gate_scope"), GATES_OF)
def test_every_phase_moves_its_own_part_and_nothing_else(
    make_data, make_model, gate_input, gate_scope
):
    """Parameters and buffers, bit for bit; all that a phase trains does move."""
    sizes = () if gate_input == "domain" else (3,)
    method = moe(gate_input, gate_scope, experts_per_domain=2, gate_sizes=sizes)
    data = make_data()
    model = away_from_start(make_model(data, method, batch_norm=True))
    globs = {"pretrain": BACKBONE, "experts": EXPERTS, "gate": GATES}
    parameters = dict(model.named_parameters())
    options = {"keep_start": False, "weight_decay": 0.1, "ema": 0.5, "select": "log_loss"}
    for stage in method.stages(BASE, norm=True):
        before = states(model)
        fit(model, data, [stage.model_copy(update=options)], seed=SEED)
        trained = {name for name in parameters if matches(name, globs[stage.name])}
        statistics = {name for name in before if "running_" in name}
        assert trained
        expected = trained | (statistics if stage.name == "pretrain" else set())
        assert changed(model, before) == expected, stage.name


def test_a_gate_that_is_no_better_than_its_experts_does_not_act(make_data, make_model):
    """Experts that update nothing: any mixture of them scores as each of them does."""
    method, data = moe(), make_data()
    model = make_model(data, method)
    gate = method.stages(BASE, norm=False)[2]
    (result,) = fit(model, data, [gate], seed=SEED).stages
    assert result.kept_start
    assert not model.routing.mixed


@pytest.mark.parametrize(("gate_input", "gate_scope"), GATES_OF)
def test_in_the_gates_phase_the_gradient_is_the_gates_alone(
    make_data, make_model, gate_input, gate_scope
):
    data = make_data()
    model = away_from_start(make_model(data, moe(gate_input, gate_scope)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(matches(name, GATES))
    routing = replace(model.routing, mixed=True)
    batch = collate(data.train, np.arange(40), routing, (3,))
    model(batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        if matches(name, GATES):
            assert parameter.grad.ne(0).any(), name
        else:
            assert parameter.grad is None, name


def without(rows, domain):
    return rows.take(np.flatnonzero(rows.domains[:, 0] != domain))


def test_experts_of_a_domain_without_rows_stay_as_they_are(make_data, make_model):
    method, data = moe(experts_per_domain=2), make_data()
    model = away_from_start(make_model(data, method))
    before = {name: copy.deepcopy(layer) for name, layer in adapted(model)}
    data = replace(data, train=without(data.train, 1))
    experts = method.stages(BASE, norm=False)[1].model_copy(update={"keep_start": False})
    fit(model, data, [experts], seed=SEED)
    for name, layer in adapted(model):
        for leaf in ("down", "up", "offset"):
            now, then = layer.get_parameter(leaf), before[name].get_parameter(leaf)
            same = [torch.equal(now[e], then[e]) for e in range(6)]
            assert same == [False, True, False, False, True, False], (name, leaf)


def batch_of(rows, index, expert):
    """A batch made row by row, all of which go to one expert."""
    values, offsets = rows.sequences["tags"]
    bags = [values[offsets[n] : offsets[n + 1]] for n in index]
    edges = np.concatenate([[0], np.cumsum([len(bag) for bag in bags])])
    return Batch(
        ids=torch.from_numpy(rows.ids[index]),
        numbers=torch.from_numpy(rows.numbers[index]),
        row=torch.from_numpy(rows.row[index]),
        route=Route.hard(torch.full((len(index),), expert)),
        sequences={"tags": Bag(torch.from_numpy(np.concatenate(bags)), torch.from_numpy(edges))},
    )


def separate_fit(model, data, expert, domains, settings):
    """Train one expert by itself on the rows of its domain: (best weights, validation AUCs)."""
    model = copy.deepcopy(model).eval()
    parameters = dict(model.named_parameters())
    whole = {n: p.detach() for n, p in parameters.items() if matches(n, EXPERTS)}
    mine = {name: value[expert].clone().requires_grad_() for name, value in whole.items()}

    def output(rows, index):
        full = {
            name: torch.cat([value[:expert], mine[name][None], value[expert + 1 :]])
            for name, value in whole.items()
        }
        return functional_call(model, full, (batch_of(rows, index, expert),))

    def auc():
        with torch.no_grad():
            scores = output(data.validation, judged)
        return roc_auc_score(data.validation.label[judged], scores)

    own, judged = (
        np.flatnonzero(rows.domains[:, 0] == expert % domains)
        for rows in (data.train, data.validation)
    )
    adam = torch.optim.Adam(mine.values(), lr=settings.learning_rate)
    seen, best, best_epoch = [auc()], {n: v.detach().clone() for n, v in mine.items()}, 0
    for epoch in range(int(settings.epochs)):
        for part in shuffled(len(own), settings.batch_size, (SEED, 0, expert, epoch)):
            index = own[part]
            label = torch.from_numpy(data.train.label[index]).double()
            p = torch.sigmoid(output(data.train, index))
            adam.zero_grad()
            (-(label * p.log() + (1 - label) * (1 - p).log())).mean().backward()
            adam.step()
        seen.append(auc())
        if seen[-1] > max(seen[:-1]):
            best, best_epoch = {n: v.detach().clone() for n, v in mine.items()}, epoch + 1
        elif epoch + 1 - best_epoch >= settings.patience:
            break
    return best, seen


def test_each_of_a_domains_experts_is_a_fit_of_its_own(make_data, make_model):
    """Two experts per domain, six in all: to 1e-9 what six separate loops of plain torch find."""
    data = make_data()
    method = moe(experts_per_domain=2)
    model = away_from_start(make_model(data, method))
    settings = method.stages(BASE, norm=False)[1].model_copy(
        update={"epochs": 6, "batch_size": 8, "learning_rate": 0.1, "keep_start": True}
    )
    expected = [separate_fit(model, data, expert, 3, settings) for expert in range(6)]
    events = []
    fit(model, data, [settings], seed=SEED, callbacks=[events.append])
    found = {n: p.detach() for n, p in model.named_parameters() if matches(n, EXPERTS)}
    names = ["a", "b", "c", "a #2", "b #2", "c #2"]
    for expert, (weights, seen) in enumerate(expected):
        for name, value in weights.items():
            torch.testing.assert_close(found[name][expert], value, atol=1e-9, rtol=0)
        told = [e.value for e in events if isinstance(e, Validated) and e.domain == names[expert]]
        assert told == pytest.approx(seen)


def test_a_domains_experts_differ_by_initial_weights_and_by_order_of_rows(make_data, make_model):
    data, method = make_data(), moe(experts_per_domain=2)
    stage = method.stages(BASE, norm=False)[1].model_copy(update={"keep_start": False})
    model = make_model(data, method)
    fit(model, data, [stage], seed=SEED)
    for _, layer in adapted(model):
        assert all(not torch.equal(layer.up[e], layer.up[e + 3]) for e in range(3))
    alike = make_model(data, method)
    for _, layer in adapted(alike):  # the same start for both: only the order of rows is left
        layer.down.data[3:] = layer.down.data[:3]
    fit(alike, data, [stage], seed=SEED)
    for _, layer in adapted(alike):
        assert all(not torch.equal(layer.up[e], layer.up[e + 3]) for e in range(3))


@pytest.fixture
def two_kinds(make_data):
    """Six domains of few rows, three of each of two kinds: a, c, e click at what b, d, f do not."""
    counts = (60,) * 6
    data = make_data(train=counts, validation=(120,) * 6, seed=3)
    random = np.random.default_rng(0)

    def planted(rows):
        taste = np.where(rows.domains[:, 0] % 2, -1.0, 1.0)
        click = 1 / (1 + np.exp(-2 * taste * rows.numbers[:, 0]))
        return replace(rows, label=(random.random(len(rows)) < click).astype(np.float32))

    return replace(data, train=planted(data.train), validation=planted(data.validation))


def test_the_whole_recipe_ends_with_a_gate_that_acts(two_kinds, make_model):
    """Phase by phase in one fit: the trained gate is what the model then scores with."""
    method, data = moe(), two_kinds
    model = make_model(data, method)
    base = BASE.model_copy(update={"epochs": 6, "select": "log_loss"})
    history = fit(model, data, method.stages(base, norm=False), seed=SEED)
    assert [stage.stage for stage in history.stages] == ["pretrain", "experts", "gate"]
    assert model.routing.mixed
    assert model.front.gate.table.ne(0).all()
    z, label = logits(model, data.validation, data.schema), data.validation.label
    losses = np.logaddexp(0, np.where(label == 1, -z, z))
    assert -losses.mean() == pytest.approx(history.stages[-1].value)
    unmixed = replace(model.routing, mixed=False)
    assert not np.allclose(logits(model, data.validation, data.schema, routing=unmixed), z)


@pytest.mark.parametrize(
    ("gate_scope", "gate_backbone"), [("shared", False), ("shared", True), ("layer", False)]
)
def test_a_gate_finds_the_experts_of_similar_domains(
    two_kinds, make_model, gate_scope, gate_backbone
):
    """From equal weights for all: which domains are of one kind is told by the rows alone."""
    method = moe(gate_scope=gate_scope, gate_backbone=gate_backbone)
    model = make_model(two_kinds, method, hidden_sizes=(8,))
    base = Stage(name="", epochs=15, batch_size=32, learning_rate=0.02, patience=4)
    fit(model, two_kinds, method.stages(base, norm=False), seed=0)
    assert model.routing.mixed
    same = torch.tensor([[(d - e) % 2 == 0 for e in range(6)] for d in range(6)])
    others = same & ~torch.eye(6, dtype=torch.bool)
    for weights in domain_weights(model).values():
        of_its_kind, of_the_other = (weights * same).sum(1), (weights * ~same).sum(1)
        assert (of_its_kind > of_the_other + 0.2).all()
        # and not by its own expert alone: the two others of its kind beat all three of the other
        assert ((weights * others).sum(1) > of_the_other).all()


def test_a_trained_gate_is_merged_per_domain(two_kinds, make_model):
    """The whole way: trained, mixed, folded; each domain's rows score as before."""
    method = moe()
    model = make_model(two_kinds, method)
    fit(model, two_kinds, method.stages(BASE, norm=False), seed=0)
    model.routing = replace(model.routing, mixed=True)
    for domain in range(6):
        rows = two_kinds.validation
        rows = rows.take(np.flatnonzero(rows.domains[:, 0] == domain))
        one = copy.deepcopy(model)
        merge(one, domain)
        found = logits(one, rows, two_kinds.schema)
        np.testing.assert_allclose(found, logits(model, rows, two_kinds.schema), atol=1e-10)


@pytest.mark.parametrize(("gate_input", "gate_scope"), GATES_OF)
def test_gates_count_as_adapters(make_data, make_model, gate_input, gate_scope):
    model = make_model(make_data(), moe(gate_input, gate_scope))
    mixers = [m for m in model.modules() if isinstance(m, GatedLinear | SharedGate)]
    gates = sum(p.numel() for m in mixers for p in m.gate.parameters())
    banks = sum(p.numel() for _, b in adapted(model) for p in (b.down, b.up, b.offset))
    assert gates > 0
    assert model.parameter_counts()["adapters"] == gates + banks
