"""What every stage of every method promises on every backbone."""

from typing import get_args

import numpy as np
import pytest
import torch

from contract.world import SCHEMA, Data, config_of, moved
from loractr.adapters.low_rank import Bank
from loractr.backbones import BACKBONES
from loractr.config import METHODS
from loractr.layers.norm import NormBank
from loractr.predict import logits
from loractr.training import fit
from loractr.training.freeze import matches
from loractr.training.loop import routing_of

THOROUGH = ("mlp", "dcn")
"""Backbones that every method is trained on; the others train one method of each kind, slowly."""

CASES = [
    pytest.param(method, backbone, marks=() if backbone in THOROUGH else pytest.mark.slow)
    for backbone in BACKBONES
    for method in METHODS
    if backbone in THOROUGH or method in ("mlora", "multilora", "moe_mlora")
]

pytestmark = pytest.mark.parametrize(("method", "backbone"), CASES)


def stages_of(method, backbone):
    """Every stage of every recipe: the shared model's, then that of one domain's own model."""
    field = METHODS[method].model_fields.get("recipe")
    for recipe in get_args(field.annotation) if field else [None]:
        config = config_of(method, backbone, batch_norm=True)
        if recipe:
            chosen = config.method.model_copy(update={"recipe": recipe})
            config = config.model_copy(update={"method": chosen})
        yield from (*config.stages(), *config.domain_stages("tab", "b"))


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


def test_experts_without_rows_get_no_gradient_and_do_not_move(method, backbone):
    """In every stage, whatever else it trains, when all rows are of one domain."""
    model = moved(method, backbone, batch_norm=True)
    if method == "shared_adapter":
        return  # its one expert has every row
    for stage in stages_of(method, backbone):
        before = of_domains(model)
        one = stage.model_copy(update={"rows": ("tab", "b"), "keep_start": False})
        fit(model, Data(), [one.model_copy(update={"inherits": "none"})], seed=0)
        for name, value in of_domains(model).items():
            assert torch.equal(value[[0, 2]], before[name][[0, 2]]), (stage.name, name)


def of_domains(model):
    """All banks of experts and norms of the first division's domains. (PLE's levels are left out:
    their shared gate mixes the experts of all domains, by its formula.)"""
    found = {}
    for name, module in model.named_modules():
        second = name.endswith((".banks.1", ".divisions.1", ".cell"))
        if isinstance(module, Bank | NormBank) and not second and ".levels." not in name:
            found |= {
                f"{name}.{leaf}": t.clone() for leaf, t in module.named_parameters(recurse=False)
            }
            found |= {
                f"{name}.{leaf}": t.clone() for leaf, t in module.named_buffers(recurse=False)
            }
    return found


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
