"""Amazon product reviews, 5-core: one file per category, one JSON object a line, gzip or not.

    {"reviewerID": "A2…", "asin": "0000013714", "overall": 5.0, "unixReviewTime": 1252800000, …}

2014 (reviews_<Category>_5.json): a click is a review with more than three stars.
2018 (<Category>_5.json): every review is a click, stars are ignored, and negatives are drawn.
The domain is the category.

Sources: McAuley et al., SIGIR 2015; He & McAuley, WWW 2016; Ni et al., EMNLP 2019 (2018).
"""

from pathlib import Path

import polars as pl

from loractr.data.config import DataConfig
from loractr.data.sources import json_lines
from loractr.data.sources.base import Table, needs_negatives, needs_path
from loractr.errors import ConfigError, DataError, some
from loractr.schema import Division, Field, Label

CATEGORIES_2014 = ("Clothing_Shoes_and_Jewelry", "Beauty", "Health_and_Personal_Care")

_FIELDS = (
    Field(name="reviewerID"),
    Field(name="asin"),
    Field(name="unixReviewTime", kind="numerical"),
)
_COLUMNS: json_lines.Columns = {
    "reviewerID": str,
    "asin": str,
    "overall": float,
    "unixReviewTime": int,
}


def open_2014(config: DataConfig) -> Table:
    """Reviews of the three categories, or of those in `config.domains`, category by category."""
    folder = _folder(config, "reviews_<Category>_5.json")
    wanted = config.domains or CATEGORIES_2014
    paths = {name: _file(folder, f"reviews_{name}_5.json", config.source) for name in wanted}
    return _table(paths, Label(column="overall", positive="> 3"))


def open_2018(config: DataConfig) -> Table:
    """Reviews of all categories found, or of those in `config.domains`, category by category."""
    needs_negatives(config)
    folder = _folder(config, "<Category>_5.json")
    names = config.domains or tuple(sorted({_category(p) for p in folder.glob("*_5.json*")} - {""}))
    if not names:
        raise DataError(
            f"{folder} holds no <Category>_5.json or <Category>_5.json.gz.",
            fix="get the files of each category: loractr data get amazon-2018 --out DIR",
        )
    paths = {name: _file(folder, f"{name}_5.json", config.source) for name in names}
    return _table(paths, Label(column="label"))


def _folder(config: DataConfig, what: str) -> Path:
    folder = needs_path(config, f"the folder of {what} files, gzip or not")
    if not folder.is_dir():
        raise ConfigError([f"data.path: {folder} is a file; give the folder of {what} files"])
    return folder


def _file(folder: Path, name: str, source: str) -> Path:
    """The file of that name, as it is or with gzip."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    found = sorted(path.name for path in folder.glob("*_5.json*"))
    raise DataError(
        f"{folder} lacks {name} (or {name}.gz), which source {source} reads;"
        f" it holds {some(found)}.",
        fix="name the categories that are there in data.domains, or fetch the missing one.",
    )


def _category(path: Path) -> str:
    """The category of a 2018 file; empty for any other file."""
    name = path.name.removesuffix(".gz")
    return name.removesuffix("_5.json") if name.endswith("_5.json") else ""


def _table(paths: dict[str, Path], label: Label) -> Table:
    reviews = pl.concat(
        [
            json_lines.scan(path, _COLUMNS).with_columns(category=pl.lit(name))
            for name, path in paths.items()
        ]
    )
    clicks_only = label.column == "label"
    return Table(
        frame=reviews.with_columns(label=pl.lit(1, pl.Int64)) if clicks_only else reviews,
        fields={field.name: field for field in _FIELDS},
        default_fields=("reviewerID", "asin"),
        divisions=(Division(name="category", column="category"),),
        label=label,
        post_outcome={
            "overall": "a reviewer gives stars after buying",
            "split": "it says whether a row is for training",
        },
        user="reviewerID",
        item="asin",
    )
