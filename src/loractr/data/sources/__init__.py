"""Sources: raw official files (or none, for the synthetic one) → `Table`, one file per data set."""

from collections.abc import Callable

from loractr.data.config import DataConfig, SourceName
from loractr.data.sources import (
    ali_ccp,
    amazon,
    kuairand_pure,
    movielens_1m,
    synthetic,
    table,
    taobao_theme,
)
from loractr.data.sources.base import Table as Table

SOURCES: dict[SourceName, Callable[[DataConfig], Table]] = {
    "movielens-1m": movielens_1m.open_source,
    "kuairand-pure": kuairand_pure.open_source,
    "synthetic": synthetic.open_source,
    "table": table.open_source,
    "amazon-2014": amazon.open_2014,
    "amazon-2018": amazon.open_2018,
    "taobao-theme": taobao_theme.open_source,
    "ali-ccp": ali_ccp.open_source,
}
"""Name of a source → the function that opens it."""


def open_source(config: DataConfig) -> Table:
    """The rows that `config` names, lazily, with what their columns mean. Of sources that hold
    clicks only, the clicks: `negatives.draw_negatives` makes the others.

    Raises:
        ConfigError: the source needs a path, or options that are not there.
        DataError: files are missing, empty, or not of the source's format; a text file's first bad
            line is reported with its number (MalformedLineError).
    """
    return SOURCES[config.source](config)
