"""Temporary copies of files that Polars cannot read as they are. They go when the program ends, but
stay where it is killed.
"""

import codecs
import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from threading import Lock
from typing import IO

from loractr.data.aside import disk_is_full
from loractr.data.sources.content import unpacked, unreadable
from loractr.errors import DataError, MalformedLineError

log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_copies: dict[tuple[object, ...], Path] = {}
_numbers = count()
_lock = Lock()


def _folder() -> Path:
    with _lock:  # else each of two threads makes one, and the one not kept goes with its copy
        return Path(_made().name)


@cache
def _made() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="loractr-")


def copied(path: Path, what: str, write: Callable[[IO[bytes]], None]) -> Path:
    """The copy of `path` that `write` makes; the one made before, if `path` is as it was then.

    Args:
        path: The file as it is.
        what: What is different in the copy: another `what` is another copy.
        write: Writes it.

    Raises:
        DataError: `path` cannot be read, or there is no room for the copy.
    """
    status = path.stat()
    key = (path.absolute(), status.st_size, status.st_mtime_ns, what)
    if key in _copies:
        return _copies[key]
    copy = _folder() / f"{next(_numbers)}-{os.getpid()}"
    try:
        with copy.open("xb") as file:
            write(file)
    except BaseException as error:
        copy.unlink(missing_ok=True)
        if isinstance(error, OSError) and disk_is_full(error):
            raise DataError(
                f"there is no room in {copy.parent} for a temporary copy of {path}.",
                fix="make room, or set TMPDIR to a folder on a larger disk.",
            ) from error
        if isinstance(error, OSError):
            raise unreadable(path, error) from error
        raise
    _copies[key] = copy
    return copy


def plain(path: Path, packing: str | None) -> Path:
    """`path` itself, or its bytes unpacked."""
    if packing is None:
        return path

    def write(file: IO[bytes]) -> None:
        with unpacked(path, packing) as source:
            while block := source.read(_BLOCK):
                file.write(block)

    return copied(path, "unpacked", write)


def in_utf8(path: Path, packing: str | None, encoding: str) -> Path:
    """A copy of the text at `path`, which is in `encoding`, in UTF-8 and unpacked. Text that is
    UTF-8 in truth stays as it is, which is said: Latin-1 would read any bytes.

    Raises:
        MalformedLineError: the text is not in that encoding.
    """

    if _is_utf8_in_truth(path, packing, encoding):
        log.warning("%s is not %s but UTF-8: read as such", path, encoding)
        return plain(path, packing)

    def write(file: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder(encoding)()
        line, block = 1, b"?"
        with unpacked(path, packing) as source:
            while block:
                block = source.read(_BLOCK)
                try:
                    text = decoder.decode(block, final=not block)
                    file.write(text.encode())
                except UnicodeError as error:
                    raise _undecodable(path, line, encoding, error) from error
                line += text.count("\n")

    return copied(path, f"from {encoding}", write)


def _is_utf8_in_truth(path: Path, packing: str | None, encoding: str) -> bool:
    """Whether all of the text is UTF-8, and not of ASCII alone, where `encoding` has one byte a
    letter and so reads anything."""
    if len("é".encode(encoding, "replace")) > 1:
        return False
    decoder, ascii_only = codecs.getincrementaldecoder("utf-8")(), True
    try:
        with unpacked(path, packing) as source:
            block = b"?"
            while block:
                block = source.read(_BLOCK)
                ascii_only &= block.isascii()
                decoder.decode(block, final=not block)
    except UnicodeError:
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return not ascii_only


def _undecodable(path: Path, line: int, encoding: str, error: UnicodeError) -> MalformedLineError:
    """The error, where `line` is the one that the failing block begins in."""
    if isinstance(error, UnicodeDecodeError):
        line += error.object[: error.start].decode(encoding, "ignore").count("\n")
    return MalformedLineError(
        path,
        line,
        f"the text is not {encoding}",
        fix="say its true `encoding:` in the data section, such as latin-1 or gbk.",
    )
