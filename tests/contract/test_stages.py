"""What every stage of every method promises on every backbone."""

import numpy as np
import pytest
import torch

from contract.world import SCHEMA, TRAINED, Data, moved, stages_of
from loractr.predict import logits
from loractr.training import fit
from loractr.training.freeze import matches
from loractr.training.loop import routing_of

pytestmark = pytest.mark.parametrize(("method", "backbone"), TRAINED)


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_what_a_stage_does_not_train_stays_bit_identical(method, backbone):
    """Parameters and buffers, in every stage of the recipe; what it trains does move."""
    model = moved(method, backbone, batch_norm=True)
    parameters = dict(model.named_parameters())
    for stage in stages_of(method, backbone):
        trained = {name for name in parameters if matches(name, stage.trains)}
        norms = {name.rpartition(".")[0] for name in trained if ".norm." in name}
        before = states(model)
        options = {"weight_decay": 0.1, "ema": 0.5, "keep_start": False, "select": "log_loss"}
        fit(model, Data(), [stage.model_copy(update=options)], seed=0)
        after = states(model)
        for name, value in before.items():
            may_move = name in trained or (
                name not in parameters and name.rpartition(".")[0] in norms
            )
            assert torch.equal(after[name], value) != may_move, (stage.name, name)


def test_each_stage_keeps_its_best_and_not_its_last(method, backbone):
    model = moved(method, backbone, batch_norm=True)
    for stage in stages_of(method, backbone):
        wild = {"learning_rate": 0.3, "epochs": 5, "patience": 5, "select": "log_loss"}
        (result,) = fit(model, Data(), [stage.model_copy(update=wild)], seed=0).stages
        if stage.rows is not None:
            continue  # judged on that domain's rows
        mixed = stage.route == "mixed"
        routing = model.routing if mixed else routing_of(model, SCHEMA, stage)
        z = logits(model, Data.validation, SCHEMA, routing=routing)
        found = np.logaddexp(0, np.where(Data.validation.label == 1, -z, z)).mean()
        assert -found == pytest.approx(result.value, abs=1e-9)


def test_the_same_seed_trains_the_same_weights(method, backbone):
    ends = []
    for _ in range(2):
        model = moved(method, backbone, batch_norm=True)
        for stage in stages_of(method, backbone):
            fit(model, Data(), [stage.model_copy(update={"dropout": 0.3})], seed=0)
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
