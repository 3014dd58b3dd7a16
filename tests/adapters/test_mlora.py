"""MLoRA: sizes from the papers' formula, where it attaches, which weights each stage trains."""

import pytest
import torch
from pydantic import ValidationError

from loractr.adapters import LowRankLinear, adapted
from loractr.adapters.mlora import BACKBONE, EXPERTS, MLoRA, Rank
from loractr.backbones import BACKBONES, ModelConfig
from loractr.baselines.mix import Mix
from loractr.config import METHODS, RunConfig
from loractr.data.config import DataConfig
from loractr.errors import AdapterError
from loractr.layers.linear import Linear
from loractr.model import build
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage, matches

DOMAINS = ("a", "b", "c")
SCHEMA = Schema(
    fields=(Field(name="user", size=6), Field(name="item", size=5), Field(name="tab", size=4)),
    divisions=(
        Division(name="tab", column="tab", domains=DOMAINS),
        Division(name="age", column="age", domains=("young", "old")),
    ),
)


def model_of(method, **options):
    config = RunConfig(
        data=DataConfig(source="synthetic"), model=ModelConfig(**options), method=method
    )
    return build(config, SCHEMA)


def mlora(**options):
    return MLoRA(name="mlora", **options)


@pytest.mark.parametrize(
    ("embedding_size", "divisor", "ranks", "per_domain", "tower"),
    [
        (128, 16, [16, 8, 4], 14_528, 139_712),  # Taobao: three fields, 384 inputs
        (128, 256, [1, 1, 1], 1_664, 139_712),
        (8, 4, [64, 32, 16], 33_728, 47_552),  # MovieLens: three fields, 24 inputs
        (8, 16, [16, 8, 4], 8_768, 47_552),  # (16·280 + 256) + (8·384 + 128) + (4·192 + 64)
        (8, 32, [8, 4, 2], 4_608, 47_552),  # (8·280 + 256) + (4·384 + 128) + (2·192 + 64)
    ],
)
def test_the_overhead_is_the_papers_formula(embedding_size, divisor, ranks, per_domain, tower):
    """Per domain Σ r (in + out) + out, on a tower of [256, 128, 64]; methods.md, section 1.2."""
    model = model_of(
        mlora(rank=Rank(divisor=divisor)),
        backbone="mlp",
        embedding_size=embedding_size,
        hidden_sizes=(256, 128, 64),
    )
    layers = [layer for _, layer in adapted(model.backbone)]
    assert [layer.rank for layer in layers] == ranks
    counts = model.parameter_counts()
    assert counts["adapters"] == per_domain * len(DOMAINS)
    shared = [p for layer in layers for p in layer.base.parameters()]
    assert sum(p.numel() for p in shared) == tower
    embeddings, head = (6 + 5 + 4) * embedding_size, 64 + 1
    assert counts["total"] == embeddings + tower + per_domain * len(DOMAINS) + head


@pytest.mark.parametrize(
    ("out", "divisor", "rank"), [(128, 16, 8), (64, 16, 4), (10, 4, 2), (10, 64, 1), (9, 1.5, 6)]
)
def test_a_divisor_gives_the_authors_rank(out, divisor, rank):
    """max(int(out / divisor), 1)"""
    assert Rank(divisor=divisor).of("layer", Linear(50, out), place=0) == rank


def test_a_fixed_rank_is_the_same_everywhere_or_one_for_each_layer():
    for fixed, expected in ((3, [3, 3]), ((4, 2), [4, 2])):
        model = model_of(mlora(rank=Rank(fixed=fixed)), hidden_sizes=(8, 4))
        assert [layer.rank for _, layer in adapted(model.backbone)] == expected


@pytest.mark.parametrize(
    ("fixed", "problem"),
    [
        (5, r"rank 5 is larger than layer 'tower.1.linear' \(8 -> 4\)"),
        ((4, 5), "rank 5 is larger than layer 'tower.1.linear'"),
        ((4,), "lists 1 ranks, but 'tower.1.linear' is adapted layer 2"),
        ((4, 2, 1), "lists 3 ranks, but 2 layers are adapted: 'tower.0.linear', 'tower.1.linear'"),
    ],
)
def test_a_fixed_rank_that_does_not_fit_its_layers_is_refused(fixed, problem):
    with pytest.raises(AdapterError, match=problem):
        model_of(mlora(rank=Rank(fixed=fixed)), hidden_sizes=(8, 4))


@pytest.mark.parametrize("values", [{}, {"fixed": 2, "divisor": 2}])
def test_a_rank_follows_one_rule(values):
    with pytest.raises(ValidationError, match="either fixed or divisor"):
        Rank(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fixed": 0}, "greater than 0"),
        ({"fixed": [3, 0]}, "greater than 0"),
        ({"divisor": 0}, "greater than or equal to 1"),
        ({"divisor": 0.5}, "greater than or equal to 1"),  # a rank above the layer's width
    ],
)
def test_a_rank_is_positive_and_no_larger_than_a_layer_is_wide(values, said):
    with pytest.raises(ValidationError, match=said):
        Rank(**values)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_tower_and_only_the_tower_is_adapted_by_default(backbone):
    model = model_of(mlora(), backbone=backbone, hidden_sizes=(8, 4))
    expected = ["tower.0.linear", "tower.1.linear"]
    assert [name for name, _ in adapted(model.backbone)] == expected
    assert not list(adapted(model.embedding))
    assert type(model.head) is Linear


def test_other_targets_can_be_named():
    method = mlora(targets=("cross.*", "tower.1.*"))
    model = model_of(method, backbone="dcn", cross="matrix", hidden_sizes=(8, 4))
    expected = ["tower.1.linear", "cross.0.linear", "cross.1.linear"]
    assert [name for name, _ in adapted(model.backbone)] == expected


@pytest.mark.parametrize(
    ("divisions", "place", "experts"), [((), 0, 3), (("tab",), 0, 3), (("age",), 1, 2)]
)
def test_there_is_an_expert_for_each_domain_of_its_division(divisions, place, experts):
    model = model_of(mlora(divisions=divisions))
    assert model.routing.divisions == (place,)
    assert {layer.experts for _, layer in adapted(model.backbone)} == {experts}


@pytest.mark.parametrize("name", ["mlora", "mix", "single", "finetune"])
def test_more_than_one_division_is_refused(name):
    with pytest.raises(ValidationError, match=f"{name} works on one division, not on tab, age"):
        METHODS[name](name=name, divisions=("tab", "age"))


def test_the_options_reach_the_layers():
    model = model_of(mlora(row_scale=True, offset=False))
    layers = [layer for _, layer in adapted(model.backbone)]
    assert all(isinstance(layer, LowRankLinear) for layer in layers)
    assert all(layer.row_scale is not None and layer.offset is None for layer in layers)
    layers = [layer for _, layer in adapted(model_of(mlora()).backbone)]
    assert all(layer.row_scale is None and layer.offset is not None for layer in layers)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_shared_part_starts_as_in_a_model_without_adapters(backbone):
    """Otherwise two methods of a comparison would differ in more than the method."""
    plain = model_of(Mix(name="mix"), backbone=backbone).state_dict()
    ours = model_of(mlora(), backbone=backbone).state_dict()
    shared = {name.replace("linear.base.", "linear."): value for name, value in ours.items()}
    for name, value in plain.items():
        assert torch.equal(shared[name], value), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_experts_and_backbone_are_a_partition_of_the_weights(backbone):
    model = model_of(mlora(row_scale=True), backbone=backbone, batch_norm=True)
    experts = {
        id(parameter)
        for _, layer in adapted(model)
        for parameter in (layer.down, layer.up, layer.row_scale, layer.offset)
    }
    for name, parameter in model.named_parameters():
        assert matches(name, EXPERTS) == (id(parameter) in experts), name
        assert matches(name, BACKBONE) != matches(name, EXPERTS), name


def test_the_joint_recipe_is_one_stage_that_trains_all():
    base = Stage(name="", epochs=7, learning_rate=0.5)
    (stage,) = mlora().stages(base, norm=False)
    assert stage == Stage(name="joint", trains=("*",), epochs=7, learning_rate=0.5)


def test_two_stages_are_the_backbone_alone_then_every_expert_by_itself():
    pretrain, adapt = mlora(recipe="two_stage").stages(Stage(name="", patience=2), norm=False)
    assert (pretrain.name, pretrain.trains, pretrain.route) == ("pretrain", BACKBONE, "none")
    assert not pretrain.independent
    assert (adapt.name, adapt.trains, adapt.route) == ("adapt", EXPERTS, "hard")
    assert adapt.independent
    assert {pretrain.patience, adapt.patience} == {2}
