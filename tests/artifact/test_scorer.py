"""A scorer takes raw rows as they come, and many threads at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

from loractr import load
from loractr.batch import Routing
from loractr.errors import DataError, MissingColumnError, UnknownDomainError, UsageError
from loractr.predict import logits, sigmoid
from loractr.schema import Division, Field, Schema


@pytest.fixture
def scorer(mlora, tmp_path):
    mlora.save(tmp_path / "artifact")
    return load(tmp_path / "artifact")


@pytest.fixture
def tuned(finetune, tmp_path):
    finetune.save(tmp_path / "tuned")
    return load(tmp_path / "tuned")


def test_frame_columns_and_dicts_are_the_same_rows(scorer, mlora):
    expected = mlora.probabilities()
    np.testing.assert_array_equal(scorer.predict(mlora.frame), expected)
    np.testing.assert_array_equal(scorer.predict(mlora.frame.to_dict(as_series=False)), expected)
    np.testing.assert_array_equal(scorer.predict(mlora.frame.to_dicts()), expected)


def test_probabilities_stand_in_the_order_of_the_rows(scorer, mlora):
    back = scorer.predict(mlora.frame.reverse())[::-1]
    np.testing.assert_allclose(back, mlora.probabilities(), atol=1e-6)


def test_columns_that_no_field_reads_do_not_matter(scorer, mlora):
    more = mlora.frame.with_columns(noise=pl.lit("?"))
    more = more.select(reversed(more.columns))
    np.testing.assert_array_equal(scorer.predict(more), mlora.probabilities())


def test_no_rows_have_no_probabilities(scorer, tuned, mlora):
    for which in (scorer, tuned):
        for nothing in ([], {}, mlora.frame.clear(), {name: [] for name in mlora.frame.columns}):
            found = which.predict(nothing)
            assert (found.shape, found.dtype) == ((0,), np.float32)


def test_one_row_can_be_scored(scorer, tuned, mlora):
    for which in (scorer, tuned):
        alone = [which.predict([row])[0] for row in mlora.frame.to_dicts()]
        np.testing.assert_allclose(alone, which.predict(mlora.frame), atol=1e-6)


@pytest.mark.parametrize("domain", ["feed", "home", "kids"])
def test_a_forced_domain_scores_all_rows_as_its_own(scorer, tuned, mlora, domain):
    written = mlora.frame.with_columns(tab=pl.lit(domain))
    for which in (scorer, tuned):
        expected = which.predict(written)
        np.testing.assert_array_equal(which.predict(mlora.frame, domain=domain), expected)
        without = which.predict(mlora.frame.drop("tab"), domain=domain)
        np.testing.assert_array_equal(without, expected)


def test_a_forced_domain_is_one_of_the_methods_division(finished, tmp_path):
    saved = finished({"name": "mlora", "divisions": ["hour"], "rank": {"fixed": 2}})
    saved.save(tmp_path / "artifact")
    scorer = load(tmp_path / "artifact")
    expected = scorer.predict(saved.frame.with_columns(hour=20))
    found = scorer.predict(saved.frame.drop("hour"), domain=">=12")
    np.testing.assert_array_equal(found, expected)


def test_an_unknown_domain_cannot_be_forced(scorer, mlora):
    with pytest.raises(UnknownDomainError, match=r"no domain 'attic'.*'feed', 'home', 'kids'"):
        scorer.predict(mlora.frame, domain="attic")


def test_a_model_without_divisions_has_no_domain_to_force(finished, tmp_path):
    saved = finished({"name": "mix"}, schema=Schema(fields=(Field(name="user"),)))
    saved.save(tmp_path / "artifact")
    with pytest.raises(UsageError, match="made without divisions"):
        load(tmp_path / "artifact").predict(saved.frame, domain="home")


def test_rows_of_an_unseen_domain_are_scored_by_the_backbone_alone(scorer, mlora):
    strange = mlora.frame.with_columns(tab=pl.lit("attic"))
    rows = mlora.encoders.encode(strange)
    expected = sigmoid(logits(mlora.model, rows, mlora.schema, routing=Routing()))
    np.testing.assert_array_equal(scorer.predict(strange), expected)


def test_rows_of_domains_without_a_model_are_scored_by_the_base(tuned, finetune):
    strange = finetune.frame.filter(pl.col("tab") == "feed")
    rows = finetune.encoders.encode(strange)
    expected = sigmoid(logits(finetune.model, rows, finetune.schema))
    np.testing.assert_array_equal(tuned.predict(strange), expected)


def test_an_unseen_domain_is_an_error_where_the_division_says_so(finished, tmp_path):
    strict = Schema(
        fields=(Field(name="user"),),
        divisions=(Division(name="tab", column="tab", unseen="error"),),
    )
    saved = finished({"name": "mlora"}, schema=strict)
    saved.save(tmp_path / "artifact")
    with pytest.raises(UnknownDomainError, match="no domain 'attic'"):
        load(tmp_path / "artifact").predict({"user": [1, 2], "tab": ["home", "attic"]})


@pytest.mark.parametrize("column", ["user", "age", "tags", "tab", "hour"])
def test_a_missing_column_is_named(scorer, mlora, column):
    with pytest.raises(MissingColumnError, match=f"column '{column}'"):
        scorer.predict(mlora.frame.drop(column))


@pytest.mark.parametrize(
    "rows", [{"user": [1, 2], "tab": ["home"]}, {"user": [1, "x"]}, [{"user": [1]}, 3], 7]
)
def test_rows_that_make_no_table_are_refused(scorer, rows):
    with pytest.raises(DataError, match=r"(make no table|is not in the table)"):
        scorer.predict(rows)


def test_threads_share_a_scorer(scorer, tuned, mlora):
    """Different rows at the same time: each thread gets its own."""
    parts = [mlora.frame[start : start + 12] for start in range(0, 60, 12)] * 8
    for which in (scorer, tuned):
        expected = [which.predict(part) for part in parts]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(which.predict, parts))
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, want)
