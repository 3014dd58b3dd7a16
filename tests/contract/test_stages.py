"""What every stage of every method promises on every backbone."""

import numpy as np
import pytest
import torch

from contract.world import SCHEMA, TRAINED, Data, moved, only, stages_of
from loractr.predict import logits
from loractr.stage import matches
from loractr.training import fit
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
    """Steps are so large that some last one is not the best, with the first seed or the next."""
    assert any(a_last_one_was_worse_than_what_was_kept(method, backbone, seed) for seed in range(4))


def a_last_one_was_worse_than_what_was_kept(method, backbone, seed):
    """Asserts that every stage keeps the best of all its validations, each expert's own in an
    independent stage, and that what it says is what the kept weights are worth."""
    model, lost = moved(method, backbone, batch_norm=True), False
    for stage in stages_of(method, backbone):
        wild = {"learning_rate": 0.3, "epochs": 5, "patience": 5, "select": "log_loss"}
        history = fit(model, Data(), [stage.model_copy(update=wild)], seed=seed)
        (result,), seen = history.stages, {}
        for told in history.validations:
            seen.setdefault(told.domain, []).append(told.value)
        lost |= any(values[-1] < max(values) for values in seen.values())
        mixed = stage.route == "mixed"
        if stage.independent:
            kept = {name: end["value"] for name, end in result.domains.items()}
            assert kept == {name: max(values) for name, values in seen.items()}
        elif mixed and not model.routing.mixed:  # what is worth more than any: no mixers at all
            assert result.value >= max(max(values) for values in seen.values())
        else:
            assert [result.value] == [max(values) for values in seen.values()]
        rows = Data.validation if stage.rows is None else only(Data.validation, *stage.rows)
        routing = model.routing if mixed else routing_of(model, SCHEMA, stage)
        z = logits(model, rows, SCHEMA, routing=routing)
        found = np.logaddexp(0, np.where(rows.label == 1, -z, z)).mean()
        assert -found == pytest.approx(result.value, abs=1e-9)
    return lost


def test_the_same_seed_trains_the_same_weights(method, backbone):
    ends = []
    for _ in range(2):
        model = moved(method, backbone, batch_norm=True)
        for stage in stages_of(method, backbone):
            fit(model, Data(), [stage.model_copy(update={"dropout": 0.3})], seed=0)
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
