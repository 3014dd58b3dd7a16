"""Directories that are there whole or not at all: written aside, then renamed."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polars.exceptions import ComputeError, PanicException

from loractr.errors import DataError, LoractrError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A new directory beside `out` that takes its place when the block ends well; when it does not,
    even by Ctrl-C, nothing of it stays and `out` is as it was.

    Raises:
        DataError: The disk is full or may not be written to.
    """
    out = out.absolute()
    aside = out.with_name(f"{out.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            aside.mkdir()
            yield aside
            _take_place(aside, out)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, PanicException) and "KeyboardInterrupt" in str(error):
                raise KeyboardInterrupt from error  # Ctrl-C in the middle of a call into Polars
            raise
    except OSError as error:
        if isinstance(error, LoractrError):
            raise
        raise _unwritable(out, error) from error
    except ComputeError as error:
        if "os error" not in str(error):
            raise
        raise _unwritable(out, error) from error  # how Polars' writers say what OSError says


def _take_place(aside: Path, out: Path) -> None:
    old = aside.with_name(aside.name.replace(".partial-", ".replaced-"))
    while True:
        with suppress(FileNotFoundError):
            out.rename(old)
        try:
            aside.rename(out)
            break
        except OSError as error:
            if error.errno not in _TAKEN:  # else another process was faster: replace that one
                if old.exists():
                    old.rename(out)
                raise
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the new name, too, must survive a power cut
    finally:
        os.close(handle)


def disk_is_full(error: Exception) -> bool:
    """Whether `error`, of Python or of Polars, says that no more can be written."""
    return getattr(error, "errno", None) in _FULL or any(
        f"(os error {number})" in str(error) for number in _FULL
    )


def _unwritable(out: Path, error: Exception) -> DataError:
    if not disk_is_full(error):
        fix = "check the path and your rights."
        return DataError(f"{out} could not be written: {error}.", fix=fix)
    free = shutil.disk_usage(out.parent).free
    return DataError(
        f"the disk is full: {out} could not be written ({getattr(error, 'strerror', error)};"
        f" {free:,} bytes are free). Nothing of it was left behind.",
        fix="make room, or choose another place.",
    )
