"""MultiLoRA's equations, one by one, against whole models: every expected number is a float64 loop.

Song et al., MultiLoRA, CIKM 2024: eq. 2 (loss), 4 and 5 (input, output), 8-11 (adapted layers).
"""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from loractr.batch import Routing
from loractr.config import parse_config
from loractr.data.loader import collate, sizes_of
from loractr.data.rows import Rows
from loractr.model import build
from loractr.predict import logits
from loractr.schema import Division, Field, Schema
from loractr.stage import Stage
from loractr.training import fit
from loractr.training.loop import domain_means
from reference.world import away_from_its_start

USERS, ITEMS, TAGS, SIZES = 9, 7, 6, (3, 2)
SCHEMA = Schema(
    fields=(
        Field(name="user", size=USERS, unknown_rows=1),
        Field(name="item", size=ITEMS, unknown_rows=1),
        Field(name="tags", kind="sequence", size=TAGS, unknown_rows=1),
        Field(name="age", kind="numerical"),
    ),
    divisions=(
        Division(name="tab", column="tab", domains=("a", "b", "c")),
        Division(name="hour", column="hour", domains=("day", "night")),
    ),
)
EPS = 1e-5


def model_of(name="multilora", *, batch_norm=True, **options):
    """A float64 model in evaluation, all its tensors away from their start."""
    config = parse_config(
        {
            "data": {"source": "synthetic"},
            "model": {
                "backbone": "mlp",
                "embedding_size": 3,
                "hidden_sizes": [6, 5],
                "batch_norm": batch_norm,
            },
            "method": {"name": name, "rank": {"fixed": [3, 2]}, **options},
        }
    )
    return away_from_its_start(build(config, SCHEMA).double().eval(), std=0.6)


def rows_of(domains, seed=0):
    rng = np.random.default_rng(seed)
    count = len(domains)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, count))])
    return Rows(
        ids=np.stack([rng.integers(0, n, count) for n in (USERS, ITEMS)], 1).astype(np.int32),
        numbers=rng.normal(size=(count, 1)).astype(np.float32),
        domains=np.asarray(domains, dtype=np.int32),
        row=np.arange(count),
        label=rng.integers(0, 2, count).astype(np.float32),
        sequences={"tags": (rng.integers(0, TAGS, offsets[-1]).astype(np.int32), offsets)},
    )


EVERY_PAIR = list(itertools.product((-1, 0, 1, 2), (-1, 0, 1)))


class Paper:
    """The equations for one row, from a model's tensors, which it knows by name only."""

    def __init__(self, model):
        self.values = {name: value.numpy() for name, value in model.state_dict().items()}

    def get(self, name):
        return self.values[name]

    def embedded(self, rows, n):
        """Eq. 4: the fields' vectors, sequences averaged, then the numbers."""
        table = self.get("embedding.tables.size_3.weight")
        user, item = rows.ids[n]
        values, offsets = rows.sequences["tags"]
        bag = values[offsets[n] : offsets[n + 1]]
        mean = np.zeros(3)
        for tag in bag:
            mean += table[USERS + ITEMS + tag] / len(bag)
        return np.concatenate([table[user], table[USERS + item], mean, rows.numbers[n]])

    def update(self, at, place, domain, x):
        """Eq. 8, the second bracket: (s ⊙ U D) x + b."""
        bank = f"{at}.linear.banks.{place}"
        if f"{bank}.down" not in self.values:
            bank = f"{at}.linear"  # SingleLoRA: the layer is the bank
        product = self.get(f"{bank}.up")[domain] @ self.get(f"{bank}.down")[domain]
        scaled = self.get(f"{bank}.row_scale")[domain][:, None] * product
        return scaled @ x + self.get(f"{bank}.offset")[domain]

    def norm(self, h, at, which, index=None):
        """Eq. 9: γ ⊙ (h - μ) / √(σ² + ε) + β."""
        pick = (lambda v: v) if index is None else (lambda v: v[index])
        mean, var, scale, shift = (
            pick(self.get(f"{at}.norm.{which}.{leaf}"))
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return scale * (h - mean) / np.sqrt(var + EPS) + shift

    def attention(self, at, h0, hs):
        """Eq. 10."""
        query = self.get(f"{at}.linear.mixer.query.weight") @ h0
        keys = [self.get(f"{at}.linear.mixer.key.weight") @ h for h in hs]
        scores = [math.exp(query @ key / math.sqrt(len(query))) for key in keys]
        return sum(s / sum(scores) * h for s, h in zip(scores, hs, strict=True))

    def logit(self, x, layer):
        """Eq. 5 without the sigmoid; `layer(at, h0, h)` is the rest of a hidden layer."""
        h = x
        for number in range(2):
            at = f"backbone.tower.{number}"
            h0 = self.get(f"{at}.linear.base.weight") @ h + self.get(f"{at}.linear.base.bias")
            h = np.maximum(layer(at, h0, h), 0)
        return (self.get("head.weight") @ h + self.get("head.bias"))[0]


def cell_of(pair):
    """Place of A ∩ B among the cells, those of a row unseen in one division included."""
    return (pair[0] + 1) * (SIZES[1] + 1) + pair[1] + 1 - 1


def mixture(paper, name, at, h, pair):
    """h0 and what eq. 10, or the sum or mean in its place, makes of the row's updates."""
    h0 = paper.get(f"{at}.linear.base.weight") @ h + paper.get(f"{at}.linear.base.bias")
    hs = [paper.update(at, place, d, h) for place, d in enumerate(pair) if d >= 0]
    if name == "multilora":
        return h0 + paper.attention(at, h0, hs)
    return h0 + sum(hs) / (len(hs) if name == "multilora_avg" else 1)


def normed(paper, batch_norm, h, at, which, index=None):
    return paper.norm(h, at, which, index) if batch_norm else h


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("name", ["multilora", "multilora_add", "multilora_avg"])
def test_a_mixed_model_is_equations_8_to_11(name, batch_norm):
    model = model_of(name, batch_norm=batch_norm, divisions=["tab", "hour"])
    rows = rows_of(EVERY_PAIR * 2)
    model.routing = replace(model.routing, mixed=True)
    paper, expected = Paper(model), []
    for n, pair in enumerate(EVERY_PAIR * 2):

        def layer(at, h0, h, pair=pair):
            if pair == (-1, -1):
                return normed(paper, batch_norm, h0, at, "base")
            mixed = mixture(paper, name, at, h, pair)
            return normed(paper, batch_norm, mixed, at, "cell", cell_of(pair))

        expected.append(paper.logit(paper.embedded(rows, n), layer))
    found = logits(model, rows, SCHEMA)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-10, rtol=0)


def cells_normed(paper, h, at, cells):
    """Eq. 11 in training: each cell by its own rows' statistics; by the running ones where it has
    one row. Also the running variances after it, 0.9 old and 0.1 unbiased."""
    found, running = list(h), paper.get(f"{at}.norm.cell.running_var").copy()
    for cell in sorted(set(cells)):
        mine = [n for n, other in enumerate(cells) if other == cell]
        mean, variance = (paper.get(f"{at}.norm.cell.running_{s}")[cell] for s in ("mean", "var"))
        if len(mine) > 1:
            mean = sum(h[n] for n in mine) / len(mine)
            squares = sum((h[n] - mean) ** 2 for n in mine)
            variance = squares / len(mine)
            running[cell] = 0.9 * running[cell] + 0.1 * squares / (len(mine) - 1)
        scale, shift = (paper.get(f"{at}.norm.cell.{s}")[cell] for s in ("weight", "bias"))
        for n in mine:
            found[n] = scale * (h[n] - mean) / np.sqrt(variance + EPS) + shift
    return found, running


@pytest.mark.parametrize("name", ["multilora", "multilora_add", "multilora_avg"])
def test_a_mixed_model_in_training_normalises_each_cell_by_its_rows(name):
    """Cells of three rows, and those of tab c of one."""
    pairs = [pair for pair in EVERY_PAIR if pair != (-1, -1)]
    pairs += [pair for pair in pairs * 2 if pair[0] < 2]
    model, rows = model_of(name, divisions=["tab", "hour"]).train(), rows_of(pairs)
    model.routing = replace(model.routing, mixed=True)
    paper = Paper(copy.deepcopy(model))
    batch = collate(rows, np.arange(len(rows)), model.routing, sizes_of(SCHEMA, model.routing))
    found = dict(zip(batch.row.tolist(), model(batch).tolist(), strict=True))
    h, cells = [paper.embedded(rows, n) for n in range(len(rows))], [cell_of(p) for p in pairs]
    for number in range(2):
        at = f"backbone.tower.{number}"
        mixed = [mixture(paper, name, at, x, pair) for x, pair in zip(h, pairs, strict=True)]
        normalised, running = cells_normed(paper, mixed, at, cells)
        after = model.get_buffer(f"{at}.norm.cell.running_var").numpy()
        np.testing.assert_allclose(after, running, atol=1e-10, rtol=0)
        h = [np.maximum(x, 0) for x in normalised]
    expected = [(paper.get("head.weight") @ x + paper.get("head.bias"))[0] for x in h]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose([found[n] for n in range(len(h))], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("place", [0, 1])
def test_one_divisions_experts_alone_are_equations_8_and_9(place, batch_norm):
    """Stage ii, of either division."""
    model = model_of(batch_norm=batch_norm, divisions=["tab", "hour"])
    rows, paper, expected = rows_of(EVERY_PAIR), Paper(model), []
    for n, pair in enumerate(EVERY_PAIR):
        domain = pair[place]

        def layer(at, h0, h, domain=domain):
            if domain < 0:
                return normed(paper, batch_norm, h0, at, "base")
            h1 = h0 + paper.update(at, place, domain, h)
            return normed(paper, batch_norm, h1, at, f"divisions.{place}", domain)

        expected.append(paper.logit(paper.embedded(rows, n), layer))
    routing = replace(model.routing, only=place)
    found = logits(model, rows, SCHEMA, routing=routing)
    np.testing.assert_allclose(found, expected, atol=1e-10, rtol=0)


def test_singlelora_is_equations_8_and_9():
    model = model_of("singlelora", divisions=["hour"])
    rows, paper, expected = rows_of(EVERY_PAIR), Paper(model), []
    for n, (_, domain) in enumerate(EVERY_PAIR):

        def layer(at, h0, h, domain=domain):
            if domain < 0:
                return paper.norm(h0, at, "base")
            return paper.norm(h0 + paper.update(at, 0, domain, h), at, "divisions.0", domain)

        expected.append(paper.logit(paper.embedded(rows, n), layer))
    np.testing.assert_allclose(logits(model, rows, SCHEMA), expected, atol=1e-10, rtol=0)


def test_the_shared_adapter_is_singlelora_with_every_row_in_one_domain():
    model = model_of("shared_adapter")
    rows, paper = rows_of(EVERY_PAIR), Paper(model)

    def layer(at, h0, h):
        return paper.norm(h0 + paper.update(at, 0, 0, h), at, "divisions.0", 0)

    expected = [paper.logit(paper.embedded(rows, n), layer) for n in range(len(rows))]
    np.testing.assert_allclose(logits(model, rows, SCHEMA), expected, atol=1e-10, rtol=0)


def test_without_a_route_a_model_is_the_pretrained_one():
    """Stage i: h0 through the shared norm."""
    model = model_of(divisions=["tab", "hour"])
    rows, paper = rows_of(EVERY_PAIR), Paper(model)

    def layer(at, h0, _):
        return paper.norm(h0, at, "base")

    expected = [paper.logit(paper.embedded(rows, n), layer) for n in range(len(rows))]
    found = logits(model, rows, SCHEMA, routing=Routing())
    np.testing.assert_allclose(found, expected, atol=1e-10, rtol=0)


# --- eq. 2: the mean over domains of their own mean losses ---


def entropy(logit, label):
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p if label else 1 - p)


def by_hand(logit, label, weight, domain):
    """Rows of no domain (-1) are a domain of their own; a row's weight counts within its domain."""
    sums = {}
    for z, y, w, d in zip(logit, label, weight, domain, strict=True):
        total, share = sums.get(d, (0.0, 0.0))
        sums[d] = (total + w * entropy(z, y), share + w)
    return sum(total / share for total, share in sums.values()) / len(sums)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("domain", [[2, -1, 0, 2, 2, -1, 0], [1] * 7, [-1] * 7, [*range(7)]])
def test_the_domain_mean_is_equation_2(domain, weighted):
    rng = np.random.default_rng(0)
    logit, label = rng.normal(size=7), rng.integers(0, 2, 7).astype(np.float32)
    weight = rng.uniform(0.1, 5, 7) if weighted else np.ones(7)
    z = torch.from_numpy(logit).requires_grad_()
    given = torch.from_numpy(weight) if weighted else None
    found = domain_means(z, torch.from_numpy(label), given, torch.tensor(domain))
    assert found.item() == pytest.approx(by_hand(logit, label, weight, domain), abs=1e-12)
    found.backward()
    for n in range(7):
        own = sum(w for w, d in zip(weight, domain, strict=True) if d == domain[n])
        slope = (
            (1 / (1 + math.exp(-logit[n])) - float(label[n])) * weight[n] / own / len(set(domain))
        )
        assert z.grad[n].item() == pytest.approx(slope, abs=1e-12)


def test_domains_of_equal_size_and_a_single_domain_are_the_mean_over_rows():
    logit, label = torch.randn(6).double(), torch.tensor([0.0, 1, 1, 0, 1, 0])
    rows = torch.nn.functional.binary_cross_entropy_with_logits(logit, label.double())
    for domain in ([0, 1, 2, 0, 1, 2], [4] * 6):
        found = domain_means(logit, label, None, torch.tensor(domain))
        torch.testing.assert_close(found, rows, atol=1e-12, rtol=0)


class Data:
    """What `fit` reads: the domains are of unequal size, and some rows are of none."""

    schema = SCHEMA
    train = rows_of([[d % 4 - 1 if d % 5 else 2, d % 2] for d in range(70)], seed=1)
    validation = rows_of([[d % 3, d % 2] for d in range(40)], seed=2)


def plain_model():
    config = parse_config(
        {
            "data": {"source": "synthetic"},
            "model": {"backbone": "mlp", "embedding_size": 3, "hidden_sizes": [6, 5]},
            "method": {"name": "mix"},
        }
    )
    model = build(config, SCHEMA).double()
    random = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.6, generator=random)
    return model


@pytest.mark.parametrize("loss", ["domain_mean", "row_mean"])
@pytest.mark.parametrize("weighted", [True, False])
def test_training_minimises_the_loss_that_is_asked_for(loss, weighted):
    """Three steps of Adam on all rows, against torch's Adam on the loss written out by hand."""
    data, rows = Data(), Data.train
    if weighted:
        weight = np.random.default_rng(5).uniform(0.1, 5, len(rows)).astype(np.float32)
        rows = replace(rows, weight=weight)
        data.train = rows
    model, other = plain_model(), plain_model()
    stage = Stage(
        name="train",
        epochs=3,
        batch_size=1000,
        learning_rate=0.05,
        loss=loss,
        keep_start=False,
        patience=9,
        select="log_loss",
        validate_every=3,
    )
    history = fit(model, data, [stage], seed=0)
    adam = torch.optim.Adam(other.parameters(), lr=0.05)
    weight = torch.ones(len(rows)) if rows.weight is None else torch.from_numpy(rows.weight)
    weight = weight.double()
    batch = collate(rows, np.arange(len(rows)), Routing(), sizes_of(SCHEMA, Routing()))
    label, seen = torch.from_numpy(rows.label).double(), []
    for _ in range(3):
        z = other.train()(batch)
        losses = -(label * torch.sigmoid(z).log() + (1 - label) * torch.sigmoid(-z).log())
        parts = [torch.full((len(rows),), True)]
        if loss == "domain_mean":
            parts = [torch.from_numpy(rows.domains[:, 0] == d) for d in (-1, 0, 1, 2)]
        means = [(losses[p] * weight[p]).sum() / weight[p].sum() for p in parts]
        total = sum(means) / len(means)
        adam.zero_grad()
        total.backward()
        adam.step()
        seen.append(total.item())
    assert history.validations[-1].loss == pytest.approx(np.mean(seen), abs=1e-9)
    trained = dict(model.named_parameters())
    for name, value in other.named_parameters():
        torch.testing.assert_close(trained[name].detach(), value.detach(), atol=1e-9, rtol=0)
