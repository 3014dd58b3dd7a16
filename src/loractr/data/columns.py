"""What a column of unknown data probably is, from its values and from its name."""

import re
from dataclasses import dataclass
from typing import Literal

import polars as pl

Type = Literal["whole", "number", "time", "text", "list"]

SEPARATORS = ("|", ";", ",")
_IDS = {
    *("id", "ids", "code", "zip", "key", "hash", "type", "kind", "cat", "category", "class"),
    *("user", "item", "ad", "video", "movie", "brand", "author", "hour", "weekday", "month"),
}
_AMOUNTS = {
    *("num", "number", "count", "cnt", "total", "avg", "mean", "ratio", "rate", "score", "rank"),
    *("price", "amount", "cost", "bid", "duration", "ms", "seconds", "minutes", "hours", "days"),
    *("size", "width", "height", "length", "weight", "distance", "position", "age"),
}
_TIMES = {"time", "timestamp", "ts", "date", "datetime", "day", "dt", "moment"}
_TIME_NAMES = {"created_at", "event_time", "time_ms", "reach_time", "unixreviewtime"}
_OUTCOMES = {
    *("click", "clicks", "clicked", "clk", "label", "target", "outcome", "rating", "stars"),
    *("like", "liked", "likes", "dislike", "hate", "favorite", "favourite", "collect", "feedback"),
    *("follow", "followed", "comment", "commented", "share", "shared", "forward", "reward"),
    *("dwell", "stay", "watch", "watched", "finish", "finished", "completed", "completion"),
    *("skip", "skipped", "bounce", "install", "installed", "cart", "conversion", "converted"),
    *("convert", "cvr", "purchase", "purchased", "buy", "bought", "ordered", "pay", "paid"),
    *("payment", "revenue"),
}
_OUTCOME_PHRASES = (
    *("play_time", "view_time", "read_time", "listen_time", "time_spent", "long_view", "played"),
    *("profile_enter", "add_to", "true_prob"),
)
_FIRST_EPOCH = 10_000_000  # 20260131 and seconds since 1970 are above it, hours and days below


@dataclass(frozen=True)
class Column:
    """One column of a sample of R rows."""

    name: str
    type: Type
    values: pl.Series
    """Its values (R,), parsed where a text file has them as text."""
    distinct: int
    """Number of different values, missing left out."""
    missing: int
    """Number of missing values."""
    low: float = 0.0
    """Smallest of its numbers."""
    high: float = 0.0
    """Largest of its numbers."""
    median: float = 0.0
    """Median of its numbers."""
    separator: str | None = None
    """What stands between the ids of a text with several."""

    @property
    def words(self) -> set[str]:
        """The words of its name, lower case: `isLike_2` → is, like, 2."""
        return set(re.split(r"[^a-z0-9]+", self._snake)) - {""}

    @property
    def _snake(self) -> str:
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name).lower()

    @property
    def is_binary(self) -> bool:
        """Whether it holds 0 and 1, both of them, and nothing else."""
        two = self.type == "whole" and self.distinct == 2 and not self.missing
        return two and (self.low, self.high) == (0, 1)

    @property
    def is_time(self) -> bool:
        """Whether it says when a row happened."""
        if self.type == "time":
            return True
        named = bool(self.words & _TIMES) or self._snake in _TIME_NAMES
        large = self.type == "whole" and self.low >= _FIRST_EPOCH
        return named and large and not self.is_outcome

    @property
    def is_outcome(self) -> bool:
        """Whether its name says something that happens after the click."""
        phrase = any(phrase in self._snake for phrase in _OUTCOME_PHRASES)
        return phrase or bool(self.words & _OUTCOMES)

    @property
    def is_amount(self) -> bool:
        """Whether its values are amounts rather than ids."""
        if self.type == "number":
            return True
        named = bool(self.words & _AMOUNTS) and not self.words & _IDS
        return self.type == "whole" and self.distinct > 20 and named

    @property
    def is_lopsided(self) -> bool:
        """Whether an amount spans orders of magnitude upwards, as counts and prices do."""
        return self.low >= 0 and self.high > 20 * self.median

    @property
    def is_constant(self) -> bool:
        """Whether it says the same in every row; a missing id says something, a number does not."""
        gaps = self.missing > 0 and self.type != "number"
        return self.distinct + gaps <= 1

    @property
    def is_row_id(self) -> bool:
        """Whether every row has another value, so that nothing can be learnt from it."""
        return self.type in ("whole", "text") and self.distinct == len(self.values) > 100

    @property
    def is_prose(self) -> bool:
        """Whether it is long text that hardly ever repeats."""
        if self.type != "text" or self.separator is not None:
            return False
        long = self.values.str.len_chars().sum() > 40 * len(self.values)
        return long and self.distinct > len(self.values) / 2


def examine(values: pl.Series, *, as_text: bool) -> Column:
    """Look at a column.

    Args:
        values: A sample of its values.
        as_text: Whether it comes from a text file, so that its type has to be guessed.
    """
    read = _without_gaps_in_type(_parsed(values) if as_text else values)
    kind = _type(read)
    if kind == "text":
        read = read.cast(pl.String)
    known = read.drop_nulls()
    numbers = known.cast(pl.Float64) if kind in ("whole", "number") and len(known) else None
    return Column(
        name=values.name,
        type=kind,
        values=read,
        distinct=len(known) if kind == "list" else known.n_unique(),
        missing=len(read) - len(known),
        low=0.0 if numbers is None else numbers.quantile(0.0) or 0.0,
        high=0.0 if numbers is None else numbers.quantile(1.0) or 0.0,
        median=0.0 if numbers is None else numbers.quantile(0.5) or 0.0,
        separator=_separator(known) if kind == "text" else None,
    )


def _without_gaps_in_type(values: pl.Series) -> pl.Series:
    """Booleans, and whole numbers that a gap made float, as whole numbers; NaN as missing."""
    if values.dtype == pl.Boolean:
        return values.cast(pl.Int64)
    if not values.dtype.is_float():
        return values
    values = values.fill_nan(None)
    whole = values.cast(pl.Int64, strict=False)
    return whole if values.eq_missing(whole.cast(pl.Float64)).all() else values


def _parsed(text: pl.Series) -> pl.Series:
    """Text as whole numbers, numbers, dates or moments, if every value is one; else as it is."""
    if text.null_count() == len(text):
        return text
    plain = text.str.replace("T", " ", literal=True).str.strip_suffix("Z")
    for parsed in (
        text.cast(pl.Int64, strict=False),
        text.cast(pl.Float64, strict=False),
        text.str.to_date("%F", strict=False),
        plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False),
    ):
        if parsed.null_count() == text.null_count():
            padded = parsed.dtype == pl.Int64 and (text.str.contains(r"^-?0\d|^\+")).any()
            return text if padded else parsed  # 007 is a name, not a number
    return text


def _type(values: pl.Series) -> Type:
    dtype = values.dtype
    if isinstance(dtype, pl.List | pl.Array):
        return "list"
    if dtype.is_integer() or dtype == pl.Boolean:
        return "whole"
    if dtype.is_numeric():
        return "number"
    return "time" if dtype.is_temporal() else "text"


def _separator(known: pl.Series) -> str | None:
    """What stands between several ids: it is in many values, and the pieces repeat more often."""
    for separator in SEPARATORS:
        if known.str.contains(separator, literal=True).sum() > 0.2 * len(known):
            pieces = known.str.split(separator).explode()
            if pieces.n_unique() < known.n_unique():
                return separator
    return None
