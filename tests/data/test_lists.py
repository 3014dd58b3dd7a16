"""Lists as text, against json and Python's own writing of the same lists."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractr.data import canonical, lists
from loractr.data.canonical import Reading
from loractr.errors import DataError
from loractr.schema import Field

WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8), max_size=5)


def split(*texts, separator=None):
    return lists.split(pl.Series(texts, dtype=pl.String), separator).to_list()


@given(st.lists(st.integers(-(10**20), 10**20), max_size=6))
def test_lists_of_whole_numbers_are_read_as_json_python_and_numpy_write_them(values):
    written = [json.dumps(values), str(values), " " + str(values) + " "]
    if all(abs(value) < 2**60 for value in values):
        written.append(str(np.array(values, dtype=np.int64)).replace("\n", ""))
    expected = [str(value) for value in values]
    assert split(*written, separator=",") == [expected] * len(written)


@given(WORDS)
def test_lists_of_text_are_read_as_json_writes_them(words):
    assert split(json.dumps(words), json.dumps(words, ensure_ascii=False)) == [words, words]


@given(WORDS)
def test_lists_of_text_are_read_as_python_writes_them(words):
    assert split(str(words)) == [words]


@pytest.mark.parametrize(
    ("text", "separator", "ids"),
    [
        ("a, b", ",", ["a", "b"]),
        ("a ,b,, c ", ",", ["a", "b", "c"]),
        ("a|b|c", "|", ["a", "b", "c"]),
        ("a; b", ";", ["a", "b"]),
        ("a b  c", " ", ["a", "b", "c"]),
        ("[a|b|c]", "|", ["a", "b", "c"]),
        ("[new york, paris]", None, ["new york", "paris"]),
        ("['a' 'b']", None, ["a", "b"]),
        ("(103, 107)", None, ["103", "107"]),
        ("(103,)", ",", ["103"]),
        ("{103,107}", None, ["103", "107"]),
        ("{103}", ",", ["103"]),
        ("(unknown)", ",", ["(unknown)"]),
        ("array([1, 2])", ",", ["1", "2"]),
        ("array(['a', 'b'], dtype=object)", None, ["a", "b"]),
        ("[]", None, []),
        ("[ ]", ",", []),
        ("", ",", []),
        (None, ",", None),
        ('["it\'s", "a, b"]', ",", ["it's", "a, b"]),
    ],
)
def test_a_text_falls_into_its_ids(text, separator, ids):
    assert split(text, separator=separator) == [ids]


def test_a_list_column_and_its_text_hold_the_same_ids():
    values = pl.Series("history", [[103, 107], [], [103], None])
    text = pl.Series("history", ["[103, 107]", "[]", "[103.0]", ""])
    field, reading = Field(name="history", kind="sequence"), Reading("integer", ("",))
    there, here = (canonical.bags(column, field, reading) for column in (values, text))
    assert there[0].to_list() == here[0].to_list() == [103, 107, None, 103, None]
    assert there[1].tolist() == here[1].tolist() == [0, 2, 3, 4, 5]


def test_text_without_brackets_needs_a_separator():
    values = pl.Series("tags", ["a|b", "[c]"])
    with pytest.raises(DataError, match=r"text such as 'a\|b'"):
        canonical.bags(values, Field(name="tags", kind="sequence"), Reading("text"))


@pytest.mark.parametrize("text", ["[[1, 2], [3]]", "[0 1 2 ... 7 8 9]", "[1, 2, ..., 9]"])
def test_lists_of_lists_and_lists_that_were_cut_short_are_refused(text):
    values = pl.Series("tags", [text, "[1]"])
    for separator in (None, ","):
        field = Field(name="tags", kind="sequence", separator=separator)
        with pytest.raises(DataError, match="reads sequences from column 'tags' of text such as"):
            canonical.bags(values, field, Reading("text"))
