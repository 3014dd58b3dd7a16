"""Logits against the model called by hand; tables against the rows they were made of."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from loractr.adapters.low_rank import LowRankLinear
from loractr.adapters.mlora import MLoRA, Rank
from loractr.backbones.config import ModelConfig
from loractr.baselines.mix import Mix
from loractr.batch import Bag, Batch, Route, Routing
from loractr.config import RunConfig
from loractr.data.config import DataConfig
from loractr.data.rows import Rows
from loractr.errors import DataError, UnknownDomainError
from loractr.model import build
from loractr.predict import assembled_logits, logits, predict, sigmoid, tabulate
from loractr.schema import Division, Field, Schema

N = 41
OPTIONAL = ["weight", "group", "true_probability"]
SCHEMA = Schema(
    fields=(
        Field(name="user", size=7),
        Field(name="item", size=5),
        Field(name="age", kind="numerical"),
        Field(name="tags", kind="sequence", size=4),
    ),
    divisions=(
        Division(name="tab", column="tab", domains=("home", "feed", "kids")),
        Division(name="hour", column="hour", domains=("day", "night")),
    ),
)


@pytest.fixture
def rows():
    """41 rows, every domain and the unseen among them, in no order of the source."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 4, N)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Rows(
        ids=np.stack([rng.integers(0, 7, N), rng.integers(0, 5, N)], axis=1).astype(np.int32),
        numbers=rng.normal(size=(N, 1)).astype(np.float32),
        domains=np.stack([rng.integers(-1, 3, N), rng.integers(-1, 2, N)], axis=1).astype(np.int32),
        row=rng.permutation(N) * 3 + 100,
        label=rng.integers(0, 2, N).astype(np.float32),
        sequences={"tags": (rng.integers(0, 4, offsets[-1]).astype(np.int32), offsets)},
    )


def model_of(method, **options):
    """A model that has moved away from its start, so that every adapter counts."""
    config = RunConfig(
        data=DataConfig(source="synthetic"),
        model=ModelConfig(embedding_size=3, hidden_sizes=(6, 4), dropout=0.5, **options),
        method=method,
    )
    model = build(config, SCHEMA).double()
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=random, dtype=torch.double)
    return model


def mlora(*divisions):
    return model_of(MLoRA(name="mlora", divisions=divisions, rank=Rank(fixed=2)))


def one_by_one(model, rows, column=None):
    """Each row as a batch of its own, in eval mode."""
    model.eval()
    values, offsets = rows.sequences["tags"]
    result = []
    for n in range(len(rows)):
        domain = -1 if column is None else int(rows.domains[n, column])
        experts = len(SCHEMA.divisions[column].domains) if column is not None else 0
        batch = Batch(
            ids=torch.from_numpy(rows.ids[n : n + 1]),
            numbers=torch.from_numpy(rows.numbers[n : n + 1]),
            row=torch.tensor([n]),
            route=Route.hard(torch.tensor([domain]), experts) if experts else Route.none(),
            sequences={
                "tags": Bag(
                    torch.from_numpy(values[offsets[n] : offsets[n + 1]]),
                    torch.tensor([0, offsets[n + 1] - offsets[n]]),
                )
            },
        )
        result.append(float(model(batch).detach()))
    return np.array(result)


@pytest.mark.parametrize("batch_size", [1, 7, N, 1000])
def test_logits_stand_in_the_order_of_the_rows(rows, batch_size):
    model = mlora("tab")
    found = logits(model, rows, SCHEMA, batch_size=batch_size)
    np.testing.assert_allclose(found, one_by_one(model, rows, column=0), atol=1e-12)


def test_a_model_of_the_second_division_reads_the_second_division(rows):
    model = mlora("hour")
    found = logits(model, rows, SCHEMA)
    np.testing.assert_allclose(found, one_by_one(model, rows, column=1), atol=1e-12)


def test_a_model_without_adapters_needs_no_route(rows):
    model = model_of(Mix(name="mix"))
    np.testing.assert_allclose(logits(model, rows, SCHEMA), one_by_one(model, rows), atol=1e-12)


def test_not_routed_is_the_backbone_alone(rows):
    model = mlora("tab")
    alone = replace(rows, domains=np.full_like(rows.domains, -1))
    found = logits(model, rows, SCHEMA, routing=Routing())
    np.testing.assert_allclose(found, one_by_one(model, alone, column=0), atol=1e-12)
    assert not np.allclose(found, logits(model, rows, SCHEMA))


def test_logits_keep_the_precision_of_the_model(rows):
    model = mlora("tab")
    assert logits(model, rows, SCHEMA).dtype == np.float64
    assert logits(model.float(), rows, SCHEMA).dtype == np.float32


@pytest.mark.parametrize("size", [0, 1])
def test_no_rows_and_one_row_can_be_scored(rows, size):
    few = rows.take(np.arange(size))
    assert logits(mlora("tab"), few, SCHEMA).shape == (size,)
    assert predict(mlora("tab"), few, SCHEMA).height == size


def plain(seed):
    """A model without adapters, unlike that of any other seed."""
    model = model_of(Mix(name="mix"))
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=random, dtype=torch.double)
    return model


def test_each_row_is_scored_by_its_domains_own_model_and_all_others_by_the_base(rows):
    base, night = plain(2), plain(3)
    found = assembled_logits(base, {"night": night}, rows, SCHEMA, "hour", batch_size=5)
    of_base, of_night = one_by_one(base, rows), one_by_one(night, rows)
    for n in range(N):
        expected = of_night[n] if rows.domains[n, 1] == 1 else of_base[n]
        assert found[n] == pytest.approx(expected, abs=1e-12)
    assert set(rows.domains[:, 1]) == {-1, 0, 1}


def test_the_table_takes_domain_models_too(rows):
    base, night = plain(2), plain(3)
    table = predict(base, rows, SCHEMA, domain_models={"night": night}, division="hour")
    parts = [predict(base, rows, SCHEMA), predict(night, rows, SCHEMA)]
    is_night = parts[0]["hour"].eq_missing("night")
    expected = parts[0]["probability"].zip_with(~is_night, parts[1]["probability"])
    np.testing.assert_allclose(table["probability"], expected, atol=1e-12)


def test_without_domain_models_the_base_scores_all_rows(rows):
    model = mlora("tab")
    found = assembled_logits(model, {}, rows, SCHEMA, None)
    np.testing.assert_array_equal(found, logits(model, rows, SCHEMA))


def test_domain_models_of_no_rows_and_of_no_domain(rows):
    base = plain(2)
    none = rows.take(np.arange(0))
    assert assembled_logits(base, {"day": plain(3)}, none, SCHEMA, "hour").shape == (0,)
    with pytest.raises(UnknownDomainError, match="no domain 'dusk'"):
        assembled_logits(base, {"dusk": plain(3)}, rows, SCHEMA, "hour")


def test_every_module_gets_its_mode_back(rows):
    model = model_of(Mix(name="mix"), batch_norm=True)
    model.train()
    model.embedding.eval()  # a frozen part of a model in training
    before = [module.training for module in model.modules()]
    logits(model, rows, SCHEMA)
    assert [module.training for module in model.modules()] == before


def test_a_failure_gives_the_modes_back_too(rows):
    model = mlora("tab").train()
    with pytest.raises((IndexError, RuntimeError)):
        logits(model, replace(rows, ids=rows.ids + 100), SCHEMA)
    assert model.training


def test_scoring_changes_nothing_in_the_model(rows):
    model = model_of(Mix(name="mix"), batch_norm=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits(model, rows, SCHEMA)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_sigmoid_is_torchs_and_never_overflows():
    x = np.array([-1e4, -750.0, -3.0, -1e-9, 0.0, 0.5, 40.0, 1e4])
    np.testing.assert_allclose(sigmoid(x), torch.sigmoid(torch.from_numpy(x)), rtol=1e-14)
    single = x.astype(np.float32)
    assert sigmoid(single).dtype == np.float32
    np.testing.assert_allclose(sigmoid(single), torch.sigmoid(torch.from_numpy(single)), rtol=3e-7)


def test_the_table_is_in_the_order_of_the_source(rows):
    model = mlora("tab")
    table = predict(model, rows, SCHEMA)
    assert table.columns == ["row", "tab", "hour", "label", "probability"]
    assert table["row"].to_list() == sorted(rows.row)
    by_row = dict(zip(rows.row.tolist(), sigmoid(logits(model, rows, SCHEMA)), strict=True))
    assert table["probability"].to_list() == [by_row[row] for row in table["row"]]


def test_names_and_labels_belong_to_their_rows(rows):
    table = predict(mlora("tab"), rows, SCHEMA)
    assert table.schema["label"] == pl.Float32
    for n in range(N):
        (line,) = table.filter(row=int(rows.row[n])).iter_rows(named=True)
        expected = ["home", "feed", "kids", None][rows.domains[n, 0]]
        assert (line["tab"], line["label"]) == (expected, rows.label[n])
        assert line["hour"] == ["day", "night", None][rows.domains[n, 1]]


def test_optional_columns_are_there_when_the_rows_have_them(rows):
    more = replace(
        rows,
        weight=np.arange(N, dtype=np.float32),
        group=np.arange(N)[::-1].copy(),
        oracle=np.full(N, 0.25, np.float32),
        label=None,
    )
    table = predict(mlora("tab"), more, SCHEMA)
    assert table.columns == ["row", "tab", "hour", "probability", *OPTIONAL]
    assert table["weight"].to_list() == np.arange(N)[np.argsort(rows.row)].tolist()


def test_a_logit_that_is_no_number_is_refused_with_its_row(rows):
    broken = np.zeros(N)
    broken[4] = np.nan
    with pytest.raises(DataError, match=f"1 of {N} rows; the first of them is row {rows.row[4]}"):
        tabulate(broken, rows, SCHEMA)


def test_the_adapters_of_the_test_model_do_something():
    assert any(isinstance(module, LowRankLinear) for module in mlora("tab").modules())
