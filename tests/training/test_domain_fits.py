"""Methods with a whole model for every domain, against fits of copies made by hand: where each
domain's model starts, which rows it sees, and that the shared model stays as it was."""

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loractr.config import RunConfig, parse_config
from loractr.data.prepare import prepare
from loractr.data.rows import Rows
from loractr.model import CTRModel
from loractr.schema import Schema
from loractr.stage import Stage
from loractr.training import fit
from loractr.training.fits import Data, Trained, build_model, train

SETTINGS: dict[str, Any] = {"batch_size": 32, "epochs": 2, "patience": 2, "learning_rate": 0.02}
OWN = {**SETTINGS, "keep_start": False}
"""Of a domain's own stage: what it learns stays, even where it is worse than the start."""
EVERYTHING = ("*",)
PROMPTS = ("front.*", "embedding.*first_order")
RECIPES: dict[str, tuple[Stage | None, Stage]] = {
    "single": (None, Stage(name="single", trains=EVERYTHING, **OWN)),
    "finetune": (
        Stage(name="pretrain", trains=EVERYTHING, **SETTINGS),
        Stage(name="finetune", trains=EVERYTHING, **OWN),
    ),
    "plate": (
        Stage(name="pretrain", trains=("*", "!front.*"), **SETTINGS),
        Stage(name="prompt", trains=PROMPTS, **OWN),
    ),
}
"""The shared model's stage where there is one, and that of each domain's own model."""
TUNED = ("finetune", "plate")
METHODS = pytest.mark.parametrize("method", RECIPES)


@dataclass(frozen=True)
class Part:
    """What `fit` reads, for one domain."""

    schema: Schema
    train: Rows
    validation: Rows


def config_of(method: str, **changes: Any) -> RunConfig:
    """`changes` are settings of the domains' stage alone."""
    own = {RECIPES[method][1].name: {"keep_start": False, **changes}}
    synthetic = {"rows": 600, "users": 20, "items": 15, "domains": 3}
    sizes = {"embedding_size": 3, "hidden_sizes": [6, 5], "batch_norm": True, "dropout": 0.2}
    return parse_config(
        {
            "data": {"source": "synthetic", "synthetic": synthetic},
            "model": {"backbone": "deepfm", **sizes},
            "method": {"name": method},
            "training": {**SETTINGS, "stages": own},
            "seed": 5,
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    return Data.of(prepare(config_of("single").data, folder))


def rows_of(rows: Rows, domain: int) -> Rows:
    return rows.take(np.array([n for n, (own,) in enumerate(rows.domains) if own == domain]))


def equal(one: CTRModel, other: CTRModel) -> bool:
    """To the bit, buffers included."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def distance(one: CTRModel, other: CTRModel) -> float:
    """Largest difference between their weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs)


def shared_by_hand(method: str, data: Data) -> CTRModel:
    """What the shared recipe alone makes."""
    model, stage = build_model(config_of(method), data), RECIPES[method][0]
    assert stage is not None
    fit(model, data, [stage], seed=5)
    return model


def trained_of(method: str, data: Data, out: Path, **changes: Any) -> Trained:
    trained = train(config_of(method, **changes), data, out)
    assert list(trained.domain_models) == ["domain_00", "domain_01", "domain_02"]
    return trained


@METHODS
def test_almost_without_a_step_a_domains_model_is_where_it_starts(
    method: str, data: Data, tmp_path: Path
) -> None:
    """Tuned ones at the shared model; single ones where a fresh model is."""
    trained = trained_of(method, data, tmp_path, learning_rate=1e-12)
    fresh = build_model(config_of(method), data)
    fresh.embedding.fill_unknown()  # no step makes these rows: they are means of the others
    near, far = (trained.model, fresh) if method in TUNED else (fresh, trained.model)
    assert distance(near, far) > 0.01
    for model in trained.domain_models.values():
        assert model is not trained.model
        assert distance(model, near) < 1e-9
        assert distance(model, far) > 0.01


@METHODS
def test_a_domains_model_is_a_fit_of_its_own_on_its_rows_alone(
    method: str, data: Data, tmp_path: Path
) -> None:
    """Bit by bit; so each starts from the shared model, not from where the one before it ended."""
    trained = trained_of(method, data, tmp_path)
    fresh = build_model(config_of(method), data)
    start = shared_by_hand(method, data) if method in TUNED else fresh
    for domain, model in enumerate(trained.domain_models.values()):
        part = Part(data.schema, *(rows_of(rows, domain) for rows in (data.train, data.validation)))
        expected = copy.deepcopy(start)
        fit(expected, part, [RECIPES[method][1]], seed=5)
        assert not equal(expected, start)
        assert equal(model, expected), domain


@pytest.mark.parametrize("method", TUNED)
def test_the_shared_model_is_what_its_own_recipe_made(
    method: str, data: Data, tmp_path: Path
) -> None:
    trained = trained_of(method, data, tmp_path, learning_rate=0.5)
    assert equal(trained.model, shared_by_hand(method, data))


def test_without_a_shared_recipe_the_shared_model_knows_the_click_rate_alone(
    data: Data, tmp_path: Path
) -> None:
    assert data.train.label is not None
    state = trained_of("single", data, tmp_path).model.state_dict()
    rate = sum(data.train.label.tolist()) / len(data.train)
    assert torch.sigmoid(state.pop("head.bias")).item() == pytest.approx(rate, abs=1e-6)
    weights = [value for name, value in state.items() if "running" not in name]
    assert all(not value.any() for value in weights)


@METHODS
def test_a_domain_that_nothing_judges_keeps_the_shared_model_or_trains_one_epoch(
    method: str, data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="loractr")
    seen = np.flatnonzero(data.validation.domains[:, 0] != 1)
    without = replace(data, validation=data.validation.take(seen))
    trained = train(config_of(method, epochs=4), without, tmp_path)
    told = "keeps the shared model" if method in TUNED else "trains one epoch"
    assert f"domain domain_01 has no validation rows: it {told}" in caplog.text
    if method in TUNED:
        assert list(trained.domain_models) == ["domain_00", "domain_02"]
        return
    part = Part(data.schema, rows_of(data.train, 1), data.validation.take(seen[:0]))
    expected = build_model(config_of(method), data)
    fit(expected, part, [RECIPES[method][1].model_copy(update={"epochs": 1.0})], seed=5)
    assert equal(trained.domain_models["domain_01"], expected)
