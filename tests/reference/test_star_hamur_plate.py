"""STAR, HAMUR and PLATE as whole models, against the papers' formulas row by row.

Every expected logit is a float64 loop over the model's tensors that knows only their names and the
embedded rows. Sheng et al., CIKM 2021; Li et al., CIKM 2023; Wang et al., SIGIR 2023.
"""

import itertools

import numpy as np
import pytest
import torch

from loractr.batch import Route
from loractr.config import parse_config
from loractr.data.loader import collate
from loractr.data.rows import Rows
from loractr.model import build
from loractr.schema import Division, Field, Schema

SCHEMA = Schema(
    fields=(
        Field(name="age", kind="numerical"),
        Field(name="shop", size=5, unknown_rows=1, embedding_size=2),
        Field(name="item", size=7, unknown_rows=1),
        Field(name="user", size=9, unknown_rows=1),
        Field(name="tags", kind="sequence", size=6, unknown_rows=1),
    ),
    divisions=(Division(name="tab", column="tab", domains=("a", "b", "c", "empty")),),
)
DOMAINS = np.array([1, -1, 0, 2, 0, 0, 1, -1, 1])  # in training c has one row, "empty" has none
OPTIONS = {
    "star": {"auxiliary_sizes": (4, 3), "domain_embedding_size": 2},
    "hamur": {"k": 3, "width": 4, "hyper_sizes": (5,)},
    "plate": {"user_field": "user", "prompts": 4, "prompt_sizes": (5, 4), "temperature": 0.7},
}
BACKBONES = ("mlp", "dcn", "deepfm")
BATCH_NORM = pytest.mark.parametrize("batch_norm", [False, True])
TRAINING = pytest.mark.parametrize("training", [False, True])


def model_of(method, backbone, *, batch_norm, training=False, **options):
    """A model with all its tensors away from their start."""
    sizes = {"embedding_size": 3, "hidden_sizes": (6, 5), "batch_norm": batch_norm}
    config = parse_config(
        {
            "data": {"source": "synthetic"},
            "model": {"backbone": backbone, **sizes},
            "method": {"name": method, **OPTIONS[method], **options},
        }
    )
    model = build(config, SCHEMA).double().train(training)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7, generator=generator)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2.0, generator=generator)
    return model


def batch_of(model, domains=DOMAINS):
    rng = np.random.default_rng(0)
    count = len(domains)
    lengths = rng.integers(0, 4, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = Rows(
        ids=np.stack([rng.integers(0, n, count) for n in (5, 7, 9)], 1).astype(np.int32),
        numbers=rng.normal(size=(count, 1)).astype(np.float32),
        domains=domains[:, None].astype(np.int32),
        row=np.arange(count),
        label=np.zeros(count, np.float32),
        sequences={"tags": (rng.integers(0, 6, offsets[-1]).astype(np.int32), offsets)},
    )
    return collate(rows, np.arange(count), model.routing, [4])


class Reference:
    """A model's tensors by name, and its embedded rows, as numpy."""

    def __init__(self, model, batch):
        self.p = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        with torch.no_grad():
            x = model.embedding(batch)
        self.training = model.training
        self.order = batch.row.numpy()  # batches regroup the rows
        self.domain = DOMAINS[self.order]
        self.vectors = [list(row) for row in x.vectors.numpy()]
        self.others = [[other[n] for other in x.others] for n in range(len(self.order))]
        self.others = [[o.numpy() for o in row] for row in self.others]
        self.numbers = x.numbers.numpy()
        self.linear = x.first_order.numpy()

    def flat(self):
        """Each row's input of the tower."""
        rows = zip(self.vectors, self.others, self.numbers, strict=True)
        return [np.concatenate([*vectors, *others, numbers]) for vectors, others, numbers in rows]

    def own(self, name, t):
        """The tensor of domain t; of no domain, the mean of all."""
        return self.p[name].mean(0) if t < 0 else self.p[name][t]

    def affine(self, name, x, t=None):
        """A product that all share, or the domain's own."""
        if t is None:
            return self.p[f"{name}.weight"] @ x + self.p[f"{name}.bias"]
        return self.own(f"{name}.weight", t) @ x + self.own(f"{name}.bias", t)

    def statistics(self, name, h):
        """Mean and variance that each row is normalised by: its domain's."""
        found = []
        for t in self.domain:
            mates = [h[m] for m, other in enumerate(self.domain) if other == t]
            mean, variance = self.own(f"{name}.running_mean", t), self.own(f"{name}.running_var", t)
            if self.training and t >= 0 and len(mates) > 1:
                mean = sum(mates) / len(mates)
                variance = sum((mate - mean) ** 2 for mate in mates) / len(mates)
            found.append((mean, variance))
        return found

    def domain_norm(self, name, h):
        """Weights and biases of the domain's own."""
        return [
            self.own(f"{name}.weight", t) * (x - mean) / np.sqrt(variance + 1e-5)
            + self.own(f"{name}.bias", t)
            for x, t, (mean, variance) in zip(h, self.domain, self.statistics(name, h), strict=True)
        ]

    def shared_norm(self, name, h):
        """Ordinary batch norm: the same statistics for all rows."""
        mean, variance = self.p[f"{name}.running_mean"], self.p[f"{name}.running_var"]
        if self.training:
            mean = sum(h) / len(h)
            variance = sum((x - mean) ** 2 for x in h) / len(h)
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]
        return [weight * (x - mean) / np.sqrt(variance + 1e-5) + bias for x in h]

    def layers(self, name, h):
        """Plain hidden layers, shared by all domains."""
        for layer in itertools.count():
            if f"{name}.{layer}.linear.weight" not in self.p:
                return h
            h = [self.affine(f"{name}.{layer}.linear", x) for x in h]
            if f"{name}.{layer}.norm.weight" in self.p:
                h = self.shared_norm(f"{name}.{layer}.norm", h)
            h = [np.maximum(0, x) for x in h]
        raise AssertionError

    def beside(self, backbone):
        """What the backbone puts before its tower's outputs, and adds to the logit."""
        crosses, logits = [np.zeros(0)] * len(self.order), [0.0] * len(self.order)
        for n, x0 in enumerate(self.flat()):
            if backbone == "dcn":
                x = x0
                for layer in range(2):
                    at = f"backbone.cross.{layer}"
                    x = x0 * (self.p[f"{at}.linear.weight"][0] @ x) + self.p[f"{at}.bias"] + x
                crosses[n] = x
            if backbone == "deepfm":
                projected = self.p["backbone.pairwise.project.0.weight"] @ self.others[n][0]
                number = self.numbers[n][0] * self.p["backbone.pairwise.numbers"][0]
                pairs = itertools.combinations([*self.vectors[n], projected, number], 2)
                logits[n] = sum(a @ b for a, b in pairs)
            if backbone != "mlp":
                logits[n] += self.linear[n]
        return crosses, logits


def star(r, backbone):
    """Star layers on the partitioned norm of x, plus an auxiliary network on [x ; domain]."""

    def norm(name, h):
        found = []
        for x, t, (mean, variance) in zip(h, r.domain, r.statistics(name, h), strict=True):
            weight, bias = r.p[f"{name}.weight"], r.p[f"{name}.bias"]
            if t >= 0:
                weight = weight * r.p[f"{name}.own_weight"][t]
                bias = bias + r.p[f"{name}.own_bias"][t]
            found.append(weight * (x - mean) / np.sqrt(variance + 1e-5) + bias)
        return found

    def linear(name, x, t):
        weight, bias = r.p[f"{name}.weight"], r.p[f"{name}.bias"]
        if t >= 0:
            weight = weight * r.p[f"{name}.own_weight"][t]
            bias = bias + r.p[f"{name}.own_bias"][t]
        return weight @ x + bias

    inputs = r.flat()
    h = norm("backbone.tower.norm", inputs)
    for layer in range(2):
        at = f"backbone.tower.main.{layer}"
        h = [linear(f"{at}.linear", x, t) for x, t in zip(h, r.domain, strict=True)]
        if f"{at}.norm.weight" in r.p:
            h = norm(f"{at}.norm", h)
        h = [np.maximum(0, x) for x in h]
    embedded = [np.zeros(2) if t < 0 else r.p["backbone.tower.domains"][t] for t in r.domain]
    seen = [np.concatenate(pair) for pair in zip(inputs, embedded, strict=True)]
    auxiliary = r.layers("backbone.tower.auxiliary", seen)
    crosses, logits = r.beside(backbone)
    return [
        linear("head.main", np.concatenate([crosses[n], h[n]]), t)[0]
        + r.affine("head.auxiliary", auxiliary[n])[0]
        + logits[n]
        for n, t in enumerate(r.domain)
    ]


def adapter(r, name, h, cores):
    """DN(sigmoid(h W_down + b_1) W_up + b_2) + h with whole matrices W = U I V of each row."""
    updates = []
    for x, core, t in zip(h, cores, r.domain, strict=True):
        u, v = r.own(f"{name}.down_u.weight", t).T, r.own(f"{name}.down_v.weight", t).T
        inside = x @ (u @ core @ v) + r.own(f"{name}.down_v.bias", t)
        inside = 1 / (1 + np.exp(-inside))
        u, v = r.own(f"{name}.up_u.weight", t).T, r.own(f"{name}.up_v.weight", t).T
        updates.append(inside @ (u @ core @ v) + r.own(f"{name}.up_v.bias", t))
    normed = r.domain_norm(f"{name}.norm", updates)
    return [update + x for update, x in zip(normed, h, strict=True)]


def hamur(r, backbone, *, adapters, shared):
    """Hidden layers, of the domain's own or shared, the last few with an adapter behind."""
    inputs = r.flat()
    hidden = r.layers("backbone.tower.hyper.hidden", inputs)
    cores = [r.affine("backbone.tower.hyper.out", x).reshape(3, 3) for x in hidden]
    h = inputs
    for layer in range(2):
        at = f"backbone.tower.blocks.{layer}"
        whose = [None] * len(h) if shared else r.domain
        h = [r.affine(f"{at}.linear", x, t) for x, t in zip(h, whose, strict=True)]
        if f"{at}.norm.weight" in r.p:
            h = r.shared_norm(f"{at}.norm", h) if shared else r.domain_norm(f"{at}.norm", h)
        h = [np.maximum(0, x) for x in h]
        if layer >= 2 - adapters:
            h = adapter(r, f"backbone.tower.adapters.{layer - (2 - adapters)}", h, cores)
    crosses, logits = r.beside(backbone)
    return [
        r.affine("head", np.concatenate([crosses[n], h[n]]), None if shared else t)[0] + logits[n]
        for n, t in enumerate(r.domain)
    ]


def plate(r, backbone):
    """The plain backbone on two fields more: [e_1 … e_n, p_t, p_user]."""
    for n, t in enumerate(r.domain):
        user = r.vectors[n][1]  # item, user, then the sequence
        (hidden,) = r.layers("front.hidden", [user])
        odds = np.exp(r.affine("front.scores", hidden) / 0.7)
        personal = sum(
            odd / odds.sum() * row for odd, row in zip(odds, r.p["front.memory"], strict=True)
        )
        own = np.zeros(3) if t < 0 else r.p["front.domains"][t]
        r.vectors[n] += [own, personal]
    h = r.layers("backbone.tower", r.flat())
    crosses, logits = r.beside(backbone)
    return [
        r.affine("head", np.concatenate([crosses[n], h[n]]))[0] + logits[n] for n in range(len(h))
    ]


def assert_logits(model, formula):
    batch = batch_of(model)
    reference = Reference(model, batch)
    expected = formula(reference)
    found = model(batch).detach().numpy()
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("backbone", BACKBONES)
def test_stars_logit_is_the_papers_formula(backbone, batch_norm, training):
    model = model_of("star", backbone, batch_norm=batch_norm, training=training)
    assert_logits(model, lambda r: star(r, backbone))


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("towers", ["domain", "shared"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_hamurs_logit_is_the_papers_formula(backbone, towers, adapters, batch_norm, training):
    options = {"towers": towers, "adapters": adapters}
    model = model_of("hamur", backbone, batch_norm=batch_norm, training=training, **options)
    shared = towers == "shared"
    assert_logits(model, lambda r: hamur(r, backbone, adapters=adapters, shared=shared))


@TRAINING
@BATCH_NORM
@pytest.mark.parametrize("backbone", BACKBONES)
def test_plates_logit_is_the_papers_formula(backbone, batch_norm, training):
    model = model_of("plate", backbone, batch_norm=batch_norm, training=training)
    assert_logits(model, lambda r: plate(r, backbone))


@pytest.mark.parametrize("method", OPTIONS)
def test_without_a_route_every_row_is_of_no_domain(method):
    model = model_of(method, "deepfm", batch_norm=True)
    batch = batch_of(model)
    order = batch.row.numpy()
    unseen = batch_of(model, np.full_like(DOMAINS, -1))
    expected = model(unseen)[order]
    batch = type(batch)(**{**vars(batch), "route": Route.none()})
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=1e-12)
