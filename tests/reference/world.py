"""A small world with domains of several, one and no rows, and a model's tensors as numpy arrays:
for float64 loops over rows that know tensors by name only."""

import itertools

import numpy as np
import pytest
import torch

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
            "method": {"name": method, **options},
        }
    )
    return away_from_its_start(build(config, SCHEMA).double().train(training))


def away_from_its_start(model, std=0.7):
    """The model, all its tensors drawn anew, so that each of them counts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
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


def assert_logits(model, formula, spread=0.5):
    """The model's logits are the formula's, which are `spread` apart at least."""
    batch = batch_of(model)
    reference = Reference(model, batch)
    expected = formula(reference)
    found = model(batch).detach().numpy()
    assert np.ptp(expected) > spread
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
