"""Text that says when, against Python's own reading of the same moments."""

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loractr.data import moments


def read(*texts):
    return (
        pl.select(moments.parsed(pl.lit(pl.Series(texts, dtype=pl.String)))).to_series().to_list()
    )


NOON = datetime(2026, 3, 1, 12)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01", datetime(2026, 3, 1)),
        ("2026/03/01", datetime(2026, 3, 1)),
        ("2026/3/1", datetime(2026, 3, 1)),
        ("2026-03-01 12:00", NOON),
        ("2026-03-01T12:00", NOON),
        ("2026-03-01T12:00:00Z", NOON),
        ("2026-03-01 12:00:00 UTC", NOON),
        ("2026-03-01T12:00:00+00:00", NOON),
        ("2026-03-01T14:00:00+02:00", NOON),
        ("2026-03-01 06:30 -0530", NOON),
        ("2026-03-01 14:00:00+02", NOON),
        (" 2026-03-01 12:00:00.250 ", NOON + timedelta(milliseconds=250)),
        ("2026-03-01T12:00:00.123456789Z", NOON + timedelta(microseconds=123456)),
        ("2026-03-01T01:00:00+02:00", datetime(2026, 2, 28, 23)),
        ("2024-02-29", datetime(2024, 2, 29)),
    ],
)
def test_the_usual_forms_are_read(text, moment):
    assert read(text) == [moment]


@pytest.mark.parametrize(
    "text",
    [
        *("soon", "", "20260301", "1767225600", "31.12.2026", "12/31/2026", "2026-13-01"),
        *("2026-02-30", "2026-03-01 24:00", "2026-03-01 12:60", "2026-03-01+02:00", "2026-03"),
    ],
)
def test_what_is_no_moment_is_null(text):
    assert read(text) == [None]


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from(["T", " "]),
)
def test_any_moment_in_any_zone_is_read_as_python_reads_it(moment, minutes, between):
    there = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    text = there.isoformat(sep=between)
    assert read(text) == [datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)]


def test_the_text_of_a_moment_does_not_depend_on_unit_or_zone():
    moment = datetime(2026, 3, 1, 12, 0, 0, 250_000)
    series = [pl.Series([moment], dtype=pl.Datetime(unit)) for unit in ("ms", "us", "ns")]
    berlin = pl.Series([moment + timedelta(hours=1)]).dt.replace_time_zone("Europe/Berlin")
    texts = {moments.text(values)[0] for values in (*series, berlin)}
    assert texts == {"2026-03-01 12:00:00.25"}


def test_a_midnight_is_its_date():
    dates, midnights = pl.Series([date(2026, 3, 1)]), pl.Series([datetime(2026, 3, 1)])
    assert moments.text(dates).to_list() == moments.text(midnights).to_list() == ["2026-03-01"]


def test_a_text_is_read_as_the_moment_that_it_is_the_text_of():
    rows = pl.Series(
        [datetime(2026, 1, 1) + timedelta(seconds=37 * n, milliseconds=n) for n in range(500)]
    )
    assert read(*moments.text(rows)) == rows.to_list()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01", datetime(2026, 3, 1)),
        ("2026/3/1", datetime(2026, 3, 1)),
        ("2026-03-01T12:00:00+02:00", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ("2026/03/01 12:00 UTC", datetime(2026, 3, 1, 12, tzinfo=UTC)),
    ],
)
def test_one_moment_is_read_with_its_zone(text, moment):
    found = moments.moment(text)
    assert (found.tzinfo is None) == (moment.tzinfo is None)
    assert found == moment
