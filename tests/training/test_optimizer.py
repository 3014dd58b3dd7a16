"""The optimisers against torch's own, fed the same gradients, and against formulas as loops."""

import math

import pytest
import torch
from torch import nn

from loractr.errors import TrainingError
from loractr.stage import Stage
from loractr.training.expert_adam import ExpertAdam
from loractr.training.optimizer import (
    WholeAdam,
    average_decay,
    rate_factor,
)

SHAPES = {
    "backbone.weight": (3, 2),
    "embedding.tables.size_2.weight": (6, 2),
    "embedding.numbers_first_order": (4,),
    "head.bias": (1,),
}
STEPS = 12
BATCHES = 4  # steps of an epoch


def stage(**settings):
    return Stage(name="s", **({"learning_rate": 0.1, "epochs": 5} | settings))


def draw(shape, *seed):
    random = torch.Generator().manual_seed(hash(seed))
    return torch.randn(shape, generator=random, dtype=torch.double)


def parameters(shapes=SHAPES):
    return {name: nn.Parameter(draw(shape, 1, n)) for n, (name, shape) in enumerate(shapes.items())}


def gradients(step, shapes=SHAPES):
    return {name: draw(shape, 2, step, n) for n, (name, shape) in enumerate(shapes.items())}


def train(optimizer, trained, steps=range(STEPS), shapes=SHAPES):
    for step in steps:
        optimizer.zero_grad()
        for name, gradient in gradients(step, shapes).items():
            trained[name].grad = gradient
        optimizer.step(step / BATCHES)


def reference(settings, steps=STEPS):
    """torch's own optimiser, clipped and scheduled by hand: final weights and their average."""
    trained, average = parameters(), parameters()
    adam = torch.optim.AdamW if settings.decoupled else torch.optim.Adam
    own_rate = settings.embedding_learning_rate or settings.learning_rate
    own_decay = settings.embedding_weight_decay
    own_decay = settings.weight_decay if own_decay is None else own_decay
    adams = {
        name: adam(
            [value],
            lr=own_rate if "embedding" in name else settings.learning_rate,
            weight_decay=own_decay if "embedding" in name else settings.weight_decay,
        )
        for name, value in trained.items()
    }
    rates = {name: one.param_groups[0]["lr"] for name, one in adams.items()}
    for step in range(steps):
        given = gradients(step)
        norm = math.sqrt(sum(float(g.square().sum()) for g in given.values()))
        clip = min(1.0, (settings.clip_norm or math.inf) / (norm + 1e-6))
        for name, one in adams.items():
            trained[name].grad = given[name] * clip
            one.param_groups[0]["lr"] = rates[name] * course(settings, step / BATCHES)
            one.step()
        for name, value in trained.items():
            t = step + 1
            keep = min(settings.ema or 0.0, (1 + t) / (10 + t))
            average[name].data = keep * average[name].data + (1 - keep) * value.data
    return trained, average


def course(settings, epoch):
    """Warm-up from 0 to 1, then down to 0 at the last epoch, straight or along a cosine."""
    if epoch < settings.warmup:
        return epoch / settings.warmup
    done = (epoch - settings.warmup) / (settings.epochs - settings.warmup)
    return {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": (1.0 + math.cos(math.pi * done)) / 2.0,
    }[settings.decay]


SETTINGS = {
    "plain": {},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled": True},
    "tables_learn_slower": {"embedding_learning_rate": 0.01},
    "tables_do_not_decay": {"weight_decay": 0.1, "embedding_weight_decay": 0.0},
    "only_tables_decay": {"embedding_weight_decay": 0.2, "decoupled": True},
    "clipped": {"clip_norm": 1.5},
    "hardly_clipped": {"clip_norm": 1e6},
    "warm_up": {"warmup": 1.5},
    "linear": {"decay": "linear"},
    "cosine": {"decay": "cosine", "warmup": 0.5},
    "average": {"ema": 0.9},
    "long_average": {"ema": 0.25},
    "all": {
        "weight_decay": 0.1,
        "embedding_weight_decay": 0.02,
        "embedding_learning_rate": 0.03,
        "clip_norm": 2.0,
        "warmup": 0.75,
        "decay": "linear",
        "ema": 0.8,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_whole_adam_is_torchs_adam_clipped_scheduled_and_averaged(name):
    settings = stage(**SETTINGS[name])
    trained = parameters()
    optimizer = WholeAdam(settings, trained, [])
    train(optimizer, trained)
    weights, average = reference(settings)
    for key, value in trained.items():
        torch.testing.assert_close(value, weights[key], atol=1e-12, rtol=0)
    assert (optimizer.average is None) == (settings.ema is None)
    for key, value in (optimizer.average or {}).items():
        torch.testing.assert_close(value, average[key].data, atol=1e-12, rtol=0)


def test_adam_is_the_formula_of_its_paper():
    trained = parameters()
    train(WholeAdam(stage(), trained, []), trained)
    for name, value in parameters().items():
        first, second = torch.zeros_like(value), torch.zeros_like(value)
        for t in range(1, STEPS + 1):
            gradient = gradients(t - 1)[name]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            unbiased = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
            value.data -= 0.1 * unbiased
        torch.testing.assert_close(trained[name], value, atol=1e-12, rtol=0)


def test_a_parameter_without_a_gradient_stays_as_it_is():
    trained = parameters()
    before = trained["head.bias"].detach().clone()
    optimizer = WholeAdam(stage(weight_decay=0.5), trained, [])
    optimizer.zero_grad()
    trained["backbone.weight"].grad = torch.ones_like(trained["backbone.weight"])
    optimizer.step(0.0)
    assert torch.equal(trained["head.bias"], before)


@pytest.mark.parametrize(
    ("settings", "epochs", "factors"),
    [
        ({}, [0, 3, 99], [1, 1, 1]),
        ({"warmup": 2}, [0, 0.5, 1, 2, 3], [0, 0.25, 0.5, 1, 1]),
        ({"decay": "linear", "epochs": 4}, [0, 1, 2, 4, 5], [1, 0.75, 0.5, 0, 0]),
        ({"decay": "linear", "epochs": 5, "warmup": 1}, [0.5, 1, 3, 5], [0.5, 1, 0.5, 0]),
        ({"decay": "cosine", "epochs": 4}, [0, 1, 2, 4], [1, 0.5 + 0.5**1.5, 0.5, 0]),
    ],
)
def test_the_learning_rate_follows_its_course(settings, epochs, factors):
    found = [rate_factor(stage(**settings), epoch) for epoch in epochs]
    assert found == pytest.approx(factors, abs=1e-12)


def test_the_average_begins_short_and_reaches_its_length():
    """min(ema, (1 + t) / (10 + t))"""
    assert average_decay(0.99, 1) == pytest.approx(2 / 11)
    assert average_decay(0.99, 8) == pytest.approx(0.5)
    assert average_decay(0.99, 890) == pytest.approx(0.99)
    assert average_decay(0.99, 10**6) == 0.99
    assert average_decay(0.1, 1) == 0.1


@pytest.mark.parametrize("kind", ["whole", "experts"])
def test_exchanging_weights_and_average_twice_changes_nothing(kind):
    shapes = SHAPES if kind == "whole" else BANK
    trained = parameters(shapes)
    make = WholeAdam(stage(ema=0.5), trained, []) if kind == "whole" else None
    optimizer = make or ExpertAdam(stage(ema=0.5), trained, EXPERTS)
    if kind == "whole":
        train(optimizer, trained, range(3))
    else:
        train_experts(optimizer, trained, [[0, 2], [1, 2]])
    weights = {name: value.detach().clone() for name, value in trained.items()}
    averages = {name: value.clone() for name, value in optimizer.average.items()}
    optimizer.swap_average()
    assert all(torch.equal(value, averages[name]) for name, value in trained.items())
    assert any(not torch.equal(value, weights[name]) for name, value in trained.items())
    optimizer.swap_average()
    assert all(torch.equal(value, weights[name]) for name, value in trained.items())
    assert all(torch.equal(value, averages[name]) for name, value in optimizer.average.items())


EXPERTS = 3
BANK = {"t.down": (EXPERTS, 2, 3), "t.up": (EXPERTS, 4, 2), "t.offset": (EXPERTS, 4)}
TURNS = [[0, 1], [2, 0], [1], [0, 2, 1], [0], [0, 1]]
"""Which experts take part in each step: 0 in five of them, 1 in four, 2 in two."""


def train_experts(optimizer, trained, turns, done=()):
    """Steps of the named experts; every expert's own gradients follow its own count of steps."""
    count = [sum(turn.count(e) for turn in done) for e in range(EXPERTS)]
    for turn in turns:
        optimizer.zero_grad()
        for name, value in trained.items():
            value.grad = torch.zeros_like(value)
            for e in turn:
                value.grad[e] = gradients(100 * e + count[e], BANK)[name][e]
        epochs = torch.tensor([count[e] / BATCHES for e in turn], dtype=torch.double)
        optimizer.step(torch.tensor(turn), epochs)
        for e in turn:
            count[e] += 1


@pytest.mark.parametrize("name", [name for name in SETTINGS if "tables" not in name])
def test_every_expert_gets_the_steps_of_an_optimiser_of_its_own(name):
    settings = stage(**{k: v for k, v in SETTINGS[name].items() if "embedding" not in k})
    trained = parameters(BANK)
    optimizer = ExpertAdam(settings, trained, EXPERTS)
    train_experts(optimizer, trained, TURNS)
    adam = torch.optim.AdamW if settings.decoupled else torch.optim.Adam
    for e in range(EXPERTS):
        mine = {n: nn.Parameter(p.data[e].clone()) for n, p in parameters(BANK).items()}
        average = {n: p.data.clone() for n, p in mine.items()}
        own = adam(mine.values(), lr=0.1, weight_decay=settings.weight_decay)
        for step in range(sum(turn.count(e) for turn in TURNS)):
            for n, p in mine.items():
                p.grad = gradients(100 * e + step, BANK)[n][e]
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(mine.values(), settings.clip_norm)
            own.param_groups[0]["lr"] = 0.1 * course(settings, step / BATCHES)
            own.step()
            keep = min(settings.ema or 0.0, (step + 2) / (step + 11))
            average = {n: keep * average[n] + (1 - keep) * mine[n].data for n in mine}
        for n, value in trained.items():
            torch.testing.assert_close(value[e].data, mine[n].data, atol=1e-12, rtol=0)
            if settings.ema is not None:
                torch.testing.assert_close(optimizer.average[n][e], average[n], atol=1e-12, rtol=0)


def test_an_expert_that_takes_no_part_does_not_move_at_all():
    """Not by weight decay, not by momentum, not in its average."""
    trained = parameters(BANK)
    settings = stage(weight_decay=0.1, ema=0.9, decay="linear", clip_norm=1.0)
    optimizer = ExpertAdam(settings, trained, EXPERTS)
    train_experts(optimizer, trained, [[0, 1, 2]])

    def of_expert_1():
        state = {**trained, **optimizer.state()}
        return {name: value.detach()[1].clone() for name, value in state.items()}

    before = of_expert_1()
    train_experts(optimizer, trained, [[0, 2], [2]], done=[[0, 1, 2]])
    after = of_expert_1()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("shape", [(4, 2), (2, EXPERTS), ()])
def test_a_shared_weight_cannot_train_per_expert(shape):
    trained = {
        "t.down": nn.Parameter(torch.zeros(EXPERTS, 2)),
        "w": nn.Parameter(torch.zeros(shape)),
    }
    with pytest.raises(TrainingError, match=r"independently, but 'w' is shared"):
        ExpertAdam(stage(), trained, EXPERTS)


@pytest.mark.parametrize("kind", ["whole", "experts"])
def test_a_restored_optimiser_goes_on_to_the_same_bits(kind):
    settings = stage(ema=0.9, warmup=1.0, decay="cosine")

    def make(trained):
        if kind == "experts":
            return ExpertAdam(settings, trained, EXPERTS)
        return WholeAdam(settings, trained, [])

    def go(optimizer, trained, first, last):
        if kind == "experts":
            train_experts(optimizer, trained, TURNS[first:last], done=TURNS[:first])
        else:
            train(optimizer, trained, range(first, last))

    shapes = BANK if kind == "experts" else SHAPES
    whole = parameters(shapes)
    optimizer = make(whole)
    go(optimizer, whole, 0, 6)
    final = optimizer.state()

    first = parameters(shapes)
    before = make(first)
    go(before, first, 0, 3)
    saved = {name: value.clone() for name, value in before.state().items()}
    second = {name: nn.Parameter(value.detach().clone()) for name, value in first.items()}
    after = make(second)
    after.restore(saved)
    go(after, second, 3, 6)
    assert all(torch.equal(whole[name], second[name]) for name in shapes)
    assert final.keys() == after.state().keys()
    assert all(torch.equal(value, after.state()[name]) for name, value in final.items())
