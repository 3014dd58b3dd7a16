"""A synthetic click log with planted structure, whose true click probability is known per row.

For a row of user u, item i, domain d and auxiliary domain a, with latent vectors p, q of size K:

    logit = rate_d + <p_u, (1 + deviation * (A_d + B_a)) q_i> + bias_u + bias_i + tags + context
    p_u   = segment's vector + a little of the user's own;  q_i = category's vector + its own
    A_d   = left_d right_d^T, of rank `rank`: what a domain prefers differently
    B_a   = the same for the domains of a second division; 0 without `auxiliary`

The shared preference is learnt from all rows, which a model of one domain alone does not have.
The deviation is a product of three (segment, category, domain), which a shared model finds hard
and a low-rank adapter per domain finds easy. With `kinds`, A_d = A_e where d and e are equal modulo
`kinds`: what similar domains can learn from each other. The auxiliary division cuts the rows anew,
independently of all else. `true_probability` = sigmoid(logit) is the oracle.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data.config import DataConfig, SyntheticOptions
from loractr.data.sources.base import Table
from loractr.schema import Division, Field, Label

_LATENT = 4
_SEGMENTS, _CATEGORIES, _TAGS, _MOST_TAGS = 8, 12, 30, 4
_DEVICES = ("phone", "tablet", "desktop", "tv")
_AUXILIARY = "auxiliary"  # the second division, and its column
_START, _DAYS = 1_767_225_600, 14  # 2026-01-01 00:00 UTC, in seconds

_FIELDS = (
    Field(name="user"),
    Field(name="segment"),
    Field(name="item"),
    Field(name="category"),
    Field(name="tags", kind="sequence"),
    Field(name="hour"),
    Field(name="device"),
    Field(name="price", kind="numerical", scaling="log1p"),
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def open_source(config: DataConfig) -> Table:
    """A log drawn from `config.synthetic`, in time order. Same options, same rows."""
    names = ("domain", _AUXILIARY) if config.synthetic.auxiliary else ("domain",)
    return Table(
        frame=generate(config.synthetic).lazy(),
        fields={field.name: field for field in _FIELDS},
        default_fields=tuple(field.name for field in _FIELDS),
        divisions=tuple(Division(name=name, column=name) for name in names),
        label=Label(column="label"),
        post_outcome={
            "label": "it is the label itself",
            "true_probability": "it is the probability that the label was drawn with",
        },
        oracle="true_probability",
    )


def generate(options: SyntheticOptions) -> pl.DataFrame:
    """The log of these options: the columns of the fields, domain, timestamp, label, truth; last
    the auxiliary domain, where there are some."""
    rng = np.random.default_rng(options.seed)
    aside = np.random.default_rng((options.seed, 1))  # of the second division: it moves no draw
    world = _World.draw(options, rng, aside)
    n = options.rows
    user = rng.integers(options.users, size=n)
    item = _zipf(options.items, 0.7, n, rng)
    domain = _zipf(options.domains, options.zipf, n, rng)
    device = rng.choice(len(_DEVICES), size=n, p=(0.6, 0.1, 0.25, 0.05))
    time = _START + np.sort(rng.integers(_DAYS * 86_400, size=n))
    hour = (time % 86_400) // 3_600
    logit = world.logit(user, item, domain, hour, device)
    second: dict[str, pl.Series] = {}
    if options.auxiliary:
        auxiliary = aside.integers(options.auxiliary, size=n)
        logit += world.deviating(world.auxiliary, user, item, auxiliary)
        second[_AUXILIARY] = _named(_AUXILIARY, options.auxiliary, auxiliary)
    probability = 1 / (1 + np.exp(-logit))
    label = (rng.random(n) < probability).astype(np.int64)
    return pl.DataFrame(
        {
            "user": user,
            "segment": world.segment[user],
            "item": item,
            "category": world.category[item],
            "tags": _bags(world.tags, item),
            "hour": hour,
            "device": pl.Series(np.array(_DEVICES)[device]),
            "price": world.price[item],
            "domain": _named("domain", options.domains, domain),
            "timestamp": time,
            "label": label,
            "true_probability": probability,
            **second,
        }
    )


@dataclass(frozen=True)
class _World:
    """Everything that is drawn once. U users, I items, D domains and A auxiliary ones, K latent, T
    tags at most."""

    segment: Ints  # (U,)
    category: Ints  # (I,)
    tags: Ints  # (I, T), -1 = none
    price: Floats  # (I,)
    user_vector: Floats  # (U, K)
    item_vector: Floats  # (I, K)
    user_bias: Floats  # (U,)
    item_bias: Floats  # (I,), with the effects of its tags and its price
    rate: Floats  # (D,)
    deviation: Floats  # (D, K, K), A_d, already times the strength
    auxiliary: Floats  # (A, K, K), B_a, likewise
    hour: Floats  # (24,)
    device: Floats  # (devices,)

    @classmethod
    def draw(
        cls, options: SyntheticOptions, rng: np.random.Generator, aside: np.random.Generator
    ) -> "_World":
        """All but the auxiliary division from `rng`, that one from `aside`."""
        segment = rng.integers(_SEGMENTS, size=options.users)
        category = rng.integers(_CATEGORIES, size=options.items)
        tags = np.array([rng.permutation(_TAGS)[:_MOST_TAGS] for _ in range(options.items)])
        tags[np.arange(_MOST_TAGS) >= rng.integers(1, _MOST_TAGS + 1, options.items)[:, None]] = -1
        price: Floats = np.exp(rng.normal(3.0, 1.0, options.items)).round(2)
        tag_effect = np.append(rng.normal(0, 0.5, _TAGS), 0.0)  # the last one is "none"
        tag_mean = tag_effect[tags].sum(axis=1) / (tags >= 0).sum(axis=1)
        deviation = _deviations(options.domains, options, rng)
        if options.kinds is not None:
            deviation = deviation[np.arange(options.domains) % options.kinds]
        return cls(
            segment=segment,
            category=category,
            tags=tags,
            price=price,
            user_vector=_vectors(segment, _SEGMENTS, rng),
            item_vector=_vectors(category, _CATEGORIES, rng),
            user_bias=rng.normal(0, 0.3, options.users),
            item_bias=rng.normal(0, 0.3, options.items) + tag_mean - 0.2 * (np.log(price) - 3.0),
            rate=rng.normal(-1.0, 0.5, options.domains),
            deviation=deviation,
            auxiliary=_deviations(options.auxiliary or 0, options, aside),
            hour=0.3 * np.cos((np.arange(24) - 20) / 24 * 2 * np.pi),
            device=rng.normal(0, 0.2, len(_DEVICES)),
        )

    def logit(self, user: Ints, item: Ints, domain: Ints, hour: Ints, device: Ints) -> Floats:
        """(N,) from five (N,) index arrays."""
        logit = self.rate[domain] + self.user_bias[user] + self.item_bias[item]
        logit += self.hour[hour] + self.device[device]
        logit += np.einsum("nk,nk->n", self.user_vector[user], self.item_vector[item])
        return logit + self.deviating(self.deviation, user, item, domain)

    def deviating(self, matrices: Floats, user: Ints, item: Ints, domain: Ints) -> Floats:
        """<p_u, M_d q_i> of each row (N,), M_d = `matrices`[d]."""
        found = np.zeros(len(domain))
        for d, matrix in enumerate(matrices):
            rows = np.flatnonzero(domain == d)
            p, q = self.user_vector[user[rows]], self.item_vector[item[rows]]
            found[rows] = np.einsum("nk,nk->n", p @ matrix, q)
        return found


def _deviations(domains: int, options: SyntheticOptions, rng: np.random.Generator) -> Floats:
    """Of each domain a matrix of rank `options.rank`, already times the strength: (D, K, K)."""
    shape = (domains, _LATENT, options.rank)
    left, right = (_directions(*shape, rng) for _ in range(2))
    # |A| = |identity|, so that <p, A q> varies as much as <p, q>, whatever the rank
    strength = options.deviation * np.sqrt(_LATENT / options.rank)
    matrices: Floats = strength * np.einsum("dkr,dlr->dkl", left, right)
    return matrices


def _vectors(group: Ints, groups: int, rng: np.random.Generator) -> Floats:
    """Latent vectors (N, K): the group's and a little of one's own; <p, q> varies by about 1."""
    shared = np.sqrt(groups) * _directions(1, groups, _LATENT, rng)[0]
    own = rng.normal(size=(len(group), _LATENT))
    vectors: Floats = (0.95 * shared[group] + 0.3 * own) / _LATENT**0.25
    return vectors


def _directions(n: int, size: int, count: int, rng: np.random.Generator) -> Floats:
    """n random sets (n, size, count) of orthonormal columns: no seed gives a lopsided world."""
    columns: Floats = np.linalg.qr(rng.normal(size=(n, size, count))).Q
    return columns


def _zipf(size: int, exponent: float, n: int, rng: np.random.Generator) -> Ints:
    """n draws from 0 … size - 1, the k-th (from 1) as likely as 1 / k ** exponent."""
    weight = 1 / np.arange(1, size + 1) ** exponent
    edges = np.cumsum(weight / weight.sum())
    return np.minimum(np.searchsorted(edges, rng.random(n), side="right"), size - 1)


def _named(division: str, domains: int, domain: Ints) -> pl.Series:
    """Each row's domain by name, like domain_07."""
    names = np.array([f"{division}_{d:02d}" for d in range(domains)])
    return pl.Series(names[domain])


def _bags(tags: Ints, item: Ints) -> pl.Series:
    """The list column of each row's tags."""
    bags = pl.Series([bag[bag >= 0].tolist() for bag in tags], dtype=pl.List(pl.Int64))
    return bags.gather(item)
