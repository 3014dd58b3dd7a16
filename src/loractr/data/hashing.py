"""Stable hashes of ids: the same in every process, on every machine, with every version of Polars.

Integers: the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014). Text: the same function
chained over the 8-byte little-endian words of its UTF-8, the last one padded with zeros, started
from the number of bytes. A text of digits hashes as the integer that it spells.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

UNKNOWN, MISSING, FIRST_BUCKET = 0, 1, 2


def buckets(values: pl.Series, count: int) -> NDArray[np.int32]:
    """Bucket of each id (N,): 1 for a missing one, else 2 .. count + 1. The unknown, 0, is unused.

    Args:
        values: Canonical ids, Int64 or text.
        count: Number of buckets.
    """
    bucket = hashes(values) % np.uint64(count) + np.uint64(FIRST_BUCKET)
    return np.where(values.is_null().to_numpy(), MISSING, bucket).astype(np.int32)


def hashes(values: pl.Series) -> Hashes:
    """64-bit hash of each canonical id (N,); that of a missing one means nothing."""
    if values.dtype == pl.Int64:
        return splitmix64(values.fill_null(0).to_numpy().view(np.uint64))
    spelt = values.cast(pl.Int64, strict=False)
    is_integer = (spelt.cast(pl.String) == values).fill_null(False).to_numpy()
    integers = splitmix64(spelt.fill_null(0).to_numpy().view(np.uint64))
    return np.where(is_integer, integers, _text_hashes(values.fill_null("")))


def splitmix64(state: Hashes) -> Hashes:
    """One output of splitmix64 for each state (N,): a bijection of 64 bits."""
    mixed = state + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _text_hashes(values: pl.Series) -> Hashes:
    """Word k of all texts that have one is taken in one step; the steps are the longest text's."""
    joined = np.frombuffer("".join(values.to_list()).encode() + bytes(8), dtype=np.uint8)
    words = np.lib.stride_tricks.sliding_window_view(joined, 8)
    lengths = values.str.len_bytes().to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    state = splitmix64(lengths.astype(np.uint64))
    longest_first = np.argsort(-lengths, kind="stable")
    falling = -lengths[longest_first]
    for begin in range(0, int(lengths.max(initial=0)), 8):
        active = longest_first[: np.searchsorted(falling, -begin)]  # longer than `begin` bytes
        word = words[starts[active] + begin].view("<u8")[:, 0].astype(np.uint64)
        spare = np.maximum(8 - (lengths[active] - begin), 0).astype(np.uint64) * np.uint64(8)
        word = (word << spare) >> spare  # bytes of the next text
        state[active] = splitmix64(state[active] ^ word)
    return state
