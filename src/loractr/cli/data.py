"""`loractr data`: which data sets there are, and how to get them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loractr.cli.console import say, show, show_json
from loractr.cli.options import AsJson, Plain

if TYPE_CHECKING:
    from loractr.data.catalogue import Dataset

app = typer.Typer(no_args_is_help=True, help="Which public data sets there are; get one.")


@app.command("list")
def list_(*, as_json: AsJson = False, plain: Plain = False) -> None:
    """Name every data set, its size, where it comes from and its terms of use."""
    from dataclasses import asdict

    from loractr.data.catalogue import DATASETS
    from loractr.evaluation import Table

    if as_json:
        show_json({name: asdict(dataset) for name, dataset in DATASETS.items()})
        return
    rows = tuple(
        (name, found.title, "yes" if found.archive else "by hand", found.page)
        for name, found in DATASETS.items()
    )
    show([Table("data sets", ("name", "what it is", "download", "page"), rows)], plain=plain)
    say("Terms of use are shown by `loractr data get`.")


@app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `loractr data list` has it.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make; new or empty.")],
    source_dir: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Copy the files from this folder instead of downloading them.",
        ),
    ] = None,
) -> None:
    """Download a data set from its publisher, or copy it from a folder of yours."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress

    from loractr.data.catalogue import DATASETS
    from loractr.data.download import get as fetch

    if name in DATASETS:
        _show_terms(DATASETS[name])
    console = Console(stderr=True)
    with Progress(
        BarColumn(), DownloadColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=None, visible=False)

        def show_bytes(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        fetch(name, out, source_dir=source_dir, progress=show_bytes)
    say(f"ready: {out}")


def _show_terms(dataset: "Dataset") -> None:
    say(f"{dataset.title}\n{dataset.page}\nTerms of use: {dataset.terms}\nCite: {dataset.citation}")
