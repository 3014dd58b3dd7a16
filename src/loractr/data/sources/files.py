"""Which files a path means: a file, a folder, or a pattern; and what the path itself says of them.

In a folder, and below the first wildcard of a pattern, a folder `key=value` is a column of the
files in it, as Spark and Hive write them. What begins with a dot or an underscore is left alone.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from loractr.errors import DataError, some

log = logging.getLogger(__name__)

PARQUET, TEXT = (".parquet", ".pq"), (".csv", ".tsv", ".txt")
PACKED = (".gz", ".zst", ".bz2")
READ = f"{', '.join(PARQUET + TEXT)}, and these with {', '.join(PACKED)} behind"
"""The endings by which files are found, in words."""

_NULL = "__HIVE_DEFAULT_PARTITION__"
_MOST_LOOKED_AT = 10_000


@dataclass(frozen=True)
class Found:
    """A file of a table."""

    path: Path
    name: str
    """Its path below the folder or the first wildcard: unique among the files of the table."""
    keys: Mapping[str, str | None]
    """Column → value, of the folders `key=value` that it lies in."""


def find(path: Path) -> list[Found]:
    """The files that `path` means, sorted by name; `~` is the home folder.

    A file is taken whatever its ending; of a folder and of a pattern those with an ending of
    `READ`, `.txt` only where there is no other.

    Raises:
        DataError: there is none, or one is there twice: `a.csv` beside `a.csv.gz`.
    """
    path = path.expanduser()
    if path.is_file():
        return [Found(path, path.name, {})]
    if path.is_dir():
        root, files = path, sorted(_in_folder(path))
        _tell_left_out(path, files)
    else:
        root, files = _matching(path)
    wanted = [file for file in files if ending(file)]
    if any(ending(file) != ".txt" for file in wanted):
        wanted = [file for file in wanted if ending(file) != ".txt"]
    if not wanted:
        raise _nothing(path, files)
    _refuse_twice(wanted, root)
    return [_found(file, root) for file in wanted]


def ending(path: Path) -> str:
    """`.parquet`, `.pq`, `.csv`, `.tsv` or `.txt`, compressed or not; empty for any other."""
    suffix = Path(_unpacked_name(path).lower()).suffix
    return suffix if suffix in PARQUET + TEXT else ""


def _unpacked_name(path: Path) -> str:
    return path.stem if path.suffix.lower() in PACKED else path.name


def _refuse_twice(files: list[Path], root: Path) -> None:
    """Refuse two files of one kind whose names differ only in what stands for it and a packing."""
    seen: dict[tuple[Path, bool], Path] = {}
    for file in files:
        key = file.with_name(_unpacked_name(file)).with_suffix(""), ending(file) in PARQUET
        other = seen.setdefault(key, file)
        if other is not file:
            names = some(str(one.relative_to(root)) for one in (other, file))
            raise DataError(
                f"{root} holds the same rows twice, by their names: {names}.",
                fix=f"move one of them away, or name the others by a pattern: *{file.suffix}",
            )


def _tell_left_out(folder: Path, files: list[Path]) -> None:
    """Say which sub-folders are not read, where others or files are."""
    plain = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not _is_key(entry.name) and not _is_hidden(entry.name)
    )
    if plain and files:
        log.warning("%s: sub-folders that are not key=value are not read: %s", folder, some(plain))


def _found(file: Path, root: Path) -> Found:
    name = file.relative_to(root)
    pairs = [folder.split("=", 1) for folder in name.parts[:-1] if _is_key(folder)]
    keys = {unquote(key): None if value == _NULL else unquote(value) for key, value in pairs}
    return Found(file, name.as_posix(), keys)


def _is_key(folder: str) -> bool:
    return folder.find("=") > 0


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _in_folder(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if _is_hidden(entry.name):
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and _is_key(entry.name):
            yield from _in_folder(entry)


def _matching(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder above the first wildcard, and the files that match."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts) - 1)
    root = Path(*parts[:first])
    try:
        matches = [file for file in root.glob("/".join(parts[first:])) if file.is_file()]
    except (ValueError, NotImplementedError) as error:  # `a**`
        raise DataError(f"{pattern} is no pattern: {error}.", fix="use * or **/*.") from error
    below = [(file, file.relative_to(root).parts) for file in matches]
    return root, sorted(file for file, names in below if not any(map(_is_hidden, names)))


def _nothing(path: Path, files: list[Path]) -> DataError:
    """Why there is nothing to read, and what to name instead."""
    if files:
        return DataError(
            f"{path} holds no file with an ending that is read, only"
            f" {some((file.name for file in files), 3)}.",
            fix=f"read are {READ}. Another file is read when it is named in full.",
        )
    if not path.is_dir():
        pattern = set(str(path)) & set("*?[")
        return DataError(
            f"{path} {'matches no file' if pattern else 'does not exist'}.",
            fix="name a Parquet or CSV file, a folder of them, or a pattern that matches some.",
        )
    below = (file for file in islice(path.rglob("*"), _MOST_LOOKED_AT) if file.is_file())
    deeper = next((file for file in below if ending(file)), None)
    if deeper is None:
        return DataError(
            f"the folder {path} holds no Parquet or CSV file.", fix=f"read are {READ}."
        )
    inside = deeper.relative_to(path)
    pattern_of = path.joinpath(*["*"] * (len(inside.parts) - 1), f"*{ending(deeper)}")
    return DataError(
        f"the folder {path} holds files only in its sub-folders, such as {inside}.",
        fix=f"name them by a pattern: {pattern_of}",
    )
