"""Which parameters a stage trains, by globs over their names."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from loractr.backbones import ModelConfig
from loractr.baselines.mix import Mix
from loractr.config import RunConfig
from loractr.data.config import DataConfig
from loractr.errors import TrainingError
from loractr.layers.embedding import Table
from loractr.layers.norm import BatchNorm
from loractr.model import build
from loractr.schema import Field
from loractr.stage import Stage, matches
from loractr.training import fit
from loractr.training.freeze import freeze_all_but, moving_tensors


@pytest.fixture
def model():
    return nn.ModuleDict({"a": nn.Linear(2, 3), "norm": BatchNorm(3), "b": nn.Linear(3, 1)})


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (("*",), True),
        ((), False),
        (("tower.*",), True),
        (("tower.0.linear.down",), True),
        (("cross.*",), False),
        (("*.up", "*.down"), True),
        (("*", "!*.down"), False),
        (("!*.down", "*"), True),  # the last glob that matches decides
        (("*", "!tower.*", "*.down"), True),
        (("!*",), False),
        (("tower.?.linear.d[ao]wn",), True),
        (("down",), False),  # a glob is about the whole name
    ],
)
def test_the_last_glob_that_matches_decides(globs, expected):
    assert matches("tower.0.linear.down", globs) is expected


def test_chosen_parameters_train_and_all_others_do_not(model):
    model["b"].weight.requires_grad_(False)
    trained = freeze_all_but(model, ("*", "!a.*"))
    assert list(trained) == ["norm.weight", "norm.bias", "b.weight", "b.bias"]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in trained)
        assert name not in trained or trained[name] is parameter


def test_choosing_nothing_is_refused_with_what_there_is(model):
    with pytest.raises(TrainingError, match=r"'towr.\*' choose no parameter.*'a.weight'"):
        freeze_all_but(model, ("towr.*",))


def test_a_norms_statistics_move_with_its_own_weights_only(model):
    assert set(moving_tensors(model, freeze_all_but(model, ("norm.*",)))) == {
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
    }
    assert set(moving_tensors(model, freeze_all_but(model, ("a.*",)))) == {"a.weight", "a.bias"}


def test_ready_embeddings_never_move_though_their_linear_term_trains():
    """A frozen table may be gigabytes: it is no part of the best weights."""
    field = Field(name="item", size=4, pretrained="file", trainable=False)
    table = Table([field], [0], size=2, trainable=False, first_order=True)
    model = nn.ModuleDict({"embedding": table})
    moving = moving_tensors(model, freeze_all_but(model, ("*",)))
    assert set(moving) == {"embedding.first_order"}


def test_moving_tensors_are_the_models_own(model):
    moving = moving_tensors(model, freeze_all_but(model, ("*",)))
    with torch.no_grad():
        for value in moving.values():
            value.fill_(7.0)
    assert all(bool((value == 7.0).all()) for value in model.state_dict().values())


@pytest.mark.parametrize("optimizer", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_a_table_of_ready_embeddings_goes_through_a_fit_bit_unchanged(make_data, optimizer):
    """Its row of unknown values included, which no row had; beside it, what trains does move."""
    data = make_data()
    frozen = {"pretrained": "file", "trainable": False, "embedding_size": 3, "unknown_rows": 0}
    fields = tuple(
        field.model_copy(update=frozen) if field.name == "item" else field
        for field in data.schema.fields
    )
    data = replace(data, schema=data.schema.model_copy(update={"fields": fields}))
    ready = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    config = RunConfig(
        data=DataConfig(source="synthetic"),
        model=ModelConfig(backbone="deepfm", embedding_size=4, hidden_sizes=(6, 5)),
        method=Mix(name="mix"),
    )
    model = build(config, data.schema, pretrained={"item": ready})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"learning_rate": 0.1, "weight_decay": 0.1, "embedding_weight_decay": 0.0}
    settings |= {"epochs": 2, "ema": 0.5, "keep_start": False, "embedding_optimizer": optimizer}
    fit(model, data, [Stage(name="train", batch_size=16, **settings)], seed=0)
    after = model.state_dict()
    still = {name for name, value in before.items() if torch.equal(after[name], value)}
    (name,) = (name for name, value in before.items() if value.shape == ready.shape)
    assert still == {name}
    assert torch.equal(after[name], ready)
