"""SingleLoRA and the two controls: sizes from the paper's table, what each stage trains."""

import pytest
import torch
from pydantic import ValidationError

from loractr.adapters import LowRankLinear, adapted
from loractr.adapters.mlora import Rank
from loractr.adapters.shared_adapter import SharedAdapter
from loractr.adapters.singlelora import SingleLoRA
from loractr.backbones import BACKBONES, ModelConfig
from loractr.baselines.retune import Retune
from loractr.batch import EVERY
from loractr.config import METHODS, RunConfig
from loractr.data.config import DataConfig
from loractr.errors import AdapterError, UsageError
from loractr.layers.norm import BatchNorm, DomainNorm
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
REGULARISED = {"dropout": 0.2, "embedding_dropout": 0.3, "ema": 0.99}


def model_of(method, schema=SCHEMA, **options):
    config = RunConfig(
        data=DataConfig(source="synthetic"), model=ModelConfig(**options), method=method
    )
    return build(config, schema)


def single(**options):
    return SingleLoRA(name="singlelora", **({"rank": Rank(fixed=2)} | options))


def shared(**options):
    return SharedAdapter(name="shared_adapter", **({"rank": Rank(fixed=2)} | options))


PAPER = {  # fields, numbers, hidden sizes, ranks; tower, LoRA without s and b, with them (Table 7)
    "movielens": (7, 1, (256, 128), (8, 8), 62_977, 6_024, 6_024 + 2 * 384),
    "amazon": (2, 0, (1024, 512, 256, 64), (16, 16, 8, 8), 710_145, 50_176, 53_888),
    "ali_ccp": (
        25,
        8,
        (1024, 512, 512, 256, 256, 64, 64),
        (32, 32, 32, 16, 16, 8, 8),
        1_429_441,
        151_808,
        151_808 + 2 * 2688,
    ),
}


@pytest.mark.parametrize("tower", PAPER)
def test_sizes_are_those_of_the_papers_table(tower):
    """Methods.md 3.2: 6,024 and 151,808 count A and B alone, 53,888 with s and b; norms are not
    counted there. Ours are, 2 Σ out a domain."""
    count, numbers, widths, ranks, whole, bare, full = PAPER[tower]
    fields = [Field(name=f"f{n}", size=3) for n in range(count)]
    fields += [Field(name=f"x{n}", kind="numerical") for n in range(numbers)]
    schema = Schema(fields=tuple(fields), divisions=DIVISIONS)
    sizes = {"embedding_size": 16, "hidden_sizes": widths, "batch_norm": True, "backbone": "mlp"}
    fixed = Rank(fixed=ranks)
    cases = [
        ({"row_scale": False, "offset": False, "norm": "shared"}, bare),
        ({"norm": "shared"}, full),
        ({}, full + 2 * sum(widths)),
    ]
    for options, per_domain in cases:
        counts = model_of(single(rank=fixed, **options), schema, **sizes).parameter_counts()
        assert counts["adapters"] == 3 * per_domain
        assert counts["backbone"] == whole
        counts = model_of(shared(rank=fixed, **options), schema, **sizes).parameter_counts()
        assert counts["adapters"] == per_domain


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_tower_is_adapted_and_every_norm_behind_it(backbone):
    model = model_of(single(), backbone=backbone, **TOWER)
    layers = ["tower.0.linear", "tower.1.linear"]
    assert [name for name, _ in adapted(model.backbone)] == layers
    norms = [n for n, m in model.backbone.named_modules() if isinstance(m, DomainNorm)]
    assert norms == ["tower.0.norm", "tower.1.norm"]
    assert type(model.head) is not LowRankLinear


def test_a_layer_that_is_not_adapted_keeps_its_shared_norm():
    model = model_of(single(targets=("tower.1.*",)), **TOWER)
    assert isinstance(model.backbone.tower.get_submodule("0.norm"), BatchNorm)
    assert isinstance(model.backbone.tower.get_submodule("1.norm"), DomainNorm)


@pytest.mark.parametrize(("batch_norm", "norm"), [(False, "domain"), (True, "shared")])
def test_without_norms_in_the_tower_or_with_shared_ones_domains_get_none(batch_norm, norm):
    model = model_of(single(norm=norm), **(TOWER | {"batch_norm": batch_norm}))
    assert not [m for m in model.modules() if isinstance(m, DomainNorm)]


@pytest.mark.parametrize(
    ("make", "divisions", "places", "experts"),
    [
        (single, (), (0,), 3),
        (single, ("age",), (1,), 2),
        (shared, (), (EVERY,), 1),
        (shared, ("age",), (EVERY,), 1),
    ],
)
def test_there_is_an_expert_per_domain_or_one_for_all_rows(make, divisions, places, experts):
    model = model_of(make(divisions=divisions), **TOWER)
    assert model.routing.divisions == places
    assert not model.routing.mixed
    layers = [layer for _, layer in adapted(model.backbone)]
    assert {layer.experts for layer in layers} == {experts}
    norms = [m for m in model.modules() if isinstance(m, DomainNorm)]
    assert {len(norm.divisions[0].weight) for norm in norms} == {experts}


def test_the_shared_adapter_needs_no_division():
    schema = SCHEMA.model_copy(update={"divisions": ()})
    assert model_of(shared(), schema, **TOWER).routing.divisions == (EVERY,)
    with pytest.raises(UsageError, match="the data has none"):
        model_of(single(), schema, **TOWER)


@pytest.mark.parametrize("name", ["singlelora", "shared_adapter", "retune"])
def test_more_than_one_division_is_refused(name):
    with pytest.raises(ValidationError, match=f"{name} works on one division, not on tab, age"):
        METHODS[name](name=name, divisions=("tab", "age"))


def test_the_options_reach_the_layers():
    for row_scale in (True, False):
        for offset in (True, False):
            model = model_of(single(row_scale=row_scale, offset=offset))
            for _, layer in adapted(model.backbone):
                assert (layer.row_scale is not None) == row_scale
                assert (layer.offset is not None) == offset


def test_the_row_scale_is_gaussian_of_the_deviation_asked_for():
    """The paper says "Gaussian" of s; D is Glorot normal, U and b are zero."""
    for std in (1.0, 0.1):
        model = model_of(
            single(row_scale_std=std, rank=Rank(fixed=4)), hidden_sizes=(3000,), batch_norm=False
        )
        (layer,) = (layer for _, layer in adapted(model.backbone))
        assert layer.row_scale.std().item() == pytest.approx(std, rel=0.03)
        assert layer.row_scale.mean().item() == pytest.approx(0, abs=0.05 * std)
        assert not layer.up.any()
        assert not layer.offset.any()


@pytest.mark.parametrize("options", [{"row_scale_std": 0}, {"row_scale_std": -1}])
def test_a_row_scale_of_zero_would_learn_nothing(options):
    with pytest.raises(ValidationError, match="greater than 0"):
        single(**options)


def test_the_spread_of_a_row_scale_that_is_not_there_is_refused():
    with pytest.raises(ValidationError, match="row_scale_std means nothing without a row scale"):
        single(row_scale=False, row_scale_std=0.5)


def test_a_target_that_is_not_there_is_refused():
    with pytest.raises(AdapterError, match=r"targets 'cross\.\*' match no free layer"):
        model_of(single(targets=("cross.*",)), backbone="mlp")


def owners(model):
    """Parameter name → what owns it, by identity of the modules that hold it."""
    found = {id(p): "plain" for p in model.parameters()}
    for _, layer in adapted(model):
        for own in (layer.down, layer.up, layer.row_scale, layer.offset):
            if own is not None:
                found[id(own)] = "experts"
    for module in model.modules():
        if isinstance(module, DomainNorm):
            found |= {id(p): "norms" for p in module.divisions.parameters()}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def trained_by(stage, model):
    return {name for name, _ in model.named_parameters() if matches(name, stage.trains)}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("make", [single, shared])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("recipe", ["paper", "tuned"])
def test_pretrain_takes_the_backbone_and_adapt_takes_the_rest(backbone, make, batch_norm, recipe):
    method = make(recipe=recipe)
    model = model_of(method, backbone=backbone, **(TOWER | {"batch_norm": batch_norm}))
    pretrain, adapt = method.stages(Stage(name=""), norm=batch_norm)
    own = owners(model)
    assert ("norms" in own.values()) == batch_norm
    assert trained_by(pretrain, model) == {n for n, kind in own.items() if kind == "plain"}
    assert trained_by(adapt, model) == {n for n, kind in own.items() if kind != "plain"}
    assert all("embedding" not in name and "head" not in name for name in trained_by(adapt, model))


@pytest.mark.parametrize("make", [single, shared])
def test_the_papers_stages(make):
    base = Stage(name="", epochs=7, learning_rate=0.5, patience=2)
    pretrain, adapt = make().stages(base, norm=True)
    role = {"name": "pretrain", "trains": pretrain.trains, "route": "none"}
    assert pretrain == base.model_copy(update=role)
    role = {"name": "adapt", "trains": adapt.trains, "independent": True, "inherits": "domains"}
    assert adapt == base.model_copy(update=role)
    assert adapt.route == "hard"
    assert adapt.division is None


@pytest.mark.parametrize("make", [single, shared])
def test_the_tuned_recipe_regularises_the_adapters_alone(make):
    plain, tuned = (
        make(recipe=recipe).stages(Stage(name=""), norm=True) for recipe in ("paper", "tuned")
    )
    assert tuned[0] == plain[0]
    assert tuned[1] == plain[1].model_copy(update=REGULARISED)


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ({"dropout": 0.0}, {"dropout": 0.0}),
        ({"embedding_dropout": 0.1, "ema": 0.5}, {"embedding_dropout": 0.1, "ema": 0.5}),
    ],
)
def test_what_the_training_section_says_is_left_alone(said, ends):
    for method in (single(recipe="tuned"), Retune(name="retune", recipe="tuned")):
        second = method.stages(Stage(name="", **said), norm=True)[1]
        found = {name: getattr(second, name) for name in REGULARISED}
        assert found == REGULARISED | ends


@pytest.mark.parametrize("backbone", BACKBONES)
def test_retune_trains_all_and_then_all_but_the_embeddings(backbone):
    method = Retune(name="retune")
    model = model_of(method, backbone=backbone, **TOWER)
    pretrain, retune = method.stages(Stage(name="", epochs=3), norm=True)
    names = {name for name, _ in model.named_parameters()}
    assert trained_by(pretrain, model) == names
    assert trained_by(retune, model) == {n for n in names if not n.startswith("embedding.")}
    assert [s.name for s in (pretrain, retune)] == ["pretrain", "retune"]
    assert {pretrain.epochs, retune.epochs} == {3}
    assert not retune.independent
    assert not list(adapted(model))


def test_retune_tuned_is_regularised_as_adapters_are():
    plain, tuned = (
        Retune(name="retune", recipe=recipe).stages(Stage(name=""), norm=True)
        for recipe in ("paper", "tuned")
    )
    assert tuned == (plain[0], plain[1].model_copy(update=REGULARISED))


def test_a_fresh_model_starts_as_every_other_method_does():
    plain = model_of(Retune(name="retune"), **TOWER).state_dict()
    for make in (single, shared):
        ours = model_of(make(), **TOWER).state_dict()
        for name, value in plain.items():
            block, _, leaf = name.rpartition(".")
            found = ours[name] if name in ours else ours[f"{block}.base.{leaf}"]
            assert torch.equal(found, value), name
