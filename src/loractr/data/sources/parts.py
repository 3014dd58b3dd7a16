"""The files of a table, opened: all of text or all of Parquet, each with what its path says."""

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from loractr.data.sources import copies, delimited
from loractr.data.sources.content import Content, look
from loractr.data.sources.files import PARQUET, READ, Found, ending, find
from loractr.data.sources.readings import Readings, decide, known, read, unread
from loractr.data.sources.text_file import TextFile, is_utf_8, opened
from loractr.data.sources.text_form import TextForm
from loractr.data.sources.union import Part, together
from loractr.errors import DataError, some

log = logging.getLogger(__name__)

STRING: pl.DataType = pl.String()
_KEPT = 1024
_INDEX = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True)
class Parts:
    """The files of one table. `open_parts` makes one."""

    files: Sequence[tuple[Found, TextFile | Part]]
    """Each file, and its text, or the rows of a Parquet file."""
    form: TextForm
    """How the text files are written."""

    @cached_property
    def text(self) -> Part:
        """The rows, unchecked, with all that stands in text files and in paths as text."""
        parts = [self._keyed(_text(file), found, {}) for found, file in self.files]
        return together(parts, (), tell=False)

    def checked(
        self,
        *,
        numbers: Iterable[str] = (),
        labels: Iterable[str] = (),
        needed: Collection[str] | None = None,
        refuse_empty: bool = True,
    ) -> Part:
        """The rows, checked; files without any are left out. The arguments are those of
        `table.scan`.

        Raises:
            DataError: no file has rows and that is not allowed, or the files do not go together.
            MalformedLineError: a line of a text file cannot be read.
        """
        text = self.text if _is_text(self.files) else self._paths()
        readings = decide(
            text.frame,
            self.form,
            numbers=[name for name in numbers if name in text.types],
            labels=[name for name in labels if name in text.types],
        )
        full: list[Part] = []
        empty: list[Part] = []
        for found, file in self.files:
            part, rows = _checked(file, readings)
            (full if rows else empty).append(self._keyed(part, found, readings))
        if not full and refuse_empty:
            header = " a header but" if _is_text(self.files) else ""
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            raise DataError(
                f"{empty[0].path}{more} has{header} no rows.", fix="name a file that has rows."
            )
        if full and empty:
            log.info(
                "files left out, as they have no rows: %s", some((part.path for part in empty), 3)
            )
        return together(full or empty, needed)

    def _paths(self) -> Part:
        """What the paths say, a row for each file."""
        types = dict.fromkeys((name for found, _ in self.files for name in found.keys), STRING)
        values = {name: [found.keys.get(name) for found, _ in self.files] for name in types}
        return Part(self.files[0][0].path, pl.LazyFrame(values, schema=types), types)

    def _keyed(self, part: Part, found: Found, readings: Readings) -> Part:
        """The rows of a file with what its path says, where the file itself does not say it."""
        keys = {name: value for name, value in found.keys.items() if name not in part.types}
        wanted = {name: readings[name] for name in keys if name in readings}
        text = pl.LazyFrame({name: [value] for name, value in keys.items()}).cast(pl.String)
        for name, reading in wanted.items():
            if known(text, [name], self.form).select(unread(name, reading)).collect().item():
                raise DataError(
                    f"{found.path}: {name} must be {reading.what}, not {str(keys[name])[:40]!r}.",
                    fix="rename that folder, or name those that belong together by a pattern.",
                )
        values = read(text, wanted, self.form).collect()
        literals = [pl.lit(value.item(), dtype=value.dtype).alias(value.name) for value in values]
        types = {**part.types, **values.schema}
        return Part(part.path, part.frame.with_columns(literals), types) if keys else part


def open_parts(path: Path, form: TextForm) -> Parts:
    """Open the files that `path` means. Those that are empty are left out if others are not.

    Raises:
        DataError: there is none, one cannot be read, or some are Parquet and some text.
        MalformedLineError: a header or the encoding of a text file is wrong.
    """
    looked = [(found, _beginning(found.path)) for found in find(path)]
    empty = [found.path for found, content in looked if not content.head]
    if len(empty) < len(looked):
        looked = [(found, content) for found, content in looked if content.head]
        if empty:
            log.info("files left out, as they are empty: %s", some(empty, 3))
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


def _beginning(path: Path) -> Content:
    """As `look`, with no more of the head than tells text from other files: there may be many."""
    content = look(path)
    return replace(content, head=content.head[:_KEPT])


def _opened(content: Content, form: TextForm) -> TextFile | Part:
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
                f"{path} is there, but holds no Parquet or CSV file: it has no header with several"
                " columns.",
                fix=f"name another file; the endings read are {READ}.",
            )
        log.info("%s: read as CSV", path)
    return file


def _parquet(content: Content) -> Part:
    """The rows of a Parquet file, without the index that pandas writes."""
    try:
        plain = copies.plain(content.path, content.packing)
        frame = pl.scan_parquet(plain, glob=False, hive_partitioning=False)
        types = dict(frame.collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"{content.path} cannot be read as Parquet: {reason}.",
            fix="fetch or write the file again.",
        ) from error
    index = [name for name in types if _INDEX.fullmatch(name)]
    for name in index:
        del types[name]
    return Part(content.path, frame.drop(index), types)


def _is_text(files: Sequence[tuple[Found, TextFile | Part]]) -> bool:
    """Whether the files are text: all are or none is."""
    return isinstance(files[0][1], TextFile)


def _text(file: TextFile | Part) -> Part:
    if isinstance(file, Part):
        return file
    return Part(file.path, delimited.text(file), dict.fromkeys(file.named, STRING))


def _checked(file: TextFile | Part, readings: Readings) -> tuple[Part, int]:
    """The rows of a file, and how many there are."""
    if isinstance(file, Part):
        return file, file.frame.select(pl.len()).collect().item()
    types = dict.fromkeys(file.named, STRING)
    own = {name: reading for name, reading in readings.items() if name in types}
    frame, rows = delimited.checked(file, own)
    types |= {name: reading.type for name, reading in own.items()}
    return Part(file.path, frame, types), rows


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
