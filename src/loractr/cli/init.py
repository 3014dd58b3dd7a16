"""`loractr init`."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from loractr.cli.console import say
from loractr.errors import UsageError


def init(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Parquet or CSV files, or the folder of a public data set."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there, where no file is yet."),
    ] = None,
) -> None:
    """Propose a configuration that trains as it is: loractr init DATA > config.yaml."""
    try:
        if out is not None:
            _check_target(out)
        from loractr.data.infer import infer, to_yaml

        proposed = to_yaml(*infer(data))
    except BaseException:
        _remove_empty_target()
        raise
    if out is None:
        typer.echo(proposed, nl=False)
        return
    _write(proposed, out)
    say(f"{out} written: read the notes at its top, then `loractr train {out} --out RUN`")


def _check_target(out: Path) -> None:
    """Refuse a file that is there already, before any work."""
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists; it is not overwritten.", fix="choose another --out.")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}.", fix="make it first.")


def _write(text: str, out: Path) -> None:
    """Write `text` aside, flush it to disk, and give it the name `out`."""
    aside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(out)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _remove_empty_target() -> None:
    """Remove the empty file that the shell made for `> config.yaml`: it would be taken for a
    configuration. A file of another name, one with content, or one that is appended to, stays."""
    with suppress(OSError, ValueError, ImportError):  # no Linux, or no file: nothing to remove
        import fcntl

        target = sys.stdout.fileno()
        status = os.fstat(target)
        appending = fcntl.fcntl(target, fcntl.F_GETFL) & os.O_APPEND
        also_errors = os.path.samestat(status, os.fstat(sys.stderr.fileno()))
        path = Path(os.readlink(f"/proc/self/fd/{target}"))
        is_it = path.is_file() and os.path.samestat(status, path.stat())
        is_config = path.suffix.lower() in (".yaml", ".yml")
        if is_it and is_config and not (status.st_size or appending or also_errors):
            path.unlink()
