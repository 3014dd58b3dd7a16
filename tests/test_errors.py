"""Errors: what they hold, and that it survives the way from one process to another."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractr.errors import (
    AdapterError,
    ConfigError,
    DataError,
    DownloadError,
    MalformedLineError,
    MissingColumnError,
    UnknownDomainError,
    meant,
    nearest,
    shown,
    some,
)


@pytest.mark.parametrize(
    "error",
    [
        AdapterError("rank 9 is too large.", fix="use 8."),
        ConfigError(["seed: negative", "data.path: missing"], fix="see the reference."),
        DownloadError("too large.", fix="copy it by hand."),
        MalformedLineError("log.csv", 7, "no number"),
        MissingColumnError("itm", ["user", "item"], wanted_by="field 'itm'"),
        UnknownDomainError("tab", ["x"], ["a", "b"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_processes_whole(error):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


LONG = "x" * 100_000
MANY = [f"name {n}" for n in range(10_000)]


@pytest.mark.parametrize(
    "error",
    [
        MissingColumnError(LONG, MANY, wanted_by=f"field {LONG!r}"),
        MissingColumnError("name", [f"{n} {LONG}" for n in range(9)], wanted_by="the label"),
        UnknownDomainError(LONG, MANY, MANY),
        UnknownDomainError("tab", [LONG, LONG + "y"], [LONG]),
        ConfigError([f"data.fields: {name}" for name in MANY]),
        ConfigError([LONG] * 15),
        DataError(f"column {LONG!r} is wrong", fix=LONG),
        MalformedLineError("log.csv", 7, LONG),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_message_is_of_bounded_length_and_the_error_holds_all(error):
    told = str(error)
    assert len(told) < 21_000
    assert len(told.splitlines()) <= 23
    if isinstance(error, ConfigError):
        assert len(told) < 10_000
        assert len(error.problems) in {15, 10_000}
    if isinstance(error, MissingColumnError | UnknownDomainError):
        assert len(told) < 2_000


def test_many_problems_are_counted_and_the_first_are_told():
    told = str(ConfigError(f"place {n}: wrong" for n in range(10_000))).splitlines()
    assert told[0] == "10,000 configuration problems:"
    assert told[1] == "  - place 0: wrong"
    assert told[20] == "  - place 19: wrong"
    assert told[21:] == ["  … and 9,980 more"]
    assert len(str(ConfigError(f"place {n}: wrong" for n in range(20))).splitlines()) == 21


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("itemid", ["user_id", "item_id"], "item_id"),
        ("ITEM_ID", ["user_id", "item_id"], "item_id"),
        ("item_id", ["UserId", "ItemId"], "ItemId"),
        ("Label", ["LABEL", "label"], "LABEL"),
        ("prix", ["user", "item"], None),
        ("user", [], None),
    ],
)
def test_the_nearest_name_is_alike_whatever_its_case(name, known, expected):
    assert nearest(name, known) == expected
    told = meant(name, known)
    assert told == (f"did you mean {expected!r}?" if expected else f"there are {some(known)}")


@given(st.lists(st.text(max_size=80), max_size=12), st.integers(1, 9))
def test_some_names_are_the_first_ones_and_a_count(names, limit):
    told = some(names, limit)
    more = len(names) - limit
    assert told.endswith(f" and {more} more") or more <= 0
    expected = ", ".join(map(repr, names[:limit])) if names else "none"
    assert told.removesuffix(f" and {more} more") == expected


def test_a_long_value_is_cut_where_it_shows():
    assert shown("abc") == "'abc'"
    assert shown(3) == "3"
    assert shown("x" * 81) == repr("x" * 79 + "…")
    assert len(shown(list(range(10_000)))) == 80


@pytest.mark.parametrize(
    ("present", "hint"),
    [
        (["user_id", "ItemID"], "did you mean 'ItemID'?"),
        (["a", "b"], "it has 'a', 'b'."),
        ([], "it has none."),
    ],
)
def test_a_missing_column_comes_with_the_nearest_or_with_those_that_are_there(present, hint):
    error = MissingColumnError("item_id", iter(present), wanted_by="field 'item'")
    assert str(error).splitlines() == [
        f"column 'item_id', wanted by field 'item', is not in the table; {hint}",
        "Fix: rename the table's column to 'item_id', or add such a column; before training, the"
        " configuration may name another one instead.",
    ]
