"""`loractr kernels`: compile what makes training faster, and see whether it is there."""

import typer

from loractr.cli.console import say

app = typer.Typer(no_args_is_help=True, help="Compiled kernels: build them, see what is used.")


@app.command()
def build() -> None:
    """Compile the kernels for this processor, with the machine's own C++ compiler."""
    from loractr import native

    say(f"built {native.build()}; `kernels: auto` uses it from now on.")


@app.command()
def status() -> None:
    """Say which kernels `kernels: auto` computes with here."""
    from loractr import native
    from loractr.native.compiling import place

    found = native.library()
    if found is not None:
        say(f"compiled ones: {found.path}")
    elif place().exists():
        say(f"torch's own, though there are compiled ones: {place()}")
    else:
        say("torch's own; `loractr kernels build` makes faster ones.")
