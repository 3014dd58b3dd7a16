"""Splits: exact sizes, the right law, and for each kind the rows a loop would choose."""

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter

from loractr.data import split as splits
from loractr.data import staging
from loractr.data.config import Split
from loractr.data.split import DROPPED, TEST, TRAIN, VALIDATION
from loractr.data.staging import stage
from loractr.errors import ConfigError, DataError
from loractr.schema import Division, Label, Schema

SCHEMA = Schema(fields=(), divisions=(Division(name="tab", column="tab"),))


@pytest.fixture
def split_of(tmp_path, monkeypatch):
    """Splits a frame whose rows come in several batches."""
    monkeypatch.setattr(staging, "BATCH_ROWS", 64)
    monkeypatch.setattr(splits, "BATCH_ROWS", 64)

    def run(frame, schema=SCHEMA, keep=None, **config):
        split = TypeAdapter(Split).validate_python(config)
        staged = stage(frame.lazy(), frame.columns, tmp_path / "staged.parquet")
        keep = np.ones(len(frame), dtype=bool) if keep is None else keep
        return splits.codes(split, staged, schema, keep, tmp_path)

    return run


def frame(n=1000, seed=0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 40, n),
            "tab": rng.choice(["home", "feed", None], n, p=[0.6, 0.3, 0.1]).tolist(),
            "time": rng.integers(0, 300, n),
            "label": (rng.random(n) < 0.3).astype(int),
        }
    )


def sizes(codes):
    return np.bincount(codes, minlength=4).tolist()


def by_group(table, columns, codes):
    """Codes of each group's rows."""
    found = defaultdict(list)
    for key, code in zip(table.select(columns).rows(), codes.tolist(), strict=True):
        found[key].append(code)
    return found


@pytest.mark.parametrize(
    ("n", "fractions", "expected"),
    [
        (1000, [0.8, 0.1, 0.1], [800, 100, 100]),
        (997, [0.6, 0.2, 0.2], [598, 200, 199]),  # 598.2 and 797.6, to the nearest
        (10, [0.5, 0.5, 0], [5, 5, 0]),
        (129, [0.9, 0, 0.1], [116, 0, 13]),
    ],
)
def test_a_random_split_has_exact_sizes(split_of, n, fractions, expected):
    assert sizes(split_of(frame(n), kind="random", fractions=fractions))[:3] == expected


def test_a_random_split_is_uniform_over_rows_and_over_pairs_of_rows(split_of):
    # 200 rows in four batches of 64: each is in test in a tenth of all draws, and two of them
    # together as often as without replacement, whether they are of the same batch or not
    draws = np.array(
        [split_of(frame(200), kind="random", seed=seed) == TEST for seed in range(600)]
    )
    share = draws.mean(axis=0)
    assert np.abs(share - 0.1).max() < 4.5 * np.sqrt(0.1 * 0.9 / 600)
    for one, other in ((0, 1), (0, 199), (63, 64), (100, 150)):
        together = (draws[:, one] & draws[:, other]).mean()
        assert abs(together - 20 * 19 / (200 * 199)) < 4 * np.sqrt(0.0095 / 600)


def test_the_draw_depends_on_the_seed_and_nothing_else(split_of):
    first = split_of(frame(), kind="random", seed=1)
    again = split_of(frame(seed=5), kind="random", seed=1)
    other = split_of(frame(), kind="random", seed=2)
    assert (first == again).all()
    assert 100 < (first != other).sum() < 600


def test_a_stratified_split_has_exact_sizes_in_each_domain_and_label(split_of):
    table = frame()
    codes = split_of(table, kind="stratified")
    for group in by_group(table, ["tab", "label"], codes).values():
        n = len(group)
        counts = sizes(group)
        assert all(abs(c - f * n) < 1 for c, f in zip(counts, (0.6, 0.2, 0.2), strict=False))


def test_a_stratified_split_goes_by_the_groups_and_thresholds_of_the_natural_division(split_of):
    table = frame()
    groups = Division(name="g", column="user", groups={"a": tuple(range(13))}, rest="b")
    cuts = Division(name="c", column="time", thresholds=(50, 200))
    for division, key in (
        (groups, pl.col("user") < 13),
        (cuts, (pl.col("time") >= 50).cast(int) + (pl.col("time") >= 200)),
    ):
        schema = Schema(fields=(), divisions=(division,))
        codes = split_of(table, schema, kind="stratified", fractions=[0.5, 0.25, 0.25])
        for group in by_group(table.with_columns(key.alias("k")), ["k", "label"], codes).values():
            for code, share in ((TRAIN, 0.5), (VALIDATION, 0.25), (TEST, 0.25)):
                assert abs(group.count(code) - share * len(group)) < 1


def test_a_stratified_split_without_a_division_goes_by_label_alone(split_of):
    table = frame()
    codes = split_of(table, Schema(fields=()), kind="stratified")
    for group in by_group(table, ["label"], codes).values():
        assert abs(group.count(TRAIN) - 0.6 * len(group)) < 1


def test_a_stratified_split_by_activeness_is_refused(split_of):
    schema = Schema(fields=(), divisions=(Division(name="a", column="user", activeness=(3,)),))
    with pytest.raises(ConfigError, match="before the split, but activeness counts training rows"):
        split_of(frame(), schema, kind="stratified")


def test_a_stratified_split_reads_the_label_by_its_rule(split_of):
    table = frame().rename({"label": "rating"})
    schema = Schema(fields=(), label=Label(column="rating", positive="> 0"))
    assert sizes(split_of(table, schema, kind="stratified"))[:3] == [600, 200, 200]
    with pytest.raises(DataError, match="label"):
        split_of(
            table.with_columns(rating=pl.lit(3)),
            Schema(fields=(), label=Label(column="rating")),
            kind="stratified",
        )


@pytest.mark.parametrize("order", [None, "time"])
def test_a_per_user_split_has_the_shares_in_each_user_and_on_average(split_of, order):
    rng = np.random.default_rng(3)
    users = np.repeat(np.arange(900), rng.integers(1, 6, 900))
    table = frame(len(users)).with_columns(user=pl.Series(rng.permutation(users)))
    codes = split_of(table, kind="per_user", column="user", order=order)
    for group in by_group(table, ["user"], codes).values():
        for code, share in ((TRAIN, 0.8), (VALIDATION, 0.1), (TEST, 0.1)):
            assert abs(group.count(code) - share * len(group)) < 1
    # users of one to five rows: no split gets more or less than its share in all
    assert np.abs(np.array(sizes(codes)[:3]) / len(users) - [0.8, 0.1, 0.1]).max() < 0.02


def test_a_per_user_split_in_order_tests_on_the_last_rows(split_of):
    table = frame()
    codes = split_of(table, kind="per_user", column="user", order="time")
    for (_,), rows in table.with_columns(code=codes).with_row_index().group_by("user"):
        in_time = sorted(rows.rows(named=True), key=lambda r: (r["time"], r["index"]))
        assert [r["code"] for r in in_time] == sorted(rows["code"])


@pytest.mark.parametrize("order", [None, "time"])
def test_a_users_share_does_not_depend_on_the_other_users(split_of, order):
    table = frame()
    both = split_of(table, kind="per_user", column="user", order=order)
    few = table.filter(pl.col("user") < 20)
    alone = split_of(few, kind="per_user", column="user", order=order)
    kept = both[(table["user"] < 20).to_numpy()]
    groups, apart = by_group(few, ["user"], kept), by_group(few, ["user"], alone)
    assert {u: sizes(c) for u, c in groups.items()} == {u: sizes(c) for u, c in apart.items()}


@pytest.mark.parametrize(
    "times",
    [
        lambda n: pl.Series(np.arange(n)),
        lambda n: pl.Series(np.arange(n) - n / 2.0),
        lambda n: pl.Series(np.arange(n), dtype=pl.UInt16),
        lambda n: pl.Series([date(1969, 1, 1) + timedelta(days=i) for i in range(n)]),
        lambda n: pl.Series([datetime(1969, 12, 31) + timedelta(minutes=i) for i in range(n)]),
        lambda n: pl.Series(
            [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=i) for i in range(n)]
        ),
    ],
)
def test_a_temporal_split_by_fractions_cuts_the_sorted_times(split_of, times):
    order = np.random.default_rng(0).permutation(500)
    table = pl.DataFrame({"time": times(500).gather(order)})
    codes = split_of(table, kind="temporal", column="time", fractions=[0.7, 0.1, 0.2])
    expected = np.where(order < 350, TRAIN, np.where(order < 400, VALIDATION, TEST))
    assert (codes == expected).all()


def test_rows_of_equal_time_stay_together_as_near_to_the_shares_as_they_can(split_of):
    times = [1] * 30 + [2] * 35 + [3] * 5 + [4] * 30
    table = pl.DataFrame({"time": times})
    codes = split_of(table, kind="temporal", column="time", fractions=[0.6, 0.2, 0.2])
    # 60 wanted before the first cut: 65 are nearer than 30; 80 before the second: 70 than 100
    assert by_group(table, ["time"], codes) == {
        (1,): [TRAIN] * 30, (2,): [TRAIN] * 35, (3,): [VALIDATION] * 5, (4,): [TEST] * 30,
    }  # fmt: skip


def test_a_temporal_split_without_validation_or_test_uses_all_rows(split_of):
    table = frame(100)
    codes = split_of(table, kind="temporal", column="time", fractions=[0.7, 0.3, 0])
    assert sizes(codes)[TEST] == 0
    assert 65 <= sizes(codes)[TRAIN] <= 75


@pytest.mark.parametrize(
    ("times", "moments"),
    [
        ([1, 5, 9, 9], (5, 9)),
        ([1.0, 5.0, 9.0, 9.5], (4.5, 9)),
        ([1, 5, 9, 9], (4.5, 8.01)),
        ([date(2022, 5, d) for d in (1, 2, 3, 4)], ("2022-05-02", "2022-05-03")),
        ([datetime(2022, 5, d) for d in (1, 2, 3, 4)], ("2022-05-02", "2022-05-03T00:00:00")),
        ([datetime(2022, 5, d) for d in (1, 2, 3, 4)], ("2022-05-02T01:00+02:00", "2022-05-03")),
    ],
)
def test_a_temporal_split_by_moments(split_of, times, moments):
    table = pl.DataFrame({"time": times})
    codes = split_of(
        table, kind="temporal", column="time", validation_from=moments[0], test_from=moments[1]
    )
    assert codes.tolist() == [TRAIN, VALIDATION, TEST, TEST]


def test_a_moment_without_zone_is_refused_where_the_texts_have_one(split_of):
    times = [f"2026-03-{day:02}T00:30:00+01:00" for day in range(1, 11)]
    table = pl.DataFrame({"time": times})
    config = {"kind": "temporal", "column": "time", "test_from": "2026-03-09T00:00:00+01:00"}
    with pytest.raises(ConfigError, match=r"says no zone, but the times of column 'time' do"):
        split_of(table, **config, validation_from="2026-03-07")
    found = split_of(table, **config, validation_from="2026/03/07 00:00 +01:00")
    assert found.tolist() == [0] * 6 + [1] * 2 + [2] * 2


def test_a_moment_without_zone_is_in_the_zone_of_the_column(split_of):
    midnight = datetime(2022, 5, 2, 22, tzinfo=UTC)  # 3 May, 0 h in Berlin
    times = [midnight - timedelta(seconds=1), midnight, midnight + timedelta(days=1)]
    table = pl.DataFrame({"time": pl.Series(times).dt.convert_time_zone("Europe/Berlin")})
    codes = split_of(
        table, kind="temporal", column="time", validation_from="2022-05-03", test_from="2022-05-04"
    )
    assert codes.tolist() == [TRAIN, VALIDATION, TEST]


@pytest.mark.parametrize(
    ("times", "moments"),
    [
        ([1, 2, 3], ("yesterday", 3)),
        ([1, 2, 3], ("2022-05-02", "2022-05-03")),
        ([date(2022, 5, 1)] * 3, (7, 9)),
        ([date(2022, 5, 1)] * 3, ("2022-05-02", "soon")),
        ([1, 2, 3], (3, 2)),
    ],
)
def test_moments_that_do_not_fit_the_column_are_refused(split_of, times, moments):
    with pytest.raises(ConfigError, match="split: "):
        split_of(
            pl.DataFrame({"time": times}),
            kind="temporal",
            column="time",
            validation_from=moments[0],
            test_from=moments[1],
        )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2022-05-01", "31.12.2022"], r"such as '31\.12\.2022', which is not always"),
        ([True, False], "is of type Boolean; it must hold numbers, dates"),
        ([1, None], r"1 rows have no time \(row 1, counted from 0\)"),
        ([float("nan"), 1.0], r"1 rows have no time \(row 0,"),
    ],
)
def test_a_column_that_tells_no_time_is_refused(split_of, times, message):
    with pytest.raises(DataError, match=message):
        split_of(
            pl.DataFrame({"time": times}),
            kind="temporal",
            column="time",
            fractions=[0.5, 0.25, 0.25],
        )


def test_a_column_says_the_split_whatever_its_type(split_of):
    table = pl.DataFrame({"s": [0, 2, 1, 0], "t": ["tr", "te", "va", "tr"]})
    by_number = {"column": "s", "train": [0], "validation": [1], "test": [2]}
    by_text = {"column": "t", "train": ["tr"], "validation": ["va"], "test": ["te"]}
    for config in (by_number, by_text):
        assert split_of(table, kind="column", **config).tolist() == [TRAIN, TEST, VALIDATION, TRAIN]


def test_a_column_value_without_a_place_is_refused_by_name_and_row(split_of):
    table = pl.DataFrame({"s": ["train", "dev", "test", None]})
    with pytest.raises(DataError, match=r"holds 'dev' \(rows 1, 3, counted from 0\)"):
        split_of(table, kind="column", column="s", validation=[])


def test_a_column_value_in_two_lists_is_refused(split_of):
    with pytest.raises(ConfigError, match="one split only"):
        split_of(pl.DataFrame({"s": [1]}), kind="column", column="s", train=[1], test=["1"])


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "temporal", "column": "time", "validation_from": -5, "test_from": 2},
        {"kind": "temporal", "column": "time", "validation_from": 500, "test_from": 600},
        {"kind": "column", "column": "side", "train": ["b"], "validation": ["a"]},
        {"kind": "column", "column": "side", "train": ["a"], "validation": ["b", "c"]},
    ],
)
def test_a_split_that_stays_empty_is_refused(split_of, config):
    table = frame(50).with_columns(side=pl.Series(["a", "b"] * 25))
    with pytest.raises(DataError, match="puts none of the 50 rows into"):
        split_of(table, **config)


def test_a_column_split_without_validation_is_allowed_when_it_says_so(split_of):
    table = pl.DataFrame({"s": ["train", "test"]})
    assert sizes(split_of(table, kind="column", column="s", validation=[]))[:3] == [1, 0, 1]


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "random"},
        {"kind": "stratified", "fractions": [0.8, 0.1, 0.1]},
        {"kind": "temporal", "column": "time", "fractions": [0.8, 0.1, 0.1]},
        {"kind": "per_user", "column": "user"},
        {"kind": "per_user", "column": "user", "order": "time"},
    ],
)
def test_dropped_rows_take_no_part_and_count_for_nothing(split_of, config):
    table = frame()
    keep = np.random.default_rng(1).random(1000) < 0.5
    codes = split_of(table, keep=keep, **config)
    assert ((codes == DROPPED) == ~keep).all()
    assert np.abs(np.array(sizes(codes)[:3]) / keep.sum() - [0.8, 0.1, 0.1]).max() < 0.03
