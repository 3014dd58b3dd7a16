"""How a CSV file is written: its encoding, separator, quotation mark, decimal mark, and the texts
that stand for a missing value. What is not said is found out from the file's first lines.
"""

import csv
import io
from dataclasses import dataclass
from typing import Any

import polars as pl

from loractr.data.config import DataConfig
from loractr.errors import ConfigError

SEPARATORS = (",", ";", "\t", "|")
_SAMPLE = 50


@dataclass(frozen=True)
class TextForm:
    """How CSV files are written; by default as the standard (RFC 4180) says."""

    encoding: str | None = None
    """None: UTF-8, or what a byte-order mark says."""
    separator: str | None = None
    """None: the one of `SEPARATORS` that fits the first lines."""
    quote: str = '"'
    """Empty: values are not quoted."""
    decimal: str = "."
    missing: tuple[str, ...] = ()
    """Texts that are missing values, as the empty one always is."""

    @classmethod
    def of(cls, config: DataConfig) -> "TextForm":
        """What the `data` section says.

        Raises:
            ConfigError: no such encoding, or a mark that is more than one byte.
        """
        problems = [*_unknown_encoding(config.encoding)]
        marks = {"separator": config.separator, "quote": config.quote}
        problems += [
            f"data.{name}: expected one ASCII character, not {mark!r}"
            for name, mark in marks.items()
            if mark and (not mark.isascii() or mark in "\r\n\0")
        ]
        quote = '"' if config.quote is None else config.quote
        if quote and quote == config.separator:
            problems.append(f"data.separator and data.quote are both {quote!r}")
        if problems:
            raise ConfigError(problems)
        return cls(config.encoding, config.separator, quote, config.decimal, config.missing_values)

    @property
    def dialect(self) -> dict[str, Any]:
        """The arguments of `csv.reader`."""
        quoting = csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE
        return {
            "delimiter": self.separator or ",",
            "quotechar": self.quote or None,
            "quoting": quoting,
        }

    def known(self, text: pl.Expr) -> pl.Expr:
        """Texts without the blanks around them; null where one is a missing value."""
        plain = text.str.strip_chars()
        return pl.when(~plain.is_in(["", *self.missing])).then(plain)

    def find_separator(self, beginning: str) -> str:
        """The separator of a file that begins so; the comma where it is not clear.

        It cuts the header, and as many pieces off every line; of several, the one with most.

        >>> TextForm().find_separator("user;price, EUR\\n1;2,50\\n2;3\\n")
        ';'
        """
        widths = {mark: self._widths(beginning, mark) for mark in SEPARATORS}
        possible = [mark for mark, found in widths.items() if found and found[0] > 1]
        regular = [mark for mark in possible if len(set(widths[mark])) == 1]
        return max(regular or possible, key=lambda mark: widths[mark][0], default=",")

    def _widths(self, beginning: str, separator: str) -> list[int]:
        """Number of values in each of the first lines."""
        lines = io.StringIO(beginning, newline="")
        records = csv.reader(lines, **{**self.dialect, "delimiter": separator})
        widths: list[int] = []
        try:
            for record in records:
                widths += [len(record)] if any(map(str.strip, record)) else []
                if len(widths) == _SAMPLE:
                    return widths
        except csv.Error:
            return widths
        return widths[:-1] or widths  # the last one may be cut


STANDARD = TextForm()
"""As the standard says."""


def _unknown_encoding(encoding: str | None) -> list[str]:
    if encoding is None:
        return []
    try:
        b"a".decode(encoding)
    except UnicodeError:  # there is such an encoding, of wider letters
        return []
    except (LookupError, ValueError):
        return [f"data.encoding: no encoding {encoding[:40]!r}; utf-8, latin-1 and gbk are some"]
    return []
