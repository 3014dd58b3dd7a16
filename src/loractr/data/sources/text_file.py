"""`TextFile`: a CSV file, opened: its form known, its header read, its text as UTF-8."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, cast

from loractr.data.sources import copies
from loractr.data.sources.content import Content, look, unpacked, unreadable
from loractr.data.sources.files import ending
from loractr.data.sources.text_form import STANDARD, TextForm
from loractr.errors import DataError, MalformedLineError, repeated, some

NOT_UTF_8 = "the text is not UTF-8"
SAY_ENCODING = (
    "save it in UTF-8, or say its `encoding:` in the data section, such as latin-1 or gbk."
)
SAY_QUOTE = 'correct that line; or say `quote: ""` in the data section, if no value is quoted.'
csv.field_size_limit(2**31 - 1)  # of a module's own 131,072 no other reader here knows
_POLARS_UNPACKS = (None, "gzip", "zstd")
_SAYS_SEPARATOR = re.compile(r'"?sep=([\t -!#-~])"?(?:\r\n|\r|\n)', re.IGNORECASE)
"""What Excel takes for an order and no row, in the first line."""


@dataclass(frozen=True)
class TextFile:
    """A CSV file whose form is known. `opened` makes one."""

    path: Path
    """As its user knows it."""
    text: Path
    """Where its text is in UTF-8: the file itself, or a temporary copy."""
    packing: str | None
    """How `text` is packed, if it is."""
    form: TextForm
    """Its separator is not left open."""
    columns: tuple[str, ...] = ()
    """Names of the columns; empty where one has none."""
    line_end: str = "\n"
    """`\\n`, in which `\\r\\n` ends too, or `\\r` alone."""
    above: int = 0
    """Number of lines above the header: blank ones, and Excel's `sep=;`."""

    @property
    def named(self) -> list[str]:
        """The columns that have a name."""
        return [name for name in self.columns if name]

    def records(self) -> Iterator[tuple[int, list[str], str]]:
        """(its first line, values, the text itself) of each record from the header on: rows and
        blank lines.

        Raises:
            MalformedLineError: quotes do not match, so that there are no records.
        """
        raw: list[str] = []
        line = self.above + 1
        try:
            with self._lines() as file:
                lines = _remembering(islice(file, self.above, None), raw)
                records = csv.reader(lines, strict=True, **self.form.dialect)
                while (values := next(records, None)) is not None:
                    yield line, values, "".join(raw)
                    raw.clear()
                    line = self.above + records.line_num + 1
        except csv.Error as error:
            problem = f"quotes do not match ({error})"
            raise MalformedLineError(self.path, line, problem, fix=SAY_QUOTE) from None
        except OSError as error:  # compressed, and cut short
            raise unreadable(self.path, error) from error

    def rows(self) -> Iterator[tuple[int, list[str], str]]:
        """The records without the header and without blank lines."""
        records = (record for record in self.records() if not self.is_blank(record[2]))
        next(records, None)
        return records

    def is_blank(self, line: str) -> bool:
        """Whether a line says nothing: one with blanks alone, where there are several columns."""
        blanks = "\r\n" if self.form.separator == " " else " \r\n"
        return len(self.columns) != 1 and not line.strip(blanks)

    def without_blank_lines(self) -> "TextFile":
        """A copy that has none."""

        def write(file: IO[bytes]) -> None:
            for _, _, raw in self.records():
                if not self.is_blank(raw):
                    file.write(raw.encode("utf-8", "surrogateescape"))

        copy = copies.copied(self.text, f"without blank lines {self.form.dialect}", write)
        return replace(self, text=copy, packing=None, above=0)

    def _lines(self) -> IO[str]:
        """The text, with bytes that are not UTF-8 as lone surrogates."""
        stream = cast("io.BufferedReader", unpacked(self.text, self.packing))
        return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def opened(path: Path, form: TextForm = STANDARD) -> TextFile:
    """The CSV file at `path`, unpacked and in UTF-8 where that is needed, with its header read.

    Raises:
        DataError: it is empty, cannot be read, or is no text.
        MalformedLineError: the header is not UTF-8, names a column twice or none at all, or a line
            is not in the encoding that `form` says.
    """
    content = look(path)
    _refuse_other(content, form)
    encoding = content.marked_encoding or form.encoding or "utf-8"
    beginning = content.head.decode(encoding, "replace")
    if _is_utf_8(encoding):
        unpacks = content.packing in _POLARS_UNPACKS
        text = path if unpacks else copies.plain(path, content.packing)
        packing = content.packing if unpacks else None
    else:
        text, packing = copies.in_utf8(path, content.packing, encoding), None
    beginning = beginning.removeprefix("\ufeff")
    said = _SAYS_SEPARATOR.match(beginning)
    separator = form.separator or (said[1] if said else _separator(path, beginning, form))
    file = TextFile(path, text, packing, replace(form, separator=separator), above=1 if said else 0)
    return _with_header(file)


def is_utf_8(text: str) -> bool:
    """Whether `text`, of `TextFile.records`, was UTF-8."""
    return text.isascii() or not re.search("[\udc80-\udcff]", text)


def _refuse_other(content: Content, form: TextForm) -> None:
    if not content.head:
        raise DataError(f"{content.path} is empty.", fix="name a file that has a header and rows.")
    if content.foreign:
        raise DataError(
            f"{content.path} holds no Parquet or CSV file: it is {content.foreign}.",
            fix="save its table as .csv or .parquet.",
        )
    if content.has_nulls and not (form.encoding or content.marked_encoding):
        raise DataError(
            f"{content.path} is no text: it is full of NUL bytes.",
            fix="if it is UTF-16, say `encoding: utf-16-le` (or -be) in the data section.",
        )


def _is_utf_8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")


def _separator(path: Path, beginning: str, form: TextForm) -> str:
    if ending(path) == ".tsv" and "\t" in beginning:
        return "\t"
    return form.find_separator(beginning)


def _with_header(file: TextFile) -> TextFile:
    line, columns, raw = next(
        (record for record in file.records() if not file.is_blank(record[2])), (1, [], "")
    )
    file = replace(file, above=line - 1)
    if not is_utf_8(raw):
        raise MalformedLineError(file.path, line, NOT_UTF_8, fix=SAY_ENCODING)
    names = tuple(name.strip() for name in columns)
    file = replace(file, columns=names, line_end="\r" if raw.endswith("\r") else "\n")
    if not file.named:
        problem = "the header names no column"
        raise MalformedLineError(
            file.path, line, problem, fix="write the names of the columns there."
        )
    if twice := repeated(file.named):
        problem = f"the header names {some((name[:40] for name in twice), 5)} twice"
        fix = "rename columns in the header, so that each has a name of its own."
        raise MalformedLineError(file.path, line, problem, fix=fix)
    return file


def _remembering(lines: Iterable[str], raw: list[str]) -> Iterator[str]:
    for line in lines:
        raw.append(line)
        yield line
