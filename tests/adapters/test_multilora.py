"""MultiLoRA and its two ablations: sizes, the weights of each stage, what cannot be had."""

from itertools import product

import pytest
import torch
from pydantic import ValidationError

from loractr.adapters import attach, detach, merge
from loractr.adapters.fusion import FusedLinear, Fusion, Mean, Sum
from loractr.adapters.mlora import Rank
from loractr.backbones import BACKBONES, ModelConfig
from loractr.baselines.mix import Mix
from loractr.batch import Batch, Groups, Route
from loractr.config import METHODS, RunConfig, parse_config
from loractr.data.config import DataConfig
from loractr.errors import AdapterError, ConfigError, UsageError
from loractr.layers.norm import DomainNorm
from loractr.model import build
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage, matches

DIVISIONS = (
    Division(name="tab", column="tab", domains=("a", "b", "c")),
    Division(name="age", column="age", domains=("young", "old")),
)
SCHEMA = Schema(
    fields=(Field(name="user", size=6), Field(name="item", size=5), Field(name="tab", size=4)),
    divisions=DIVISIONS,
)
TOWER = {"hidden_sizes": (8, 4), "batch_norm": True}
MIXERS = {"multilora": Fusion, "multilora_add": Sum, "multilora_avg": Mean}


def model_of(method, schema=SCHEMA, **options):
    config = RunConfig(
        data=DataConfig(source="synthetic"), model=ModelConfig(**options), method=method
    )
    return build(config, schema)


def multi(name="multilora", **options):
    given = {"rank": Rank(fixed=2), "divisions": ("tab", "age")}
    return METHODS[name](name=name, **(given | options))


def fused(model):
    return [m for m in model.modules() if isinstance(m, FusedLinear)]


def norms(model):
    return [m for m in model.modules() if isinstance(m, DomainNorm)]


PAPER = {  # fields, numbers, hidden sizes, ranks, LoRA without s and b, fusion 2 Σ r out
    "movielens": (7, 1, (256, 128), (8, 8), 6_024, 6_144),
    "amazon": (2, 0, (1024, 512, 256, 64), (16, 16, 8, 8), 50_176, 54_272),
    "ali_ccp": (
        25,
        8,
        (1024, 512, 512, 256, 256, 64, 64),
        (32, 32, 32, 16, 16, 8, 8),
        151_808,
        149_504,
    ),
}


@pytest.mark.parametrize("tower", PAPER)
def test_sizes_are_one_expert_per_domain_of_both_divisions_one_fusion_and_the_norms(tower):
    """Equation 10 applies W_Q and W_K to outputs, so a layer's fusion has 2 r out weights; the
    paper's Table 7 counts 2 r in (5,904, 46,080, 154,112). Norms: the paper has |A| |B| at mixing;
    ours are Π (D + 1) - 1, those of rows that are unseen in one division among them."""
    count, numbers, widths, ranks, expert, fusion = PAPER[tower]
    fields = [Field(name=f"f{n}", size=3) for n in range(count)]
    fields += [Field(name=f"x{n}", kind="numerical") for n in range(numbers)]
    schema = Schema(fields=tuple(fields), divisions=DIVISIONS)
    sizes = {"embedding_size": 16, "hidden_sizes": widths, "batch_norm": True, "backbone": "mlp"}
    bare = {"rank": Rank(fixed=ranks), "row_scale": False, "offset": False}
    counts = model_of(multi(norm="shared", **bare), schema, **sizes).parameter_counts()
    assert counts["adapters"] == (3 + 2) * expert + fusion
    counts = model_of(multi(**bare), schema, **sizes).parameter_counts()
    cells = (3 + 1) * (2 + 1) - 1
    assert counts["adapters"] == (3 + 2) * expert + fusion + 2 * sum(widths) * (3 + 2 + cells)
    for name in ("multilora_add", "multilora_avg"):
        counts = model_of(multi(name, norm="shared", **bare), schema, **sizes).parameter_counts()
        assert counts["adapters"] == (3 + 2) * expert


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_tower_layer_has_a_bank_per_division_and_a_mixer(name, backbone):
    model = model_of(multi(name), backbone=backbone, **TOWER)
    layers = [n for n, m in model.backbone.named_modules() if isinstance(m, FusedLinear)]
    assert layers == ["tower.0.linear", "tower.1.linear"]
    for layer in fused(model):
        assert [layer.bank(place).experts for place in (0, 1)] == [3, 2]
        assert type(layer.mixer) is MIXERS[name]
    assert model.routing.divisions == (0, 1)
    assert [norm.sizes for norm in norms(model)] == [(3, 2)] * 2


@pytest.mark.parametrize("name", MIXERS)
def test_divisions_act_in_the_order_in_which_they_are_named(name):
    model = model_of(multi(name, divisions=("age", "tab")), **TOWER)
    assert model.routing.divisions == (1, 0)
    assert [fused(model)[0].bank(place).experts for place in (0, 1)] == [2, 3]
    assert norms(model)[0].sizes == (2, 3)


def test_mixers_act_after_their_stage_and_from_the_start_where_nothing_trains_them():
    assert not model_of(multi(), **TOWER).routing.mixed
    for name in ("multilora_add", "multilora_avg"):
        assert model_of(multi(name), **TOWER).routing.mixed


def test_the_fusion_has_the_experts_rank_and_no_bias():
    layers = fused(model_of(multi(rank=Rank(fixed=(3, 2))), **TOWER))
    for layer, rank in zip(layers, (3, 2), strict=True):
        assert [bank.rank for bank in layer.banks] == [rank, rank]
        for linear in (layer.mixer.query, layer.mixer.key):
            assert linear.weight.shape == (rank, layer.out_features)
            assert linear.bias is None


def owners(model):
    """Parameter name → what owns it, by identity of the modules that hold it."""
    found = {id(p): "plain" for p in model.parameters()}
    for layer in fused(model):
        for place, bank in enumerate(layer.banks):
            found |= {id(p): f"division {place}" for p in bank.parameters()}
        found |= {id(p): "mix" for p in layer.mixer.parameters()}
    for norm in norms(model):
        for place, bank in enumerate(norm.divisions):
            found |= {id(p): f"division {place}" for p in bank.parameters()}
        if norm.cell is not None:
            found |= {id(p): "mix" for p in norm.cell.parameters()}
    return {name: found[id(p)] for name, p in model.named_parameters()}


CASES = [
    (name, recipe, batch_norm, norm, trained)
    for name, recipe, batch_norm, norm, trained in product(
        MIXERS, ("paper", "tuned"), (True, False), ("domain", "shared"), (True, False)
    )
    if trained or name != "multilora"
]


@pytest.mark.parametrize(("name", "recipe", "batch_norm", "norm", "trained"), CASES)
@pytest.mark.parametrize("backbone", ["mlp", "dcn"])
def test_every_parameter_is_trained_by_exactly_one_stage(
    backbone, name, recipe, batch_norm, norm, trained
):
    options = {} if name == "multilora" else {"norm_train": trained}
    method = multi(name, recipe=recipe, norm=norm, **options)
    model = model_of(method, backbone=backbone, **(TOWER | {"batch_norm": batch_norm}))
    stages = method.stages(Stage(name=""), norm=batch_norm)
    kinds = ["plain", "division 0", "division 1", "mix"]
    cells = batch_norm and norm == "domain" and trained
    if name != "multilora" and not cells:
        kinds.remove("mix")
    own = owners(model)
    assert set(own.values()) == set(kinds)
    assert len(stages) == len(kinds)
    for stage, kind in zip(stages, kinds, strict=True):
        trains = {n for n in own if matches(n, stage.trains)}
        assert trains == {n for n, owner in own.items() if owner == kind}, stage.name


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", MIXERS)
def test_that_holds_on_every_backbone(backbone, name):
    method = multi(name)
    own = owners(model_of(method, backbone=backbone, **TOWER))
    kinds = ("plain", "division 0", "division 1", "mix")
    for stage, kind in zip(method.stages(Stage(name=""), norm=True), kinds, strict=True):
        assert {n for n in own if matches(n, stage.trains)} == {n for n in own if own[n] == kind}


def test_the_papers_stages():
    base = Stage(name="", epochs=7, learning_rate=0.5, patience=2)
    pretrain, tab, age, mix = multi().stages(base, norm=True)
    told = [(s.name, s.route, s.division, s.independent, s.inherits) for s in (tab, age)]
    assert told == [
        ("adapt_tab", "hard", "tab", True, "domains"),
        ("adapt_age", "hard", "age", True, "domains"),
    ]
    assert (pretrain.name, pretrain.route, pretrain.inherits) == ("pretrain", "none", "none")
    assert (mix.name, mix.route, mix.inherits) == ("mix", "mixed", "cells")
    assert not pretrain.independent
    assert not mix.independent
    assert {s.epochs for s in (pretrain, tab, age, mix)} == {7}
    assert {s.patience for s in (pretrain, tab, age, mix)} == {2}


def test_cells_inherit_only_where_there_are_some():
    assert multi().stages(Stage(name=""), norm=False)[-1].inherits == "none"
    assert multi(norm="shared").stages(Stage(name=""), norm=True)[-1].inherits == "none"


def test_the_divisions_have_to_be_named():
    with pytest.raises(ValidationError, match="name them, the natural one first"):
        multi(divisions=())


@pytest.mark.parametrize("name", MIXERS)
def test_one_division_is_enough_and_leaves_nothing_to_mix(name):
    """Softmax, sum and mean of one expert are that expert: stages and weights are SingleLoRA's."""
    method = multi(name, divisions=("tab",))
    plain = METHODS["singlelora"](name="singlelora", rank=Rank(fixed=2), divisions=("tab",))
    names = [stage.name for stage in method.stages(Stage(name=""), norm=True)]
    assert names == ["pretrain", "adapt_tab"]
    one, other = model_of(method, **TOWER), model_of(plain, **TOWER)
    assert one.routing.divisions == (0,)
    assert one.parameter_counts() == other.parameter_counts()
    random = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random)
    for key, tensor in one.state_dict().items():
        tensor.copy_(other.state_dict()[key.replace(".banks.0.", ".")])
    ids = torch.randint(0, 4, (9, 3), generator=random, dtype=torch.int32)
    groups = Groups.of(torch.tensor([2, 0, -1, 1, 0, 2, 2, 1, -1]), 3)
    found, expected = (
        model.eval()(Batch(ids, torch.zeros(9, 0), torch.arange(9), Route((groups,), cell)))
        for model, cell in ((one, groups if one.routing.mixed else None), (other, None))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", MIXERS)
def test_the_tuned_recipe_regularises_every_stage_but_the_first(name):
    plain, tuned = (
        multi(name, recipe=recipe).stages(Stage(name=""), norm=True)
        for recipe in ("paper", "tuned")
    )
    more = {"dropout": 0.2, "embedding_dropout": 0.3, "ema": 0.99}
    assert tuned == (plain[0], *(stage.model_copy(update=more) for stage in plain[1:]))


@pytest.mark.parametrize("name", MIXERS)
def test_a_fresh_model_starts_as_every_other_method_does(name):
    plain = model_of(Mix(name="mix"), **TOWER).state_dict()
    ours = model_of(multi(name), **TOWER).state_dict()
    for key, value in plain.items():
        block, _, leaf = key.rpartition(".")
        found = ours[key] if key in ours else ours[f"{block}.base.{leaf}"]
        assert torch.equal(found, value), key


@pytest.mark.parametrize("name", MIXERS)
def test_detach_gives_back_the_backbone(name):
    model = model_of(multi(name), **TOWER)
    detach(model)
    plain = model_of(Mix(name="mix"), **TOWER).state_dict()
    assert model.state_dict().keys() == plain.keys()
    assert all(torch.equal(value, plain[n]) for n, value in model.state_dict().items())


def test_a_mixture_by_rows_cannot_be_merged():
    model = model_of(multi(), **TOWER)
    before = list(model.state_dict())
    with pytest.raises(AdapterError, match=r"'backbone.tower.0.linear' mixes the experts of sever"):
        merge(model, 0)
    assert list(model.state_dict()) == before


def test_a_fused_layer_is_adapted_only_once():
    """Neither the layer, nor its mixer's own products."""
    model = model_of(multi(), backbone="mlp", **TOWER)
    with pytest.raises(AdapterError, match="match no free layer"):
        attach(model.backbone, ("tower.*",), lambda name, layer: layer)


@pytest.mark.parametrize("name", MIXERS)
def test_a_division_is_named_once(name):
    with pytest.raises(ValidationError, match="every division once, not twice on tab"):
        multi(name, divisions=("tab", "age", "tab"))


def test_a_division_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="names 'hour'; the data's divisions are 'tab', 'age'"):
        model_of(multi(divisions=("tab", "hour")))


def test_settings_of_a_stage_go_by_its_name():
    values = {
        "data": {"source": "synthetic"},
        "model": {"batch_norm": True},
        "method": {"name": "multilora", "divisions": ["tab", "age"]},
        "training": {"stages": {"adapt_age": {"learning_rate": 0.5}, "mix": {"epochs": 2}}},
    }
    stages = {stage.name: stage for stage in parse_config(values).stages()}
    assert list(stages) == ["pretrain", "adapt_tab", "adapt_age", "mix"]
    assert [stage.learning_rate for stage in stages.values()] == [1e-3, 1e-3, 0.5, 1e-3]
    assert stages["mix"].epochs == 2
    values["training"]["stages"] = {"adapt": {"epochs": 2}}
    with pytest.raises(ConfigError, match="has no stage 'adapt'; it has 'pretrain', 'adapt_tab'"):
        parse_config(values)
