"""Directories that are there whole or not at all: written aside, then renamed."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polars.exceptions import ComputeError

from loractr.errors import DataError, LoractrError

log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A new directory beside `out` that takes its place when the block ends well; when it does not,
    even by Ctrl-C, nothing of it stays and `out` is as it was.

    Raises:
        DataError: The disk is full or may not be written to.
    """
    out = out.absolute()
    aside = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            yield aside
            _take_place(aside, out)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
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
    old = out.with_name(f"{out.name}.replaced-{os.getpid()}")
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the new name, too, must survive a power cut
    finally:
        os.close(handle)


def _unwritable(out: Path, error: Exception) -> DataError:
    full = getattr(error, "errno", None) in _FULL or any(
        f"(os error {number})" in str(error) for number in _FULL
    )
    if not full:
        fix = "check the path and your rights."
        return DataError(f"{out} could not be written: {error}.", fix=fix)
    free = shutil.disk_usage(out.parent).free
    return DataError(
        f"the disk is full: {out} could not be written ({getattr(error, 'strerror', error)};"
        f" {free:,} bytes are free). Nothing of it was left behind.",
        fix="make room, or choose another place.",
    )
