"""`loractr prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from loractr.cli.console import say, show, show_json
from loractr.cli.options import AsJson, ConfigFile, Overrides, Plain


def prepare(
    config: ConfigFile,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; the cache that `train` uses when absent."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    plain: Plain = False,
) -> None:
    """Turn raw files into a prepared data set: packed columns, vocabularies, manifest."""
    from loractr.cli.describe import prepared_json, prepared_tables
    from loractr.config import load_config
    from loractr.data.prepare import cached
    from loractr.data.prepare import prepare as prepare_into
    from loractr.environment import cache_folder
    from loractr.evaluation import label_remarks

    loaded = load_config(config, overrides or ())
    data = loaded.data
    kept = cache_folder() / "prepared"
    prepared = cached(data, kept) if out is None else prepare_into(data, out)
    if as_json:
        show_json(prepared_json(prepared))
    else:
        show(prepared_tables(prepared), plain=plain)
        say(f"prepared data: {prepared.path}")
    for remark in label_remarks(prepared.manifest["splits"], loaded.training.select):
        say(remark)
