"""Experts of many domains that Adam moves by experts: the weights of Adam on all of them."""

import pytest
import torch

from loractr import native
from loractr.adapters.low_rank import EXPERT_PARAMETERS
from loractr.adapters.mlora import Rank
from loractr.adapters.multilora import MultiLoRA
from loractr.stage import Stage
from loractr.training import fit, shared
from loractr.training.events import StageStarted
from loractr.training.optimizer import stacks_by_rows

SEED = 6
COUNTS = (60, 33, 25, 40, 17, 21)
CASES = {
    "plain": {},
    "decay": {"weight_decay": 0.02, "clip_norm": 0.1, "warmup": 0.5, "decay": "linear"},
    "decoupled": {"weight_decay": 0.3, "decoupled": True},
    "average": {"ema": 0.9},
    "by another rate than tables": {"embedding_learning_rate": 0.005},
    "lazy tables": {"embedding_optimizer": "lazy_adam", "ema": 0.9},
}


def stage(**settings):
    options = {"epochs": 4, "batch_size": 8, "learning_rate": 0.05, "patience": 4}
    return Stage(**({"name": "train", "domains_per_batch": 1} | options | settings))


@pytest.fixture(params=["mlora", "multilora"])
def world(request, make_data, make_model, mlora):
    """(data, a function that makes the fresh model): six domains, so that a batch misses some."""
    data = make_data(train=COUNTS, validation=COUNTS)
    rank = Rank(fixed=2)
    method = {
        "mlora": mlora(divisions=("tab",), row_scale=True),
        "multilora": MultiLoRA(name="multilora", divisions=("tab",), rank=rank),
    }[request.param]
    return data, lambda: make_model(data, method)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", CASES)
def test_joint_training_by_experts_ends_with_the_weights_of_dense_training(
    world, monkeypatch, case
):
    data, make = world
    found = []
    for dense in (False, True):
        if dense:
            monkeypatch.setattr(shared, "stacks_by_rows", lambda *_: [])
        model, started = make(), []
        recipe = [stage(**CASES[case], route="mixed")]  # of mlora the same as a hard route
        history = fit(model, data, recipe, seed=SEED, callbacks=[started.append])
        found.append((model.state_dict(), history))
        told = next(event.optimizer for event in started if isinstance(event, StageStarted))
        assert (".down'" in told) is not dense
    (ours, our_history), (expected, history) = found
    assert history.stages[0].epoch > 0.5  # else nothing would have been trained
    assert our_history.stages[0].epoch == history.stages[0].epoch
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, atol=1e-9, rtol=0)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("settings", "some"),
    [
        ({}, True),
        ({"domains_per_batch": 3}, True),
        ({"domains_per_batch": 4}, False),  # a batch has most of the six
        ({"domains_per_batch": None}, False),
        ({"decoupled": True, "weight_decay": 30.0}, False),  # 1 - rate * decay < 0: no closed form
    ],
)
def test_it_is_done_where_a_batch_has_few_of_the_experts(world, settings, some):
    _, make = world
    model = make()
    trained = dict(model.named_parameters())
    names = stacks_by_rows(stage(**settings), model, trained)
    stacks = {name for name in trained if name.rpartition(".")[2] in EXPERT_PARAMETERS}
    assert len(stacks) == 8
    assert set(names) == (stacks if some else set())


def test_without_compiled_kernels_it_is_not_and_the_log_says_what_would_be_faster(world, caplog):
    _, make = world
    model = make()
    with caplog.at_level("INFO", "loractr.training.optimizer"), native.use("torch"):
        assert stacks_by_rows(stage(), model, dict(model.named_parameters())) == []
    (record,) = caplog.records
    assert record.getMessage().startswith("Adam moves all 6 experts of backbone.tower.0.linear.")
