"""What a domain owns learns nothing from rows that are not its own, whatever else a stage trains.

All rows here have a domain: one of none would reach every slice, through the domains' average.
"""

from functools import cache

import pytest
import torch

from contract.world import SCHEMA, TRAINED, Data, batch_of, config_of, moved, only, stages_of
from loractr.config import METHODS
from loractr.model import build
from loractr.training import fit
from loractr.training.freeze import freeze_all_but
from loractr.training.loop import mean_loss, routing_of

SHARED = {"mix", "single", "finetune", "retune", "shared_adapter"}
"""Methods whose model has nothing of a domain's own; some have a whole model for each instead."""
SEVERAL = ("multilora", "multilora_add", "multilora_avg")
"""Methods that mix the experts of both divisions, and have a norm for each cell."""

BUSY = {"tab": ("b", 1), "hour": ("night", 1)}
"""The one domain of a division that has rows, and its place."""
BUSY_CELLS = [5, 6, 7]
"""(tab + 1) * 3 + hour + 1 - 1 where tab is 1, of b, and hour -1, 0 or 1."""

OF_DOMAINS = pytest.mark.parametrize(
    ("method", "backbone"), [case for case in TRAINED if case.values[0] not in SHARED]
)

INDEPENDENT = pytest.mark.parametrize(
    ("method", "backbone"),
    [case for case in TRAINED if any(stage.independent for stage in stages_of(*case.values))],
)


@cache
def owned(method, backbone, division="tab"):
    """Names of the tensors with a slice for each domain of a division: those whose first axis is
    as long as it has domains, and grows with them.

    Not among them are the experts on PLE's levels but the last: the shared gate there mixes those
    of all domains for every row, so that they learn from all rows by the paper's formula.
    """
    more = [
        one.model_copy(update={"domains": (*one.domains, "one more")})
        if one.name == division
        else one
        for one in SCHEMA.divisions
    ]
    config = config_of(method, backbone, batch_norm=True)
    domains = len(SCHEMA.division(division).domains)
    wider = build(config, SCHEMA.model_copy(update={"divisions": tuple(more)})).state_dict()
    return {
        name
        for name, tensor in build(config, SCHEMA).state_dict().items()
        if tensor.shape[:1] == (domains,) and wider[name].shape[0] == domains + 1
        if not (".levels." in name and ".specific." in name)
    }


def idle(tensor, busy):
    """The slices of all domains but the one with rows."""
    return torch.cat([tensor[:busy], tensor[busy + 1 :]])


def before_and_after(model, stage, **options):
    """Every tensor around a stage in which one domain has all rows."""
    division = stage.division or "tab"
    one = {"rows": (division, BUSY[division][0]), "keep_start": False, "inherits": "none"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, Data(), [stage.model_copy(update=one | options)], seed=0)
    after = model.state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    return before, after


def assert_the_idle_stay(method, backbone, stages, **options):
    """Bit-identical, parameters and buffers."""
    model = moved(method, backbone, batch_norm=True)
    for stage in stages:
        division = stage.division or "tab"
        busy = BUSY[division][1]
        before, after = before_and_after(model, stage, **options)
        for name in owned(method, backbone, division):
            assert torch.equal(idle(after[name], busy), idle(before[name], busy)), name


@pytest.mark.parametrize("method", METHODS)
def test_what_is_watched_is_all_that_domains_own(method):
    assert bool(owned(method, "mlp")) == (method not in SHARED)


@OF_DOMAINS
def test_slices_of_domains_without_rows_get_no_gradient(method, backbone):
    """Exactly 0, in every stage; and none of the slices is left out of all stages."""
    model, reached = moved(method, backbone, batch_norm=True).train(), set()
    routing = model.routing
    for stage in stages_of(method, backbone):
        division = stage.division or "tab"
        domain, busy = BUSY[division]
        trained = freeze_all_but(model, stage.trains)
        model.routing = routing
        model.routing = routing_of(model, SCHEMA, stage)
        batch = batch_of(model, only(Data.train, division, domain))
        model.zero_grad()
        mean_loss(model(batch), batch.label, None).backward()
        for name in owned(method, backbone, division) & trained.keys():
            gradient = trained[name].grad
            assert gradient is None or not idle(gradient, busy).any(), (stage.name, name)
            if gradient is not None and gradient[busy].any():
                reached.add(name)
    both = owned(method, backbone) | owned(method, backbone, "hour")
    assert reached == both & dict(model.named_parameters()).keys()


@OF_DOMAINS
def test_without_decay_slices_of_domains_without_rows_do_not_move(method, backbone):
    """In any stage. With weight decay one Adam over a stack shrinks all its slices, as it should:
    decay is the gradient of a penalty on all weights, rows or none. Not so where every expert has
    an Adam of its own, below."""
    assert_the_idle_stay(method, backbone, stages_of(method, backbone))


@INDEPENDENT
@pytest.mark.parametrize("decoupled", [False, True])
def test_independent_experts_without_rows_do_not_even_decay(method, backbone, decoupled):
    stages = [stage for stage in stages_of(method, backbone) if stage.independent]
    assert_the_idle_stay(method, backbone, stages, weight_decay=0.1, decoupled=decoupled)


@pytest.mark.parametrize("method", SEVERAL)
def test_cells_without_rows_learn_nothing(method):
    """Norms of the combinations of domains, in the stage that trains them."""
    model = moved(method, "mlp", batch_norm=True)
    (stage,) = (
        stage
        for stage in config_of(method, "mlp", batch_norm=True).stages()
        if stage.route == "mixed"
    )
    before, after = before_and_after(model, stage)
    others = [cell for cell in range(11) if cell not in BUSY_CELLS]
    cells = [name for name in after if ".norm.cell." in name]
    assert len(cells) == 8
    for name in cells:
        assert torch.equal(after[name][others], before[name][others]), name
        assert not torch.equal(after[name][BUSY_CELLS], before[name][BUSY_CELLS]), name
