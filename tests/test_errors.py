"""Errors: what they hold, and that it survives the way from one process to another."""

import pickle

import pytest

from loractr.errors import (
    AdapterError,
    ConfigError,
    DownloadError,
    MalformedLineError,
    MissingColumnError,
    UnknownDomainError,
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
