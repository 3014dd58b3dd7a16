"""Stacked independent experts against D separate fits, each a plain torch loop (decision 4)."""

import copy
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.func import functional_call

from loractr.adapters.low_rank import EXPERT_PARAMETERS
from loractr.adapters.mlora import EXPERTS
from loractr.batch import Bag, Batch, Route
from loractr.data.order import shuffled
from loractr.errors import TrainingError
from loractr.schema import Division
from loractr.stage import Stage
from loractr.training import fit, independent
from loractr.training.checkpoint import CheckpointFolder
from loractr.training.events import Validated
from loractr.training.optimizer import stacks_of

SEED = 5


def adapt(**settings):
    options = {"epochs": 6, "batch_size": 8, "learning_rate": 0.1, "patience": 1.5}
    return Stage(name="adapt", trains=EXPERTS, independent=True, **(options | settings))


@pytest.fixture
def trained_backbone(make_data, make_model, mlora):
    """Data of three domains of unequal size, and a model whose backbone is no longer fresh."""

    def make(**counts):
        data = make_data(**({"train": (60, 25, 11), "validation": (40, 30, 20)} | counts))
        model = make_model(data, mlora(row_scale=True))
        random = torch.Generator().manual_seed(9)
        for name, parameter in model.named_parameters():
            if name not in experts_of(model):
                noise = torch.randn(parameter.shape, generator=random, dtype=torch.double)
                parameter.data += 0.3 * noise
        return data, model

    return make


def experts_of(model):
    kinds = ("down", "up", "row_scale", "offset")
    return {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] in kinds}


def batch_of(rows, index, domain):
    """A batch made row by row, all of one domain."""
    values, offsets = rows.sequences["tags"]
    bags = [values[offsets[n] : offsets[n + 1]] for n in index]
    edges = np.concatenate([[0], np.cumsum([len(bag) for bag in bags])])
    return Batch(
        ids=torch.from_numpy(rows.ids[index]),
        numbers=torch.from_numpy(rows.numbers[index]),
        row=torch.from_numpy(rows.row[index]),
        route=Route.hard(torch.full((len(index),), domain)),
        sequences={"tags": Bag(torch.from_numpy(np.concatenate(bags)), torch.from_numpy(edges))},
    )


def separate_fit(model, data, domain, settings):
    """Train one expert by itself: (its best weights, [(epoch, AUC)] of its validations)."""
    model = copy.deepcopy(model).eval()
    whole = {name: value.detach() for name, value in experts_of(model).items()}
    mine = {name: value[domain].clone().requires_grad_() for name, value in whole.items()}
    average = {name: value.detach().clone() for name, value in mine.items()}

    def logits(rows, index, weights):
        full = {
            name: torch.cat([value[:domain], weights[name][None], value[domain + 1 :]])
            for name, value in whole.items()
        }
        return functional_call(model, full, (batch_of(rows, index, domain),))

    def auc(weights):
        with torch.no_grad():
            scores = logits(data.validation, judged, weights)
        return roc_auc_score(data.validation.label[judged], scores)

    own, judged = (
        np.flatnonzero(rows.domains[:, 0] == domain) for rows in (data.train, data.validation)
    )
    batches = math.ceil(len(own) / settings.batch_size)
    adam = (torch.optim.AdamW if settings.decoupled else torch.optim.Adam)(
        mine.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    seen, best, best_weights, best_epoch = [], -math.inf, None, 0.0
    if settings.keep_start:
        best, best_weights = auc(mine), {n: v.detach().clone() for n, v in mine.items()}
        seen.append((0.0, best))
    last, done = math.ceil(settings.epochs * batches), 0
    while done < last:
        order = shuffled(len(own), settings.batch_size, (SEED, 0, domain, done // batches))
        index = own[order[done % batches]]
        label = torch.from_numpy(data.train.label[index]).double()
        weight = torch.ones(len(index)) if data.train.weight is None else data.train.weight[index]
        weight = torch.as_tensor(weight).double()
        p = torch.sigmoid(logits(data.train, index, mine))
        losses = -(label * p.log() + (1 - label) * (1 - p).log())
        adam.zero_grad()
        ((losses * weight).sum() / weight.sum()).backward()
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(mine.values(), settings.clip_norm)
        epoch = done / batches
        course = 1 - (epoch - settings.warmup) / (settings.epochs - settings.warmup)
        course = course if settings.decay == "linear" else 1.0
        rate = epoch / settings.warmup if epoch < settings.warmup else course
        adam.param_groups[0]["lr"] = settings.learning_rate * rate
        adam.step()
        done += 1
        keep = min(settings.ema or 0.0, (1 + done) / (10 + done))
        average = {n: keep * average[n] + (1 - keep) * mine[n].detach() for n in mine}
        every = batches * settings.validate_every
        if math.floor(done / every) > math.floor((done - 1) / every) or done == last:
            value = auc(average)
            seen.append((done / batches, value))
            if value > best:
                best, best_epoch = value, done / batches
                best_weights = {n: v.clone() for n, v in average.items()}
            elif done / batches - best_epoch >= settings.patience:
                break
    return best_weights, seen


CASES = {
    "plain": {},
    "without_start": {"keep_start": False},
    "decay": {"weight_decay": 0.03},
    "decoupled": {"weight_decay": 0.5, "decoupled": True},
    "clipped": {"clip_norm": 0.05},
    "averaged": {"ema": 0.8},
    "scheduled": {"warmup": 0.5, "decay": "linear", "keep_start": False},
    "half_epochs": {"validate_every": 0.5, "patience": 1.0, "keep_start": False},
    "all": {
        "learning_rate": 0.05,
        "weight_decay": 0.02,
        "clip_norm": 0.1,
        "ema": 0.9,
        "warmup": 0.5,
        "decay": "linear",
        "validate_every": 0.5,
        "patience": 1.0,
    },
}


@pytest.mark.parametrize(
    ("case", "together"), [*((case, 2) for case in CASES), ("all", 1), ("plain", 16)]
)
def test_stacked_training_is_separate_training(trained_backbone, case, together):
    data, model = trained_backbone()
    settings = adapt(**CASES[case], domains_per_step=together)
    expected = [separate_fit(model, data, domain, settings) for domain in range(3)]
    events = []
    fit(model, data, [settings], seed=SEED, callbacks=[events.append])
    found, ends = experts_of(model), {seen[-1][0] for _, seen in expected}
    assert len(ends) > 1  # else the test would say nothing about domains that leave the queue
    for domain, (weights, seen) in enumerate(expected):
        for name, value in weights.items():
            torch.testing.assert_close(found[name][domain].detach(), value, atol=1e-9, rtol=0)
        told = [
            (event.epoch, event.value)
            for event in events
            if isinstance(event, Validated) and event.domain == "abc"[domain]
        ]
        assert told == [(pytest.approx(epoch), pytest.approx(value)) for epoch, value in seen]


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_experts_of_a_step_alone_train_them_as_those_of_all(
    trained_backbone, monkeypatch, case
):
    found, chosen = [], []

    def by_experts(*given):
        chosen.append(stacks_of(*given))
        return chosen[-1]

    for choose in (by_experts, lambda *_: []):
        monkeypatch.setattr(independent, "stacks_of", choose)
        data, model = trained_backbone()
        fit(model, data, [adapt(**CASES[case], domains_per_step=1)], seed=SEED)
        found.append(experts_of(model))
    assert {name.rpartition(".")[2] for name in chosen[0]} == set(EXPERT_PARAMETERS)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-12, rtol=0)


@pytest.mark.parametrize("ones", [False, True])
def test_row_weights_count_within_their_domain(trained_backbone, ones):
    data, model = trained_backbone()
    random = np.random.default_rng(2)
    weight = 5 * random.random(len(data.train), dtype=np.float32)
    data = data.with_train(weight=np.full_like(weight, 3.0) if ones else weight)
    settings = adapt(keep_start=False)
    expected = [separate_fit(model, data, domain, settings)[0] for domain in range(3)]
    fit(model, data, [settings], seed=SEED)
    for domain, weights in enumerate(expected):
        for name, value in weights.items():
            found = experts_of(model)[name][domain].detach()
            torch.testing.assert_close(found, value, atol=1e-9, rtol=0)


def test_everything_shared_stays_bit_identical(trained_backbone):
    data, model = trained_backbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, data, [adapt(weight_decay=0.1, clip_norm=0.1, ema=0.9)], seed=SEED)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in experts_of(model)), name


def test_rows_of_no_domain_take_no_part(trained_backbone):
    data, model = trained_backbone()
    other = copy.deepcopy(model)
    fit(model, data, [adapt(keep_start=False)], seed=SEED)
    extra = data.train.take(np.arange(20))
    extra = replace(extra, domains=np.full_like(extra.domains, -1), label=1 - extra.label)
    values, offsets = data.train.sequences["tags"]
    more, ends = extra.sequences["tags"]
    fields = ("ids", "numbers", "domains", "row", "label")
    joined = {f: np.concatenate([getattr(data.train, f), getattr(extra, f)]) for f in fields}
    tags = (np.concatenate([values, more]), np.concatenate([offsets, ends[1:] + offsets[-1]]))
    data = data.with_train(**joined, sequences={"tags": tags})
    fit(other, data, [adapt(keep_start=False)], seed=SEED)
    for name, value in experts_of(model).items():
        assert torch.equal(experts_of(other)[name], value)


def without(rows, domain):
    return rows.take(np.flatnonzero(rows.domains[:, 0] != domain))


@pytest.mark.parametrize("keep_start", [False, True])
def test_a_domain_without_training_rows_keeps_its_expert_as_it_is(trained_backbone, keep_start):
    data, model = trained_backbone()
    before = copy.deepcopy(experts_of(model))
    data = replace(data, train=without(data.train, 1))
    history = fit(model, data, [adapt(keep_start=keep_start, weight_decay=0.1)], seed=SEED)
    for name, value in experts_of(model).items():
        assert torch.equal(value[1], before[name][1])
        assert not torch.equal(value[2], before[name][2])
    assert history.stages[0].domains["b"]["epoch"] == 0.0


def test_an_unjudged_domain_keeps_its_start_where_the_start_is_kept(trained_backbone):
    data, model = trained_backbone()
    before = copy.deepcopy(experts_of(model))
    data = replace(data, validation=without(data.validation, 1))
    history = fit(model, data, [adapt()], seed=SEED)
    assert all(torch.equal(value[1], before[name][1]) for name, value in experts_of(model).items())
    assert history.stages[0].domains["b"] == {"epoch": 0.0, "value": None, "metric": "mean_auc"}


def test_an_unjudged_domain_trains_one_epoch_where_the_start_is_not_kept(trained_backbone):
    """Patience has no say: nothing is there to improve."""
    data, model = trained_backbone()
    data = replace(data, validation=without(data.validation, 1))
    events = []
    settings = adapt(keep_start=False, validate_every=0.25, patience=0.25)
    fit(model, data, [settings], seed=SEED, callbacks=[events.append])
    mine = [e for e in events if isinstance(e, Validated) and e.domain == "b"]
    assert [event.epoch for event in mine][-1] == 1.0
    assert {event.value for event in mine} == {None}
    assert all(value[1].abs().sum() > 0 for value in experts_of(model).values())


def test_a_domain_of_one_class_selects_by_log_loss(trained_backbone):
    data, model = trained_backbone()
    label = data.validation.label.copy()
    label[data.validation.domains[:, 0] == 1] = 1.0
    data = replace(data, validation=replace(data.validation, label=label))
    events = []
    history = fit(model, data, [adapt()], seed=SEED, callbacks=[events.append])
    metrics = {name: found["metric"] for name, found in history.stages[0].domains.items()}
    assert metrics == {"a": "mean_auc", "b": "log_loss", "c": "mean_auc"}
    mine = [e for e in events if isinstance(e, Validated) and e.domain == "b"]
    assert all(event.value == pytest.approx(-event.scores["log_loss"]) for event in mine)
    assert history.stages[0].domains["b"]["value"] == max(event.value for event in mine)


def test_each_domain_keeps_its_own_best_and_not_its_last(trained_backbone):
    data, model = trained_backbone()
    events = []
    settings = adapt(learning_rate=0.3, epochs=8, patience=8)
    history = fit(model, data, [settings], seed=SEED, callbacks=[events.append])
    best_was_last = []
    for domain, found in history.stages[0].domains.items():
        mine = [e for e in events if isinstance(e, Validated) and e.domain == domain]
        values = [event.value for event in mine]
        assert found["value"] == max(values)
        assert found["epoch"] == mine[values.index(max(values))].epoch
        best_was_last.append(found["epoch"] == mine[-1].epoch)
    assert not all(best_was_last)
    judge = make_judge(data)
    for number, found in enumerate(history.stages[0].domains.values()):
        assert judge(model, number) == pytest.approx(found["value"])


def make_judge(data):
    def auc(model, domain):
        index = np.flatnonzero(data.validation.domains[:, 0] == domain)
        with torch.no_grad():
            scores = model(batch_of(data.validation, index, domain))
        return roc_auc_score(data.validation.label[index], scores)

    return auc


@pytest.mark.parametrize("keep_start", [False, True])
def test_experts_that_are_better_alone_but_worse_together_are_dropped(trained_backbone, keep_start):
    """Base rates that turn round between training and validation: every domain's own AUC rises
    with what its expert learns, the pooled AUC falls with the offsets that it learns as well."""
    data, model = trained_backbone(train=(300, 300, 300), validation=(200, 200, 200))
    random = np.random.default_rng(0)

    def labelled(rows, rates):
        chance = np.asarray(rates)[rows.domains[:, 0]] + 0.08 * np.sign(rows.numbers[:, 0])
        return replace(rows, label=(random.random(len(rows)) < chance).astype(np.float32))

    data = replace(
        data,
        train=labelled(data.train, [0.9, 0.1, 0.1]),
        validation=labelled(data.validation, [0.1, 0.9, 0.9]),
    )
    before = copy.deepcopy(experts_of(model))
    settings = adapt(select="pooled_auc", keep_start=keep_start, learning_rate=0.02)
    (result,) = fit(model, data, [settings], seed=SEED).stages
    assert result.kept_start is keep_start
    same = all(torch.equal(value, before[name]) for name, value in experts_of(model).items())
    assert same is keep_start
    assert (result.epoch == 0.0) is keep_start


def test_the_assembled_model_may_be_judged_by_another_division(trained_backbone):
    data, model = trained_backbone()
    other = Division(name="age", column="age", domains=("young", "old"))
    schema = data.schema.model_copy(update={"divisions": (*data.schema.divisions, other)})

    def with_ages(rows):
        return replace(rows, domains=np.column_stack([rows.domains, rows.row % 2]).astype(np.int32))

    wider = replace(
        data,
        schema=schema,
        train=with_ages(data.train),
        validation=with_ages(data.validation),
    )
    twin = copy.deepcopy(model)
    fit(model, data, [adapt(keep_start=False)], seed=SEED)
    history = fit(twin, wider, [adapt(keep_start=False)], seed=SEED, division="age")
    for name, value in experts_of(model).items():
        assert torch.equal(experts_of(twin)[name], value)
    index = [np.flatnonzero(wider.validation.domains[:, 1] == age) for age in (0, 1)]
    rows = wider.validation
    scores = np.empty(len(rows))
    for domain in range(3):
        mine = np.flatnonzero(rows.domains[:, 0] == domain)
        with torch.no_grad():
            scores[mine] = twin(batch_of(rows, mine, domain))
    expected = np.mean([roc_auc_score(rows.label[one], scores[one]) for one in index])
    assert history.stages[0].value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("keep_start", "said"), [(True, "stay as they are"), (False, "one epoch at most")]
)
def test_it_says_which_domains_nothing_judges(trained_backbone, caplog, keep_start, said):
    data, model = trained_backbone()
    data = replace(data, validation=without(data.validation, 1))
    with caplog.at_level(logging.WARNING):
        fit(model, data, [adapt(epochs=1, keep_start=keep_start)], seed=SEED)
    assert "no validation rows of 'b': their experts" in caplog.text
    assert said in caplog.text


def test_checkpoints_come_by_the_clock_and_not_with_every_domains_validation(
    trained_backbone, tmp_path
):
    data, model = trained_backbone()
    writes = []

    class Counted(CheckpointFolder):
        def write(self, checkpoint):
            writes.append(checkpoint.values["loop"])
            super().write(checkpoint)

    fit(model, data, [adapt(epochs=3)], seed=SEED, checkpoints=Counted(tmp_path, minutes=60))
    assert writes == [None]  # the end of the stage alone


def test_shared_weights_cannot_train_independently(trained_backbone):
    data, model = trained_backbone()
    stage = adapt().model_copy(update={"trains": ("*",)})
    with pytest.raises(TrainingError, match=r"'adapt' trains experts independently, but 'embedd"):
        fit(model, data, [stage], seed=SEED)


def test_independent_experts_need_a_routed_model(make_data, make_model):
    data = make_data()
    with pytest.raises(TrainingError, match="routed by a division; this one reads none"):
        fit(make_model(data), data, [adapt()], seed=SEED)
