"""Drawn negatives follow the published protocol, for each user and each domain, and come again."""

import math
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from loractr.data.config import Negatives
from loractr.data.negatives import draw_negatives
from loractr.errors import DataError

FRACTIONS = (0.6, 0.2, 0.2)


def clicks(n: int = 4_000, users: int = 150, items: int = 400, seed: int = 0) -> pl.DataFrame:
    """Clicks with popular items and eager users in three domains of unlike size."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": (rng.random(n) ** 2 * users).astype(int),
            "item": [f"i{number}" for number in (rng.random(n) ** 3 * items).astype(int)],
            "theme": rng.choice(["a", "b", "c"], size=n, p=[0.7, 0.25, 0.05]),
        }
    )


def drawn(frame: pl.DataFrame, fractions=FRACTIONS, **options: object) -> pl.DataFrame:
    config = Negatives.model_validate(options)
    return draw_negatives(
        frame, user="user", item="item", domain="theme", config=config, fractions=fractions
    )


def by_user(frame: pl.DataFrame, label: int) -> dict[tuple[str, int], list[str]]:
    """(domain, user) → items, as plain Python."""
    found = defaultdict(list)
    for user, item, theme, *_ in frame.filter(pl.col("label") == label).iter_rows():
        found[theme, user].append(item)
    return found


@pytest.mark.parametrize("items", [30, 400])
def test_each_user_gets_the_published_number_of_items_never_clicked(items):
    """Counted one by one; with few items most users want more than there are."""
    frame = clicks(items=items)
    rows = drawn(frame, rate_range=(0.37, 0.37))
    positive, negative = by_user(rows, 1), by_user(rows, 0)
    pool = defaultdict(set)
    for _, item, theme in frame.iter_rows():
        pool[theme].add(item)
    short = 0
    for (theme, user), clicked in positive.items():
        own = negative[theme, user]
        left = pool[theme] - set(clicked)
        assert len(own) == len(set(own)) == min(int(len(clicked) / 0.37), len(left))
        assert set(own) <= left
        short += len(own) == len(left)
    assert set(negative) <= set(positive)
    assert (short > 50) == (items == 30)


def test_every_click_is_kept_once_with_label_one():
    frame = clicks()
    kept = drawn(pl.concat([frame, frame])).filter(pl.col("label") == 1).select(frame.columns)
    assert kept.sort(frame.columns).equals(frame.unique().sort(frame.columns))


def test_rates_are_per_domain_with_two_digits_within_the_range():
    rows = drawn(clicks(n=60_000, users=3_000, items=9_000))
    for theme in "abc":
        part = rows.filter(pl.col("theme") == theme)
        positive, negative = by_user(part, 1), by_user(part, 0)
        fits = [
            rate
            for rate in (number / 100 for number in range(20, 51))
            if all(len(negative[key]) == int(len(own) / rate) for key, own in positive.items())
        ]
        assert fits  # one rate explains all users of the domain
    ratio = rows.group_by("theme").agg((pl.col("label") == 0).sum() / (pl.col("label") == 1).sum())
    assert ratio["label"].n_unique() == 3
    assert ratio["label"].is_between(1.5, 5).all()


def test_items_are_drawn_uniformly_whatever_their_popularity():
    """One user clicks item 0; of nine others three are drawn, each one third of the time."""
    users = 3_000
    frame = pl.DataFrame(
        {
            "user": [*range(users), *([users] * 10)],
            "item": [*([0] * users), *range(10)],
            "theme": ["a"] * (users + 10),
        }
    )
    rows = drawn(frame, rate_range=(0.3, 0.3)).filter(
        (pl.col("label") == 0) & (pl.col("user") < users)
    )
    counts = rows["item"].value_counts()
    assert len(rows) == 3 * users
    assert set(counts["item"]) == set(range(1, 10))
    sigma = math.sqrt(users * (1 / 3) * (2 / 3))
    assert (counts["count"] - users / 3).abs().max() < 4 * sigma


def published_sizes(n: int) -> tuple[int, int, int]:
    """scikit-learn's train_test_split twice: the held-out part and then the test part round up."""
    held_out = math.ceil(round(0.4 * n, 9))
    test = math.ceil(0.5 * held_out)
    return n - held_out, held_out - test, test


def test_clicks_are_split_per_domain_and_negatives_per_user():
    rows = drawn(clicks())
    for (_, label), part in rows.group_by("theme", "label"):
        groups = [part] if label == 1 else [group for _, group in part.group_by("user")]
        for group in groups:
            count = Counter(group["split"])
            found = tuple(count[name] for name in ("train", "validation", "test"))
            assert found == published_sizes(len(group))


def test_without_user_negatives_are_split_per_domain():
    rows = drawn(clicks(), per=["domain"])
    for _, part in rows.group_by("theme", "label"):
        count = Counter(part["split"])
        assert tuple(count[s] for s in ("train", "validation", "test")) == published_sizes(
            len(part)
        )


def test_negatives_of_small_users_lean_towards_the_test_as_published():
    rows = drawn(clicks(n=20_000, users=6_000, items=2_000)).filter(pl.col("label") == 0)
    train = (rows["split"] == "train").mean()
    assert 0.5 < train < 0.58


def test_the_split_says_nothing_about_the_item():
    """Within a user the deal is random: early and late items go to training alike."""
    rows = drawn(clicks(n=30_000, users=200, items=3_000)).filter(pl.col("label") == 0)
    number = rows["item"].str.slice(1).cast(pl.Int64)
    early = rows.filter(number < number.median())["split"]
    late = rows.filter(number >= number.median())["split"]
    assert abs((early == "train").mean() - (late == "train").mean()) < 0.02


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    frame = clicks()
    assert drawn(frame, seed=3).equals(drawn(frame, seed=3))
    assert not drawn(frame, seed=3).equals(drawn(frame, seed=4))


def test_all_may_be_for_training():
    rows = drawn(clicks(), fractions=(1.0, 0.0, 0.0))
    assert set(rows["split"]) == {"train"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.sampled_from("ab")), min_size=1),
    st.integers(0, 9),
)
def test_nothing_is_drawn_twice_or_against_a_click_in_any_small_log(log, seed):
    frame = pl.DataFrame(log, schema=["user", "item", "theme"], orient="row")
    rows = drawn(frame, seed=seed)
    pairs = rows.select("user", "item", "theme")
    assert not pairs.is_duplicated().any()
    assert rows["label"].sum() == frame.unique().height
    assert rows.null_count().sum_horizontal().item() == 0


def test_a_user_who_clicked_everything_gets_no_negatives():
    frame = pl.DataFrame({"user": [1, 1, 2], "item": [1, 2, 1], "theme": ["a"] * 3})
    negative = by_user(drawn(frame), 0)
    assert negative == {("a", 2): [2]}


@pytest.mark.parametrize("column", ["user", "item", "theme"])
def test_missing_values_are_refused(column):
    frame = clicks(50).with_columns(pl.when(pl.col("user") > 5).then(pl.col(column)).alias(column))
    with pytest.raises(DataError, match=f"column '{column}' has missing values"):
        drawn(frame)


@pytest.mark.parametrize(
    "options",
    [{"rate_range": [0.0, 0.5]}, {"rate_range": [0.2, 1.5]}, {"per": ["user"]}, {"per": []}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        Negatives.model_validate(options)


def shop_clicks() -> pl.DataFrame:
    """Clicks with what the item has (price, tags), what the user has (age), and what neither has
    (hour, weight)."""
    rng = np.random.default_rng(8)
    frame = clicks(1_500, users=40, items=60)
    number = frame["item"].str.slice(1).cast(pl.Int64)
    return frame.with_columns(
        price=pl.Series(number * 0.5),
        tags=pl.Series([[f"t{n % 3}", f"t{n % 5}"] for n in number]),
        note=pl.Series([None if n % 2 else f"n{n}" for n in number]),
        age=frame["user"] % 7 + 20,
        hour=pl.Series(rng.integers(0, 10_000, len(frame))),
        weight=pl.Series(rng.random(len(frame))),
    ).select("hour", "user", "price", "item", "tags", "theme", "note", "age", "weight")


def test_clicks_keep_all_their_columns_and_the_first_of_repeats_stays():
    frame = shop_clicks()
    rows = drawn(frame)
    assert rows.columns == [*frame.columns, "label", "split"]
    kept = rows.filter(pl.col("label") == 1).select(frame.columns)
    first = {}
    for row in frame.rows(named=True):
        first.setdefault((row["user"], row["item"], row["theme"]), row)
    key = ("user", "item", "theme")
    assert kept.sort(key).to_dicts() == [first[k] for k in sorted(first)]


def test_a_negative_has_the_items_columns_and_the_others_of_one_of_its_users_clicks(caplog):
    frame = shop_clicks()
    with caplog.at_level("INFO", "loractr"):
        rows = drawn(frame).filter(pl.col("label") == 0)
    of_item = {row["item"]: row for row in frame.rows(named=True)}
    of_user = defaultdict(set)
    for row in frame.rows(named=True):
        of_user[row["theme"], row["user"]].add((row["hour"], row["age"], row["weight"]))
    for row in rows.rows(named=True):
        assert all(row[c] == of_item[row["item"]][c] for c in ("price", "tags", "note"))
        assert (row["hour"], row["age"], row["weight"]) in of_user[row["theme"], row["user"]]
    assert "the item's 'price', 'tags', 'note'; 'hour', 'age', 'weight' of one of" in caplog.text


def test_the_click_that_lends_its_columns_is_drawn_evenly():
    """One user has four clicks, and 396 negatives of others are to be told apart by the hour."""
    frame = pl.DataFrame(
        {
            "user": [0] * 200 + [1] * 1_000,
            "item": [*range(200), *range(1_000)],
            "theme": ["a"] * 1_200,
            "hour": [n % 4 for n in range(200)] + [9] * 1_000,
        }
    )
    rows = drawn(frame, rate_range=(0.25, 0.25)).filter(
        (pl.col("label") == 0) & (pl.col("user") == 0)
    )
    counts = Counter(rows["hour"])
    assert sum(counts.values()) == 800
    assert set(counts) == {0, 1, 2, 3}
    assert max(abs(n - 200) for n in counts.values()) < 4 * math.sqrt(800 * 0.25 * 0.75)


def test_other_columns_do_not_move_the_draws():
    frame = shop_clicks()
    keys = ["user", "item", "theme"]
    alone = drawn(frame.select(keys), seed=5)
    assert drawn(frame, seed=5).select(alone.columns).equals(alone)
    assert drawn(frame, seed=5).equals(drawn(frame, seed=5))


def test_columns_of_the_item_may_be_named():
    frame = shop_clicks()
    rows = drawn(frame, item_columns=["hour"]).filter(pl.col("label") == 0)
    hours = defaultdict(set)
    for row in frame.rows(named=True):
        hours[row["theme"], row["item"]].add(row["hour"])
    prices = {(row["theme"], row["user"], row["price"]) for row in frame.rows(named=True)}
    for row in rows.rows(named=True):
        assert row["hour"] in hours[row["theme"], row["item"]]
        assert (row["theme"], row["user"], row["price"]) in prices


def test_without_an_item_clicked_twice_no_column_is_known_to_be_the_items():
    frame = pl.DataFrame(
        {"user": [1, 1, 2, 2], "item": [1, 2, 3, 4], "theme": ["a"] * 4, "cat": [1, 2, 3, 4]}
    )
    rows = drawn(frame, rate_range=(0.5, 0.5)).filter(pl.col("label") == 0)
    own = {1: {1, 2}, 2: {3, 4}}
    assert len(rows) == 4
    assert all(row["cat"] in own[row["user"]] for row in rows.rows(named=True))


def test_names_that_look_like_patterns_are_names():
    frame = clicks(300).rename({"user": "^u.*$", "item": "*", "theme": "^.*$"})
    frame = frame.with_columns(pl.Series("^x", range(300)))
    rows = draw_negatives(
        frame,
        user="^u.*$",
        item="*",
        domain="^.*$",
        config=Negatives(),
        fractions=FRACTIONS,
    )
    assert rows.columns == [*frame.columns, "label", "split"]
    assert set(rows["label"]) == {0, 1}


def test_a_split_or_a_label_of_the_logs_own_is_no_secret():
    frame = clicks(100)
    with pytest.raises(DataError, match=r"(?s)column 'split' of its own.*rename"):
        drawn(frame.with_columns(split=pl.lit("train")))
    label = pl.Series("label", [1, 0] * 50)
    with pytest.raises(DataError, match=r"column 'label' 50 rows are no clicks"):
        drawn(frame.with_columns(label))
    with pytest.raises(DataError, match=r"column 'label' 100 rows are no clicks"):
        drawn(frame.with_columns(label=pl.lit(None, pl.Int64)))


@pytest.mark.parametrize("one", [1, 1.0, True, "1", "true"])
def test_a_label_by_which_all_rows_are_clicks_says_the_same(one):
    frame = clicks(200)
    assert drawn(frame.with_columns(label=pl.lit(one))).equals(drawn(frame))
