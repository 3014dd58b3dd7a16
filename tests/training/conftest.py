"""A small world that every test of the training loop can afford: rows, schema, model."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from loractr.adapters.mlora import MLoRA, Rank
from loractr.backbones import ModelConfig
from loractr.baselines.mix import Mix
from loractr.config import RunConfig
from loractr.data.config import DataConfig
from loractr.data.rows import Rows
from loractr.model import build
from loractr.schema import Division, Field, Schema

USERS, ITEMS, TAGS = 9, 7, 5


@dataclass(frozen=True)
class Prepared:
    """What `fit` reads of a prepared data set."""

    schema: Schema
    train: Rows
    validation: Rows

    def with_train(self, **columns):
        return replace(self, train=replace(self.train, **columns))


def _rows(counts, seed):
    """Rows of domain d, `counts[d]` of them, in random order; clicks follow user, item, domain."""
    rng = np.random.default_rng(seed)
    domain = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(domain)
    ids = np.stack([rng.integers(1, USERS, n), rng.integers(1, ITEMS, n)], axis=1)
    number = rng.normal(size=(n, 1))
    sign = np.where(domain % 2, -1.0, 1.0)
    logit = 0.8 * sign * (ids[:, 0] - USERS / 2) * (ids[:, 1] - ITEMS / 2) / 3 + number[:, 0]
    lengths = rng.integers(0, 3, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Rows(
        ids=ids.astype(np.int32),
        numbers=number.astype(np.float32),
        domains=domain[:, None].astype(np.int32),
        row=np.arange(n),
        label=(rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32),
        sequences={"tags": (rng.integers(1, TAGS, offsets[-1]).astype(np.int32), offsets)},
    )


def toy_data(train=(60, 25, 11), validation=(40, 30, 20), seed=0):
    """Three domains of unequal size, unless told otherwise."""
    schema = Schema(
        fields=(
            Field(name="user", size=USERS, unknown_rows=1),
            Field(name="item", size=ITEMS, unknown_rows=1),
            Field(name="age", kind="numerical"),
            Field(name="tags", kind="sequence", size=TAGS, unknown_rows=1),
        ),
        divisions=(Division(name="tab", column="tab", domains=tuple("abcdef"[: len(train)])),),
    )
    return Prepared(schema, _rows(train, (seed, 0)), _rows(validation, (seed, 1)))


def toy_model(data, method=None, *, seed=0, **options):
    """A float64 model; the same seed gives the same weights."""
    sizes = {"backbone": "mlp", "embedding_size": 4, "hidden_sizes": (6, 5)}
    config = RunConfig(
        data=DataConfig(source="synthetic"),
        model=ModelConfig(embedding_std=0.3, **(sizes | options)),
        method=method or Mix(name="mix"),
        seed=seed,
    )
    return build(config, data.schema).double()


def toy_mlora(**options):
    """MLoRA of rank 2, unless told otherwise."""
    return MLoRA(name="mlora", **({"rank": Rank(fixed=2)} | options))


@pytest.fixture
def make_data():
    return toy_data


@pytest.fixture
def make_model():
    return toy_model


@pytest.fixture
def mlora():
    return toy_mlora
