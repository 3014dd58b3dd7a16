"""The stages of the MultiLoRA family: what they start from, what they keep, how they go on."""

import copy
import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from loractr.adapters.mlora import Rank
from loractr.adapters.staged import MIXERS
from loractr.baselines.retune import Retune
from loractr.batch import Bag, Batch
from loractr.config import METHODS
from loractr.data.order import shuffled
from loractr.layers.norm import DomainNorm
from loractr.predict import logits
from loractr.schema import Division
from loractr.stage import Stage
from loractr.training import fit
from loractr.training.checkpoint import CheckpointFolder

SEED = 5
FAMILY = ("multilora", "multilora_add", "multilora_avg")
NORM = ("weight", "bias", "running_mean", "running_var")
AGES = Division(name="age", column="age", domains=("young", "old"))


def with_ages(data):
    """The same rows with a second division, which a row's user decides."""

    def wider(rows):
        age = rows.ids[:, 0] % 2
        return replace(rows, domains=np.column_stack([rows.domains, age]).astype(np.int32))

    schema = data.schema.model_copy(update={"divisions": (*data.schema.divisions, AGES)})
    return replace(data, schema=schema, train=wider(data.train), validation=wider(data.validation))


def method_of(name, **options):
    given = {"rank": Rank(fixed=2)}
    if name in FAMILY:
        given["divisions"] = ("tab", "age")
    return METHODS[name](name=name, **(given | options))


def moved(model, seed=9):
    """The model, everything in it away from its start."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        step = torch.randn(tensor.shape, generator=random, dtype=torch.double)
        tensor.add_(step.abs() if "running_var" in name else 0.3 * step)
    return model


@pytest.fixture
def world(make_data, make_model):
    """Data of two divisions, and a model of a method, moved, with batch norm."""

    def make(name, counts=None, **options):
        data = with_ages(make_data(**(counts or {})))
        model = make_model(data, method_of(name, **options), batch_norm=True)
        return data, moved(model)

    return make


def norms(model):
    return [module for module in model.modules() if isinstance(module, DomainNorm)]


def stages_of(name, base=None, **options):
    base = Stage(name="", **({"batch_size": 16, "epochs": 1} | (base or {})))
    return method_of(name, **options).stages(base, norm=True)


# --- norms begin a stage as copies ---

ONE_STEP = {"batch_size": 1, "learning_rate": 1e-15, "epochs": 1e-9, "keep_start": False}
"""One step for every domain, of one row: a norm sees no variance and keeps its statistics."""


@pytest.mark.parametrize(("name", "place"), [("singlelora", 0), ("multilora", 0), ("multilora", 1)])
def test_every_domain_starts_with_the_pretrained_norm(world, name, place):
    data, model = world(name)
    stage = stages_of(name, ONE_STEP)[1 + place]
    others = [copy.deepcopy(norm.state_dict()) for norm in norms(model)]
    fit(model, data, [stage], seed=0)
    for norm, before in zip(norms(model), others, strict=True):
        for leaf in NORM:
            shared = getattr(norm.base, leaf).detach()
            bank = getattr(norm.divisions[place], leaf).detach()
            torch.testing.assert_close(bank, shared.expand_as(bank), atol=1e-12, rtol=0)
            assert torch.equal(shared, before[f"base.{leaf}"])
        for key, value in norm.state_dict().items():
            if not key.startswith((f"divisions.{place}.", "base.")):
                assert torch.equal(value, before[key]), key


def test_what_they_start_with_is_what_the_stage_before_has_learnt(world):
    data, model = world("singlelora")
    fresh = [norm.base.running_mean.clone() for norm in norms(model)]
    pretrain, adapt = stages_of("singlelora", {"learning_rate": 0.05, "keep_start": False})
    fit(model, data, [pretrain, adapt.model_copy(update=ONE_STEP)], seed=0)
    for norm, before in zip(norms(model), fresh, strict=True):
        assert not torch.equal(norm.base.running_mean, before)
        for leaf in NORM:
            shared = getattr(norm.base, leaf).detach()
            bank = getattr(norm.divisions[0], leaf).detach()
            torch.testing.assert_close(bank, shared.expand_as(bank), atol=1e-12, rtol=0)


def test_cells_start_with_the_first_divisions_norms(world):
    data, model = world("multilora")
    stage = stages_of("multilora", ONE_STEP)[-1]
    fit(model, data, [stage], seed=0)
    for norm in norms(model):
        pairs = itertools.product((-1, 0, 1, 2), (-1, 0, 1))
        for cell, (tab, _) in enumerate(itertools.islice(pairs, 1, None)):
            for leaf in NORM:
                source = norm.base if tab < 0 else norm.divisions[0]
                expected = getattr(source, leaf).detach()
                expected = expected if tab < 0 else expected[tab]
                found = getattr(norm.cell, leaf)[cell].detach()
                torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_stage_that_inherits_nothing_leaves_norms_as_they_are(world):
    data, model = world("singlelora")
    before = [copy.deepcopy(norm.state_dict()) for norm in norms(model)]
    stage = stages_of("singlelora", ONE_STEP)[1].model_copy(update={"inherits": "none"})
    fit(model, data, [stage], seed=0)
    for norm, values in zip(norms(model), before, strict=True):
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(value, values[key], atol=1e-12, rtol=0)


# --- independent experts with norms of their own, against separate fits ---


class Alone(nn.Module):
    """One domain's adapted tower on its own: torch's batch norms, and eq. 8 written out."""

    def __init__(self, model, domain):
        super().__init__()
        tower = model.backbone.tower
        self.layers = nn.ModuleDict()
        for number in ("0", "1"):
            linear, norm = (tower.get_submodule(f"{number}.{kind}") for kind in ("linear", "norm"))
            layer = nn.Module()
            own = {name: getattr(linear, name) for name in ("down", "up", "row_scale", "offset")}
            for name, value in own.items():
                setattr(layer, name, nn.Parameter(value.detach()[domain].clone()))
            layer.norm = nn.BatchNorm1d(norm.base.features).double()
            for leaf in NORM:  # a domain starts with the shared norm
                getattr(layer.norm, leaf).data.copy_(getattr(norm.base, leaf).detach())
            layer.weight, layer.bias = linear.base.weight.detach(), linear.base.bias.detach()
            self.layers[number] = layer
        self.shared = [model]  # frozen, and no part of this module

    def forward(self, batch):
        model = self.shared[0]
        with torch.no_grad():
            x = model.embedding(batch).flat()
        for layer in self.layers.values():
            update = layer.row_scale * (x @ layer.down.T @ layer.up.T) + layer.offset
            layer.norm.train(self.training and len(x) > 1)
            x = torch.relu(layer.norm(x @ layer.weight.T + layer.bias + update))
        return (x @ model.head.weight.detach().T + model.head.bias.detach())[:, 0]


def batch_of(rows, index):
    values, offsets = rows.sequences["tags"]
    bags = [values[offsets[n] : offsets[n + 1]] for n in index]
    edges = np.concatenate([[0], np.cumsum([len(bag) for bag in bags])])
    return Batch(
        ids=torch.from_numpy(rows.ids[index]),
        numbers=torch.from_numpy(rows.numbers[index]),
        row=torch.from_numpy(rows.row[index]),
        sequences={"tags": Bag(torch.from_numpy(np.concatenate(bags)), torch.from_numpy(edges))},
    )


def separate_fit(model, data, place, domain, settings):
    """Train one domain by itself: (its best state, [AUC at each validation])."""
    alone = Alone(copy.deepcopy(model).eval().requires_grad_(False), domain).requires_grad_()
    own, judged = (
        np.flatnonzero(rows.domains[:, place] == domain) for rows in (data.train, data.validation)
    )
    label = data.validation.label[judged]

    def auc():
        with torch.no_grad():
            return roc_auc_score(label, alone.eval()(batch_of(data.validation, judged)))

    best, seen = copy.deepcopy(alone.state_dict()), [auc()]
    top, top_epoch = seen[0], 0.0
    adam = torch.optim.Adam(alone.parameters(), lr=settings.learning_rate)
    batches = math.ceil(len(own) / settings.batch_size)
    for epoch in range(int(settings.epochs)):
        order = shuffled(len(own), settings.batch_size, (SEED, 0, domain, epoch))
        for number in range(batches):
            index = own[order[number]]
            p = torch.sigmoid(alone.train()(batch_of(data.train, index)))
            y = torch.from_numpy(data.train.label[index]).double()
            adam.zero_grad()
            (-(y * p.log() + (1 - y) * (1 - p).log()).mean()).backward()
            adam.step()
        seen.append(auc())
        if seen[-1] > top:
            top, top_epoch, best = seen[-1], epoch + 1.0, copy.deepcopy(alone.state_dict())
        elif epoch + 1 - top_epoch >= settings.patience:
            break
    return best, seen


@pytest.mark.parametrize("together", [1, 2, 16])
@pytest.mark.parametrize("division", ["tab", "age"])
def test_domains_with_norms_of_their_own_train_as_if_each_were_alone(world, together, division):
    """Batches of one row among them: 25 rows in batches of 8."""
    data, model = world("singlelora", divisions=(division,))
    place = ["tab", "age"].index(division)
    settings = {"batch_size": 8, "epochs": 6, "learning_rate": 0.1, "patience": 2}
    stage = stages_of("singlelora", settings | {"domains_per_step": together})[1]
    domains = range(len(data.schema.divisions[place].domains))
    expected = [separate_fit(model, data, place, domain, stage) for domain in domains]
    history = fit(model, data, [stage], seed=SEED, division=division)
    assert not history.stages[0].kept_start
    assert any(len(seen) < 7 for _, seen in expected)  # some stop before the others
    for domain, (best, seen) in enumerate(expected):
        told = [
            v.value
            for v in history.validations
            if v.domain == data.schema.divisions[place].domains[domain]
        ]
        assert told == [pytest.approx(value) for value in seen]
        for name, found in own_of(model, domain).items():
            # before a norm a bias has no gradient but rounding, of which Adam makes 1e-9 a step
            near = 1e-7 if name.endswith((".offset", ".running_mean")) else 1e-9
            torch.testing.assert_close(found, best[name], atol=near, rtol=0, msg=name)


def own_of(model, domain):
    """What a domain of the first division has in each layer, named as in `Alone`."""
    found = {}
    for number in ("0", "1"):
        linear = model.backbone.tower.get_submodule(f"{number}.linear")
        bank = model.backbone.tower.get_submodule(f"{number}.norm").divisions[0]
        for name in ("down", "up", "row_scale", "offset"):
            found[f"layers.{number}.{name}"] = getattr(linear, name)[domain].detach()
        for name in NORM:
            found[f"layers.{number}.norm.{name}"] = getattr(bank, name)[domain].detach()
    return found


def test_the_second_division_trains_as_it_does_in_a_model_of_its_own(world, make_model):
    """MultiLoRA's adapt_age is SingleLoRA by age: bank 0 and the mixers take no part."""
    data, both = world("multilora")
    alone = moved(make_model(data, method_of("singlelora", divisions=("age",)), batch_norm=True))
    pairs = []
    for number in ("0", "1"):
        fused, single = (m.backbone.tower.get_submodule(f"{number}.linear") for m in (both, alone))
        one, other = (m.backbone.tower.get_submodule(f"{number}.norm") for m in (both, alone))
        pairs += [(fused.base, single.base), (fused.bank(1), single), (one.base, other.base)]
        pairs += [(one.divisions[1], other.divisions[0])]
    own = {name: value for name, value in both.state_dict().items() if "backbone." not in name}
    alone.load_state_dict(own, strict=False)
    with torch.no_grad():
        for ours, theirs in pairs:
            for key, value in theirs.state_dict().items():
                if not key.startswith("base."):
                    value.copy_(ours.state_dict()[key])
    settings = {"batch_size": 8, "epochs": 3, "learning_rate": 0.1, "keep_start": False}
    stage = stages_of("multilora", settings)[2]
    assert stage.name == "adapt_age"
    # the same seed for the rows' order: both are the first stage of their fit
    first = fit(both, data, [stage], seed=SEED, division="age")
    second = stage.model_copy(update={"trains": stages_of("singlelora")[1].trains})
    other = fit(alone, data, [second], seed=SEED, division="age")
    assert [v.value for v in first.validations] == pytest.approx(
        [v.value for v in other.validations]
    )
    for ours, theirs in pairs:
        for key, value in theirs.state_dict().items():
            if not key.startswith("base."):
                torch.testing.assert_close(value, ours.state_dict()[key], atol=1e-12, rtol=0)


# --- whether mixers act ---


def scores(model, data, routing):
    """WAUC by hand: each tab's AUC by sklearn, weighted by its rows."""
    rows = data.validation
    z = logits(model, rows, data.schema, routing=routing)
    tabs = [np.flatnonzero(rows.domains[:, 0] == tab) for tab in range(3)]
    aucs = [roc_auc_score(rows.label[tab], z[tab]) for tab in tabs]
    return np.average(aucs, weights=[len(tab) for tab in tabs])


MIX = {"select": "wauc", "epochs": 1, "learning_rate": 1e-12, "batch_size": 64}


def mixing(model, data, **settings):
    """The stage that trains mixers alone, so that what it is judged by hardly changes."""
    stage = stages_of("multilora", MIX | settings)[-1]
    stage = stage.model_copy(update={"trains": (MIXERS,), "inherits": "none"})
    return fit(model, data, [stage], seed=0).stages[0]


def of_quality(world, seed):
    """(data, moved model, its score with mixers, and without); cells have the first norms."""
    data, model = world("multilora")
    moved(model, seed)
    for norm in norms(model):
        norm.inherit(None)
    mixed = replace(model.routing, mixed=True)
    return data, model, scores(model, data, mixed), scores(model, data, model.routing)


@pytest.mark.parametrize("better", [False, True])
def test_mixers_act_only_where_they_are_better_than_the_experts_alone(world, better):
    for seed in range(20):
        data, model, mixed, unmixed = of_quality(world, seed)
        if (mixed - unmixed > 0.01) if better else (unmixed - mixed > 0.01):
            break
    else:
        pytest.fail("no such model among twenty")
    result = mixing(model, data)
    assert model.routing.mixed is better
    if not better:
        assert result.kept_start
    assert result.value == pytest.approx(mixed if better else unmixed, abs=1e-6)
    assert scores(model, data, None) == pytest.approx(result.value, abs=1e-6)


def test_without_keep_start_mixers_act_whatever_they_are_worth(world):
    for seed in range(20):
        data, model, mixed, unmixed = of_quality(world, seed)
        if unmixed - mixed > 0.01:
            break
    else:
        pytest.fail("no such model among twenty")
    result = mixing(model, data, keep_start=False)
    assert model.routing.mixed
    assert not result.kept_start
    assert result.value == pytest.approx(mixed, abs=1e-6)


def test_training_the_fusion_is_what_makes_it_better(world):
    """A fusion that starts below the experts alone, and ends above them."""
    for seed in range(30):
        data, model, mixed, unmixed = of_quality(world, seed)
        if 0 < unmixed - mixed < 0.02:
            break
    else:
        pytest.fail("no such model among thirty")
    stage = stages_of("multilora", MIX | {"learning_rate": 0.05, "epochs": 40, "patience": 40})[-1]
    result = fit(model, data, [stage], seed=0).stages[0]
    assert result.value > unmixed
    assert model.routing.mixed
    assert not result.kept_start
    assert result.epoch > 0
    assert scores(model, data, None) == pytest.approx(result.value)


@pytest.mark.parametrize("name", FAMILY)
def test_only_the_last_stage_lets_mixers_act(world, name):
    """In stages before it each row goes to its own expert, or to none."""
    data, model = world(name)
    stages = stages_of(name, {"keep_start": False})
    started = model.routing.mixed
    fit(model, data, stages[:3], seed=0)
    assert model.routing.mixed is started is (name != "multilora")
    fit(model, data, stages, seed=0)
    assert model.routing.mixed


def test_mixers_without_weights_and_norms_act_untrained(world):
    data, model = world("multilora_add", norm_train=False)
    stages = stages_of("multilora_add", norm_train=False)
    assert [stage.name for stage in stages] == ["pretrain", "adapt_tab", "adapt_age"]
    fit(model, data, stages, seed=0)
    assert model.routing.mixed


def test_retune_leaves_embeddings_alone_and_moves_the_rest(make_data, make_model):
    data = make_data()
    method = Retune(name="retune")
    model = make_model(data, method, batch_norm=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    retune = method.stages(Stage(name="", epochs=2, keep_start=False), norm=True)[1]
    fit(model, data, [retune], seed=0)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("embedding."), name


# --- going on ---


class PowerCutError(Exception):
    """What stands for the power cut."""


@dataclass(frozen=True)
class Cut(CheckpointFolder):
    """A folder that loses power instead of making its n-th write, n counting from 0."""

    at: int = -1
    stages: list[int] = field(default_factory=list)

    def write(self, checkpoint):
        if len(self.stages) == self.at:
            raise PowerCutError
        super().write(checkpoint)
        self.stages.append(checkpoint.values["stage"])


RECIPE = {
    "epochs": 1.5,
    "batch_size": 24,
    "learning_rate": 0.03,
    "patience": 1,
    "validate_every": 0.5,
    "dropout": 0.3,
    "ema": 0.9,
    "domains_per_step": 2,
}


def run(world, name, folder, settings):
    data, model = world(name)
    stages = stages_of(name, RECIPE | settings)
    history = fit(model, data, stages, seed=SEED, checkpoints=folder).dump()
    for stage in history["stages"]:
        del stage["rows_per_second"]
    return model.state_dict(), model.routing, history


def assert_same(found, expected):
    assert found[1:] == expected[1:]
    for name, value in expected[0].items():
        assert torch.equal(found[0][name], value), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("multilora", {}),
        pytest.param("multilora", {"keep_start": False}, marks=pytest.mark.slow),
        ("shared_adapter", {}),
    ],
)
def test_a_power_cut_before_any_checkpoint_changes_nothing(world, tmp_path, name, settings):
    """Between stages too: the fusion's own begins with the norms that it inherits."""
    expected = run(world, name, None, settings)
    whole = Cut(tmp_path / "whole", minutes=0)
    assert_same(run(world, name, whole, settings), expected)
    assert len(set(whole.stages)) == len(stages_of(name)) + 1
    changes = [n for n in range(1, len(whole.stages)) if whole.stages[n] > whole.stages[n - 1]]
    around = {n + d for n in changes for d in (0, 1)} | set(range(0, len(whole.stages), 11))
    for at in sorted(around - {len(whole.stages)}):
        path = tmp_path / str(at)
        with pytest.raises(PowerCutError):
            run(world, name, Cut(path, minutes=0, at=at), settings)
        assert_same(run(world, name, CheckpointFolder(path, minutes=0), settings), expected)


@pytest.mark.parametrize("keep_start", [True, False])
def test_a_finished_run_knows_whether_its_mixers_act(world, tmp_path, keep_start):
    expected = run(world, "multilora", CheckpointFolder(tmp_path), {"keep_start": keep_start})
    again = run(world, "multilora", CheckpointFolder(tmp_path), {"keep_start": keep_start})
    assert_same(again, expected)
    if not keep_start:
        assert again[1].mixed
