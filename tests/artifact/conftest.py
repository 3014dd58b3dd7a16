"""A small click log with every kind of field, and finished models of every method on it."""

from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pytest
import torch

from loractr.artifact import save
from loractr.config import RunConfig, parse_config
from loractr.data.encode import Encoders
from loractr.data.fit import Fit
from loractr.model import CTRModel, build
from loractr.predict import assembled_logits, sigmoid
from loractr.schema import Division, Field, Schema

DOMAINS = ("home", "feed", "kids")


@dataclass
class Saved:
    """What goes into an artifact, and raw rows to score with it."""

    config: RunConfig
    encoders: Encoders
    model: CTRModel
    frame: pl.DataFrame
    domain_models: dict[str, CTRModel] = field(default_factory=dict)

    @property
    def schema(self):
        return self.encoders.schema

    def probabilities(self, frame=None):
        """Of the models in memory."""
        rows = self.encoders.encode(self.frame if frame is None else frame)
        natural = self.config.method.natural(self.schema)
        own = self.domain_models
        return sigmoid(assembled_logits(self.model, own, rows, self.schema, natural))

    def save(self, path, **options):
        save(
            self.model,
            self.schema,
            self.encoders,
            path,
            config=self.config,
            domain_models=self.domain_models,
            **options,
        )


def log(rows, names=DOMAINS, seed=0):
    """Raw rows: a user, an item, an age, tags, an hour, a tab of `names`."""
    rng = np.random.default_rng(seed)
    tags = np.array(["red", "blue", "green", "grey"])
    return pl.DataFrame(
        {
            "user": rng.integers(0, 9, rows),
            "item": rng.choice(["a", "b", "c/d", "é"], rows),
            "age": rng.normal(30, 10, rows),
            "tags": [list(rng.choice(tags, rng.integers(0, 4))) for _ in range(rows)],
            "hour": rng.integers(0, 24, rows),
            "tab": [names[i % len(names)] for i in rng.permutation(rows).tolist()],
        },
        schema_overrides={"tags": pl.List(pl.String)},
    )


SCHEMA = Schema(
    fields=(
        Field(name="user"),
        Field(name="item", embedding_size=2),
        Field(name="age", kind="numerical"),
        Field(name="tags", kind="sequence"),
        Field(name="domain_tab"),
    ),
    divisions=(
        Division(name="tab", column="tab"),
        Division(name="hour", column="hour", thresholds=(12,)),
        Division(name="activeness", column="user", activeness=(7,)),
    ),
)


def fitted(frame, schema=SCHEMA):
    """Encoders that know every row of `frame`."""
    fit = Fit(schema)
    fit.observe(frame, np.ones(len(frame), dtype=bool), np.arange(len(frame)))
    return fit.encoders()


def configured(method, **model):
    """A small model; `model` changes its settings."""
    sizes = {"embedding_size": 3, "hidden_sizes": [6, 4], "dropout": 0.5}
    return parse_config({"data": {"source": "synthetic"}, "model": sizes | model, "method": method})


def moved(model, seed):
    """The model, every number of it moved away from its start, as training would."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        step = torch.randn(tensor.shape, generator=random)
        tensor.add_(step.abs() if "running_var" in name else 0.4 * step)
    return model.eval()


MLORA = {"name": "mlora", "rank": {"fixed": [3, 2]}, "row_scale": True}


def _finished(method, *, frame=None, schema=SCHEMA, owners=(), pretrained=None, **model):
    """A finished model of `method`, with whole models of the domains in `owners`."""
    frame = log(60) if frame is None else frame
    encoders, config = fitted(frame, schema), configured(method, **model)
    base = build(config, encoders.schema, pretrained=pretrained)
    own = {name: moved(deepcopy(base), 2 + n) for n, name in enumerate(owners)}
    return Saved(config, encoders, moved(base, 1), frame, own)


@pytest.fixture
def finished():
    """The function that makes a finished model."""
    return _finished


@pytest.fixture
def click_log():
    """The function that makes raw rows."""
    return log


@pytest.fixture
def mlora():
    return _finished(MLORA)


@pytest.fixture
def finetune():
    return _finished({"name": "finetune"}, owners=("home", "kids"))
