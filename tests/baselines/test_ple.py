"""PLE: experts and gates of each level, and what a row of one domain trains through them."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from loractr.backbones import ModelConfig
from loractr.baselines.multi_task import Plan
from loractr.baselines.ple import PLE, Level
from loractr.batch import Batch, Route
from loractr.config import RunConfig
from loractr.data.config import DataConfig
from loractr.layers.mlp import MLP
from loractr.model import build
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage

SCHEMA = Schema(
    fields=(Field(name="user", size=6), Field(name="item", size=5)),
    divisions=(Division(name="tab", column="tab", domains=("a", "b", "c")),),
)


def ple(**options):
    return PLE(name="ple", **options)


def model_of(method, **options):
    sizes = {"embedding_size": 4, "hidden_sizes": (7, 6, 5), "backbone": "mlp", **options}
    data = DataConfig(source="synthetic")
    return build(RunConfig(data=data, model=ModelConfig(**sizes), method=method), SCHEMA)


def active(model):
    """All tensors positive, so that every unit is active and every path counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.1, 0.4, generator=generator)
    return model


def batch_of(ids):
    count = len(ids)
    rows = torch.arange(count)
    return Batch(
        ids=torch.stack([rows % 6, rows % 5], 1).int(),
        numbers=torch.zeros(count, 0),
        row=rows,
        route=Route.hard(torch.tensor(ids), 3),
    )


def shapes(module):
    return {
        name: tuple(parameter.shape)
        for name, parameter in module.named_parameters()
        if name.endswith("weight")
    }


def test_by_default_two_levels_of_one_expert_per_domain_and_one_shared():
    model = model_of(ple())
    assert shapes(model.backbone.tower) == {
        "levels.0.specific.0.0.linear.weight": (3, 7, 8),
        "levels.0.specific.0.1.linear.weight": (3, 6, 7),
        "levels.0.shared.0.0.linear.weight": (7, 8),
        "levels.0.shared.0.1.linear.weight": (6, 7),
        "levels.0.gate.linear.weight": (3, 2, 8),
        "levels.0.shared_gate.linear.weight": (4, 8),
        "last.specific.0.0.linear.weight": (3, 7, 6),
        "last.specific.0.1.linear.weight": (3, 6, 7),
        "last.shared.0.0.linear.weight": (7, 6),
        "last.shared.0.1.linear.weight": (6, 7),
        "last.gate.linear.weight": (3, 2, 6),
        "towers.0.linear.weight": (3, 5, 6),
    }
    assert shapes(model.head) == {"weight": (3, 1, 5)}


def hand_level(*, last):
    """Inputs of width 2, experts of one unit, gates whose softmax is simple at x = (1, 2)."""
    plain = MLP(2, (1, 1))
    plan = Plan(plain=plain, domains=2, generator=torch.Generator())
    level = Level(plan, 2, ple(expert_sizes=(1,)), last=last).double()
    weights = {
        "specific.0.0.linear.weight": [[[1.0, 0.0]], [[0.0, 1.0]]],  # a: x_0, b: x_1
        "shared.0.0.linear.weight": [[1.0, 1.0]],  # x_0 + x_1
        "gate.linear.weight": [[[math.log(3), 0.0], [0.0, 0.0]], [[0.0, 0.0], [math.log(3), 0.0]]],
    }
    if not last:
        weights["shared_gate.linear.weight"] = [[0.0, 0.0], [math.log(2), 0.0], [0.0, 0.0]]
    with torch.no_grad():
        for name, value in weights.items():
            level.get_parameter(name).copy_(torch.tensor(value))
    return level


def test_the_gates_worked_by_hand():
    """x = (1, 2): a's own expert gives 1, b's 2, the shared one 3. a weighs its own 3 : 1, so
    3/4 · 1 + 1/4 · 3; b weighs 1 : 3, so 1/4 · 2 + 3/4 · 3."""
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.double)
    out = hand_level(last=True)(x, x, Route.hard(torch.tensor([0, 1]), 2))
    assert out.tolist() == [[pytest.approx(1.5)], [pytest.approx(2.75)]]


def test_the_shared_gate_worked_by_hand():
    """Over a's, b's and the shared expert it weighs 1 : 2 : 1, so 1/4 · 1 + 1/2 · 2 + 1/4 · 3; the
    average domain, first, has experts of mean weights, 3/2, and a gate of mean weights, 1 : 1."""
    x = torch.tensor([[1.0, 2.0]], dtype=torch.double)
    own, shared = hand_level(last=False).every(x, x, Route.hard(torch.tensor([0]), 2))
    assert shared.tolist() == [[pytest.approx(2.0)]]
    assert own[0, 1:].tolist() == [[pytest.approx(1.5)], [pytest.approx(2.75)]]
    assert own[0, 0].tolist() == [pytest.approx((1.5 + 3) / 2)]


def test_one_level_has_no_shared_gate():
    """CGC."""
    options = {"specific": 2, "shared": 3, "expert_sizes": (6,), "gate_sizes": (4,)}
    tower = model_of(ple(levels=1, tower_sizes=(), **options)).backbone.tower
    expected = {f"last.specific.{k}.0.linear.weight": (3, 6, 8) for k in range(2)}
    expected |= {f"last.shared.{k}.0.linear.weight": (6, 8) for k in range(3)}
    expected |= {
        "last.gate.hidden.0.linear.weight": (3, 4, 8),
        "last.gate.linear.weight": (3, 5, 4),
    }
    assert shapes(tower) == expected
    assert tower.out_features == 6


def test_the_shared_gate_weighs_the_experts_of_all_domains():
    """3 domains x 2 of their own + 4 shared, with a hidden layer as the other gates."""
    tower = model_of(ple(levels=3, specific=2, shared=4, gate_sizes=(9,))).backbone.tower
    assert len(tower.levels) == 2
    for level, width in zip(tower.levels, (8, 6), strict=True):
        assert shapes(level.shared_gate) == {
            "hidden.0.linear.weight": (9, width),
            "linear.weight": (10, 9),
        }
    assert tower.last.shared_gate is None


def test_a_row_trains_the_experts_of_all_domains_but_for_the_last_level():
    """Through the shared gate; gates and towers of other domains are not on a row's path."""
    model = active(model_of(ple(levels=2))).train()
    model(batch_of([1] * 8)).sum().backward()
    for name, parameter in model.backbone.tower.named_parameters():
        reached = parameter.grad.flatten(1).any(1) if parameter.dim() > 1 else parameter.grad.any()
        if ".shared" in name:
            assert reached.any(), name
        elif name.startswith("levels.0.specific"):
            assert reached.tolist() == [True, True, True], name
        else:
            assert reached.tolist() == [False, True, False], name


def test_with_three_levels_a_row_trains_the_first_gates_of_all_domains():
    """On the second level the shared path mixes experts that see their own domains' outputs."""
    model = active(model_of(ple(levels=3))).train()
    model(batch_of([1] * 8)).sum().backward()
    tower = model.backbone.tower
    for gate, expected in (
        (tower.levels[0].gate, [True, True, True]),
        (tower.levels[1].gate, [False, True, False]),
        (tower.last.gate, [False, True, False]),
    ):
        assert gate.linear.weight.grad.flatten(1).any(1).tolist() == expected


def test_rows_of_no_domain_have_the_mean_of_the_domains_weights():
    """A model whose domains all have the mean weights scores any row as this one scores those."""
    model = active(model_of(ple(specific=2), batch_norm=True)).double().eval()
    average = copy.deepcopy(model)
    with torch.no_grad():
        tensors = [*average.named_parameters(), *average.named_buffers()]
        for name, tensor in tensors:
            own = any(part in name for part in (".specific.", ".gate.", ".towers.", "head."))
            if own:
                tensor.copy_(tensor.mean(0, keepdim=True).expand_as(tensor))
        # the shared path of a row mixes the true experts of all domains, in both models
        average.backbone.tower.levels[0] = model.backbone.tower.levels[0]
        found = model(batch_of([-1] * 8))
        torch.testing.assert_close(average(batch_of([-1] * 8)), found, atol=1e-12, rtol=0)


def test_the_recipes():
    assert [stage.name for stage in ple().stages(Stage(name=""), norm=True)] == ["train"]
    tuned = ple(recipe="tuned").stages(Stage(name=""), norm=True)
    assert [stage.name for stage in tuned] == ["train", "retrain"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": 0}, "greater than 0"),
        ({"specific": 0}, "greater than 0"),
        ({"shared": 0}, "greater than 0"),
        ({"expert_sizes": ()}, "at least 1 item"),
        ({"experts": 3}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        ple(**options)
