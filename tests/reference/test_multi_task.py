"""Shared-bottom, MMoE and PLE as whole models, against the papers' formulas row by row.

Every expected logit is a float64 loop over the model's tensors that knows only their names:
Caruana 1997; Ma et al., MMoE, KDD 2018; Tang et al., PLE, RecSys 2020.
"""

import numpy as np
import pytest
import torch

from loractr.batch import Batch, Route
from loractr.config import parse_config
from loractr.model import build
from loractr.schema import Division, Field, Schema
from reference.world import away_from_its_start

DOMAINS = 3
SCHEMA = Schema(
    fields=(Field(name="user", size=9, unknown_rows=1), Field(name="item", size=7, unknown_rows=1)),
    divisions=(Division(name="tab", column="tab", domains=("a", "b", "c")),),
)
IDS = torch.tensor([1, -1, 0, 2, 0, 2, 1, -1])


def model_of(method, *, batch_norm=True, hidden_sizes=(6, 5), **options):
    """A model of backbone mlp in evaluation, all its tensors away from their start."""
    sizes = {"embedding_size": 3, "hidden_sizes": hidden_sizes, "batch_norm": batch_norm}
    config = parse_config(
        {
            "data": {"source": "synthetic"},
            "model": {"backbone": "mlp", **sizes},
            "method": {"name": method, **options},
        }
    )
    return away_from_its_start(build(config, SCHEMA).double().eval())


def batch_of(ids=IDS):
    rng = np.random.default_rng(0)
    count = len(ids)
    fields = np.stack([rng.integers(0, 9, count), rng.integers(0, 7, count)], 1)
    return Batch(
        ids=torch.from_numpy(fields.astype(np.int32)),
        numbers=torch.zeros(count, 0),
        row=torch.arange(count),
        route=Route.hard(ids, DOMAINS),
    )


class Tensors:
    """A model's tensors by name, as numpy: of all domains, or a domain's own, -1 their mean."""

    def __init__(self, model):
        state = model.state_dict()
        self.values = {name: value.numpy() for name, value in state.items()}

    def has(self, name):
        return any(key.startswith(name) for key in self.values)

    def of(self, name, domain=None):
        """None: shared by all domains."""
        value = self.values[name]
        if domain is None:
            return value
        return value.mean(0) if domain < 0 else value[domain]

    def mlp(self, name, x, domain=None):
        layer = 0
        while self.has(f"{name}.{layer}.linear."):
            at = f"{name}.{layer}"
            x = self.of(f"{at}.linear.weight", domain) @ x + self.of(f"{at}.linear.bias", domain)
            if self.has(f"{at}.norm."):
                variance = self.of(f"{at}.norm.running_var", domain)
                x = (x - self.of(f"{at}.norm.running_mean", domain)) / np.sqrt(variance + 1e-5)
                x = self.of(f"{at}.norm.weight", domain) * x + self.of(f"{at}.norm.bias", domain)
            x = np.where(x > 0, x, 0)
            layer += 1
        return x

    def gate(self, name, x, domain=None):
        """softmax(W MLP(x))"""
        scores = self.of(f"{name}.linear.weight", domain) @ self.mlp(f"{name}.hidden", x, domain)
        powers = np.exp(scores)
        return powers / powers.sum()

    def head(self, h, domain):
        return float(self.of("head.weight", domain)[0] @ h + self.of("head.bias", domain)[0])

    def count(self, name):
        """Number of the modules `name.0`, `name.1`, …"""
        below = [key.removeprefix(f"{name}.") for key in self.values if key.startswith(f"{name}.")]
        return len({key.split(".")[0] for key in below})


T = "backbone.tower"


def shared_bottom(tensors, x, domain):
    h = tensors.mlp(f"{T}.bottom", x)
    return tensors.head(tensors.mlp(f"{T}.towers", h, domain), domain)


def mmoe(tensors, x, domain):
    weights = tensors.gate(f"{T}.gate", x, domain)
    assert len(weights) == tensors.count(f"{T}.experts")
    h = sum(w * tensors.mlp(f"{T}.experts.{e}", x) for e, w in enumerate(weights))
    return tensors.head(tensors.mlp(f"{T}.towers", h, domain), domain)


def ple(tensors, x, domain):
    """The row's own path needs the paths of all domains: the shared gate mixes all experts."""
    paths = (-1, 0, 1, 2)
    own, shared = dict.fromkeys(paths, x), x
    above = [f"{T}.levels.{j}" for j in range(tensors.count(f"{T}.levels"))]
    for at in [*above, f"{T}.last"]:
        specific = {
            d: [
                tensors.mlp(f"{at}.specific.{k}", own[d], d)
                for k in range(tensors.count(f"{at}.specific"))
            ]
            for d in paths
        }
        common = [
            tensors.mlp(f"{at}.shared.{k}", shared) for k in range(tensors.count(f"{at}.shared"))
        ]
        gates = {d: tensors.gate(f"{at}.gate", own[d], d) for d in paths}
        if at != f"{T}.last":
            all_experts = [*specific[0], *specific[1], *specific[2], *common]
            shared = combine(tensors.gate(f"{at}.shared_gate", shared), all_experts)
        own = {d: combine(gates[d], [*specific[d], *common]) for d in paths}
    return tensors.head(tensors.mlp(f"{T}.towers", own[domain], domain), domain)


def combine(weights, experts):
    assert len(weights) == len(experts)
    return sum(w * expert for w, expert in zip(weights, experts, strict=True))


CASES = [
    (shared_bottom, {}),
    (shared_bottom, {"bottom_sizes": [7, 4]}),
    (shared_bottom, {"bottom_sizes": [7], "tower_sizes": []}),
    (mmoe, {}),
    (mmoe, {"experts": 2, "expert_sizes": [7, 4], "tower_sizes": [3, 2]}),
    (mmoe, {"experts": 5, "gate_sizes": [4], "tower_sizes": []}),
    (ple, {}),
    (ple, {"levels": 1, "specific": 2, "gate_sizes": [4]}),
    (ple, {"levels": 2, "specific": 2, "shared": 3, "expert_sizes": [7, 4]}),
    (ple, {"levels": 4, "specific": 2, "shared": 1, "gate_sizes": [4, 3]}),
]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("formula", "options"), CASES)
def test_every_logit_of_a_mixed_batch_is_the_papers_formula(formula, options, batch_norm):
    model, batch = model_of(formula.__name__, batch_norm=batch_norm, **options), batch_of()
    with torch.no_grad():
        x, found = model.embedding(batch).flat().numpy(), model(batch).numpy()
    tensors = Tensors(model)
    expected = [formula(tensors, row, domain) for row, domain in zip(x, IDS.tolist(), strict=True)]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("formula", "options"), CASES)
def test_gradients_are_those_of_finite_differences(formula, options):
    """Of the whole model in training, one random direction through all weights."""
    model, batch = model_of(formula.__name__, **options).train(), batch_of()
    parameters = list(model.parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(8)
    direction = [torch.randn(p.shape, generator=generator).double() for p in parameters]

    def loss(step):
        model.load_state_dict(state)
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(along, alpha=step)
        return model(batch).square().sum()

    slope = (loss(1e-6) - loss(-1e-6)).item() / 2e-6
    gradients = torch.autograd.grad(loss(0.0), parameters)
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    assert slope == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("formula", "options"), CASES)
def test_no_parameter_is_idle(formula, options):
    """All weights count for some row: each gets a gradient in a batch of all domains."""
    model, batch = model_of(formula.__name__, **options).train(), batch_of()
    model(batch).square().sum().backward()
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert idle == []


@pytest.mark.parametrize(("formula", "options"), CASES)
def test_a_row_is_scored_alone_as_in_a_mixed_batch(formula, options):
    model, batch = model_of(formula.__name__, **options), batch_of()
    with torch.no_grad():
        together = model(batch)
        for n in range(len(IDS)):
            one = Batch(
                ids=batch.ids[n : n + 1],
                numbers=batch.numbers[n : n + 1],
                row=batch.row[n : n + 1],
                route=Route.hard(IDS[n : n + 1], DOMAINS),
            )
            torch.testing.assert_close(model(one)[0], together[n], atol=1e-10, rtol=0)
