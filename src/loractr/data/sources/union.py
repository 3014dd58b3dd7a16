"""The parts of a table as one: columns matched by name, types widened to hold all values."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import polars as pl
from polars import selectors as cs

from loractr.data import moments
from loractr.errors import DataError, some

log = logging.getLogger(__name__)

_NEVER_TEXT = (pl.Binary, pl.Duration, pl.Object)


@dataclass(frozen=True)
class Part:
    """Rows of one file, or of all of them together."""

    path: Path
    frame: pl.LazyFrame
    types: Mapping[str, pl.DataType]
    """Column → type, in the order of the file."""


def together(
    parts: Sequence[Part], needed: Collection[str] | None = None, *, tell: bool = True
) -> Part:
    """The rows of all parts, one part after the other.

    A column that a part lacks is null there. Text holds what is text in any part.

    Args:
        parts: At least one.
        needed: Columns of which the types must have one in common; all when absent. Others are
            left out when they have none.
        tell: Whether to log what is left out or filled.

    Raises:
        DataError: a needed column is, for instance, a list in one part and a number in another.
    """
    types, strays = _common_types(parts)
    for name, (one, other) in strays.items():
        problem = (
            f"column {name[:60]!r} is {str(one.types[name])[:60]} in {one.path} and"
            f" {str(other.types[name])[:60]} in {other.path}"
        )
        if needed is None or name in needed:
            fix = "write it with one type, or name the files that belong together by a pattern."
            raise DataError(f"{problem}: no type holds both.", fix=fix)
        if tell:
            log.warning("%s; it is left out", problem)
    small = [name for name in types if _loses_digits([part.types.get(name) for part in parts])]
    if small and tell:
        log.warning(
            "columns that are Float32 in some files only, where whole numbers from 16,777,216 on"
            " have lost their last digits: %s",
            some(small),
        )
    partial = [name for name in types if any(name not in part.types for part in parts)]
    if partial and tell:
        log.warning(
            "columns that some files lack, and that are missing there: %s",
            some(name[:40] for name in partial),
        )
    frames = [_as(part, types) for part in parts]
    return Part(parts[0].path, frames[0] if len(frames) == 1 else pl.concat(frames), types)


def wider(*types: pl.DataType) -> pl.DataType | None:
    """The type that holds all values of all `types`, in whatever order, if there is one.

    >>> wider(pl.Int32(), pl.UInt8()), wider(pl.Date(), pl.Int8())
    (Int64, None)
    >>> wider(pl.Date(), pl.Int8(), pl.String())
    String
    """
    kinds = [kind for kind in dict.fromkeys(types) if kind != pl.Null]
    common: pl.DataType | None = None
    if len(kinds) <= 1:
        common = kinds[0] if kinds else pl.Null()
    elif all(isinstance(kind, pl.List | pl.Array) for kind in kinds):
        inner = wider(*(_inner(kind) for kind in kinds if isinstance(kind, pl.List | pl.Array)))
        common = None if inner is None else pl.List(inner)
    elif any(kind.is_nested() or kind in _NEVER_TEXT for kind in kinds):
        common = None
    elif any(_is_text(kind) for kind in kinds):
        common = pl.String()
    elif all(_is_number(kind) for kind in kinds):
        common = _wider_number(kinds)
    elif all(isinstance(kind, pl.Date | pl.Datetime) for kind in kinds):
        common = pl.Datetime("us")
    return common


def _wider_number(kinds: Sequence[pl.DataType]) -> pl.DataType:
    if any(kind.is_float() for kind in kinds):
        return pl.Float64()
    scales = [kind.scale for kind in kinds if isinstance(kind, pl.Decimal)]
    if scales:
        return pl.Decimal(38, max(scales))
    wide = any(kind in (pl.UInt64, pl.Int128, pl.UInt128) for kind in kinds)
    return pl.Int128() if wide else pl.Int64()


def _inner(sequence: pl.List | pl.Array) -> pl.DataType:
    inner = sequence.inner
    return inner if isinstance(inner, pl.DataType) else inner()


def _loses_digits(kinds: Sequence[pl.DataType | None]) -> bool:
    """Whether some parts hold as Float32 what others hold exactly."""
    present = {
        _inner(kind) if isinstance(kind, pl.List | pl.Array) else kind for kind in kinds if kind
    }
    return pl.Float32() in present and bool(present - {pl.Float32(), pl.Null()})


def _is_text(kind: pl.DataType) -> bool:
    return isinstance(kind, pl.String | pl.Categorical | pl.Enum)


def _is_number(kind: pl.DataType) -> bool:
    return kind.is_numeric() or kind == pl.Boolean


Strays = dict[str, tuple[Part, Part]]


def _common_types(parts: Sequence[Part]) -> tuple[dict[str, pl.DataType], Strays]:
    """The types of all columns, and the columns that have none, each with two parts that differ."""
    found: dict[str, dict[pl.DataType, Part]] = {}
    for part in parts:
        for name, kind in part.types.items():
            found.setdefault(name, {}).setdefault(kind, part)
    types: dict[str, pl.DataType] = {}
    strays: Strays = {}
    for name, kinds in found.items():
        common = wider(*kinds)
        if common is not None:
            types[name] = common
            continue
        strays[name] = next(
            (kinds[one], kinds[other])
            for one, other in combinations(kinds, 2)
            if wider(one, other) is None
        )
    return types, strays


def _as(part: Part, types: dict[str, pl.DataType]) -> pl.LazyFrame:
    """The rows of `part` with exactly the columns of `types`."""
    if list(part.types.items()) == list(types.items()):
        return part.frame
    return part.frame.select(
        _cast(name, part.types[name], kind)
        if name in part.types
        else pl.lit(None, dtype=kind).alias(name)
        for name, kind in types.items()
    )


def _cast(name: str, old: pl.DataType, new: pl.DataType) -> pl.Expr:
    column = cs.by_name(name).as_expr()
    if old == new:
        return column
    if old == pl.Float32 and new in (pl.Float64, pl.String):  # .7 stays .7
        return column.cast(pl.String).cast(new)
    if isinstance(old, pl.Date | pl.Datetime) and new == pl.String:
        return column.map_batches(moments.text, return_dtype=pl.String(), is_elementwise=True)
    return column.cast(new)
