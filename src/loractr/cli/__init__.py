"""The command `loractr`: each verb parses, calls one library function and prints.

Verbs import what they need when they run, so that `loractr --help` is instant.
Exit status: 0 on success, 2 on bad usage or configuration, 1 on any other failure.
"""

import errno
import gc
import os
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from loractr.cli import data, kernels
from loractr.cli.console import log_to_terminal, say
from loractr.cli.demo import demo
from loractr.cli.evaluate import evaluate
from loractr.cli.init import init
from loractr.cli.inspect import inspect
from loractr.cli.predict import predict
from loractr.cli.prepare import prepare
from loractr.cli.train import train
from loractr.errors import LoractrError

INTERRUPTED = "interrupted; nothing half-written stays. `loractr train … --resume` continues a run."


class Verbs(TyperGroup):
    """All verbs. An error that can be expected ends in a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for."""
        try:
            return super().invoke(ctx)
        except LoractrError as error:
            say(f"{type(error).__name__}: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            say(INTERRUPTED)
            raise typer.Exit(1) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads our output has gone
                raise
            say(_describe(error))
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, init, prepare, train, evaluate, predict, inspect):
    app.command()(verb)
app.add_typer(data.app, name="data")
app.add_typer(kernels.app, name="kernels")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"loractr {version('loractr')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more on standard error.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Multi-domain click-through-rate models, from raw logs to a served model."""
    log_to_terminal(verbose=verbose)


def main() -> None:
    """Run the command line; the entry point of the installed command."""
    try:
        app(prog_name="loractr")
    finally:
        _flush()
        gc.freeze()  # a last search for garbage among all of torch's objects takes a second


def _flush() -> None:
    """Write out what is left; where nobody reads it any more, say nothing about that."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return (
            f"the disk is full{where}; nothing half-written stays.\n"
            "Fix: free some space, or write to another disk with --out."
        )
    return f"{type(error).__name__}: {error}"
