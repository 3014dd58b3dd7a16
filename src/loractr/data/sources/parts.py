"""The files of a table, opened: all of text or all of Parquet, each with what its path says."""

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from loractr.data.sources import copies, delimited
from loractr.data.sources.content import Content, look
from loractr.data.sources.files import PARQUET, READ, Found, ending, find
from loractr.data.sources.readings import Readings, decide, read, unread
from loractr.data.sources.text_file import TextFile, is_utf_8, opened
from loractr.data.sources.text_form import TextForm
from loractr.data.sources.union import Part, together
from loractr.errors import DataError, some

log = logging.getLogger(__name__)

_INDEX = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True)
class Parts:
    """The files of one table. `open_parts` makes one."""

    files: Sequence[tuple[Found, TextFile | pl.LazyFrame]]
    """Each file, and its text, or the rows of a Parquet file."""
    form: TextForm
    """How the text files are written."""

    def text(self) -> pl.LazyFrame:
        """The rows, unchecked, with all that stands in text files and in paths as text."""
        parts = [self._part(found, _text(file), {}) for found, file in self.files]
        return together(parts, (), tell=False)

    def frame(
        self,
        *,
        numbers: Iterable[str] = (),
        times: Iterable[str] = (),
        labels: Iterable[str] = (),
        needed: Collection[str] | None = None,
        refuse_empty: bool = True,
    ) -> pl.LazyFrame:
        """The rows, checked; files without any are left out. The arguments are those of
        `table.scan`.

        Raises:
            DataError: no file has rows and that is not allowed, or the files do not go together.
            MalformedLineError: a line of a text file cannot be read.
        """
        text = self._undecided()
        there = set(text.collect_schema().names())
        readings = decide(
            text,
            self.form,
            numbers=[name for name in numbers if name in there],
            times=[name for name in times if name in there],
            labels=[name for name in labels if name in there],
        )
        full: list[Part] = []
        empty: list[Part] = []
        for found, file in self.files:
            frame, rows = _checked(file, readings)
            (full if rows else empty).append(self._part(found, frame, readings))
        if not full and refuse_empty:
            header = " a header but" if isinstance(self.files[0][1], TextFile) else ""
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            raise DataError(
                f"{empty[0].path}{more} has{header} no rows.", fix="name a file that has rows."
            )
        if full and empty:
            log.info("without rows: %s", some((part.path for part in empty), 3))
        return together(full or empty, needed)

    def _undecided(self) -> pl.LazyFrame:
        """The text of which `decide` says how to read it: of Parquet files that of their paths."""
        if any(isinstance(file, TextFile) for _, file in self.files):
            return self.text()
        names = dict.fromkeys(name for found, _ in self.files for name in found.keys)
        values = {name: [found.keys.get(name) for found, _ in self.files] for name in names}
        return pl.LazyFrame(values, schema=dict.fromkeys(names, pl.String))

    def _part(self, found: Found, frame: pl.LazyFrame, readings: Readings) -> Part:
        """The rows of a file with what its path says, where the file itself does not say it."""
        own = set(frame.collect_schema().names()) if found.keys else set()
        keys = {name: value for name, value in found.keys.items() if name not in own}
        values = pl.DataFrame({name: [value] for name, value in keys.items()}).cast(pl.String)
        for name in keys.keys() & readings.keys():
            if values.select(unread(name, readings[name], self.form)).item():
                raise DataError(
                    f"{found.path}: {name} must be {readings[name].what}, not"
                    f" {str(keys[name])[:40]!r}.",
                    fix="rename that folder, or name those that belong together by a pattern.",
                )
            values = values.with_columns(read(name, readings[name], self.form, strict=True))
        literals = [pl.lit(value.item(), dtype=value.dtype).alias(value.name) for value in values]
        return Part(found.path, frame.with_columns(literals))


def open_parts(path: Path, form: TextForm) -> Parts:
    """Open the files that `path` means. Those that are empty are left out if others are not.

    Raises:
        DataError: there is none, one cannot be read, or some are Parquet and some text.
        MalformedLineError: a header or the encoding of a text file is wrong.
    """
    looked = [(found, look(found.path)) for found in find(path)]
    empty = [found.path for found, content in looked if not content.head]
    if len(empty) < len(looked):
        looked = [(found, content) for found, content in looked if content.head]
        if empty:
            log.info("empty: %s", some(empty, 3))
    kinds = sorted({".parquet" if content.is_parquet else ".csv" for _, content in looked})
    if len(kinds) > 1:
        folder = path if path.is_dir() else path.parent
        raise DataError(
            f"{path} holds files of several kinds: {some(kinds)}.",
            fix=f"name those of one kind by a pattern, such as {folder}/*{kinds[-1]}",
        )
    files = [(found, _opened(content, form)) for found, content in looked]
    _tell([file for _, file in files if isinstance(file, TextFile)])
    return Parts(files, replace(form, decimal=".") if ".parquet" in kinds else form)


def _opened(content: Content, form: TextForm) -> TextFile | pl.LazyFrame:
    path, name = content.path, ending(content.path)
    if content.is_parquet:
        if name not in PARQUET:
            log.info("%s is a Parquet file, whatever its name", path)
        return _parquet(content)
    if name in PARQUET and content.head:
        if not is_utf_8(content.head.decode("utf-8", "surrogateescape")[:-4]):
            raise DataError(
                f"{path} cannot be read as Parquet: it does not begin like one.",
                fix="fetch or write the file again.",
            )
        log.warning("%s is no Parquet file: read as CSV", path)
    file = opened(path, form)
    if not name:
        if len(file.columns) == 1:
            raise DataError(
                f"{path} is there, but it is no Parquet file, and no CSV file with a header and"
                " several columns.",
                fix=f"the endings read are {READ}.",
            )
        log.info("%s: read as CSV", path)
    return file


def _parquet(content: Content) -> pl.LazyFrame:
    """The rows of a Parquet file, without the index that pandas writes."""
    try:
        plain = copies.plain(content.path, content.packing)
        frame = pl.scan_parquet(plain, glob=False, hive_partitioning=False)
        names = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"{content.path} cannot be read as Parquet: {reason}.",
            fix="fetch or write the file again.",
        ) from error
    index = [name for name in names if _INDEX.fullmatch(name)]
    return frame.drop(index) if index else frame


def _text(file: TextFile | pl.LazyFrame) -> pl.LazyFrame:
    return delimited.text(file) if isinstance(file, TextFile) else file


def _checked(file: TextFile | pl.LazyFrame, readings: Readings) -> tuple[pl.LazyFrame, int]:
    """The rows of a file, and how many there are."""
    if isinstance(file, TextFile):
        own = readings.keys() & set(file.columns)
        return delimited.checked(file, {name: readings[name] for name in own})
    return file, file.select(pl.len()).collect().item()


def _tell(files: list[TextFile]) -> None:
    """Say what was found out about text files that is not as usual."""
    by_separator: dict[str | None, list[Path]] = {}
    for file in files:
        by_separator.setdefault(file.form.separator, []).append(file.path)
    for separator, paths in by_separator.items():
        if separator != "," and not all(ending(path) == ".tsv" for path in paths):
            log.info("values are separated by %r: %s", separator, some(paths, 3))
    nameless = [file.path for file in files if not all(file.columns)]
    if nameless:
        log.info("columns without a name are left out: %s", some(nameless, 3))
