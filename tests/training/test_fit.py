"""The loop against plain torch loops, and what it promises about what it keeps."""

import copy
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from loractr.adapters.mlora import EXPERTS
from loractr.batch import Bag, Batch, Route
from loractr.data.order import balanced, clustered, domain_sequential, shuffled
from loractr.errors import (
    ConfigError,
    DataError,
    TrainingError,
    UnknownDomainError,
    UsageError,
)
from loractr.schema import Schema
from loractr.stage import Sampling, Stage
from loractr.training import fit, optimizer
from loractr.training.events import StageResult, StageStarted, Stepped, Validated
from loractr.training.fit import History

SEED = 3


def stage(**settings):
    options = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "patience": 2}
    return Stage(**({"name": "s"} | options | settings))


def batch_of(rows, index, domains):
    """A batch made row by row, unsorted."""
    values, offsets = rows.sequences["tags"]
    bags = [values[offsets[n] : offsets[n + 1]] for n in index]
    edges = np.concatenate([[0], np.cumsum([len(bag) for bag in bags])])
    experts = torch.from_numpy(rows.domains[index, 0].copy())
    return Batch(
        ids=torch.from_numpy(rows.ids[index]),
        numbers=torch.from_numpy(rows.numbers[index]),
        row=torch.from_numpy(rows.row[index]),
        route=Route.hard(experts, domains),
        sequences={"tags": Bag(torch.from_numpy(np.concatenate(bags)), torch.from_numpy(edges))},
    )


def scores_of(model, rows, domains=3):
    model.eval()
    with torch.no_grad():
        return model(batch_of(rows, np.arange(len(rows)), domains)).numpy()


def judge(model, rows, select="mean_auc"):
    """The selection metric by scikit-learn, larger is better."""
    scores, domain = scores_of(model, rows), rows.domains[:, 0]
    if select == "pooled_auc":
        return roc_auc_score(rows.label, scores)
    if select == "log_loss":
        return -log_loss(rows.label, 1 / (1 + np.exp(-scores)))
    per = [roc_auc_score(rows.label[domain == d], scores[domain == d]) for d in np.unique(domain)]
    return np.average(per, weights=np.bincount(domain) if select == "wauc" else None)


def by_hand(model, data, settings, order=None):
    """The same fit as a plain loop: the best model, and [(epoch, value)] of its validations."""
    model = copy.deepcopy(model)
    rows = data.train
    order = order or (lambda seed: shuffled(len(rows), settings.batch_size, seed))
    weights = dict(model.named_parameters())
    groups = [
        {
            "params": [p for n, p in weights.items() if n.startswith("embedding.")],
            "lr": settings.embedding_learning_rate or settings.learning_rate,
        },
        {"params": [p for n, p in weights.items() if not n.startswith("embedding.")]},
    ]
    kind = torch.optim.AdamW if settings.decoupled else torch.optim.Adam
    adam = kind(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    rates = [group["lr"] for group in adam.param_groups]
    average, seen = copy.deepcopy(model), []
    best, best_value, best_epoch = None, -math.inf, 0.0
    if settings.keep_start:
        best, best_value = copy.deepcopy(model), judge(model, data.validation, settings.select)
        seen.append((0.0, best_value))
    batches = len(order((SEED, 0, 0)))
    last = math.ceil(settings.epochs * batches)
    for done in range(last):
        index = order((SEED, 0, done // batches))[done % batches]
        model.train()
        p = torch.sigmoid(model(batch_of(rows, index, 3)))
        label = torch.from_numpy(rows.label[index]).double()
        w = np.ones(len(index)) if rows.weight is None else rows.weight[index]
        w = torch.from_numpy(w).double()
        losses = -(label * p.log() + (1 - label) * (1 - p).log())
        adam.zero_grad()
        ((losses * w).sum() / w.sum()).backward()
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        epoch = done / batches
        warm = epoch / settings.warmup if epoch < settings.warmup else None
        left = (epoch - settings.warmup) / (settings.epochs - settings.warmup)
        course = 0.5 + 0.5 * math.cos(math.pi * left) if settings.decay == "cosine" else 1.0
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * (course if warm is None else warm)
        adam.step()
        keep = min(settings.ema or 0.0, (2 + done) / (11 + done))
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.data = keep * mean.data + (1 - keep) * value.data
        every = batches * settings.validate_every
        if math.floor((done + 1) / every) > math.floor(done / every) or done + 1 == last:
            value = judge(average, data.validation, settings.select)
            seen.append(((done + 1) / batches, value))
            if value > best_value:
                best, best_value, best_epoch = copy.deepcopy(average), value, (done + 1) / batches
            elif (done + 1) / batches - best_epoch >= settings.patience:
                break
    return best, seen


CASES = {
    "plain": {},
    "without_start": {"keep_start": False},
    "decay": {"weight_decay": 0.01},
    "decoupled": {"weight_decay": 0.3, "decoupled": True},
    "tables": {"embedding_learning_rate": 0.005},
    "wauc": {"select": "wauc"},
    "pooled": {"select": "pooled_auc"},
    "log_loss": {"select": "log_loss"},
    "all": {
        "weight_decay": 0.01,
        "clip_norm": 0.3,
        "ema": 0.9,
        "warmup": 0.5,
        "decay": "cosine",
        "validate_every": 0.5,
        "patience": 0.5,
    },
}


def check(model, data, settings, order=None):
    best, seen = by_hand(model, data, settings, order)
    history = fit(model, data, [settings], seed=SEED)
    expected = dict(best.named_parameters())
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=0, msg=name)
    told = [(event.epoch, event.value) for event in history.validations]
    assert told == [(pytest.approx(epoch), pytest.approx(value)) for epoch, value in seen]
    return seen


@pytest.mark.parametrize("case", CASES)
def test_a_fit_is_a_plain_torch_loop(make_data, make_model, case):
    data = make_data()
    check(make_model(data, backbone="deepfm"), data, stage(**CASES[case]))


@pytest.mark.parametrize("case", ["plain", "all"])
def test_a_joint_fit_of_experts_and_backbone_is_a_plain_torch_loop(
    make_data, make_model, mlora, case
):
    data = make_data()
    check(make_model(data, mlora(row_scale=True)), data, stage(**CASES[case]))


def test_row_weights_count_in_the_loss_as_the_formula_says(make_data, make_model):
    data = make_data()
    weight = 3 * np.random.default_rng(1).random(len(data.train), dtype=np.float32)
    check(make_model(data), data.with_train(weight=weight), stage())


def test_the_authors_order_of_domains_can_be_asked_for(make_data, make_model):
    data = make_data()
    domains = data.train.domains[:, 0]
    settings = stage(domain_sequential=True)
    check(make_model(data), data, settings, lambda seed: domain_sequential(domains, 16, seed))


def test_domains_can_be_balanced(make_data, make_model):
    data = make_data()
    domains = data.train.domains[:, 0]
    settings = stage(sampling=Sampling(temperature=4.0))
    check(
        make_model(data), data, settings, lambda seed: balanced(domains, 16, seed, temperature=4.0)
    )


def test_batches_can_hold_few_domains(make_data, make_model):
    data = make_data()
    domains = data.train.domains[:, 0]
    settings = stage(domains_per_batch=2)
    check(make_model(data), data, settings, lambda seed: clustered(domains, 16, seed, together=2))


def joined(rows, *indices):
    return rows.take(np.concatenate(indices))


def test_a_row_of_weight_two_is_that_row_twice(make_data, make_model):
    data = make_data()
    every, heavy = np.arange(len(data.train)), np.arange(0, len(data.train), 3)
    weight = np.ones(len(data.train), np.float32)
    weight[heavy] = 2.0
    twice = replace(data, train=joined(data.train, every, heavy))
    same(make_model(data), data.with_train(weight=weight), twice)


def test_a_row_of_weight_zero_is_not_there(make_data, make_model):
    data = make_data()
    weight = np.ones(len(data.train), np.float32)
    weight[::4] = 0.0
    fewer = replace(data, train=data.train.take(np.flatnonzero(weight)))
    same(make_model(data), data.with_train(weight=weight), fewer)


def test_weights_have_no_unit(make_data, make_model):
    data = make_data()
    same(make_model(data), data.with_train(weight=np.full(len(data.train), 7.0, np.float32)), data)


def same(model, one, other):
    """Both data sets train to the same weights, in steps of all rows."""
    twin, settings = copy.deepcopy(model), stage(batch_size=1000, keep_start=False)
    fit(model, one, [settings], seed=SEED)
    fit(twin, other, [settings], seed=SEED)
    for (name, value), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-9, rtol=0, msg=name)


def test_the_best_weights_are_kept_and_not_the_last(make_data, make_model):
    """Overfitted on purpose: the last weights are much worse than the best ones."""
    data = make_data()
    model = make_model(data, batch_norm=True)
    settings = stage(epochs=12, patience=12, learning_rate=0.1, select="log_loss", keep_start=False)
    history = fit(model, data, [settings], seed=SEED)
    values = [event.value for event in history.validations]
    (result,) = history.stages
    assert max(values) > values[-1] + 0.1
    assert result.value == max(values)
    assert result.epoch == history.validations[int(np.argmax(values))].epoch
    assert judge(model, data.validation, "log_loss") == pytest.approx(max(values), abs=1e-9)


def test_a_stage_that_only_harms_keeps_its_start(make_data, make_model):
    data = make_data()
    model = make_model(data, batch_norm=True)
    fit(model, data, [stage(select="log_loss")], seed=SEED)
    before = copy.deepcopy(model.state_dict())
    wild = stage(learning_rate=1.0, select="log_loss", patience=9)
    (result,) = fit(model, data, [wild], seed=SEED).stages
    assert (result.kept_start, result.epoch) == (True, 0.0)
    assert result.value == pytest.approx(judge(model, data.validation, "log_loss"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (result,) = fit(model, data, [wild.model_copy(update={"keep_start": False})], seed=SEED).stages
    assert not result.kept_start
    assert result.epoch > 0
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_each_stage_begins_with_the_best_weights_of_the_one_before(make_data, make_model):
    data = make_data()
    model = make_model(data)
    wild = stage(name="wild", epochs=6, patience=6, learning_rate=0.3, select="log_loss")
    then = stage(name="then", select="log_loss")
    history = fit(model, data, [wild, then], seed=SEED)
    first, second = history.stages
    starts = [event for event in history.validations if event.stage == "then"]
    assert starts[0].epoch == 0
    assert starts[0].value == first.value
    assert second.value >= first.value


def test_validation_may_come_several_times_an_epoch(make_data, make_model):
    data = make_data(train=(100, 30, 30))
    settings = stage(epochs=2, batch_size=16, validate_every=0.25, patience=9)
    history = fit(make_model(data), data, [settings], seed=SEED)
    assert [event.step for event in history.validations] == [0, 3, 5, 8, 10, 13, 15, 18, 20]
    assert [event.epoch for event in history.validations] == [
        s.step / 10 for s in history.validations
    ]


def test_the_last_step_is_always_validated(make_data, make_model):
    data = make_data(train=(100, 30, 30))
    settings = stage(epochs=1.3, validate_every=1.0)
    history = fit(make_model(data), data, [settings], seed=SEED)
    assert [event.step for event in history.validations] == [0, 10, 13]


def test_an_undefined_auc_gives_way_to_the_log_loss(make_data, make_model):
    data = make_data()
    ones = np.ones_like(data.validation.label)
    data = replace(data, validation=replace(data.validation, label=ones))
    model = make_model(data)
    (result,) = fit(model, data, [stage()], seed=SEED).stages
    assert result.metric == "log_loss"
    p = 1 / (1 + np.exp(-scores_of(model, data.validation)))
    assert result.value == pytest.approx(np.log(p).mean())


def test_domains_of_one_class_are_left_out_of_the_mean(make_data, make_model):
    data = make_data()
    label = data.validation.label.copy()
    label[data.validation.domains[:, 0] == 2] = 0.0
    model = make_model(data)
    judged = replace(data.validation, label=label)
    (result,) = fit(model, replace(data, validation=judged), [stage()], seed=SEED).stages
    others = data.validation.take(np.flatnonzero(data.validation.domains[:, 0] != 2))
    assert result.metric == "mean_auc"
    assert result.value == pytest.approx(judge(model, others))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_without_validation_rows_it_trains_to_the_end_and_says_so(
    make_data, make_model, caplog, ema
):
    data = make_data()
    settings = stage(epochs=3, patience=1, ema=ema)
    model, twin = make_model(data), make_model(data)
    blind = replace(data, validation=data.validation.take(np.arange(0)))
    with caplog.at_level(logging.WARNING):
        (result,) = fit(model, blind, [settings], seed=SEED).stages
    assert "no validation rows" in caplog.text
    assert (result.value, result.epoch, result.kept_start) == (None, 3.0, False)
    seeing = settings.model_copy(update={"validate_every": 3, "keep_start": False})
    fit(twin, data, [seeing], seed=SEED)  # judged once, after the last step
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_the_same_seed_gives_the_same_weights_to_the_bit(make_data, make_model, mlora):
    data = make_data()
    settings = [stage(name="a", dropout=0.3, embedding_dropout=0.2, ema=0.9), stage(name="b")]
    states = []
    for seed in (SEED, SEED, SEED + 1):
        model = make_model(data, mlora(), batch_norm=True)
        torch.manual_seed(len(states))  # the state of the global generator must not matter
        states.append((model, fit(model, data, settings, seed=seed)))
    one, again, other = (model.state_dict() for model, _ in states)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
    assert states[0][1].validations == states[1][1].validations


def test_the_global_generators_are_left_alone(make_data, make_model):
    data = make_data()
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit(make_model(data), data, [stage(dropout=0.5)], seed=SEED)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_stages_of_one_recipe_read_the_rows_in_different_orders(make_data, make_model):
    """The second of two equal stages, from the same weights, must not repeat the first."""
    data = make_data()
    blind = replace(data, validation=data.validation.take(np.arange(0)))
    start = make_model(data)
    results = []
    for frozen_first in (False, True):
        model = copy.deepcopy(start)
        idle = stage(name="idle", epochs=1, learning_rate=1e-30)
        recipe = [idle, stage(epochs=1)] if frozen_first else [stage(epochs=1)]
        fit(model, blind, recipe, seed=SEED)
        results.append(model.head.weight.detach())
    assert not torch.allclose(*results, atol=1e-6)


def test_a_stage_may_have_the_rows_of_one_domain_only(make_data, make_model):
    data = make_data()
    model, twin = make_model(data), make_model(data)
    fit(model, data, [stage(rows=("tab", "b"))], seed=SEED)
    only = {
        split: rows.take(np.flatnonzero(rows.domains[:, 0] == 1))
        for split, rows in (("train", data.train), ("validation", data.validation))
    }
    fit(twin, replace(data, **only), [stage()], seed=SEED)
    assert all(torch.equal(v, twin.state_dict()[n]) for n, v in model.state_dict().items())


def test_a_stage_may_leave_the_experts_out(make_data, make_model, mlora):
    """route: none trains the backbone as if nothing were attached."""
    data = make_data()
    adapted, plain = make_model(data, mlora()), make_model(data)
    none = stage(route="none", trains=("*", *(f"!{glob}" for glob in EXPERTS)), weight_decay=0.01)
    history = fit(adapted, data, [none], seed=SEED)
    expected = fit(plain, data, [stage(weight_decay=0.01)], seed=SEED)
    found = {n.replace("linear.base.", "linear."): v for n, v in adapted.state_dict().items()}
    for name, value in plain.state_dict().items():
        assert torch.equal(found[name], value), name
    assert [v.value for v in history.validations] == [v.value for v in expected.validations]


def test_dropout_is_the_stages_while_it_runs_and_the_models_afterwards(make_data, make_model):
    data = make_data()
    model = make_model(data, dropout=0.1, embedding_dropout=0.2)
    rates = []

    def look(event):
        rates.append((event.stage, model.backbone.tower.get_submodule("0").dropout.p))
        rates.append((event.stage, model.embedding.dropout.p))

    stages = [
        stage(name="a", epochs=1, dropout=0.5),
        stage(name="b", epochs=1, embedding_dropout=0),
    ]
    fit(model, data, stages, seed=SEED, callbacks=[look])
    assert {("a", 0.5), ("a", 0.2), ("b", 0.1), ("b", 0.0)} <= set(rates)
    assert model.backbone.tower.get_submodule("0").dropout.p == 0.1
    assert model.embedding.dropout.p == 0.2


def test_dropout_acts_in_training_only(make_data, make_model):
    data = make_data()
    models = [make_model(data) for _ in range(2)]
    settings = stage(epochs=1, validate_every=1.0)
    histories = [
        fit(model, data, [settings.model_copy(update={"dropout": p})], seed=SEED)
        for model, p in zip(models, (0.0, 0.5), strict=True)
    ]
    first, second = (history.validations for history in histories)
    assert first[0].value == second[0].value  # the start, scored without dropout
    assert first[1].loss != second[1].loss


@pytest.mark.parametrize("backbone", ["mlp", "deepfm"])
def test_lazy_tables_train_as_torchs_sparse_adam(make_data, make_model, backbone):
    data = make_data()
    model = make_model(data, backbone=backbone)
    twin = copy.deepcopy(model)
    settings = stage(embedding_optimizer="lazy_adam", epochs=1, keep_start=False)
    history = fit(model, data, [settings], seed=SEED)
    assert history.stages[0].optimizer.startswith(
        "Adam, fused; lazy_adam on 'embedding.tables.size_4"
    )
    tables = [p for n, p in twin.named_parameters() if n.startswith("embedding.tables.")]
    others = [p for n, p in twin.named_parameters() if not n.startswith("embedding.tables.")]
    lazy, adam = torch.optim.SparseAdam(tables, lr=0.05), torch.optim.Adam(others, lr=0.05)
    epoch = shuffled(len(data.train), 16, (SEED, 0, 0))
    for number in range(len(epoch)):
        index = epoch[number]
        p = torch.sigmoid(twin(batch_of(data.train, index, 3)))
        label = torch.from_numpy(data.train.label[index]).double()
        lazy.zero_grad()
        adam.zero_grad()
        (-(label * p.log() + (1 - label) * (1 - p).log())).mean().backward()
        for table in tables:
            table.grad = table.grad.to_sparse(1)
        lazy.step()
        adam.step()
    for (name, value), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-9, rtol=0, msg=name)


def test_lazy_tables_may_train_alone(make_data, make_model):
    data = make_data()
    model = make_model(data)
    before = copy.deepcopy(model.state_dict())
    settings = stage(
        embedding_optimizer="lazy_adam", trains=("embedding.tables.*",), keep_start=False
    )
    fit(model, data, [settings], seed=SEED)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"embedding.tables.size_4.weight"}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("backbone", ["mlp", "deepfm"])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.01, "ema": 0.9, "clip_norm": 1.0}], ids=["plain", "all"]
)
def test_large_tables_train_as_small_ones_do(make_data, make_model, monkeypatch, backbone, options):
    """By rows or whole: the same weights, validations and averages, up to rounding."""
    data, settings = make_data(), stage(epochs=4, decay="cosine", **options)
    found = []
    for large in (1, 10**9):
        monkeypatch.setattr(optimizer, "LARGE", large)
        model = make_model(data, backbone=backbone)
        history = fit(model, data, [settings], seed=SEED)
        found.append((model.state_dict(), history))
        assert ("by rows, caught up, on" in history.stages[0].optimizer) == (large == 1)
    for name, value in found[0][0].items():
        torch.testing.assert_close(value, found[1][0][name], atol=1e-9, rtol=0, msg=name)
    values = [[v.value for v in history.validations] for _, history in found]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_an_unknown_id_that_no_row_trained_reads_as_the_mean_of_its_field(make_data, make_model):
    data = make_data()
    fields = tuple(
        field.model_copy(update={"unknown_rows": 0}) if field.name == "user" else field
        for field in data.schema.fields
    )
    data = replace(data, schema=data.schema.model_copy(update={"fields": fields}))
    model = make_model(data)
    for _ in range(2):  # and stays so when trained on
        fit(model, data, [stage(epochs=2, ema=0.9)], seed=SEED)
        table = model.embedding.tables["size_4"]
        users = table.weight[: data.schema.fields[0].size]
        torch.testing.assert_close(users[0], users[1:].mean(0), atol=1e-12, rtol=0)


def test_the_model_is_left_ready_for_use(make_data, make_model, mlora):
    data = make_data()
    model = make_model(data, mlora(recipe="two_stage"))
    fit(model, data, mlora(recipe="two_stage").stages(stage(epochs=1), norm=False), seed=SEED)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_events_tell_the_story_in_order(make_data, make_model):
    data = make_data()
    events = []
    history = fit(
        make_model(data),
        data,
        [stage(name="one", epochs=2), stage(name="two", epochs=1, keep_start=False)],
        seed=SEED,
        callbacks=[events.append],
    )
    assert [type(e) for e in events if isinstance(e, StageStarted | StageResult)] == [
        StageStarted,
        StageResult,
    ] * 2
    assert [e.stage for e in events] == sorted([e.stage for e in events])
    assert [e for e in events if isinstance(e, Validated)] == history.validations
    assert [e for e in events if isinstance(e, StageResult)] == history.stages
    started = events[0]
    assert started.rows == len(data.train)
    assert started.trainable == sum(p.numel() for p in make_model(data).parameters())
    steps = [e for e in events if isinstance(e, Stepped)]
    assert steps
    assert all(e.rows_per_second > 0 and math.isfinite(e.loss) for e in steps)
    first, second, *_ = history.validations
    assert (first.step, first.rows, first.loss) == (0, 0, None)
    assert second.rows == len(data.train)
    assert set(second.scores) == {"mean_auc", "wauc", "pooled_auc", "log_loss"}


def test_a_history_reads_back_as_it_was(make_data, make_model):
    data = make_data()
    history = fit(make_model(data), data, [stage(epochs=1)], seed=SEED)
    again = History()
    again.restore(history.dump())
    assert again == history


def test_no_recipe_changes_nothing(make_data, make_model):
    data = make_data()
    model = make_model(data)
    before = copy.deepcopy(model.state_dict())
    assert fit(model, data, [], seed=SEED) == History()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_schema_without_divisions_is_one_domain(make_data, make_model):
    data = make_data()
    schema = Schema(fields=data.schema.fields)

    def bare(rows):
        return replace(rows, domains=rows.domains[:, :0])

    data = replace(data, schema=schema, train=bare(data.train), validation=bare(data.validation))
    (result,) = fit(make_model(data), data, [stage(epochs=1)], seed=SEED).stages
    assert result.value is not None


@pytest.mark.parametrize(
    "order", [{"domain_sequential": True}, {"sampling": Sampling()}, {"domains_per_batch": 2}]
)
def test_an_order_by_domain_needs_a_division(make_data, make_model, order):
    data = make_data()
    data = replace(data, schema=Schema(fields=data.schema.fields))
    with pytest.raises(TrainingError, match="orders the rows by domain, but the schema has no div"):
        fit(make_model(data), data, [stage(**order)], seed=SEED)


def test_a_loss_by_domain_needs_a_division(make_data, make_model):
    data = make_data()
    data = replace(data, schema=Schema(fields=data.schema.fields))
    with pytest.raises(TrainingError, match="has loss: domain_mean, but the schema has no div"):
        fit(make_model(data), data, [stage(loss="domain_mean")], seed=SEED)


def test_a_loss_that_is_not_finite_ends_the_fit_with_what_to_do(make_data, make_model):
    data = make_data()
    numbers = data.train.numbers.copy()
    numbers[5] = np.inf
    with pytest.raises(TrainingError, match=r"stage 's': the loss is (nan|inf) at epoch") as caught:
        fit(make_model(data), data.with_train(numbers=numbers), [stage()], seed=SEED)
    assert "Fix: lower training.learning_rate" in str(caught.value)


def test_a_stage_without_rows_is_refused(make_data, make_model):
    data = make_data()
    with pytest.raises(DataError, match="stage 's' has no training rows"):
        fit(make_model(data), replace(data, train=data.train.take(np.arange(0))), [stage()], seed=1)
    only_a = data.train.take(np.flatnonzero(data.train.domains[:, 0] == 0))
    with pytest.raises(DataError, match=r"no training rows \(rows=\('tab', 'c'\)\)"):
        fit(make_model(data), replace(data, train=only_a), [stage(rows=("tab", "c"))], seed=1)


def test_rows_of_what_does_not_exist_are_refused_by_name(make_data, make_model):
    data = make_data()
    with pytest.raises(UnknownDomainError, match="'tab' has no domain 'z'; it was fitted on 'a'"):
        fit(make_model(data), data, [stage(rows=("tab", "z"))], seed=SEED)
    with pytest.raises(UsageError, match="there is no division 'hour'; the schema has 'tab'"):
        fit(make_model(data), data, [stage(rows=("hour", "a"))], seed=SEED)
    with pytest.raises(UsageError, match="there is no division 'hour'"):
        fit(make_model(data), data, [stage()], seed=SEED, division="hour")


def test_settings_that_exclude_each_other_are_refused_before_the_first_stage(make_data, make_model):
    data = make_data()
    events = []
    bad = stage(name="bad", embedding_optimizer="rowwise_adagrad", weight_decay=0.1)
    told = "stage 'bad': embedding_optimizer: rowwise_adagrad moves only the rows of a batch"
    with pytest.raises(ConfigError, match=told):
        fit(make_model(data), data, [stage(), bad], seed=SEED, callbacks=[events.append])
    assert not events
