"""What a model cannot know about the rows that it scores, in sentences for a person."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from loractr.data import gaps, sketch
from loractr.data.canonical import column_of
from loractr.data.domains import MISSING
from loractr.data.encode import Encoders
from loractr.data.fingerprint import known_again
from loractr.data.profile import Part, Profile, short
from loractr.data.rows import Rows
from loractr.data.sources import table
from loractr.data.tally import Tally
from loractr.errors import some

FEW = 20
"""Fewer rows than this prove nothing by being a part of all."""
_MOST = 8  # fields that have a sentence of their own


def about_inputs(
    rows: Rows,
    encoders: Encoders,
    profile: Profile | None,
    frame: pl.DataFrame | None = None,
) -> list[str]:
    """Domains that training never saw, and fields whose share of unknown ids or of missing values
    is above one half or three times that of the validation rows. A part of all rows counts from 20
    rows and 1 % on; all of them count wherever chance does not explain it.

    Args:
        rows: Encoded rows.
        encoders: What encoded them.
        profile: What the model was trained on, where it is known.
        frame: The same rows, raw: only they name the domains and tell missing numbers.
    """
    if not len(rows):
        return []
    tally = Tally(encoders.schema)
    tally.add(rows, gaps.find(rows, encoders, frame))
    usual = None if profile is None else profile.validation.whole
    if usual is not None and not usual.rows:
        usual = None
    unknown, ids = tally.whole.unknown[0], tally.whole.ids[0]
    missing, all_rows = tally.whole.missing[0], np.full_like(ids, len(rows))
    return [
        *_unseen(rows, encoders, frame),
        *_of_fields("unknown", tally.fields, unknown, ids, usual),
        *_of_fields("missing", tally.fields, missing, all_rows, usual),
    ]


def _of_fields(
    word: Literal["unknown", "missing"],
    names: Sequence[str],
    parts: NDArray[np.int64],
    of: NDArray[np.int64],
    usual: Part | None,
) -> Iterator[str]:
    """A sentence for each field that has much of what `word` says."""
    what, more = ("ids", 0.0) if word == "unknown" else ("rows", 0.1)
    shares: dict[str, float] = getattr(usual, word, {})
    told = 0
    rest = []
    for name, part, whole in zip(names, parts.tolist(), of.tolist(), strict=True):
        before = None if usual is None else shares.get(name, 0.0)
        if not part or not _tells(part, whole, before, more=more):
            continue
        told += 1
        if told > _MOST:
            rest.append(short(name))
            continue
        known = "" if before is None else f"; of the validation rows {_percent(before)}"
        share = _percent(part / whole)
        yield f"{short(name)} {word} in {share} ({part:,} of {whole:,} {what}{known})"
    if rest:
        yield f"{word} likewise: {some(rest)}"


def _tells(part: int, whole: int, usual: float | None, *, more: float) -> bool:
    """Whether `part` of `whole` is out of the usual; more than one half is, where it is more than
    usual by `more`: a column may be empty by nature, and the model has learnt what that means."""
    share, before = part / whole, usual or 0.0
    if part == whole and before**whole < 0.01:
        return True
    if part < FEW or share < 0.01:
        return False
    much = share > 0.5 and share >= before + more
    return much or (usual is not None and share > 3 * usual)


def _unseen(rows: Rows, encoders: Encoders, frame: pl.DataFrame | None) -> Iterator[str]:
    for place, division in enumerate(encoders.schema.divisions):
        unseen = np.flatnonzero(rows.domains[:, place] < 0)
        if not len(unseen):
            continue
        names = ""
        if frame is not None and division.column in frame.columns:
            values = column_of(frame, division.column).gather(unseen).unique(maintain_order=True)
            names = f": {some(short(name) for name in values.cast(pl.String).fill_null(MISSING))}"
        yield (
            f"{len(unseen):,} of {len(rows):,} rows are of domains that training never saw{names}"
            f" (division {short(division.name)!r})"
        )


def about_training_rows(rows: Rows, profile: Profile | None) -> list[str]:
    """Whether these labelled rows are largely those that trained the model: more than one half of
    them, and more than three times as many as among the validation rows, where rows repeat.

    An estimate where the training rows are more than the profile keeps marks of.
    """
    if profile is None or not len(rows):
        return []
    marks = sketch.marks(rows)
    looked_up = marks[marks < profile.limit]
    if len(looked_up) < min(FEW, len(rows)):
        return []
    share = float(np.isin(looked_up, np.array(profile.marks, dtype=np.uint64)).mean())
    usual = profile.repeats or 0.0
    if share <= max(0.5, 3 * usual):
        return []
    return [
        f"about {_percent(share)} of these rows trained the model (estimated from"
        f" {len(looked_up):,} of them; of the validation rows {_percent(usual)}): what is measured"
        " on them says little about other rows"
    ]


def about_files(path: Path, profile: Profile | None) -> list[str]:
    """Whether `path` means a file that the model's training data were read from."""
    if profile is None or not profile.files:
        return []
    again = [file.name for file in known_again(table.files(path), profile.files)]
    if not again:
        return []
    return [
        f"{some(again)}: the model was made from this very data: its rows trained, chose or tested"
        " it"
    ]


def _percent(share: float) -> str:
    """In percent, never rounded to nothing or to all."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    if 0.999 < share < 1:
        return "more than 99.9 %"
    return f"{100 * share:.1f}".removesuffix(".0") + " %"
