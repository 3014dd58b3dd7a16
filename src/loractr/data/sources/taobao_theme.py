"""Taobao Cloud Theme: clicks on items within themes, with ready embeddings of users and items.

    theme_click_log.csv   user_id, item_id, theme_id, reach_time
    user_embedding.csv    user id, then 128 floats in one text, a space between two
    item_embedding.csv    item id, then the same

The domain is the theme. As in the published protocol, rows whose user or item has no embedding are
dropped, repeats of (user, item) within a theme too, and "the first N themes" (Taobao-10, -20, -30)
counts them in the order in which the log first shows them. Every row is a click: negatives are
drawn. Embeddings come frozen, as the authors use them.

Source: Tianchi data set 9716; Du et al., KDD 2019, doi:10.1145/3292500.3330726.
"""

from pathlib import Path

import polars as pl

from loractr.data.config import DataConfig
from loractr.data.sources import delimited
from loractr.data.sources.base import Table, needs_files, needs_negatives, needs_path
from loractr.data.sources.readings import WHOLE
from loractr.errors import DataError, some
from loractr.schema import Division, Field, Label

_IDS = ("user_id", "item_id", "theme_id")


def open_source(config: DataConfig) -> Table:
    """Clicks in the order of the log, of the themes in `config.domains`; of all when absent.

    One whole number in `config.domains` is N, the first N themes; several are themes' ids.
    """
    needs_negatives(config)
    folder = needs_path(config, "the folder of theme_click_log.csv and the embeddings")
    names = ["theme_click_log.csv", "user_embedding.csv", "item_embedding.csv"]
    log_path, users_path, items_path = needs_files(folder, names, source=config.source)
    log = delimited.scan(log_path, dict.fromkeys(_IDS, WHOLE))
    clicks = (
        log.join(_embedded(users_path, "user_id"), on="user_id", how="semi", maintain_order="left")
        .join(_embedded(items_path, "item_id"), on="item_id", how="semi", maintain_order="left")
        .unique(_IDS, keep="first", maintain_order=True)
    )
    themes = _themes(log, clicks, config.domains)
    return Table(
        frame=clicks.filter(pl.col("theme_id").is_in(themes)).with_columns(
            label=pl.lit(1, pl.Int64)
        ),
        fields={
            "user_id": Field(name="user_id", pretrained=str(users_path), trainable=False),
            "item_id": Field(name="item_id", pretrained=str(items_path), trainable=False),
        },
        default_fields=("user_id", "item_id"),
        divisions=(Division(name="theme", column="theme_id"),),
        label=Label(column="label"),
        post_outcome={"split": "it says whether a row is for training"},
        user="user_id",
        item="item_id",
    )


def _embedded(path: Path, name: str) -> pl.LazyFrame:
    """The ids that have an embedding: the first column of the file, under `name`."""
    first, *_ = delimited.header(path)
    frame = delimited.scan(path, {first: WHOLE})
    return frame.select(pl.col(first).alias(name))


def _themes(log: pl.LazyFrame, clicks: pl.LazyFrame, wanted: tuple[str, ...] | None) -> list[int]:
    """Ids of the themes to keep, in the order in which the log first shows them."""
    remaining = clicks.select("theme_id").unique()
    order = (
        log.with_row_index("place")
        .group_by("theme_id")
        .agg(pl.col("place").min())
        .join(remaining, on="theme_id", how="semi")
        .sort("place")
        .collect(engine="streaming")
    )
    found: list[int] = order["theme_id"].to_list()
    if not found:
        raise DataError("no click has both embeddings.", fix="use the files of one download.")
    if wanted is None:
        return found
    if len(wanted) == 1 and wanted[0].isdigit():
        return found[: int(wanted[0])]
    missing = [theme for theme in wanted if theme not in map(str, found)]
    if missing:
        raise DataError(
            f"no click of the themes {some(missing)} has both embeddings.",
            fix=f"name themes of the log, such as {some(found, 3)}, or one number N: the first N.",
        )
    return [theme for theme in found if str(theme) in wanted]
