"""One id, one meaning, whatever the file. The other opinion is that of pandas: it writes the files,
and its `factorize` says which values are equal."""

import datetime as dt
import io
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loractr.artifact.scorer import as_frame
from loractr.data import canonical
from loractr.data.canonical import Reading
from loractr.data.config import MISSING_VALUES
from loractr.data.fit import Fit
from loractr.data.id_type import IdTypes
from loractr.data.sources import delimited
from loractr.data.sources.text_file import opened
from loractr.errors import DataError
from loractr.schema import Division, Field, Schema

ROWS = 40

SCHEMA = Schema(
    fields=(
        Field(name="kept", column="x"),
        Field(name="hashed", column="x", hash_buckets=1 << 20),
        Field(name="rare", column="x", min_count=2),
    ),
    divisions=(Division(name="each", column="x"),),
    missing_values=MISSING_VALUES,
)


@dataclass(frozen=True)
class Sort:
    """A sort of column: how to draw its distinct values, and pandas' type for them."""

    pool: st.SearchStrategy
    dtype: str
    id_type: str
    gaps: bool = False


WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
CODES = st.text("0123456789ab.", min_size=1, max_size=6)
MOMENTS = st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2100, 1, 1))
SECONDS = MOMENTS.map(lambda moment: moment.replace(microsecond=0))
SORTS = {
    "whole": Sort(WHOLE, "int64", "integer"),
    "whole, small": Sort(st.integers(-30, 30), "int8", "integer"),
    "whole with gaps": Sort(WHOLE, "float64", "integer", gaps=True),
    "whole with gaps, Int64": Sort(st.integers(0, 2**62), "Int64", "integer", gaps=True),
    "booleans": Sort(st.booleans(), "bool", "boolean"),
    "booleans with gaps": Sort(st.booleans(), "object", "boolean", gaps=True),
    "decimals": Sort(
        st.integers(-4000, 4000).map(lambda n: (2 * n + 1) / 8), "float64", "text", gaps=True
    ),
    "codes": Sort(CODES, "object", "text", gaps=True),
    "days": Sort(MOMENTS.map(lambda m: pd.Timestamp(m.date())), "datetime64[s]", "time", gaps=True),
    "moments, s": Sort(SECONDS, "datetime64[s]", "time", gaps=True),
    "moments, ms": Sort(SECONDS, "datetime64[ms]", "time"),
    "moments, us": Sort(MOMENTS, "datetime64[us]", "time", gaps=True),
    "moments, ns": Sort(MOMENTS, "datetime64[ns]", "time"),
}


def column(values, sort):
    if sort.dtype == "object":
        return pd.Series(values, dtype="object", name="x")
    if sort.dtype == "float64":
        values = [np.nan if value is None else value for value in values]
    return pd.Series(values, name="x").astype(sort.dtype)


def from_csv(series, folder):
    series.to_frame().assign(y=1).to_csv(folder / "log.csv", index=False)
    return delimited.text(opened(folder / "log.csv")).collect()


def from_parquet(series, _):
    buffer = io.BytesIO()
    series.to_frame().to_parquet(buffer)
    return pl.read_parquet(buffer.getvalue())


def from_json(series, _):
    cells = [None if pd.isna(value) else value for value in series]
    rows = [{"x": c.isoformat() if isinstance(c, dt.datetime) else c} for c in cells]
    text = json.dumps(rows, default=lambda value: value.item())
    return as_frame(json.loads(text))


def from_dicts(series, _):
    cells = [None if pd.isna(value) else value for value in series]
    plain = [c.item() if isinstance(c, np.generic) else c for c in cells]
    return as_frame({"x": [c.to_pydatetime() if isinstance(c, pd.Timestamp) else c for c in plain]})


FORMS = (from_csv, from_parquet, from_json, from_dicts)


def fitted(frame):
    fit = Fit(SCHEMA)
    rows = np.arange(len(frame))
    fit.observe(frame, np.ones(len(frame), dtype=np.bool_), rows)
    return fit.encoders()


def codes(frame, encoders):
    """Every number that `frame` becomes: (rows, fields + divisions)."""
    rows = encoders.encode(frame)
    return np.concatenate([rows.ids, rows.domains], axis=1)


QUICK = settings(
    max_examples=2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", SORTS)
@QUICK
@given(data=st.data())
def test_a_value_is_the_same_id_in_every_form_of_training_and_scoring_rows(name, data, tmp_path):
    check_every_form(SORTS[name], data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SORTS)
@settings(QUICK, max_examples=20)
@given(data=st.data())
def test_so_are_ten_thousand_values(name, data, tmp_path):
    """13 sorts of columns, 20 of each, 40 values to train and 40 to score."""
    check_every_form(SORTS[name], data, tmp_path)


def check_every_form(sort, data, tmp_path):
    pool = data.draw(st.lists(sort.pool, min_size=1, max_size=12, unique=True))
    if sort is SORTS["codes"]:  # one leading zero is what makes them text
        pool = [code for code in pool if code not in MISSING_VALUES] + ["007"]
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    known = [*pool, *([None] if sort.gaps else [])]
    train = [*known, *(known[i] for i in rng.integers(len(known), size=ROWS - len(known)))]
    new = [known[i] for i in rng.integers(len(known), size=ROWS)]
    training, scoring = column(train, sort), column(new, sort)
    tables = {form: (form(training, tmp_path), form(scoring, tmp_path)) for form in FORMS}
    encoders = {form: fitted(there) for form, (there, _) in tables.items()}
    first = encoders[from_csv]
    assert first.schema.fields[0].id_type == sort.id_type
    expected = codes(tables[from_csv][1], first)
    for fitted_on in encoders.values():
        assert fitted_on.schema == first.schema
        vocabulary = fitted_on.vocabularies["kept"]
        assert vocabulary.values.cast(pl.String).to_list() == (
            first.vocabularies["kept"].values.cast(pl.String).to_list()
        )
        for _, asked in tables.values():
            assert (codes(asked, fitted_on) == expected).all()
    same = pd.factorize(pd.concat([training, scoring]), use_na_sentinel=False)[0][ROWS:]
    assert (expected[:, 0] > 0).all()
    assert ((expected[:, 0][:, None] == expected[:, 0]) == (same[:, None] == same)).all()


@pytest.mark.parametrize(
    ("values", "id_type"),
    [
        (["52", "52.0", "7"], "integer"),
        (["-3", "0", "-0.0", "10.00"], "integer"),
        ([" 52", "7 "], "integer"),
        (["99999999999999999999999"], "integer"),
        (["52", "007"], "text"),
        (["52", "+7"], "text"),
        (["2.0", "2.5"], "text"),
        (["1e3", "2"], "text"),
        (["1", "0"], "integer"),
        (["True", "false", "1"], "boolean"),
        (["True", "2"], "text"),
        (["2026-03-01", "2026/03/02 12:00 UTC"], "time"),
        (["2026-03-01", "20260302"], "text"),
        (["00:24", "00:25:00.5"], "time"),
        (["00:24", "2026-03-01"], "text"),
        (["a"], "text"),
        ([], "text"),
    ],
)
def test_the_type_is_decided_by_all_values(values, id_type):
    types = IdTypes("field 'x'")
    for value in values:  # batch by batch
        types.observe(pl.Series([value, None]))
    assert types.decided() == id_type


@pytest.mark.parametrize(
    ("reading", "values", "ids"),
    [
        (
            "integer",
            ["52", "52.0", " 52 ", "052", "x", "2.5"],
            ["52", "52", "52", "052", "x", "2.5"],
        ),
        ("integer", [52.0, None, -0.0], [52, None, 0]),
        ("integer", [True, False], [1, 0]),
        ("integer", ["True", "3"], [1, 3]),
        ("boolean", ["True", "false", "1", "0.0", "x"], ["true", "false", "true", "false", "x"]),
        ("boolean", [1.0, 0.0, None], ["true", "false", None]),
        ("text", ["007", "7", "2.0", "2", "1e3"], ["007", "7", "2.0", "2", "1e3"]),
        ("text", [2.0, 2.5], ["2.0", "2.5"]),
        ("time", ["2026-03-01T00:00Z", "soon"], ["2026-03-01", "soon"]),
        ("time", [dt.time(0, 24)], ["00:24:00"]),
        (
            "time",
            ["0:24", "00:24:00.000000000", "00:24:00.50"],
            ["00:24:00", "00:24:00", "00:24:00.5"],
        ),
        ("text", [" a", "a ", "a"], ["a", "a", "a"]),
    ],
)
def test_values_are_read_one_by_one(reading, values, ids):
    found = canonical.ids(pl.Series("x", values), "field 'x'", Reading(reading))
    assert found.to_list() == ids


@pytest.mark.parametrize(
    "values", [[2.0**53], ["9007199254740993.0", "1"], ["1.2345678901234568e+18", "52.0"]]
)
def test_ids_that_a_float_has_rounded_are_refused(values):
    with pytest.raises(DataError, match="last digits"):
        canonical.ids(
            pl.Series("x", values), "field 'x'", canonical.decided(pl.Series(values), "field 'x'")
        )


@pytest.mark.parametrize("values", [["007", "12"], ["+4930", "12"], ["1e3", "7"]])
def test_digits_that_are_no_numbers_are_no_amounts(values):
    types = IdTypes("field 'x'")
    types.observe(pl.Series(values))
    assert not types.are_decimals


def test_without_a_type_ids_are_read_as_before():
    """As models do that were saved before ids had a type: by hand, from what they read."""
    read = [
        canonical.ids(values, "field 'x'").to_list()
        for values in (
            pl.Series(["52", "52.0", " 52"]),
            pl.Series([52.0, 2.5]),
            pl.Series([True]),
            pl.Series([dt.datetime(2026, 3, 1)], dtype=pl.Datetime("ms")),
        )
    ]
    assert read == [["52", "52.0", " 52"], ["52", "2.5"], ["true"], ["2026-03-01 00:00:00.000"]]
