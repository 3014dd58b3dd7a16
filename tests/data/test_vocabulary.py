"""The vocabulary against a plain dictionary, and ids of every type and size."""

from collections import Counter
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractr.data import canonical
from loractr.data.vocabulary import ValueCounts, Vocabulary
from loractr.errors import DataError


def fitted(*batches, min_count=1):
    counts = ValueCounts()
    for batch in batches:
        counts.add(canonical.ids(pl.Series("id", batch), "field 'id'"))
    return Vocabulary.fit(counts.table(), min_count=min_count)


def by_dictionary(train, asked, min_count=1):
    """What the docstring says, with a dictionary: frequent first, then by value, missing last."""
    kept = [(v, n) for v, n in Counter(train).items() if n >= min_count or v is None]
    kept.sort(key=lambda pair: (-pair[1], pair[0] is None, pair[0] if pair[0] is not None else 0))
    index = {value: place for place, (value, _) in enumerate(kept, start=1)}
    return [index.get(value, 0) for value in asked]


ints = st.lists(st.none() | st.integers(-4, 9) | st.integers(-(2**63), 2**63 - 1), min_size=1)
texts = st.lists(st.none() | st.sampled_from("abc") | st.text(max_size=4), min_size=1)


@given(ints, ints, st.integers(1, 3))
def test_integers_are_indexed_as_by_a_dictionary(train, asked, min_count):
    vocabulary = fitted(pl.Series(train, dtype=pl.Int64), min_count=min_count)
    found = vocabulary.encode(pl.Series(asked, dtype=pl.Int64))
    assert found.tolist() == by_dictionary(train, asked, min_count)


@given(texts, texts, st.integers(1, 3))
def test_texts_are_indexed_as_by_a_dictionary(train, asked, min_count):
    # Polars compares text by UTF-8 bytes and so does Python by code points: the same order
    vocabulary = fitted(pl.Series(train, dtype=pl.String), min_count=min_count)
    found = vocabulary.encode(pl.Series(asked, dtype=pl.String))
    assert found.tolist() == by_dictionary(train, asked, min_count)


def test_counts_of_many_batches_are_those_of_all_rows_at_once():
    rng = np.random.default_rng(0)
    batches = [rng.zipf(1.5, 3000) % 500 for _ in range(7)]
    vocabulary = fitted(*batches)
    counts = Counter(np.concatenate(batches).tolist())
    assert dict(zip(vocabulary.values, vocabulary.counts, strict=True)) == counts


def test_neighbouring_ids_beyond_2_to_the_24_and_the_53_stay_apart():
    train = [2**24, 2**24 + 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]
    vocabulary = fitted(train)
    assert sorted(vocabulary.encode(pl.Series(train))) == [1, 2, 3, 4, 5, 6]
    assert vocabulary.encode(pl.Series([2**24 + 2, 2**53 + 2])).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [pl.UInt64, pl.Int128, pl.UInt128])
def test_integers_that_int64_cannot_hold_keep_all_their_digits(dtype):
    train = pl.Series([2**63, 2**63 + 1, 5], dtype=dtype)
    vocabulary = fitted(train)
    assert sorted(vocabulary.encode(train)) == [1, 2, 3]
    assert vocabulary.encode(pl.Series([str(2**63)]))[0] == vocabulary.encode(train)[0]
    assert vocabulary.encode(pl.Series([5]))[0] == vocabulary.encode(train)[2]


@pytest.mark.parametrize(
    ("dtype", "first"), [(pl.Float32, 2**24), (pl.Float64, 2**53), (pl.Float64, float("inf"))]
)
def test_floats_that_have_lost_their_last_digits_are_refused(dtype, first):
    values = pl.Series("user", [1, first], dtype=dtype)
    with pytest.raises(DataError, match=r"column 'user' of type Float.* digits are lost"):
        canonical.ids(values, "field 'user'")


@pytest.mark.parametrize(
    "asked",
    [
        pl.Series([712, 5, None]),
        pl.Series([712, 5, None], dtype=pl.Int16),
        pl.Series([712.0, 5.0, float("nan")]),
        pl.Series(["712", "5", None]),
        pl.Series(["712", "5", None], dtype=pl.Categorical),
        pl.Series([Decimal("712.00"), Decimal("5.00"), None]),
        pl.Series([712, 5, None], dtype=pl.UInt64),
    ],
)
@pytest.mark.parametrize("train", [[5, 5, None, 712], ["5", "5", None, "712"]])
def test_an_id_is_the_same_whatever_the_type_of_its_column(train, asked):
    assert fitted(train).encode(asked).tolist() == [2, 1, 3]


def test_texts_that_only_look_like_an_id_are_unknown():
    asked = pl.Series(["0712", " 712", "712.0", "x", ""])
    assert fitted([712, 712, 3]).encode(asked).tolist() == [0] * 5


def test_booleans_and_fractions_have_a_text_of_their_own():
    assert fitted([True, True, False]).values.to_list() == ["true", "false"]
    assert fitted([2.5, 2.5, 1.0]).values.to_list() == ["2.5", "1"]
    assert fitted([2.5, 1.0]).encode(pl.Series(["2.5", "1", "1.0"])).tolist()[2] == 0


def test_missing_is_a_value_of_its_own_only_where_training_rows_have_it():
    asked = pl.Series([None, 7], dtype=pl.Int64)
    assert fitted([7, None], min_count=5).encode(asked).tolist() == [1, 0]
    assert fitted([7, 7]).encode(asked).tolist() == [0, 1]
    assert fitted(pl.Series([None, None])).encode(asked).tolist() == [1, 0]


def test_a_vocabulary_without_values_knows_nothing():
    vocabulary = fitted([1, 2], min_count=2)
    assert len(vocabulary) == 1
    assert vocabulary.encode(pl.Series([1, None])).tolist() == [0, 0]
    assert vocabulary.encode(pl.Series(["1"])).tolist() == [0]
    assert vocabulary.encode(pl.Series([], dtype=pl.Int64)).tolist() == []


@pytest.mark.parametrize("train", [[3, 3, None, 10**12], ["b", "a", None, "a"], []])
def test_a_saved_vocabulary_reads_back_as_it_was(tmp_path, train):
    before = fitted(train)
    before.save(tmp_path / "v.parquet")
    after = Vocabulary.load(tmp_path / "v.parquet")
    assert after.values.equals(before.values, null_equal=True)
    assert after.counts.equals(before.counts)
    asked = pl.Series(train + train)
    assert after.encode(asked).tolist() == before.encode(asked).tolist()


def test_a_vocabulary_that_lists_an_id_twice_is_refused():
    with pytest.raises(DataError, match="'a' twice"):
        Vocabulary(pl.Series(["a", "b", "a"]))


@pytest.mark.parametrize(
    "values", [pl.Series("x", [{"a": 1}]), pl.Series("x", [[1]]), pl.Series("x", [b"a"])]
)
def test_columns_that_hold_no_ids_are_refused(values):
    with pytest.raises(DataError, match=r"field 'x' reads column 'x'.*holds no ids"):
        canonical.ids(values, "field 'x'")
