"""Lists that a file holds as text.

a|b|c   a, b                cut at the field's separator, blanks around the pieces aside
[103, 107]   ["i1", "i2"]   a list as JSON, Python or Java writes it
['a' 'b']   [1 2 3]         as NumPy does, also array([1, 2, 3])
(103, 107)   {103, 107}     a tuple, a set, an array of PostgreSQL
"""

import ast
import json
from contextlib import suppress

import polars as pl

_ARRAY = r"(?s)^array\((\[.*\])(?:,\s*dtype=[^()]*)?\)$"
_LIST = r"(?s)^(?:\[.*\]|\{[^{}:]*\}|\([^()]*,[^()]*\))$"
UNREADABLE = r"(?s)^\s*(?:array\()?\[\s*\[|[\[,\s]\.\.\.[\],\s]"
"""Lists of lists, and lists that NumPy has cut short."""
_PIECE = r"""(?s)"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^,\s"']+"""


def split(text: pl.Series, separator: str | None) -> pl.Series:
    """The ids of each text (N,), as lists of text; null where the text is null.

    A text in brackets is a list by itself; any other is cut at `separator`, and without one holds
    one id. Empty pieces between separators are left out, `""` within brackets is not.

    >>> split(pl.Series(["a, b", '["c, d", 7]', "[]"]), ",").to_list()
    [['a', 'b'], ['c, d', '7'], []]
    """
    texts = text.unique(maintain_order=True)
    stripped = texts.str.strip_chars().str.replace(_ARRAY, "$1")
    listed = stripped.str.contains(_LIST).fill_null(False)
    parts = pl.DataFrame({"text": texts, "whole": stripped, "listed": listed})
    found = parts.select(
        "text",
        ids=pl.when("listed").then(_bracketed(separator)).otherwise(_cut(separator)),
    )
    joined = pl.DataFrame({"text": text}).join(
        found, on="text", how="left", maintain_order="left", nulls_equal=True
    )
    return joined["ids"].alias(text.name)


def is_list(text: pl.Series) -> pl.Series:
    """Whether each text is a list by itself, in brackets."""
    return text.str.strip_chars().str.replace(_ARRAY, "$1").str.contains(_LIST)


def _cut(separator: str | None) -> pl.Expr:
    text = pl.col("whole")
    pieces = text.str.split(separator) if separator is not None else pl.concat_list(text)
    cut = pieces.list.eval(pl.element().str.strip_chars())
    cut = cut.list.eval(pl.element().filter(pl.element() != ""))
    return pl.when(text.is_not_null()).then(cut)


def _bracketed(separator: str | None) -> pl.Expr:
    """The pieces between the brackets, at commas or at the field's separator; quotes taken off."""
    text = pl.col("whole")
    inner = text.str.slice(1, text.str.len_chars() - 2).str.strip_chars().str.strip_suffix(",")
    quoted = inner.str.contains(r"""^["']|[,\s]["']""")
    numbers = inner.str.contains(r"^[-+.\deE\s]*$")  # without commas: NumPy's
    own = separator if separator is not None and separator.strip(" ,") else ","
    at = pl.when(inner.str.contains(own, literal=True)).then(pl.lit(own)).otherwise(pl.lit(","))
    bare = inner.str.split(at).list.eval(pl.element().str.strip_chars())
    pieces = (
        pl.when(inner == "")
        .then(pl.lit([], dtype=pl.List(pl.String)))
        .when(quoted)
        .then(inner.str.extract_all(_PIECE))
        .when(numbers)
        .then(inner.str.extract_all(r"\S+"))
        .otherwise(bare)
    )
    return pieces.list.eval(_unquoted(pl.element()))


def _unquoted(piece: pl.Expr) -> pl.Expr:
    quoted = piece.str.contains(r"""(?s)^(?:".*"|'.*')$""") & (piece.str.len_chars() > 1)
    plain = piece.str.slice(1, piece.str.len_chars() - 2)
    escaped = quoted & piece.str.contains("\\", literal=True)
    return (
        pl.when(escaped)
        .then(piece.map_elements(_unescaped, return_dtype=pl.String, skip_nulls=True))
        .when(quoted)
        .then(plain)
        .otherwise(piece)
    )


def _unescaped(piece: str) -> str:
    """A quoted text with backslashes, as JSON or Python means it; as it is where neither can."""
    if "\\" not in piece:
        return piece
    for read in (json.loads, ast.literal_eval):
        with suppress(SyntaxError, ValueError):
            return str(read(piece))
    return piece[1:-1]
