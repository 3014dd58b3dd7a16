"""Negatives for logs that hold clicks only, and the split that goes with them.

As the published protocol of Taobao-10/20/30 and Amazon-6/13 (MAMDR, MLoRA), made reproducible:

- per domain a rate r ~ U(low, high), rounded to two digits;
- per user int(clicks / r) items, or all there are if that is fewer: uniform, without replacement,
  from the domain's items that this user never clicked in the domain, in whatever split;
- clicks are dealt to train, validation and test over the domain, negatives user by user; what does
  not divide evenly goes to test first, then to validation, as scikit-learn's splitter rounds. So
  the negatives of users with few come out nearer to 53/22/25 than to 60/20/20.

The other columns of a drawn row: those of the item are the item's, all others come from one of this
user's clicks in the domain, drawn at random.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data.config import Fractions, Negatives
from loractr.errors import DataError, some

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]

OWN = ("label", "split")
"""Columns that the result has beside those of the log."""
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
    """Clicks and drawn negatives: the columns of `frame`, then `label` and `split`.

    The same frame and configuration give the same rows. Repeated clicks count once, as the first.

    Args:
        frame: Clicks, one a row.
        user: Column of the user.
        item: Column of the item.
        domain: Column of the domain.
        config: Rates and seed, whether negatives are split user by user, and which columns are the
            item's.
        fractions: Shares of train, validation and test.

    Raises:
        DataError: a user, item or domain is missing in some row; the frame has a column `split`, or
            a column `label` by which not all rows are clicks.
    """
    frame = _without_own(frame)
    keys = pl.DataFrame({"user": frame[user], "item": frame[item], "domain": frame[domain]})
    for role, column in zip(keys.columns, (user, item, domain), strict=True):
        if keys[role].null_count():
            raise DataError(
                f"column {column!r} has missing values; negatives are drawn for known users, items"
                " and domains.",
                fix="remove those rows.",
            )
    clicks = keys.with_row_index("row").unique(keys.columns, keep="first", maintain_order=True)
    parts = []
    for place, part in enumerate(clicks.partition_by("domain", maintain_order=True)):
        rng = np.random.default_rng([config.seed, place])
        low, high = config.rate_range
        rate = round(rng.uniform(low, high), 2)
        negatives = _of_one_domain(part, rate, rng)
        groups = negatives.users if "user" in config.per else np.zeros_like(negatives.users)
        parts += [
            _Rows.of_clicks(part, _dealt(np.zeros(len(part), np.int64), fractions, rng)),
            negatives.rows(part, _dealt(groups, fractions, rng), rng),
        ]
        name, drawn = part["domain"][0], len(negatives.users)
        log.info("domain %s: rate %.2f, %d clicks, %d negatives", name, rate, len(part), drawn)
    rows = _Rows.joined(parts)
    return rows.taken(frame, {item, *_item_columns(frame, (user, item, domain), config)})


@dataclass(frozen=True)
class _Rows:
    """Rows of the result, as places in the log (N,)."""

    of: Ints
    """The row that all columns but the item's come from."""
    item: Ints
    """The row that the item's columns come from."""
    label: Ints
    split: Ints
    """Place in _SPLITS."""

    @classmethod
    def of_clicks(cls, part: pl.DataFrame, split: Ints) -> "_Rows":
        rows = part["row"].to_numpy().astype(np.int64)
        return cls(rows, rows, np.ones_like(rows), split)

    @classmethod
    def joined(cls, parts: "list[_Rows]") -> "_Rows":
        names = ("of", "item", "label", "split")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def taken(self, frame: pl.DataFrame, of_item: Collection[str]) -> pl.DataFrame:
        columns = [column[self.item if column.name in of_item else self.of] for column in frame]
        split = pl.Series("split", _SPLITS).gather(self.split)
        return pl.DataFrame([*columns, pl.Series("label", self.label), split])


@dataclass(frozen=True)
class _Negatives:
    """Drawn pairs of a user and an item, as codes (N,), of one domain whose clicks are coded so."""

    users: Ints
    items: Ints
    click_users: Ints
    click_items: Ints

    def rows(self, part: pl.DataFrame, split: Ints, rng: np.random.Generator) -> _Rows:
        """Each as one of its user's clicks, drawn at random, with the item's first click."""
        places = part["row"].to_numpy().astype(np.int64)
        order = np.argsort(self.click_users, kind="stable")
        count = np.bincount(self.click_users)
        first = np.cumsum(count) - count
        chosen = first[self.users] + rng.integers(count[self.users])
        first_of_item = np.unique(self.click_items, return_index=True)[1]
        return _Rows(
            of=places[order[chosen]],
            item=places[first_of_item[self.items]],
            label=np.zeros_like(self.users),
            split=split,
        )


def _of_one_domain(clicks: pl.DataFrame, rate: float, rng: np.random.Generator) -> _Negatives:
    """Negatives of one domain: for each user items never clicked."""
    user_codes, item_codes = _codes(clicks["user"]), _codes(clicks["item"])
    items = int(item_codes.max()) + 1
    clicked = np.sort(user_codes * items + item_codes)
    count = np.bincount(user_codes)
    wanted = np.minimum((count / rate).astype(np.int64), items - count)
    crowded = wanted + count > items / 2  # rejection would reject most draws
    pairs = np.concatenate(
        [
            _by_rejection(clicked, np.where(crowded, 0, wanted), items, rng),
            _by_ranking(clicked, np.where(crowded, wanted, 0), items, rng),
        ]
    )
    users, drawn_items = np.divmod(np.sort(pairs), items)
    return _Negatives(users, drawn_items, user_codes, item_codes)


def _without_own(frame: pl.DataFrame) -> pl.DataFrame:
    """The log without a label that says what is known: that every row is a click."""
    if "split" in frame.columns:
        raise DataError(
            "the log has a column 'split' of its own; negatives come with one of that name.",
            fix="rename the log's column.",
        )
    if "label" not in frame.columns:
        return frame
    said = frame["label"].cast(pl.String).str.to_lowercase().is_in(["1", "1.0", "true"])
    if not said.fill_null(False).all():
        raise DataError(
            "negatives are drawn for a log in which every row is a click, but by its column 'label'"
            f" {(~said.fill_null(False)).sum():,} rows are no clicks.",
            fix="leave `negatives` out, or remove those rows, or rename the column if it is no"
            " label.",
        )
    return frame.drop("label")


def _item_columns(
    frame: pl.DataFrame, roles: Collection[str], config: Negatives
) -> Collection[str]:
    """Columns of the item: those that are named, or those that have one value in all clicks of an
    item, where some items were clicked more than once."""
    others = [name for name in frame.columns if name not in roles]
    if config.item_columns is not None:
        return [name for name in others if name in config.item_columns]
    _, item, _ = roles
    _, first, place, count = np.unique(
        _codes(frame[item]), return_index=True, return_inverse=True, return_counts=True
    )
    again = bool((count > 1).any())
    found = [name for name in others if again and _repeats(frame[name], first[place])]
    if others:
        log.info(
            "drawn rows have the item's %s; %s of one of the user's clicks",
            some(found),
            some(name for name in others if name not in found),
        )
    return found


def _repeats(values: pl.Series, earlier: Ints) -> bool:
    """Whether each value is that of an earlier row (N,)."""
    values = values.alias("values")  # Series look for themselves by name, which may be a pattern
    return bool(values.eq_missing(values[earlier]).all())


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
        few = users[start : start + max(_CELLS // items, 1)]
        score = rng.random((len(few), items))
        low, high = np.searchsorted(clicked, [few * items, (few + 1) * items])
        own = np.repeat(np.arange(len(few)), high - low)
        first = np.repeat(low - np.cumsum(high - low) + (high - low), high - low)
        score[own, clicked[first + np.arange(len(own))] % items] = np.inf
        ranked = np.argsort(score, axis=1)
        chosen = np.arange(items) < wanted[few][:, None]
        found.append((few[:, None] * items + ranked)[chosen])
    return np.concatenate(found)


def _dealt(groups: Ints, fractions: Fractions, rng: np.random.Generator) -> Ints:
    """Split of each row (N,), dealt at random within each group (N,) of rows."""
    groups = np.unique(groups, return_inverse=True)[1]
    order = np.lexsort((rng.random(len(groups)), groups))
    size = np.bincount(groups)
    train, validation = _sizes(size, fractions)
    rank = np.arange(len(groups)) - np.repeat(np.cumsum(size) - size, size)
    codes = (rank >= np.repeat(train, size)).astype(np.int64)
    codes += rank >= np.repeat(train + validation, size)
    dealt = np.empty_like(codes)
    dealt[order] = codes
    return dealt


def _sizes(rows: Ints, fractions: Fractions) -> tuple[Ints, Ints]:
    """Rows of train and of validation in groups of `rows` rows; test has the others."""
    held_out = _up(rows, 1 - fractions[0])
    share = fractions[2] / (fractions[1] + fractions[2]) if held_out.any() else 0.0
    return rows - held_out, held_out - _up(held_out, share)


def _up(rows: Ints, share: float) -> Ints:
    return np.ceil(np.round(rows * share, 9)).astype(np.int64)


def _codes(values: pl.Series) -> Ints:
    """Index (N,) of each value among the sorted distinct ones."""
    return values.alias("values").rank("dense").to_numpy().astype(np.int64) - 1
