"""MMoE: number and sizes of experts, gates and towers; what each domain's rows train."""

import pytest
import torch
from pydantic import ValidationError

from loractr.backbones import ModelConfig
from loractr.baselines.mmoe import MMoE
from loractr.batch import Batch, Route
from loractr.config import RunConfig
from loractr.data.config import DataConfig
from loractr.layers.linear import Linear
from loractr.model import build
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage


def schema_of(*domains):
    return Schema(
        fields=(Field(name="user", size=6), Field(name="item", size=5)),
        divisions=(Division(name="tab", column="tab", domains=domains),),
    )


def mmoe(**options):
    return MMoE(name="mmoe", **options)


def model_of(method, domains="abc", **options):
    sizes = {"embedding_size": 4, "hidden_sizes": (7, 6, 5), "backbone": "mlp", **options}
    config = RunConfig(
        data=DataConfig(source="synthetic"), model=ModelConfig(**sizes), method=method
    )
    return build(config, schema_of(*domains))


def shapes(module):
    return {
        name: tuple(parameter.shape)
        for name, parameter in module.named_parameters()
        if name.endswith("weight")
    }


def test_by_default_as_many_experts_as_domains_of_all_layers_but_the_last():
    model = model_of(mmoe())
    expected = {
        "gate.linear.weight": (3, 3, 8),
        "towers.0.linear.weight": (3, 5, 6),
    }
    for expert in range(3):
        expected[f"experts.{expert}.0.linear.weight"] = (7, 8)
        expected[f"experts.{expert}.1.linear.weight"] = (6, 7)
    assert shapes(model.backbone.tower) == expected
    assert shapes(model.head) == {"weight": (3, 1, 5)}


def test_all_sizes_can_be_chosen():
    options = {"experts": 2, "expert_sizes": (9,), "gate_sizes": (4,), "tower_sizes": (3, 2)}
    model = model_of(mmoe(**options))
    assert shapes(model.backbone.tower) == {
        "experts.0.0.linear.weight": (9, 8),
        "experts.1.0.linear.weight": (9, 8),
        "gate.hidden.0.linear.weight": (3, 4, 8),
        "gate.linear.weight": (3, 2, 4),
        "towers.0.linear.weight": (3, 3, 9),
        "towers.1.linear.weight": (3, 2, 3),
    }
    assert shapes(model.head) == {"weight": (3, 1, 2)}


def test_a_model_of_one_hidden_layer_has_it_in_experts_and_in_towers():
    model = model_of(mmoe(experts=2), hidden_sizes=(7,))
    assert shapes(model.backbone.tower)["experts.1.0.linear.weight"] == (7, 8)
    assert shapes(model.backbone.tower)["towers.0.linear.weight"] == (3, 7, 7)


def test_one_domain_has_two_experts_since_a_gate_over_one_would_never_train():
    assert len(model_of(mmoe(), domains="a").backbone.tower.experts) == 2


def test_gates_have_no_bias_and_sum_to_one():
    gate = model_of(mmoe()).backbone.tower.gate
    assert [name for name, _ in gate.named_parameters()] == ["linear.weight"]
    weights = gate(torch.randn(5, 8), Route.hard(torch.tensor([0, 1, 2, -1, 0]), 3))
    torch.testing.assert_close(weights.sum(1), torch.ones(5))


def test_experts_are_made_of_the_layers_that_all_backbones_are_made_of():
    experts = model_of(mmoe()).backbone.tower.experts
    assert sum(type(module) is Linear for module in experts.modules()) == 6


def test_experts_differ_from_the_start():
    weights = [
        expert.get_parameter("0.linear.weight")
        for expert in model_of(mmoe()).backbone.tower.experts
    ]
    assert not torch.equal(weights[0], weights[1])


def test_a_row_trains_all_experts_but_its_own_gate_and_tower_alone():
    model = model_of(mmoe()).train()
    count = 8
    batch = Batch(
        ids=torch.ones(count, 2, dtype=torch.int32),
        numbers=torch.zeros(count, 0),
        row=torch.arange(count),
        route=Route.hard(torch.full((count,), 2), 3),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.1, 0.4, generator=generator)  # so that every unit is active
    model(batch).sum().backward()
    for name, parameter in model.backbone.tower.named_parameters():
        if name.startswith("experts"):
            assert parameter.grad.any(), name
        else:
            assert parameter.grad[2].any(), name
            assert not parameter.grad[:2].any(), name


def test_the_recipes():
    assert [stage.name for stage in mmoe().stages(Stage(name=""), norm=True)] == ["train"]
    tuned = mmoe(recipe="tuned").stages(Stage(name=""), norm=True)
    assert [stage.name for stage in tuned] == ["train", "retrain"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": 1}, "greater than or equal to 2"),
        ({"expert_sizes": ()}, "at least 1 item"),
        ({"gate_sizes": (0,)}, "greater than 0"),
        ({"expert_size": (8,)}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        mmoe(**options)
