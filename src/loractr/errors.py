"""Every error that loractr raises on purpose.

LoractrError
├── ConfigError          the configuration is wrong; holds all its problems at once       (exit 2)
├── UsageError           a command or a call that cannot be carried out as asked          (exit 2)
├── AdapterError         targets that match no layer, a rank that does not fit            (exit 2)
├── DataError            the rows are not what the configuration says                     (exit 1)
│   ├── MissingColumnError   a column that the configuration names is not in the table
│   ├── MalformedLineError   a line of a text file that cannot be read; knows its number
│   └── UnknownDomainError   a row of a domain that the division was not fitted on
├── DownloadError        a download that failed, grew too large or has the wrong checksum (exit 1)
├── ArtifactError        an artifact that is damaged, incomplete or of another format     (exit 1)
├── CheckpointError      a checkpoint that does not belong to this run                    (exit 1)
└── TrainingError        training cannot go on (the loss is no longer finite, …)          (exit 1)

A message says what was wrong with its value, what would be right, and, on a line of its own that
starts with "Fix:", what to do. It is of bounded length, whatever the values: names and texts are
cut. Each class also derives from the builtin that a caller would expect.
"""

import difflib
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

SHOWN_PROBLEMS = 20
"""Problems of a configuration that its message tells one by one."""
_NAME, _PROBLEM, _MESSAGE = 80, 600, 10_000  # characters of each, at most


class LoractrError(Exception):
    """Base of every error that this library raises on purpose.

    Args:
        problem: What is wrong, with the value, and what would be right.
        fix: What to do about it, in one sentence.
    """

    exit_code = 1

    def __init__(self, problem: str, *, fix: str | None = None) -> None:
        self.problem = problem
        self.fix = fix
        told = cut(problem, _MESSAGE)
        super().__init__(told if fix is None else f"{told}\nFix: {cut(fix, _MESSAGE)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross from one process to another whole, whatever their class is made from."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[LoractrError], args: tuple[Any, ...], values: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(values)
    return error


class ConfigError(LoractrError, ValueError):
    """The configuration is wrong. `problems` holds every one found, each with its place."""

    exit_code = 2

    def __init__(self, problems: Iterable[str], *, fix: str | None = None) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        many = f"{count:,} configuration problems"
        lines = ["the configuration has a problem:" if count == 1 else f"{many}:"]
        lines += [f"  - {cut(problem, _PROBLEM)}" for problem in self.problems[:SHOWN_PROBLEMS]]
        if count > SHOWN_PROBLEMS:
            lines.append(f"  … and {count - SHOWN_PROBLEMS:,} more")
        super().__init__("\n".join(lines), fix=fix)


class UsageError(LoractrError, ValueError):
    """A command or call that cannot be carried out as asked, e.g. a RUN that exists already."""

    exit_code = 2


class AdapterError(LoractrError, ValueError):
    """Adapter targets that match no layer, or a rank that does not fit its layer."""

    exit_code = 2


class DataError(LoractrError, ValueError):
    """The rows are not what the configuration says: labels, numbers, empty files, empty domains."""


class MissingColumnError(DataError, KeyError):
    """A column that the configuration, or a model made from it, reads is not in the table."""

    def __init__(self, column: str, present: Iterable[str], *, wanted_by: str) -> None:
        self.column = column
        columns = list(present)
        near = nearest(column, columns)
        hint = f"it has {some(columns)}." if near is None else f"did you mean {shown(near)}?"
        super().__init__(
            f"column {shown(column)}, wanted by {cut(wanted_by, _PROBLEM)}, is not in the table;"
            f" {hint}",
            fix=f"rename the table's column to {shown(column)}, or add such a column; before"
            " training, the configuration may name another one instead.",
        )

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class MalformedLineError(DataError):
    """A line of a text file that cannot be read. `line` counts from 1."""

    def __init__(self, path: object, line: int, problem: str, *, fix: str | None = None) -> None:
        self.path, self.line = path, line
        super().__init__(
            f"{path}, line {line}: {problem}.",
            fix=fix or "correct or remove that line, or fetch the file again.",
        )


class UnknownDomainError(DataError):
    """Rows of a domain that the division was not fitted on, where `unseen: error` was asked for."""

    def __init__(self, division: str, unknown: Iterable[str], known: Iterable[str]) -> None:
        self.division, self.unknown, self.known = division, tuple(unknown), tuple(known)
        super().__init__(
            f"division {shown(division)} has no domain {some(self.unknown)};"
            f" it was fitted on {some(self.known)}.",
            fix="train on rows that have it, or set `unseen: backbone` in division"
            f" {shown(division)} to score such rows with the backbone alone.",
        )


class DownloadError(LoractrError, OSError):
    """A download that failed, grew past its size limit, or has the wrong checksum."""


class ArtifactError(LoractrError, ValueError):
    """An artifact that is damaged, incomplete, or of a format this version cannot read."""


class CheckpointError(LoractrError, ValueError):
    """A checkpoint that is damaged or does not belong to this run."""


class TrainingError(LoractrError, RuntimeError):
    """Training cannot go on, e.g. the loss is no longer finite."""


def some(names: Iterable[object], limit: int = 8) -> str:
    """The first few names, quoted, and how many more there are: messages stay of bounded length."""
    listed = list(names)
    if not listed:
        return "none"
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    parts = (shown(name if isinstance(name, PurePath) else str(name)) for name in listed[:limit])
    return ", ".join(parts) + more


def shown(value: object) -> str:
    """A value as Python writes it, so a name in quotation marks; a long one is cut, a path at its
    beginning."""
    if isinstance(value, PurePath):
        path = str(value)
        return repr(path if len(path) <= _NAME else f"…{path[1 - _NAME :]}")
    if isinstance(value, str):
        return repr(cut(value, _NAME))
    return cut(repr(value), _NAME)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: alike but for case or a few characters.

    nearest("ItemID", ["user_id", "item_id"])  →  "item_id"
    """
    by_folded = {one.casefold()[:_NAME]: one for one in reversed(list(known))}
    close = difflib.get_close_matches(name.casefold()[:_NAME], by_folded, n=1)
    return by_folded[close[0]] if close else None


def meant(name: str, known: Iterable[str]) -> str:
    """What to say about an unknown name: the nearest known one, else the first few of all."""
    listed = list(known)
    near = nearest(name, listed)
    return f"there are {some(listed)}" if near is None else f"did you mean {shown(near)}?"


def repeated(names: Iterable[str]) -> list[str]:
    """Those that are there more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def cut(text: str, limit: int = _NAME) -> str:
    """`text`, or as much of its beginning as fits, and a mark that there was more."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
