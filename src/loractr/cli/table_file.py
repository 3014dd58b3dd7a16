"""A table into a Parquet or CSV file that is there whole or not at all."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from loractr.errors import UsageError, some

if TYPE_CHECKING:
    import polars as pl

KINDS = (".parquet", ".csv")


def check_target(out: Path, data: Path) -> None:
    """Refuse a target that could not be written or that would overwrite the data, before any work.

    Raises:
        UsageError: another ending than .parquet or .csv, the data itself, or no folder there.
    """
    if out.suffix.lower() not in KINDS:
        raise UsageError(f"{out} ends in none of {some(KINDS)}.", fix="name the file accordingly.")
    if _is_of(out, data):
        raise UsageError(f"{out} is the data itself.", fix="write the predictions to another file.")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}.", fix="make it first.")


def _is_of(out: Path, data: Path) -> bool:
    """Whether `out` is the data, or lies in their folder, where it would be read as a part."""
    if data.is_dir():
        return data.resolve() in out.resolve().parents
    return out.exists() and data.exists() and out.samefile(data)


def write(table: "pl.DataFrame", out: Path) -> None:
    """Write `table` aside, flush it to disk, and rename it to `out`.

    Raises:
        UsageError: a CSV file cannot hold the table's lists.
        OSError: the disk is full or may not be written to.
    """
    from polars.exceptions import PolarsError

    nested = [name for name, dtype in table.schema.items() if dtype.is_nested()]
    if nested and out.suffix.lower() == ".csv":
        raise UsageError(f"CSV cannot hold the lists of {some(nested)}.", fix="write .parquet.")
    aside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            if out.suffix.lower() == ".csv":
                table.write_csv(file)
            else:
                table.write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(out)
    except (PolarsError, OSError) as error:
        aside.unlink(missing_ok=True)
        if "No space left" in str(error):  # Polars tells it in words only
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
        raise
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
