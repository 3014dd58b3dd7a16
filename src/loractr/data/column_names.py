"""What the name of a column says about it: words of logs that many people have written.

>>> sorted(words("isLike_2"))
['2', 'is', 'like']
"""

import re
from functools import lru_cache

_IDS = {
    *("id", "ids", "code", "zip", "key", "hash", "type", "kind", "cat", "category", "class"),
    *("user", "item", "ad", "video", "movie", "brand", "author", "hour", "weekday", "month"),
    *("shop", "store", "seller", "advertiser", "publisher", "group", "topic", "theme", "cluster"),
}
_AMOUNTS = {
    *("num", "number", "count", "cnt", "total", "avg", "mean", "ratio", "rate", "score", "rank"),
    *("price", "amount", "cost", "bid", "duration", "ms", "seconds", "minutes", "hours", "days"),
    *("size", "width", "height", "length", "weight", "distance", "position", "age"),
}
_USERS = {
    *("user", "users", "uid", "userid", "customer", "client", "member", "visitor", "reviewer"),
    *("buyer", "viewer", "account", "person", "cookie", "ip"),
}
_ITEMS = {
    *("item", "items", "iid", "itemid", "product", "goods", "sku", "asin", "ad", "ads", "creative"),
    *("campaign", "video", "movie", "song", "track", "article", "news", "book", "photo", "post"),
}
_DATES = {"timestamp", "ts", "date", "datetime", "dt", "timestep"}
_TIMES = {*_DATES, "time", "day", "moment", "unix", "epoch", "utc"}
_TIME_NAMES = {"created_at", "updated_at", "logged_at"}
_ITEM_TIMES = {
    *("release", "released", "upload", "uploaded", "publish", "published", "birth", "birthday"),
    *("register", "registered", "registration", "signup", "joined", "launch", "expiry"),
}
_STEPS = {
    *("period", "step", "timestep", "tick", "round", "week", "iteration", "seq", "sequence"),
    *("index", "idx", "unnamed", "rownum"),
}
_OUTCOMES = {
    *("click", "clicks", "clicked", "clk", "label", "target", "outcome", "rating", "stars"),
    *(
        "like",
        "liked",
        "likes",
        "fav",
        "favs",
        "dislike",
        "dislikes",
        "hate",
        "favorite",
        "favourite",
        "collect",
    ),
    *("follow", "followed", "comment", "comments", "commented", "share", "shares", "shared"),
    *("forward", "reward", "feedback", "vote", "votes", "upvote", "upvotes", "downvote"),
    *("downvotes", "helpful", "unhelpful", "reply", "replies", "retweet", "retweets"),
    *("dwell", "stay", "watch", "watched", "finish", "finished", "completed", "completion"),
    *("skip", "skipped", "bounce", "install", "installed", "cart", "conversion", "converted"),
    *("convert", "cvr", "purchase", "purchased", "buy", "bought", "ordered", "pay", "paid"),
    *("payment", "revenue", "refund", "refunds", "refunded", "after", "unsubscribed"),
}
_OUTCOME_PHRASES = (
    *("play_time", "view_time", "read_time", "listen_time", "time_spent", "long_view", "played"),
    *("profile_enter", "add_to", "true_prob"),
)
_SCORES = {
    *("propensity", "pred", "preds", "predicted", "prediction", "predictions", "prob", "probs"),
    *("probability", "probabilities", "logit", "logits", "ctr", "pctr", "pcvr", "ecpm"),
}
_DOMAINS = (
    *("domain", "scenario", "scene", "tab", "surface", "channel", "site", "market", "country"),
    *("shop", "store", "region", "platform", "page", "category", "segment", "device", "gender"),
)
LABELS = (
    *("label", "click", "is_click", "clicked", "is_clicked", "clk", "target", "y"),
    *("clicks", "is_clk", "has_click", "has_clicked", "click_flag", "click_label", "labels"),
)
"""Names of labels, the likeliest first; case and underscores do not count."""
RATINGS = ("rating", "overall", "stars")
"""Names of ratings, likewise."""
EVENTS = ("event", "event_type", "event_name", "action", "action_type", "behavior", "behavior_type")
"""Names of columns whose values say what a user did."""


@lru_cache(maxsize=1 << 14)
def words(name: str) -> frozenset[str]:
    """The words of a name, in lower case."""
    return frozenset(re.split(r"[^a-z0-9]+", _snake(name))) - {""}


def shown(name: str, longest: int = 40) -> str:
    """A name as it may stand in a comment: on one line, and not too long."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"


def place(name: str, wanted: tuple[str, ...]) -> int | None:
    """Where a name stands among `wanted`, whatever its case and underscores; None if nowhere."""
    plain = [_plain(one) for one in wanted]
    return plain.index(_plain(name)) if _plain(name) in plain else None


def domain_place(name: str) -> int | None:
    """How soon a column of this name is taken for a domain: 0 first; None for other names."""
    found = [place for place, word in enumerate(_DOMAINS) if word in words(name)]
    return min(found, default=None)


def is_user(name: str) -> bool:
    """Whether it names who saw the row's item."""
    return bool(words(name) & _USERS)


def is_item(name: str) -> bool:
    """Whether it names what was shown."""
    return bool(words(name) & _ITEMS)


def is_id(name: str) -> bool:
    """Whether it names something that has ids."""
    return bool(words(name) & _IDS)


def is_amount(name: str) -> bool:
    """Whether it names how much, or how many."""
    return bool(words(name) & _AMOUNTS) and not is_id(name)


def is_outcome(name: str) -> bool:
    """Whether it names something that happens after the click."""
    snake = _snake(name)
    return bool(words(name) & _OUTCOMES) or any(phrase in snake for phrase in _OUTCOME_PHRASES)


def is_score(name: str) -> bool:
    """Whether it names what another model computed, perhaps from the label."""
    return bool(words(name) & _SCORES)


def is_time(name: str) -> bool:
    """Whether it names when something happened."""
    return is_date(name) or bool(words(name) & _TIMES) or _snake(name) in _TIME_NAMES


def is_date(name: str) -> bool:
    """Whether it names when, and cannot mean an hour or a day of the week."""
    return bool(words(name) & _DATES) or words(name) == {"t"}


def is_time_of_item(name: str) -> bool:
    """Whether it names when an item or a user came into being, rather than the row."""
    return bool(words(name) & _ITEM_TIMES)


def is_step(name: str) -> bool:
    """Whether it names a place in an order of rows or periods."""
    cyclic = "of" in words(name)  # day of week, week of year
    return bool(words(name) & _STEPS) and not (cyclic or is_user(name) or is_item(name))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
