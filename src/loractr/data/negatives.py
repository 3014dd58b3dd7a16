"""Negatives for logs that hold clicks only, and the split that goes with them.

As the published protocol of Taobao-10/20/30 and Amazon-6/13 (MAMDR, MLoRA), made reproducible:

- per domain a rate r ~ U(low, high), rounded to two digits;
- per user int(clicks / r) items, or all there are if that is fewer: uniform, without replacement,
  from the domain's items that this user never clicked in the domain, in whatever split;
- clicks are dealt to train, validation and test over the domain, negatives user by user; what does
  not divide evenly goes to test first, then to validation, as scikit-learn's splitter rounds. So
  the negatives of users with few come out nearer to 53/22/25 than to 60/20/20.
"""

import logging

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data.config import Fractions, Negatives
from loractr.errors import DataError

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]

_SPLITS = ("train", "validation", "test")
_CELLS = 1 << 22  # of the largest matrix (users, items) that is held at once


def draw_negatives(
    frame: pl.DataFrame,
    *,
    user: str,
    item: str,
    domain: str,
    config: Negatives,
    fractions: Fractions,
) -> pl.DataFrame:
    """Clicks and drawn negatives with the columns user, item, domain, `label` and `split`.

    The same frame and configuration give the same rows. Repeated clicks count once.

    Args:
        frame: Clicks, one a row.
        user: Column of the user.
        item: Column of the item.
        domain: Column of the domain.
        config: Rates and seed, and whether negatives are split user by user.
        fractions: Shares of train, validation and test.

    Raises:
        DataError: a user, item or domain is missing in some row.
    """
    clicks = frame.select(user, item, domain).unique(maintain_order=True)
    for column in (user, item, domain):
        if clicks[column].null_count():
            raise DataError(
                f"column {column!r} has missing values; negatives are drawn for known users, items"
                " and domains.",
                fix="remove those rows.",
            )
    parts = []
    for place, part in enumerate(clicks.partition_by(domain, maintain_order=True)):
        rng = np.random.default_rng([config.seed, place])
        low, high = config.rate_range
        rate = round(rng.uniform(low, high), 2)
        drawn = _of_one_domain(part, user, item, rate, rng)
        by_user = _codes(drawn[user])[0] if "user" in config.per else _zeros(drawn)
        parts += [
            _labelled(part, 1, _dealt(_zeros(part), fractions, rng)),
            _labelled(drawn.select(clicks.columns), 0, _dealt(by_user, fractions, rng)),
        ]
        name, count = part[domain][0], len(drawn)
        log.info("domain %s: rate %.2f, %d clicks, %d negatives", name, rate, len(part), count)
    return pl.concat(parts)


def _of_one_domain(
    clicks: pl.DataFrame, user: str, item: str, rate: float, rng: np.random.Generator
) -> pl.DataFrame:
    """Negatives of one domain: the columns of `clicks` with items never clicked."""
    user_codes, users = _codes(clicks[user])
    item_codes, items = _codes(clicks[item])
    clicked = np.sort(user_codes * len(items) + item_codes)
    count = np.bincount(user_codes, minlength=len(users))
    wanted = np.minimum((count / rate).astype(np.int64), len(items) - count)
    crowded = wanted + count > len(items) / 2  # rejection would reject most draws
    pairs = np.concatenate(
        [
            _by_rejection(clicked, np.where(crowded, 0, wanted), len(items), rng),
            _by_ranking(clicked, np.where(crowded, wanted, 0), len(items), rng),
        ]
    )
    drawn_users, drawn_items = np.divmod(np.sort(pairs), len(items))
    others = clicks.drop(user, item).head(1)  # the domain
    return pl.DataFrame({user: users.gather(drawn_users), item: items.gather(drawn_items)}).join(
        others, how="cross"
    )


def _by_rejection(clicked: Ints, wanted: Ints, items: int, rng: np.random.Generator) -> Ints:
    """wanted[u] new pairs u * items + i for each user u, none of them in `clicked` (sorted).

    Draws what is still wanted of each user, rejects what was clicked or drawn before, and repeats.
    """
    taken, found, left = clicked, [np.zeros(0, np.int64)], wanted.copy()
    while left.any():
        users = np.repeat(np.arange(len(left)), left)
        pairs = np.unique(users * items + rng.integers(items, size=len(users)))
        place = np.minimum(np.searchsorted(taken, pairs), len(taken) - 1)
        fresh = pairs[taken[place] != pairs]
        found.append(fresh)
        taken = np.sort(np.concatenate([taken, fresh]), kind="stable")
        left -= np.bincount(fresh // items, minlength=len(left))
    return np.concatenate(found)


def _by_ranking(clicked: Ints, wanted: Ints, items: int, rng: np.random.Generator) -> Ints:
    """The same for users who want most of the items: rank all at random, take the first ones."""
    found = [np.zeros(0, np.int64)]
    users = np.flatnonzero(wanted)
    for start in range(0, len(users), max(_CELLS // items, 1)):
        some = users[start : start + max(_CELLS // items, 1)]
        score = rng.random((len(some), items))
        low, high = np.searchsorted(clicked, [some * items, (some + 1) * items])
        own = np.repeat(np.arange(len(some)), high - low)
        first = np.repeat(low - np.cumsum(high - low) + (high - low), high - low)
        score[own, clicked[first + np.arange(len(own))] % items] = np.inf
        ranked = np.argsort(score, axis=1)
        chosen = np.arange(items) < wanted[some][:, None]
        found.append((some[:, None] * items + ranked)[chosen])
    return np.concatenate(found)


def _dealt(groups: Ints, fractions: Fractions, rng: np.random.Generator) -> pl.Series:
    """Split of each row (N,), dealt at random within each group (N,) of rows."""
    order = np.lexsort((rng.random(len(groups)), groups))
    size = np.bincount(groups)
    train, validation = _sizes(size, fractions)
    rank = np.arange(len(groups)) - np.repeat(np.cumsum(size) - size, size)
    codes = (rank >= np.repeat(train, size)).astype(np.int64)
    codes += rank >= np.repeat(train + validation, size)
    dealt = np.empty_like(codes)
    dealt[order] = codes
    return pl.Series("split", _SPLITS).gather(dealt)


def _sizes(rows: Ints, fractions: Fractions) -> tuple[Ints, Ints]:
    """Rows of train and of validation in groups of `rows` rows; test has the others."""
    held_out = _up(rows, 1 - fractions[0])
    share = fractions[2] / (fractions[1] + fractions[2]) if held_out.any() else 0.0
    return rows - held_out, held_out - _up(held_out, share)


def _up(rows: Ints, share: float) -> Ints:
    return np.ceil(np.round(rows * share, 9)).astype(np.int64)


def _codes(values: pl.Series) -> tuple[Ints, pl.Series]:
    """Index (N,) of each value among the sorted distinct ones, and those."""
    return values.rank("dense").to_numpy().astype(np.int64) - 1, values.unique().sort()


def _zeros(frame: pl.DataFrame) -> Ints:
    return np.zeros(len(frame), dtype=np.int64)


def _labelled(frame: pl.DataFrame, label: int, split: pl.Series) -> pl.DataFrame:
    return frame.with_columns(pl.lit(label, pl.Int64).alias("label"), split)
