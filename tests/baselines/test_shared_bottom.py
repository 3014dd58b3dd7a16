"""Shared-bottom: its parts and sizes, what the options change, what each domain's rows train."""

import pytest
import torch
from pydantic import ValidationError

from loractr.backbones import ModelConfig
from loractr.baselines.shared_bottom import SharedBottom
from loractr.batch import Batch, Route
from loractr.config import RunConfig
from loractr.data.config import DataConfig
from loractr.errors import UsageError
from loractr.model import build
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage

SCHEMA = Schema(
    fields=(Field(name="user", size=6), Field(name="item", size=5)),
    divisions=(
        Division(name="tab", column="tab", domains=("a", "b", "c")),
        Division(name="age", column="age", domains=("young", "old")),
    ),
)


def shared_bottom(**options):
    return SharedBottom(name="shared_bottom", **options)


def model_of(method, **options):
    sizes = {"embedding_size": 4, "hidden_sizes": (7, 5), "backbone": "mlp", **options}
    data = DataConfig(source="synthetic")
    return build(RunConfig(data=data, model=ModelConfig(**sizes), method=method), SCHEMA)


def shapes(module):
    return {
        name: tuple(parameter.shape)
        for name, parameter in module.named_parameters()
        if name.endswith("weight")
    }


def test_by_default_the_embeddings_alone_are_shared():
    model = model_of(shared_bottom())
    assert shapes(model.backbone.tower) == {
        "towers.0.linear.weight": (3, 7, 8),
        "towers.1.linear.weight": (3, 5, 7),
    }
    assert shapes(model.head) == {"weight": (3, 1, 5)}


def test_the_bottom_is_shared_and_the_towers_stand_on_it():
    model = model_of(shared_bottom(bottom_sizes=(6, 4), tower_sizes=(3,)))
    assert shapes(model.backbone.tower) == {
        "bottom.0.linear.weight": (6, 8),
        "bottom.1.linear.weight": (4, 6),
        "towers.0.linear.weight": (3, 3, 4),
    }
    assert shapes(model.head) == {"weight": (3, 1, 3)}


def test_the_number_of_weights_is_that_of_one_tower_per_domain():
    """(8 + 1) 7 + (7 + 1) 5 + 5 + 1 for each domain of the division that is named."""
    for division, domains in (("tab", 3), ("age", 2)):
        model = model_of(shared_bottom(divisions=(division,)))
        assert model.parameter_counts()["backbone"] == domains * (9 * 7 + 8 * 5 + 6)


def test_what_stands_beside_the_tower_keeps_its_place_before_it():
    """dcn: [cross, tower], 8 crosses and then the tower of a new width."""
    model = model_of(shared_bottom(tower_sizes=(3,)), backbone="dcn")
    assert model.backbone.out_features == 8 + 3
    assert shapes(model.head) == {"weight": (3, 1, 11)}


def test_the_models_dropout_and_norms_are_the_towers():
    model = model_of(shared_bottom(bottom_sizes=(6,)), batch_norm=True, dropout=0.25)
    buffers = {name for name, _ in model.backbone.tower.named_buffers()}
    assert {name.rpartition(".")[0] for name in buffers} == {
        "bottom.0.norm",
        "towers.0.norm",
        "towers.1.norm",
    }
    assert str(model.backbone.tower).count("Dropout(p=0.25)") == 3
    model.set_dropout(0.5)
    assert str(model.backbone.tower).count("Dropout(p=0.5)") == 3


def test_a_row_trains_its_own_domains_weights_and_the_shared_ones():
    model = model_of(shared_bottom(bottom_sizes=(6,))).train()
    count = 8
    batch = Batch(
        ids=torch.ones(count, 2, dtype=torch.int32),
        numbers=torch.zeros(count, 0),
        row=torch.arange(count),
        route=Route.hard(torch.full((count,), 1), 3),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().add_(0.1)  # so that every unit is active
    model(batch).sum().backward()
    for name, parameter in [
        *model.backbone.tower.named_parameters(),
        *model.head.named_parameters(),
    ]:
        if name.startswith("bottom"):
            assert parameter.grad.any(), name
        else:
            assert parameter.grad[1].any(), name
            assert not parameter.grad[[0, 2]].any(), name


def test_paper_is_one_stage_of_all_weights_and_tuned_has_a_second():
    base = Stage(name="", learning_rate=0.01)
    (train,) = shared_bottom().stages(base, norm=False)
    assert (train.name, train.trains, train.learning_rate) == ("train", ("*",), 0.01)
    first, second = shared_bottom(recipe="tuned").stages(base, norm=False)
    assert first == train
    assert second.name == "retrain"
    assert second.learning_rate == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bottom_sizes": (0,)}, "greater than 0"),
        ({"tower_sizes": (4, -1)}, "greater than 0"),
        ({"recipe": "best"}, "'paper' or 'tuned'"),
        ({"divisions": ("tab", "age")}, "works on one division"),
        ({"towers": (3,)}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        shared_bottom(**options)


def test_data_without_a_division_is_refused():
    config = RunConfig(data=DataConfig(source="synthetic"), method=shared_bottom())
    with pytest.raises(UsageError, match="the data has none"):
        build(config, SCHEMA.model_copy(update={"divisions": ()}))
